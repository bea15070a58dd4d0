package store

import (
	"context"
	"encoding/binary"
	"math/bits"
)

// valueRows is which rows have each value of a drawer.
type valueRows struct {
	ends []uint32 // by value: where its rows end in rows
	rows codes
}

// of calls fn for the rows of those values that are ok.
func (x *valueRows) of(ok []bool, fn func(row uint32)) {
	from := uint32(0)
	for i, end := range x.ends {
		if ok[i] {
			for ; from < end; from++ {
				fn(x.rows.at(int(from)))
			}
		}
		from = end
	}
}

// rows returns the rows of each value, ascending, one value's behind the other's,
// and where each value's end.
func (c *textColumn) rows() valueRows {
	ends := make([]uint32, len(c.values))
	for _, v := range c.codes {
		ends[v]++
	}
	at := make([]uint32, len(c.values))
	sum := uint32(0)
	for i, n := range ends {
		at[i] = sum
		sum += n
		ends[i] = sum
	}
	rows := make([]uint32, len(c.codes))
	for n, v := range c.codes {
		rows[at[v]] = uint32(n) //nolint:gosec // bounded by maxRows
		at[v]++
	}
	return valueRows{ends, *column(rows)}
}

// part returns the rows of some values.
func (x *valueRows) part(from, until int) *valueRows {
	low := uint32(0)
	if from > 0 {
		low = x.ends[from-1]
	}
	y := &valueRows{ends: make([]uint32, until-from)}
	for i := range y.ends {
		y.ends[i] = x.ends[from+i] - low
	}
	n := int(x.ends[until-1] - low)
	rows := make([]uint32, n)
	x.rows.read(rows, int(low))
	y.rows = *column(rows)
	return y
}

// appendRows writes how many rows each value has, and the rows.
func appendRows(b []byte, x valueRows, from, until int) []byte {
	y := x.part(from, until)
	last := uint32(0)
	for _, end := range y.ends {
		b = binary.AppendUvarint(b, uint64(end-last))
		last = end
	}
	return append(append(b, byte(y.rows.width)), y.rows.planes...)
}

// valueRows returns the rows of the n values in a drawer of a key.
func (v *view) valueRows(ctx context.Context, f fetcher, key string, drawer, n int) (*valueRows, error) {
	return part(ctx, v, f, drawerPart(partRows, key, drawer), func(b []byte) (*valueRows, int64, error) {
		r := reader{b: b}
		x := &valueRows{ends: make([]uint32, n)}
		end := 0
		for i := range x.ends {
			end += r.count(v.rows - end)
			x.ends[i] = uint32(end) //nolint:gosec // at most the rows
		}
		x.rows = r.column(end)
		if r.err == nil && x.rows.max() >= v.rows {
			r.fail()
		}
		return x, int64(len(b)) + 4*int64(n), r.err
	})
}

// rowSet is a set of rows.
type rowSet []uint64

func newRowSet(rows int) rowSet { return make(rowSet, (rows+63)/64) }

func (s rowSet) add(row uint32)      { s[row/64] |= 1 << (row % 64) }
func (s rowSet) has(row uint32) bool { return s[row/64]>>(row%64)&1 != 0 }

// list returns the rows, ascending.
func (s rowSet) list() []uint32 {
	n := 0
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	l := make([]uint32, 0, n)
	for i, w := range s {
		for ; w != 0; w &= w - 1 {
			l = append(l, uint32(i*64+bits.TrailingZeros64(w))) //nolint:gosec // a row
		}
	}
	return l
}
