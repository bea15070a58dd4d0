package audit

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

const childEnv = "ATTACHE_AUDIT_TEST_SPOOL"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		childWriter(dir)
		return
	}
	os.Exit(m.Run())
}

// childWriter writes begins and ends until it is killed. It announces each id
// before its begin (I), and tells when begin (B), end (E) and whole records (D)
// have been acknowledged to it.
func childWriter(dir string) {
	s, err := Open(Options{Dir: dir, SegmentBytes: 32 << 10, MaxBytes: 256 << 20})
	if err != nil {
		fmt.Println("F", err)
		os.Exit(1)
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), uint64(time.Now().UnixNano()))) //nolint:gosec // a test's load
			var held []Ticket
			for {
				r := sample()
				r.ID = NewID()
				say("I", r.ID)
				if rnd.IntN(8) == 0 {
					if s.Deny(r) == nil {
						say("D", r.ID)
					}
					continue
				}
				tk, err := s.Begin(context.Background(), r)
				if err != nil {
					say("F", err.Error())
					return
				}
				say("B", r.ID)
				held = append(held, tk)
				for len(held) > rnd.IntN(5) {
					if held[0].End(ok200(), nil, nil, nil) == nil {
						say("E", held[0].ID())
					}
					held = held[1:]
				}
			}
		})
	}
	wg.Wait()
}

// say writes one line with one write(2), which a pipe keeps whole.
func say(what, id string) { _, _ = os.Stdout.WriteString(what + " " + id + "\n") }

// TestKill9 holds invariant 4: whatever the moment of the kill, each
// acknowledged begin is there exactly once, an acknowledged end with it, the
// rest is unknown, and nothing is there that was not asked for.
func TestKill9(t *testing.T) {
	dir := t.TempDir()
	said := map[string]map[string]bool{"I": {}, "B": {}, "E": {}, "D": {}}
	deadline := time.Now().Add(2 * time.Second)
	rounds := 0
	for ; rounds < 20 && time.Now().Before(deadline); rounds++ {
		killOnce(t, dir, said)
	}
	before := mustVerify(t, dir)
	for _, p := range before.Problems {
		if p.Kind != ProblemOpen && p.Kind != ProblemTruncated {
			t.Errorf("before recovery: %s", p)
		}
	}
	s := mustOpen(t, Options{Dir: dir})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	rep := wantWhole(t, dir)
	all := requests(t, dir)
	for id := range said["B"] {
		r, ok := all[id]
		switch {
		case !ok:
			t.Errorf("acknowledged begin %s is lost", id)
		case r.Type != TypeEnd:
			t.Errorf("%s is not finished", id)
		case said["E"][id] && r.Result.Outcome != OutcomeOK:
			t.Errorf("acknowledged end of %s is lost: %s", id, r.Result.Outcome)
		case r.Result.Outcome == OutcomeUnknown && r.Result.ErrorKind != "killed":
			t.Errorf("%s: %+v", id, r.Result)
		}
	}
	for id := range said["D"] {
		if all[id].Result == nil || all[id].Result.Outcome != OutcomeDenied {
			t.Errorf("acknowledged denial %s is lost", id)
		}
	}
	for id := range all {
		if !said["I"][id] {
			t.Errorf("record %s was never asked for", id)
		}
	}
	if rep.Unknown == 0 || len(said["E"]) == 0 || len(rep.Epochs) != rounds+1 {
		t.Errorf("%d rounds tested nothing: %s", rounds, rep.String())
	}
	t.Logf("%d kills, %d begins and %d ends acknowledged, %d unknown", rounds, len(said["B"]), len(said["E"]), rep.Unknown)
}

func killOnce(t *testing.T, dir string, said map[string]map[string]bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0]) //nolint:gosec // this test again
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for first := true; lines.Scan(); first = false {
		if first {
			wait := time.Duration(rand.IntN(60_000)) * time.Microsecond //nolint:gosec // any moment will do
			timer := time.AfterFunc(wait, func() { _ = cmd.Process.Kill() })
			defer timer.Stop()
		}
		what, id, _ := strings.Cut(lines.Text(), " ")
		if said[what] == nil {
			t.Fatalf("child: %s", lines.Text())
		}
		said[what][id] = true
	}
	_ = cmd.Wait() // it was killed
}
