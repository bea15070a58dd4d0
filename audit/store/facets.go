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
		c := &facetCounter{keys: keys, limit: limit, counts: make([]map[string]sum, len(keys)), later: map[string][]later{}}
		for i := range c.counts {
			c.counts[i] = map[string]sum{}
		}
		c.byTotals = c.add
		return c
	}, func(ctx context.Context, c *facetCounter) error { return c.end(ctx) })
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
	byTotals

	keys   []string
	limit  int // values a key that are shown
	total  sum
	counts []map[string]sum   // by key
	later  map[string][]later // by value of a wide key: where more times of it are
}

// later is a segment that has a value whose times were not read: most values are
// not shown, and times are most of what there is to read.
type later struct {
	t    *totals
	key  int
	code uint32
}

func (c *facetCounter) join(o *facetCounter) {
	c.total.join(&o.total)
	for i, m := range o.counts {
		for value, s := range m {
			y := c.counts[i][value]
			y.join(&s)
			c.counts[i][value] = y
		}
	}
	for value, l := range o.later {
		c.later[value] = append(c.later[value], l...)
	}
}

func (c *facetCounter) add(ctx context.Context, t *totals) error {
	byBase, err := t.byBase(ctx)
	if err != nil {
		return err
	}
	for i := range byBase {
		c.total.join(&byBase[i])
	}
	for i, k := range c.keys {
		col, err := t.few(ctx, t.f, k)
		if err != nil {
			return err
		}
		if col == nil {
			continue // of a version that did not know this key
		}
		sums := make([]sum, len(col.values))
		if wide(k) {
			err = t.eachShape(ctx, false, func(n int, s *sum) { sums[col.codes[n]].join(s) })
		} else {
			for n, code := range col.codes {
				sums[code].join(&byBase[n])
			}
		}
		if err != nil {
			return err
		}
		for code, s := range sums {
			if s.count == 0 {
				continue
			}
			for _, value := range shown(k, parseList(col.values[code])) {
				y := c.counts[i][value]
				y.join(&s)
				c.counts[i][value] = y
				if wide(k) && !t.timed() {
					c.later[value] = append(c.later[value], later{t, i, uint32(code)}) //nolint:gosec // a code
				}
			}
		}
	}
	return nil
}

// end reads the times of those values that are shown.
func (c *facetCounter) end(ctx context.Context) error {
	for i, k := range c.keys {
		if !wide(k) {
			continue
		}
		for _, v := range topValues(k, c.counts[i], c.limit).Values {
			s := c.counts[i][v.Value]
			l := slices.DeleteFunc(slices.Clone(c.later[v.Value]), func(x later) bool { return x.key != i })
			slices.SortFunc(l, func(a, b later) int { return cmp.Compare(a.t.low, b.t.low) })
			for _, x := range l {
				if x.t.low >= s.first {
					break // neither this one nor those behind it
				}
				if err := x.join(ctx, k, &s); err != nil {
					return err
				}
			}
			slices.SortFunc(l, func(a, b later) int { return cmp.Compare(b.t.high, a.t.high) })
			for _, x := range l {
				if x.t.high <= s.last {
					break
				}
				if err := x.join(ctx, k, &s); err != nil {
					return err
				}
			}
			c.counts[i][v.Value] = s
		}
	}
	return nil
}

// join widens the times of s by those that the value has in the segment.
func (x *later) join(ctx context.Context, key string, s *sum) error {
	col, err := x.t.few(ctx, x.t.f, key)
	if err != nil {
		return err
	}
	return x.t.eachSpan(ctx, x.t.f, func(n int) bool { return col.codes[n] == x.code && x.t.m.shapes[n] }, func(_ int, t span) {
		s.first, s.last = min(s.first, t.first), max(s.last, t.last)
	})
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
