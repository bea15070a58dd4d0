package store

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
)

// A segment is stored in parts, so that a question reads only those it needs.
// A small segment is one part that holds all others.
const (
	partAll    = "*"
	partShapes = "s"  // tallies
	partBase   = "a"  // number of bases, bases of shapes
	partFew    = "k:" // + key: values and codes of bases or shapes
	partTime   = "t"
	partMarks  = "m"  // where minutes begin
	partShape  = "r"  // shapes of rows
	partSize   = "b"  // bytes of rows
	partText   = "x:" // + key: how many values are in each drawer; + / + drawer: values
	partCodes  = "c:" // + key: which value a row has
	partPlaces = "p"
	partNames  = "n:" // + number of the bucket
)

const (
	// packRows is the size below which a segment is one part.
	packRows = 4 << 10
	// maxRows bounds a segment; merging stops there.
	maxRows = 256 << 10
	// bucketNames is about how many names a bucket has: what a look-up of one
	// name reads from each segment.
	bucketNames = 2 << 10
)

// A drawer has the texts of some forms, so that what forms leave open is looked
// for in a part of the texts.
const maxDrawers = 16

// drawersFor is how many drawers a number of values is worth.
func drawersFor(values int) int {
	if values < packRows {
		return 1
	}
	return maxDrawers
}

// drawerOf returns the drawer, of n, of texts with a list of forms.
func drawerOf(form string, n int) int { return int(nameHash(form) % uint32(n)) } //nolint:gosec // at most maxDrawers

func drawerPart(key string, n int) string { return fmt.Sprintf("%s%s/%x", partText, key, n) }

func bucketPart(n uint32) string { return fmt.Sprintf("%s%04x", partNames, n) }

// bucketOf returns the bucket of a hash among n, a power of two.
func bucketOf(hash uint32, n int) uint32 {
	return uint32(uint64(hash) * uint64(n) >> 32) //nolint:gosec // below n
}

// bucketCount is the power of two that keeps buckets near bucketNames.
func bucketCount(names int) int { return 1 << bits.Len(uint(names/bucketNames)) }

// encode returns the parts of s by name, not yet packed.
func (s *segment) encode() map[string][]byte {
	m := map[string][]byte{}
	t0 := s.time[0]
	var b []byte
	for _, t := range s.shapes {
		b = binary.AppendUvarint(b, uint64(t.count)) //nolint:gosec // a count
		b = appendVarint(b, t.bytes)
		b = appendVarint(b, t.first-t0)
		b = appendVarint(b, t.last-t.first)
	}
	m[partShapes] = b
	m[partBase] = appendCodes(binary.AppendUvarint(nil, uint64(s.bases)), s.base) //nolint:gosec // a count
	for i := range s.few {
		c := &s.few[i]
		m[partFew+c.key] = appendCodes(appendValues(nil, c.values), c.codes)
	}
	b = nil
	last := t0
	for _, t := range s.time {
		b = binary.AppendUvarint(b, uint64(t-last)) //nolint:gosec // ascending
		last = t
	}
	m[partTime] = b
	m[partMarks] = encodeMarks(s.time)
	m[partShape] = appendCodes(nil, s.shape)
	b = nil
	for _, n := range s.size {
		b = appendVarint(b, n)
	}
	m[partSize] = b
	for i := range s.texts {
		c := &s.texts[i]
		head := binary.AppendUvarint(nil, uint64(len(c.counts)))
		values := c.values
		for i, n := range c.counts {
			head = binary.AppendUvarint(head, uint64(n)) //nolint:gosec // a count
			if n > 0 {
				m[drawerPart(c.key, i)] = appendValues(nil, values[:n])
			}
			values = values[n:]
		}
		m[partText+c.key] = head
		m[partCodes+c.key] = appendCodes(nil, c.codes)
	}
	m[partPlaces] = s.encodePlaces()
	s.encodeNames(m)
	return m
}

// appendValues writes a count, the lengths of all values, and the values: they
// stand together, so that a text is looked for in all of them at once.
func appendValues(b []byte, values []string) []byte {
	b = binary.AppendUvarint(b, uint64(len(values)))
	for _, v := range values {
		b = binary.AppendUvarint(b, uint64(len(v)))
	}
	for _, v := range values {
		b = append(b, v...)
	}
	return b
}

// values reads what appendValues wrote. The values share one string.
func (r *reader) values() []string {
	n := r.count(len(r.b))
	lengths := make([]int, n)
	total := 0
	for i := range lengths {
		lengths[i] = r.count(len(r.b))
		total += lengths[i]
	}
	all := string(r.bytes(total))
	if r.err != nil {
		return nil
	}
	l := make([]string, n)
	for i, size := range lengths {
		l[i], all = all[:size], all[size:]
	}
	return l
}

// encodePlaces writes, each as a column: block and line of the end, how far
// back the block of the begin is (zigzag plus one; 0: none), its line.
func (s *segment) encodePlaces() []byte {
	low, _ := s.blocks()
	col := make([][]uint32, 4)
	for i := range col {
		col[i] = make([]uint32, len(s.end))
	}
	for i, e := range s.end {
		col[0][i] = uint32(e.block - low) //nolint:gosec // blocks of one day
		col[1][i] = uint32(e.line)
		if b := s.begin[i]; b.block != 0 {
			back := e.block - b.block
			col[2][i] = uint32(uint64(back)<<1^uint64(back>>63)) + 1 //nolint:gosec // see begins of another day
			col[3][i] = uint32(b.line)
		}
	}
	b := appendVarint(nil, low)
	far := s.farBegins()
	for _, n := range far {
		col[2][n] = farBegin
	}
	for _, c := range col {
		b = appendCodes(b, c)
	}
	// Begins of another day are too far back for 32 bits.
	b = binary.AppendUvarint(b, uint64(len(far)))
	for _, n := range far {
		b = binary.AppendUvarint(b, uint64(n))
		b = appendVarint(b, s.begin[n].block)
	}
	return b
}

// farBegin marks a begin whose block is listed by itself.
const farBegin = 1<<32 - 1

func (s *segment) farBegins() []uint32 {
	var l []uint32
	for i, b := range s.begin {
		if d := s.end[i].block - b.block; b.block != 0 && (d > 1<<30 || d < -1<<30) {
			l = append(l, uint32(i)) //nolint:gosec // bounded by maxRows
		}
	}
	return l
}

// places is the part partPlaces: it is read by row, since a question needs few
// of them.
type places struct {
	low int64
	col [4]codes
	far map[int]int64 // block of the begin
	mem *segment      // if not nil, the places are its own: it is not stored
}

func decodePlaces(raw []byte, rows int) (*places, error) {
	r := reader{b: raw}
	p := &places{low: r.varint(), far: map[int]int64{}}
	for i := range p.col {
		p.col[i] = r.column(rows)
	}
	for range r.count(rows) {
		n := r.count(rows - 1)
		p.far[n] = r.varint()
	}
	return p, r.err
}

func (p *places) end(n int) place {
	if p.mem != nil {
		return p.mem.end[n]
	}
	return place{p.low + int64(p.col[0].at(n)), uint16(p.col[1].at(n))} //nolint:gosec // as written
}

func (p *places) begin(n int) place {
	if p.mem != nil {
		return p.mem.begin[n]
	}
	z := p.col[2].at(n)
	if z == 0 {
		return place{}
	}
	b := place{line: uint16(p.col[3].at(n))} //nolint:gosec // as written
	if z == farBegin {
		b.block = p.far[n]
		return b
	}
	z--
	b.block = p.low + int64(p.col[0].at(n)) - (int64(z>>1) ^ -int64(z&1))
	return b
}

// first is segment.first.
func (p *places) first(n int) place {
	if b := p.begin(n); b.block != 0 {
		return b
	}
	return p.end(n)
}

// encodeNames writes the names in buckets by hash: each a count, then hash and
// row, hashes as differences.
func (s *segment) encodeNames(m map[string][]byte) {
	n := bucketCount(len(s.names))
	rest := s.names
	for i := range n {
		k, _ := slices.BinarySearchFunc(rest, uint32(i+1), func(x nameAt, until uint32) int { //nolint:gosec // a bucket
			if bucketOf(x.hash, n) < until {
				return -1
			}
			return 1
		})
		b := binary.AppendUvarint(nil, uint64(k)) //nolint:gosec // not negative
		var hash uint32
		for _, x := range rest[:k] {
			b = binary.AppendUvarint(b, uint64(x.hash-hash))
			b = binary.AppendUvarint(b, uint64(x.row))
			hash = x.hash
		}
		m[bucketPart(uint32(i))] = b //nolint:gosec // a bucket
		rest = rest[k:]
	}
}

// eachName calls fn with the names of a bucket.
func eachName(raw []byte, rows int, fn func(nameAt)) error {
	r := reader{b: raw}
	n := r.count(len(raw))
	var hash uint32
	for range n {
		hash += uint32(r.uvarint()) //nolint:gosec // as written
		row := r.count(rows - 1)
		if r.err != nil {
			return r.err
		}
		fn(nameAt{hash, uint32(row)}) //nolint:gosec // below rows
	}
	return r.err
}

// packAll joins parts into one.
func packAll(m map[string][]byte) []byte {
	var b []byte
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		b = binary.AppendUvarint(b, uint64(len(n)))
		b = append(b, n...)
		b = binary.AppendUvarint(b, uint64(len(m[n])))
		b = append(b, m[n]...)
	}
	return b
}

func unpackAll(raw []byte) (map[string][]byte, error) {
	m := map[string][]byte{}
	r := reader{b: raw}
	for len(r.b) > 0 {
		n := string(r.bytes(r.count(len(r.b))))
		m[n] = r.bytes(r.count(len(r.b)))
	}
	return m, r.err
}
