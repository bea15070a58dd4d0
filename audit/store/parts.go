package store

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"
)

// A segment is stored in parts, so that a question reads only those it needs.
// A small segment is one part that holds all others.
const (
	partAll    = "*"
	partTotals = "t"  // tallies of bases
	partShapes = "s"  // counts and bytes of shapes
	partTimes  = "f:" // + number: first and last times of some shapes
	partBase   = "a"  // how many shapes each base has: they stand in the order of their bases
	partFew    = "k:" // + key: values and codes of bases or shapes
	partMarks  = "m"  // where minutes begin
	partShape  = "r"  // shapes of rows
	partSize   = "b:" // + number: bytes of some rows
	partText   = "x:" // + key: how many values are in each drawer; + / + drawer: values
	partRows   = "p:" // + key + / + drawer: which rows have each value
	partPage   = "w:" // + number: times and places of some rows
	partCore   = "+"  // small parts that most questions need, in one
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

// chunkShapes is how many shapes have their times in one part. Those of one agent
// stand together.
const chunkShapes = 1 << 10

func timesPart(n int) string { return fmt.Sprintf("%s%x", partTimes, n) }

func chunksOf(shapes int) int { return (shapes + chunkShapes - 1) / chunkShapes }

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
	m[partTotals] = appendTimes(appendAmounts(nil, s.totals()), s.totals(), s.time[0])
	m[partShapes] = appendAmounts(nil, s.shapes)
	for n := range chunksOf(len(s.shapes)) {
		m[timesPart(n)] = appendTimes(nil, s.shapes[n*chunkShapes:min((n+1)*chunkShapes, len(s.shapes))], s.time[0])
	}
	m[partBase] = s.encodeBases()
	for i := range s.few {
		c := &s.few[i]
		m[partFew+c.key] = appendCodes(appendValues(nil, c.values), c.codes)
	}
	for n := range pagesOf(len(s.time)) {
		m[pagePart(n)] = s.encodePage(n)
	}
	m[partMarks] = encodeMarks(s.time)
	m[partShape] = appendCodes(nil, s.shape)
	for n := range pagesOf(len(s.size)) {
		var b []byte
		for _, n := range s.size[n*pageRows : min((n+1)*pageRows, len(s.size))] {
			b = appendVarint(b, n)
		}
		m[sizesPart(n)] = b
	}
	for i := range s.texts {
		c := &s.texts[i]
		head := binary.AppendUvarint(nil, uint64(len(c.counts)))
		rows := c.rows()
		from := 0
		for i, n := range c.counts {
			head = binary.AppendUvarint(head, uint64(n)) //nolint:gosec // a count
			if n > 0 {
				m[drawerPart(partText, c.key, i)] = appendValues(nil, c.values[from:from+n])
				m[drawerPart(partRows, c.key, i)] = appendRows(nil, rows, from, from+n)
			}
			from += n
		}
		m[partText+c.key] = head
	}
	s.encodeNames(m)
	return m
}

// encodeBases writes the number of bases, and how many shapes each has.
func (s *segment) encodeBases() []byte {
	counts := make([]uint64, s.bases)
	for _, b := range s.base {
		counts[b]++
	}
	b := binary.AppendUvarint(nil, uint64(s.bases)) //nolint:gosec // a count
	for _, n := range counts {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

// appendAmounts writes all counts and then all bytes: what is alike packs better.
func appendAmounts(b []byte, l []tally) []byte {
	for _, t := range l {
		b = binary.AppendUvarint(b, uint64(t.count)) //nolint:gosec // a count
	}
	for _, t := range l {
		b = appendVarint(b, t.bytes)
	}
	return b
}

// appendTimes writes first and last times, from microsecond t0 on.
func appendTimes(b []byte, l []tally, t0 int64) []byte {
	for _, t := range l {
		b = appendVarint(b, t.first-t0)
		b = appendVarint(b, t.last-t.first)
	}
	return b
}

// amounts reads what appendAmounts wrote.
func (r *reader) amounts(n int) *amounts {
	l := &amounts{make([]uint32, n), make([]int64, n)}
	for i := range l.counts {
		l.counts[i] = uint32(r.count(maxSegment)) //nolint:gosec // below maxSegment
	}
	for i := range l.bytes {
		l.bytes[i] = r.varint()
	}
	return l
}

// spans reads what appendTimes wrote.
func (r *reader) spans(n int, t0 int64) []span {
	l := make([]span, n)
	for i := range l {
		l[i].first = t0 + r.varint()
		l[i].last = l[i].first + r.varint()
	}
	return l
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
	last := nameAt{}
	for i := range n {
		step := r.uvarint()
		x := nameAt{hash: last.hash + uint32(step)} //nolint:gosec // checked below
		x.row = uint32(r.count(rows - 1))           //nolint:gosec // below rows
		if step > math.MaxUint32 || x.hash < last.hash || i > 0 && x.hash == last.hash && x.row <= last.row {
			r.fail() // look-ups rely on the order
		}
		if r.err != nil {
			return r.err
		}
		fn(x)
		last = x
	}
	return r.err
}

// maxCore bounds the parts that are in the core: what one question reads to see
// one column.
const maxCore = 24 << 10

// inCore reports whether a part is in the core, if it is small.
func inCore(name string) bool {
	return name == partBase || name == partMarks || strings.HasPrefix(name, partFew) || strings.HasPrefix(name, partText) && !strings.Contains(name, "/")
}

// group moves small parts into the core.
func group(m map[string][]byte) {
	core := map[string][]byte{}
	for name, b := range m {
		if inCore(name) && len(b) <= maxCore {
			core[name] = b
			delete(m, name)
		}
	}
	m[partCore] = packAll(core)
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
