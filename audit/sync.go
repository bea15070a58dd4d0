package audit

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// waiter waits until the line seq is on the disk.
type waiter struct {
	seq uint64
	ch  chan error
}

// markDirty tells the syncer of a line that is not on the disk. The caller
// holds s.mu.
func (s *Spool) markDirty() {
	if s.dirty {
		return
	}
	s.dirty = true
	notify(s.wake)
}

// waitSync returns a channel that answers when the last line written is on the
// disk. All who wait meanwhile are served by one fdatasync. The caller holds
// s.mu.
func (s *Spool) waitSync() <-chan error {
	ch := make(chan error, 1)
	s.waiters = append(s.waiters, waiter{s.seq, ch})
	notify(s.wake)
	notify(s.urgent)
	return ch
}

func notify(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// syncLoop syncs at most SyncEvery after the first line that is not synced, and
// at once when somebody waits.
func (s *Spool) syncLoop() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-s.wake:
		}
		timer.Reset(s.opts.SyncEvery)
		select {
		case <-s.stop:
			return
		case <-s.urgent:
		case <-timer.C:
		}
		if err := s.syncOnce(); err != nil {
			s.opts.Logger.Error("audit spool cannot be synced; new calls are refused", "error", err)
		}
	}
}

// syncOnce makes everything written so far durable and answers those who wait.
func (s *Spool) syncOnce() error {
	s.mu.Lock()
	_ = s.flushEnds() // what the disk refuses is pending then
	seq, retired, file, newFile, end := s.seq, s.retired, s.file, s.newFile, s.written()
	s.retired, s.newFile, s.dirty = nil, false, false
	s.mu.Unlock()

	start := time.Now()
	var errs []error
	for _, f := range retired {
		errs = append(errs, s.datasync(f), f.Close())
	}
	errs = append(errs, s.datasync(file))
	if newFile {
		errs = append(errs, s.syncDir())
	}
	err := errors.Join(errs...)
	s.stats.syncs.Add(1)
	s.stats.syncNanos.Add(int64(time.Since(start)))

	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.stats.syncErrors.Add(1)
		// The kernel reports lost pages once and then forgets them: a sync that
		// works afterwards would prove nothing, so this stays until a restart.
		err = fmt.Errorf("sync audit spool: %w: %w; check the disk and restart", ErrUnavailable, err)
		s.failed = errors.Join(s.failed, err)
	} else {
		s.durable = end
	}
	for _, ch := range s.watchers {
		notify(ch)
	}
	waiters := s.waiters
	s.waiters = nil
	for _, w := range waiters {
		if err == nil && w.seq > seq {
			s.waiters = append(s.waiters, w)
			continue
		}
		w.ch <- err
	}
	return err
}

// datasync also notices that somebody deleted the file below us: records
// written into it would be lost.
func (s *Spool) datasync(f *os.File) error {
	if s.opts.fault != nil {
		if _, err := s.opts.fault("sync", 0); err != nil {
			return err
		}
	}
	if err := datasync(f); err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Nlink == 0 {
		s.mu.Lock()
		current := f == s.file
		s.mu.Unlock()
		if current {
			return errors.New("the segment being written was deleted")
		}
	}
	return nil
}

// syncDir makes the names of new segments durable.
func (s *Spool) syncDir() error {
	if s.opts.fault != nil {
		if _, err := s.opts.fault("sync directory", 0); err != nil {
			return err
		}
	}
	return syncDir(s.opts.Dir)
}

// pendingRetry is how often lines that the disk refused are tried again.
const pendingRetry = 250 * time.Millisecond

// heartbeatLoop proves that the producer lives, also when nothing happens, and
// retries pending lines.
func (s *Spool) heartbeatLoop() {
	beat := time.NewTicker(s.opts.Heartbeat)
	defer beat.Stop()
	retry := time.NewTicker(pendingRetry)
	defer retry.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-beat.C:
			s.heartbeat()
			s.SetShipped(0) // segments grow old
		case <-retry.C:
			s.mu.Lock()
			if len(s.pending) > 0 && !s.isClosed {
				_ = s.flushPending() // the error is kept in pendErr
			}
			s.mu.Unlock()
		}
	}
}

// heartbeat writes one record; a full spool goes without.
func (s *Spool) heartbeat() {
	open := utoa(uint64(max(s.Stats().Open, 0)))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed {
		return
	}
	// A heartbeat must not decide about health: it would need more room for a
	// request than for itself.
	full := s.fullErr
	err := s.putEvent(wholes, TypeHeartbeat, &Event{Name: TypeHeartbeat, Fields: s.stats.fields("open", open)})
	if err != nil || errors.Is(full, ErrFull) {
		s.fullErr = full
	}
	if err != nil {
		s.opts.Logger.Warn("audit heartbeat not written", "error", err)
		return
	}
	s.stats.heartbeats.Add(1)
}
