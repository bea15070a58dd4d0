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

// eachShape calls fn for the sum of each shape that rows matched of, with times
// only if those are wanted or known. The sum is fn's until it returns.
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
	give := func(i int, x tally) {
		if x.count > 0 && t.m.shapes[i] {
			s.set(x, denied[b.of[i]], failed[b.of[i]])
			fn(i, &s)
		}
	}
	if times || t.timed() {
		l, err := t.timedShapes(ctx)
		for i, x := range l {
			give(i, x)
		}
		return err
	}
	l, err := t.amounts(ctx, t.f)
	if err != nil {
		return err
	}
	for i := range l.counts {
		give(i, l.untimed(i))
	}
	return nil
}

// timedShapes returns tallies by shape, also of shapes that do not match.
func (t *totals) timedShapes(ctx context.Context) ([]tally, error) {
	if t.rows != nil {
		return t.rows, nil
	}
	return t.tallies(ctx, t.f)
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
		if l, err = t.timedShapes(ctx); err != nil {
			return nil, err
		}
		l = foldOf(l, b, t.m.shapes)
	} else if l, err = t.totals(ctx, t.f); err != nil {
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

// foldOf is fold for those shapes that are left.
func foldOf(shapes []tally, b *bases, left []bool) []tally {
	l := make([]tally, b.n)
	for i, t := range shapes {
		if left[i] {
			l[b.of[i]].join(t)
		}
	}
	return l
}
