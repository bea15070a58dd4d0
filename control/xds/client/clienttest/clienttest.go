// Package clienttest is a sidecar for tests of the control plane: a real
// client that remembers what it was told.
package clienttest

import (
	"context"
	"crypto/tls"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/control/xds/client"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/kubernetes"
)

const patience = 2 * time.Minute

// Sidecar is a client that applies all that it is sent.
type Sidecar struct {
	tb      testing.TB
	uid     string
	tls     *tls.Config
	bundles chan *controlpb.Bundle
	revoked chan *controlpb.Revocation

	mu     sync.Mutex // guards all below
	target string
	refuse error
	stop   func()
}

// Start connects a sidecar; it ends with the test.
func Start(tb testing.TB, target string, config *tls.Config, podUID string) *Sidecar {
	tb.Helper()
	s := &Sidecar{tb: tb, uid: podUID, tls: config, target: target, bundles: make(chan *controlpb.Bundle, 1000), revoked: make(chan *controlpb.Revocation, 1000)}
	c, err := client.New(client.Config{
		// The name is the same for all replicas, as a Service's is.
		Target: "passthrough:///control.test", TLS: config, PodUID: podUID, MinWait: time.Millisecond, MaxWait: 50 * time.Millisecond,
		Heartbeat: 2 * time.Second, Apply: s.apply, Revoke: func(r *controlpb.Revocation) { s.revoked <- r },
		Dial: s.dial(),
	})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	tb.Cleanup(func() { cancel(); <-done })
	return s
}

func (s *Sidecar) apply(b *controlpb.Bundle) error {
	s.mu.Lock()
	err := s.refuse
	s.mu.Unlock()
	if err == nil {
		s.bundles <- proto.CloneOf(b)
	}
	return err
}

// Refuse has bundles refused with an error from now on; nil accepts them.
func (s *Sidecar) Refuse(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = err
}

// Next waits for a bundle.
func (s *Sidecar) Next(tb testing.TB) *controlpb.Bundle {
	tb.Helper()
	return s.Until(tb, func(*controlpb.Bundle) bool { return true })
}

// Until waits for a bundle of which ok is true; others are forgotten.
func (s *Sidecar) Until(tb testing.TB, ok func(*controlpb.Bundle) bool) *controlpb.Bundle {
	tb.Helper()
	deadline := time.After(patience)
	for {
		select {
		case b := <-s.bundles:
			if ok(b) {
				return b
			}
		case <-deadline:
			tb.Fatal("the sidecar was never sent what the test waits for")
		}
	}
}

// Quiet fails if the sidecar was sent a bundle that nobody took.
func (s *Sidecar) Quiet(tb testing.TB) {
	tb.Helper()
	select {
	case b := <-s.bundles:
		tb.Fatalf("the sidecar was sent another bundle: %s", b.GetDocuments())
	default:
	}
}

// Revoked waits for a revocation.
func (s *Sidecar) Revoked(tb testing.TB) *controlpb.Revocation {
	tb.Helper()
	select {
	case r := <-s.revoked:
		return r
	case <-time.After(patience):
		tb.Fatal("the sidecar was told of no revocation")
		return nil
	}
}

// Workload is whom a bundle is for.
func Workload(tb testing.TB, b *controlpb.Bundle) *identity.Workload {
	tb.Helper()
	w, err := kubernetes.FromProto(b.GetWorkload())
	if err != nil {
		tb.Fatal(err)
	}
	return w
}
