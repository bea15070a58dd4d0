package ui

import (
	"bufio"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ocsf"
	"github.com/attache-dev/attache/audit/store"
)

const (
	maxExport   = 100_000 // records of one file
	exportLimit = 5 * time.Minute
	exportWrite = 30 * time.Second // of one page to a slow reader
)

// encoder writes records to a file.
type encoder interface {
	begin() error
	record(*audit.Record) error
	end() error
}

// export streams what a query finds as a file: newest first, at most maxExport
// records. It is recorded before it begins, and again with what was given.
func (s *Server) export(w http.ResponseWriter, r *http.Request, v *visit) error {
	if v.audit.Empty() {
		return errForbidden
	}
	text, kind := strings.TrimSpace(r.URL.Query().Get("q")), r.URL.Query().Get("format")
	enc, mime, ext := encoderOf(kind)
	if enc == nil {
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
	h.Set("Content-Type", mime)
	h.Set("Content-Disposition", fmt.Sprintf(`attachment; filename="attache-audit-%s.%s"`, s.now().Format("20060102-150405"), ext))
	h.Set("Trailer", "Attache-Export")
	n, whole, err := s.stream(ctx, w, enc(w), q, page)
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

func (s *Server) stream(ctx context.Context, w http.ResponseWriter, e encoder, q store.Query, page store.Page) (n int, whole bool, err error) {
	c := http.NewResponseController(w)
	if err := e.begin(); err != nil {
		return 0, false, err
	}
	for {
		if err := c.SetWriteDeadline(time.Now().Add(exportWrite)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return n, false, err
		}
		for i := range page.Rows {
			if n == maxExport {
				return n, false, e.end()
			}
			if err := e.record(&page.Rows[i].Record); err != nil {
				return n, false, err
			}
			n++
		}
		if page.Next == "" {
			return n, true, e.end()
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

func encoderOf(kind string) (enc func(io.Writer) encoder, mime, ext string) {
	switch kind {
	case "csv":
		return func(w io.Writer) encoder { return &csvEncoder{w: csv.NewWriter(w)} }, "text/csv; charset=utf-8; header=present", "csv"
	case "json":
		return func(w io.Writer) encoder { return &jsonEncoder{w: bufio.NewWriter(w)} }, "application/jsonl; charset=utf-8", "jsonl"
	case "ocsf":
		return func(w io.Writer) encoder { return &ocsfEncoder{w: bufio.NewWriter(w)} }, "application/jsonl; charset=utf-8", "ocsf.jsonl"
	default:
		return nil, "", ""
	}
}

// jsonEncoder writes a record a line, as the spool has them, joined.
type jsonEncoder struct{ w *bufio.Writer }

func (e *jsonEncoder) begin() error { return nil }

func (e *jsonEncoder) record(r *audit.Record) error {
	_, err := e.w.Write(append(r.AppendJSON(nil), '\n'))
	return err
}

func (e *jsonEncoder) end() error { return e.w.Flush() }

// ocsfEncoder writes the events of each record in the Open Cybersecurity Schema.
type ocsfEncoder struct {
	w   *bufio.Writer
	buf []byte
}

func (e *ocsfEncoder) begin() error { return nil }

func (e *ocsfEncoder) record(r *audit.Record) (err error) {
	if e.buf, err = ocsf.AppendJSON(e.buf[:0], r); err != nil {
		return err
	}
	_, err = e.w.Write(e.buf)
	return err
}

func (e *ocsfEncoder) end() error { return e.w.Flush() }

// csvEncoder writes a table for spreadsheets. No cell can become a formula.
type csvEncoder struct{ w *csv.Writer }

func csvColumns() []string {
	return []string{"time", "id", "outcome", "verdict", "agent", "namespace", "owner", "human", "task", "purpose", "method", "host", "path", "resources", "policy", "rule", "version", "reason",
		"credential", "provider", "status", "bytes_up", "bytes_down", "upstream_request_id", "event", "event_fields", "epoch", "sequence"}
}

func (e *csvEncoder) begin() error { return e.w.Write(csvColumns()) }

func (e *csvEncoder) record(r *audit.Record) error {
	row := rowOf(r)
	cells := []string{r.Time.UTC().Format(time.RFC3339Nano), r.ID, row.Outcome.Text}
	add := func(l ...string) { cells = append(cells, l...) }
	d, wl, u, q, t, res, ev := or(r.Decision), or(r.Workload), or(r.Credential), or(r.Request), or(r.Task), or(r.Result), or(r.Event)
	add(d.Verdict, wl.ID, wl.Namespace, r.Owner, row.Human, t.ID, t.Purpose, row.Method, q.Host, q.Path, strings.Join(or(u.AWS).Resources, " "), d.Policy, d.Rule, d.Version, d.Reason, u.Handle, u.Provider)
	add(row.Status, strconv.FormatInt(res.BytesUp, 10), strconv.FormatInt(res.BytesDown, 10), res.UpstreamRequestID, ev.Name)
	var fields []string
	for _, f := range row.Fields {
		fields = append(fields, f.Key+"="+f.Value)
	}
	add(strings.Join(fields, " "), r.Epoch, strconv.FormatUint(r.Sequence, 10))
	for i := range cells {
		cells[i] = cell(cells[i])
	}
	return e.w.Write(cells)
}

func (e *csvEncoder) end() error {
	e.w.Flush()
	return e.w.Error()
}

// cell makes a text harmless for spreadsheets: what they would take for a
// formula gets an apostrophe in front (OWASP, CSV injection), and controls are
// shown as escapes.
func cell(s string) string {
	s = audit.Safe(s)
	if s == "" {
		return s
	}
	switch r := []rune(s)[0]; r {
	case '=', '+', '-', '@', '\'', '|', '%', '＝', '＋', '－', '＠':
		return "'" + s
	}
	return s
}

// or returns *p, or a zero value.
func or[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
