package spire_test

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"

	"github.com/attache-dev/attache/control/issuer/spire"
	"github.com/attache-dev/attache/identity/identitytest"
	"github.com/attache-dev/attache/identity/issuer"
)

var (
	td      = spiffeid.RequireTrustDomainFromString("td.test")
	control = spiffeid.RequireFromString("spiffe://td.test/attache-control")
	pod     = spiffeid.RequireFromString("spiffe://td.test/ns/a/sa/b")
)

const patience = 30 * time.Second

func open(t *testing.T, api *identitytest.WorkloadAPI, s *server) (*spire.Authority, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	a, err := spire.Open(ctx, spire.Config{Socket: api.Addr(), Server: s.addr, TrustDomain: td})
	if err == nil {
		t.Cleanup(func() { _ = a.Close() })
	}
	return a, err
}

func mustOpen(t *testing.T, api *identitytest.WorkloadAPI, s *server) *spire.Authority {
	t.Helper()
	a, err := open(t, api, s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// run starts the renewal, and ends it with the test.
func run(t *testing.T, a *spire.Authority) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func newIssuer(t *testing.T, a *spire.Authority, now func() time.Time) *issuer.Issuer {
	t.Helper()
	i, err := issuer.New(t.Context(), issuer.Config{TrustDomain: td, Upstream: a.Intermediate, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// verify checks an SVID as any workload of SPIRE does: by SPIRE's authorities.
func verify(api *identitytest.WorkloadAPI, chain []*x509.Certificate) error {
	ca, _ := api.Authority()
	_, _, err := x509svid.Verify(chain, x509bundle.FromX509Authorities(td, []*x509.Certificate{ca}))
	return err
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not in %v", what, patience)
		}
	}
}

func TestSignsBelowSPIRE(t *testing.T) {
	api := identitytest.NewWorkloadAPI(t, control)
	a := mustOpen(t, api, startServer(t, api, control))
	i := newIssuer(t, a, nil)
	chain, err := i.SignX509(pod, newKey(t).Public(), pkix.Name{SerialNumber: "uid"})
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 2 {
		t.Fatalf("the chain has %d certificates; want the SVID and the intermediate", len(chain))
	}
	if err := verify(api, chain); err != nil {
		t.Error(err)
	}
	if err := verify(api, chain[:1]); err == nil {
		t.Error("verifies without the intermediate: it is not one")
	}
	b, err := i.Bundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if ca, _ := api.Authority(); len(b.X509Authorities()) != 1 || !b.HasX509Authority(ca) {
		t.Error("the bundle is not SPIRE's")
	}
}

// An SVID never outlives the authority that signed it.
func TestLifeEndsWithTheIntermediate(t *testing.T) {
	api := identitytest.NewWorkloadAPI(t, control)
	s := startServer(t, api, control)
	s.after = 20 * time.Minute
	a := mustOpen(t, api, s)
	end := a.Intermediate().Chain[0].NotAfter
	chain, err := newIssuer(t, a, nil).SignX509(pod, newKey(t).Public(), pkix.Name{})
	if err != nil {
		t.Fatal(err)
	}
	if !chain[0].NotAfter.Equal(end) {
		t.Errorf("the SVID ends %v, its authority %v", chain[0].NotAfter, end)
	}
	late := newIssuer(t, a, func() time.Time { return end.Add(-30 * time.Second) })
	if _, err := late.SignX509(pod, newKey(t).Public(), pkix.Name{}); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("got %v, want a refusal that says that the authority expired", err)
	}
}

func TestNotDownstream(t *testing.T) {
	api := identitytest.NewWorkloadAPI(t, control)
	s := startServer(t, api, spiffeid.RequireFromString("spiffe://td.test/other"))
	if _, err := open(t, api, s); err == nil || !strings.Contains(err.Error(), "mark the registration entry of the control plane as downstream") {
		t.Errorf("got %v", err)
	}
	if s.count() != 0 {
		t.Error("an authority was made")
	}
}

// What only looks like the SPIRE server gets nothing from us.
func TestOtherServer(t *testing.T) {
	api := identitytest.NewWorkloadAPI(t, control)
	s := startServer(t, identitytest.NewWorkloadAPI(t, control), control) // of another authority
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := spire.Open(ctx, spire.Config{Socket: api.Addr(), Server: s.addr, TrustDomain: td}); err == nil {
		t.Error("it is trusted")
	}
	if s.count() != 0 {
		t.Error("it was asked")
	}
}

// Nor does another workload of the trust domain at the server's address.
func TestImpostor(t *testing.T) {
	api := identitytest.NewWorkloadAPI(t, control)
	s := startServer(t, api, control)
	s.id = pod.String()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := spire.Open(ctx, spire.Config{Socket: api.Addr(), Server: s.addr, TrustDomain: td}); err == nil {
		t.Error("it is trusted")
	}
	if s.count() != 0 {
		t.Error("it was asked")
	}
}

func TestAnswers(t *testing.T) {
	api := identitytest.NewWorkloadAPI(t, control)
	ca, key := api.Authority()
	made := func(pub any, id string, isCA bool) [][]byte {
		return [][]byte{sign(t, ca, key, pub, id, time.Minute, time.Hour, isCA).Raw}
	}
	for name, tt := range map[string]struct {
		change func(pub any, r *svidv1.NewDownstreamX509CAResponse)
		want   string
	}{
		"empty":    {func(_ any, r *svidv1.NewDownstreamX509CAResponse) { r.CaCertChain = nil }, "has 0 certificates"},
		"endless":  {func(_ any, r *svidv1.NewDownstreamX509CAResponse) { r.CaCertChain = make([][]byte, 11) }, "has 11 certificates"},
		"garbage":  {func(_ any, r *svidv1.NewDownstreamX509CAResponse) { r.CaCertChain[0] = []byte("x") }, "certificate 0"},
		"bad root": {func(_ any, r *svidv1.NewDownstreamX509CAResponse) { r.X509Authorities[0] = nil }, "authority 0"},
		"no roots": {func(_ any, r *svidv1.NewDownstreamX509CAResponse) { r.X509Authorities = nil }, "no intermediate authority"},
		"another key": {func(_ any, r *svidv1.NewDownstreamX509CAResponse) {
			r.CaCertChain = made(newKey(t).Public(), "spiffe://td.test", true)
		}, "of another key"},
		"no authority": {func(pub any, r *svidv1.NewDownstreamX509CAResponse) {
			r.CaCertChain = made(pub, "spiffe://td.test", false)
		}, "may not sign"},
		"other domain": {func(pub any, r *svidv1.NewDownstreamX509CAResponse) {
			r.CaCertChain = made(pub, "spiffe://other.test", true)
		}, "must be spiffe://td.test"},
		"other root": {func(_ any, r *svidv1.NewDownstreamX509CAResponse) {
			c, _ := identitytest.NewWorkloadAPI(t, control).Authority()
			r.X509Authorities = [][]byte{c.Raw}
		}, "not of the trust domain"},
	} {
		t.Run(name, func(t *testing.T) {
			s := startServer(t, api, control)
			s.change = tt.change
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, err := spire.Open(ctx, spire.Config{Socket: api.Addr(), Server: s.addr, TrustDomain: td})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestRenewsAtHalf(t *testing.T) {
	api := identitytest.NewWorkloadAPI(t, control)
	s := startServer(t, api, control)
	s.before, s.after = 10*time.Minute, 10*time.Minute+500*time.Millisecond
	a := mustOpen(t, api, s)
	first := a.Intermediate().Chain[0]
	s.set(func() { s.before, s.after = time.Minute, time.Hour })
	run(t, a)
	until(t, "renewed", func() bool { return a.Intermediate().Chain[0] != first })
	if n := s.count(); n != 2 {
		t.Errorf("%d authorities; want the first and the one of the renewal", n)
	}
}

// SPIRE replaced its authority: what is signed from then on verifies by the
// new one alone.
func TestFollowsTheTrustDomain(t *testing.T) {
	api := identitytest.NewWorkloadAPI(t, control)
	s := startServer(t, api, control)
	a := mustOpen(t, api, s)
	i := newIssuer(t, a, nil)
	run(t, a)
	old, err := i.SignX509(pod, newKey(t).Public(), pkix.Name{})
	if err != nil {
		t.Fatal(err)
	}
	if err := api.Rotate(); err != nil {
		t.Fatal(err)
	}
	until(t, "an SVID below the new authority", func() bool {
		chain, err := i.SignX509(pod, newKey(t).Public(), pkix.Name{})
		return err == nil && verify(api, chain) == nil
	})
	if verify(api, old) == nil {
		t.Error("the old SVID verifies by the new authority: the test tests nothing")
	}
}

// An hour without SPIRE is no hour without SVIDs.
func TestSPIREGone(t *testing.T) {
	api := identitytest.NewWorkloadAPI(t, control)
	s := startServer(t, api, control)
	s.before, s.after = time.Hour, 50*time.Minute // renewal is overdue
	a := mustOpen(t, api, s)
	s.set(func() { s.fail = errors.New("down") })
	run(t, a)
	i := newIssuer(t, a, nil)
	chain, err := i.SignX509(pod, newKey(t).Public(), pkix.Name{})
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(api, chain); err != nil {
		t.Error(err)
	}
	s.set(func() { s.fail, s.before, s.after = nil, time.Minute, 24*time.Hour })
	until(t, "renewed once SPIRE is back", func() bool { return s.count() == 2 })
}

func TestPublishJWT(t *testing.T) {
	api := identitytest.NewWorkloadAPI(t, control)
	s := startServer(t, api, control)
	a := mustOpen(t, api, s)
	k := issuer.PublicKey{ID: "kid", Key: &newKey(t).PublicKey, Expires: time.Now().Add(time.Hour)}
	for range 2 {
		if err := a.PublishJWT(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.keys) != 1 || s.keys[0].GetExpiresAt() != k.Expires.Unix() {
		t.Errorf("the server has %v", s.keys)
	}
	s.set(func() { s.fail = errors.New("down") })
	if err := a.PublishJWT(t.Context(), k); err == nil {
		t.Error("a failure is not told")
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]spire.Config{
		"socket":       {Socket: "/run/api.sock", Server: "a:1", TrustDomain: td},
		"server":       {Socket: "unix:///run/api.sock", Server: "a", TrustDomain: td},
		"trust domain": {Socket: "unix:///run/api.sock", Server: "a:1"},
	} {
		if _, err := spire.Open(t.Context(), c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
