package spire_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509/pkix"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/attache-dev/attache/control/issuer/spire"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/issuer"
	"github.com/attache-dev/attache/test/servers"
)

// TestRealSPIRE has a real SPIRE server certify us, and a real agent tell
// workloads what to trust.
func TestRealSPIRE(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	s, err := servers.StartSPIRE(ctx, td.Name())
	if errors.Is(err, servers.ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	config := spire.Config{Socket: s.Socket, Server: s.Addr, TrustDomain: td}

	// An entry that is not downstream is a workload as any other.
	if err := s.Entry(ctx, "/attache-control"); err != nil {
		t.Fatal(err)
	}
	if a, err := spire.Open(ctx, config); err == nil || !strings.Contains(err.Error(), "as downstream") {
		if err == nil {
			_ = a.Close()
		}
		t.Fatalf("not downstream: got %v", err)
	}
	out, err := s.Server(ctx, "entry", "show", "-spiffeID", control.String())
	if err != nil {
		t.Fatal(err)
	}
	_, id, _ := strings.Cut(out, "Entry ID")
	id, _, _ = strings.Cut(strings.Trim(id, " :"), "\n")
	if _, err := s.Server(ctx, "entry", "delete", "-entryID", strings.TrimSpace(id)); err != nil {
		t.Fatal(err)
	}
	if err := s.Entry(ctx, "/attache-control", "-downstream", "-x509SVIDTTL", "14400"); err != nil {
		t.Fatal(err)
	}
	var a *spire.Authority
	until(t, "an intermediate authority", func() bool { a, err = spire.Open(ctx, config); return err == nil })
	t.Cleanup(func() { _ = a.Close() })
	run(t, a)
	if life := time.Until(a.Intermediate().Chain[0].NotAfter); life > 4*time.Hour || life < 3*time.Hour {
		t.Errorf("the intermediate lives %v; the entry says four hours", life)
	}

	// A workload verifies what we sign by what its agent tells it.
	i := newIssuer(t, a, nil)
	x, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(s.Socket)))
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	chain, err := i.SignX509(pod, newKey(t).Public(), pkix.Name{SerialNumber: "uid"})
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := x509svid.Verify(chain, x); err != nil || got != pod {
		t.Errorf("X.509-SVID: %v, %v", got, err)
	}
	if _, _, err := x509svid.Verify(chain[:1], x); err == nil {
		t.Error("verifies without the intermediate")
	}

	j, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(s.Socket)))
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	tok, err := i.JWT(ctx, identity.JWTRequest{Workload: &identity.Workload{ID: pod}, Audience: "api"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jwtsvid.ParseAndValidate(tok.Token.Reveal(), j, []string{"api"}); err == nil {
		t.Error("a JWT-SVID verifies before its key is published")
	}
	for _, k := range i.Keys(ctx).Keys {
		if err := a.PublishJWT(ctx, issuer.PublicKey{ID: k.KeyID, Key: publicOf(t, k.Key), Expires: time.Now().Add(time.Hour)}); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the agent tells of our JWT key", func() bool {
		got, err := jwtsvid.ParseAndValidate(tok.Token.Reveal(), j, []string{"api"})
		return err == nil && got.ID == pod
	})

	// SPIRE's server is killed: we go on, and renew when it is back.
	s.StopServer()
	if _, err := i.SignX509(pod, newKey(t).Public(), pkix.Name{}); err != nil {
		t.Errorf("while SPIRE is down: %v", err)
	}
	if err := s.StartServer(ctx); err != nil {
		t.Fatal(err)
	}
	until(t, "a key is published again", func() bool {
		return a.PublishJWT(ctx, issuer.PublicKey{ID: "later", Key: &newKey(t).PublicKey, Expires: time.Now().Add(time.Hour)}) == nil
	})
}

func publicOf(t *testing.T, k any) *ecdsa.PublicKey {
	t.Helper()
	p, ok := k.(*ecdsa.PublicKey)
	if !ok {
		t.Fatalf("key is a %T", k)
	}
	return p
}
