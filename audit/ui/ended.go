package ui

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"runtime/debug"
	"sync"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

// endedEvery is how often a replica asks the store for log-outs at others,
// endedRead how long it waits for the answer, endedWait what a page waits for
// that at most, and endedLate how long ago it may have learned of them last
// where the store does not answer.
const (
	endedEvery = 3 * time.Second
	endedRead  = 5 * time.Second
	endedWait  = 2 * time.Second
	endedLate  = 10 * time.Second
	maxEpochs  = 1000 // of which it is known whose they are
)

// errEnds: no session is believed of which nobody knows whether it was ended.
var errEnds = errors.New("cannot read which sessions ended elsewhere")

// markOf names a session in the record of its end. It opens nothing.
func markOf(sessionID string) string {
	sum := sha256.Sum256([]byte("attache.audit.ui/v1 session\n" + sessionID))
	return hex.EncodeToString(sum[:16])
}

// ends learns which sessions were ended at other replicas, or before a restart,
// from their records in the store that all share. Only the control plane can
// write such a record (control/collector, and here again), and only who has the
// cookie knows the mark.
type ends struct {
	learn func(ctx context.Context, now time.Time) error // of a Server: readEnds

	mu      sync.Mutex // guards reading, read
	reading *reading   // nil: nobody reads
	read    time.Time  // up to when all are known; zero: those of the time before are not

	// Who reads has all below.
	after store.Cursor // "": those of the time before were not all read yet
	// While they are: where the new ones begin, and behind which row to go on.
	from, back store.Cursor
	control    map[string]bool // epochs, and whether they are the control plane's
}

// reading is one reading of log-outs, for all who wait for it.
type reading struct {
	done chan struct{}
	err  error // when it is done
}

// learnEnds brings s.sessions up to date, if it was not just done. All who come
// meanwhile wait for one reading, which is nobody's own: it goes on when they
// hang up. An error means that no session may be believed.
func (s *Server) learnEnds(ctx context.Context) error {
	if s.c.OIDC == nil {
		return nil
	}
	r := s.readingEnds(ctx)
	if r == nil {
		return nil
	}
	asked, cancel := context.WithTimeout(ctx, endedWait)
	defer cancel()
	select {
	case <-r.done:
		if r.err == nil {
			return nil
		}
	case <-asked.Done():
	}
	s.ends.mu.Lock()
	defer s.ends.mu.Unlock()
	if s.c.Now().Sub(s.ends.read) < endedLate {
		return nil
	}
	return errEnds
}

// readingEnds returns the reading under way, a new one where there is none; nil
// where all is known.
func (s *Server) readingEnds(ctx context.Context) *reading {
	now := s.c.Now()
	s.ends.mu.Lock()
	defer s.ends.mu.Unlock()
	if now.Sub(s.ends.read) < endedEvery {
		return nil
	}
	if s.ends.reading != nil {
		return s.ends.reading
	}
	r := &reading{done: make(chan struct{})}
	s.ends.reading = r
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endedRead)
		defer cancel()
		r.err = s.learnOnce(ctx, now)
		s.ends.mu.Lock()
		defer s.ends.mu.Unlock()
		if r.err == nil {
			s.ends.read = now
		}
		s.ends.reading = nil
		close(r.done)
	}()
	return r
}

// learnOnce is one reading. A panic is one that failed: those who wait must have
// an answer, and the process is not theirs alone.
func (s *Server) learnOnce(ctx context.Context, now time.Time) (err error) {
	defer func() {
		if v := recover(); v != nil {
			s.log.ErrorContext(ctx, "reading which sessions ended elsewhere panicked", "panic", v, "stack", string(debug.Stack()))
			err = errEnds
		}
	}()
	if err = s.ends.learn(ctx, now); err != nil {
		s.log.WarnContext(ctx, "cannot read which sessions ended elsewhere", "error", err)
	}
	return err
}

func (s *Server) readEnds(ctx context.Context, now time.Time) error {
	text := query(term("event", audit.EventLogout))
	if s.ends.after == "" {
		if err := s.readEndsBefore(ctx, now, text); err != nil {
			return err
		}
	}
	q, err := s.ask(Scope{All: true}, text)
	if err != nil {
		return err
	}
	q.Limit = store.MaxLimit
	for {
		page, err := s.c.Store.Tail(ctx, q, s.ends.after)
		if err != nil {
			return err
		}
		if err := s.forget(ctx, page.Rows); err != nil {
			return err
		}
		moved := page.Next != s.ends.after
		s.ends.after = page.Next
		if len(page.Rows) < store.MaxLimit || !moved {
			return nil
		}
	}
}

// readEndsBefore reads those of the time before this process, newest first. One
// that is broken off goes on where it was.
func (s *Server) readEndsBefore(ctx context.Context, now time.Time, text string) error {
	if s.ends.from == "" {
		from, err := s.c.Store.End(ctx)
		if err != nil {
			return err
		}
		s.ends.from = from
	}
	// An older session is dead by its age.
	q, err := s.ask(Scope{All: true}, query(text, term("since", now.Add(-absoluteLimit).UTC().Format(time.RFC3339))))
	if err != nil {
		return err
	}
	q.Limit = store.MaxLimit
	for {
		q.After = s.ends.back
		page, err := s.c.Store.Search(ctx, q)
		if err != nil {
			return err
		}
		if err := s.forget(ctx, page.Rows); err != nil {
			return err
		}
		if page.Next == "" {
			s.ends.after = s.ends.from
			return nil
		}
		s.ends.back = page.Next
	}
}

func (s *Server) forget(ctx context.Context, rows []store.Row) error {
	for i := range rows {
		e := rows[i].Event
		if e == nil || e.Name != audit.EventLogout || e.Fields["session"] == "" { // a query ignores case
			continue
		}
		ours, err := s.ofControl(ctx, &rows[i])
		if err != nil {
			return err
		}
		if ours {
			s.sessions.forget(e.Fields["session"], rows[i].Time)
		}
	}
	return nil
}

// ofControl reports whether the control plane wrote a record.
func (s *Server) ofControl(ctx context.Context, r *store.Row) (bool, error) {
	ours, known := s.ends.control[r.Epoch]
	if known {
		return ours, nil
	}
	h, err := s.c.Store.Head(ctx, r.Epoch)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return false, err
	}
	if s.ends.control == nil || len(s.ends.control) >= maxEpochs {
		s.ends.control = map[string]bool{}
	}
	ours = err == nil && h.Producer.Kind == audit.KindControl && h.Producer.ID == r.Producer
	s.ends.control[r.Epoch] = ours
	return ours, nil
}
