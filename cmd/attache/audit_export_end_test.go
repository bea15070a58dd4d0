package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/internal/reads"
)

// An export whose end cannot be recorded has been made, and says so.
func TestExportWhoseEndIsNotRecorded(t *testing.T) {
	_, url := written(t, 1)
	dir, err := os.MkdirTemp("", "r") // short, as sockets' names are
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	ln, err := reads.Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	var told atomic.Int32
	s := &http.Server{Handler: reads.Handler("the pod", func(context.Context, *audit.Record) error { //nolint:gosec // a test
		if told.Add(1) > 1 {
			return errors.New("the disk is full")
		}
		return nil
	})}
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(func() { _ = s.Close() })
	t.Setenv(reads.Env, socket)
	out, _, err := separate(t, "audit", "export", "owner:ana", "--store", url)
	if err == nil || !strings.Contains(err.Error(), "the end of the export is not recorded") || strings.Contains(err.Error(), "nothing is") || strings.Count(out, "\n") != 1 {
		t.Errorf("%v\n%s", err, out)
	}
}

// -o - is standard output: nothing is said of a file.
func TestExportToStandardOutput(t *testing.T) {
	state, url := written(t, 1)
	out, told, err := separate(t, "audit", "export", "owner:ana", "--store", url, "--state", state, "-o", "-")
	if err != nil || told != "" || strings.Count(out, "\n") != 1 {
		t.Errorf("%v %q\n%s", err, told, out)
	}
}

// An export that open requests had to be left out of is kept, and does not pass for
// a whole one.
func TestExportWithoutSomeOpenRequests(t *testing.T) {
	state, url := written(t, 1)
	db, err := store.Open(t.Context(), url, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for n := range uint64(70) { // more than one question reads
		text := fmt.Appendf(nil, `{"schema":%q,"type":"begin","id":"r%d","epoch":"e1","sequence":%d,"time":"2026-03-01T12:00:00Z","request":{"path":%q}}`,
			audit.SchemaVersion, n, n+1, strings.Repeat("/x", 500_000))
		if _, err := db.Append(t.Context(), store.Producer{ID: "p"}, []audit.Line{{Epoch: "e1", Sequence: n + 1, JSON: text}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "out.jsonl")
	_, told, err := separate(t, "audit", "export", "--store", url, "--state", state, "-o", file)
	if !errors.Is(err, store.ErrOpen) || strings.Contains(told, "records in") {
		t.Errorf("%v %q", err, told)
	}
	if b, err := os.ReadFile(file); err != nil || bytes.Count(b, []byte("\n")) < 60 {
		t.Errorf("%d bytes are kept, %v", len(b), err)
	}
	out, _, err := separate(t, "audit", "search", "event:audit.export", "--state", state, "-o", "json")
	if err != nil || !strings.Contains(out, "without some open requests") {
		t.Errorf("the record of the export does not say it: %v\n%s", err, out)
	}
}
