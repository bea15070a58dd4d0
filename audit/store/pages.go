package store

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
)

// A page is the times and places of some rows of a segment: what a question needs
// of the rows that it shows. Rows that are far apart are found by reading a page
// each, not all of a segment's.
const pageRows = 4 << 10

func pagesOf(rows int) int { return (rows + pageRows - 1) / pageRows }

func pagePart(n int) string { return fmt.Sprintf("%s%02x", partPage, n) }

func sizesPart(n int) string { return fmt.Sprintf("%s%02x", partSize, n) }

// page is one page; rows count from its first.
type page struct {
	times  []int64
	places places
}

func (s *segment) encodePage(n int) []byte {
	from, until := n*pageRows, min((n+1)*pageRows, len(s.time))
	last := s.time[0]
	var b []byte
	for _, t := range s.time[from:until] {
		b = binary.AppendUvarint(b, uint64(t-last)) //nolint:gosec // ascending
		last = t
	}
	return appendPlaces(b, s.begin[from:until], s.end[from:until])
}

// page returns page n.
func (v *view) page(ctx context.Context, f fetcher, n int) (*page, error) {
	return part(ctx, v, f, pagePart(n), func(b []byte) (*page, int64, error) {
		r := reader{b: b}
		x := &page{times: make([]int64, min(pageRows, v.rows-n*pageRows))}
		t := v.low
		for i := range x.times {
			t += int64(r.uvarint()) //nolint:gosec // as written
			x.times[i] = t
		}
		x.places = r.places(len(x.times))
		return x, int64(len(b)) + 8*int64(len(x.times)), r.err
	})
}

// eachPage calls fn with every page and the number of its first row.
func (v *view) eachPage(ctx context.Context, f fetcher, fn func(first int, x *page)) error {
	for n := range pagesOf(v.rows) {
		x, err := v.page(ctx, f, n)
		if err != nil {
			return err
		}
		fn(n*pageRows, x)
	}
	return nil
}

// sizes returns the bytes of the rows of page n.
func (v *view) sizes(ctx context.Context, f fetcher, n int) ([]int64, error) {
	return part(ctx, v, f, sizesPart(n), func(b []byte) ([]int64, int64, error) {
		r := reader{b: b}
		l := make([]int64, min(pageRows, v.rows-n*pageRows))
		for i := range l {
			l[i] = r.varint()
		}
		return l, int64(len(l)) * 8, r.err
	})
}

// within returns about which rows lie in a time, from low to before high: no row
// of that time is left out.
func (v *view) within(ctx context.Context, f fetcher, low, high int64) (from, until int, err error) {
	marks, err := v.marks(ctx, f)
	if err != nil {
		return 0, 0, err
	}
	until = v.rows
	if marks != nil && low > v.low {
		from = marks.row(low, v.rows)
	}
	if marks != nil && high <= v.high {
		until = marks.row(high+marks.step, v.rows)
	}
	return from, max(from, until), nil
}

// appendPlaces writes the places of rows, each as a column: block and line of the
// end, how far back the block of the begin is (zigzag plus one; 0: none), its
// line.
func appendPlaces(b []byte, begins, ends []place) []byte {
	low := int64(math.MaxInt64)
	for _, e := range ends {
		low = min(low, e.block)
	}
	col := make([][]uint32, 4)
	for i := range col {
		col[i] = make([]uint32, len(ends))
	}
	for i, e := range ends {
		col[0][i] = uint32(e.block - low) //nolint:gosec // blocks of one day
		col[1][i] = uint32(e.line)
		if b := begins[i]; b.block != 0 {
			back := e.block - b.block
			col[2][i] = uint32(uint64(back)<<1^uint64(back>>63)) + 1 //nolint:gosec // see begins of another day
			col[3][i] = uint32(b.line)
		}
	}
	b = appendVarint(b, low)
	far := farBegins(begins, ends)
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
		b = appendVarint(b, begins[n].block)
	}
	return b
}

// farBegin marks a begin whose block is listed by itself.
const farBegin = 1<<32 - 1

func farBegins(begins, ends []place) []uint32 {
	var l []uint32
	for i, b := range begins {
		if d := ends[i].block - b.block; b.block != 0 && (d > 1<<30 || d < -1<<30) {
			l = append(l, uint32(i)) //nolint:gosec // bounded by maxRows
		}
	}
	return l
}

// places are the places of the rows of a page. They are unfolded one by one,
// since a question needs few of them.
type places struct {
	low int64
	col [4]codes
	far map[int]int64 // block of the begin
	// Of rows that are not stored: as they are, for the end of an open request is
	// no place at all.
	begins, ends []place
}

func (r *reader) places(rows int) places {
	p := places{low: r.varint(), far: map[int]int64{}}
	for i := range p.col {
		p.col[i] = r.column(rows)
	}
	for range r.count(rows) {
		n := r.count(rows - 1)
		p.far[n] = r.varint()
	}
	return p
}

func (p *places) end(n int) place {
	if p.ends != nil {
		return p.ends[n]
	}
	return place{p.low + int64(p.col[0].at(n)), uint16(p.col[1].at(n))} //nolint:gosec // as written
}

func (p *places) begin(n int) place {
	if p.ends != nil {
		return p.begins[n]
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
