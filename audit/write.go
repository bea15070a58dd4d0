package audit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/audit/chain"
)

// kind says which room a line may use.
type kind int

const (
	begins  kind = iota // and reserves the room of an end
	wholes              // a request in one line, an event, a heartbeat
	opens               // the epoch's first record: may use the system's reserve
	systems             // what the spool must be able to say: always
)

// put frames and writes one line, with the ends that wait in front of it. The
// caller holds s.mu. On error the line was not written, and the sequence stays
// without a gap.
func (s *Spool) put(k kind, r *Record, body []byte) error {
	if s.isClosed {
		return ErrClosed
	}
	if s.failed != nil && k != systems {
		return s.failed
	}
	if err := s.flushPending(); err != nil {
		return err
	}
	if err := s.makeRoom(k, int64(len(body))+maxEndHead); err != nil && k != systems {
		s.fullErr = err
		return err
	}
	r.Sequence = s.seq + 1
	waiting, head := len(s.batch), s.head
	s.batch = s.appendLine(s.batch, r, body)
	if err := s.writeBatch(waiting, 1); err != nil {
		s.fullErr, s.head = err, head // the ends in front of it are pending, and count
		return err
	}
	s.seq++
	if k != systems {
		s.fullErr = nil
	}
	return nil
}

// putEnd writes an end, whose room is reserved, lets it wait for company, or,
// where the disk refuses it, keeps it. The caller holds s.mu.
func (s *Spool) putEnd(h *Record, body []byte, t *ticket) error {
	err := s.flushPending()
	h.Epoch, h.Sequence = s.epoch, s.seq+1
	s.seq++
	if err != nil {
		s.pending = append(s.pending, pendingLine{s.appendLine(nil, h, body), t})
		return err
	}
	s.batch = s.appendLine(s.batch, h, body)
	s.ends = append(s.ends, batchedEnd{len(s.batch), t})
	if s.opts.EndDelay > 0 && len(s.batch) < maxBatch {
		s.flushSoon()
		return nil
	}
	return s.flushEnds()
}

// maxBatch is the size from which ends do not wait for more.
const maxBatch = 32 << 10

// flushSoon sees to it that the ends that wait are written within EndDelay. The
// caller holds s.mu.
func (s *Spool) flushSoon() {
	if s.flushing {
		return
	}
	s.flushing = true
	if s.flusher == nil {
		s.flusher = time.AfterFunc(s.opts.EndDelay, s.flushLate)
	} else {
		s.flusher.Reset(s.opts.EndDelay)
	}
}

// flushLate runs when no other line has taken the ends with it.
func (s *Spool) flushLate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flushing = false
	if s.isClosed {
		return // Close has written them
	}
	if err := s.flushEnds(); err != nil {
		s.opts.Logger.Error("ends of audit records wait for the disk", "error", err)
	}
}

// flushEnds writes the ends that wait. The caller holds s.mu.
func (s *Spool) flushEnds() error {
	if len(s.ends) == 0 {
		return nil
	}
	if n := int64(len(s.batch)); s.cur.size+n > s.opts.SegmentBytes {
		_ = s.rotate(n) // the present segment has the room too
	}
	return s.writeBatch(len(s.batch), 0)
}

// writeBatch writes s.batch: the ends that wait, which are its first waiting
// bytes, and the given number of other lines. On error those are dropped and
// the ends are kept in s.pending. The caller holds s.mu.
func (s *Spool) writeBatch(waiting int, others int64) error {
	err := s.write(s.batch, int64(len(s.ends))+others)
	from := 0
	for _, e := range s.ends {
		if err != nil {
			s.pending = append(s.pending, pendingLine{bytes.Clone(s.batch[from:e.to]), e.of})
			from = e.to
			continue
		}
		s.settle(e.of)
	}
	if err != nil && waiting > 0 {
		s.pendErr = err
	}
	if cap(s.batch) > 2*maxBatch { // one giant record must not keep its memory
		s.batch = nil
	}
	clear(s.ends)
	s.batch, s.ends = s.batch[:0], s.ends[:0]
	return err
}

// settle frees what t had reserved.
func (s *Spool) settle(t *ticket) {
	s.reserved -= endReserve
	t.seg.open--
}

// system writes a record of the spool's own. The caller holds s.mu.
func (s *Spool) system(typ string, e *Event) error {
	return s.putEvent(systems, typ, e)
}

func (s *Spool) putEvent(k kind, typ string, e *Event) error {
	r := &Record{Event: e}
	if err := s.prepare(r, typ); err != nil {
		return err
	}
	return s.put(k, r, r.appendBody(nil))
}

// appendLine appends the framed line of r, of which body is encoded already, and
// chains it to the line before. The caller holds s.mu.
func (s *Spool) appendLine(to []byte, r *Record, body []byte) []byte {
	from := len(to)
	to = append(r.appendHead(to), body...)
	s.head = chain.Next(s.head, to[from:])
	return appendChained(to, from, s.head)
}

// flushPending writes what could not be written before. The caller holds s.mu.
func (s *Spool) flushPending() error {
	for len(s.pending) > 0 {
		p := s.pending[0]
		if err := s.write(p.line, 1); err != nil {
			s.pendErr = err
			return err
		}
		s.settle(p.of)
		s.pending = s.pending[1:]
	}
	s.pending, s.pendErr = nil, nil
	return nil
}

// makeRoom sees to it that a line of at most n bytes fits: below the bound, in
// the segment, and on the disk. The caller holds s.mu.
func (s *Spool) makeRoom(k kind, n int64) error {
	want, limit := n, s.opts.MaxBytes-systemReserve
	if k == begins {
		want += endReserve
	}
	if k == opens {
		limit = s.opts.MaxBytes
	}
	for k != systems && s.total+s.reserved+want > limit {
		if !s.releaseForRoom() && !s.dropOldest() && !s.lookAgain() {
			return fmt.Errorf("%w: the spool holds %d of audit.maxBytes %d; move closed segments away, raise it, or set audit.onFull to overwrite",
				ErrFull, s.total+s.reserved, s.opts.MaxBytes)
		}
	}
	for {
		err := s.place(want)
		if err == nil || k == systems || !errors.Is(err, ErrFull) || !s.releaseForRoom() && !s.dropOldest() {
			return err
		}
	}
}

// place starts a new segment if the present one is full and gets the disk's
// promise for want bytes beyond what ends have reserved.
func (s *Spool) place(want int64) error {
	if s.cur.size > 0 && s.cur.size+want > s.opts.SegmentBytes {
		if err := s.rotate(want); err != nil {
			return err
		}
	}
	return s.promise(s.cur.size + s.reserved + want)
}

// promiseStep is how far ahead blocks are kept, so that one fallocate(2) serves
// many lines.
const promiseStep = 1 << 20

// promise keeps blocks of the current segment up to end.
func (s *Spool) promise(end int64) error {
	if s.noAlloc || end <= s.alloc {
		return nil
	}
	ahead := min(promiseStep, s.opts.SegmentBytes/8)
	err := s.doAllocate(end + ahead - s.alloc)
	if err == nil {
		s.alloc = end + ahead
		return nil
	}
	if isNoSpace(err) { // perhaps just what is needed
		if err = s.doAllocate(end - s.alloc); err == nil {
			s.alloc = end
			return nil
		}
	}
	if errors.Is(err, errors.ErrUnsupported) {
		s.noAlloc = true
		return nil
	}
	return s.diskError("reserve audit space", err)
}

func (s *Spool) doAllocate(n int64) error {
	if s.opts.fault != nil {
		if _, err := s.opts.fault("allocate", int(n)); err != nil {
			return err
		}
	}
	return allocate(s.file, s.alloc, n)
}

// rotate starts the next segment, with room for want bytes and every reserved
// end. On error the present one stays.
func (s *Spool) rotate(want int64) error {
	if s.opts.fault != nil {
		if _, err := s.opts.fault("create", 0); err != nil {
			return s.diskError("open audit segment", err)
		}
	}
	next := &segment{number: s.cur.number + 1}
	f, err := openSegment(s.opts.Dir, next.number, os.O_CREATE|os.O_EXCL)
	if err != nil {
		return s.diskError("start audit segment", err)
	}
	old, oldCur, oldAlloc := s.file, s.cur, s.alloc
	s.file, s.cur, s.alloc = f, next, 0
	if err := s.promise(s.reserved + want); err != nil {
		s.file, s.cur, s.alloc = old, oldCur, oldAlloc
		return errors.Join(err, f.Close(), os.Remove(s.path(next.number)))
	}
	// Cuts a torn line, and gives blocks behind the last line back.
	if err := old.Truncate(oldCur.size); err != nil {
		s.opts.Logger.Warn("audit segment keeps its reserved space", "segment", oldCur.number, "error", err)
	}
	s.torn = false
	oldCur.closedAt = time.Now()
	s.closed = append(s.closed, oldCur)
	s.retired = append(s.retired, old)
	s.newFile = true
	s.stats.rotations.Add(1)
	s.markDirty()
	return nil
}

// write appends so many lines to the current segment. After an error the
// segment ends with the line before them.
func (s *Spool) write(text []byte, lines int64) error {
	if s.torn {
		if err := s.repair(); err != nil {
			return s.diskError("cut a torn audit line", err)
		}
	}
	n, err := s.pwrite(text)
	if err != nil {
		s.stats.writeErrors.Add(1)
		if n > 0 {
			s.torn = true
			_ = s.repair() // tried again before the next line
		}
		return s.diskError("write audit record", err)
	}
	s.cur.size += int64(n)
	s.cur.lines += lines
	s.wrote += uint64(lines) //nolint:gosec // not negative
	s.cur.last.epoch, s.cur.last.seq = s.epoch, s.wrote
	copy(s.cur.last.head[:], text[len(text)-1-chain.TextSize:])
	s.total += int64(n)
	s.stats.bytes.Add(uint64(n)) //nolint:gosec // not negative
	s.markDirty()
	return nil
}

// pwrite writes at the known length and not with O_APPEND: what a torn write
// left behind must not become part of the next line.
func (s *Spool) pwrite(line []byte) (int, error) {
	if s.opts.fault != nil {
		if n, err := s.opts.fault("write", len(line)); err != nil {
			if n > 0 {
				n, _ = s.file.WriteAt(line[:n], s.cur.size)
			}
			return n, err
		}
	}
	return s.file.WriteAt(line, s.cur.size)
}

func (s *Spool) repair() error {
	if s.opts.fault != nil {
		if _, err := s.opts.fault("truncate", 0); err != nil {
			return err
		}
	}
	if err := s.file.Truncate(s.cur.size); err != nil {
		return err
	}
	// The promised blocks went with the torn line.
	s.torn, s.alloc = false, s.cur.size
	_ = s.promise(s.cur.size + s.reserved)
	return nil
}

// dropOldest deletes the oldest closed segment all of whose requests have
// ended, if the spool may. The loss is recorded first.
func (s *Spool) dropOldest() bool {
	if s.opts.OnFull != OnFullOverwrite {
		return false
	}
	i := slices.IndexFunc(s.closed, func(g *segment) bool { return g.open == 0 })
	if i < 0 {
		return false
	}
	g := s.closed[i]
	s.missing.add(g.number)
	err := s.system(TypeEvent, &Event{Name: EventDropped, Fields: g.last.fields(map[string]string{
		"segment": strconv.FormatInt(g.number, 10), "records": strconv.FormatInt(g.lines, 10),
		"bytes": strconv.FormatInt(g.size, 10), "missing": s.missing.String(),
	})})
	if err == nil {
		// The syncer may still have the file open; its blocks are wanted now.
		err = os.Truncate(s.path(g.number), 0)
	}
	if err == nil {
		err = os.Remove(s.path(g.number))
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.opts.Logger.Error("oldest audit segment cannot be dropped", "segment", g.number, "error", err)
		return false
	}
	s.closed = slices.Delete(s.closed, i, i+1)
	s.total -= g.size
	s.stats.dropped.Add(1)
	return true
}

// lookAgain finds out, at most once a second, whether somebody moved closed
// segments away, and records it.
func (s *Spool) lookAgain() bool {
	now := time.Now()
	if now.Before(s.rescan) {
		return false
	}
	s.rescan = now.Add(time.Second)
	var gone []string
	s.closed = slices.DeleteFunc(s.closed, func(g *segment) bool {
		if _, err := os.Stat(s.path(g.number)); !errors.Is(err, os.ErrNotExist) {
			return false
		}
		s.total -= g.size
		gone = append(gone, strconv.FormatInt(g.number, 10))
		return true
	})
	if len(gone) == 0 {
		return false
	}
	err := s.system(TypeEvent, &Event{Name: EventRemoved, Fields: map[string]string{"segments": strings.Join(gone, ",")}})
	return err == nil
}

func (s *Spool) path(n int64) string { return filepath.Join(s.opts.Dir, segmentName(n)) }

// diskError gives err its place among the sentinels.
func (s *Spool) diskError(doing string, err error) error {
	if isNoSpace(err) {
		return fmt.Errorf("%s: %w: %w; free space on the disk of %s", doing, ErrFull, err, s.opts.Dir)
	}
	return fmt.Errorf("%s: %w: %w", doing, ErrUnavailable, err)
}

// isNoSpace covers a full disk, a quota, and a limit on the size of files.
func isNoSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}

// ranges is an ascending list of numbers, kept as inclusive ranges.
type ranges [][2]int64

func (r *ranges) add(n int64) {
	if r.has(n) {
		return
	}
	i, _ := slices.BinarySearchFunc(*r, n, func(x [2]int64, n int64) int { return int(min(max(x[0]-n, -1), 1)) })
	*r = slices.Insert(*r, i, [2]int64{n, n})
	for j := len(*r) - 1; j > 0; j-- {
		if (*r)[j-1][1]+1 == (*r)[j][0] {
			(*r)[j-1][1] = (*r)[j][1]
			*r = slices.Delete(*r, j, j+1)
		}
	}
}

func (r ranges) has(n int64) bool {
	return slices.ContainsFunc(r, func(x [2]int64) bool { return x[0] <= n && n <= x[1] })
}

// overlaps reports whether r has a number from a to b.
func (r ranges) overlaps(a, b int64) bool {
	return slices.ContainsFunc(r, func(x [2]int64) bool { return x[0] <= b && a <= x[1] })
}

// without returns the numbers of r that are not in o.
func (r ranges) without(o ranges) ranges {
	left := slices.Clone(r)
	for _, cut := range o {
		var next ranges
		for _, x := range left {
			if cut[1] < x[0] || x[1] < cut[0] {
				next = append(next, x)
				continue
			}
			if x[0] < cut[0] {
				next = append(next, [2]int64{x[0], cut[0] - 1})
			}
			if cut[1] < x[1] {
				next = append(next, [2]int64{cut[1] + 1, x[1]})
			}
		}
		left = next
	}
	return left
}

// String writes ranges as "1-7,9".
func (r ranges) String() string {
	parts := make([]string, len(r))
	for i, x := range r {
		parts[i] = strconv.FormatInt(x[0], 10)
		if x[1] != x[0] {
			parts[i] += "-" + strconv.FormatInt(x[1], 10)
		}
	}
	return strings.Join(parts, ",")
}

// parseRanges reads what String wrote; parts that are not numbers are ignored.
func parseRanges(s string) ranges {
	var r ranges
	for part := range strings.SplitSeq(s, ",") {
		from, to, both := strings.Cut(part, "-")
		if !both {
			to = from
		}
		a, err1 := strconv.ParseInt(from, 10, 64)
		b, err2 := strconv.ParseInt(to, 10, 64)
		if err1 == nil && err2 == nil && a > 0 && a <= b {
			r = append(r, [2]int64{a, b})
		}
	}
	return r
}
