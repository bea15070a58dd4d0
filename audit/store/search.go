package store

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sort"
	"strings"
	"time"
)

const (
	defaultLimit    = 50
	defaultMaxReads = 100_000
)

// position is a place in the order of an answer.
type position struct {
	time  int64
	place place
}

func (p position) before(q position) bool {
	return p.time < q.time || p.time == q.time && p.place.before(q.place)
}

const (
	cursorTime    = 1 // of Search
	cursorArrival = 2 // of Tail
)

func (p position) cursor(kind byte) Cursor {
	b := appendVarint([]byte{kind}, p.time)
	b = appendVarint(b, p.place.block)
	return Cursor(base64.RawURLEncoding.EncodeToString(binary.AppendUvarint(b, uint64(p.place.line))))
}

func parseCursor(c Cursor, kind byte) (position, error) {
	b, err := base64.RawURLEncoding.DecodeString(string(c))
	if err != nil || len(b) == 0 || b[0] != kind {
		return position{}, ErrCursor
	}
	r := reader{b: b[1:]}
	p := position{r.varint(), place{block: r.varint()}}
	n := r.uvarint()
	if r.err != nil || len(r.b) > 0 || n > math.MaxUint16 {
		return position{}, ErrCursor
	}
	p.place.line = uint16(n) //nolint:gosec // checked above
	return p, nil
}

// walker goes through the rows of one segment that match, in time's order.
type walker struct {
	m      *matcher
	times  []int64
	shapes *codes
	places *places
	at     int // index of the next row to look at, in m.rows if named
	end    int // exclusive
	step   int
	found  bool
	pos    position
	row    int
}

// newWalker begins behind a position, which may be nil.
func (p *plan) newWalker(ctx context.Context, f fetcher, m *matcher, after *position) (*walker, error) {
	w := &walker{m: m, step: -1}
	var err error
	if w.times, err = m.v.times(ctx, f); err != nil {
		return nil, err
	}
	if w.shapes, err = m.v.rowShapes(ctx, f); err != nil {
		return nil, err
	}
	if w.places, err = m.v.places(ctx, f); err != nil {
		return nil, err
	}
	n := len(w.times)
	index := func(i int) int { return i }
	if m.named {
		n = len(m.rows)
		index = func(i int) int { return int(m.rows[i]) }
	}
	low := sort.Search(n, func(i int) bool { return w.times[index(i)] >= p.low })
	high := sort.Search(n, func(i int) bool { return w.times[index(i)] >= p.high })
	at := func(i int) position { return position{w.times[index(i)], w.places.first(index(i))} }
	if p.q.Oldest {
		if after != nil {
			low = max(low, sort.Search(n, func(i int) bool { return after.before(at(i)) }))
		}
		w.at, w.end, w.step = low, high, 1
	} else {
		if after != nil {
			high = min(high, sort.Search(n, func(i int) bool { return !at(i).before(*after) }))
		}
		w.at, w.end = high-1, low-1
	}
	if w.step > 0 && w.at > w.end || w.step < 0 && w.at < w.end {
		w.at = w.end
	}
	w.next()
	return w, nil
}

func (w *walker) next() {
	w.found = false
	for w.at != w.end {
		n := w.at
		w.at += w.step
		if w.m.named {
			n = int(w.m.rows[n])
		}
		if w.m.row(n, w.shapes.at(n)) {
			w.found, w.row, w.pos = true, n, position{w.times[n], w.places.first(n)}
			return
		}
	}
}

// search is one walk over all segments in time's order.
type search struct {
	d     *DB
	t     *tx
	p     *plan
	lines *lineReader
	open  []*walker
	rest  []*view // not opened yet, in the order in which they may matter
	// ready is what the first of rest have; nil: nothing.
	ready  []*walker
	opened int // how often segments were opened while none had a row
	after  *position
	reads  int
	until  time.Time // when to give a partial answer
	looks  func() time.Time
}

func (d *DB) newSearch(ctx context.Context, t *tx, q *Query, after *position, about string) (*search, error) {
	s := &search{d: d, t: t, p: d.plan(q), lines: d.newLineReader(t), after: after, looks: time.Now}
	s.p.about = about
	s.until = s.looks().Add(d.o.QueryTimeout / 2)
	var err error
	s.rest, err = d.snapshot(ctx, t, s.p)
	if err != nil {
		return nil, err
	}
	if after != nil { // what is wholly before it was seen already
		s.rest = slices.DeleteFunc(s.rest, func(v *view) bool {
			return q.Oldest && v.high < after.time || !q.Oldest && v.low > after.time
		})
	}
	sort.SliceStable(s.rest, func(i, j int) bool {
		if q.Oldest {
			return s.rest[i].low < s.rest[j].low
		}
		return s.rest[i].high > s.rest[j].high
	})
	return s, nil
}

// snapshot returns the views of all segments that may matter to a plan, that of
// the records which are not complete included.
func (d *DB) snapshot(ctx context.Context, t *tx, p *plan) ([]*view, error) {
	infos, err := t.segments(ctx, p.low, p.high)
	if err != nil {
		return nil, err
	}
	l := make([]*view, 0, len(infos)+1)
	for _, i := range infos {
		l = append(l, d.views.of(i))
	}
	v, err := d.halves(ctx, t, p.low, p.high)
	if v != nil {
		l = append(l, v)
	}
	return l, err
}

// matters reports whether a segment that is not opened yet may hold a row before
// the one at pos.
func (s *search) matters(v *view, pos position) bool {
	if s.p.q.Oldest {
		return v.low <= pos.time
	}
	return v.high >= pos.time
}

// next returns the next row that the index matches.
func (s *search) next(ctx context.Context) (*walker, error) {
	for {
		var best *walker
		for _, w := range s.open {
			if w.found && (best == nil || w.pos.before(best.pos) == s.p.q.Oldest) {
				best = w
			}
		}
		if len(s.rest) == 0 || best != nil && !s.matters(s.rest[0], best.pos) {
			return best, nil
		}
		if len(s.ready) == 0 {
			if err := s.openAhead(ctx, best != nil); err != nil {
				return nil, err
			}
		}
		if w := s.ready[0]; w != nil {
			s.open = append(s.open, w)
		}
		s.rest, s.ready = s.rest[1:], s.ready[1:]
	}
}

// openAhead opens the next segment. As long as none has a row that matches it
// opens more and more at once: what is rare is looked for on all cores.
func (s *search) openAhead(ctx context.Context, found bool) error {
	n := 1
	if !found {
		n = min(1<<s.opened, maxAhead)
		s.opened++
	}
	n = min(n, len(s.rest))
	s.ready = make([]*walker, n)
	return each(ctx, min(n, runtime.GOMAXPROCS(0)), n, func(ctx context.Context, _, i int) error {
		m, err := s.p.match(ctx, s.t.fetch, s.rest[i])
		if err != nil || m == nil {
			return err
		}
		w, err := s.p.newWalker(ctx, s.t.fetch, m, s.after)
		if err == nil && w.found {
			s.ready[i] = w
		}
		return err
	}, func(int) {})
}

// maxAhead bounds the segments that are opened at once.
const maxAhead = 8

// tired reports whether the bound on work is reached.
func (s *search) tired() bool {
	s.reads++
	return s.reads > s.d.o.MaxReads || s.reads%64 == 0 && s.looks().After(s.until)
}

// Search returns a page of the records that q matches. It reads only so much:
// Page.Partial.
func (d *DB) Search(ctx context.Context, q Query) (Page, error) {
	return d.search(ctx, q, "")
}

// search is Search among the records that go by a name, if it is not empty.
func (d *DB) search(ctx context.Context, q Query, about string) (Page, error) {
	limit, err := pageSize(q.Limit)
	if err != nil {
		return Page{}, err
	}
	var after *position
	if q.After != "" {
		pos, err := parseCursor(q.After, cursorTime)
		if err != nil {
			return Page{}, err
		}
		after = &pos
	}
	var page Page
	err = d.reading(ctx, func(ctx context.Context, t *tx) error {
		page = Page{}
		s, err := d.newSearch(ctx, t, &q, after, strings.ToLower(about))
		if err != nil {
			return err
		}
		for {
			w, err := s.next(ctx)
			if err != nil || w == nil {
				return err
			}
			if len(page.Rows) == limit {
				page.Next = page.Rows[limit-1].Cursor
				return nil
			}
			pos := w.pos
			row, err := s.read(ctx, w)
			if err != nil {
				return err
			}
			w.next()
			if q.Filter.Match(&row.Record) && (about == "" || concerns(&row.Record, about)) {
				row.Cursor = pos.cursor(cursorTime)
				page.Rows = append(page.Rows, row)
			} else if s.tired() {
				page.Partial, page.Next, page.Until = true, pos.cursor(cursorTime), micro(pos.time)
				return nil
			}
		}
	})
	d.views.trim()
	return page, err
}

func pageSize(n int) (int, error) {
	switch {
	case n == 0:
		return defaultLimit, nil
	case n < 0 || n > MaxLimit:
		return 0, fmt.Errorf("audit query: limit is %d; must be between 1 and %d", n, MaxLimit)
	default:
		return n, nil
	}
}

// read returns the record at a walker's row.
func (s *search) read(ctx context.Context, w *walker) (Row, error) {
	return s.lines.row(ctx, w.places.begin(w.row), w.places.end(w.row))
}

var errNoBlock = errors.New("block is not there")
