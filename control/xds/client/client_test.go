package client_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/control/xds"
	"github.com/attache-dev/attache/control/xds/client"
	"github.com/attache-dev/attache/control/xds/xdstest"
)

const patience = 2 * time.Minute

// sidecar is a client and what it was told, in order.
type sidecar struct {
	*client.Client
	events chan string
	stop   func() error
}

func start(t *testing.T, ca *xdstest.Authority, addr, uid string, refuse func(*controlpb.Bundle) error, more ...func(*client.Config)) *sidecar {
	t.Helper()
	s := &sidecar{events: make(chan string, 1000)}
	svid := ca.SVID("team", "agent", uid, time.Now().Add(time.Hour))
	c := client.Config{
		Target: addr, PodUID: uid, TLS: ca.Client(svid), MinWait: time.Millisecond, MaxWait: 50 * time.Millisecond, Heartbeat: time.Hour,
		Apply: func(b *controlpb.Bundle) error {
			if refuse != nil {
				if err := refuse(b); err != nil {
					s.events <- "refused " + string(b.GetDocuments())
					return err
				}
			}
			s.events <- "applied " + string(b.GetDocuments())
			return nil
		},
		Revoke: func(r *controlpb.Revocation) { s.events <- "revoked " + r.GetId() },
	}
	for _, f := range more {
		f(&c)
	}
	cl, err := client.New(c)
	if err != nil {
		t.Fatal(err)
	}
	s.Client = cl
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- cl.Run(ctx) }()
	s.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = s.stop() })
	return s
}

func (s *sidecar) expect(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case got := <-s.events:
			if got != w {
				t.Fatalf("%s, want %s", got, w)
			}
		case <-time.After(patience):
			t.Fatalf("never %s", w)
		}
	}
}

func text(s string) *xds.Bundle {
	return &xds.Bundle{Documents: []byte(s), Workload: &controlpb.Workload{Namespace: "team"}}
}

func until(t *testing.T, s *xds.Server, what string, ok func(map[string]xds.Ack) bool) {
	t.Helper()
	deadline := time.After(patience)
	for !ok(s.Acks()) {
		select {
		case <-s.Changed():
		case <-time.After(10 * time.Millisecond): // a heartbeat is no change
		case <-deadline:
			t.Fatalf("never became so: %s; %v", what, s.Acks())
		}
	}
}

// Bundles are applied or refused, the last good one stays, and what the
// sidecar said arrives.
func TestApplyAndRefuse(t *testing.T) {
	s := xds.New(xds.Config{})
	ca := xdstest.NewAuthority(t)
	addr, _ := ca.Serve("", s.Register)
	if err := s.SetRevocations([]*controlpb.Revocation{{Id: "r1", Task: "t"}}); err != nil {
		t.Fatal(err)
	}
	s.Set(map[string]*xds.Bundle{"mine": text("good")})
	c := start(t, ca, addr, "mine", func(b *controlpb.Bundle) error {
		if strings.HasPrefix(string(b.GetDocuments()), "bad") {
			return errors.New("line 1 is bad")
		}
		return nil
	})
	c.expect(t, "revoked r1", "applied good")
	until(t, s, "acknowledged", func(a map[string]xds.Ack) bool { return a["mine"].Bundle != nil && a["mine"].Revocations["r1"] })
	version := c.Version()
	s.Set(map[string]*xds.Bundle{"mine": text("bad")})
	c.expect(t, "refused bad")
	until(t, s, "refused", func(a map[string]xds.Ack) bool { return a["mine"].Nack == "line 1 is bad" })
	if c.Version() != version || version == "" {
		t.Errorf("version is %q, was %q", c.Version(), version)
	}
	s.Set(map[string]*xds.Bundle{"mine": text("better")})
	c.expect(t, "applied better")
	until(t, s, "accepted", func(a map[string]xds.Ack) bool { return a["mine"].Nack == "" })
}

// A client that loses one replica goes to another (or the same, started
// anew), is sent nothing again, and hears the next change.
func TestResumesWithoutResend(t *testing.T) {
	ca := xdstest.NewAuthority(t)
	replica := func(addr string) (*xds.Server, string, func()) {
		s := xds.New(xds.Config{})
		s.Set(map[string]*xds.Bundle{"mine": text("one")})
		if err := s.SetRevocations([]*controlpb.Revocation{{Id: "r1", Task: "t"}}); err != nil {
			t.Fatal(err)
		}
		addr, stop := ca.Serve(addr, s.Register)
		return s, addr, func() { s.Close(); stop() }
	}
	a, addr, stop := replica("")
	c := start(t, ca, addr, "mine", nil)
	c.expect(t, "revoked r1", "applied one")
	until(t, a, "acknowledged", func(m map[string]xds.Ack) bool { return m["mine"].Bundle != nil && m["mine"].Revocations["r1"] })
	first := c.Fresh()
	stop()
	b, _, _ := replica(addr)
	until(t, b, "back", func(m map[string]xds.Ack) bool { return m["mine"].Bundle != nil && m["mine"].Revocations["r1"] })
	b.Set(map[string]*xds.Bundle{"mine": text("two")})
	c.expect(t, "applied two") // and nothing before it
	if !c.Fresh().After(first) || time.Since(c.Fresh()) > patience {
		t.Errorf("fresh at %v, at first %v", c.Fresh(), first)
	}
}

// Heartbeats keep a policy fresh on a quiet stream; a server that does not
// trust itself lets it age.
func TestHeartbeatsKeepFresh(t *testing.T) {
	current := make(chan bool, 1)
	current <- true
	s := xds.New(xds.Config{Current: func() bool { v := <-current; current <- v; return v }})
	ca := xdstest.NewAuthority(t)
	addr, _ := ca.Serve("", s.Register)
	c := start(t, ca, addr, "mine", nil, func(c *client.Config) { c.Heartbeat = 200 * time.Millisecond })
	if !c.Fresh().IsZero() {
		t.Error("fresh before anything came")
	}
	s.Set(map[string]*xds.Bundle{"mine": text("one")})
	c.expect(t, "applied one")
	at := c.Fresh()
	until(t, s, "heartbeats", func(map[string]xds.Ack) bool {
		return c.Fresh().After(at.Add(30*time.Millisecond)) || time.Since(at) > patience
	})
	<-current
	current <- false
	// A client that is answered nothing leaves, and comes back: opened counts.
	heard := s.Acks()["mine"].Heard
	until(t, s, "reconnected", func(a map[string]xds.Ack) bool { return a["mine"].Heard.After(heard.Add(100 * time.Millisecond)) })
	if age := time.Since(c.Fresh()); age < 20*time.Millisecond {
		t.Errorf("still fresh after %v", age)
	}
}

// Nothing is left running after Run.
func TestNoGoroutineLeft(t *testing.T) {
	s := xds.New(xds.Config{})
	ca := xdstest.NewAuthority(t)
	addr, stop := ca.Serve("", s.Register)
	s.Set(map[string]*xds.Bundle{"mine": text("one")})
	before := runtime.NumGoroutine()
	for range 5 {
		c := start(t, ca, addr, "mine", nil)
		c.expect(t, "applied one")
		if err := c.stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	}
	stop()
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > before && time.Now().Before(deadline) {
		runtime.Gosched()
	}
	if n := runtime.NumGoroutine(); n > before {
		buf := make([]byte, 1<<16)
		t.Errorf("%d goroutines before, %d after\n%s", before, n, buf[:runtime.Stack(buf, true)])
	}
}

func TestConfig(t *testing.T) {
	if _, err := client.New(client.Config{Target: "x", TLS: &tls.Config{MinVersion: tls.VersionTLS13}}); err == nil {
		t.Error("a client that applies nothing was made")
	}
}

// Hundreds of sidecars, each with its own certificate and bundle, get a change
// of theirs and of nobody else's.
func TestHundredsOfStreams(t *testing.T) {
	const n = 200
	s := xds.New(xds.Config{})
	ca := xdstest.NewAuthority(t)
	addr, _ := ca.Serve("", s.Register)
	set := func(generation int) {
		bundles := map[string]*xds.Bundle{}
		shared := []byte(strings.Repeat("x", 4096)) // as documents of a namespace are
		for i := range n {
			uid := fmt.Sprint("pod-", i)
			bundles[uid] = &xds.Bundle{Documents: shared, Workload: &controlpb.Workload{PodUid: uid, Posture: map[string]string{"g": fmt.Sprint(generation)}}}
		}
		s.Set(bundles)
	}
	set(1)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	started := time.Now()
	type got struct{ uid, of, generation string }
	events := make(chan got, 10*n)
	for i := range n {
		uid := fmt.Sprint("pod-", i)
		start(t, ca, addr, uid, nil, func(c *client.Config) {
			c.Apply = func(b *controlpb.Bundle) error {
				events <- got{uid, b.GetWorkload().GetPodUid(), b.GetWorkload().GetPosture()["g"]}
				return nil
			}
		})
	}
	round := func(generation string) {
		seen := map[string]bool{}
		for len(seen) < n {
			select {
			case e := <-events:
				if e.uid != e.of || e.generation != generation || seen[e.uid] {
					t.Fatalf("%+v in round %s", e, generation)
				}
				seen[e.uid] = true
			case <-time.After(patience):
				t.Fatalf("%d of %d were told", len(seen), n)
			}
		}
	}
	round("1")
	connected := time.Since(started)
	until(t, s, "all acknowledged", func(a map[string]xds.Ack) bool {
		done := 0
		for _, v := range a {
			if v.Bundle != nil {
				done++
			}
		}
		return done == n
	})
	runtime.GC()
	runtime.ReadMemStats(&after)
	started = time.Now()
	set(2)
	round("2")
	pushed := time.Since(started)
	if err := s.SetRevocations([]*controlpb.Revocation{{Id: "r", Owner: "o"}}); err != nil {
		t.Fatal(err)
	}
	started = time.Now()
	until(t, s, "all revoked", func(a map[string]xds.Ack) bool {
		done := 0
		for _, v := range a {
			if v.Revocations["r"] {
				done++
			}
		}
		return done == n
	})
	t.Logf("%d streams: connected in %v, a change of all pushed in %v, a revocation acknowledged by all in %v, %d KiB a stream (both ends)",
		n, connected.Round(time.Millisecond), pushed.Round(time.Millisecond), time.Since(started).Round(time.Millisecond),
		(int64(after.HeapInuse+after.StackInuse)-int64(before.HeapInuse+before.StackInuse))/1024/n)
}
