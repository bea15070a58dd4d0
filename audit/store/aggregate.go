package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
)

// DefaultFacets are the keys that Facets counts unless told.
func DefaultFacets() []string {
	return []string{"verdict", "outcome", "agent", "owner", "human", "namespace", "host", "provider", "policy", "rule", "code", "method", "service", "operation", "bucket", "status", "event"}
}

// sum is a tally with what its shape says.
type sum struct {
	tally
	denied, failed int64
}

func (s *sum) join(o sum) {
	s.tally.join(o.tally)
	s.denied += o.denied
	s.failed += o.failed
}

func (s *sum) public() Count {
	c := Count{Count: s.count, Denied: s.denied, Failed: s.failed, Bytes: s.bytes}
	if s.count > 0 {
		c.First, c.Last = micro(s.first), micro(s.last)
	}
	return c
}

// tallied is what one segment has of a plan's rows: a sum for each shape.
type tallied struct {
	v    *view
	f    fetcher
	sums []sum // by shape
}

// aggregate calls fn with each segment's sums. times, if not nil, gets each row
// that counts as well; where whole is given and true for a segment, its rows are
// not gone through. It reports whether the bound on work was reached.
func (d *DB) aggregate(ctx context.Context, q *Query, fn func(context.Context, *tallied) error, each func(t int64, s sum), whole func(*view) bool) (partial bool, err error) {
	err = d.reading(ctx, func(ctx context.Context, t *tx) error {
		p := d.plan(q)
		views, err := d.snapshot(ctx, t, p)
		if err != nil {
			return err
		}
		slices.SortStableFunc(views, func(a, b *view) int { return cmp.Compare(b.high, a.high) })
		s := &search{d: d, t: t, p: p, lines: d.newLineReader(t), looks: time.Now}
		s.until = s.looks().Add(d.o.QueryTimeout / 2)
		for _, v := range views {
			if err := ctx.Err(); err != nil {
				return err
			}
			m, err := p.match(ctx, t.fetch, v)
			if err != nil {
				return err
			}
			if m == nil {
				continue
			}
			x := &tallied{v: v, f: t.fetch, sums: make([]sum, v.shapes)}
			if p.whole(m) && (each == nil || whole(v)) {
				err = p.tallies(ctx, m, x)
				if err == nil && each != nil {
					var all sum
					for _, y := range x.sums {
						all.join(y)
					}
					each(v.low, all)
				}
			} else {
				partial, err = s.rows(ctx, m, x, each)
			}
			if err != nil {
				return err
			}
			if fn != nil {
				if err := fn(ctx, x); err != nil {
					return err
				}
			}
			if partial {
				return nil
			}
		}
		return nil
	})
	d.views.trim()
	return partial, err
}

// flags says which shapes were denied and which failed.
func (v *view) flags(ctx context.Context, f fetcher) (denied, failed []bool, err error) {
	mark := func(key string, is func(string) bool) ([]bool, error) {
		c, err := v.few(ctx, f, key)
		if err != nil {
			return nil, err
		}
		if c == nil {
			return nil, damaged("segment %d has no column %s", v.id, key)
		}
		good := make([]bool, len(c.values))
		for i, l := range c.values {
			good[i] = slices.ContainsFunc(parseList(l), is)
		}
		out := make([]bool, len(c.codes))
		for i, n := range c.codes {
			out[i] = good[n]
		}
		return out, nil
	}
	if denied, err = mark("verdict", func(s string) bool { return s == "deny" }); err != nil {
		return nil, nil, err
	}
	failed, err = mark("outcome", func(s string) bool { return s != audit.OutcomeOK && s != audit.OutcomeDenied && s != audit.OutcomeOpen })
	return denied, failed, err
}

// tallies takes the sums from the segment's own tallies.
func (p *plan) tallies(ctx context.Context, m *matcher, x *tallied) error {
	tallies, err := m.v.tallies(ctx, x.f)
	if err != nil {
		return err
	}
	denied, failed, err := m.v.flags(ctx, x.f)
	if err != nil {
		return err
	}
	for i, ok := range m.shapes {
		if !ok {
			continue
		}
		s := sum{tally: tallies[i]}
		if denied[i] {
			s.denied = s.count
		}
		if failed[i] {
			s.failed = s.count
		}
		x.sums[i] = s
	}
	return nil
}

// rows goes through the rows of a segment, newest first.
func (s *search) rows(ctx context.Context, m *matcher, x *tallied, each func(int64, sum)) (partial bool, err error) {
	denied, failed, err := m.v.flags(ctx, s.t.fetch)
	if err != nil {
		return false, err
	}
	sizes, err := m.v.sizes(ctx, s.t.fetch)
	if err != nil {
		return false, err
	}
	if !m.doubt {
		return false, s.sure(ctx, m, x, sizes, denied, failed, each)
	}
	w, err := s.p.newWalker(ctx, s.t.fetch, m, nil)
	if err != nil {
		return false, err
	}
	for ; w.found; w.next() {
		if s.tired() {
			return true, nil
		}
		r, err := s.read(ctx, w)
		if err != nil {
			return false, err
		}
		if s.p.q.Filter.Match(&r.Record) {
			n := w.shapes[w.row]
			x.add(n, w.pos.time, sizes[w.row], denied[n], failed[n], each)
		}
	}
	return false, nil
}

// sure goes through rows that need not be read: it is on the path of every
// histogram, so it makes nothing a row.
func (s *search) sure(ctx context.Context, m *matcher, x *tallied, sizes []int64, denied, failed []bool, each func(int64, sum)) error {
	times, err := m.v.times(ctx, s.t.fetch)
	if err != nil {
		return err
	}
	shapes, err := m.v.rowShapes(ctx, s.t.fetch)
	if err != nil {
		return err
	}
	low, _ := slices.BinarySearch(times, s.p.low)
	high, _ := slices.BinarySearch(times, s.p.high)
	for n := low; n < high; n++ {
		shape := shapes[n]
		if m.row(n, shape) {
			x.add(shape, times[n], sizes[n], denied[shape], failed[shape], each)
		}
	}
	return nil
}

// add counts one row.
func (x *tallied) add(shape uint32, t, size int64, denied, failed bool, each func(int64, sum)) {
	one := sum{tally: tally{1, size, t, t}}
	if denied {
		one.denied = 1
	}
	if failed {
		one.failed = 1
	}
	if each != nil {
		each(t, one) // a histogram does not look at shapes
		return
	}
	x.sums[shape].join(one)
}

// shown returns the values by which a record counts under a key.
func shown(key string, l []string) []string {
	l = slices.DeleteFunc(slices.Clone(l), func(s string) bool { return s == "" })
	switch {
	case len(l) < 2:
		return l
	case key == "agent" || key == "type" || key == "epoch": // the others are other names of the same
		return l[:1]
	case key == "human" || key == "document": // the last is the one that people know
		return l[len(l)-1:]
	}
	slices.Sort(l)
	return slices.Compact(l)
}

func (d *DB) fewKeys(keys []string) error {
	for _, k := range keys {
		if !slices.ContainsFunc(d.layout.few, func(x audit.Key) bool { return x.Name == k }) {
			var names []string
			for _, x := range d.layout.few {
				names = append(names, x.Name)
			}
			return fmt.Errorf("audit query: %q cannot be counted by; use %s", clip(k), strings.Join(names, ", "))
		}
	}
	return nil
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
	var total sum
	counts := make([]map[string]sum, len(keys))
	for i := range counts {
		counts[i] = map[string]sum{}
	}
	partial, err := d.aggregate(ctx, &q, func(ctx context.Context, x *tallied) error {
		for _, s := range x.sums {
			total.join(s)
		}
		for i, k := range keys {
			if err := x.byValue(ctx, k, func(value string, s sum) {
				y := counts[i][value]
				y.join(s)
				counts[i][value] = y
			}); err != nil {
				return err
			}
		}
		return nil
	}, nil, nil)
	if err != nil {
		return Facets{}, err
	}
	out := Facets{Total: total.public(), Partial: partial}
	for i, k := range keys {
		out.Facets = append(out.Facets, topValues(k, counts[i], limit))
	}
	return out, nil
}

// byValue calls fn with the sum of each value of a key in the segment.
func (x *tallied) byValue(ctx context.Context, key string, fn func(string, sum)) error {
	c, err := x.v.few(ctx, x.f, key)
	if err != nil || c == nil {
		return err
	}
	sums := make([]sum, len(c.values))
	for i, n := range c.codes {
		if x.sums[i].count > 0 {
			sums[n].join(x.sums[i])
		}
	}
	for i, s := range sums {
		if s.count == 0 {
			continue
		}
		for _, value := range shown(key, parseList(c.values[i])) {
			fn(value, s)
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
