package ui

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/export"
	"github.com/attache-dev/attache/audit/store"
)

const (
	maxExport   = 100_000 // records of one file
	exportLimit = 5 * time.Minute
	exportWrite = 30 * time.Second // of one page to a slow reader
)

// export streams what a query finds as a file: newest first, at most maxExport
// records. It is recorded before it begins, and again with what was given.
func (s *Server) export(w http.ResponseWriter, r *http.Request, v *visit) error {
	if v.audit.Empty() {
		return errForbidden
	}
	text, kind := strings.TrimSpace(r.URL.Query().Get("q")), r.URL.Query().Get("format")
	format, ok := export.Of(kind)
	if !ok {
		return errNotFound
	}
	q, err := s.ask(v.audit, text)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), exportLimit)
	defer cancel()
	done, err := s.limits.enterLive("export/" + v.session.ID)
	if err != nil {
		return err
	}
	defer done()
	q.Limit = store.MaxLimit
	page, err := s.searchInTurn(ctx, q) // a mistake becomes a page, not half a file
	if err != nil {
		return err
	}
	fields := map[string]string{"query": text, "format": kind, "namespaces": v.audit.String()}
	if err := s.event(ctx, audit.EventAuditExport, &v.session.Person, fields); err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", format.MIME)
	h.Set("Content-Disposition", fmt.Sprintf(`attachment; filename="attache-audit-%s.%s"`, s.now().Format("20060102-150405"), format.Extension))
	h.Set("Trailer", "Attache-Export")
	n, whole, err := s.stream(ctx, w, kind, q, page)
	state := "whole"
	if err != nil {
		state = "broken off"
		s.log.WarnContext(ctx, "export broken off", "records", n, "error", err)
	} else if !whole {
		state = "first " + strconv.Itoa(n)
	}
	h.Set("Attache-Export", state+"; records="+strconv.Itoa(n))
	fields = map[string]string{"query": text, "format": kind, "records": strconv.Itoa(n), "state": state}
	if recErr := s.event(ctx, audit.EventAuditExport, &v.session.Person, fields); recErr != nil {
		s.log.ErrorContext(ctx, "cannot record the end of an export", "error", recErr)
	}
	if err != nil {
		panic(http.ErrAbortHandler) // the reader must see that the file is not whole
	}
	return nil
}

func (s *Server) stream(ctx context.Context, w http.ResponseWriter, format string, q store.Query, page store.Page) (n int, whole bool, err error) {
	c := http.NewResponseController(w)
	e, err := export.New(format, w)
	if err != nil {
		return 0, false, err
	}
	for {
		if err := c.SetWriteDeadline(time.Now().Add(exportWrite)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return n, false, err
		}
		for i := range page.Rows {
			if n == maxExport {
				return n, false, e.Flush()
			}
			if err := e.Write(&page.Rows[i].Record); err != nil {
				return n, false, err
			}
			n++
		}
		if page.Next == "" {
			return n, !page.Partial, e.Flush() // partial: too many requests are open
		}
		q.After = page.Next
		if page, err = s.searchInTurn(ctx, q); err != nil {
			return n, false, err
		}
	}
}

// searchInTurn takes a place among those who ask the store for as long as it is
// asked: who reads a file slowly keeps nobody from the pages.
func (s *Server) searchInTurn(ctx context.Context, q store.Query) (store.Page, error) {
	release, err := s.limits.enter(ctx)
	if err != nil {
		return store.Page{}, err
	}
	defer release()
	return s.c.Store.Search(ctx, q)
}
