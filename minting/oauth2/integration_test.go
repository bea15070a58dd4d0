package oauth2_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/mintingtest"
	"github.com/attache-dev/attache/minting/oauth2"
	"github.com/attache-dev/attache/test/servers"
)

const (
	agent     = "spiffe://example.org/agent/a"
	apiJWT    = "https://api.example.com/jwt"
	apiOpaque = "https://api.example.com/opaque"
	rsSecret  = "rs-secret-rs-secret-rs-secret-rs1"
)

// startAS starts the real authorization server with our workload as client.
func startAS(t *testing.T, src *mintingtest.Source, change func(*servers.OIDCOptions)) *servers.OIDC {
	t.Helper()
	o := servers.OIDCOptions{
		Clients: []map[string]any{servers.Client(agent, src.JWKS(), "api:read api:write"), servers.ResourceServer("rs", rsSecret)},
		Resources: map[string]servers.Resource{
			apiJWT: {Scope: "api:read api:write"}, apiOpaque: {Format: "opaque", Scope: "api:read api:write"},
		},
		Actors:     []servers.Actor{{Issuer: src.Issuer, JWKS: src.JWKS()}},
		TestSecret: "test-secret",
	}
	if change != nil {
		change(&o)
	}
	s, err := servers.StartOIDC(t.Context(), o)
	if errors.Is(err, servers.ErrMissing) && os.Getenv("ATTACHE_REQUIRE_SERVERS") != "1" {
		t.Skipf("the real authorization server needs node and npm: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func provider(t *testing.T, s *servers.OIDC, spec v1alpha1.OAuth2) *oauth2.Minter {
	t.Helper()
	spec.Issuer, spec.Addresses = s.URL, []string{"127.0.0.1"}
	m, err := oauth2.New("p", spec, minting.Deps{Client: func([]string, []byte) *http.Client { return &http.Client{} }})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func introspect(t *testing.T, s *servers.OIDC, tok string) map[string]any {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/token/introspection", strings.NewReader(url.Values{"token": {tok}}.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth("rs", rsSecret)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var out map[string]any
	if err := json.NewDecoder(res.Body).Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

func payload(t *testing.T, c minting.Credential) map[string]any {
	t.Helper()
	parts := strings.Split(c.Secret.Reveal(), ".")
	if len(parts) != 3 {
		t.Fatal("the token is no JWT")
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRealClientCredentials(t *testing.T) {
	src := mintingtest.NewSource(t)
	s := startAS(t, src, nil)
	e := minting.Evidence{Workload: mintingtest.Workload(), Source: src}
	r := mintingtest.Request("p", e)
	r.Scope, r.Resources = []string{"api:read"}, []string{apiOpaque}
	m := provider(t, s, v1alpha1.OAuth2{Grant: "clientCredentials"})
	c, err := m.Mint(t.Context(), r, e)
	if err != nil {
		t.Fatal(err)
	}
	if got := introspect(t, s, c.Secret.Reveal()); got["active"] != true || got["scope"] != "api:read" || got["client_id"] != agent || got["aud"] != apiOpaque {
		t.Errorf("the server knows it as %v", got)
	}
	if err := m.Revoke(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if got := introspect(t, s, c.Secret.Reveal()); got["active"] != false {
		t.Errorf("after revocation %v", got)
	}
	r.Resources = []string{apiJWT}
	if c, err = m.Mint(t.Context(), r, e); err != nil {
		t.Fatal(err)
	}
	if p := payload(t, c); p["aud"] != apiJWT || p["scope"] != "api:read" {
		t.Errorf("claims %v", p)
	}
	r.Resources = []string{"https://unknown.example"}
	if _, err = m.Mint(t.Context(), r, e); !errors.Is(err, minting.ErrDenied) || !strings.Contains(err.Error(), "invalid_target") {
		t.Errorf("an unknown resource: %v", err)
	}
	r.Resources = nil
	stranger := minting.Evidence{Workload: e.Workload, Source: mintingtest.NewSource(t)}
	if _, err = m.Mint(t.Context(), r, stranger); !errors.Is(err, minting.ErrDenied) || !strings.Contains(err.Error(), "invalid_client") {
		t.Errorf("a foreign key: %v", err)
	}
}

func TestRealDPoP(t *testing.T) {
	src := mintingtest.NewSource(t)
	s := startAS(t, src, func(o *servers.OIDCOptions) { o.RequireNonce = true })
	e := minting.Evidence{Workload: mintingtest.Workload(), Source: src}
	r := mintingtest.Request("p", e)
	r.Scope, r.Resources = []string{"api:read"}, []string{apiOpaque}
	m := provider(t, s, v1alpha1.OAuth2{Grant: "clientCredentials", DPoP: true})
	for range 2 {
		c, err := m.Mint(t.Context(), r, e)
		if err != nil {
			t.Fatal(err)
		}
		cnf, _ := introspect(t, s, c.Secret.Reveal())["cnf"].(map[string]any)
		if cnf["jkt"] != mustThumb(t, c) {
			t.Errorf("bound to %v, want our key", cnf)
		}
	}
}

func TestRealTokenExchange(t *testing.T) {
	src := mintingtest.NewSource(t)
	s := startAS(t, src, nil)
	exchange := func(s *servers.OIDC, src *mintingtest.Source, azp string, dpop bool) (minting.Credential, error) {
		human, err := s.HumanToken(t.Context(), http.DefaultClient, map[string]any{"sub": "alice", "aud": "attache", "azp": azp})
		if err != nil {
			t.Fatal(err)
		}
		e := minting.Evidence{Workload: mintingtest.Workload(), Source: src, Task: mintingtest.Task(human)}
		e.Task.Human = &identity.Human{Subject: "alice", Issuer: s.URL}
		r := mintingtest.Request("p", e)
		r.Scope, r.Resources = []string{"api:read"}, []string{apiJWT}
		return provider(t, s, v1alpha1.OAuth2{Grant: "tokenExchange", RequireAct: true, DPoP: dpop}).Mint(t.Context(), r, e)
	}
	for _, dpop := range []bool{false, true} {
		c, err := exchange(s, src, agent, dpop)
		if err != nil {
			t.Fatal(err)
		}
		p := payload(t, c)
		act, _ := p["act"].(map[string]any)
		if p["sub"] != "alice" || act["sub"] != agent || p["aud"] != apiJWT || p["scope"] != "api:read" || (p["cnf"] != nil) != dpop {
			t.Errorf("claims %v", p)
		}
	}
	if _, err := exchange(s, src, "spiffe://example.org/agent/b", false); !errors.Is(err, minting.ErrDenied) {
		t.Errorf("a human's token for another agent: %v", err)
	}
	// A server that ignores the actor issues a token by which the agent is
	// simply alice.
	careless := startAS(t, src, func(o *servers.OIDCOptions) { o.IgnoreActor = true })
	if _, err := exchange(careless, src, agent, false); !errors.Is(err, minting.ErrDenied) || !strings.Contains(err.Error(), "requireAct") {
		t.Errorf("impersonation instead of delegation: %v", err)
	}
}
