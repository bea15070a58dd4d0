package identitytest

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"encoding/json"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Provider is an OpenID provider: discovery and JWKS over TLS, and tokens with
// whatever claims a test asks for.
type Provider struct {
	*httptest.Server

	mu   sync.Mutex // guards everything below
	key  *rsa.PrivateKey
	kid  string
	hook func(http.ResponseWriter, *http.Request) bool
	hits int
}

// NewProvider starts a provider; its issuer is Provider.URL. It stops with the
// test.
func NewProvider(t testing.TB) *Provider {
	t.Helper()
	p := &Provider{}
	p.Rotate(t)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, map[string]any{
			"issuer": p.URL, "jwks_uri": p.URL + "/jwks",
			"authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token",
			"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"},
			"id_token_signing_alg_values_supported": []string{"RS256"},
		})
	})
	mux.HandleFunc("GET /jwks", func(w http.ResponseWriter, _ *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		reply(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: p.key.Public(), KeyID: p.kid, Algorithm: "RS256", Use: "sig"}}})
	})
	p.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.hits++
		hook := p.hook
		p.mu.Unlock()
		if hook == nil || !hook(w, r) {
			mux.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(p.Close)
	return p
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// Rotate replaces the signing key at once.
func (p *Provider) Rotate(t testing.TB) {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.key, p.kid = k, number().Text(36)
}

// Hook sees each request first; true means that it answered.
func (p *Provider) Hook(f func(http.ResponseWriter, *http.Request) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hook = f
}

// Requests counts the requests so far.
func (p *Provider) Requests() int { p.mu.Lock(); defer p.mu.Unlock(); return p.hits }

// CAPEM is the authority of the provider's certificate.
func (p *Provider) CAPEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw}))
}

// Sign returns a token of type typ (JWT if empty) with exactly these claims;
// a nil value leaves a claim out.
func (p *Provider) Sign(t testing.TB, typ string, claims map[string]any) string {
	t.Helper()
	if typ == "" {
		typ = "JWT"
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	sg, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: p.key, KeyID: p.kid}}, (&jose.SignerOptions{}).WithType(jose.ContentType(typ)))
	if err != nil {
		t.Fatal(err)
	}
	c := maps.Clone(claims)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	tok, err := jwt.Signed(sg).Claims(c).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return tok
}
