package audit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// Position is a place in a spool: behind Line lines, of Offset bytes, of a
// segment. The zero Position is the beginning.
type Position struct {
	Segment int64 `json:"segment"`
	Offset  int64 `json:"offset"`
	Line    int64 `json:"line"`
}

// Watch returns a channel that is filled when lines have reached the disk, and
// at the end when the spool was closed. One notice may stand for many lines; writers never wait
// for who watches.
func (s *Spool) Watch() <-chan struct{} {
	ch := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers = append(s.watchers, ch)
	return ch
}

// Durable is the end of what is on the disk: what is shipped must not be lost
// here, or the receiver would know more of the producer than itself. Where the
// disk has failed it is the end of what was written.
func (s *Spool) Durable() Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return s.written()
	}
	return s.durable
}

// written is the end of what was written. The caller holds s.mu.
func (s *Spool) written() Position { return Position{s.cur.number, s.cur.size, s.cur.lines} }

// Lag says how much of what was written lies behind p.
func (s *Spool) Lag(p Position) (lines, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range append(slices.Clone(s.closed), s.cur) {
		switch {
		case g.number > p.Segment:
			lines, bytes = lines+g.lines, bytes+g.size
		case g.number == p.Segment:
			lines, bytes = lines+g.lines-p.Line, bytes+g.size-p.Offset
		}
	}
	return max(lines, 0), max(bytes, 0)
}

// Closed reports whether nothing more will reach the disk.
func (s *Spool) Closed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.isSettled
}

// Dir is the spool's directory.
func (s *Spool) Dir() string { return s.opts.Dir }

// Producer is who the lines are from, as the epoch's first record says.
func (s *Spool) Producer() string { return s.opts.Producer }

// Damage is lines that a [Follower] left out because they are not as they were
// written.
type Damage struct {
	Segment string // its file
	Offset  int64  // of the first
	Lines   int
	Bytes   int64
}

// String says where the damage is.
func (d Damage) String() string {
	return fmt.Sprintf("%s:%d: %d damaged lines, %d bytes", d.Segment, d.Offset, d.Lines, d.Bytes)
}

// Follower reads the lines of a spool in order, also while it is written. It is
// used by one goroutine.
type Follower struct {
	dir  string
	buf  *bufio.Reader
	file *os.File
	at   Position
}

// NewFollower starts behind what at says. Where that is no place between two
// lines any more, it starts at the beginning of the segment: lines come again
// rather than not.
func NewFollower(dir string, at Position) *Follower {
	f := &Follower{dir: dir, buf: bufio.NewReaderSize(nil, maxLine), at: at}
	if !f.between() {
		f.at = Position{Segment: at.Segment}
	}
	return f
}

// between reports whether f stands behind a NEWLINE or at the beginning.
func (f *Follower) between() bool {
	if f.at.Offset == 0 {
		return true
	}
	if err := f.open(); err != nil || f.file == nil {
		return false
	}
	b := make([]byte, 1)
	_, err := f.file.ReadAt(b, f.at.Offset-1)
	return err == nil && b[0] == '\n'
}

// Position is behind the last line that was returned.
func (f *Follower) Position() Position { return f.at }

// Close closes the segment being read.
func (f *Follower) Close() error {
	if f.file == nil {
		return nil
	}
	err := f.file.Close()
	f.file = nil
	return err
}

// Next returns lines of one epoch up to limit, at most maxLines and, but for one
// line, maxBytes of JSON. None and no error means that there are none before limit.
// Damaged lines are left out and told. The lines are the caller's.
func (f *Follower) Next(ctx context.Context, limit Position, maxLines int, maxBytes int64) ([]Line, []Damage, error) {
	var lines []Line
	var damage []Damage
	for f.at.Segment < limit.Segment || f.at.Segment == limit.Segment && f.at.Offset < limit.Offset {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		if err := f.open(); err != nil {
			return nil, nil, err
		}
		full, err := f.read(limit, maxLines, maxBytes, &lines, &damage)
		if err != nil {
			return nil, nil, err
		}
		if full || f.at.Segment >= limit.Segment {
			break
		}
		if err := f.following(limit); err != nil {
			return nil, nil, err
		}
	}
	return lines, damage, nil
}

// open opens the segment that f stands in; without an error f.file is nil if
// it is gone.
func (f *Follower) open() error {
	if f.file != nil || f.at.Segment == 0 {
		return nil
	}
	file, err := os.Open(filepath.Join(f.dir, segmentName(f.at.Segment))) //nolint:gosec // the spool's own directory
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open audit segment: %w", err)
	}
	f.file = file
	return nil
}

// following goes to the next segment that is there.
func (f *Follower) following(limit Position) error {
	if err := f.Close(); err != nil {
		return err
	}
	numbers, err := listSegments(f.dir)
	if err != nil {
		return err
	}
	next := limit.Segment
	for _, n := range numbers {
		if n > f.at.Segment {
			next = min(next, n)
			break
		}
	}
	f.at = Position{Segment: next}
	return nil
}

// errEnough stops a scan when the caller can take no more.
var errEnough = errors.New("enough")

// read takes lines of the present segment, and says whether there is no room
// for more.
func (f *Follower) read(limit Position, maxLines int, maxBytes int64, lines *[]Line, damage *[]Damage) (bool, error) {
	if f.file == nil {
		return false, nil
	}
	var size int64
	for _, l := range *lines {
		size += int64(len(l.JSON))
	}
	broken := -1
	end, err := scan(f.buf, f.file, f.at.Offset, func(off int64, text []byte, _ framed, err error) error {
		if f.at.Segment == limit.Segment && off >= limit.Offset || len(*lines) == maxLines {
			return errEnough
		}
		var l Line
		if err == nil {
			l, err = ParseLine(text)
		}
		if err != nil {
			if broken < 0 {
				*damage = append(*damage, Damage{Segment: segmentName(f.at.Segment), Offset: off})
				broken = len(*damage) - 1
			}
			(*damage)[broken].Lines++
			(*damage)[broken].Bytes += int64(len(text))
		} else {
			if size += int64(len(l.JSON)); len(*lines) > 0 && (size > maxBytes || l.Epoch != (*lines)[0].Epoch) {
				return errEnough
			}
			l.JSON = slices.Clone(l.JSON)
			*lines = append(*lines, l)
			broken = -1
			f.at.Line++ // recovery counts whole lines too
		}
		f.at.Offset = off + int64(len(text))
		return nil
	})
	if errors.Is(err, errEnough) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("read audit segment %s: %w", segmentName(f.at.Segment), err)
	}
	if torn := end.size - end.next; torn > 0 && f.at.Segment < limit.Segment {
		// Nobody writes it any more.
		*damage = append(*damage, Damage{segmentName(f.at.Segment), end.next, 1, torn})
	}
	return false, nil
}

// EndOf is the end of a spool that nobody writes; the zero Position if there is
// none.
func EndOf(dir string) (Position, error) {
	numbers, err := listSegments(dir)
	if err != nil || len(numbers) == 0 {
		return Position{}, err
	}
	n := numbers[len(numbers)-1]
	fi, err := os.Stat(filepath.Join(dir, segmentName(n)))
	if err != nil {
		return Position{}, err
	}
	return Position{Segment: n, Offset: fi.Size()}, nil
}
