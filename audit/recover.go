package audit

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"time"
)

// lineRef names a line: sequences are unique within an epoch.
type lineRef struct {
	epoch string
	seq   uint64
}

// begun is a begin without an end, found at Open.
type begun struct {
	id    string
	order int // of appearance
}

// recovery is what Open learns of the earlier epochs.
type recovery struct {
	open       map[lineRef]begun
	begins     int
	lastEpoch  string
	lastClosed bool
	tail       *tail
	links      links
	broken     *place // the first line that is damaged or not chained to the one before
	brokenN    int
}

// place is where a line stands.
type place struct{ segment, offset int64 }

// note remembers a line that is not as it was written.
func (r *recovery) damage(segment, off int64) {
	if r.broken == nil {
		r.broken = &place{segment, off}
	}
	r.brokenN++
}

// tail is a torn end of the last segment.
type tail struct {
	segment, offset, bytes int64
	digest                 string
}

// recover reads the spool, cuts a torn tail, opens the last segment, and writes
// the epoch's first records. It runs before any other goroutine.
func (s *Spool) recover() error {
	numbers, err := listSegments(s.opts.Dir)
	if err != nil {
		return err
	}
	rec := recovery{open: map[lineRef]begun{}}
	flag := 0
	if len(numbers) == 0 {
		numbers, flag = []int64{1}, os.O_CREATE|os.O_EXCL
		s.newFile = true
	}
	for i, n := range numbers {
		last := i == len(numbers)-1
		if err := s.readSegment(n, last, flag, &rec); err != nil {
			return err
		}
	}
	s.alloc = s.cur.size
	return s.openEpoch(&rec)
}

// readSegment reads one earlier segment and keeps the last one open.
func (s *Spool) readSegment(n int64, last bool, flag int, rec *recovery) error {
	f, err := openSegment(s.opts.Dir, n, flag)
	if err != nil {
		return err
	}
	g := &segment{number: n}
	end, err := scan(bufio.NewReaderSize(nil, maxLine), f, 0, func(off int64, line []byte, b framed, err error) error {
		if err != nil {
			rec.damage(n, off)
			return nil
		}
		g.lines++
		g.size = off + int64(len(line))
		h, ok := s.note(b, rec)
		if !ok || rec.links.follow(h, b) == linkBroken {
			rec.damage(n, off)
		}
		g.last = mark{epoch: h.Epoch, seq: h.Sequence}
		if b.chained {
			copy(g.last.head[:], b.chain.String())
		}
		return nil
	})
	if err != nil {
		return errors.Join(fmt.Errorf("read audit segment %s: %w", segmentName(n), err), f.Close())
	}
	if !last {
		g.size = end.size
		g.closedAt = time.Now()
		if fi, err := f.Stat(); err == nil {
			g.closedAt = fi.ModTime()
		}
		s.closed = append(s.closed, g)
		s.total += g.size
		return f.Close()
	}
	s.file, s.cur = f, g
	s.total += g.size
	if end.size == g.size {
		return nil
	}
	if rec.tail, err = cutTail(f, g, end.size); err != nil {
		return fmt.Errorf("cut torn tail of %s: %w", segmentName(n), err)
	}
	return nil
}

// note takes up one whole line, and says whether it is one of a spool.
func (s *Spool) note(l framed, rec *recovery) (head, bool) {
	b := l.json
	h, err := parseHead(b)
	if err != nil || h.Epoch == "" {
		return h, false
	}
	if h.Epoch != rec.lastEpoch {
		rec.lastEpoch, rec.lastClosed = h.Epoch, false
	}
	switch h.Type {
	case TypeBegin:
		rec.begins++
		rec.open[lineRef{h.Epoch, h.Sequence}] = begun{h.ID, rec.begins}
	case TypeEnd:
		delete(rec.open, lineRef{h.BeginEpoch, h.BeginSequence})
	case TypeEpochEnd:
		rec.lastClosed = true
	case TypeEvent:
		if bytes.Contains(b, []byte(`"`+EventDropped+`"`)) {
			if r, err := decode(b); err == nil && r.Event != nil && r.Event.Name == EventDropped {
				s.missing = parseRanges(r.Event.Fields["missing"])
			}
		}
		if bytes.Contains(b, []byte(`"`+EventShipped+`"`)) {
			if r, err := decode(b); err == nil && r.Event != nil && r.Event.Name == EventShipped {
				s.shipped = parseRanges(r.Event.Fields["shipped"])
			}
		}
	}
	return h, true
}

// cutTail cuts what follows the last whole line: a write that the power or the
// disk interrupted. What was cut is told by size and digest.
func cutTail(f *os.File, g *segment, size int64) (*tail, error) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, g.size, size-g.size)); err != nil {
		return nil, err
	}
	if err := f.Truncate(g.size); err != nil {
		return nil, err
	}
	return &tail{g.number, g.size, size - g.size, "sha256:" + hex.EncodeToString(h.Sum(nil))}, nil
}

// openEpoch writes the first record of the epoch and ends what is unfinished.
func (s *Spool) openEpoch(rec *recovery) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	host, _ := os.Hostname() // empty when unknown
	fields := map[string]string{
		"host": host, "pid": strconv.Itoa(os.Getpid()), "version": s.opts.Version,
		"durability": string(s.opts.Durability), "on_full": s.opts.OnFull,
		"max_bytes":      strconv.FormatInt(s.opts.MaxBytes, 10),
		"segment_bytes":  strconv.FormatInt(s.opts.SegmentBytes, 10),
		"previous_epoch": rec.lastEpoch, "previous_closed": strconv.FormatBool(rec.lastClosed),
		"unfinished": strconv.Itoa(len(rec.open)), "producer": s.opts.Producer, "producer_kind": s.opts.Kind,
	}
	if h, ok := rec.links.head(rec.lastEpoch); ok {
		fields["previous_head"] = h.String()
	}
	for k, v := range s.opts.Config {
		if _, taken := fields[k]; !taken {
			fields[k] = v
		}
	}
	if err := s.putEvent(opens, TypeEpochOpen, &Event{Name: TypeEpochOpen, Fields: fields}); err != nil {
		return fmt.Errorf("open audit epoch: %w", err)
	}
	if t := rec.tail; t != nil {
		err := s.system(TypeEvent, &Event{Name: EventTailCut, Fields: map[string]string{
			"segment": strconv.FormatInt(t.segment, 10), "offset": strconv.FormatInt(t.offset, 10),
			"bytes": strconv.FormatInt(t.bytes, 10), "digest": t.digest,
		}})
		if err != nil {
			return fmt.Errorf("record torn audit tail: %w", err)
		}
	}
	if p := rec.broken; p != nil {
		s.opts.Logger.Error("audit spool is damaged; attache audit verify says where", "segment", segmentName(p.segment), "offset", p.offset, "lines", rec.brokenN)
		err := s.system(TypeEvent, &Event{Name: EventDamaged, Fields: map[string]string{
			"segment": strconv.FormatInt(p.segment, 10), "offset": strconv.FormatInt(p.offset, 10), "lines": strconv.Itoa(rec.brokenN),
		}})
		if err != nil {
			return fmt.Errorf("record damaged audit lines: %w", err)
		}
	}
	return s.endUnfinished(rec.open)
}

// endUnfinished writes the ends that the processes of earlier epochs did not
// live to write.
func (s *Spool) endUnfinished(open map[lineRef]begun) error {
	refs := make([]lineRef, 0, len(open))
	for ref := range open {
		refs = append(refs, ref)
	}
	slices.SortFunc(refs, func(a, b lineRef) int {
		return cmp.Or(cmp.Compare(open[a].order, open[b].order), cmp.Compare(a.epoch, b.epoch), cmp.Compare(a.seq, b.seq))
	})
	for _, ref := range refs {
		h := &Record{
			Schema: SchemaVersion, Type: TypeEnd, ID: open[ref].id, Epoch: s.epoch,
			BeginEpoch: ref.epoch, BeginSequence: ref.seq,
		}
		if err := s.put(systems, h, unknownBody("killed")); err != nil {
			return fmt.Errorf("end request %s of epoch %s: %w", open[ref].id, ref.epoch, err)
		}
		s.stats.unknown.Add(1)
	}
	return nil
}

// scanEnd says where a scan stopped.
type scanEnd struct {
	next int64 // offset behind the last NEWLINE
	size int64 // offset of the end of the file
}

// scan calls fn with each line of f from offset from: its offset, the line with
// its NEWLINE, and what it holds or errFrame. Bytes behind the last NEWLINE are not
// given. A line beyond maxLine is given in parts, each with errFrame. fn stops
// the scan with an error, which scan returns.
func scan(r *bufio.Reader, f io.ReaderAt, from int64, fn func(off int64, line []byte, l framed, err error) error) (scanEnd, error) {
	r.Reset(io.NewSectionReader(f, from, math.MaxInt64-from))
	e := scanEnd{from, from}
	for {
		line, err := r.ReadSlice('\n')
		e.size += int64(len(line))
		switch {
		case err == nil:
			l, ferr := unframe(line)
			if err := fn(e.next, line, l, ferr); err != nil {
				return e, err
			}
			e.next = e.size
		case errors.Is(err, bufio.ErrBufferFull):
			if err := fn(e.next, line, framed{}, errFrame); err != nil {
				return e, err
			}
			e.next = e.size
		case errors.Is(err, io.EOF):
			return e, nil
		default:
			return e, err
		}
	}
}
