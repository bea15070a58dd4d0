package issuer_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/issuer"
)

func td() spiffeid.TrustDomain { return spiffeid.RequireTrustDomainFromString("attache.test") }

func workload(path string) *identity.Workload {
	return &identity.Workload{ID: spiffeid.RequireFromPath(td(), path), RunID: "r1"}
}

func start(t *testing.T, c issuer.Config) *issuer.Issuer {
	t.Helper()
	if c.TrustDomain.IsZero() {
		c.TrustDomain = td()
	}
	i, err := issuer.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = i.Close() })
	return i
}

func mint(t *testing.T, i *issuer.Issuer, r identity.JWTRequest) (string, identity.JWT) {
	t.Helper()
	if r.Workload == nil {
		r.Workload = workload("/agent/a")
	}
	if r.Audience == "" {
		r.Audience = "https://api.example"
	}
	j, err := i.JWT(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return j.Token.Reveal(), j
}

// claims verifies tok with set and returns what it says.
func claims(t *testing.T, tok string, set jose.JSONWebKeySet) map[string]any {
	t.Helper()
	p, err := jwt.ParseSigned(tok, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := p.Claims(set, &out); err != nil {
		t.Fatalf("verify %v: %v", p.Headers, err)
	}
	return out
}

func TestJWTSVID(t *testing.T) {
	now := time.Unix(1_800_000_000, 500)
	i := start(t, issuer.Config{URL: "https://id.example/x", Now: func() time.Time { return now }})
	tok, j := mint(t, i, identity.JWTRequest{Claims: map[string]any{"posture": map[string]string{"confined": "landlock"}}})
	c := claims(t, tok, i.Keys(t.Context()))
	want := map[string]any{
		"iss": "https://id.example/x", "sub": "spiffe://attache.test/agent/a", "aud": "https://api.example",
		"iat": 1.8e9, "nbf": 1.8e9 - 60, "exp": 1.8e9 + 300, "jti": j.ID,
		"posture": map[string]any{"confined": "landlock"},
	}
	got, _ := json.Marshal(c)
	exp, _ := json.Marshal(want)
	if string(got) != string(exp) {
		t.Errorf("claims\n got %s\nwant %s", got, exp)
	}
	if len(j.ID) != 32 {
		t.Errorf("jti %q; want 128 bits", j.ID)
	}
	if !j.Expires.Equal(time.Unix(1_800_000_300, 0)) {
		t.Errorf("Expires %v does not say what exp says", j.Expires)
	}
	p, err := jwt.ParseSigned(tok, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	if h := p.Headers[0]; h.KeyID != i.Keys(t.Context()).Keys[0].KeyID || h.Algorithm != "ES256" {
		t.Errorf("header %+v", h)
	}
	_, k := mint(t, i, identity.JWTRequest{})
	if k.ID == j.ID {
		t.Error("jti repeated")
	}
	if _, long := mint(t, i, identity.JWTRequest{TTL: 24 * time.Hour}); long.Expires.Sub(now) > time.Hour {
		t.Errorf("lifetime not shortened: %v", long.Expires.Sub(now))
	}
}

// TestJWTVerifiesAsSVID has go-spiffe, written by others, check our tokens.
func TestJWTVerifiesAsSVID(t *testing.T) {
	i := start(t, issuer.Config{})
	tok, _ := mint(t, i, identity.JWTRequest{})
	b := jwtbundle.New(td())
	for _, k := range i.Keys(t.Context()).Keys {
		if err := b.AddJWTAuthority(k.KeyID, k.Key); err != nil {
			t.Fatal(err)
		}
	}
	s, err := jwtsvid.ParseAndValidate(tok, b, []string{"https://api.example"})
	if err != nil {
		t.Fatal(err)
	}
	if s.ID.String() != "spiffe://attache.test/agent/a" {
		t.Errorf("ID %s", s.ID)
	}
	if _, err := jwtsvid.ParseAndValidate(tok, b, []string{"other"}); err == nil {
		t.Error("token valid for another audience")
	}
}

func TestClientAssertion(t *testing.T) {
	i := start(t, issuer.Config{})
	tok, _ := mint(t, i, identity.JWTRequest{ClientID: "agent-client", Audience: "https://as.example"})
	c := claims(t, tok, i.Keys(t.Context()))
	if c["iss"] != "agent-client" || c["sub"] != "agent-client" || c["aud"] != "https://as.example" || c["jti"] == nil {
		t.Errorf("claims %v", c)
	}
}

func TestJWTRefusals(t *testing.T) {
	i := start(t, issuer.Config{URL: "https://id.example"})
	other := &identity.Workload{ID: spiffeid.RequireFromString("spiffe://other.test/a")}
	for _, tt := range []struct {
		name string
		r    identity.JWTRequest
		want string
	}{
		{"no workload", identity.JWTRequest{Audience: "x"}, "no workload"},
		{"nobody", identity.JWTRequest{Workload: &identity.Workload{}, Audience: "x"}, "no workload"},
		{"other trust domain", identity.JWTRequest{Workload: other, Audience: "x"}, "not in trust domain"},
		{"the trust domain", identity.JWTRequest{Workload: &identity.Workload{ID: td().ID()}, Audience: "x"}, "trust domain itself"},
		{"no audience", identity.JWTRequest{Workload: workload("/a")}, "no audience"},
		{"negative ttl", identity.JWTRequest{Workload: workload("/a"), Audience: "x", TTL: -1}, "at least 1s"},
		{"sub", identity.JWTRequest{Workload: workload("/a"), Audience: "x", Claims: map[string]any{"sub": "x"}}, `"sub" is registered`},
		{"Exp", identity.JWTRequest{Workload: workload("/a"), Audience: "x", Claims: map[string]any{"Exp": 1}}, `"Exp" is registered`},
		{"another's id as client", identity.JWTRequest{Workload: workload("/a"), Audience: "x", ClientID: "spiffe://attache.test/b"}, "another workload"},
		{"issuer as client", identity.JWTRequest{Workload: workload("/a"), Audience: "x", ClientID: "https://id.example/"}, "own URL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := i.JWT(t.Context(), tt.r); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v; want %q", err, tt.want)
			}
		})
	}
	if _, err := i.X509(t.Context(), other); err == nil {
		t.Error("X.509-SVID for another trust domain")
	}
}

func TestConfigRefusals(t *testing.T) {
	for _, tt := range []struct {
		name string
		c    issuer.Config
		want string
	}{
		{"no trust domain", issuer.Config{}, "no trust domain"},
		{"http", issuer.Config{TrustDomain: td(), URL: "http://x"}, "must be https"},
		{"query", issuer.Config{TrustDomain: td(), URL: "https://x?y"}, "query"},
		{"fragment", issuer.Config{TrustDomain: td(), URL: "https://x#"}, "fragment"},
		{"slash", issuer.Config{TrustDomain: td(), URL: "https://x/"}, "slash"},
		{"cache over ahead", issuer.Config{TrustDomain: td(), CacheLifetime: 2 * time.Hour}, "CacheLifetime"},
		{"ahead over term", issuer.Config{TrustDomain: td(), PublishAhead: 24 * time.Hour}, "PublishAhead"},
		{"negative", issuer.Config{TrustDomain: td(), RotateEvery: -1}, "negative"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := issuer.New(t.Context(), tt.c); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v; want %q", err, tt.want)
			}
		})
	}
}

func TestX509SVID(t *testing.T) {
	i := start(t, issuer.Config{})
	w := workload("/agent/a")
	s, err := i.X509(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	b, err := i.Bundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := x509svid.Verify(s.Certificates, b)
	if err != nil || id != w.ID {
		t.Fatalf("verify: %v %v", id, err)
	}
	leaf := s.Certificates[0]
	if leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature || len(leaf.URIs) != 1 || len(leaf.DNSNames) != 0 {
		t.Errorf("leaf is no X.509-SVID: ca %v usage %v uris %v", leaf.IsCA, leaf.KeyUsage, leaf.URIs)
	}
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life > time.Hour+issuer.Backdate+time.Second {
		t.Errorf("lives %v", life)
	}
	ca := b.X509Authorities()[0]
	if !ca.IsCA || ca.KeyUsage&x509.KeyUsageCertSign == 0 || len(ca.URIs) != 1 || ca.URIs[0].String() != "spiffe://attache.test" {
		t.Errorf("authority %v %v", ca.KeyUsage, ca.URIs)
	}
	// go-spiffe's own strict parser reads what we marshal.
	c, k, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x509svid.Parse(c, k); err != nil {
		t.Error(err)
	}
	again, err := i.X509(t.Context(), w)
	if err != nil || again != s {
		t.Errorf("a second SVID at once (%v)", err)
	}
	if o, err := i.X509(t.Context(), workload("/agent/b")); err != nil || o.ID == s.ID || o.Certificates[0].Equal(leaf) {
		t.Errorf("another workload got the same SVID (%v)", err)
	}
}

func TestX509Rotation(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	i := start(t, issuer.Config{Now: func() time.Time { return now }})
	w := workload("/a")
	type fetched struct {
		at    time.Time
		roots []*x509.Certificate
	}
	var bundles []fetched
	signers := map[string]bool{}
	for range 30 * 24 * 3 { // thirty days in steps of 20 minutes
		s, err := i.X509(t.Context(), w)
		if err != nil {
			t.Fatal(err)
		}
		leaf := s.Certificates[0]
		if left := leaf.NotAfter.Sub(now); left < 30*time.Minute {
			t.Fatalf("SVID with %v left", left)
		}
		b, err := i.Bundle(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		signers[string(leaf.AuthorityKeyId)] = true
		bundles = append(bundles, fetched{now, b.X509Authorities()})
		for _, f := range bundles[max(0, len(bundles)-3):] { // up to 40 minutes old
			pool := x509.NewCertPool()
			for _, c := range f.roots {
				pool.AddCert(c)
			}
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
				t.Fatalf("bundle of %v refuses SVID at %v: %v", f.at, now, err)
			}
		}
		now = now.Add(20 * time.Minute)
	}
	if len(signers) < 4 {
		t.Errorf("%d authorities in 30 days", len(signers))
	}
	if n := len(bundles[len(bundles)-1].roots); n > 3 {
		t.Errorf("%d authorities pile up", n)
	}
}

// TestDiscoveryOverHTTPS has go-oidc find the keys and verify a token, with
// nothing given but the URL and the authority.
func TestDiscoveryOverHTTPS(t *testing.T) {
	for _, path := range []string{"", "/tenant/one"} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		i := start(t, issuer.Config{URL: "https://" + ln.Addr().String() + path})
		done := make(chan error, 1)
		go func() { done <- i.ServeTLS(ln, nil) }()
		hc := client(t, i)
		ctx := oidc.ClientContext(t.Context(), hc)
		p, err := oidc.NewProvider(ctx, i.URL())
		if err != nil {
			t.Fatal(err)
		}
		tok, _ := mint(t, i, identity.JWTRequest{Audience: "me"})
		v := p.Verifier(&oidc.Config{ClientID: "me"})
		if _, err := v.Verify(ctx, tok); err != nil {
			t.Error(err)
		}
		body, h := get(t, hc, i.URL()+issuer.KeysPath, http.StatusOK)
		if h.Get("Cache-Control") != "public, max-age=900" || h.Get("ETag") == "" {
			t.Errorf("cache headers %v", h)
		}
		var raw struct{ Keys []map[string]any }
		if err := json.Unmarshal(body, &raw); err != nil || len(raw.Keys) != 1 {
			t.Fatalf("keys %s %v", body, err)
		}
		if k := raw.Keys[0]; k["use"] != "sig" || k["alg"] != "ES256" || k["kty"] != "EC" || k["kid"] == "" || k["d"] != nil {
			t.Errorf("key %v", k)
		}
		body, _ = get(t, hc, i.URL()+issuer.BundlePath, http.StatusOK)
		b, err := spiffebundle.Parse(td(), body)
		if err != nil || len(b.X509Authorities()) != 1 || len(b.JWTAuthorities()) != 1 {
			t.Fatalf("bundle %s %v", body, err)
		}
		if n, ok := b.SequenceNumber(); !ok || n != 1 {
			t.Errorf("sequence %d", n)
		}
		get(t, hc, i.URL()+"/other", http.StatusNotFound)
		if err := i.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func client(t *testing.T, i *issuer.Issuer) *http.Client {
	t.Helper()
	b, err := i.Bundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	for _, c := range b.X509Authorities() {
		pool.AddCert(c)
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 5 * time.Second}
}

func get(t *testing.T, hc *http.Client, url string, want int) ([]byte, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != want {
		t.Fatalf("%s: %s %v; want %d", url, res.Status, err, want)
	}
	return b, res.Header
}

func TestExport(t *testing.T) {
	dir := t.TempDir()
	i := start(t, issuer.Config{URL: "https://static.example/id"})
	if err := i.Export(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	// A static web host that knows nothing but files.
	hc := &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		path, ok := strings.CutPrefix(r.URL.String(), "https://static.example/id/")
		if !ok {
			return nil, errors.New("not here: " + r.URL.String())
		}
		b, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(path)))
		if err != nil {
			return nil, err
		}
		return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(string(b))), Request: r}, nil
	})}
	ctx := oidc.ClientContext(t.Context(), hc)
	p, err := oidc.NewProvider(ctx, "https://static.example/id")
	if err != nil {
		t.Fatal(err)
	}
	tok, _ := mint(t, i, identity.JWTRequest{Audience: "cloud"})
	if _, err := p.Verifier(&oidc.Config{ClientID: "cloud"}).Verify(ctx, tok); err != nil {
		t.Error(err)
	}
	key, err := issuer.Memory{}.Next(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	priv := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.(*ecdsa.PrivateKey), KeyID: "k"}}}
	if err := issuer.Export(dir, "https://static.example/id", priv); err == nil {
		t.Error("a private key was exported")
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || slices.ContainsFunc(left, func(s string) bool { return strings.Contains(s, "export-") }) {
		t.Errorf("left behind: %v %v", left, err)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestServeAfterClose(t *testing.T) {
	i := start(t, issuer.Config{})
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := i.ServeTLS(ln, nil); err == nil {
		t.Error("served after Close")
	}
	if _, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", ln.Addr().String()); err == nil {
		t.Error("listener left open")
	}
}
