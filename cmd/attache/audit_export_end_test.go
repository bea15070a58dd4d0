package main

import (
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
func TestWhatIsKeptOfAnExport(t *testing.T) {
	for _, x := range []struct {
		err   error
		keep  bool
		state string
	}{
		{nil, true, "whole"},
		{fmt.Errorf("a spool: %w", audit.ErrDamaged), true, "without damaged lines"},
		{fmt.Errorf("%w: some are missing", store.ErrOpen), true, "without some open requests"},
		{errors.New("the disk is full"), false, "broken off"},
	} {
		if keep, state := exported(x.err); keep != x.keep || state != x.state {
			t.Errorf("%v: %v, %q", x.err, keep, state)
		}
	}
}
