package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
)

// A segment of many texts finds the same rows as the records themselves, and
// reads no more drawers than the forms leave.
func TestDrawers(t *testing.T) {
	l := newLayout()
	s, paths := manyTexts(&l)
	x := newStoredSegment(s)
	if x.packed {
		t.Fatal("the segment is one part")
	}
	var read []string
	fetch := func(_ context.Context, _ int64, name string) ([]byte, error) {
		read = append(read, name)
		if p, ok := x.parts[name]; ok {
			return unpack(p)
		}
		return nil, nil
	}
	for _, c := range []struct {
		query string
		texts int // drawers read, at most
	}{
		{"path:*refunds*", 2}, // an id may hold it
		{"path:*unicorn*", maxDrawers},
		{"path:*refund-1*", 2},
		{"path:/v1/orders/77*", 1},
		{"path:/v1/orders/*", 0}, // the forms decide
		{"path:*/orders/4096,*zebra-50", 3},
		{"-path:*refund-1*", maxDrawers},
		{"path:*77*", maxDrawers},
		{"path:*f2a*", 4}, // ids may hold it
		{"path:*\x01*", maxDrawers},
	} {
		read = nil
		f, err := audit.ParseFilter(c.query+" type:all", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		d := &DB{layout: l}
		p := d.plan(&Query{Filter: f})
		m, err := p.match(t.Context(), fetch, newView(x.segmentInfo))
		if err != nil {
			t.Fatal(err)
		}
		var want, got []uint32
		for i, path := range paths {
			if f.Match(&audit.Record{Type: audit.TypeEnd, Request: &audit.Request{Path: path}}) {
				want = append(want, uint32(i)) //nolint:gosec // few
			}
		}
		if m != nil {
			shapes, err := m.v.rowShapes(t.Context(), fetch)
			if err != nil {
				t.Fatal(err)
			}
			shapes.each(0, m.v.rows, func(n int, shape uint32) {
				if m.has(n, shape) {
					got = append(got, uint32(n)) //nolint:gosec // few
				}
			})
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %d rows, want %d", c.query, len(got), len(want))
		}
		drawers := 0
		for _, name := range read {
			if len(name) > len(partText+"path") && name[:len(partText)] == partText {
				drawers++
			}
		}
		if drawers > c.texts {
			t.Errorf("%s: %d drawers were read, at most %d expected", c.query, drawers, c.texts)
		}
	}
}

// manyTexts makes a segment of several drawers, and returns its paths by row.
func manyTexts(l *layout) (*segment, []string) {
	b := newBuilder(l)
	var paths []string
	for i := range 5 * packRows {
		r := audit.Record{ID: fmt.Sprint("rec_", i), Time: time.Unix(int64(i/3), 0), Type: audit.TypeEnd, Request: &audit.Request{Path: fmt.Sprintf("/v1/%s/%d", []string{"orders", "refunds", "o-3f2a9", "tickets"}[i%4], i)}}
		if i%50 == 0 {
			r.Request.Path = fmt.Sprintf("/%s-%d", []string{"refund", "zebra"}[i/50%2], i)
		}
		paths = append(paths, r.Request.Path)
		b.add(l.fill(&r, place{}, place{1 + int64(i)/100, uint16(i % 100)})) //nolint:gosec // few
	}
	return b.finish(), paths
}

// anew stores a segment's parts again, changed.
func anew(s *segment, parts map[string][]byte, change func(map[string][]byte)) {
	m := s.encode()
	change(m)
	group(m)
	for name, raw := range m {
		parts[name] = pack(raw)
	}
}

// Who leads questions past rows that are right in themselves is found.
func TestMisfiled(t *testing.T) {
	l := newLayout()
	for name, x := range map[string]struct {
		change func(*segment, map[string][]byte)
		want   string
	}{
		"nothing": {func(*segment, map[string][]byte) {}, ""},
		"marks": {func(s *segment, parts map[string][]byte) {
			times := slices.Clone(s.time)
			for i := range times {
				times[i] += 1e9
			}
			anew(s, parts, func(raw map[string][]byte) { raw[partMarks] = encodeMarks(times) })
		}, "marks"},
		"no marks that can be read": {func(s *segment, parts map[string][]byte) {
			anew(s, parts, func(raw map[string][]byte) { raw[partMarks] = []byte{1} })
		}, "marks"},
		"sums of bases": {func(s *segment, parts map[string][]byte) {
			l := s.totals()
			l[0].count++
			anew(s, parts, func(raw map[string][]byte) {
				raw[partTotals] = appendTimes(appendAmounts(nil, l), l, s.time[0])
			})
		}, "sums of bases"},
		"sums of bases that cannot be read": {func(s *segment, parts map[string][]byte) {
			anew(s, parts, func(raw map[string][]byte) { raw[partTotals] = []byte{1} })
		}, "sums of bases"},
		"a text in another drawer": {func(s *segment, parts map[string][]byte) {
			c := s.texts[slices.IndexFunc(s.texts, func(c textColumn) bool { return c.key == "path" })].counts
			from := slices.IndexFunc(c, func(n int) bool { return n > 1 })
			c[from]--
			c[from+1]++
			anew(s, parts, func(map[string][]byte) {})
		}, "texts"},
		"a row under two texts": {func(s *segment, parts map[string][]byte) {
			anew(s, parts, func(raw map[string][]byte) {
				c := s.texts[slices.IndexFunc(s.texts, func(c textColumn) bool { return c.key == "path" })]
				drawer := slices.IndexFunc(c.counts, func(n int) bool { return n > 1 })
				from := 0
				for _, n := range c.counts[:drawer] {
					from += n
				}
				all := c.rows()
				y := all.part(from, from+c.counts[drawer])
				rows := y.rows.unfold()
				rows[0] = rows[len(rows)-1]
				raw[drawerPart(partRows, "path", drawer)] = appendRows(nil, valueRows{y.ends, *column(rows)}, 0, len(y.ends))
			})
		}, "twice"},
		"a row that is not": {func(s *segment, parts map[string][]byte) {
			anew(s, parts, func(raw map[string][]byte) {
				name := drawerPart(partRows, "path", slices.IndexFunc(s.texts[slices.IndexFunc(s.texts, func(c textColumn) bool { return c.key == "path" })].counts, func(n int) bool { return n > 1 }))
				b := slices.Clone(raw[name])
				b[len(b)-1] = 0xff // the highest byte of a row
				raw[name] = b
			})
		}, "ends early"},
		"names in another bucket": {func(_ *segment, parts map[string][]byte) {
			parts[bucketPart(0)], parts[bucketPart(1)] = parts[bucketPart(1)], parts[bucketPart(0)]
		}, "names"},
	} {
		s, _ := manyTexts(&l)
		stored := newStoredSegment(s)
		x.change(s, stored.parts)
		fetch := func(_ context.Context, _ int64, name string) ([]byte, error) {
			if p, ok := stored.parts[name]; ok {
				return unpack(p)
			}
			return nil, nil
		}
		v := newView(stored.segmentInfo)
		got, err := v.load(t.Context(), fetch, &l)
		what := ""
		if err == nil {
			what, err = got.misfiled(t.Context(), fetch, v)
		}
		if err != nil {
			what = err.Error()
		}
		if x.want == "" && what != "" || !strings.Contains(what, x.want) {
			t.Errorf("%s: %q, want %q", name, what, x.want)
		}
	}
}

// A walk over rows of several pages shows each that it should, in order, from
// wherever it begins.
func TestWalker(t *testing.T) {
	l := newLayout()
	s, paths := manyTexts(&l)
	x := newStoredSegment(s)
	if x.rows <= pageRows {
		t.Fatal("the segment has one page")
	}
	fetch := func(_ context.Context, _ int64, name string) ([]byte, error) {
		if p, ok := x.parts[name]; ok {
			return unpack(p)
		}
		return nil, nil
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	d := &DB{layout: l}
	v := newView(x.segmentInfo)
	for range 300 {
		text := []string{"type:all", "path:*refunds*", "path:*refund-1*", "path:*77*"}[rnd.IntN(4)]
		f, err := audit.ParseFilter(text, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		p := d.plan(&Query{Filter: f, Oldest: rnd.IntN(2) == 0})
		if rnd.IntN(2) == 0 {
			p.low = s.time[rnd.IntN(len(s.time))] + int64(rnd.IntN(3)-1)
		}
		if rnd.IntN(2) == 0 {
			p.high = s.time[rnd.IntN(len(s.time))] + int64(rnd.IntN(3)-1)
		}
		at := func(n int) position { return position{s.time[n], s.first(uint32(n))} } //nolint:gosec // a row
		var after *position
		if rnd.IntN(2) == 0 {
			pos := at(rnd.IntN(len(s.time)))
			after = &pos
		}
		var want []int
		for n := range s.time {
			pos := at(n)
			beyond := after == nil || p.q.Oldest && after.before(pos) || !p.q.Oldest && pos.before(*after)
			if pos.time >= p.low && pos.time < p.high && beyond && f.Match(&audit.Record{Type: audit.TypeEnd, Request: &audit.Request{Path: paths[n]}}) {
				want = append(want, n)
			}
		}
		if !p.q.Oldest {
			slices.Reverse(want)
		}
		m, err := p.match(t.Context(), fetch, v)
		if err != nil {
			t.Fatal(err)
		}
		var got []int
		if m != nil {
			w, err := p.newWalker(t.Context(), fetch, m, after)
			for ; err == nil && w.found; err = w.next(t.Context()) {
				got = append(got, w.row)
				if w.are != s.end[w.row] || w.begun != s.begin[w.row] {
					t.Fatalf("row %d stands at %v", w.row, w.are)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%s, oldest %t, %d to %d, after %v: %d rows, want %d", text, p.q.Oldest, p.low, p.high, after, len(got), len(want))
		}
	}
}
