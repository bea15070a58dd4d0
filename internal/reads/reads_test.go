package reads_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/internal/reads"
)

// serve records what is told at a socket.
func serve(t *testing.T, write func(*audit.Record) error) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "r") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	at := filepath.Join(dir, "s")
	ln, err := reads.Listen(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: reads.Handler("a command in pod x", func(_ context.Context, r *audit.Record) error { return write(r) })} //nolint:gosec // a test
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(ln) }()
	t.Cleanup(func() { _ = s.Close(); <-done })
	return at
}

func TestTell(t *testing.T) {
	var got []audit.Record
	var fails error
	at := serve(t, func(r *audit.Record) error { got = append(got, *r); return fails })
	if fi, err := os.Stat(at); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v: %v", err, fi.Mode())
	}
	in := reads.Read{Event: audit.EventAuditExport, Page: "attache audit export", Query: "owner:ana", Format: "csv", Records: "17", State: "whole"}
	if err := reads.Tell(t.Context(), at, in); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"by": "a command in pod x", "page": "attache audit export", "query": "owner:ana", "format": "csv", "records": "17", "state": "whole", "namespaces": "all namespaces"}
	if len(got) != 1 || got[0].Event.Name != audit.EventAuditExport || got[0].ID == "" || cmp.Diff(want, got[0].Event.Fields) != "" {
		t.Errorf("got %+v", got)
	}
	if err := reads.Tell(t.Context(), at, reads.Read{Event: audit.EventAuditQuery, Page: "p", Query: strings.Repeat("é", 4000)}); err != nil {
		t.Errorf("a long query: %v", err)
	}
	fails = errors.New("the disk is full")
	if err := reads.Tell(t.Context(), at, in); err == nil || !strings.Contains(err.Error(), "cannot be recorded") || strings.Contains(err.Error(), "disk") {
		t.Errorf("a full spool: %v", err)
	}
	for _, bad := range []reads.Read{{Page: "p"}, {Event: audit.EventLoginOK, Page: "p"}, {Event: audit.EventAuditQuery}} {
		if err := reads.Tell(t.Context(), at, bad); err == nil || !strings.Contains(err.Error(), "400") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if len(got) != 3 {
		t.Errorf("%d records", len(got))
	}
	if err := reads.Tell(t.Context(), at+"x", in); err == nil {
		t.Error("nobody is there")
	}
}

// A socket that a killed process left is replaced; a file is not.
func TestListen(t *testing.T) {
	at := serve(t, nil)
	ln, err := reads.Listen(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	if err := os.WriteFile(at, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := reads.Listen(t.Context(), at); err == nil {
		t.Error("a file was replaced")
	}
	if _, err := reads.Listen(t.Context(), filepath.Join(at, "none")); err == nil {
		t.Error("a folder that is not there")
	}
}

// FuzzHandler: whatever is sent, what is recorded is a reading, by whom the
// server says.
func FuzzHandler(f *testing.F) {
	f.Add([]byte(`{"event":"audit.query","page":"p","query":"owner:ana"}`))
	f.Add([]byte(`{"event":"login.ok","page":"p","by":"root"}`))
	f.Add([]byte(`{"event":"audit.query","page":"p"}{`))
	f.Fuzz(func(t *testing.T, body []byte) {
		n := 0
		h := reads.Handler("the pod", func(_ context.Context, r *audit.Record) error {
			n++
			e := r.Event
			if e.Name != audit.EventAuditQuery && e.Name != audit.EventAuditExport || e.Fields["by"] != "the pod" || e.Fields["page"] == "" || len(e.Fields) > 7 {
				t.Errorf("recorded %+v", e)
			}
			return nil
		})
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, reads.Path, bytes.NewReader(body)))
		if (w.Code == http.StatusNoContent) != (n == 1) || w.Code != http.StatusNoContent && w.Code != http.StatusBadRequest {
			t.Errorf("%d, %d records", w.Code, n)
		}
	})
}
