package ui

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

// health is what a reviewer must know before believing the rest.
type health struct {
	Producers  int
	Silent     int // open epochs without a line for a while
	Gaps       int
	Missing    uint64 // lines
	Unchained  int
	Lost       int
	Checkpoint uint64
	Made       time.Time
	Late       bool // the last checkpoint is old
}

type producerRow struct {
	store.Head
	State   word
	Missing uint64
	Lag     time.Duration // between a line's time and when the store had it
	Silent  time.Duration // since the last line
}

type producersData struct {
	Health health
	Rows   []producerRow
	Events []row // lost, gaps, forged
	Full   bool  // the person sees all namespaces
}

const (
	// silentAfter: three missed heartbeats (30 s each).
	silentAfter     = 95 * time.Second
	checkpointLate  = 3 * time.Minute
	maxChainEvents  = 50
	eventsOfAChain  = "event:producer.lost,producer.gap,producer.forged,producer.rejected,spool.dropped,spool.removed,spool.tail_cut,checkpoint.failed,retention.dropped"
	lossesLookedFor = "since:30d"
)

// heads returns the producers that the person may see.
func (s *Server) heads(ctx context.Context, scope Scope) ([]producerRow, error) {
	l, err := s.c.Store.Producers(ctx)
	if err != nil {
		return nil, err
	}
	now := s.now()
	var out []producerRow
	for _, h := range l {
		if !scope.Has(h.Producer.Namespace) {
			continue
		}
		p := producerRow{Head: h, Silent: now.Sub(h.Seen), Lag: max(0, h.Stored.Sub(h.Seen))}
		for _, g := range h.Gaps {
			p.Missing += g.To - g.From + 1
		}
		switch {
		case p.Missing > 0:
			p.State = word{"lines missing", "bad"}
		case h.Closed:
			p.State = word{"closed", ""}
		case p.Silent > silentAfter:
			p.State = word{"silent", "warn"}
		default:
			p.State = word{"writing", "good"}
		}
		out = append(out, p)
	}
	return out, nil
}

func (s *Server) health(ctx context.Context, rows []producerRow) (health, error) {
	h := health{Producers: len(rows)}
	for _, p := range rows {
		h.Gaps += len(p.Gaps)
		h.Missing += p.Missing
		if !p.Chained {
			h.Unchained++
		}
		if p.State.Text == "silent" {
			h.Silent++
		}
	}
	c, err := s.c.Store.LastCheckpoint(ctx)
	switch {
	case errors.Is(err, store.ErrNotFound):
		h.Late = true
	case err != nil:
		return h, err
	default:
		h.Checkpoint, h.Made = c.Number, c.Time
		h.Late = s.now().Sub(c.Time) > checkpointLate
	}
	return h, nil
}

// producers shows who writes records, and what of it is missing or late.
func (s *Server) producers(w http.ResponseWriter, r *http.Request, v *visit) error {
	if err := s.looked(r, v, "producers"); err != nil {
		return err
	}
	ctx := r.Context()
	var d producersData
	var err error
	if d.Rows, err = s.heads(ctx, v.view); err != nil {
		return err
	}
	if d.Health, err = s.health(ctx, d.Rows); err != nil {
		return err
	}
	q, err := s.ask(v.view, eventsOfAChain, lossesLookedFor)
	if err != nil {
		return err
	}
	q.Limit = maxChainEvents
	page, err := s.c.Store.Search(ctx, q)
	if err != nil {
		return err
	}
	for i := range page.Rows {
		if e := page.Rows[i].Event; e != nil && e.Name == audit.EventProducerLost {
			d.Health.Lost++
		}
	}
	d.Events, d.Full = rowsOf(page.Rows), v.view.All
	s.pages.render(w, r, v, http.StatusOK, "producers", d)
	return nil
}
