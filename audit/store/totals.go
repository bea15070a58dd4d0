package store

import "context"

// totals are what the rows of a segment that match add up to. As much is read as
// is asked for: shapes are many more than bases, and times take more than counts.
type totals struct {
	*scan

	rows []tally // by shape, of rows that were looked at; nil: all rows of the shapes that match
}

// timed reports whether times by shape are known without reading them, or had to
// be read anyhow.
func (t *totals) timed() bool { return t.rows != nil || t.m.people }

// eachTally calls fn for what each shape adds up to that rows matched of, with
// times only if those are wanted or known.
func (t *totals) eachTally(ctx context.Context, times bool, fn func(shape int, x tally)) error {
	if t.rows != nil {
		for i, x := range t.rows {
			if x.count > 0 {
				fn(i, x)
			}
		}
		return nil
	}
	l, err := t.amounts(ctx, t.f)
	if err != nil {
		return err
	}
	if times || t.timed() {
		return t.eachSpan(ctx, t.f, func(i int) bool { return t.m.shapes[i] }, func(i int, s span) { fn(i, l.timed(i, s)) })
	}
	for i, ok := range t.m.shapes {
		if ok {
			fn(i, l.untimed(i))
		}
	}
	return nil
}

// eachShape is eachTally with what the base of a shape says. The sum is fn's until
// it returns.
func (t *totals) eachShape(ctx context.Context, times bool, fn func(shape int, s *sum)) error {
	b, err := t.base(ctx, t.f)
	if err != nil {
		return err
	}
	denied, failed, err := t.flags(ctx)
	if err != nil {
		return err
	}
	var s sum
	return t.eachTally(ctx, times, func(i int, x tally) {
		s.set(x, denied[b.of[i]], failed[b.of[i]])
		fn(i, &s)
	})
}

// byBase returns sums by base.
func (t *totals) byBase(ctx context.Context) ([]sum, error) {
	b, err := t.base(ctx, t.f)
	if err != nil {
		return nil, err
	}
	denied, failed, err := t.flags(ctx)
	if err != nil {
		return nil, err
	}
	var l []tally
	if t.timed() {
		l = make([]tally, b.n)
		err = t.eachTally(ctx, true, func(i int, x tally) { l[b.of[i]].join(x) })
	} else {
		l, err = t.totals(ctx, t.f)
	}
	if err != nil {
		return nil, err
	}
	out := make([]sum, b.n)
	for i, x := range l {
		if t.m.bases[i] {
			out[i].set(x, denied[i], failed[i])
		}
	}
	return out, nil
}
