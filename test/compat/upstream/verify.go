package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/coreos/go-oidc/v3/oidc"
)

// claims is what a resource server learns from a good token.
type claims struct {
	Subject string `json:"sub"`
	Client  string `json:"client_id"`
	Scope   string `json:"scope"`
}

var errToken = errors.New("token refused")

// jwt verifies an access token offline (RFC 9068) against the key set of the
// token server: signature, issuer, expiry and this host as only audience.
func (s *Set) jwt(ctx context.Context, host, token string) (claims, error) {
	v := oidc.NewVerifier(s.issuer, s.keys, &oidc.Config{ClientID: "https://" + host, SupportedSigningAlgs: []string{"RS256"}})
	t, err := v.Verify(oidc.ClientContext(ctx, s.client), token)
	if err != nil {
		return claims{}, fmt.Errorf("%w: %w", errToken, err)
	}
	var c claims
	if err := t.Claims(&c); err != nil || len(t.Audience) != 1 {
		return claims{}, fmt.Errorf("%w: claims", errToken)
	}
	return c, c.check()
}

// introspect verifies an opaque token by asking the token server (RFC 7662).
func (s *Set) introspect(ctx context.Context, host, token string) (claims, error) {
	body := strings.NewReader(url.Values{"token": {token}}.Encode())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.introspection, body)
	if err != nil {
		return claims{}, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(resourceServerID, s.introspectSecret)
	res, err := s.client.Do(req)
	if err != nil {
		return claims{}, err
	}
	defer res.Body.Close()
	var a struct {
		claims
		Active bool   `json:"active"`
		Aud    string `json:"aud"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&a); err != nil {
		return claims{}, err
	}
	if !a.Active || a.Aud != "https://"+host {
		return claims{}, fmt.Errorf("%w: inactive or for %q", errToken, a.Aud)
	}
	return a.claims, a.claims.check()
}

func (c claims) check() error {
	if c.Client != Workload || c.Scope != scope {
		return fmt.Errorf("%w: client %q with scope %q", errToken, c.Client, c.Scope)
	}
	return nil
}

type claimsKey struct{}

// protected lets only requests with one good token through. Any credential
// that the agent might have brought along as well is refused: it should have
// been taken off.
func (s *Set) protected(verify func(context.Context, string, string) (claims, error), next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
		if user, password, basic := r.BasicAuth(); basic {
			token, ok = password, user == "x-access-token"
		}
		if !ok || len(r.Header["Authorization"]) != 1 || r.Header.Get("X-Api-Key") != "" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="compat"`)
			http.Error(w, "exactly one credential, please", http.StatusUnauthorized)
			return
		}
		host, _, _ := strings.Cut(r.Host, ":")
		c, err := verify(r.Context(), host, token)
		if err != nil {
			w.Header().Set("WWW-Authenticate", `Bearer realm="compat", error="invalid_token"`)
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), claimsKey{}, c)))
	})
}
