package guard

// A scanner runs a matcher over a stream. It masks what it finds in place and
// knows how many bytes are no longer part of a possible match. It allocates
// nothing once its two thread lists have grown.
type scanner struct {
	m     *matcher
	base  int64 // stream offset of the first byte of the buffer given to feed
	cur   []thread
	next  []thread
	found int
	// cut makes feed stop at the first match and leave the buffer as it is.
	cut bool
	// eager is how long a live prefix may be and still pass with the end of a
	// buffer: on a conversation, where the peer waits for the whole message
	// before it sends more, a held byte is held for ever. If the match
	// completes, what is left of it is masked.
	eager int
}

// A thread is one possible match. Lists of threads are sorted by start.
type thread struct {
	family uint32
	unit   uint32
	node   uint32 // of the unit's trie
	start  int64
}

// live reports whether the bytes seen last may be the start of a match.
func (s *scanner) live() bool { return len(s.cur) > 0 }

// feed scans buf, of which the bytes before from were fed before and were not
// released. It returns how many bytes at its start may be released; the caller
// gives the rest again at the start of the next buffer.
func (s *scanner) feed(buf []byte, from int) int {
	for i := from; i < len(buf); {
		if len(s.cur) == 0 {
			i = s.m.skip(buf, i)
		}
		for i < len(buf) {
			start := s.step(buf[i], s.base+int64(i))
			i++
			if start >= 0 {
				s.found++
				at := max(0, int(start-s.base)) // less: its first bytes have passed
				if s.cut {
					return at
				}
				for j := at; j < i; j++ {
					buf[j] = '*'
				}
			}
			if len(s.cur) == 0 {
				break
			}
		}
	}
	safe := len(buf)
	if len(s.cur) > 0 {
		if first := int(s.cur[0].start - s.base); len(buf)-first > s.eager {
			safe = max(0, first)
		}
	}
	s.base += int64(safe)
	return safe
}

// step moves every thread by one byte and starts new ones. It returns the
// start of the longest match that ends with this byte, or -1.
func (s *scanner) step(b byte, pos int64) int64 {
	match := int64(-1)
	s.next = s.next[:0]
	for _, t := range s.cur {
		if s.advance(t, b) && (match < 0 || t.start < match) {
			match = t.start
		}
	}
	if s.m.first[b] {
		for f := range s.m.families {
			t := thread{family: uint32(f), start: pos} //nolint:gosec // a handful of families
			if s.advance(t, b) && match < 0 {
				match = pos
			}
		}
	}
	s.cur, s.next = s.next, s.cur
	return match
}

// advance puts what becomes of t after b on the next list and reports whether
// a match ends here.
func (s *scanner) advance(t thread, b byte) bool {
	units := s.m.families[t.family]
	nodes := s.m.tries[units[t.unit]].nodes
	to := nodes[t.node].next(b)
	if to == 0 {
		return false
	}
	n := &nodes[to]
	if len(n.edges) > 0 {
		s.add(thread{t.family, t.unit, to, t.start})
	}
	if !n.end {
		return false
	}
	if int(t.unit)+1 == len(units) {
		return true
	}
	s.add(thread{t.family, t.unit + 1, 0, t.start})
	return false
}

// add keeps the earlier start where two threads have met.
func (s *scanner) add(t thread) {
	for _, o := range s.next {
		if o.node == t.node && o.unit == t.unit && o.family == t.family {
			return
		}
	}
	s.next = append(s.next, t)
}
