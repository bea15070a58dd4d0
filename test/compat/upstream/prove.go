package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/identity"
)

// Prove holds that the upstreams refuse what they should: otherwise a cell
// that works would prove nothing. Its requests do not enter the log.
func (s *Set) Prove(ctx context.Context) error {
	before := len(s.Log.Entries())
	err := errors.Join(s.proveHosts(ctx), s.proveVendors(ctx))
	s.Log.mu.Lock()
	defer s.Log.mu.Unlock()
	s.Log.entries = s.Log.entries[:before]
	return err
}

// proveHosts asks without a credential and with a wrong one.
func (s *Set) proveHosts(ctx context.Context) error {
	var errs []error
	urls := []string{"https://" + openaiHost + "/v1/chat/completions", "https://" + anthropicHost + "/v1/messages"}
	for host, path := range map[string]string{
		APIHost: "/v1/echo", MCPHost: "/", PyPIHost: "/simple/" + Package + "/", NPMHost: "/" + Package, CratesHost: "/index/config.json",
		GitHost: "/project.git/info/refs?service=git-upload-pack",
	} {
		urls = append(urls, "https://"+host+path, "http://"+PlainName(host)+path)
	}
	for _, u := range urls {
		for _, header := range []string{"", "Bearer made-up", "Basic eC1hY2Nlc3MtdG9rZW46bWFkZS11cA=="} {
			if status, _, err := s.ask(ctx, http.MethodGet, u, "", map[string]string{"Authorization": header}); err != nil || status != http.StatusUnauthorized {
				errs = append(errs, fmt.Errorf("GET %s with authorization %q: status %d, want 401 (%w)", u, header, status, err))
			}
		}
	}
	return errors.Join(errs...)
}

// proveVendors shows the token endpoints a good request, and the same with
// one thing wrong.
func (s *Set) proveVendors(ctx context.Context) error {
	var errs []error
	for _, v := range []struct {
		url, audience, token string
		fields, headers      map[string]string
	}{
		{"https://" + openaiAuth + "/oauth/token", "https://" + openaiHost + "/v1", "subject_token",
			map[string]string{"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token_type": jwtType,
				"identity_provider_id": IdentityProvider, "service_account_id": OpenAIAccount}, nil},
		{"https://" + anthropicHost + "/v1/oauth/token", "https://" + anthropicHost, "assertion",
			map[string]string{"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "federation_rule_id": FederationRule,
				"organization_id": Organization, "service_account_id": AnthropicAccount},
			map[string]string{"Anthropic-Beta": "oauth-2025-04-20,oidc-federation-2026-04-01"}},
	} {
		try := func(name string, want int, audience string, change func(fields, headers map[string]string)) {
			token, err := s.sign(ctx, audience)
			fields, headers := map[string]string{v.token: token}, map[string]string{"Content-Type": "application/json"}
			for k, x := range v.fields {
				fields[k] = x
			}
			for k, x := range v.headers {
				headers[k] = x
			}
			change(fields, headers)
			b, jerr := json.Marshal(fields)
			status, body, aerr := s.ask(ctx, http.MethodPost, v.url, string(b), headers)
			if err := errors.Join(err, jerr, aerr); err != nil || status != want {
				errs = append(errs, fmt.Errorf("%s with %s: status %d, want %d: %s (%w)", v.url, name, status, want, body, err))
			}
		}
		try("a good request", 200, v.audience, func(_, _ map[string]string) {})
		try("another audience", 400, "https://elsewhere.example", func(_, _ map[string]string) {})
		try("a form", 400, v.audience, func(_, h map[string]string) { h["Content-Type"] = "application/x-www-form-urlencoded" })
		try("an unknown field", 400, v.audience, func(f, _ map[string]string) { f["more"] = "x" })
		try("another account", 400, v.audience, func(f, _ map[string]string) { f["service_account_id"] = "other" })
		try("another grant", 400, v.audience, func(f, _ map[string]string) { f["grant_type"] = "client_credentials" })
		try("a key besides", 400, v.audience, func(_, h map[string]string) { h["Authorization"] = "Bearer sk-x" })
		if v.headers != nil {
			try("one beta flag", 400, v.audience, func(_, h map[string]string) { h["Anthropic-Beta"] = "oauth-2025-04-20" })
		}
	}
	return errors.Join(errs...)
}

// sign makes a token of the workload with the key that all runs share.
func (s *Set) sign(ctx context.Context, audience string) (string, error) {
	id, err := spiffeid.FromString(Workload)
	if err != nil {
		return "", err
	}
	t, err := s.signer.JWT(ctx, identity.JWTRequest{Workload: &identity.Workload{ID: id}, Audience: audience})
	if err != nil {
		return "", err
	}
	return t.Token.Reveal(), nil
}

func (s *Set) ask(ctx context.Context, method, url, body string, headers map[string]string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	for k, v := range headers {
		if v != "" {
			req.Header.Set(k, v)
		}
	}
	res, err := s.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if res.StatusCode == http.StatusOK {
		b = []byte("(a token)")
	}
	return res.StatusCode, string(b), err
}
