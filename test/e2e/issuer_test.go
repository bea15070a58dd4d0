package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// What a token endpoint can do wrong: the agent gets a documented refusal, the
// record is whole, the upstream hears nothing, and no token is shown.
func TestTokenEndpoint(t *testing.T) {
	t.Parallel()
	const secret = "eyJhbGciOiJFUzI1NiJ9.c2hvd24tYnktbm9ib2R5LTAxMjM0NTY3ODk.c2hvd24"
	answer := func(fields map[string]any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { token(w, fields) }
	}
	tests := []struct {
		name   string
		lie    http.HandlerFunc
		status int // 0: the call is made
		code   string
	}{
		{"500", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, secret, 500) }, 503, "mint_unavailable"},
		{"429", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(429)
		}, 503, "mint_unavailable"},
		{"invalid_client", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(401)
			_, _ = w.Write([]byte(`{"error":"invalid_client","error_description":"` + secret + `"}`))
		}, 403, "mint_denied"},
		{"slow", func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-time.After(5 * time.Second):
			}
		}, 503, "mint_unavailable"},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, 503, "mint_unavailable"},
		{"10 MB body", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"access_token":"` + secret + `","token_type":"Bearer","expires_in":300,"x":"` + strings.Repeat("x", 10<<20) + `"}`))
		}, 503, "mint_unavailable"},
		{"no JSON", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>" + secret)) }, 503, "mint_unavailable"},
		{"no token", answer(map[string]any{"token_type": "Bearer", "expires_in": 300}), 503, "mint_unavailable"},
		{"token with line break", answer(map[string]any{"access_token": secret + "\r\nX-Admin: 1", "token_type": "Bearer", "expires_in": 300}), 503, "mint_unavailable"},
		{"wrong token_type", answer(map[string]any{"access_token": secret, "token_type": "mac", "expires_in": 300}), 503, "mint_unavailable"},
		{"no token_type", answer(map[string]any{"access_token": secret, "expires_in": 300}), 503, "mint_unavailable"},
		{"negative expires_in", answer(map[string]any{"access_token": secret, "token_type": "Bearer", "expires_in": -5}), 503, "mint_unavailable"},
		{"expires_in is a word", answer(map[string]any{"access_token": secret, "token_type": "Bearer", "expires_in": "soon"}), 503, "mint_unavailable"},
		{"more scope than asked", answer(map[string]any{"access_token": secret, "token_type": "Bearer", "expires_in": 300, "scope": "read admin"}), 403, "mint_denied"},
		{"no expires_in", answer(map[string]any{"access_token": secret, "token_type": "Bearer"}), 0, ""},
		{"huge expires_in", answer(map[string]any{"access_token": secret, "token_type": "Bearer", "expires_in": 9e15}), 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w, o, i := newWorld(t), newOrigin(t), newIssuer(t)
			i.lie(tt.lie)
			provider := i.provider(o, "    scopes: [read]\n")
			if tt.name == "slow" {
				provider = strings.Replace(provider, "timeout: 10s", "timeout: 500ms", 1)
			}
			w.write("provider.yaml", provider)
			w.write("policy.yaml", o.allow(", credential: {provider: tokens}"))
			r := w.run(curl("https://" + apiHost + "/v1/x")...)
			if strings.Contains(r.all(), secret) || strings.Contains(r.all(), "X-Admin") {
				t.Errorf("the issuer's answer is shown: %s", r.all())
			}
			if tt.status == 0 {
				r.must(t)
				// Not told, or told too much: used for a minute, or for the provider's TTL.
				if rec := w.one(""); rec.Credential == nil || rec.Credential.TTLSeconds < 30 || rec.Credential.TTLSeconds > 300 {
					t.Errorf("TTL of the record: %+v", rec.Credential)
				}
				if _, _, revoked := i.state(); len(revoked) != 1 {
					t.Errorf("%d revocations, want 1", len(revoked))
				}
				return
			}
			rec := w.refused(r, tt.status, tt.code)
			if rec.Credential != nil {
				t.Errorf("record names a credential: %+v", rec.Credential)
			}
			if got := o.requests(); len(got) != 0 {
				t.Errorf("the upstream got %d requests", len(got))
			}
			if !strings.Contains(r.stderr, `"msg":"call refused"`) || !strings.Contains(r.stderr, rec.ID) {
				t.Errorf("no line for the operator: %s", r.stderr)
			}
		})
	}
}

func TestTokenEndpointUnreachable(t *testing.T) {
	t.Parallel()
	w, o, i := newWorld(t), newOrigin(t), newIssuer(t)
	w.write("provider.yaml", strings.ReplaceAll(i.provider(o, ""), i.addr, "127.0.0.1:1"))
	w.write("policy.yaml", o.allow(", credential: {provider: tokens}"))
	w.refused(w.run(curl("https://"+apiHost+"/v1/x")...), 503, "mint_unavailable")
	// Its certificate is of an authority that nobody named.
	w.write("provider.yaml", strings.Replace(i.provider(o, ""), i.ca.block(6), newAuthority(t).block(6), 1))
	w.refused(w.run(curl("https://"+apiHost+"/v1/x")...), 503, "mint_unavailable")
	if asked, _, _ := i.state(); asked != 0 || len(o.requests()) != 0 {
		t.Error("an unverified issuer was asked, or the upstream called")
	}
}
