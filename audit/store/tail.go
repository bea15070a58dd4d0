package store

import (
	"container/heap"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/attache-dev/attache/audit"
)

// arrivals keeps the n rows that arrived first.
type arrivals struct {
	l []arrival
}

type arrival struct{ begin, end place }

// Len implements heap.Interface.
func (a *arrivals) Len() int { return len(a.l) }

// Less implements heap.Interface: the latest is on top.
func (a *arrivals) Less(i, j int) bool { return a.l[j].end.before(a.l[i].end) }

// Swap implements heap.Interface.
func (a *arrivals) Swap(i, j int) { a.l[i], a.l[j] = a.l[j], a.l[i] }

// Push implements heap.Interface.
func (a *arrivals) Push(x any) { a.l = append(a.l, x.(arrival)) } //nolint:forcetypeassert // only we push

// Pop implements heap.Interface.
func (a *arrivals) Pop() any {
	x := a.l[len(a.l)-1]
	a.l = a.l[:len(a.l)-1]
	return x
}

// maxTail bounds the rows that one call of Tail reads.
const maxTail = 5000

// Tail returns the records that q matches and that were finished after a place
// (Page.Next of Tail, or End), in the order in which they arrived. Page.Next is
// never empty: call again with it. The empty cursor is before the first record.
func (d *DB) Tail(ctx context.Context, q Query, after Cursor) (Page, error) {
	limit, err := pageSize(q.Limit)
	if err != nil {
		return Page{}, err
	}
	var from position
	if after != "" {
		if from, err = parseCursor(after, cursorArrival); err != nil {
			return Page{}, err
		}
	}
	var page Page
	err = d.reading(ctx, func(ctx context.Context, t *tx) error {
		page = Page{Next: from.cursor(cursorArrival)}
		p := d.plan(&q)
		found, end, err := d.arrived(ctx, t, p, from.place)
		if err != nil {
			return err
		}
		lines := d.newLineReader(t)
		for _, a := range found {
			if len(page.Rows) == limit {
				return nil
			}
			row, err := lines.row(ctx, a.begin, a.end)
			if err != nil {
				return err
			}
			page.Next = position{0, a.end}.cursor(cursorArrival)
			if q.Filter.Match(&row.Record) {
				row.Cursor = page.Next
				page.Rows = append(page.Rows, row)
			}
		}
		if len(found) < maxTail {
			page.Next = position{0, end}.cursor(cursorArrival)
		}
		return nil
	})
	d.views.trim()
	return page, err
}

// arrived returns the first rows after a place that the index matches, in the
// order of arrival, at most maxTail, and the last place that there is.
func (d *DB) arrived(ctx context.Context, t *tx, p *plan, from place) ([]arrival, place, error) {
	infos, err := t.segmentList(ctx, "WHERE bhigh >= ? ORDER BY blow", from.block)
	if err != nil {
		return nil, from, err
	}
	end := from
	h := &arrivals{}
	for _, i := range infos {
		v := d.views.of(i)
		if err := v.eachPage(ctx, t.fetch, func(_ int, x *page) {
			for n := range x.times {
				if e := x.places.end(n); end.before(e) {
					end = e
				}
			}
		}); err != nil {
			return nil, from, err
		}
		m, err := p.match(ctx, t.fetch, v)
		if err != nil || m == nil {
			if err != nil {
				return nil, from, err
			}
			continue
		}
		shapes, err := v.rowShapes(ctx, t.fetch)
		if err != nil {
			return nil, from, err
		}
		err = v.eachPage(ctx, t.fetch, func(first int, x *page) {
			for n := range x.times {
				e := x.places.end(n)
				if !from.before(e) || !m.has(first+n, shapes.at(first+n)) {
					continue
				}
				if len(h.l) == maxTail {
					if !e.before(h.l[0].end) {
						continue
					}
					heap.Pop(h)
				}
				heap.Push(h, arrival{x.places.begin(n), e})
			}
		})
		if err != nil {
			return nil, from, err
		}
	}
	slices.SortFunc(h.l, func(a, b arrival) int { return comparePlaces(a.end, b.end) })
	return h.l, end, nil
}

// End is where Tail continues with what comes from now on.
func (d *DB) End(ctx context.Context) (Cursor, error) {
	var high *int64
	err := d.reading(ctx, func(ctx context.Context, t *tx) error {
		_, err := t.one(ctx, "SELECT max(bhigh) FROM segment", nil, &high)
		return err
	})
	if err != nil || high == nil {
		return position{}.cursor(cursorArrival), err
	}
	return position{0, place{*high, 1<<16 - 1}}.cursor(cursorArrival), nil
}

// Get returns one record by its id, joined, and the lines that it was made of.
// ErrNotFound if there is none. Who may see it: [Visible].
func (d *DB) Get(ctx context.Context, id string) (Row, []Ref, error) {
	f, err := everything().With("id", id)
	if err != nil {
		return Row{}, nil, fmt.Errorf("record %s: %w", clip(id), ErrNotFound)
	}
	page, err := d.Search(ctx, Query{Filter: f, Limit: 10})
	if err != nil {
		return Row{}, nil, err
	}
	i := slices.IndexFunc(page.Rows, func(r Row) bool { return r.ID == id })
	if i < 0 {
		return Row{}, nil, fmt.Errorf("record %s: %w", clip(id), ErrNotFound)
	}
	r := page.Rows[i]
	refs := []Ref{{r.Epoch, r.Sequence}}
	if r.BeginSequence != 0 {
		refs = append([]Ref{{r.BeginEpoch, r.BeginSequence}}, refs...)
	}
	return r, refs, nil
}

// everything matches epochs and heartbeats too.
func everything() audit.Filter {
	f, err := audit.Filter{}.With("type", "all")
	if err != nil {
		panic(fmt.Sprintf("audit store: type:all is no term: %v", err)) // a key of package audit
	}
	return f
}

// Visible reports whether who may see these namespaces may see a record: nil
// means all, and an empty list none.
func Visible(r *audit.Record, namespaces []string) bool {
	if namespaces == nil {
		return true
	}
	p := plan{}
	for _, s := range namespaces {
		p.spaces = append(p.spaces, strings.ToLower(s))
	}
	return p.visible(audit.Namespaces(r))
}

// Related returns what goes by a name: a record id, a credential handle, a task
// id, a run id, a trace id, the far side's id of a request, or a person (subject
// or email), in the order of q. q.Filter may narrow it.
func (d *DB) Related(ctx context.Context, name string, q Query) (Page, error) {
	if name == "" || len(name) > maxName {
		return Page{}, nil
	}
	return d.search(ctx, q, name)
}
