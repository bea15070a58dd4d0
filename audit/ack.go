package audit

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// DefaultCollectorWait bounds how long a begin waits for its acknowledgement.
const DefaultCollectorWait = 5 * time.Second

// waitCollector returns a channel that answers when the collector has
// acknowledged the last line written. All who wait meanwhile go in one batch.
// The caller holds s.mu.
func (s *Spool) waitCollector() <-chan error {
	ch := make(chan error, 1)
	s.acks = append(s.acks, waiter{s.seq, ch})
	notify(s.wake)
	notify(s.urgent) // only what is on the disk is shipped
	return ch
}

// Awaited reports whether a request waits for the collector.
func (s *Spool) Awaited() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.acks) > 0
}

// Answer tells the requests whose begins are among lines, in ascending order,
// what the collector said: nil when it has them for good.
func (s *Spool) Answer(lines []Line, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.acks) == 0 {
		return
	}
	s.acks = slices.DeleteFunc(s.acks, func(w waiter) bool {
		i, ok := slices.BinarySearchFunc(lines, w.seq, func(l Line, seq uint64) int {
			if l.Epoch != s.epoch { // ended epochs come first
				return -1
			}
			return cmp.Compare(l.Sequence, seq)
		})
		if ok && lines[i].Epoch == s.epoch {
			w.ch <- err
			return true
		}
		return false
	})
}

// forget takes a waiter off that waits no more.
func (s *Spool) forget(ch <-chan error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acks = slices.DeleteFunc(s.acks, func(w waiter) bool { return w.ch == ch })
}

// awaitCollector waits for the collector's answer, within bounds.
func (s *Spool) awaitCollector(ctx context.Context, answered <-chan error) error {
	t := time.NewTimer(s.opts.CollectorWait)
	defer t.Stop()
	select {
	case err := <-answered:
		if err != nil {
			return fmt.Errorf("the collector did not take the record: %w: %w", ErrUnavailable, err)
		}
		return nil
	case <-ctx.Done():
		s.forget(answered)
		return ctx.Err()
	case <-t.C:
		s.forget(answered)
		return fmt.Errorf("the collector has not acknowledged the record within %s: %w", s.opts.CollectorWait, ErrUnavailable)
	}
}
