package store

import (
	"cmp"
	"context"
	"slices"
	"strings"
)

// DefaultFacets are the keys that Facets counts unless told.
func DefaultFacets() []string {
	return []string{"verdict", "outcome", "agent", "owner", "human", "namespace", "host", "provider", "policy", "rule", "code", "method", "service", "operation", "bucket", "status", "event"}
}

// Facets counts what q matches, by the values of each key; keys nil means
// DefaultFacets. At most limit values a key, the most frequent ones; 0 means 10.
func (d *DB) Facets(ctx context.Context, q Query, keys []string, limit int) (Facets, error) {
	if keys == nil {
		keys = DefaultFacets()
	}
	if limit <= 0 {
		limit = 10
	}
	if err := d.fewKeys(keys); err != nil {
		return Facets{}, err
	}
	all, partial, err := aggregate(ctx, d, &q, func() *facetCounter {
		c := &facetCounter{keys: keys, counts: make([]map[string]sum, len(keys))}
		for i := range c.counts {
			c.counts[i] = map[string]sum{}
		}
		c.byTally = c.add
		return c
	})
	if err != nil {
		return Facets{}, err
	}
	out := Facets{Total: all.total.public(), Partial: partial}
	for i, k := range keys {
		out.Facets = append(out.Facets, topValues(k, all.counts[i], limit))
	}
	return out, nil
}

// facetCounter counts by the values of each key.
type facetCounter struct {
	byTally

	keys   []string
	total  sum
	counts []map[string]sum // by key
}

func (c *facetCounter) join(o *facetCounter) {
	c.total.join(o.total)
	for i, m := range o.counts {
		for value, s := range m {
			y := c.counts[i][value]
			y.join(s)
			c.counts[i][value] = y
		}
	}
}

func (c *facetCounter) add(ctx context.Context, x *scan, l []tally) error {
	byShape, byBase, err := x.sums(ctx, l, slices.ContainsFunc(c.keys, wide))
	if err != nil {
		return err
	}
	for i := range byBase {
		c.total.join(byBase[i])
	}
	for i, k := range c.keys {
		col, err := x.few(ctx, x.f, k)
		if err != nil {
			return err
		}
		if col == nil {
			continue // of a version that did not know this key
		}
		from := byBase
		if wide(k) {
			from = byShape
		}
		sums := make([]sum, len(col.values))
		for n, code := range col.codes {
			if from[n].count > 0 {
				sums[code].join(from[n])
			}
		}
		for code, s := range sums {
			if s.count == 0 {
				continue
			}
			for _, value := range shown(k, parseList(col.values[code])) {
				y := c.counts[i][value]
				y.join(s)
				c.counts[i][value] = y
			}
		}
	}
	return nil
}

func topValues(key string, counts map[string]sum, limit int) Facet {
	f := Facet{Key: key, Values: []FacetValue{}}
	for v, s := range counts {
		f.Values = append(f.Values, FacetValue{v, s.public()})
	}
	slices.SortFunc(f.Values, func(a, b FacetValue) int {
		return cmp.Or(cmp.Compare(b.Count.Count, a.Count.Count), strings.Compare(a.Value, b.Value))
	})
	if len(f.Values) > limit {
		for _, v := range f.Values[limit:] {
			f.Others += v.Count.Count
		}
		f.More = len(f.Values) - limit
		f.Values = f.Values[:limit]
	}
	return f
}
