package store

import (
	"cmp"
	"encoding/binary"
	"math"
	"slices"
	"strings"
)

// A segment is the index of many records: columns, sorted by time, that never
// change once they are written. Records that are alike in all keys of few
// values share a shape, so that most questions look at some ten thousand shapes
// in place of some hundred thousand rows. Many people use one agent for the same,
// so shapes that differ only in wide keys share a base.
type segment struct {
	few    []fewColumn  // by key; sorted by name
	base   []uint32     // by shape, ascending
	bases  int          // how many
	shapes []tally      // what rows of a shape add up to
	time   []int64      // by row, ascending
	shape  []uint32     // by row
	size   []int64      // by row: bytes up and down
	begin  []place      // by row
	end    []place      // by row
	texts  []textColumn // by key; sorted by name
	names  []nameAt
}

// fewColumn is one key: its values, and which of them each base has.
type fewColumn struct {
	key    string
	values []string // lists
	codes  []uint32 // by base; by shape if the key is wide
}

// wide reports whether a key's values would multiply the shapes: it is kept
// apart from the others.
func wide(key string) bool { return key == "human" }

// of returns the code of a shape.
func (c *fewColumn) of(base []uint32, shape int) uint32 {
	if wide(c.key) {
		return c.codes[shape]
	}
	return c.codes[base[shape]]
}

// textColumn is one key of many values: the values, and which one each row has.
type textColumn struct {
	key    string
	values []string // lists, sorted by drawer
	counts []int    // by drawer: how many values
	codes  []uint32 // by row
}

type nameAt struct{ hash, row uint32 }

// tally is what rows add up to. Times are microseconds.
type tally struct {
	count, bytes int64
	first, last  int64
}

func (t *tally) add(time, bytes int64) {
	if t.count == 0 {
		t.first, t.last = time, time
	}
	t.count++
	t.bytes += bytes
	t.first, t.last = min(t.first, time), max(t.last, time)
}

func (t *tally) join(o tally) {
	switch {
	case o.count == 0:
	case t.count == 0:
		*t = o
	default:
		t.count += o.count
		t.bytes += o.bytes
		t.first, t.last = min(t.first, o.first), max(t.last, o.last)
	}
}

// amounts are tallies without their times: there are many.
type amounts struct {
	counts []uint32
	bytes  []int64
}

func amountsOf(l []tally) *amounts {
	a := &amounts{make([]uint32, len(l)), make([]int64, len(l))}
	for i, t := range l {
		a.counts[i], a.bytes[i] = uint32(t.count), t.bytes //nolint:gosec // at most maxRows
	}
	return a
}

// untimed returns one as a tally whose times stay unknown until another one is
// joined that knows them.
func (a *amounts) untimed(i int) tally {
	return tally{int64(a.counts[i]), a.bytes[i], math.MaxInt64, math.MinInt64}
}

// span is a first and a last time, microseconds.
type span struct{ first, last int64 }

func timesOf(l []tally) []span {
	out := make([]span, len(l))
	for i, t := range l {
		out[i] = span{t.first, t.last}
	}
	return out
}

// timed returns one with its times.
func (a *amounts) timed(i int, s span) tally {
	return tally{int64(a.counts[i]), a.bytes[i], s.first, s.last}
}

// totals returns what the rows of each base add up to.
func (s *segment) totals() []tally {
	l := make([]tally, s.bases)
	for i, t := range s.shapes {
		l[s.base[i]].join(t)
	}
	return l
}

// builder makes a segment of rows, or of segments.
type builder struct {
	l      *layout
	s      segment
	values []map[string]uint32 // by few column
	texts  []map[string]uint32
	bases  map[string]uint32 // by the codes of what is not wide
	shapes map[string]uint32 // by the base and the codes of what is wide
	codes  []uint32          // of the row at hand, by few column
	key    []byte
}

func newBuilder(l *layout) *builder {
	b := &builder{l: l, bases: map[string]uint32{}, shapes: map[string]uint32{}, codes: make([]uint32, len(l.few))}
	for _, k := range l.few {
		b.s.few = append(b.s.few, fewColumn{key: k.Name})
		b.values = append(b.values, map[string]uint32{})
	}
	for _, k := range l.texts {
		b.s.texts = append(b.s.texts, textColumn{key: k.Name})
		b.texts = append(b.texts, map[string]uint32{})
	}
	return b
}

func (b *builder) rows() int { return len(b.s.time) }

// code returns the number of a value, a new one if need be.
func code(m map[string]uint32, values *[]string, v string) uint32 {
	c, ok := m[v]
	if !ok {
		c = uint32(len(*values)) //nolint:gosec // far fewer
		v = strings.Clone(v)     // it may be a part of something long
		m[v] = c
		*values = append(*values, v)
	}
	return c
}

// fewCode is code for a few column; forms are bounded.
func (b *builder) fewCode(i int, v string) uint32 {
	c := &b.s.few[i]
	if _, ok := b.values[i][v]; !ok && len(c.values) >= maxForms && isForm(c.key) {
		v = anyForm
	}
	return code(b.values[i], &c.values, v)
}

// shapeOf returns the number of the shape with the values whose codes stand in
// b.codes.
func (b *builder) shapeOf() uint32 {
	b.key = b.key[:0]
	for i := range b.s.few {
		if !wide(b.s.few[i].key) {
			b.key = binary.LittleEndian.AppendUint32(b.key, b.codes[i])
		}
	}
	base, ok := b.bases[string(b.key)]
	if !ok {
		base = uint32(b.s.bases) //nolint:gosec // far fewer
		b.s.bases++
		b.bases[string(b.key)] = base
		for i := range b.s.few {
			if c := &b.s.few[i]; !wide(c.key) {
				c.codes = append(c.codes, b.codes[i])
			}
		}
	}
	b.key = binary.LittleEndian.AppendUint32(b.key[:0], base)
	for i := range b.s.few {
		if wide(b.s.few[i].key) {
			b.key = binary.LittleEndian.AppendUint32(b.key, b.codes[i])
		}
	}
	n, ok := b.shapes[string(b.key)]
	if !ok {
		n = uint32(len(b.s.shapes)) //nolint:gosec // far fewer
		b.shapes[string(b.key)] = n
		b.s.shapes = append(b.s.shapes, tally{})
		b.s.base = append(b.s.base, base)
		for i := range b.s.few {
			if c := &b.s.few[i]; wide(c.key) {
				c.codes = append(c.codes, b.codes[i])
			}
		}
	}
	return n
}

func (b *builder) add(r row) {
	n := uint32(len(b.s.time)) //nolint:gosec // bounded by maxRows
	for i := range b.s.few {
		b.codes[i] = b.fewCode(i, r.few[i])
	}
	shape := b.shapeOf()
	for i := range b.s.texts {
		t := &b.s.texts[i]
		t.codes = append(t.codes, code(b.texts[i], &t.values, r.texts[i]))
	}
	b.s.shapes[shape].add(r.time, r.bytes)
	b.s.time = append(b.s.time, r.time)
	b.s.shape = append(b.s.shape, shape)
	b.s.size = append(b.s.size, r.bytes)
	b.s.begin = append(b.s.begin, r.begin)
	b.s.end = append(b.s.end, r.end)
	for _, h := range r.names {
		b.s.names = append(b.s.names, nameAt{h, n})
	}
}

// merge adds all rows of a segment that has the same columns.
func (b *builder) merge(s *segment) {
	base := uint32(len(b.s.time)) //nolint:gosec // bounded by maxRows
	few := make([][]uint32, len(s.few))
	for i := range s.few {
		few[i] = make([]uint32, len(s.few[i].values))
		for k, v := range s.few[i].values {
			few[i][k] = b.fewCode(i, v)
		}
	}
	shapes := make([]uint32, len(s.shapes))
	for n := range s.shapes {
		for i := range s.few {
			b.codes[i] = few[i][s.few[i].of(s.base, n)]
		}
		shapes[n] = b.shapeOf()
		b.s.shapes[shapes[n]].join(s.shapes[n])
	}
	for i := range s.texts {
		t := &b.s.texts[i]
		now := recode(b.texts[i], &t.values, s.texts[i].values)
		for _, c := range s.texts[i].codes {
			t.codes = append(t.codes, now[c])
		}
	}
	for _, n := range s.shape {
		b.s.shape = append(b.s.shape, shapes[n])
	}
	b.s.time = append(b.s.time, s.time...)
	b.s.size = append(b.s.size, s.size...)
	b.s.begin = append(b.s.begin, s.begin...)
	b.s.end = append(b.s.end, s.end...)
	for _, n := range s.names {
		b.s.names = append(b.s.names, nameAt{n.hash, base + n.row})
	}
}

func recode(m map[string]uint32, values *[]string, old []string) []uint32 {
	l := make([]uint32, len(old))
	for i, v := range old {
		l[i] = code(m, values, v)
	}
	return l
}

// finish sorts the rows by time and the shapes by base, and returns the segment.
// The builder must not be used any more.
func (b *builder) finish() *segment {
	s := &b.s
	s.sortShapes()
	order := make([]uint32, len(s.time))
	for i := range order {
		order[i] = uint32(i) //nolint:gosec // bounded by maxRows
	}
	slices.SortFunc(order, func(x, y uint32) int {
		if c := cmp.Compare(s.time[x], s.time[y]); c != 0 {
			return c
		}
		return comparePlaces(s.first(x), s.first(y))
	})
	at := make([]uint32, len(order)) // old row → new row
	for i, o := range order {
		at[o] = uint32(i) //nolint:gosec // bounded by maxRows
	}
	s.time, s.shape, s.size = pick(s.time, order), pick(s.shape, order), pick(s.size, order)
	s.begin, s.end = pick(s.begin, order), pick(s.end, order)
	for i := range s.texts {
		s.texts[i].codes = pick(s.texts[i].codes, order)
		s.texts[i].sortValues()
	}
	for i := range s.names {
		s.names[i].row = at[s.names[i].row]
	}
	slices.SortFunc(s.names, func(x, y nameAt) int { return cmp.Or(cmp.Compare(x.hash, y.hash), cmp.Compare(x.row, y.row)) })
	return s
}

// sortShapes puts the bases of an agent side by side, and the shapes of a base:
// a question about one agent reads few parts.
func (s *segment) sortShapes() {
	of := make([]uint32, s.bases) // agents
	for i := range s.few {
		if c := &s.few[i]; c.key == "agent" {
			of = c.codes
		}
	}
	order, now := sorted(of)
	for i := range s.few {
		if c := &s.few[i]; !wide(c.key) {
			c.codes = pick(c.codes, order)
		}
	}
	for i, n := range s.base {
		s.base[i] = now[n]
	}
	order, now = sorted(s.base)
	s.base, s.shapes = pick(s.base, order), pick(s.shapes, order)
	for i := range s.few {
		if c := &s.few[i]; wide(c.key) {
			c.codes = pick(c.codes, order)
		}
	}
	for i, n := range s.shape {
		s.shape[i] = now[n]
	}
}

// sorted returns the order in which numbers ascend, and where each then is.
func sorted(l []uint32) (order, now []uint32) {
	order, now = make([]uint32, len(l)), make([]uint32, len(l))
	for i := range order {
		order[i] = uint32(i) //nolint:gosec // bounded by maxRows
	}
	slices.SortStableFunc(order, func(x, y uint32) int { return cmp.Compare(l[x], l[y]) })
	for i, o := range order {
		now[o] = uint32(i) //nolint:gosec // bounded by maxRows
	}
	return order, now
}

func pick[T any](l []T, order []uint32) []T {
	out := make([]T, len(order))
	for i, o := range order {
		out[i] = l[o]
	}
	return out
}

// sortValues puts the values into drawers, and those that begin alike side by
// side, which packs well.
func (t *textColumn) sortValues() {
	t.counts = make([]int, drawersFor(len(t.values)))
	drawer := make([]int, len(t.values))
	order := make([]uint32, len(t.values))
	for i := range order {
		order[i] = uint32(i) //nolint:gosec // far fewer
		if len(t.counts) > 1 {
			drawer[i] = drawerOf(formOf(t.values[i]), len(t.counts))
		}
		t.counts[drawer[i]]++
	}
	slices.SortFunc(order, func(x, y uint32) int {
		return cmp.Or(cmp.Compare(drawer[x], drawer[y]), strings.Compare(t.values[x], t.values[y]))
	})
	now := make([]uint32, len(order))
	for i, o := range order {
		now[o] = uint32(i) //nolint:gosec // far fewer
	}
	t.values = pick(t.values, order)
	for i, c := range t.codes {
		t.codes[i] = now[c]
	}
}

// first is the place of a record's first line: it does not change when the
// record is completed, so it decides between records of one microsecond.
func (s *segment) first(n uint32) place {
	if s.begin[n].block != 0 {
		return s.begin[n]
	}
	return s.end[n]
}

func comparePlaces(p, q place) int {
	return cmp.Or(cmp.Compare(p.block, q.block), cmp.Compare(p.line, q.line))
}

// blocks returns the least and the greatest block in which a record ended.
func (s *segment) blocks() (low, high int64) {
	low = math.MaxInt64
	for _, p := range s.end {
		low, high = min(low, p.block), max(high, p.block)
	}
	return low, high
}
