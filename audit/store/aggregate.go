package store

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/attache-dev/attache/audit"
)

// sum is a tally with what its base says.
type sum struct {
	tally
	denied, failed int64
}

func (s *sum) join(o *sum) {
	s.tally.join(o.tally)
	s.denied += o.denied
	s.failed += o.failed
}

// set makes s what rows add up to that were all denied, or failed, or not.
func (s *sum) set(t tally, denied, failed bool) {
	*s = sum{tally: t}
	if denied {
		s.denied = t.count
	}
	if failed {
		s.failed = t.count
	}
}

func (s *sum) public() Count {
	c := Count{Count: s.count, Denied: s.denied, Failed: s.failed, Bytes: s.bytes}
	if s.count > 0 {
		c.First, c.Last = micro(s.first), micro(s.last)
	}
	return c
}

// scan is one segment and what a plan matches of it.
type scan struct {
	*view

	p     *plan
	m     *matcher
	f     fetcher
	read  []tally // of rows that were read: what they add up to, by shape
	class []byte  // by shape, once it was asked for
}

// counter counts what a plan matches. Several count at once, each some segments,
// and are joined.
type counter[C any] interface {
	// sure counts a segment of which no record has to be read.
	sure(ctx context.Context, x *scan) error
	// row counts one row that was read.
	row(ctx context.Context, x *scan, n int) error
	// done is called behind the last row that was read of a segment.
	done(ctx context.Context, x *scan) error
	join(other C)
}

// byTotals is what counters have in common that count by what the rows of a
// segment add up to: it adds that.
type byTotals func(ctx context.Context, t *totals) error

func (add byTotals) sure(ctx context.Context, x *scan) error {
	t := &totals{scan: x}
	if !x.p.whole(x.m) {
		var err error
		if t.rows, err = x.tallied(ctx); err != nil {
			return err
		}
	}
	return add(ctx, t)
}

func (byTotals) row(ctx context.Context, x *scan, n int) error { return x.keep(ctx, n) }

func (add byTotals) done(ctx context.Context, x *scan) error {
	if x.read == nil {
		return nil
	}
	return add(ctx, &totals{scan: x, rows: x.read})
}

// aggregate counts what q matches with the counters that zero makes; end, if not
// nil, is called when all is joined and segments can still be read. It reports
// whether the bound on work was reached.
func aggregate[C counter[C]](ctx context.Context, d *DB, q *Query, zero func() C, end func(context.Context, C) error) (all C, partial bool, err error) {
	all = zero()
	err = d.reading(ctx, func(ctx context.Context, t *tx) error {
		p := d.plan(q)
		views, cut, err := d.snapshot(ctx, t, p)
		if err != nil {
			return err
		}
		partial = cut != nil
		slices.SortStableFunc(views, func(a, b *view) int { return cmp.Compare(b.high, a.high) })
		counters := make([]C, min(len(views), parallel()))
		doubtful := make([]*scan, len(views))
		err = each(ctx, len(counters), len(views), func(ctx context.Context, worker, i int) error {
			m, err := p.match(ctx, t.fetch, views[i])
			if err != nil || m == nil {
				return err
			}
			x := &scan{view: views[i], p: p, m: m, f: t.fetch}
			if m.doubt {
				doubtful[i] = x
				return nil
			}
			return counters[worker].sure(ctx, x)
		}, func(worker int) { counters[worker] = zero() })
		if err != nil {
			return err
		}
		for _, c := range counters {
			all.join(c)
		}
		s := &search{d: d, t: t, p: p, lines: d.newLineReader(t), looks: time.Now}
		s.until = s.looks().Add(d.o.QueryTimeout / 2)
		for _, x := range doubtful {
			if x == nil {
				continue
			}
			tired, err := readRows(ctx, s, x, all)
			if err != nil {
				return err
			}
			if tired {
				partial = true
				break
			}
		}
		if end == nil {
			return nil
		}
		return end(ctx, all)
	})
	d.views.trim()
	return all, partial, err
}

// parallel is how many segments are looked at at once: more than there are cores,
// since they wait for the disk too.
func parallel() int { return 2 * runtime.GOMAXPROCS(0) }

// each calls fn for 0 to n-1, in ascending order but several at once, each by one
// of the workers; begin is called for each worker first. It returns the first
// error.
func each(ctx context.Context, workers, n int, fn func(ctx context.Context, worker, i int) error, begin func(worker int)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for w := range workers {
		begin(w)
	}
	for w := range workers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				if err := safely(func() error { return fn(ctx, w, i) }); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// safely makes an error of a panic: what is damaged in a way that no check saw must
// not end the process from a goroutine of ours.
func safely(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = damaged("reading it: %v", p)
		}
	}()
	return fn()
}

// readRows counts the rows of a segment that have to be read, newest first.
func readRows[C counter[C]](ctx context.Context, s *search, x *scan, c C) (partial bool, err error) {
	w, err := s.p.newWalker(ctx, x.f, x.m, nil)
	if err != nil {
		return false, err
	}
	for w.found {
		if s.tired() {
			partial = true
			break
		}
		r, err := s.read(ctx, w)
		if err != nil {
			return false, err
		}
		if s.p.q.Filter.Match(&r.Record) {
			if err := c.row(ctx, x, w.row); err != nil {
				return false, err
			}
		}
		if err := w.next(ctx); err != nil {
			return false, err
		}
	}
	return partial, c.done(ctx, x)
}

// flags says which bases were denied and which failed.
func (x *scan) flags(ctx context.Context) (denied, failed []bool, err error) {
	mark := func(key string, is func(string) bool) ([]bool, error) {
		c, err := x.few(ctx, x.f, key)
		if err != nil {
			return nil, err
		}
		if c == nil {
			return nil, damaged("segment %d has no column %s", x.id, key)
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

// tallied returns what the rows that match add up to, by shape.
func (x *scan) tallied(ctx context.Context) ([]tally, error) {
	out := make([]tally, x.shapes)
	err := x.eachTime(ctx, true, func(shape uint32, time, size int64) { out[shape].add(time, size) })
	return out, err
}

// eachTime calls fn for the rows in the plan's time that match, with their sizes
// if those are wanted. It reads the pages that such rows may be on.
func (x *scan) eachTime(ctx context.Context, sized bool, fn func(shape uint32, time, size int64)) error {
	shapes, err := x.rowShapes(ctx, x.f)
	if err != nil {
		return err
	}
	from, until, err := x.within(ctx, x.f, x.p.low, x.p.high)
	if err != nil {
		return err
	}
	rows := x.m.rows
	for n := from / pageRows; n*pageRows < until; n++ {
		first := n * pageRows
		end := min(first+pageRows, x.rows)
		var named []uint32
		if x.m.named {
			low, _ := slices.BinarySearch(rows, uint32(first)) //nolint:gosec // a row
			high, _ := slices.BinarySearch(rows, uint32(end))  //nolint:gosec // a row
			if named, rows = rows[low:high], rows[high:]; len(named) == 0 {
				continue
			}
		}
		page, err := x.page(ctx, x.f, n)
		if err != nil {
			return err
		}
		low, _ := slices.BinarySearch(page.times, x.p.low)
		high, _ := slices.BinarySearch(page.times, x.p.high)
		var sizes []int64
		if sized && low < high {
			if sizes, err = x.sizes(ctx, x.f, n); err != nil {
				return err
			}
		}
		give := func(row int, shape uint32) {
			i := row - first
			if i < low || i >= high || !x.m.row(row, shape) {
				return
			}
			size := int64(0)
			if sized {
				size = sizes[i]
			}
			fn(shape, page.times[i], size)
		}
		for _, row := range named {
			give(int(row), shapes.at(int(row)))
		}
		if !x.m.named {
			shapes.each(first+low, first+high, give)
		}
	}
	return nil
}

// keep adds a row that was read to x.read.
func (x *scan) keep(ctx context.Context, n int) error {
	page, err := x.page(ctx, x.f, n/pageRows)
	if err != nil {
		return err
	}
	sizes, err := x.sizes(ctx, x.f, n/pageRows)
	if err != nil {
		return err
	}
	shapes, err := x.rowShapes(ctx, x.f)
	if err != nil {
		return err
	}
	if x.read == nil {
		x.read = make([]tally, x.shapes)
	}
	x.read[shapes.at(n)].add(page.times[n%pageRows], sizes[n%pageRows])
	return nil
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
	var names []string
	for _, k := range d.layout.few {
		if !isForm(k.Name) {
			names = append(names, k.Name)
		}
	}
	for _, k := range keys {
		if !slices.Contains(names, k) {
			return fmt.Errorf("audit query: %q cannot be counted by; use %s", clip(k), strings.Join(names, ", "))
		}
	}
	return nil
}
