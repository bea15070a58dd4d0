package store

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
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
	p      *plan
	m      *matcher
	f      fetcher
	after  *position // nil: the beginning
	shapes *codes    // nil: rows need not be looked at by shape
	at     int       // index of the next row to look at, in m.rows if named
	end    int       // exclusive
	step   int
	// Of the row that was found.
	found      bool
	pos        position
	row        int
	begun, are place // where its lines stand
}

// newWalker begins behind a position, which may be nil.
func (p *plan) newWalker(ctx context.Context, f fetcher, m *matcher, after *position) (*walker, error) {
	w := &walker{p: p, m: m, f: f, after: after, step: -1}
	if !m.every {
		var err error
		if w.shapes, err = m.v.rowShapes(ctx, f); err != nil {
			return nil, err
		}
	}
	// The marks say about where to look; next looks at the times.
	low, high := p.low, p.high
	if after != nil && p.q.Oldest {
		low = max(low, after.time)
	} else if after != nil {
		high = min(high, after.time+1)
	}
	from, until, err := m.v.within(ctx, f, low, high)
	if err != nil {
		return nil, err
	}
	if m.named {
		from, _ = slices.BinarySearch(m.rows, uint32(from))   //nolint:gosec // a row
		until, _ = slices.BinarySearch(m.rows, uint32(until)) //nolint:gosec // a row
	}
	if p.q.Oldest {
		w.at, w.end, w.step = from, until, 1
	} else {
		w.at, w.end = until-1, from-1
	}
	return w, w.next(ctx)
}

// next goes to the next row that matches, if there is one.
func (w *walker) next(ctx context.Context) error {
	w.found = false
	for w.at != w.end {
		n := w.at
		w.at += w.step
		if w.m.named {
			n = int(w.m.rows[n])
		}
		if w.shapes != nil && !w.m.row(n, w.shapes.at(n)) {
			continue
		}
		x, err := w.m.v.page(ctx, w.f, n/pageRows)
		if err != nil {
			return err
		}
		i := n % pageRows
		pos := position{x.times[i], x.places.first(i)}
		if pos.time < w.p.low || pos.time >= w.p.high || !w.behind(pos) {
			continue
		}
		w.found, w.row, w.pos = true, n, pos
		w.begun, w.are = x.places.begin(i), x.places.end(i)
		return nil
	}
	return nil
}

// behind reports whether a position comes behind w.after.
func (w *walker) behind(pos position) bool {
	switch {
	case w.after == nil:
		return true
	case w.p.q.Oldest:
		return w.after.before(pos)
	default:
		return pos.before(*w.after)
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
	opened int    // how often segments were opened while none had a row
	cut    *int64 // that of halves
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
	s.rest, s.cut, err = d.snapshot(ctx, t, s.p)
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
// cut is that of halves.
func (d *DB) snapshot(ctx context.Context, t *tx, p *plan) (l []*view, cut *int64, err error) {
	infos, err := t.segments(ctx, p.low, p.high)
	if err != nil {
		return nil, nil, err
	}
	l = make([]*view, 0, len(infos)+1)
	for _, i := range infos {
		l = append(l, d.views.of(i))
	}
	if !p.open {
		return l, nil, nil
	}
	v, cut, err := d.openRequests(ctx, t, p)
	if v != nil {
		l = append(l, v)
	}
	return l, cut, err
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
	return each(ctx, min(n, parallel()), n, func(ctx context.Context, _, i int) error {
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
			l, more, err := s.take(ctx, min(limit-len(page.Rows), takeRows))
			if err != nil {
				return err
			}
			for _, x := range l {
				row, err := s.lines.row(ctx, x.begun, x.are)
				if err != nil {
					return err
				}
				if q.Filter.Match(&row.Record) && (about == "" || concerns(&row.Record, about)) {
					row.Cursor = x.pos.cursor(cursorTime)
					page.Rows = append(page.Rows, row)
				} else if s.tired() {
					page.Partial, page.Next, page.Until = true, x.pos.cursor(cursorTime), micro(x.pos.time)
					return nil
				}
			}
			if more && len(page.Rows) == limit {
				page.Next = page.Rows[limit-1].Cursor
			}
			if !more || len(page.Rows) == limit {
				s.short(&page)
				return nil
			}
		}
	})
	d.views.trim()
	return page, err
}

// takeRows bounds the rows whose lines are read at once.
const takeRows = 64

// taken is a row that a walker found.
type taken struct {
	pos        position
	begun, are place
}

// take returns the next rows that the index matches, n at most, whose lines
// are at hand then; more reports whether there are others.
func (s *search) take(ctx context.Context, n int) (l []taken, more bool, err error) {
	var blocks []int64
	for {
		w, err := s.next(ctx)
		if err != nil {
			return nil, false, err
		}
		if w == nil || len(l) == n {
			return l, w != nil, s.lines.ahead(ctx, blocks)
		}
		l = append(l, taken{w.pos, w.begun, w.are})
		blocks = append(blocks, w.begun.block, w.are.block)
		if err := w.next(ctx); err != nil {
			return nil, false, err
		}
	}
}

// short says of a page that reaches to a time at which open requests were left
// out that it is partial.
func (s *search) short(p *Page) {
	if s.cut == nil {
		return
	}
	oldest := len(p.Rows) - 1
	if s.p.q.Oldest {
		oldest = 0
	}
	if p.Next == "" || p.Rows[oldest].Time.UnixMicro() <= *s.cut {
		p.Partial, p.Until = true, micro(*s.cut)
	}
}

// Pages yields the pages of Search, of q.Limit rows each (0: as many as a page
// may have), from q.After on. An error ends it; ErrOpen comes behind all that
// there is.
func (d *DB) Pages(ctx context.Context, q Query) iter.Seq2[Page, error] {
	if q.Limit == 0 {
		q.Limit = MaxLimit
	}
	return func(yield func(Page, error) bool) {
		for {
			page, err := d.Search(ctx, q)
			if !yield(page, err) || err != nil {
				return
			}
			if page.Next == "" {
				if page.Partial {
					yield(Page{}, fmt.Errorf("%w: some of those up to %s are missing, until: reaches them", ErrOpen, page.Until.Format(time.RFC3339)))
				}
				return
			}
			q.After = page.Next
		}
	}
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
	return s.lines.row(ctx, w.begun, w.are)
}

var errNoBlock = errors.New("block is not there")
