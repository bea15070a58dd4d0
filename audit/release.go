package audit

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/attache-dev/attache/audit/chain"
)

// EventShipped says that a segment was deleted after every sink had taken it.
const EventShipped = "spool.shipped"

// mark is the last line of a segment: what the lines after it are chained to
// when the segment is gone.
type mark struct {
	epoch string
	seq   uint64
	head  [chain.TextSize]byte // empty: the line is not chained
}

// fields tells the mark in the record of a deletion.
func (m *mark) fields(f map[string]string) map[string]string {
	f["epoch"], f["sequence"] = m.epoch, strconv.FormatUint(m.seq, 10)
	if m.head[0] != 0 {
		f["head"] = string(m.head[:])
	}
	return f
}

// SetShipped says that every sink has acknowledged the segments below number.
// They may be deleted: at once as far as Options.Keep and KeepBytes do not want
// them, the others before a record is refused for want of room.
func (s *Spool) SetShipped(number int64) {
	s.mu.Lock()
	s.shippedTo = max(s.shippedTo, number)
	gone := s.releaseAged()
	s.mu.Unlock()
	s.remove(gone)
}

// releaseAged takes the shipped segments that are not kept off the list, recorded.
// The caller holds s.mu, and then removes the files without it.
func (s *Spool) releaseAged() []*segment {
	var gone []*segment
	for !s.isClosed {
		i := slices.IndexFunc(s.closed, s.releasable)
		if i < 0 {
			break
		}
		g := s.closed[i]
		if s.total <= s.opts.KeepBytes && time.Since(g.closedAt) < s.opts.Keep {
			break // what follows is younger
		}
		if !s.recordRelease(g) {
			break
		}
		gone = append(gone, g)
	}
	return gone
}

// releasable reports whether nobody needs g any more.
func (s *Spool) releasable(g *segment) bool { return g.number < s.shippedTo && g.open == 0 }

// recordRelease records the deletion of g, which is to follow.
func (s *Spool) recordRelease(g *segment) bool {
	s.shipped.add(g.number)
	err := s.system(TypeEvent, &Event{Name: EventShipped, Fields: g.last.fields(map[string]string{
		"segment": strconv.FormatInt(g.number, 10), "records": strconv.FormatInt(g.lines, 10),
		"bytes": strconv.FormatInt(g.size, 10), "shipped": s.shipped.String(),
	})})
	if err != nil {
		s.opts.Logger.Warn("shipped audit segment stays", "segment", g.number, "error", err)
		return false
	}
	s.closed = slices.DeleteFunc(s.closed, func(o *segment) bool { return o == g })
	s.total -= g.size
	s.stats.released.Add(1)
	return true
}

// releaseForRoom deletes the oldest shipped segment, kept or not. The caller
// holds s.mu.
func (s *Spool) releaseForRoom() bool {
	i := slices.IndexFunc(s.closed, s.releasable)
	if i < 0 {
		return false
	}
	g := s.closed[i]
	if !s.recordRelease(g) {
		return false
	}
	s.remove([]*segment{g})
	return true
}

// remove deletes files of segments that are off the list.
func (s *Spool) remove(gone []*segment) {
	for _, g := range gone {
		// The syncer may still have the file open; its blocks are wanted now.
		err := os.Truncate(s.path(g.number), 0)
		if err == nil {
			err = os.Remove(s.path(g.number))
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			s.opts.Logger.Warn("shipped audit segment cannot be deleted; the next start tries again", "segment", g.number, "error", err)
		}
	}
}
