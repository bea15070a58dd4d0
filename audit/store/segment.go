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
// values share a shape, so that most questions look at some thousand shapes in
// place of some hundred thousand rows.
type segment struct {
	few    []fewColumn  // by key; sorted by name
	shapes []tally      // what rows of a shape add up to
	time   []int64      // by row, ascending
	shape  []uint32     // by row
	size   []int64      // by row: bytes up and down
	begin  []place      // by row
	end    []place      // by row
	texts  []textColumn // by key; sorted by name
	names  []nameAt
}

// fewColumn is one key: its values, and which of them each shape has.
type fewColumn struct {
	key    string
	values []string // lists
	codes  []uint32 // by shape
}

// textColumn is one key of many values: the values, and which one each row has.
type textColumn struct {
	key    string
	values []string // lists
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

// builder makes a segment of rows, or of segments.
type builder struct {
	l      *layout
	s      segment
	values []map[string]uint32 // by few column
	texts  []map[string]uint32
	shapes map[string]uint32
	key    []byte
}

func newBuilder(l *layout) *builder {
	b := &builder{l: l, shapes: map[string]uint32{}}
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
		m[v] = c
		*values = append(*values, v)
	}
	return c
}

// shapeOf returns the number of the shape with these values, whose codes stand
// in b.key.
func (b *builder) shapeOf() uint32 {
	n, ok := b.shapes[string(b.key)]
	if !ok {
		n = uint32(len(b.s.shapes)) //nolint:gosec // far fewer
		b.shapes[string(b.key)] = n
		b.s.shapes = append(b.s.shapes, tally{})
		for i := range b.s.few {
			b.s.few[i].codes = append(b.s.few[i].codes, binary.LittleEndian.Uint32(b.key[4*i:]))
		}
	}
	return n
}

func (b *builder) add(r row) {
	n := uint32(len(b.s.time)) //nolint:gosec // bounded by maxRows
	b.key = b.key[:0]
	for i := range b.s.few {
		b.key = binary.LittleEndian.AppendUint32(b.key, code(b.values[i], &b.s.few[i].values, r.few[i]))
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
		few[i] = recode(b.values[i], &b.s.few[i].values, s.few[i].values)
	}
	shapes := make([]uint32, len(s.shapes))
	for n := range s.shapes {
		b.key = b.key[:0]
		for i := range s.few {
			b.key = binary.LittleEndian.AppendUint32(b.key, few[i][s.few[i].codes[n]])
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

// finish sorts the rows by time and returns the segment. The builder must not
// be used any more.
func (b *builder) finish() *segment {
	s := &b.s
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

func pick[T any](l []T, order []uint32) []T {
	out := make([]T, len(order))
	for i, o := range order {
		out[i] = l[o]
	}
	return out
}

// sortValues puts values that begin alike side by side, which packs well.
func (t *textColumn) sortValues() {
	order := make([]uint32, len(t.values))
	for i := range order {
		order[i] = uint32(i) //nolint:gosec // far fewer
	}
	slices.SortFunc(order, func(x, y uint32) int { return strings.Compare(t.values[x], t.values[y]) })
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
