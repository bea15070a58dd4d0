package store

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
)

// A segment of many texts finds the same rows as the records themselves, and
// reads no more drawers than the forms leave.
func TestDrawers(t *testing.T) {
	l := newLayout()
	b := newBuilder(&l)
	var paths []string
	for i := range 3 * packRows {
		r := audit.Record{ID: fmt.Sprint("rec_", i), Time: time.Unix(int64(i), 0), Type: audit.TypeEnd, Request: &audit.Request{Path: fmt.Sprintf("/v1/%s/%d", []string{"orders", "refunds", "o-3f2a9", "tickets"}[i%4], i)}}
		if i%50 == 0 {
			r.Request.Path = fmt.Sprintf("/%s-%d", []string{"refund", "zebra"}[i/50%2], i)
		}
		paths = append(paths, r.Request.Path)
		b.add(l.fill(&r, place{}, place{1 + int64(i)/100, uint16(i % 100)})) //nolint:gosec // few
	}
	x := newStoredSegment(b.finish())
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
				if m.row(n, shape) {
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
