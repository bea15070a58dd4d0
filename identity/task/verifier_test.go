package task_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/identitytest"
	"github.com/attache-dev/attache/identity/task"
	"github.com/attache-dev/attache/internal/secret"
)

const agentID = "spiffe://attache.test/agent/a"

func agent() *identity.Workload {
	return &identity.Workload{ID: spiffeid.RequireFromString(agentID), RunID: strings.Repeat("ab", 16)}
}

func humans(p *identitytest.Provider) v1alpha1.HumanIssuer {
	return v1alpha1.HumanIssuer{Issuer: p.URL, Audiences: []string{"attache", "attache-2"}, CABundle: p.CAPEM()}
}

func verifier(t *testing.T, c task.VerifierConfig) *task.Verifier {
	t.Helper()
	v, err := task.NewVerifier(c)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// grant is a good token's claims, with changes.
func grant(p *identitytest.Provider, change map[string]any) map[string]any {
	now := time.Now().Unix()
	c := map[string]any{
		"iss": p.URL, "sub": "alice", "aud": "attache", "iat": now, "exp": now + 600,
		"jti":     "jti-" + time.Now().Format(time.RFC3339Nano),
		"may_act": map[string]any{"sub": agentID},
		"email":   "alice@example.com", "email_verified": true, "groups": []string{"dev", "ops"},
	}
	maps.Copy(c, change)
	return c
}

func TestVerify(t *testing.T) {
	p := identitytest.NewProvider(t)
	v := verifier(t, task.VerifierConfig{Issuers: []v1alpha1.HumanIssuer{humans(p)}})
	now := time.Now().Unix()
	for _, tt := range []struct {
		name   string
		change map[string]any
		want   task.Code // "" is accepted
		text   string
	}{
		{name: "good"},
		{name: "aud list", change: map[string]any{"aud": []string{"other", "attache-2"}}},
		{name: "azp binds", change: map[string]any{"may_act": nil, "azp": agentID}},
		{name: "clock behind by 50 s", change: map[string]any{"iat": now + 50, "nbf": now + 50}},
		{name: "ended 30 s ago", change: map[string]any{"exp": now - 30}},
		{name: "fractions", change: map[string]any{"iat": float64(now) + 0.5}},
		{"expired", map[string]any{"exp": now - 61}, task.CodeExpired, "expired at"},
		{"no exp", map[string]any{"exp": nil}, task.CodeMalformed, "no exp"},
		{"exp null", map[string]any{"exp": jwt.Claims{}}, task.CodeMalformed, "exp"},
		{"wrong audience", map[string]any{"aud": "other"}, task.CodeAudience, "aud attache or attache-2"},
		{"no audience", map[string]any{"aud": nil}, task.CodeAudience, ""},
		{"nbf", map[string]any{"nbf": now + 120}, task.CodeNotYetValid, "not valid before"},
		{"no iat", map[string]any{"iat": nil}, task.CodeMalformed, "no iat"},
		{"iat in the future", map[string]any{"iat": now + 120}, task.CodeNotYetValid, "in the future"},
		{"stale", map[string]any{"iat": now - 700}, task.CodeStale, "older than 10m"},
		{"no jti", map[string]any{"jti": nil}, task.CodeMalformed, "no jti"},
		{"no sub", map[string]any{"sub": nil}, task.CodeMalformed, "no sub"},
		{"control character", map[string]any{"sub": "al\nice"}, task.CodeMalformed, "sub"},
		{"unbound", map[string]any{"may_act": nil}, task.CodeBinding, agentID},
		{"bound to another", map[string]any{"may_act": map[string]any{"sub": agentID + "b"}}, task.CodeBinding, agentID},
		{"may_act outweighs azp", map[string]any{"may_act": map[string]any{"sub": "x"}, "azp": agentID}, task.CodeBinding, ""},
		{"logout token", map[string]any{"events": map[string]any{}}, task.CodeMalformed, "logout"},
		{"unknown issuer", map[string]any{"iss": "https://evil.example"}, task.CodeUnknownIssuer, p.URL},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tok := p.Sign(t, "", grant(p, tt.change))
			got, err := v.Verify(t.Context(), secret.New(tok), agent())
			if code := task.CodeOf(err); code != tt.want || (err == nil) != (tt.want == "") {
				t.Fatalf("got %v; want code %q", err, tt.want)
			}
			if err != nil {
				if !strings.Contains(err.Error(), tt.text) {
					t.Errorf("got %q; want %q in it", err, tt.text)
				}
				noToken(t, err, tok)
				return
			}
			if got.Human.Subject != "alice" || got.Human.Issuer != p.URL || got.Human.Email != "alice@example.com" || len(got.Human.Groups) != 2 {
				t.Errorf("human %+v", got.Human)
			}
		})
	}
}

// noToken fails if an error holds any part of a token.
func noToken(t *testing.T, err error, tok string) {
	t.Helper()
	for e := err; e != nil; e = errors.Unwrap(e) {
		for part := range strings.SplitSeq(tok, ".") {
			if len(part) > 8 && strings.Contains(e.Error(), part[:8]) && part[:3] != "eyJ" || strings.Contains(e.Error(), tok) {
				t.Errorf("error repeats the token: %v", e)
			}
		}
	}
}

func TestVerifyOnce(t *testing.T) {
	p := identitytest.NewProvider(t)
	now := time.Now()
	v := verifier(t, task.VerifierConfig{Issuers: []v1alpha1.HumanIssuer{humans(p)}, Now: func() time.Time { return now }, MaxRemembered: 2})
	tok := secret.New(p.Sign(t, "", grant(p, map[string]any{"exp": now.Unix() + 3600})))
	if _, err := v.Verify(t.Context(), tok, &identity.Workload{ID: spiffeid.RequireFromString("spiffe://attache.test/b")}); task.CodeOf(err) != task.CodeBinding {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), tok, agent()); err != nil {
		t.Fatalf("a refused use spent the token: %v", err)
	}
	// At no later moment is it taken again: while remembered it is a replay,
	// after that it is stale.
	for range 30 {
		if _, err := v.Verify(t.Context(), tok, agent()); err == nil {
			t.Fatalf("replayed at %v", now)
		}
		now = now.Add(30 * time.Second)
	}
	// The memory is full: refuse rather than forget.
	now = time.Now()
	if _, err := v.Verify(t.Context(), secret.New(p.Sign(t, "", grant(p, nil))), agent()); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), secret.New(p.Sign(t, "", grant(p, nil))), agent()); task.CodeOf(err) != task.CodeLimit {
		t.Errorf("got %v", err)
	}
	now = now.Add(13 * time.Minute)
	fresh := grant(p, map[string]any{"iat": now.Unix(), "exp": now.Unix() + 60})
	if _, err := v.Verify(t.Context(), secret.New(p.Sign(t, "", fresh)), agent()); err != nil {
		t.Errorf("room was not made: %v", err)
	}
}

func TestVerifyWithoutBinding(t *testing.T) {
	p := identitytest.NewProvider(t)
	h, no := humans(p), false
	h.RequireBinding = &no
	v := verifier(t, task.VerifierConfig{Issuers: []v1alpha1.HumanIssuer{h}})
	tok := p.Sign(t, "at+jwt", grant(p, map[string]any{"may_act": nil, "email_verified": false}))
	got, err := v.Verify(t.Context(), secret.New(tok), agent())
	if err != nil || got.TokenType != "urn:ietf:params:oauth:token-type:access_token" {
		t.Errorf("%+v %v", got, err)
	}
	if got.Human.Email != "" {
		t.Error("an unverified email counts")
	}
}

// TestForgery: what no key of the issuer signed is refused, whatever it says.
func TestForgery(t *testing.T) {
	p, evil := identitytest.NewProvider(t), identitytest.NewProvider(t)
	v := verifier(t, task.VerifierConfig{Issuers: []v1alpha1.HumanIssuer{humans(p)}})
	hs, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: []byte(strings.Repeat("k", 32))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	symmetric, err := jwt.Signed(hs).Claims(grant(p, nil)).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	good := p.Sign(t, "", grant(p, nil))
	parts := strings.Split(good, ".")
	other := strings.Split(p.Sign(t, "", grant(p, map[string]any{"sub": "bob"})), ".")
	for _, tt := range []struct {
		name, tok string
		want      task.Code
	}{
		{"another's key", evil.Sign(t, "", grant(p, nil)), task.CodeSignature},
		{"swapped claims", parts[0] + "." + other[1] + "." + parts[2], task.CodeSignature},
		{"symmetric", symmetric, task.CodeMalformed},
		{"none", "eyJhbGciOiJub25lIn0." + parts[1] + ".", task.CodeMalformed},
		{"empty", "", task.CodeMalformed},
		{"garbage", "x.y.z", task.CodeMalformed},
		{"huge", good + strings.Repeat("A", 20000), task.CodeMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := v.Verify(t.Context(), secret.New(tt.tok), agent())
			if task.CodeOf(err) != tt.want {
				t.Errorf("got %v; want %s", err, tt.want)
			}
		})
	}
	if _, err := v.Verify(t.Context(), secret.New(good), agent()); err != nil {
		t.Errorf("the good token: %v", err)
	}
	p.Rotate(t)
	if _, err := v.Verify(t.Context(), secret.New(p.Sign(t, "", grant(p, nil))), agent()); err != nil {
		t.Errorf("after rotation: %v", err)
	}
}

// TestWithdrawnKey: a key that left the JWKS is not trusted for ever.
func TestWithdrawnKey(t *testing.T) {
	p := identitytest.NewProvider(t)
	now := time.Now()
	v := verifier(t, task.VerifierConfig{Issuers: []v1alpha1.HumanIssuer{humans(p)}, Now: func() time.Time { return now }})
	later := map[string]any{"iat": now.Unix() + 660, "exp": now.Unix() + 1200}
	stolen := p.Sign(t, "", grant(p, later))
	if _, err := v.Verify(t.Context(), secret.New(p.Sign(t, "", grant(p, nil))), agent()); err != nil {
		t.Fatal(err)
	}
	p.Rotate(t)
	now = now.Add(11 * time.Minute)
	if _, err := v.Verify(t.Context(), secret.New(stolen), agent()); task.CodeOf(err) != task.CodeSignature {
		t.Errorf("got %v", err)
	}
}

// TestBadIssuers: an issuer that misbehaves costs bounded time and memory and
// is not followed elsewhere.
func TestBadIssuers(t *testing.T) {
	elsewhere := 0
	other := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere++ }))
	defer other.Close()
	jwks := func(f http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/jwks" {
				return false
			}
			f(w, r)
			return true
		}
	}
	for _, tt := range []struct {
		name string
		hook func(http.ResponseWriter, *http.Request) bool
	}{
		{"500", jwks(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "marker-body", 500) })},
		{"10 MiB", jwks(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"keys":[],"x":"`)
			_, _ = io.WriteString(w, strings.Repeat("y", 10<<20)+`"}`)
		})},
		{"redirect", jwks(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, http.StatusFound) })},
		{"slow", jwks(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })},
		{"discovery 500", func(w http.ResponseWriter, _ *http.Request) bool { http.Error(w, "marker-body", 500); return true }},
		{"discovery lies", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"issuer":"https://other.example","jwks_uri":"https://other.example/k"}`)
			return true
		}},
		{"cleartext keys", func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"issuer":"https://`+r.Host+`","jwks_uri":"http://`+r.Host+`/jwks"}`)
			return true
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := identitytest.NewProvider(t)
			p.Hook(tt.hook)
			v := verifier(t, task.VerifierConfig{Issuers: []v1alpha1.HumanIssuer{humans(p)}})
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, err := v.Verify(ctx, secret.New(p.Sign(t, "", grant(p, nil))), agent())
			if task.CodeOf(err) != task.CodeUnavailable || !errors.Is(err, identity.ErrUnavailable) {
				t.Errorf("got %v", err)
			}
			for e := err; e != nil; e = errors.Unwrap(e) {
				if strings.Contains(e.Error(), "marker-body") {
					t.Errorf("the answer's body is in the error: %v", e)
				}
			}
			if tt.name == "slow" { // go-oidc still waits for the first answer
				return
			}
			p.Hook(nil)
			if _, err := v.Verify(t.Context(), secret.New(p.Sign(t, "", grant(p, nil))), agent()); err != nil {
				t.Errorf("does not recover: %v", err)
			}
		})
	}
	t.Cleanup(func() {
		if elsewhere > 0 {
			t.Error("a redirect was followed")
		}
	})
}

// TestBadTokensDoNotFlood: forged tokens with fresh key ids do not become
// requests to the issuer.
func TestBadTokensDoNotFlood(t *testing.T) {
	p, evil := identitytest.NewProvider(t), identitytest.NewProvider(t)
	v := verifier(t, task.VerifierConfig{Issuers: []v1alpha1.HumanIssuer{humans(p)}})
	tok := secret.New(evil.Sign(t, "", grant(p, nil)))
	for range 100 {
		if _, err := v.Verify(t.Context(), tok, agent()); err == nil {
			t.Fatal("accepted")
		}
	}
	if n := p.Requests(); n > 20 {
		t.Errorf("%d requests for 100 bad tokens", n)
	}
}

func TestPinnedAddress(t *testing.T) {
	p := identitytest.NewProvider(t)
	// The certificate of httptest names example.com; no resolver is asked.
	issuer := strings.Replace(p.URL, "127.0.0.1", "example.com", 1)
	p.Hook(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "openid-configuration") {
			return false
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"issuer":"`+issuer+`","jwks_uri":"`+issuer+`/jwks"}`)
		return true
	})
	h := humans(p)
	h.Issuer, h.Addresses = issuer, []string{"127.0.0.1"}
	v := verifier(t, task.VerifierConfig{Issuers: []v1alpha1.HumanIssuer{h}})
	if _, err := v.Verify(t.Context(), secret.New(p.Sign(t, "", grant(p, map[string]any{"iss": issuer}))), agent()); err != nil {
		t.Error(err)
	}
}

func TestVerifierConfig(t *testing.T) {
	ok := v1alpha1.HumanIssuer{Issuer: "https://a", Audiences: []string{"x"}}
	for _, tt := range []struct {
		name string
		h    []v1alpha1.HumanIssuer
		want string
	}{
		{"http", []v1alpha1.HumanIssuer{{Issuer: "http://a", Audiences: []string{"x"}}}, "humans[0]: issuer"},
		{"no audience", []v1alpha1.HumanIssuer{{Issuer: "https://a"}}, "audiences"},
		{"twice", []v1alpha1.HumanIssuer{ok, ok}, "humans[1].issuer"},
		{"address", []v1alpha1.HumanIssuer{{Issuer: "https://a", Audiences: []string{"x"}, Addresses: []string{"host"}}}, "addresses[0]"},
		{"ca file", []v1alpha1.HumanIssuer{{Issuer: "https://a", Audiences: []string{"x"}, CAFile: "/none"}}, "caFile"},
		{"ca bundle", []v1alpha1.HumanIssuer{{Issuer: "https://a", Audiences: []string{"x"}, CABundle: "x"}}, "caBundle"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := task.NewVerifier(task.VerifierConfig{Issuers: tt.h}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v; want %q", err, tt.want)
			}
		})
	}
}

// TestActors: the chain of agents that a token names comes out in its order, and
// one that is not as RFC 8693 has it is refused.
func TestActors(t *testing.T) {
	p := identitytest.NewProvider(t)
	v := verifier(t, task.VerifierConfig{Issuers: []v1alpha1.HumanIssuer{humans(p)}})
	nested := func(depth int) map[string]any {
		m := map[string]any{"sub": "last"}
		for range depth - 1 {
			m = map[string]any{"sub": "x", "act": m}
		}
		return m
	}
	for _, tt := range []struct {
		name string
		act  any
		want []identity.Actor // nil: refused
	}{
		{"two", map[string]any{"sub": agentID, "iss": "https://sts.example.com", "act": map[string]any{"sub": "spiffe://local/agent/planner"}},
			[]identity.Actor{{Subject: agentID, Issuer: "https://sts.example.com"}, {Subject: "spiffe://local/agent/planner"}}},
		{"by client", map[string]any{"client_id": "planner"}, []identity.Actor{{Subject: "planner"}}},
		{"eight", nested(8), append(slices.Repeat([]identity.Actor{{Subject: "x"}}, 7), identity.Actor{Subject: "last"})},
		{"nine", nested(9), nil},
		{"a text", "planner", nil},
		{"nobody", map[string]any{"iss": "https://sts.example.com"}, nil},
		{"control", map[string]any{"sub": "a\nb"}, nil},
		{"null below", map[string]any{"sub": "a", "act": nil}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := v.Verify(t.Context(), secret.New(p.Sign(t, "", grant(p, map[string]any{"act": tt.act, "jti": tt.name}))), agent())
			if tt.want == nil {
				if task.CodeOf(err) != task.CodeMalformed {
					t.Errorf("got %v, want a malformed token", err)
				}
				return
			}
			if err != nil || !slices.Equal(got.Actors, tt.want) {
				t.Errorf("got %v %v, want %v", got.Actors, err, tt.want)
			}
		})
	}
}
