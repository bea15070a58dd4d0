package store

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"
)

// maxBuckets bounds a histogram.
const maxBuckets = 2000

// Histogram counts what q matches in buckets of the given width, aligned to
// UTC, oldest first, empty ones included. It reaches from since: (or the oldest
// record) to until: (or the newest). The width grows until there are at most
// 2,000 buckets.
func (d *DB) Histogram(ctx context.Context, q Query, width time.Duration) ([]Bucket, error) {
	if width < time.Second {
		return nil, fmt.Errorf("audit query: the histogram's width is %v; must be at least 1s", width)
	}
	low, high, err := d.extent(ctx, &q)
	if err != nil || low > high {
		return nil, err
	}
	w := width.Microseconds()
	for (high-low)/w+2 > maxBuckets {
		w *= 2
	}
	first := floor(low, w)
	n := (high-first)/w + 1
	all, _, err := aggregate(ctx, d, &q, func() *barCounter { return &barCounter{first: first, width: w, bars: make([]bar, n)} }, nil)
	if err != nil {
		return nil, err
	}
	out := make([]Bucket, n)
	for i, b := range all.bars {
		out[i] = Bucket{Start: micro(first + int64(i)*w), Count: b.count, Denied: b.denied, Failed: b.failed}
	}
	return out, nil
}

// barCounter counts by time.
type barCounter struct {
	first, width int64 // microseconds; first is a multiple of width
	bars         []bar
}

type bar struct{ count, denied, failed int64 }

// classes are what a row adds to a bar: 0 nothing, 1 a record, 2 one that was
// denied, 3 one that failed, 4 one that is both.
const classes = 5

func (c *barCounter) add(t int64, n *[classes]int64) {
	i := (t - c.first) / c.width
	if t < c.first || i >= int64(len(c.bars)) {
		return
	}
	b := &c.bars[i]
	b.count += n[1] + n[2] + n[3] + n[4]
	b.denied += n[2] + n[4]
	b.failed += n[3] + n[4]
}

// classOf returns the class of each shape.
func (x *scan) classOf(ctx context.Context) ([]byte, error) {
	if x.class != nil {
		return x.class, nil
	}
	b, err := x.base(ctx, x.f)
	if err != nil {
		return nil, err
	}
	denied, failed, err := x.flags(ctx)
	if err != nil {
		return nil, err
	}
	l := make([]byte, len(b.of))
	for i, base := range b.of {
		if !x.m.shapes[i] {
			continue
		}
		l[i] = 1
		if denied[base] {
			l[i]++
		}
		if failed[base] {
			l[i] += 2
		}
	}
	x.class = l
	return l, nil
}

func (c *barCounter) sure(ctx context.Context, x *scan) error {
	class, err := x.classOf(ctx)
	if err != nil {
		return err
	}
	marks, err := x.marks(ctx, x.f)
	if err != nil {
		return err
	}
	whole := x.p.low <= x.low && x.high < x.p.high
	if !whole || marks == nil || c.width%marks.step != 0 {
		return c.byTime(ctx, x, class)
	}
	for t := floor(x.low, c.width); t <= x.high; t += c.width {
		var n [classes]int64
		if err := x.classes(ctx, marks.row(t, x.rows), marks.row(t+c.width, x.rows), class, &n); err != nil {
			return err
		}
		c.add(t, &n)
	}
	return nil
}

// classes counts the rows of a range by class.
func (x *scan) classes(ctx context.Context, low, high int, class []byte, n *[classes]int64) error {
	if x.m.named {
		return x.eachNamed(ctx, low, high, func(shape uint32) { n[class[shape]]++ })
	}
	shapes, err := x.rowShapes(ctx, x.f)
	if err != nil {
		return err
	}
	var buf [1024]uint32 // this is on the path of every histogram: it makes nothing a row
	for ; low < high; low += len(buf) {
		l := buf[:min(len(buf), high-low)]
		shapes.read(l, low)
		for _, shape := range l {
			n[class[shape]]++
		}
	}
	return nil
}

// eachNamed calls fn for those rows of a range that match and that the matcher
// names.
func (x *scan) eachNamed(ctx context.Context, low, high int, fn func(shape uint32)) error {
	shapes, err := x.rowShapes(ctx, x.f)
	if err != nil {
		return err
	}
	from, _ := slices.BinarySearch(x.m.rows, uint32(low))   //nolint:gosec // a row
	until, _ := slices.BinarySearch(x.m.rows, uint32(high)) //nolint:gosec // a row
	for _, n := range x.m.rows[from:until] {
		if shape := shapes.at(int(n)); x.m.row(int(n), shape) {
			fn(shape)
		}
	}
	return nil
}

// byTime counts with the times of rows.
func (c *barCounter) byTime(ctx context.Context, x *scan, class []byte) error {
	return x.eachTime(ctx, false, func(shape uint32, time, _ int64) {
		var one [classes]int64
		one[class[shape]] = 1
		c.add(time, &one)
	})
}

func (c *barCounter) row(ctx context.Context, x *scan, n int) error {
	class, err := x.classOf(ctx)
	if err != nil {
		return err
	}
	page, err := x.page(ctx, x.f, n/pageRows)
	if err != nil {
		return err
	}
	shapes, err := x.rowShapes(ctx, x.f)
	if err != nil {
		return err
	}
	var one [classes]int64
	one[class[shapes.at(n)]] = 1
	c.add(page.times[n%pageRows], &one)
	return nil
}

func (c *barCounter) done(context.Context, *scan) error { return nil }

func (c *barCounter) join(o *barCounter) {
	for i, b := range o.bars {
		c.bars[i].count += b.count
		c.bars[i].denied += b.denied
		c.bars[i].failed += b.failed
	}
}

// floor is the last multiple of w that is not above t.
func floor(t, w int64) int64 {
	n := t / w
	if t%w < 0 {
		n--
	}
	return n * w
}

// extent returns the first and the last microsecond of a histogram of q.
func (d *DB) extent(ctx context.Context, q *Query) (low, high int64, err error) {
	p := d.plan(q)
	low, high = math.MaxInt64, math.MinInt64
	if q.Namespaces != nil { // what the reader may not see must not show by its time
		var f Facets
		if f, err = d.Facets(ctx, *q, []string{}, 1); f.Total.Count > 0 {
			low, high = f.Total.First.UnixMicro(), f.Total.Last.UnixMicro()
		}
	} else {
		err = d.reading(ctx, func(ctx context.Context, t *tx) error {
			views, _, err := d.snapshot(ctx, t, p)
			for _, v := range views {
				low, high = min(low, v.low), max(high, v.high)
			}
			return err
		})
	}
	if err != nil || low > high {
		return low, high, err
	}
	low = max(low, p.low)
	high = min(high, p.high-1)
	if p.low != math.MinInt64 {
		low = p.low
	}
	return low, high, nil
}
