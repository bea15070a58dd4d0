package sidecar

import (
	"context"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/identity/issuer"
)

// collector is the control plane's, that a test drives.
type collector struct {
	mu      sync.Mutex
	no      bool
	got     map[uint64]audit.Line
	refused int
}

func (c *collector) Name() string { return "control" }

func (c *collector) Send(_ context.Context, b ship.Batch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.no {
		c.refused += len(b.Lines)
		return &ship.RejectedError{Lines: b.Lines, Count: len(b.Lines), Reason: "the test says no"}
	}
	for _, l := range b.Lines {
		c.got[l.Sequence] = l
	}
	return nil
}

func (c *collector) refuse(no bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.no = no
}

const acknowledged = `apiVersion: attache.dev/v1alpha1
kind: AttacheConfig
metadata: {name: default}
spec: {audit: {collectorWait: 60s, drainTimeout: 60s}}
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: p, namespace: a}
spec:
  rules:
  - {name: sure, hosts: [sure.invalid], action: allow, durability: collector}
  - {name: other, hosts: [other.invalid], action: allow}
`

// TestRecords: a rule that asks for the collector's acknowledgement gets it
// before the call leaves, or the call is refused; at the end the collector has
// everything, and the end is signed by the pod.
func TestRecords(t *testing.T) {
	c := &collector{got: map[uint64]audit.Line{}}
	r := start(t, func(o *Options) { o.PodUID = "11111111-2222-3333-4444-555555555555" })
	r.records = c
	iss, err := issuer.New(t.Context(), issuer.Config{TrustDomain: spiffeid.RequireTrustDomainFromString("attache.local"), URL: "https://issuer.invalid"})
	if err != nil {
		t.Fatal(err)
	}
	r.source = iss
	close(r.attested)
	if err := r.give(acknowledged); err != nil {
		t.Fatal(err)
	}
	proxy := <-r.addrs
	r.until("/ready", 200, "ok")
	call := func(host string) string {
		t.Helper()
		res, err := r.client(proxy).Get("https://" + host + "/")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		b, _ := io.ReadAll(res.Body)
		return res.Header.Get("Attache-Error") + " " + string(b)
	}
	if got := call("sure.invalid"); strings.Contains(got, "audit_unavailable") {
		t.Errorf("with a collector: %s", got)
	}
	c.refuse(true)
	if got := call("sure.invalid"); !strings.Contains(got, "audit_unavailable") {
		t.Errorf("refused by the collector: %s, want audit_unavailable", got)
	}
	if got := call("other.invalid"); strings.Contains(got, "audit_unavailable") {
		t.Errorf("a rule that does not ask for it: %s", got)
	}
	r.until("/metrics", 200, `attache_audit_ship_rejected_total{sink="control"}`)
	c.refuse(false)
	r.stop()
	if err := <-r.done; err != nil {
		t.Errorf("stopped: %v", err)
	}
	r.done <- nil
	rep, err := audit.Verify(filepath.Join(r.dir, "spool", "records"))
	if err != nil || !rep.OK() || len(rep.Epochs) != 1 {
		t.Fatalf("%v %s", err, rep.String())
	}
	e := rep.Epochs[0]
	if e.Producer != "11111111-2222-3333-4444-555555555555" || !e.Closed || e.SignedBy != "spiffe://attache.local/ns/a/sa/b" {
		t.Errorf("epoch %+v", e)
	}
	if len(c.got)+c.refused != rep.Lines || c.refused == 0 {
		t.Errorf("the collector has %d lines of %d and refused %d", len(c.got), rep.Lines, c.refused)
	}
	last, err := c.got[e.Last].Record()
	if err != nil || last.Type != audit.TypeEpochEnd {
		t.Errorf("the last line that came is %s, %v", last.Type, err)
	}
}
