package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/control/trail"
	"github.com/attache-dev/attache/internal/reads"
)

// What a command in the pod reads is in this replica's own records before the
// command is answered; afterwards, and where records cannot be written, it is
// refused.
func TestReadsOfCommandsAreRecorded(t *testing.T) {
	dir, err := os.MkdirTemp("", "r") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket, own := filepath.Join(dir, "s"), filepath.Join(dir, "own")
	t.Setenv(reads.Env, socket)
	t.Setenv("POD_NAME", "attache-audit-0")
	h := &host{log: slog.New(slog.DiscardHandler)}
	if stop, err := h.serveReads(t.Context()); err != nil {
		t.Fatal(err)
	} else {
		stop()
	}
	if _, err := os.Stat(socket); err == nil {
		t.Error("a replica without records listens")
	}
	if h.trail, err = trail.Open(trail.Options{Dir: own, Replica: "attache-audit-0"}); err != nil {
		t.Fatal(err)
	}
	stop, err := h.serveReads(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	look := reads.Read{Event: audit.EventAuditQuery, Page: "attache audit search", Query: "owner:ana"}
	if err := reads.Tell(t.Context(), socket, look); err != nil {
		t.Fatal(err)
	}
	var got []map[string]string
	read := func() {
		got = nil
		f, err := audit.ParseFilter("event:audit.query", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := audit.Read(own, f, func(r audit.Record) bool { got = append(got, r.Event.Fields); return true }); err != nil {
			t.Fatal(err)
		}
	}
	if read(); len(got) != 1 || got[0]["by"] != "a command in pod attache-audit-0" || got[0]["query"] != "owner:ana" || got[0]["page"] != "attache audit search" {
		t.Errorf("recorded %v", got)
	}
	if err := h.trail.Close(); err != nil {
		t.Fatal(err)
	}
	if err := reads.Tell(t.Context(), socket, look); err == nil || !strings.Contains(err.Error(), "cannot be recorded") {
		t.Errorf("without room for a record: %v", err)
	}
	stop()
	if err := reads.Tell(t.Context(), socket, look); err == nil {
		t.Error("answered after the end")
	}
	if read(); len(got) != 1 {
		t.Errorf("recorded %v", got)
	}
}
