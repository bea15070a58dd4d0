package spiffe_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/identitytest"
	"github.com/attache-dev/attache/identity/spiffe"
)

var id = spiffeid.RequireFromString("spiffe://example.org/ns/agents/sa/a")

func me() *identity.Workload { return &identity.Workload{ID: id} }

func start(t *testing.T) (*identitytest.WorkloadAPI, *spiffe.Source) {
	t.Helper()
	api := identitytest.NewWorkloadAPI(t, id)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	s, err := spiffe.New(ctx, spiffe.Config{Socket: api.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return api, s
}

// eventually waits for a change that another goroutine brings.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(8 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("never: " + what)
		}
	}
}

func TestX509(t *testing.T) {
	api, s := start(t)
	v, err := s.X509(t.Context(), me())
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Bundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := x509svid.Verify(v.Certificates, b); err != nil || got != id {
		t.Errorf("verify: %v %v", got, err)
	}
	if got, err := s.ID(); err != nil || got != id {
		t.Errorf("ID %v %v", got, err)
	}
	if err := api.Rotate(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "rotation arrives", func() bool {
		n, err := s.X509(t.Context(), me())
		return err == nil && n.Certificates[0].SerialNumber.Cmp(v.Certificates[0].SerialNumber) != 0
	})
	if _, err := s.X509(t.Context(), &identity.Workload{ID: spiffeid.RequireFromString("spiffe://example.org/other")}); err == nil || errors.Is(err, identity.ErrUnavailable) {
		t.Errorf("another workload: %v", err)
	}
	if _, err := s.X509(t.Context(), nil); err == nil {
		t.Error("nobody has an SVID")
	}
}

func TestJWT(t *testing.T) {
	api, s := start(t)
	a, err := s.JWT(t.Context(), identity.JWTRequest{Workload: me(), Audience: "sts.example"})
	if err != nil {
		t.Fatal(err)
	}
	v, err := jwtsvid.ParseAndValidate(a.Token.Reveal(), api.JWTBundle(), []string{"sts.example"})
	if err != nil || v.ID != id || len(v.Audience) != 1 || !v.Expiry.Equal(a.Expires) {
		t.Fatalf("%+v %v", v, err)
	}
	if b, err := s.JWT(t.Context(), identity.JWTRequest{Workload: me(), Audience: "sts.example"}); err != nil || !b.Token.Equal(a.Token) {
		t.Errorf("not cached: %v", err)
	}
	if b, err := s.JWT(t.Context(), identity.JWTRequest{Workload: me(), Audience: "other"}); err != nil || b.Token.Equal(a.Token) {
		t.Errorf("one token for two audiences: %v", err)
	}
	if n := api.JWTFetches(); n != 2 {
		t.Errorf("%d fetches; want 2", n)
	}
}

// TestJWTShortLived: a token about to end is never kept.
func TestJWTShortLived(t *testing.T) {
	api, s := start(t)
	api.SetTTL(9 * time.Second)
	for range 2 {
		if _, err := s.JWT(t.Context(), identity.JWTRequest{Workload: me(), Audience: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	if n := api.JWTFetches(); n != 2 {
		t.Errorf("%d fetches; want 2", n)
	}
}

func TestJWTUnsupported(t *testing.T) {
	_, s := start(t)
	for _, tt := range []struct {
		name string
		r    identity.JWTRequest
		want string
	}{
		{"client assertion", identity.JWTRequest{Workload: me(), Audience: "x", ClientID: "c"}, "embedded issuer"},
		{"claims", identity.JWTRequest{Workload: me(), Audience: "x", Claims: map[string]any{"a": 1}}, "embedded issuer"},
		{"no audience", identity.JWTRequest{Workload: me()}, "no audience"},
		{"other workload", identity.JWTRequest{Workload: &identity.Workload{ID: spiffeid.RequireFromString("spiffe://example.org/b")}, Audience: "x"}, "not spiffe://example.org/b"},
		{"nobody", identity.JWTRequest{Audience: "x"}, "no workload"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := s.JWT(t.Context(), tt.r)
			if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, identity.ErrUnavailable) {
				t.Errorf("got %v; want %q", err, tt.want)
			}
		})
	}
}

// TestRedaction: an identity withdrawn is used no more, though the library
// still holds it; given back, it works again.
func TestRedaction(t *testing.T) {
	api, s := start(t)
	r := identity.JWTRequest{Workload: me(), Audience: "x"}
	if _, err := s.JWT(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	api.Entitle(func(int, uint32) bool { return false })
	eventually(t, "redaction", func() bool { return s.Ready() != nil })
	if _, err := s.X509(t.Context(), me()); !errors.Is(err, identity.ErrUnavailable) {
		t.Errorf("X509 after redaction: %v", err)
	}
	if _, err := s.JWT(t.Context(), r); !errors.Is(err, identity.ErrUnavailable) {
		t.Errorf("JWT after redaction: %v", err)
	}
	if _, err := s.Bundle(t.Context()); !errors.Is(err, identity.ErrUnavailable) {
		t.Errorf("Bundle after redaction: %v", err)
	}
	api.Entitle(func(int, uint32) bool { return true })
	eventually(t, "identity returns", func() bool { return s.Ready() == nil })
	if _, err := s.JWT(t.Context(), r); err != nil {
		t.Error(err)
	}
	if n := api.JWTFetches(); n != 2 {
		t.Errorf("%d fetches; a token from before the redaction was used", n)
	}
}

func TestAgentRestart(t *testing.T) {
	api, s := start(t)
	r := identity.JWTRequest{Workload: me(), Audience: "x"}
	if _, err := s.JWT(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	api.Stop()
	// What is valid stays in use while the agent restarts...
	if _, err := s.JWT(t.Context(), r); err != nil {
		t.Error(err)
	}
	if _, err := s.X509(t.Context(), me()); err != nil {
		t.Error(err)
	}
	// ... and what is not at hand is unavailable, not an endless wait.
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := s.JWT(ctx, identity.JWTRequest{Workload: me(), Audience: "new"}); !errors.Is(err, identity.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

func TestExpiredSVIDIsNotUsed(t *testing.T) {
	api := identitytest.NewWorkloadAPI(t, id)
	api.SetTTL(time.Second)
	s, err := spiffe.New(t.Context(), spiffe.Config{Socket: api.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	eventually(t, "expiry", func() bool { return s.Ready() != nil })
	if _, err := s.X509(t.Context(), me()); !errors.Is(err, identity.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

func TestNew(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	t.Run("denied", func(t *testing.T) {
		api := identitytest.NewWorkloadAPI(t, id)
		api.Entitle(func(int, uint32) bool { return false })
		_, err := spiffe.New(ctx, spiffe.Config{Socket: api.Addr()})
		if !errors.Is(err, identity.ErrUnavailable) || !strings.Contains(err.Error(), "no identity issued") {
			t.Errorf("got %v; want the server's word", err)
		}
	})
	t.Run("no agent", func(t *testing.T) {
		if _, err := spiffe.New(ctx, spiffe.Config{Socket: "unix://" + t.TempDir() + "/x"}); !errors.Is(err, identity.ErrUnavailable) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("bad address", func(t *testing.T) {
		if _, err := spiffe.New(ctx, spiffe.Config{Socket: "/run/x"}); err == nil || errors.Is(err, identity.ErrUnavailable) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no address", func(t *testing.T) {
		t.Setenv("SPIFFE_ENDPOINT_SOCKET", "")
		if _, err := spiffe.New(ctx, spiffe.Config{}); err == nil || !strings.Contains(err.Error(), "SPIFFE_ENDPOINT_SOCKET") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("another id", func(t *testing.T) {
		api := identitytest.NewWorkloadAPI(t, id)
		_, err := spiffe.New(t.Context(), spiffe.Config{Socket: api.Addr(), ID: spiffeid.RequireFromString("spiffe://example.org/b")})
		if !errors.Is(err, identity.ErrUnavailable) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("closed", func(t *testing.T) {
		_, s := start(t)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if s.Ready() == nil {
			t.Error("ready after Close")
		}
	})
}

// TestServerConforms checks the test server itself: it must refuse what real
// ones refuse.
func TestServerConforms(t *testing.T) {
	api := identitytest.NewWorkloadAPI(t, id)
	cc, err := grpc.NewClient(api.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	_, err = workload.NewSpiffeWorkloadAPIClient(cc).FetchJWTSVID(t.Context(), &workload.JWTSVIDRequest{Audience: []string{"x"}})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("without the security header: %v", err)
	}
}

func TestConcurrentFetchesShareOne(t *testing.T) {
	api, s := start(t)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := s.JWT(t.Context(), identity.JWTRequest{Workload: me(), Audience: "x"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := api.JWTFetches(); n > 3 {
		t.Errorf("%d fetches for one token", n)
	}
}
