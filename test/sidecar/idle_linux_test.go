package sidecar

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Bounds of an idle pod. The memory limit of a sidecar is 256 MiB by default.
const (
	idleGoal  = 120 << 10 // KiB for 10,000 connections
	idleFew   = 1000
	idleMany  = 10000
	idleShare = 16 // KiB for each of a few, beyond what none cost
)

// TestIdle holds connections that were intercepted and have served a call, and
// looks at the resident memory of the sidecar. ATTACHE_TEST_IDLE=10000 (make
// bench-idle) is the goal; fewer show that the share of each is right.
func TestIdle(t *testing.T) {
	if !inWorld(t) {
		return
	}
	n := idleFew
	if s := os.Getenv("ATTACHE_TEST_IDLE"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	p := startPod(t, newWorld(t), "transparent")
	// What the first calls touch is there before we measure.
	if out, err := p.run(t, "curl", "-sS", "https://"+apiName+"/warm"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	base := p.rss()
	c := p.podCommand(agentUID, p.self(), "agent", "idle", strconv.Itoa(n), stranger4+":443", apiName, p.path("trust/bundle/ca.pem"))
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Process.Kill(); _ = c.Wait() }()
	out := bufio.NewReader(stdout)
	if line, _ := out.ReadString('\n'); line != fmt.Sprintf("idle %d\n", n) {
		t.Fatalf("%s\n%s", line, p.tail())
	}
	opened := time.Since(start)
	goal := base + n*idleShare
	if n >= idleMany {
		goal = idleGoal
	}
	rss := p.settled(goal)
	t.Logf("%d idle connections (opened in %.1f s): %.1f MiB resident, %.1f without; %.2f KiB each", n, opened.Seconds(), float64(rss)/1024, float64(base)/1024, float64(rss-base)/float64(n))
	if rss > goal {
		t.Errorf("%d idle connections take %d KiB, want at most %d", n, rss, goal)
	}
	_ = in.Close()
	if line, _ := out.ReadString('\n'); line != "alive\n" {
		t.Errorf("%s\n%s", line, p.tail())
	}
}

// settled is the sidecar's resident memory in KiB once it is at most goal, or
// has not become so: what a burst leaves is given back within half a minute.
func (p *pod) settled(goal int) int {
	p.t.Helper()
	for end := time.Now().Add(2 * patience); time.Now().Before(end); time.Sleep(250 * time.Millisecond) {
		if p.rss() <= goal {
			break
		}
	}
	return p.rss()
}

func (p *pod) rss() int {
	p.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		p.t.Fatal(err)
	}
	return n
}
