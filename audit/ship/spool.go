package ship

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/internal/replace"
)

// linger is how long lines wait for company, unless a request waits for them.
const linger = 200 * time.Millisecond

// SpoolSource gives the lines of a spool that this process writes.
type SpoolSource struct {
	spool   *audit.Spool
	path    string // of the cursor
	watch   <-chan struct{}
	follow  *audit.Follower
	damaged func(audit.Damage)
	before  time.Time // no batch before it, unless it is full or awaited

	mu        sync.Mutex // guards committed
	committed audit.Position
}

// FromSpool returns the lines of s that sink has not acknowledged yet. It keeps
// its cursor in the spool's directory. damaged is told of lines that cannot be
// read and are left out; nil: nobody is.
func FromSpool(s *audit.Spool, sink string, damaged func(audit.Damage)) (*SpoolSource, error) {
	at, err := cursorOf(s.Dir(), sink)
	if err != nil {
		return nil, err
	}
	if end := s.Durable(); at.Segment > end.Segment { // somebody took the segments and left the cursor
		at = audit.Position{}
	}
	src := &SpoolSource{spool: s, path: cursorPath(s.Dir(), sink), watch: s.Watch(), damaged: damaged, committed: at}
	src.follow = audit.NewFollower(s.Dir(), src.committed)
	src.committed = src.follow.Position()
	return src, nil
}

func cursorPath(dir, sink string) string { return filepath.Join(dir, "sink-"+sink+".cursor") }

// cursorOf reads the cursor of a sink. One that is not legible is the beginning:
// the receiver knows repetitions.
func cursorOf(dir, sink string) (audit.Position, error) {
	b, err := os.ReadFile(cursorPath(dir, sink))
	if errors.Is(err, os.ErrNotExist) {
		return audit.Position{}, nil
	}
	if err != nil {
		return audit.Position{}, fmt.Errorf("read the cursor of sink %s: %w", sink, err)
	}
	p, _ := parseCursor(Cursor(b))
	return p, nil
}

// Behind reports whether a sink has not taken all of a spool that nobody writes.
func Behind(dir string, sinks []Sink) bool {
	end, err := audit.EndOf(dir)
	if err != nil || end == (audit.Position{}) {
		return false
	}
	for _, s := range sinks {
		at, err := cursorOf(dir, s.Name())
		if err != nil || at.Segment < end.Segment || at.Segment == end.Segment && at.Offset < end.Offset {
			return true
		}
	}
	return false
}

func parseCursor(c Cursor) (audit.Position, error) {
	var p audit.Position
	if err := json.Unmarshal([]byte(c), &p); err != nil || p.Segment < 0 || p.Offset < 0 || p.Line < 0 {
		return audit.Position{}, fmt.Errorf("cursor %.100q is none", string(c))
	}
	return p, nil
}

func formatCursor(p audit.Position) Cursor {
	b, _ := json.Marshal(p) // numbers
	return Cursor(b)
}

// Next implements [Source].
func (s *SpoolSource) Next(ctx context.Context) (Batch, Cursor, error) {
	for {
		if err := s.gather(ctx); err != nil {
			return Batch{}, "", err
		}
		closed := s.spool.Closed() // asked first: what was written before it is seen below
		lines, damage, err := s.follow.Next(ctx, s.spool.Durable(), MaxLines, MaxBytes)
		if err != nil {
			return Batch{}, "", err
		}
		for _, d := range damage {
			if s.damaged != nil {
				s.damaged(d)
			}
		}
		if len(lines) > 0 {
			s.before = time.Time{}
			if len(lines) < MaxLines {
				s.before = time.Now().Add(linger)
			}
			return Batch{s.spool.Producer(), lines}, formatCursor(s.follow.Position()), nil
		}
		if closed {
			return Batch{}, "", io.EOF
		}
		select {
		case <-ctx.Done():
			return Batch{}, "", ctx.Err()
		case <-s.watch:
		}
	}
}

// gather lets lines come together.
func (s *SpoolSource) gather(ctx context.Context) error {
	if time.Now().After(s.before) {
		return ctx.Err()
	}
	t := time.NewTimer(time.Until(s.before))
	defer t.Stop()
	for !s.spool.Awaited() && !s.spool.Closed() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
			return nil
		case <-s.watch:
		}
	}
	return nil
}

// Commit implements [Source].
func (s *SpoolSource) Commit(c Cursor) error {
	p, err := parseCursor(c)
	if err != nil {
		return err
	}
	if err := replace.File(s.path, []byte(c), replace.How{Sole: true}); err != nil {
		return fmt.Errorf("keep the cursor of a sink: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.committed = p
	return nil
}

// Committed is behind the last line that was acknowledged.
func (s *SpoolSource) Committed() audit.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.committed
}

// Lag says how much of the spool has not been acknowledged.
func (s *SpoolSource) Lag() (lines, bytes int64) { return s.spool.Lag(s.Committed()) }

// Close lets the segment being read go.
func (s *SpoolSource) Close() error { return s.follow.Close() }
