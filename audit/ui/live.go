package ui

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

const (
	liveEvery  = time.Second
	liveLimit  = 10 * time.Minute // then the browser connects anew, with its session checked anew
	liveWrite  = 10 * time.Second // of one event to a slow browser
	liveAtOnce = 200
)

type liveData struct {
	Query   string
	Mistake *mistake
	Rows    []row
	Events  string // address of the stream
}

// live shows the newest records and follows what comes.
func (s *Server) live(w http.ResponseWriter, r *http.Request, v *visit) error {
	text := strings.TrimSpace(r.URL.Query().Get("q"))
	if !r.URL.Query().Has("q") {
		text = "type:request"
	}
	d := liveData{Query: text}
	if err := s.looked(r, v, text); err != nil {
		return err
	}
	q, err := s.ask(v.view, text)
	if bad := (*audit.QueryError)(nil); errors.As(err, &bad) {
		d.Mistake = mistakeOf(bad)
		s.pages.render(w, r, v, http.StatusBadRequest, "live", d)
		return nil
	}
	if err != nil {
		return err
	}
	end, err := s.c.Store.End(r.Context()) // before the search: twice is better than never
	if err != nil {
		return err
	}
	q.Limit = 30
	page, err := s.c.Store.Search(r.Context(), q)
	if err != nil {
		return err
	}
	d.Rows = rowsOf(page.Rows)
	d.Events = "/live/events?q=" + url.QueryEscape(text) + "&after=" + url.QueryEscape(string(end))
	s.pages.render(w, r, v, http.StatusOK, "live", d)
	return nil
}

// liveEvents streams rows as server-sent events. Each has the place behind its
// own row as its id, so that a browser that lost the connection misses nothing.
func (s *Server) liveEvents(w http.ResponseWriter, r *http.Request, v *visit) error {
	q, err := s.ask(v.view, r.URL.Query().Get("q"))
	if err != nil {
		return err
	}
	release, err := s.limits.enterLive(v.session.ID)
	if err != nil {
		return err
	}
	defer release()
	after := store.Cursor(first(r.Header.Get("Last-Event-ID"), r.URL.Query().Get("after")))
	if after == "" {
		if after, err = s.c.Store.End(r.Context()); err != nil {
			return err
		}
	}
	q.Limit = liveAtOnce
	ctx, cancel := context.WithTimeout(r.Context(), liveLimit)
	defer cancel()
	page, err := s.c.Store.Tail(ctx, q, after) // mistakes become an answer, not a stream
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.Header().Set("X-Accel-Buffering", "no")
	tick := time.NewTicker(liveEvery)
	defer tick.Stop()
	for {
		if err := s.sendRows(w, page); err != nil {
			return nil //nolint:nilerr // the browser has gone
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := s.learnEnds(ctx); err != nil || !s.sessions.alive(v.session) {
			return nil //nolint:nilerr // the browser asks again, and is told
		}
		if page, err = s.c.Store.Tail(ctx, q, page.Next); err != nil {
			s.log.WarnContext(r.Context(), "live view ends", "error", err)
			return nil
		}
	}
}

// sendRows writes an event a row; none is a comment that keeps the connection.
func (s *Server) sendRows(w http.ResponseWriter, page store.Page) error {
	var b bytes.Buffer
	for _, x := range page.Rows {
		var html bytes.Buffer
		if err := s.pages.byName["live"].ExecuteTemplate(&html, "row", rowOf(&x.Record)); err != nil {
			return err
		}
		b.WriteString("event: row\nid: " + string(x.Cursor) + "\n")
		for line := range strings.Lines(string(visible(html.Bytes()))) {
			if line = strings.TrimSpace(line); line != "" {
				b.WriteString("data: " + line + "\n")
			}
		}
		b.WriteString("\n")
	}
	if len(page.Rows) == 0 {
		b.WriteString(":\n\n")
	}
	c := http.NewResponseController(w)
	if err := c.SetWriteDeadline(time.Now().Add(liveWrite)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := w.Write(b.Bytes()); err != nil {
		return err
	}
	return c.Flush()
}
