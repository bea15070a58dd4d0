package mintingtest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
)

// Workload is the agent of the tests.
func Workload() *identity.Workload {
	return &identity.Workload{
		ID: spiffeid.RequireFromString("spiffe://example.org/agent/a"), Namespace: "local",
		RunID: "0123456789abcdef0123456789abcdef",
	}
}

// Task is a task of the human alice for Workload.
func Task(token string) *identity.Task {
	now := time.Now()
	return &identity.Task{
		ID: "fedcba9876543210fedcba9876543210", OpenedBy: "launcher",
		Human:  &identity.Human{Subject: "alice", Issuer: "https://idp.example"},
		Opened: now, Expires: now.Add(time.Hour), SubjectToken: secret.New(token),
		WorkloadID: Workload().ID, RunID: Workload().RunID,
	}
}

// Request is a mint request that agrees with e.
func Request(provider string, e minting.Evidence) minting.Request {
	r := minting.Request{
		Provider: provider, WorkloadID: e.Workload.ID.String(), RunID: e.Workload.RunID,
		PostureDigest: e.Workload.PostureDigest(), Destination: "https://api.example.com:443", TTL: 5 * time.Minute,
	}
	if e.Task != nil {
		r.TaskID = e.Task.ID
		r.Subject = e.Task.Human.Issuer + " " + e.Task.Human.Subject
		r.SubjectToken = e.Task.SubjectToken.Fingerprint()
		r.Actor = r.WorkloadID
	}
	return r
}

// Source is an identity source with a key of its own. It remembers what it
// signed, so that a test can look for it.
type Source struct {
	Key    *ecdsa.PrivateKey
	Issuer string // iss of JWT-SVIDs

	mu     sync.Mutex // guards below
	signed []string
	asked  []identity.JWTRequest
	// Err, if set, is the answer to every request for a JWT.
	err error
}

var _ identity.Source = (*Source)(nil)

// NewSource returns a Source.
func NewSource(t testing.TB) *Source {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &Source{Key: k, Issuer: "https://attache.example"}
}

// FailWith makes every request for a JWT fail.
func (s *Source) FailWith(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// Signed returns every token so far.
func (s *Source) Signed() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.signed...)
}

// Asked returns every request so far.
func (s *Source) Asked() []identity.JWTRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]identity.JWTRequest(nil), s.asked...)
}

// JWKS returns the public key as a key set.
func (s *Source) JWKS() jose.JSONWebKeySet {
	return jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: s.Key.Public(), KeyID: "k1", Algorithm: "ES256", Use: "sig"}}}
}

// JWT implements [identity.Source].
func (s *Source) JWT(ctx context.Context, r identity.JWTRequest) (identity.JWT, error) {
	if err := ctx.Err(); err != nil {
		return identity.JWT{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, r)
	if s.err != nil {
		return identity.JWT{}, s.err
	}
	sig, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: s.Key, KeyID: "k1"}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return identity.JWT{}, fmt.Errorf("%w: %w", identity.ErrUnavailable, err)
	}
	ttl := r.TTL
	if ttl <= 0 {
		ttl = 5 * time.Minute
	}
	now := time.Now()
	c := jwt.Claims{
		ID: rand.Text(), Issuer: s.Issuer, Subject: r.Workload.ID.String(), Audience: jwt.Audience{r.Audience},
		IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(ttl)),
	}
	if r.ClientID != "" { // RFC 7523 section 3
		c.Issuer, c.Subject = r.ClientID, r.ClientID
	}
	tok, err := jwt.Signed(sig).Claims(c).Serialize()
	if err != nil {
		return identity.JWT{}, fmt.Errorf("%w: %w", identity.ErrUnavailable, err)
	}
	s.signed = append(s.signed, tok)
	return identity.JWT{Token: secret.New(tok), ID: c.ID, Expires: now.Add(ttl)}, nil
}

// X509 implements [identity.Source]: there is no X.509-SVID.
func (s *Source) X509(context.Context, *identity.Workload) (*x509svid.SVID, error) {
	return nil, identity.ErrUnavailable
}

// Bundle implements [identity.Source]: there is none.
func (s *Source) Bundle(context.Context) (*x509bundle.Bundle, error) {
	return nil, identity.ErrUnavailable
}

// Serve starts an HTTPS server with h and returns it with the Deps by which a
// provider reaches it.
func Serve(t testing.TB, h http.Handler) (*httptest.Server, minting.Deps) {
	t.Helper()
	srv := httptest.NewTLSServer(h)
	t.Cleanup(srv.Close)
	return srv, minting.Deps{Client: func([]string, []byte) *http.Client { return srv.Client() }}
}
