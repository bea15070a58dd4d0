package store

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
	"slices"

	"github.com/klauspost/compress/s2"
)

// maxPart bounds what a stored part may unpack to; more is damage.
const maxPart = 256 << 20

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// pack compresses a part and appends its checksum, CRC-32C: neither SQLite nor
// PostgreSQL (by default) would notice a flipped bit.
func pack(raw []byte) []byte {
	b := s2.Encode(make([]byte, 0, s2.MaxEncodedLen(len(raw))+4), raw)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

func unpack(b []byte) ([]byte, error) {
	if len(b) < 4 {
		return nil, damaged("a part has %d bytes", len(b))
	}
	b, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) != sum {
		return nil, damaged("a part does not match its checksum")
	}
	if n, err := s2.DecodedLen(b); err != nil || n > maxPart {
		return nil, damaged("a part claims %d bytes", n)
	}
	raw, err := s2.Decode(nil, b)
	if err != nil {
		return nil, damaged("a part: %v", err)
	}
	return raw, nil
}

// reader takes a part apart. After a mistake every answer is zero and err is
// set, so that callers check once.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail() {
	r.b = nil
	if r.err == nil {
		r.err = damaged("a part ends early")
	}
}

func (r *reader) uvarint() uint64 {
	// Most numbers are short.
	if len(r.b) > 0 && r.b[0] < 0x80 {
		v := r.b[0]
		r.b = r.b[1:]
		return uint64(v)
	}
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) varint() int64 {
	v := r.uvarint()
	return int64(v>>1) ^ -int64(v&1) //nolint:gosec // zigzag
}

// count reads a number of elements that take at least one byte of what follows
// for each per elements.
func (r *reader) count(limit int) int {
	v := r.uvarint()
	if v > uint64(limit) { //nolint:gosec // not negative
		r.fail()
		return 0
	}
	return int(v) //nolint:gosec // bounded above
}

func (r *reader) bytes(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.fail()
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func appendVarint(b []byte, v int64) []byte {
	return binary.AppendUvarint(b, uint64(v)<<1^uint64(v>>63)) //nolint:gosec // zigzag
}

// appendCodes writes numbers at the least width that holds them all, one to four
// bytes, least significant byte plane by plane, which packs better.
func appendCodes(b []byte, codes []uint32) []byte {
	var top uint32
	for _, c := range codes {
		top = max(top, c)
	}
	width := max(1, (bits.Len32(top)+7)/8)
	b = append(b, byte(width))
	for plane := range width {
		for _, c := range codes {
			b = append(b, byte(c>>(8*plane)))
		}
	}
	return b
}

// codes reads n numbers of appendCodes.
func (r *reader) codes(n int) []uint32 {
	c := r.column(n)
	if r.err != nil {
		return nil
	}
	return c.unfold()
}

// codes is numbers of appendCodes that are read one by one.
type codes struct {
	planes []byte
	n      int
	width  int
}

func (c *codes) at(i int) uint32 {
	v := uint32(c.planes[i])
	for p := 1; p < c.width; p++ {
		v |= uint32(c.planes[p*c.n+i]) << (8 * p)
	}
	return v
}

// column is those of appendCodes, not encoded.
func column(l []uint32) *codes {
	r := reader{b: appendCodes(nil, l)}
	c := r.column(len(l))
	return &c
}

// unfold returns all numbers.
func (c *codes) unfold() []uint32 {
	out := make([]uint32, c.n)
	c.read(out, 0)
	return out
}

// read unfolds the numbers from one on, as many as there is room for.
func (c *codes) read(out []uint32, from int) {
	for plane := range c.width {
		p := c.planes[plane*c.n+from:][:len(out)]
		if plane == 0 {
			for i, b := range p {
				out[i] = uint32(b)
			}
			continue
		}
		for i, b := range p {
			out[i] |= uint32(b) << (8 * plane)
		}
	}
}

// each calls fn for the numbers of a range.
func (c *codes) each(low, high int, fn func(n int, code uint32)) {
	var buf [1024]uint32
	for ; low < high; low += len(buf) {
		l := buf[:min(len(buf), high-low)]
		c.read(l, low)
		for i, code := range l {
			fn(low+i, code)
		}
	}
}

// max returns the greatest number; -1 if there is none.
func (c *codes) max() int {
	var buf [1024]uint32
	top := -1
	for from := 0; from < c.n; from += len(buf) {
		l := buf[:min(len(buf), c.n-from)]
		c.read(l, from)
		top = max(top, int(slices.Max(l)))
	}
	return top
}

// column reads n numbers of appendCodes without unfolding them.
func (r *reader) column(n int) codes {
	w := r.bytes(1)
	if r.err != nil || w[0] < 1 || w[0] > 4 {
		r.fail()
		return codes{}
	}
	return codes{r.bytes(n * int(w[0])), n, int(w[0])}
}

// A list is the values that a record has of a key: a count, then each with its
// length. As a string it is a key of maps.
func appendList(b []byte, values []string) []byte {
	b = binary.AppendUvarint(b, uint64(len(values)))
	for _, v := range values {
		b = binary.AppendUvarint(b, uint64(len(v)))
		b = append(b, v...)
	}
	return b
}

func (r *reader) list() []string {
	n := r.count(len(r.b))
	l := make([]string, 0, n)
	for range n {
		l = append(l, string(r.bytes(r.count(len(r.b)))))
	}
	return l
}

func parseList(s string) []string {
	r := reader{b: []byte(s)}
	return r.list()
}

// nameHash is FNV-1a over the lower-case name, folded to 32 bits. Names with
// the same hash are told apart by reading the record.
func nameHash(s string) uint32 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return uint32(h>>32) ^ uint32(h) //nolint:gosec // folding is meant
}
