package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// segmentInfo is what the list of segments says.
type segmentInfo struct {
	id        int64
	rows      int
	shapes    int
	buckets   int
	low, high int64 // times, microseconds
	blow, bhi int64 // blocks in which its records ended
	packed    bool
	size      int64 // bytes of its parts
}

// view reads the parts of one segment as they are needed and keeps them: a
// segment never changes. It is safe for concurrent use.
type view struct {
	segmentInfo

	mu    sync.Mutex // guards what follows
	all   map[string][]byte
	core  map[string][]byte
	parts map[string]any
	held  int64 // bytes kept, about
}

func newView(i segmentInfo) *view { return &view{segmentInfo: i, parts: map[string]any{}} }

// memoryView returns a view of a segment that is not stored, such as that of
// the records which are still open.
func memoryView(s *segment) *view {
	low, high := s.blocks()
	v := newView(segmentInfo{rows: len(s.time), shapes: len(s.shapes), buckets: bucketCount(len(s.names)),
		low: s.time[0], high: s.time[len(s.time)-1], blow: low, bhi: high})
	v.all = map[string][]byte{}
	s.encodeNames(v.all)
	for n := range pagesOf(len(s.time)) {
		from, until := n*pageRows, min((n+1)*pageRows, len(s.time))
		v.parts[pagePart(n)] = &page{s.time[from:until], places{begins: s.begin[from:until], ends: s.end[from:until]}}
		v.parts[sizesPart(n)] = s.size[from:until]
	}
	v.parts[partBase] = &bases{s.base, s.bases}
	v.parts[partMarks] = newMarks(s.time)
	v.parts[partTotals], v.parts[partShapes] = s.totals(), amountsOf(s.shapes)
	for n := range chunksOf(len(s.shapes)) {
		v.parts[timesPart(n)] = timesOf(s.shapes[n*chunkShapes : min((n+1)*chunkShapes, len(s.shapes))])
	}
	v.parts[partShape] = column(s.shape)
	for i := range s.few {
		v.parts[partFew+s.few[i].key] = &s.few[i]
	}
	for _, c := range s.texts {
		v.parts[partText+c.key] = &textHead{c.counts}
		rows := c.rows()
		from := 0
		for i, n := range c.counts {
			if n > 0 {
				v.parts[drawerPart(partText, c.key, i)] = newTexts(c.values[from : from+n])
				v.parts[drawerPart(partRows, c.key, i)] = rows.part(from, from+n)
			}
			from += n
		}
	}
	return v
}

// fetcher reads a part of a segment, unpacked.
type fetcher func(ctx context.Context, segment int64, name string) ([]byte, error)

// raw returns a part; nil if the segment was written before there was such a
// part. v.mu is held.
func (v *view) raw(ctx context.Context, f fetcher, name string) ([]byte, error) {
	if v.packed && v.all == nil {
		b, err := f(ctx, v.id, partAll)
		if err != nil {
			return nil, err
		}
		if v.all, err = unpackAll(b); err != nil {
			return nil, err
		}
		v.held += int64(len(b))
	}
	if v.all != nil {
		return v.all[name], nil
	}
	if !inCore(name) {
		return f(ctx, v.id, name)
	}
	if v.core == nil {
		b, err := f(ctx, v.id, partCore)
		if err != nil {
			return nil, err
		}
		if v.core, err = unpackAll(b); err != nil {
			return nil, err
		}
		v.held += int64(len(b))
	}
	if b, ok := v.core[name]; ok {
		return b, nil
	}
	return f(ctx, v.id, name)
}

// part returns a part as decode makes it, from memory if it was asked before.
func part[T any](ctx context.Context, v *view, f fetcher, name string, decode func([]byte) (T, int64, error)) (T, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if p, ok := v.parts[name].(T); ok {
		return p, nil
	}
	var zero T
	b, err := v.raw(ctx, f, name)
	if err != nil {
		return zero, err
	}
	p, size, err := decode(b)
	if err != nil {
		return zero, fmt.Errorf("part %s of segment %d: %w", name, v.id, err)
	}
	v.parts[name] = p
	v.held += size
	return p, nil
}

// totals returns what the rows of each base add up to.
func (v *view) totals(ctx context.Context, f fetcher) ([]tally, error) {
	x, err := v.base(ctx, f)
	if err != nil {
		return nil, err
	}
	return part(ctx, v, f, partTotals, func(b []byte) ([]tally, int64, error) {
		r := reader{b: b}
		sums := r.amounts(x.n)
		l := make([]tally, x.n)
		for i, s := range r.spans(x.n, v.low) {
			l[i] = sums.timed(i, s)
		}
		return l, int64(len(l)) * 32, r.err
	})
}

// amounts returns what the rows of each shape add up to.
func (v *view) amounts(ctx context.Context, f fetcher) (*amounts, error) {
	return part(ctx, v, f, partShapes, func(b []byte) (*amounts, int64, error) {
		r := reader{b: b}
		l := r.amounts(v.shapes)
		return l, int64(v.shapes) * 12, r.err
	})
}

// eachSpan calls fn with the times of those shapes that are wanted.
func (v *view) eachSpan(ctx context.Context, f fetcher, wanted func(shape int) bool, fn func(shape int, s span)) error {
	for n := range chunksOf(v.shapes) {
		var l []span
		for i := n * chunkShapes; i < min((n+1)*chunkShapes, v.shapes); i++ {
			if !wanted(i) {
				continue
			}
			if l == nil {
				var err error
				if l, err = v.spans(ctx, f, n); err != nil {
					return err
				}
			}
			fn(i, l[i-n*chunkShapes])
		}
	}
	return nil
}

func (v *view) spans(ctx context.Context, f fetcher, chunk int) ([]span, error) {
	return part(ctx, v, f, timesPart(chunk), func(b []byte) ([]span, int64, error) {
		r := reader{b: b}
		l := r.spans(min(chunkShapes, v.shapes-chunk*chunkShapes), v.low)
		return l, int64(len(l)) * 16, r.err
	})
}

// bases is which base each shape has.
type bases struct {
	of []uint32 // by shape, ascending
	n  int
}

func (v *view) base(ctx context.Context, f fetcher) (*bases, error) {
	return part(ctx, v, f, partBase, func(b []byte) (*bases, int64, error) {
		r := reader{b: b}
		x := &bases{n: r.count(v.shapes), of: make([]uint32, 0, v.shapes)}
		for i := range x.n {
			n := r.count(v.shapes - len(x.of))
			if n == 0 {
				r.fail()
			}
			for range n {
				x.of = append(x.of, uint32(i)) //nolint:gosec // a base
			}
		}
		if len(x.of) != v.shapes {
			r.fail()
		}
		return x, 4 * int64(len(x.of)), r.err
	})
}

// few returns the column of a key; nil if the segment was written before that
// key was known.
func (v *view) few(ctx context.Context, f fetcher, key string) (*fewColumn, error) {
	x, err := v.base(ctx, f)
	if err != nil {
		return nil, err
	}
	n := x.n
	if wide(key) {
		n = v.shapes
	}
	return part(ctx, v, f, partFew+key, func(b []byte) (*fewColumn, int64, error) {
		if b == nil {
			return nil, 0, nil
		}
		r := reader{b: b}
		c := &fewColumn{key: key, values: r.values()}
		c.codes = r.codes(n)
		if r.err == nil && slices.ContainsFunc(c.codes, func(n uint32) bool { return int(n) >= len(c.values) }) {
			r.fail()
		}
		return c, int64(len(b)) + 16*int64(len(c.values)) + 4*int64(n), r.err
	})
}

// marks returns where minutes begin; nil if the segment does not say.
func (v *view) marks(ctx context.Context, f fetcher) (*marks, error) {
	return part(ctx, v, f, partMarks, func(b []byte) (*marks, int64, error) {
		m, err := decodeMarks(b, v.rows)
		if m == nil {
			return nil, 0, err
		}
		return m, 4 * int64(len(m.rows)), err
	})
}

func (v *view) rowShapes(ctx context.Context, f fetcher) (*codes, error) {
	return v.codes(ctx, f, partShape, v.shapes)
}

// codes returns a number below limit for each row.
func (v *view) codes(ctx context.Context, f fetcher, name string, limit int) (*codes, error) {
	return part(ctx, v, f, name, func(b []byte) (*codes, int64, error) {
		r := reader{b: b}
		l := r.column(v.rows)
		if r.err == nil && l.max() >= limit {
			r.fail()
		}
		return &l, int64(len(l.planes)), r.err
	})
}

// named returns the rows that have one of the names with this hash, ascending.
func (v *view) named(ctx context.Context, f fetcher, hash uint32) ([]uint32, error) {
	if v.rows == 0 {
		return nil, nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	b, err := v.raw(ctx, f, bucketPart(bucketOf(hash, v.buckets)))
	if err != nil {
		return nil, err
	}
	var l []uint32
	err = eachName(b, v.rows, func(n nameAt) {
		if n.hash == hash {
			l = append(l, n.row)
		}
	})
	return l, err
}

// errOtherLayout says that a segment was written by a version with other keys.
var errOtherLayout = errors.New("segment has other columns")

// load reads all of a segment, to merge it.
func (v *view) load(ctx context.Context, f fetcher, l *layout) (*segment, error) {
	s := &segment{}
	x, err := v.base(ctx, f)
	if err != nil {
		return nil, err
	}
	s.base, s.bases = x.of, x.n
	for _, k := range l.few {
		c, e := v.few(ctx, f, k.Name)
		if e != nil {
			return nil, e
		}
		if c == nil {
			return nil, errOtherLayout
		}
		s.few = append(s.few, *c)
	}
	for _, k := range l.texts {
		head, e := v.textHead(ctx, f, k.Name)
		if e != nil {
			return nil, e
		}
		if head == nil {
			return nil, errOtherLayout
		}
		c := textColumn{key: k.Name, counts: head.counts, codes: make([]uint32, v.rows)}
		left := v.rows
		seen := newRowSet(v.rows)
		for i, n := range head.counts {
			if n == 0 {
				continue // it has no part
			}
			t, e := v.drawer(ctx, f, k.Name, i, n)
			if e != nil {
				return nil, e
			}
			rows, e := v.valueRows(ctx, f, k.Name, i, n)
			if e != nil {
				return nil, e
			}
			at := uint32(0)
			for j := range n {
				for ; at < rows.ends[j]; at++ {
					row := rows.rows.at(int(at))
					if seen.has(row) {
						return nil, damaged("segment %d has row %d twice under %s", v.id, row, k.Name)
					}
					seen.add(row)
					c.codes[row] = uint32(len(c.values)) //nolint:gosec // a value
					left--
				}
				c.values = append(c.values, t.value(j))
			}
		}
		if left != 0 {
			return nil, damaged("segment %d has %d rows without a text of %s", v.id, left, k.Name)
		}
		s.texts = append(s.texts, c)
	}
	err = v.eachPage(ctx, f, func(_ int, x *page) {
		s.time = append(s.time, x.times...)
		for n := range x.times {
			s.begin, s.end = append(s.begin, x.places.begin(n)), append(s.end, x.places.end(n))
		}
	})
	if err != nil {
		return nil, err
	}
	sums, err := v.amounts(ctx, f)
	if err != nil {
		return nil, err
	}
	s.shapes = make([]tally, v.shapes)
	err = v.eachSpan(ctx, f, func(int) bool { return true }, func(i int, x span) { s.shapes[i] = sums.timed(i, x) })
	if err != nil {
		return nil, err
	}
	shapes, err := v.rowShapes(ctx, f)
	if err != nil {
		return nil, err
	}
	s.shape = shapes.unfold()
	for n := range pagesOf(v.rows) {
		l, err := v.sizes(ctx, f, n)
		if err != nil {
			return nil, err
		}
		s.size = append(s.size, l...)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	misplaced := false
	for i := range v.buckets {
		b, err := v.raw(ctx, f, bucketPart(uint32(i))) //nolint:gosec // a bucket
		if err != nil {
			return nil, err
		}
		err = eachName(b, v.rows, func(n nameAt) {
			misplaced = misplaced || bucketOf(n.hash, v.buckets) != uint32(i) //nolint:gosec // a bucket
			s.names = append(s.names, n)
		})
		if err != nil {
			return nil, err
		}
	}
	if misplaced {
		return nil, damaged("segment %d has names where nobody looks for them", v.id)
	}
	return s, nil
}
