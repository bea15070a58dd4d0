package store

import (
	"context"
	"fmt"
	"math"
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
	sums := make([]sum, (high-first)/w+1)
	_, err = d.aggregate(ctx, &q, nil, func(t int64, s sum) {
		if i := (t - first) / w; t >= first && i < int64(len(sums)) {
			sums[i].join(s)
		}
	}, func(v *view) bool { return floor(v.low, w) == floor(v.high, w) })
	if err != nil {
		return nil, err
	}
	out := make([]Bucket, len(sums))
	for i := range sums {
		out[i] = Bucket{micro(first + int64(i)*w), sums[i].public()}
	}
	return out, nil
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
	err = d.reading(ctx, func(ctx context.Context, t *tx) error {
		views, err := d.snapshot(ctx, t, p)
		for _, v := range views {
			low, high = min(low, v.low), max(high, v.high)
		}
		return err
	})
	if low > high {
		return low, high, err
	}
	low = max(low, p.low)
	high = min(high, p.high-1)
	if p.low != math.MinInt64 {
		low = p.low
	}
	return low, high, err
}
