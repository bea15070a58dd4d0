package ui

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

// endedEvery is how often a replica asks the store for log-outs at others, and
// endedWait what a page waits for that at most.
const (
	endedEvery = 3 * time.Second
	endedWait  = 2 * time.Second
)

// markOf names a session in the record of its end. It opens nothing.
func markOf(sessionID string) string {
	sum := sha256.Sum256([]byte("attache.audit.ui/v1 session\n" + sessionID))
	return hex.EncodeToString(sum[:16])
}

// ends learns which sessions were ended at other replicas, or before a restart,
// from their records in the store that all share. Only the control plane can
// write such a record (control/collector), and only who has the cookie knows the
// mark.
type ends struct {
	mu    sync.Mutex // held by who asks
	next  time.Time
	after store.Cursor // "": those of the time before were not all read yet
	// While they are: where the new ones begin, and behind which row to go on.
	from, back store.Cursor
}

// learnEnds brings s.sessions up to date, if it was not just done. What the
// store cannot answer now is asked again by the next page.
func (s *Server) learnEnds(ctx context.Context) {
	if s.c.OIDC == nil || !s.ends.mu.TryLock() {
		return
	}
	defer s.ends.mu.Unlock()
	now := s.c.Now()
	if now.Before(s.ends.next) {
		return
	}
	s.ends.next = now.Add(endedEvery)
	ctx, cancel := context.WithTimeout(ctx, endedWait)
	defer cancel()
	if err := s.readEnds(ctx, now); err != nil {
		s.log.WarnContext(ctx, "cannot read which sessions ended elsewhere", "error", err)
	}
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
		s.forget(page.Rows)
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
		s.forget(page.Rows)
		if page.Next == "" {
			s.ends.after = s.ends.from
			return nil
		}
		s.ends.back = page.Next
	}
}

func (s *Server) forget(rows []store.Row) {
	for i := range rows {
		if e := rows[i].Event; e != nil && e.Fields["session"] != "" {
			s.sessions.forget(e.Fields["session"], rows[i].Time)
		}
	}
}
