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

// byShape returns sums by shape, with times only if those are wanted or known.
func (t *totals) byShape(ctx context.Context, times bool) ([]sum, error) {
	b, err := t.base(ctx, t.f)
	if err != nil {
		return nil, err
	}
	denied, failed, err := t.flags(ctx)
	if err != nil {
		return nil, err
	}
	l, err := t.tallies(ctx, times)
	if err != nil {
		return nil, err
	}
	out := make([]sum, len(l))
	for i, x := range l {
		if t.m.shapes[i] {
			out[i].set(x, denied[b.of[i]], failed[b.of[i]])
		}
	}
	return out, nil
}

func (t *totals) tallies(ctx context.Context, times bool) ([]tally, error) {
	switch {
	case t.rows != nil:
		return t.rows, nil
	case times || t.timed():
		return t.view.tallies(ctx, t.f)
	default:
		return t.amounts(ctx, t.f)
	}
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
		if l, err = t.tallies(ctx, true); err != nil {
			return nil, err
		}
		l = foldOf(l, b, t.m.shapes)
	} else if l, err = t.view.totals(ctx, t.f); err != nil {
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
