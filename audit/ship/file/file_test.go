package file

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/audit/ship/form"
	"github.com/attache-dev/attache/audit/ship/internal/sinktest"
)

func TestMain(m *testing.M) {
	sinktest.Main(m, func(dir string) (ship.Sink, error) {
		return New(Options{Path: filepath.Join(dir, "out", "records.jsonl"), MaxBytes: 64 << 10})
	})
}

// events are the lines of all files, the renamed ones too.
func events(t *testing.T, dir string) [][]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "out", "records*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in %s: %v", dir, err)
	}
	var all [][]byte
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 0 && !bytes.HasSuffix(b, []byte{'\n'}) {
			t.Errorf("%s has a torn last line", f)
		}
		for l := range bytes.Lines(b) {
			all = append(all, bytes.TrimSuffix(l, []byte{'\n'}))
		}
	}
	return all
}

// TestKill9: whatever the moment of the kill, each request is there at least
// once and whole, and no line is torn.
func TestKill9(t *testing.T) {
	dir := t.TempDir()
	sinktest.Killed(t, dir, 6)
	t.Logf("%d came more than once", sinktest.Whole(t, dir, events(t, dir)))
}

func sink(t *testing.T, o Options) *Sink {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// TestGoneAndBack: the folder cannot be written for a time; nothing is lost.
func TestGoneAndBack(t *testing.T) {
	out := t.TempDir()
	blocked := filepath.Join(out, "out")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil { // where the folder should be
		t.Fatal(err)
	}
	s := sink(t, Options{Path: filepath.Join(blocked, "records.jsonl")})
	dir := sinktest.Shipped(t, s, 50, func() {
		if err := os.Remove(blocked); err != nil {
			t.Error(err)
		}
	})
	sinktest.Whole(t, dir, events(t, out))
}

func batch(t *testing.T, from, n uint64) ship.Batch {
	b := ship.Batch{Producer: "pod-1"}
	for i := range n {
		b.Lines = append(b.Lines, sinktest.Line(t, "e1", from+i, audit.Record{Type: audit.TypeEnd, ID: audit.NewID(), Request: &audit.Request{Host: "h", Path: "/"}, Result: &audit.Result{Outcome: audit.OutcomeOK}}))
	}
	return b
}

func send(t *testing.T, s *Sink, b ship.Batch) {
	t.Helper()
	if err := s.Send(context.Background(), b); err != nil {
		t.Fatal(err)
	}
}

// TestATornLineIsCut: what a killed process left half-written is cut off, and
// what is whole stays.
func TestATornLineIsCut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out", "records.jsonl")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("{\"a\":1}\n{\"b\":"+strings.Repeat("x", 200<<10)), 0o600); err != nil {
		t.Fatal(err)
	}
	s := sink(t, Options{Path: path})
	send(t, s, batch(t, 1, 1))
	b, err := os.ReadFile(path)
	if err != nil || !bytes.HasPrefix(b, []byte("{\"a\":1}\n{\"action")) {
		t.Errorf("file begins with %.40q, %v", b, err)
	}
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := sink(t, Options{Path: filepath.Join(dir, "out", "records.jsonl"), MaxBytes: 8 << 10, MaxAge: time.Hour, Keep: 2, now: func() time.Time { return now }})
	for i := range uint64(40) {
		send(t, s, batch(t, i+1, 2))
		now = now.Add(time.Second)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "out", "records*"))
	if len(files) != 3 {
		t.Errorf("%d files, want the present one and 2 renamed ones: %v", len(files), files)
	}
	for _, f := range files {
		if st, err := os.Stat(f); err != nil || st.Size() > 8<<10 || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, st, err)
		}
	}
	now = now.Add(2 * time.Hour)
	send(t, s, batch(t, 100, 1))
	if got := len(events(t, dir)); got == 0 {
		t.Error("nothing there")
	}
	b, err := os.ReadFile(filepath.Join(dir, "out", "records.jsonl"))
	if err != nil || bytes.Count(b, []byte{'\n'}) != 1 {
		t.Errorf("an old file was not renamed: %d lines, %v", bytes.Count(b, []byte{'\n'}), err)
	}
}

// TestMovedAway: logrotate renames the file; the next lines are in a new one.
func TestMovedAway(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out", "records.jsonl")
	s := sink(t, Options{Path: path})
	send(t, s, batch(t, 1, 1))
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	send(t, s, batch(t, 2, 1))
	if got := len(events(t, dir)); got != 2 {
		t.Errorf("%d events, want 2", got)
	}
}

func TestPartialFailure(t *testing.T) {
	dir := t.TempDir()
	s := sink(t, Options{Path: filepath.Join(dir, "out", "records.jsonl")})
	b := batch(t, 1, 3)
	b.Lines[1].JSON = []byte(`{"time":17}`)
	var rejected *ship.RejectedError
	if err := s.Send(t.Context(), b); !errors.As(err, &rejected) || len(rejected.Lines) != 1 || rejected.Lines[0].Sequence != 2 {
		t.Fatalf("got %v; want line 2 refused", err)
	}
	if got := len(events(t, dir)); got != 2 {
		t.Errorf("%d events, want the other 2", got)
	}
}

func TestTwoProcesses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.jsonl")
	send(t, sink(t, Options{Path: path}), batch(t, 1, 1))
	if err := sink(t, Options{Path: path}).Send(t.Context(), batch(t, 2, 1)); err == nil || !strings.Contains(err.Error(), Producer) {
		t.Errorf("a second writer got %v; want advice to use %s", err, Producer)
	}
	p := filepath.Join(filepath.Dir(path), Producer+".jsonl")
	s := sink(t, Options{Path: p, Format: form.Lines})
	send(t, s, ship.Batch{Producer: "../evil/x", Lines: batch(t, 1, 1).Lines})
	if _, err := os.Stat(filepath.Join(filepath.Dir(path), "___evil_x.jsonl")); err != nil {
		t.Error(err)
	}
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]Options{"relative": {Path: "x"}, "none": {}, "format": {Path: "/x", Format: "yaml"}} {
		if _, err := New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
