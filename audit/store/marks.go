package store

import (
	"encoding/binary"
	"slices"
	"time"
)

// marks say in which row each step of time begins, so that a histogram goes
// through rows without their times.
type marks struct {
	step  int64    // microseconds
	first int64    // number of the first step since 1970
	rows  []uint32 // by step: the first row that is not before it
}

// maxMarks bounds the marks of a segment; the step grows until they fit.
const maxMarks = 4096

func markSteps() []time.Duration {
	return []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour, 6 * time.Hour, 24 * time.Hour, 7 * 24 * time.Hour}
}

// newMarks makes the marks of rows with these times, which ascend; nil if they
// are too far apart.
func newMarks(times []int64) *marks {
	for _, d := range markSteps() {
		m := &marks{step: d.Microseconds()}
		m.first = floor(times[0], m.step) / m.step
		n := floor(times[len(times)-1], m.step)/m.step - m.first + 1
		if n > maxMarks {
			continue
		}
		m.rows = make([]uint32, n)
		for i := range m.rows {
			at, _ := slices.BinarySearch(times, (m.first+int64(i))*m.step)
			m.rows[i] = uint32(at) //nolint:gosec // bounded by maxRows
		}
		return m
	}
	return nil
}

func encodeMarks(times []int64) []byte {
	m := newMarks(times)
	if m == nil {
		return nil
	}
	b := binary.AppendUvarint(nil, uint64(m.step)) //nolint:gosec // positive
	b = appendVarint(b, m.first)
	b = binary.AppendUvarint(b, uint64(len(m.rows)))
	last := uint32(0)
	for _, n := range m.rows {
		b = binary.AppendUvarint(b, uint64(n-last))
		last = n
	}
	return b
}

func decodeMarks(b []byte, rows int) (*marks, error) {
	if len(b) == 0 {
		return nil, nil
	}
	r := reader{b: b}
	m := &marks{step: int64(r.uvarint()), first: r.varint()} //nolint:gosec // checked below
	m.rows = make([]uint32, r.count(maxMarks))
	n := 0
	for i := range m.rows {
		if n += r.count(rows); n > rows {
			r.fail()
		}
		m.rows[i] = uint32(n) //nolint:gosec // at most rows
	}
	if m.step <= 0 {
		r.fail()
	}
	return m, r.err
}

// row returns the first row that is not before a time, which must be a multiple
// of step; rows is how many there are.
func (m *marks) row(t int64, rows int) int {
	i := floor(t, m.step)/m.step - m.first
	switch {
	case i < 0:
		return 0
	case i >= int64(len(m.rows)):
		return rows
	}
	return int(m.rows[i])
}
