package pipeline_test

import (
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/proxy"
	"github.com/attache-dev/attache/proxy/destination"
	"github.com/attache-dev/attache/proxy/pipeline"
)

// A policy that is too old allows nothing, whatever it says: no call, no
// tunnel, no byte. What was denied is recorded.
func TestStalePolicy(t *testing.T) {
	var stale error
	r := newRig(t, settings{transport: func(c *pipeline.Config) { c.Stale = func() error { return stale } }})
	r.serve(func(http.ResponseWriter, *http.Request) {})
	if got := r.do(r.client(false), http.MethodGet, "https://api.test/", nil); got.StatusCode != http.StatusOK {
		t.Fatalf("while it is fresh: %d %s", got.StatusCode, got.body)
	}
	r.record()
	stale = errors.New("the control plane was last heard of 16m ago")
	requests := r.requests.Load()
	got := r.do(r.client(false), http.MethodGet, "https://api.test/", nil)
	if got.StatusCode != http.StatusServiceUnavailable || !strings.Contains(got.body, "16m") || !strings.Contains(got.body, pipeline.CodeStale) || got.Header.Get("Retry-After") == "" {
		t.Errorf("got %d %s", got.StatusCode, got.body)
	}
	if rec := r.records(2)[1]; rec.Result.Outcome != audit.OutcomeDenied || rec.Decision.Code != pipeline.CodeStale || rec.Workload == nil {
		t.Errorf("record %+v %+v", rec.Decision, rec.Result)
	}
	dials := r.dials.Load()
	agent, far := net.Pipe()
	defer func() { _, _ = agent.Close(), far.Close() }()
	if err := r.Tunnel(t.Context(), tunnelTo(t, r, "pass.test:443"), agent); err == nil || r.dials.Load() != dials || r.requests.Load() != requests {
		t.Errorf("tunnel: %v, %d dials", err, r.dials.Load()-dials)
	}
	stale = nil
	if got := r.do(r.client(false), http.MethodGet, "https://api.test/", nil); got.StatusCode != http.StatusOK {
		t.Errorf("fresh again: %d %s", got.StatusCode, got.body)
	}
}

func tunnelTo(t *testing.T, r *rig, authority string) *proxy.Conn {
	t.Helper()
	dest, err := destination.Parse("https", authority, 443)
	if err != nil {
		t.Fatal(err)
	}
	conn := &proxy.Conn{Dest: dest, Door: proxy.DoorTransparent}
	conn.Caller.Workload = r.workload
	return conn
}

// A connection whose destination cannot be told is not tunnelled, and its
// record says so, and what it spoke.
func TestUnclearTunnel(t *testing.T) {
	r := newRig(t, settings{})
	conn := tunnelTo(t, r, "pass.test:443")
	conn.Refusal, conn.Opaque = proxy.Unclear("it hides its name"), "ssh"
	if err := r.Tunnel(t.Context(), conn, nil); err == nil || r.dials.Load() != 0 {
		t.Errorf("got %v after %d dials", err, r.dials.Load())
	}
	rec := r.record()
	if rec.Decision.Code != pipeline.CodeUnclear || rec.Request.Protocol != "ssh" || rec.Request.Door != proxy.DoorTransparent || !strings.Contains(rec.Decision.Reason, "hides its name") {
		t.Errorf("record %+v %+v", rec.Decision, rec.Request)
	}
}
