// Package sinktest holds every sink to what a sink must do: each record at
// least once and whole, however often the process is killed, and the receiver
// away for a time.
package sinktest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ship"
)

const (
	envDir   = "ATTACHE_SINKTEST_DIR"
	envCount = "ATTACHE_SINKTEST_COUNT"
	host     = "upstream.example.com"
)

// Main runs the tests, or, as the child of [Killed], the writer and shipper that
// will be killed. A package's TestMain calls it.
func Main(m *testing.M, sink func(dir string) (ship.Sink, error)) {
	dir := os.Getenv(envDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	count, err := strconv.Atoi(os.Getenv(envCount))
	if err == nil {
		err = child(dir, count, sink)
	}
	if err != nil {
		fmt.Println("FAILED", err)
		os.Exit(1)
	}
	fmt.Println("DONE")
}

// child writes requests and ships them: count of them, then everything is
// delivered; -1: until it is killed.
func child(dir string, count int, open func(string) (ship.Sink, error)) error {
	sink, err := open(dir)
	if err != nil {
		return err
	}
	s, g, err := start(dir, sink)
	if err != nil {
		return err
	}
	for i := 0; count < 0 || i < count; i++ {
		if err := Request(s, i); err != nil {
			return err
		}
		if i%10 == 0 {
			fmt.Println("WROTE", i)
		}
	}
	return finish(s, g)
}

func start(dir string, sink ship.Sink) (*audit.Spool, *ship.Group, error) {
	s, err := audit.Open(audit.Options{Dir: filepath.Join(dir, "spool"), SegmentBytes: 64 << 10, MaxBytes: 512 << 20, Keep: time.Hour, KeepBytes: 512 << 20, Producer: "pod-1"})
	if err != nil {
		return nil, nil, err
	}
	g, err := ship.Start(s, []ship.Sink{sink}, ship.Options{MinWait: time.Millisecond, MaxWait: 20 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	return s, g, err
}

func finish(s *audit.Spool, g *ship.Group) error {
	if err := s.Close(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return g.Close(ctx)
}

// Request writes one request: every fifth is denied, in one line.
func Request(s *audit.Spool, i int) error {
	r := &audit.Record{
		ID: audit.NewID(), Request: &audit.Request{Host: host, Method: "GET", Path: "/" + strconv.Itoa(i), Port: 443, Scheme: "https"},
		Workload: &audit.Workload{ID: "spiffe://local/agent/test"}, Decision: &audit.Decision{Verdict: "allow"},
	}
	if i%5 == 4 {
		return s.Deny(r)
	}
	t, err := s.Begin(context.Background(), r)
	if err != nil {
		return err
	}
	return t.End(&audit.Result{Outcome: audit.OutcomeOK, Status: 200}, nil, nil, nil)
}

// Shipped writes n requests and ships them by sink, until everything is
// delivered. during is called after they are written.
func Shipped(t *testing.T, sink ship.Sink, n int, during func()) (dir string) {
	t.Helper()
	dir = t.TempDir()
	s, g, err := start(dir, sink)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if err := Request(s, i); err != nil {
			t.Fatal(err)
		}
	}
	if during != nil {
		during()
	}
	if err := finish(s, g); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Killed runs rounds of a process that writes and ships until it is killed, and
// one that ends in good order. env is added to its environment.
func Killed(t *testing.T, dir string, rounds int, env ...string) {
	t.Helper()
	for i := range rounds + 1 {
		count, last := "-1", i == rounds
		if last {
			count = "20"
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
		cmd.Env = append(append(os.Environ(), env...), envDir+"="+dir, envCount+"="+count)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines, done := 0, false
		for s := bufio.NewScanner(out); s.Scan(); {
			if strings.HasPrefix(s.Text(), "FAILED") {
				t.Fatal(s.Text())
			}
			done = done || s.Text() == "DONE"
			if lines++; !last && lines == 3+2*i { // somewhere in its work, another place each time
				_ = cmd.Process.Kill()
				break
			}
		}
		err = cmd.Wait()
		if last && (err != nil || !done) {
			t.Fatalf("the last process: %v", err)
		}
	}
}

// Whole compares what a receiver has, OCSF events as JSON, with the spool in
// dir: each request at least once and whole, nothing invented. It returns how
// many came more than once.
func Whole(t *testing.T, dir string, events [][]byte) (repeated int) {
	t.Helper()
	want := map[string]audit.Record{}
	err := audit.Read(filepath.Join(dir, "spool"), audit.Filter{}, func(r audit.Record) bool {
		want[r.ID] = r
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]int{}
	for _, e := range events {
		var x struct {
			Metadata struct {
				UID string `json:"uid"`
			} `json:"metadata"`
			ClassUID int `json:"class_uid"`
			Request  struct {
				URL struct {
					Hostname string `json:"hostname"`
				} `json:"url"`
			} `json:"http_request"`
			Unmapped struct {
				Outcome string `json:"outcome"`
			} `json:"unmapped"`
		}
		if err := json.Unmarshal(e, &x); err != nil {
			t.Fatalf("%v in %q", err, e)
		}
		if x.ClassUID != 6003 {
			continue
		}
		r, ok := want[x.Metadata.UID]
		if !ok {
			t.Fatalf("%s came and was never written", x.Metadata.UID)
		}
		if x.Request.URL.Hostname != host || x.Unmapped.Outcome != r.Result.Outcome {
			t.Errorf("%s is not whole: %s", r.ID, e)
		}
		have[r.ID]++
	}
	requests := 0
	for id, r := range want {
		if r.Event != nil {
			continue
		}
		requests++
		switch n := have[id]; {
		case n == 0:
			t.Errorf("%s (%s, %s/%d) is lost", id, r.Result.Outcome, r.Epoch, r.Sequence)
		case n > 1:
			repeated++
		}
	}
	if requests < 10 {
		t.Fatalf("%d requests in the spool", requests)
	}
	return repeated
}

// Line makes a line of a record, as the first of its epoch.
func Line(t *testing.T, epoch string, sequence uint64, r audit.Record) audit.Line {
	t.Helper()
	r.Schema, r.Epoch, r.Sequence = audit.SchemaVersion, epoch, sequence
	if r.Time.IsZero() {
		r.Time = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	}
	return audit.Line{Epoch: epoch, Sequence: sequence, JSON: r.AppendJSON(nil)}
}
