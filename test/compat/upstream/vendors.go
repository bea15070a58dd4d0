package upstream

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

// Identifiers that an operator gets from the vendors' consoles.
const (
	FederationRule   = "fdrl_compat"
	Organization     = "7f3c1d7e-5a0c-4f0e-9d38-0c6b9f1b2a11"
	AnthropicAccount = "svac_compat"
	IdentityProvider = "idp_compat"
	OpenAIAccount    = "sa_compat"
)

const (
	anthropicHost = "api.anthropic.com"
	openaiHost    = "api.openai.com"
	openaiAuth    = "auth.openai.com"
	jwtType       = "urn:ietf:params:oauth:token-type:jwt"
	idTokenType   = "urn:ietf:params:oauth:token-type:id_token"
)

// tokens are what one vendor has issued.
type tokens struct {
	mu   sync.Mutex // guards live
	live map[string]time.Time
}

func (t *tokens) issue(prefix string, ttl time.Duration) string {
	v := prefix + rand.Text() + rand.Text()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == nil {
		t.live = map[string]time.Time{}
	}
	t.live[v] = time.Now().Add(ttl)
	return v
}

func (t *tokens) good(v string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	end, ok := t.live[v]
	return ok && time.Now().Before(end)
}

// decodeStrict reads a JSON body with exactly the fields of v.
func decodeStrict(r *http.Request, v any) error {
	if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
		return fmt.Errorf("%s with content type %q, want POST with application/json", r.Method, r.Header.Get("Content-Type"))
	}
	for _, h := range []string{"Authorization", "X-Api-Key", "Cookie"} {
		if r.Header.Get(h) != "" {
			return fmt.Errorf("header %s: the assertion is the only credential", h)
		}
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// assertion verifies a JWT-SVID of the workload against the key set that its
// issuer publishes: signature, issuer, subject, expiry, iat, one audience.
func (s *Set) assertion(ctx context.Context, token, audience string) error {
	s.Log.Learn(token)
	v := oidc.NewVerifier(IssuerURL, s.workloadKeys, &oidc.Config{ClientID: audience, SupportedSigningAlgs: []string{"ES256"}})
	t, err := v.Verify(oidc.ClientContext(ctx, s.client), token)
	if err != nil {
		return err
	}
	if t.Subject != Workload || len(t.Audience) != 1 || t.IssuedAt.IsZero() {
		return fmt.Errorf("sub %q, aud %q, iat %v", t.Subject, t.Audience, t.IssuedAt)
	}
	return nil
}

func oauthError(w http.ResponseWriter, code string, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": code, "error_description": err.Error()})
}

func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// anthropicToken stands for POST https://api.anthropic.com/v1/oauth/token as
// https://platform.claude.com/docs/manage-claude/wif-reference describes it:
// an RFC 7523 grant in JSON, with the two beta flags that the vendor's own SDK
// sends. Anything else is refused.
func (s *Set) anthropicToken(w http.ResponseWriter, r *http.Request) {
	var b struct {
		GrantType      string `json:"grant_type"`
		Assertion      string `json:"assertion"`
		Rule           string `json:"federation_rule_id"`
		Organization   string `json:"organization_id"`
		ServiceAccount string `json:"service_account_id"`
		Workspace      string `json:"workspace_id"`
	}
	if err := decodeStrict(r, &b); err != nil {
		oauthError(w, "invalid_request", err)
		return
	}
	beta := betas(r)
	if !slices.Contains(beta, "oauth-2025-04-20") || !slices.Contains(beta, "oidc-federation-2026-04-01") {
		oauthError(w, "invalid_request", fmt.Errorf("anthropic-beta is %q", beta))
		return
	}
	if b.GrantType != "urn:ietf:params:oauth:grant-type:jwt-bearer" || b.Rule != FederationRule || b.Organization != Organization || b.ServiceAccount != AnthropicAccount {
		oauthError(w, "invalid_grant", fmt.Errorf("grant %q, rule %q, organization %q, account %q", b.GrantType, b.Rule, b.Organization, b.ServiceAccount))
		return
	}
	if err := s.assertion(r.Context(), b.Assertion, "https://"+anthropicHost); err != nil {
		oauthError(w, "invalid_grant", err)
		return
	}
	token := s.anthropicTokens.issue("sk-ant-oat01-", 10*time.Minute)
	s.Log.Learn(token)
	answerJSON(w, map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": 600})
}

func betas(r *http.Request) []string {
	var out []string
	for _, v := range r.Header.Values("Anthropic-Beta") {
		for b := range strings.SplitSeq(v, ",") {
			out = append(out, strings.TrimSpace(b))
		}
	}
	return out
}

// openaiToken stands for POST https://auth.openai.com/oauth/token as
// https://developers.openai.com/api/reference/workload-identity-federation
// describes it: an RFC 8693 exchange in JSON. Anything else is refused.
func (s *Set) openaiToken(w http.ResponseWriter, r *http.Request) {
	var b struct {
		GrantType        string `json:"grant_type"`
		SubjectTokenType string `json:"subject_token_type"`
		SubjectToken     string `json:"subject_token"`
		Provider         string `json:"identity_provider_id"`
		ServiceAccount   string `json:"service_account_id"`
	}
	if err := decodeStrict(r, &b); err != nil {
		oauthError(w, "invalid_request", err)
		return
	}
	if b.GrantType != "urn:ietf:params:oauth:grant-type:token-exchange" || (b.SubjectTokenType != jwtType && b.SubjectTokenType != idTokenType) {
		oauthError(w, "invalid_request", fmt.Errorf("grant %q of %q", b.GrantType, b.SubjectTokenType))
		return
	}
	if b.Provider != IdentityProvider || b.ServiceAccount != OpenAIAccount {
		oauthError(w, "invalid_grant", fmt.Errorf("provider %q, account %q", b.Provider, b.ServiceAccount))
		return
	}
	if err := s.assertion(r.Context(), b.SubjectToken, "https://"+openaiHost+"/v1"); err != nil {
		oauthError(w, "invalid_grant", err)
		return
	}
	token := s.openaiTokens.issue("oai-", time.Hour)
	s.Log.Learn(token)
	answerJSON(w, map[string]any{"access_token": token, "issued_token_type": "urn:ietf:params:oauth:token-type:access_token", "token_type": "Bearer", "expires_in": 3600})
}

// vendorAPI lets requests through that carry one of t's tokens and no other
// credential.
func vendorAPI(t *tokens, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok || !t.good(token) || r.Header.Get("X-Api-Key") != "" || r.Header.Get("Api-Key") != "" {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"type":"error","error":{"type":"authentication_error","message":"invalid credential"}}`)
			return
		}
		next(w, r)
	}
}

func (s *Set) anthropic() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/messages", vendorAPI(&s.anthropicTokens, func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Model  string `json:"model"`
			Stream bool   `json:"stream"`
		}
		if err := json.NewDecoder(io.LimitReader(r.Body, maxBody)).Decode(&in); err != nil || r.Header.Get("Anthropic-Version") == "" {
			oauthError(w, "invalid_request_error", fmt.Errorf("no version or bad body: %w", err))
			return
		}
		// The vendor takes federated tokens only with this flag.
		if !slices.Contains(betas(r), "oauth-2025-04-20") {
			oauthError(w, "invalid_request_error", fmt.Errorf("anthropic-beta is %q", betas(r)))
			return
		}
		message := map[string]any{"id": "msg_1", "type": "message", "role": "assistant", "model": in.Model, "stop_reason": nil, "stop_sequence": nil,
			"content": []any{}, "usage": map[string]int{"input_tokens": 3, "output_tokens": 1}}
		if !in.Stream {
			message["content"], message["stop_reason"] = []any{map[string]string{"type": "text", "text": "federated hello"}}, "end_turn"
			answerJSON(w, message)
			return
		}
		named := func(v map[string]any) string { return "event: " + v["type"].(string) + "\n" }
		stream(w, named, map[string]any{"type": "message_start", "message": message},
			map[string]any{"type": "content_block_start", "index": 0, "content_block": map[string]string{"type": "text", "text": ""}},
			map[string]any{"type": "content_block_delta", "index": 0, "delta": map[string]string{"type": "text_delta", "text": "federated "}},
			map[string]any{"type": "content_block_delta", "index": 0, "delta": map[string]string{"type": "text_delta", "text": "stream"}},
			map[string]any{"type": "content_block_stop", "index": 0},
			map[string]any{"type": "message_delta", "delta": map[string]any{"stop_reason": "end_turn", "stop_sequence": nil}, "usage": map[string]int{"output_tokens": 2}},
			map[string]any{"type": "message_stop"})
	}))
	return mux
}

func (s *Set) openai() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/chat/completions", vendorAPI(&s.openaiTokens, func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Model  string `json:"model"`
			Stream bool   `json:"stream"`
		}
		if err := json.NewDecoder(io.LimitReader(r.Body, maxBody)).Decode(&in); err != nil {
			oauthError(w, "invalid_request_error", err)
			return
		}
		chunk := func(text string, finish any) map[string]any {
			return map[string]any{"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": in.Model,
				"choices": []any{map[string]any{"index": 0, "delta": map[string]string{"content": text}, "finish_reason": finish}}}
		}
		if in.Stream {
			stream(w, nil, chunk("federated ", nil), chunk("stream", nil), chunk("", "stop"))
			_, _ = io.WriteString(w, "data: [DONE]\n\n")
			return
		}
		answerJSON(w, map[string]any{"id": "c1", "object": "chat.completion", "created": 1, "model": in.Model,
			"choices": []any{map[string]any{"index": 0, "finish_reason": "stop", "message": map[string]string{"role": "assistant", "content": "federated hello"}}}})
	}))
	return mux
}

// stream sends each value as one event, flushed by itself.
func stream(w http.ResponseWriter, head func(map[string]any) string, values ...map[string]any) {
	w.Header().Set("Content-Type", "text/event-stream")
	rc := http.NewResponseController(w)
	for _, v := range values {
		if head != nil {
			_, _ = io.WriteString(w, head(v))
		}
		b, err := json.Marshal(v)
		if err != nil {
			return
		}
		_, _ = fmt.Fprintf(w, "data: %s\n\n", b)
		if rc.Flush() != nil {
			return
		}
	}
}
