package store

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/attache-dev/attache/audit"
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

func drawerPart(part, key string, n int) string { return fmt.Sprintf("%s%s/%x", part, key, n) }

// textHead says how many values of a key of many each drawer has.
type textHead struct{ counts []int }

func (h *textHead) n() int {
	n := 0
	for _, c := range h.counts {
		n += c
	}
	return n
}

// textHead returns the drawers of a key; nil if the segment was written before
// that key was known.
func (v *view) textHead(ctx context.Context, f fetcher, key string) (*textHead, error) {
	return part(ctx, v, f, partText+key, func(b []byte) (*textHead, int64, error) {
		if b == nil {
			return nil, 0, nil
		}
		r := reader{b: b}
		h := &textHead{make([]int, r.count(maxDrawers))}
		for i := range h.counts {
			h.counts[i] = r.count(v.rows)
		}
		if r.err == nil && (len(h.counts) == 0 || h.n() > v.rows) {
			r.fail()
		}
		return h, 8 * int64(len(h.counts)), r.err
	})
}

// texts is the values in one drawer, and where each ends in all.
type texts struct {
	all  []byte
	ends []uint32
}

func newTexts(values []string) *texts {
	t := &texts{all: []byte(strings.Join(values, ""))}
	end := 0
	for _, v := range values {
		end += len(v)
		t.ends = append(t.ends, uint32(end)) //nolint:gosec // at most maxPart
	}
	return t
}

func (t *texts) value(n int) string {
	from := uint32(0)
	if n > 0 {
		from = t.ends[n-1]
	}
	return string(t.all[from:t.ends[n]])
}

// drawer returns the n values in a drawer of a key.
func (v *view) drawer(ctx context.Context, f fetcher, key string, drawer, n int) (*texts, error) {
	return part(ctx, v, f, drawerPart(partText, key, drawer), func(b []byte) (*texts, int64, error) {
		r := reader{b: b}
		t := &texts{ends: make([]uint32, r.count(len(b)))}
		end := 0
		for i := range t.ends {
			end += r.count(len(b))
			t.ends[i] = uint32(end) //nolint:gosec // at most maxPart
		}
		t.all = r.bytes(end)
		if len(t.ends) != n {
			r.fail()
		}
		return t, int64(len(b)) + 4*int64(len(t.ends)), r.err
	})
}

// matchTexts finds the values that a term matches; false: none does.
func (p *plan) matchTexts(ctx context.Context, f fetcher, m *matcher, t *formTerm) (bool, error) {
	key := t.t.Key
	head, err := m.v.textHead(ctx, f, key)
	if err != nil {
		return false, err
	}
	if head == nil {
		m.doubt, m.every = true, false
		return true, nil
	}
	wanted, err := m.drawers(ctx, f, t, len(head.counts))
	if err != nil {
		return false, err
	}
	set := newRowSet(m.v.rows)
	for i, n := range head.counts {
		if n == 0 || !wanted[i] {
			continue
		}
		x, err := m.v.drawer(ctx, f, key, i, n)
		if err != nil {
			return false, err
		}
		ok := make([]bool, n)
		found, err := x.match(ctx, t.t, ok)
		if err != nil {
			return false, err
		}
		if !found {
			continue
		}
		rows, err := m.v.valueRows(ctx, f, key, i, n)
		if err != nil {
			return false, err
		}
		rows.of(ok, set.add)
	}
	if m.named {
		m.rows = slices.DeleteFunc(m.rows, func(n uint32) bool { return !set.has(n) })
	} else {
		m.rows, m.named = set.list(), true
	}
	return len(m.rows) > 0, nil
}

// drawers says in which drawers texts may be that are left.
func (m *matcher) drawers(ctx context.Context, f fetcher, t *formTerm, n int) ([]bool, error) {
	all := slices.Repeat([]bool{true}, n)
	if t.bases == nil || n == 1 {
		return all, nil
	}
	c, err := m.v.few(ctx, f, formPrefix+t.t.Key)
	if err != nil {
		return nil, err
	}
	wanted := make([]bool, n)
	for i, code := range c.codes {
		switch form := c.values[code]; {
		case !m.bases[i]:
		case form == anyForm:
			return all, nil
		default:
			wanted[drawerOf(form, n)] = true
		}
	}
	return wanted, nil
}

// match says which values a term matches, and whether any. It looks for the
// longest piece without a star of each pattern in all values at once, and tries
// the pattern only where that is.
func (x *texts) match(ctx context.Context, t *audit.Term, ok []bool) (found bool, err error) {
	positive := *t
	positive.Not = false
	for _, pattern := range t.Values {
		one := positive
		one.Values = []string{pattern}
		piece := []byte(longest(pattern))
		if len(piece) == 0 {
			for i := range ok {
				if i%64 == 0 && ctx.Err() != nil {
					return false, ctx.Err()
				}
				ok[i] = ok[i] || one.MatchValues(parseList(x.value(i)))
			}
			continue
		}
		for at, tries := 0, 0; ; tries++ {
			if tries%64 == 0 && ctx.Err() != nil {
				return false, ctx.Err()
			}
			i := bytes.Index(x.all[at:], piece)
			if i < 0 {
				break
			}
			at += i
			n, _ := slices.BinarySearch(x.ends, uint32(at+1)) // the value whose end is the first beyond at
			ok[n] = ok[n] || one.MatchValues(parseList(x.value(n)))
			at = int(x.ends[n])
		}
	}
	for i := range ok {
		ok[i] = ok[i] != t.Not
		found = found || ok[i]
	}
	return found, nil
}

// longest returns the longest piece of a pattern between stars.
func longest(pattern string) string {
	best := ""
	for piece := range strings.SplitSeq(pattern, "*") {
		if len(piece) > len(best) {
			best = piece
		}
	}
	return best
}
