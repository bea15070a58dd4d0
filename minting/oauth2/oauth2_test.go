package oauth2_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/dpop"
	"github.com/attache-dev/attache/minting/mintingtest"
	"github.com/attache-dev/attache/minting/oauth2"
)

const humanToken = "human-token-human-token-human-token"

// as is a small authorization server that answers what it is told and keeps
// what it got.
type as struct {
	mu      sync.Mutex
	answer  func(w http.ResponseWriter, r *http.Request)
	form    url.Values
	json    map[string]any
	header  http.Header
	calls   int
	revoked []string
	wrong   string // issuer in the metadata, if it lies
}

func (a *as) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	base := "https://" + r.Host
	switch r.URL.Path {
	case "/.well-known/oauth-authorization-server":
		iss := base
		if a.wrong != "" {
			iss = a.wrong
		}
		fmt.Fprintf(w, `{"issuer":%q,"token_endpoint":%q,"revocation_endpoint":%q}`, iss, base+"/token", base+"/revoke")
	case "/revoke":
		_ = r.ParseForm()
		if r.PostForm.Get("client_assertion") == "" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		a.revoked = append(a.revoked, r.PostForm.Get("token"))
	case "/token":
		a.calls++
		a.header = r.Header.Clone()
		b, _ := io.ReadAll(r.Body)
		a.form, _ = url.ParseQuery(string(b))
		a.json = nil
		_ = json.Unmarshal(b, &a.json)
		a.answer(w, r)
	default:
		http.NotFound(w, r)
	}
}

func says(body string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, body)
	}
}

type rig struct {
	as     *as
	url    string
	source *mintingtest.Source
	m      *oauth2.Minter
	ev     minting.Evidence
	req    minting.Request
}

func setup(t *testing.T, spec v1alpha1.OAuth2, answer string) *rig {
	t.Helper()
	g := &rig{as: &as{answer: says(answer)}, source: mintingtest.NewSource(t)}
	srv, deps := mintingtest.Serve(t, g.as)
	g.url = srv.URL
	if spec.Issuer == "" && spec.TokenEndpoint == "" {
		spec.Issuer = srv.URL
	}
	m, err := oauth2.New("p", spec, deps)
	if err != nil {
		t.Fatal(err)
	}
	g.m = m
	g.ev = minting.Evidence{Workload: mintingtest.Workload(), Source: g.source, Task: mintingtest.Task(humanToken)}
	g.req = mintingtest.Request("p", g.ev)
	return g
}

func (g *rig) mint(t *testing.T) (minting.Credential, error) {
	t.Helper()
	return g.m.Mint(t.Context(), g.req, g.ev)
}

const good = `{"access_token":"at-1","token_type":"Bearer","expires_in":3600}`

func TestConformance(t *testing.T) {
	mintingtest.Run(t, mintingtest.Suite{New: func(t *testing.T, m mintingtest.Mode) mintingtest.Fixture {
		t.Helper()
		src := mintingtest.NewSource(t)
		const access = "at-granted-granted-granted"
		var revoked bool
		token := mintingtest.Issuer(t, m, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			text := access
			if m == mintingtest.Header {
				text += "\r\nX-Admin: yes"
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"access_token": text, "token_type": "Bearer", "expires_in": 60})
		}), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = r.ParseForm()
			w.WriteHeader(http.StatusUnauthorized)
			// A server that repeats what it got, in more than one way.
			_ = json.NewEncoder(w).Encode(map[string]any{
				"error":             "invalid_client",
				"error_description": "bad assertion " + r.PostForm.Get("client_assertion") + " or " + r.PostForm.Get("client_assertion")[40:60] + " for " + r.PostForm.Get("subject_token"),
			})
		}))
		mux := http.NewServeMux()
		mux.Handle("/token", token)
		mux.HandleFunc("/revoke", func(_ http.ResponseWriter, r *http.Request) {
			_ = r.ParseForm()
			revoked = r.PostForm.Get("token") == access
		})
		srv, deps := mintingtest.Serve(t, mux)
		p, err := oauth2.New("p", v1alpha1.OAuth2{
			TokenEndpoint: srv.URL + "/token", RevocationEndpoint: srv.URL + "/revoke", Grant: "tokenExchange",
		}, deps)
		if err != nil {
			t.Fatal(err)
		}
		e := minting.Evidence{Workload: mintingtest.Workload(), Source: src, Task: mintingtest.Task(humanToken)}
		return mintingtest.Fixture{
			Minter: p, Request: mintingtest.Request("p", e), Evidence: e, Want: access,
			Secrets: func() []string { return append(src.Signed(), humanToken, access) },
			Revoked: func() bool { return revoked },
		}
	}})
}

// What each grant and way of authentication puts on the wire.
func TestWire(t *testing.T) {
	const id = "spiffe://example.org/agent/a"
	tests := []struct {
		name     string
		spec     v1alpha1.OAuth2
		change   func(*minting.Request)
		want     map[string]string // exact; "*" is any
		resource []string
	}{
		{
			name: "client credentials with private_key_jwt",
			spec: v1alpha1.OAuth2{Grant: "clientCredentials", ClientID: "app", Scopes: []string{"read", "write"}},
			want: map[string]string{
				"grant_type": "client_credentials", "client_id": "app", "scope": "read write",
				"client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion": "*",
			},
		},
		{
			name: "the rule's words go before the provider's",
			spec: v1alpha1.OAuth2{Grant: "clientCredentials", Scopes: []string{"all"}, Audience: "x", Resources: []string{"https://x.example"}},
			change: func(r *minting.Request) {
				r.Scope, r.Audience, r.Resources = []string{"read"}, "y", []string{"https://a.example", "https://b.example"}
			},
			want: map[string]string{
				"grant_type": "client_credentials", "client_id": id, "scope": "read", "audience": "y", "resource": "https://a.example",
				"client_assertion_type": "*", "client_assertion": "*",
			},
			resource: []string{"https://a.example", "https://b.example"},
		},
		{
			name: "JWT-SVID by the SPIFFE draft needs no client id",
			spec: v1alpha1.OAuth2{Grant: "clientCredentials", ClientAuth: "jwtSPIFFE"},
			want: map[string]string{
				"grant_type": "client_credentials", "client_assertion": "*",
				"client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe",
			},
		},
		{
			name: "token exchange: human by workload",
			spec: v1alpha1.OAuth2{Grant: "tokenExchange", RequestedTokenType: "urn:ietf:params:oauth:token-type:access_token"},
			want: map[string]string{
				"grant_type":    "urn:ietf:params:oauth:grant-type:token-exchange",
				"subject_token": humanToken, "subject_token_type": "urn:ietf:params:oauth:token-type:id_token",
				"actor_token": "*", "actor_token_type": "urn:ietf:params:oauth:token-type:jwt",
				"requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
				"client_id":            id, "client_assertion_type": "*", "client_assertion": "*",
			},
		},
		{
			name: "token exchange: workload alone, as a vendor wants it",
			spec: v1alpha1.OAuth2{
				Grant: "tokenExchange", Subject: "workload", ClientAuth: "none", Body: "json",
				Extra: map[string]string{"identity_provider_id": "idp_1"},
			},
			want: map[string]string{
				"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token": "*",
				"subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "identity_provider_id": "idp_1",
			},
		},
		{
			name: "JWT bearer in JSON with a vendor's fields",
			spec: v1alpha1.OAuth2{
				Grant: "jwtBearer", Body: "json", Headers: map[string]string{"anthropic-beta": "oidc"},
				Extra: map[string]string{"federation_rule_id": "fdrl_1", "organization_id": "o"},
			},
			want: map[string]string{
				"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": "*",
				"federation_rule_id": "fdrl_1", "organization_id": "o",
			},
		},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			answer := strings.Replace(good, `"expires_in"`, `"issued_token_type":"urn:ietf:params:oauth:token-type:access_token","expires_in"`, 1)
			g := setup(t, tc.spec, answer)
			if tc.change != nil {
				tc.change(&g.req)
			}
			if _, err := g.mint(t); err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for k := range g.as.form {
				got[k] = g.as.form.Get(k)
			}
			if tc.spec.Body == "json" {
				clear(got)
				for k, v := range g.as.json {
					got[k] = fmt.Sprint(v)
				}
			}
			for k, v := range tc.want {
				if v == "*" && got[k] != "" {
					got[k] = "*"
				}
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("request (-want +got):\n%s", d)
			}
			if tc.resource != nil {
				if d := cmp.Diff(tc.resource, g.as.form["resource"]); d != "" {
					t.Errorf("resource (-want +got):\n%s", d)
				}
			}
			for k, v := range tc.spec.Headers {
				if g.as.header.Get(k) != v {
					t.Errorf("header %s = %q, want %q", k, g.as.header.Get(k), v)
				}
			}
			for _, a := range g.source.Asked() { // RFC 7523bis: the issuer and nobody else
				if a.Audience != g.url {
					t.Errorf("an assertion is for %q, want the issuer %q", a.Audience, g.url)
				}
			}
		})
	}
}

// RFC 7523 section 3: iss = sub = client_id, one audience, a jti; new each
// time.
func TestPrivateKeyJWT(t *testing.T) {
	g := setup(t, v1alpha1.OAuth2{Grant: "clientCredentials", ClientID: "app"}, good)
	seen := map[string]bool{}
	for range 2 {
		if _, err := g.mint(t); err != nil {
			t.Fatal(err)
		}
		tok, err := jwt.ParseSigned(g.as.form.Get("client_assertion"), []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			t.Fatal(err)
		}
		var c jwt.Claims
		if err := tok.Claims(g.source.Key.Public(), &c); err != nil {
			t.Fatal(err)
		}
		if c.Issuer != "app" || c.Subject != "app" || len(c.Audience) != 1 || c.Audience[0] != g.url || c.ID == "" || seen[c.ID] {
			t.Errorf("claims %+v", c)
		}
		seen[c.ID] = true
	}
}

// Lying token endpoints.
func TestAnswers(t *testing.T) {
	tests := []struct {
		name, answer string
		ttl          time.Duration // of the request; 0: 5m
		life         time.Duration // until Expires; 0: refused
		outlives     bool
		denied       bool
	}{
		{name: "no expires_in", answer: `{"access_token":"a","token_type":"bearer"}`, life: time.Minute},
		{name: "null expires_in", answer: `{"access_token":"a","token_type":"bearer","expires_in":null}`, life: time.Minute},
		{name: "expires_in as text", answer: `{"access_token":"a","token_type":"bearer","expires_in":"120"}`, life: 2 * time.Minute},
		{name: "negative", answer: `{"access_token":"a","token_type":"Bearer","expires_in":-5}`},
		{name: "zero", answer: `{"access_token":"a","token_type":"Bearer","expires_in":0}`},
		{name: "words", answer: `{"access_token":"a","token_type":"Bearer","expires_in":"soon"}`},
		{name: "an object", answer: `{"access_token":"a","token_type":"Bearer","expires_in":{}}`},
		{name: "huge", answer: `{"access_token":"a","token_type":"Bearer","expires_in":9223372036854775807}`, life: 5 * time.Minute, outlives: true},
		{name: "beyond float", answer: `{"access_token":"a","token_type":"Bearer","expires_in":1e999}`, life: 5 * time.Minute, outlives: true},
		{name: "longer than the rule", answer: good, life: 5 * time.Minute, outlives: true},
		{name: "shorter than the rule", answer: good, ttl: 2 * time.Hour, life: time.Hour},
		{name: "wrong token_type", answer: `{"access_token":"a","token_type":"mac","expires_in":60}`},
		{name: "no token_type", answer: `{"access_token":"a","expires_in":60}`},
		{name: "DPoP unasked", answer: `{"access_token":"a","token_type":"DPoP","expires_in":60}`},
		{name: "N_A without exchange", answer: `{"access_token":"a","token_type":"N_A","expires_in":60}`},
		{name: "newline in token", answer: `{"access_token":"a\r\nX: y","token_type":"Bearer","expires_in":60}`},
		{name: "space in token", answer: `{"access_token":"a b","token_type":"Bearer","expires_in":60}`},
		{name: "control in token", answer: `{"access_token":"a\u0007","token_type":"Bearer","expires_in":60}`},
		{name: "non-ASCII token", answer: `{"access_token":"ä","token_type":"Bearer","expires_in":60}`},
		{name: "token is a number", answer: `{"access_token":12,"token_type":"Bearer","expires_in":60}`},
		{name: "two documents", answer: good + good},
		{name: "a list", answer: `[` + good + `]`},
		{name: "form-encoded", answer: "access_token=a&token_type=bearer"},
		{name: "scope wider", answer: `{"access_token":"a","token_type":"Bearer","expires_in":60,"scope":"read admin"}`, denied: true},
		{name: "scope as a list", answer: `{"access_token":"a","token_type":"Bearer","expires_in":60,"scope":["read"]}`},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			g := setup(t, v1alpha1.OAuth2{Grant: "clientCredentials", Scopes: []string{"read", "write"}}, tc.answer)
			if tc.ttl != 0 {
				g.req.TTL = tc.ttl
			}
			c, err := g.mint(t)
			if tc.life == 0 {
				want := minting.ErrUnavailable
				if tc.denied {
					want = minting.ErrDenied
				}
				if !errors.Is(err, want) {
					t.Fatalf("error %v, want %v", err, want)
				}
				if tc.denied && (len(g.as.revoked) != 1 || g.as.revoked[0] != "a") {
					t.Errorf("a refused token was left alive; revoked %v", g.as.revoked)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := c.Expires.Sub(c.Issued); got != tc.life {
				t.Errorf("life %v, want %v", got, tc.life)
			}
			if c.Outlives.IsZero() == tc.outlives || tc.outlives && !c.Outlives.After(c.Expires) {
				t.Errorf("Outlives = %v with Expires %v", c.Outlives, c.Expires)
			}
		})
	}
}

func TestNarrowerScopeIsRecorded(t *testing.T) {
	g := setup(t, v1alpha1.OAuth2{Grant: "clientCredentials", Scopes: []string{"read", "write"}}, `{"access_token":"a","token_type":"Bearer","expires_in":60,"scope":"read"}`)
	c, err := g.mint(t)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"read"}, c.Scope); d != "" {
		t.Error(d)
	}
	g.as.answer = says(good)
	if c, err = g.mint(t); err != nil || c.Scope != nil {
		t.Errorf("Scope = %v, %v; want nil where the server is silent", c.Scope, err)
	}
}

func TestAuthorizationDetails(t *testing.T) {
	const one, two = `{"type":"pay","limit":1}`, `{"limit":2,"type":"pay"}`
	tests := []struct {
		name, granted string
		ok            bool
	}{
		{"same", `[` + one + `]`, true},
		{"reordered", `[{"limit":1,"type":"pay"}]`, true},
		{"other", `[` + two + `]`, false},
		{"more", `[` + one + `,` + two + `]`, false},
		{"silent", ``, false},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			answer := `{"access_token":"a","token_type":"Bearer","expires_in":60}`
			if tc.granted != "" {
				answer = strings.TrimSuffix(answer, "}") + `,"authorization_details":` + tc.granted + `}`
			}
			for _, body := range []string{"form", "json"} {
				g := setup(t, v1alpha1.OAuth2{Grant: "clientCredentials", Body: body}, answer)
				g.req.AuthorizationDetails = `[` + one + `]`
				_, err := g.mint(t)
				if (err == nil) != tc.ok {
					t.Errorf("%s: %v", body, err)
				}
				if body == "json" {
					if _, ok := g.as.json["authorization_details"].([]any); !ok {
						t.Errorf("json body carries %v", g.as.json["authorization_details"])
					}
				}
			}
		})
	}
}

func unsigned(claims string) string {
	e := base64.RawURLEncoding.EncodeToString
	return e([]byte(`{"alg":"ES256"}`)) + "." + e([]byte(claims)) + ".c2ln"
}

func TestRequireAct(t *testing.T) {
	const me = "spiffe://example.org/agent/a"
	tests := []struct {
		name, token string
		ok          bool
	}{
		{"delegation", unsigned(`{"sub":"alice","act":{"sub":"` + me + `"}}`), true},
		{"impersonation", unsigned(`{"sub":"alice"}`), false},
		{"other actor", unsigned(`{"sub":"alice","act":{"sub":"spiffe://example.org/agent/b"}}`), false},
		{"other subject", unsigned(`{"sub":"mallory","act":{"sub":"` + me + `"}}`), false},
		{"opaque", "opaque", false},
		{"no JSON", "a.!.c", false},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			g := setup(t, v1alpha1.OAuth2{Grant: "tokenExchange", RequireAct: true},
				`{"access_token":"`+tc.token+`","token_type":"Bearer","expires_in":60,"issued_token_type":"urn:ietf:params:oauth:token-type:access_token"}`)
			_, err := g.mint(t)
			if tc.ok {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, minting.ErrDenied) {
				t.Fatalf("error %v, want ErrDenied", err)
			}
			if len(g.as.revoked) != 1 || g.as.revoked[0] != tc.token {
				t.Error("the refused token was left alive")
			}
		})
	}
}

func TestExchangeNeedsAHuman(t *testing.T) {
	g := setup(t, v1alpha1.OAuth2{Grant: "tokenExchange"}, good)
	g.ev.Task = nil
	if _, err := g.mint(t); !errors.Is(err, minting.ErrDenied) {
		t.Errorf("without a task: %v", err)
	}
	g.ev.Task = mintingtest.Task(humanToken)
	g.ev.Task.Expires = time.Now().Add(-time.Second)
	if _, err := g.mint(t); !errors.Is(err, minting.ErrDenied) {
		t.Errorf("with a task that ended: %v", err)
	}
	if g.as.calls != 0 {
		t.Errorf("%d calls to the server, want none", g.as.calls)
	}
}

func TestIssuedTokenType(t *testing.T) {
	const access, jag = "urn:ietf:params:oauth:token-type:access_token", "urn:ietf:params:oauth:token-type:id-jag"
	tests := []struct {
		requested, issued, kind string
		ok                      bool
	}{
		{"", "", "Bearer", true},
		{"", access, "Bearer", true},
		{"", jag, "N_A", false},
		{access, "", "Bearer", true},
		{access, jag, "Bearer", false},
		{access, access, "N_A", false}, // an access token says how it is used
		{jag, jag, "N_A", true},
		{jag, "", "N_A", false},
		{jag, access, "Bearer", false},
	}
	for _, tc := range tests {
		g := setup(t, v1alpha1.OAuth2{Grant: "tokenExchange", RequestedTokenType: tc.requested},
			fmt.Sprintf(`{"access_token":"a","token_type":%q,"issued_token_type":%q,"expires_in":60}`, tc.kind, tc.issued))
		if _, err := g.mint(t); (err == nil) != tc.ok {
			t.Errorf("requested %q, issued %q as %s: %v", tc.requested, tc.issued, tc.kind, err)
		}
	}
}

func TestDPoP(t *testing.T) {
	g := setup(t, v1alpha1.OAuth2{Grant: "clientCredentials", DPoP: true}, "")
	const bound = `{"access_token":"at","token_type":"DPoP","expires_in":60}`
	var proofs []string
	nonce := "n-1"
	g.as.answer = func(w http.ResponseWriter, r *http.Request) {
		p := r.Header.Get("DPoP")
		proofs = append(proofs, p)
		_, c := openProof(t, p)
		if c["htm"] != "POST" || c["htu"] != g.url+"/token" || c["ath"] != nil {
			t.Errorf("proof claims %v", c)
		}
		w.Header().Set("DPoP-Nonce", nonce)
		if c["nonce"] != nonce {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"error":"use_dpop_nonce"}`)
			return
		}
		_, _ = io.WriteString(w, bound)
	}
	c, err := g.mint(t)
	if err != nil {
		t.Fatal(err)
	}
	if len(proofs) != 2 {
		t.Errorf("%d attempts, want one and one with the nonce", len(proofs))
	}
	if c.Kind != minting.KindDPoP || c.Key == nil {
		t.Errorf("kind %q, key %v", c.Kind, c.Key)
	}
	key, _ := openProof(t, proofs[1])
	if thumb(t, key) != mustThumb(t, c) {
		t.Error("the token is bound to another key than the credential's")
	}
	c2, err := g.mint(t)
	if err != nil || len(proofs) != 3 {
		t.Errorf("the nonce was not remembered: %d attempts, %v", len(proofs), err)
	}
	if mustThumb(t, c) == mustThumb(t, c2) {
		t.Error("two credentials share a proof key")
	}
	g.req.KeyThumbprint = g.m.KeyThumbprint()
	if c, err = g.mint(t); err != nil || mustThumb(t, c) != g.req.KeyThumbprint {
		t.Errorf("a named key was not used: %v", err)
	}
	g.req.KeyThumbprint = "somebody-else"
	if _, err = g.mint(t); !errors.Is(err, minting.ErrDenied) {
		t.Errorf("a foreign key: %v", err)
	}
	// A server that always wants another nonce gets two attempts, not a loop.
	g.req.KeyThumbprint = ""
	proofs = nil
	g.as.answer = func(w http.ResponseWriter, r *http.Request) {
		proofs = append(proofs, "")
		w.Header().Set("DPoP-Nonce", fmt.Sprint("m-", len(proofs)))
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"error":"use_dpop_nonce"}`)
	}
	if _, err = g.mint(t); err == nil || len(proofs) != 2 {
		t.Errorf("%d attempts, %v", len(proofs), err)
	}
	// A token that is not bound is refused.
	g.as.answer = says(good)
	if _, err = g.mint(t); !errors.Is(err, minting.ErrUnavailable) {
		t.Errorf("downgrade to Bearer: %v", err)
	}
}

func openProof(t *testing.T, p string) (jose.JSONWebKey, map[string]any) {
	t.Helper()
	s, err := jose.ParseSignedCompact(p, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatalf("proof: %v", err)
	}
	h := s.Signatures[0].Header
	if h.ExtraHeaders["typ"] != "dpop+jwt" || h.JSONWebKey == nil || !h.JSONWebKey.IsPublic() {
		t.Fatalf("proof header %+v", h)
	}
	b, err := s.Verify(h.JSONWebKey)
	if err != nil {
		t.Fatal(err)
	}
	var c map[string]any
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	return *h.JSONWebKey, c
}

func thumb(t *testing.T, k jose.JSONWebKey) string {
	t.Helper()
	b, err := k.Thumbprint(5) // crypto.SHA256
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func mustThumb(t *testing.T, c minting.Credential) string {
	t.Helper()
	s, err := dpop.Thumbprint(c.Key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestProofForAResource(t *testing.T) {
	k, err := dpop.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	p, err := dpop.Proof(k, "GET", "https://api.example/x?secret=1#f", "token", "nonce", time.Unix(100, 0))
	if err != nil {
		t.Fatal(err)
	}
	_, c := openProof(t, p)
	sum := sha256.Sum256([]byte("token"))
	if c["htu"] != "https://api.example/x" || c["ath"] != base64.RawURLEncoding.EncodeToString(sum[:]) || c["nonce"] != "nonce" || c["iat"] != 100.0 {
		t.Errorf("claims %v", c)
	}
	again, _ := dpop.Proof(k, "GET", "https://api.example/x", "token", "nonce", time.Unix(100, 0))
	if _, d := openProof(t, again); d["jti"] == c["jti"] {
		t.Error("two proofs share a jti")
	}
	n := dpop.NewNonces()
	for _, bad := range []string{"", "a b", "a\r\nb", `a"b`, strings.Repeat("a", 2000)} {
		if n.Set("o", bad) || n.Get("o") != "" {
			t.Errorf("nonce %.20q was taken", bad)
		}
	}
}

func TestDiscoveryRefusesAnotherIssuer(t *testing.T) {
	g := setup(t, v1alpha1.OAuth2{Grant: "clientCredentials"}, good)
	g.as.wrong = g.url + "/" // one slash is another issuer, RFC 8414 section 3.3
	if _, err := g.mint(t); !errors.Is(err, minting.ErrDenied) || g.as.calls != 0 {
		t.Errorf("%v after %d token calls", err, g.as.calls)
	}
}

func TestDiscoveryFallsBackToOpenID(t *testing.T) {
	src := mintingtest.NewSource(t)
	mux := http.NewServeMux()
	var asked []string
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		if r.URL.Path == "/realm/.well-known/openid-configuration" {
			base := "https://" + r.Host + "/realm"
			fmt.Fprintf(w, `{"issuer":%q,"token_endpoint":%q}`, base, base+"/token")
			return
		}
		http.NotFound(w, r)
	})
	mux.HandleFunc("POST /realm/token", says(good))
	srv, deps := mintingtest.Serve(t, mux)
	m, err := oauth2.New("p", v1alpha1.OAuth2{Issuer: srv.URL + "/realm", Grant: "clientCredentials"}, deps)
	if err != nil {
		t.Fatal(err)
	}
	e := minting.Evidence{Workload: mintingtest.Workload(), Source: src}
	for range 2 {
		c, err := m.Mint(t.Context(), mintingtest.Request("p", e), e)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Revoke(t.Context(), c); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("Revoke without an endpoint: %v", err)
		}
	}
	want := []string{"/.well-known/oauth-authorization-server/realm", "/realm/.well-known/openid-configuration"}
	if d := cmp.Diff(want, asked); d != "" {
		t.Errorf("metadata was asked for (-want +got):\n%s", d)
	}
}

func TestBadProviders(t *testing.T) {
	deps := minting.Deps{Client: func([]string, []byte) *http.Client { return http.DefaultClient }}
	tests := []struct {
		name string
		spec v1alpha1.OAuth2
		want string
	}{
		{"nothing", v1alpha1.OAuth2{}, "issuer: is missing"},
		{"http", v1alpha1.OAuth2{Issuer: "http://as.example"}, "must be https"},
		{"http to loopback without a pin", v1alpha1.OAuth2{Issuer: "http://127.0.0.1:1"}, "must be https"},
		{"http with a public pin", v1alpha1.OAuth2{Issuer: "http://as.example", Addresses: []string{"127.0.0.1", "192.0.2.1"}}, "must be https"},
		{"http token endpoint", v1alpha1.OAuth2{Issuer: "https://as.example", TokenEndpoint: "http://as.example/t"}, "tokenEndpoint"},
		{"user in URL", v1alpha1.OAuth2{Issuer: "https://u:p@as.example"}, "without user"},
		{"unknown grant", v1alpha1.OAuth2{Issuer: "https://a.example", Grant: "password"}, `grant: is "password"; must be one of clientCredentials, tokenExchange, jwtBearer`},
		{"no authentication", v1alpha1.OAuth2{Issuer: "https://a.example", ClientAuth: "none"}, "clientAuth: is none"},
		{"extra replaces the grant", v1alpha1.OAuth2{Issuer: "https://a.example", Extra: map[string]string{"scope": "x"}}, "extra.scope"},
		{"header replaces the proof", v1alpha1.OAuth2{Issuer: "https://a.example", Headers: map[string]string{"Authorization": "x"}}, "headers.Authorization"},
		{"resource with fragment", v1alpha1.OAuth2{Issuer: "https://a.example", Resources: []string{"https://x#y"}}, "resources[0]"},
		{"requireAct without actor", v1alpha1.OAuth2{Issuer: "https://a.example", Grant: "tokenExchange", Actor: "none", RequireAct: true}, "requireAct"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := oauth2.New("p", tc.spec, deps); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("New: %v, want %q", err, tc.want)
			}
		})
	}
	if _, err := oauth2.New("p", v1alpha1.OAuth2{Issuer: "http://as.example:1", Addresses: []string{"127.0.0.1:9", "[::1]:9"}}, deps); err != nil {
		t.Errorf("http to a server pinned to loopback: %v", err)
	}
}

func TestSlowServerHitsTheDeadline(t *testing.T) {
	block := make(chan struct{})
	src := mintingtest.NewSource(t)
	srv, deps := mintingtest.Serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-block:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler) // an empty 200 could overtake the client's own cancellation
	}))
	t.Cleanup(func() { close(block) })
	m, err := oauth2.New("p", v1alpha1.OAuth2{TokenEndpoint: srv.URL, Timeout: v1alpha1.Duration(50 * time.Millisecond)}, deps)
	if err != nil {
		t.Fatal(err)
	}
	e := minting.Evidence{Workload: mintingtest.Workload(), Source: src}
	_, err = m.Mint(t.Context(), mintingtest.Request("p", e), e)
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, minting.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
}
