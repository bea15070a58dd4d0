package apikey

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/internal/issuer"
)

// Bounds of a visit to Vault.
const (
	vaultJWT    = time.Minute // life of the JWT that logs in
	vaultLogout = 3 * time.Second
)

// vault reads a KV secret: log in with a JWT-SVID, read, log out. Five calls
// of the API that HashiCorp Vault and OpenBao share; their client library
// would bring a hundred packages for them.
type vault struct {
	name   string
	spec   v1alpha1.VaultKV
	deps   minting.Deps
	client *issuer.Client
}

func newVault(name string, s v1alpha1.VaultKV, d minting.Deps) (*vault, error) {
	if _, err := issuer.CheckURL("address", s.Address, s.Addresses); err != nil {
		return nil, err
	}
	s.Address = strings.TrimRight(s.Address, "/")
	for _, f := range []struct {
		name     string
		value    *string
		fallback string
	}{
		{"role", &s.Role, ""}, {"path", &s.Path, ""}, {"authMount", &s.AuthMount, "jwt"},
		{"audience", &s.Audience, s.Address}, {"field", &s.Field, "value"},
	} {
		if *f.value == "" {
			*f.value = f.fallback
		}
		if *f.value == "" {
			return nil, fmt.Errorf("%s: is missing", f.name)
		}
	}
	for _, f := range []struct {
		name  string
		value *string
	}{{"path", &s.Path}, {"authMount", &s.AuthMount}} {
		*f.value = strings.Trim(*f.value, "/")
		if path.Clean("/"+*f.value) != "/"+*f.value || strings.ContainsAny(*f.value, "?#%\\") {
			return nil, fmt.Errorf("%s: is %q; must be a plain path as in the API, such as secret/data/openai", f.name, *f.value)
		}
	}
	c, err := issuer.Connect(d, s.Addresses, s.CAFile, "", 0)
	if err != nil {
		return nil, err
	}
	return &vault{name: name, spec: s, deps: d, client: c}, nil
}

func (v *vault) read(ctx context.Context, e minting.Evidence) (string, time.Time, error) {
	token, err := v.login(ctx, e)
	if err != nil {
		return "", time.Time{}, err
	}
	// The token did its one job, whatever comes of it.
	defer v.logout(context.WithoutCancel(ctx), token)
	a, err := v.call(ctx, http.MethodGet, v.spec.Path, token, nil)
	if err != nil {
		return "", time.Time{}, err
	}
	if a.Status != http.StatusOK {
		return "", time.Time{}, v.client.Refusal("vault: read "+v.spec.Path, a, vaultText(a, token.Reveal()))
	}
	return parseKV(a.Body, v.spec.Field, v.deps.Now())
}

// login presents the workload's JWT-SVID (auth method jwt).
func (v *vault) login(ctx context.Context, e minting.Evidence) (secret.Value, error) {
	if e.Workload == nil || e.Source == nil {
		return secret.Value{}, fmt.Errorf("%w: no attested workload", minting.ErrDenied)
	}
	t, err := e.Source.JWT(ctx, identity.JWTRequest{Workload: e.Workload, Audience: v.spec.Audience, TTL: vaultJWT})
	if err != nil {
		kind := minting.ErrDenied
		if errors.Is(err, identity.ErrUnavailable) || ctx.Err() != nil {
			kind = minting.ErrUnavailable
		}
		return secret.Value{}, fmt.Errorf("%w: vault: sign login: %w", kind, err)
	}
	jwt := t.Token.Reveal()
	a, err := v.call(ctx, http.MethodPost, "auth/"+v.spec.AuthMount+"/login", secret.Value{}, map[string]string{"role": v.spec.Role, "jwt": jwt})
	if err != nil {
		return secret.Value{}, err
	}
	if a.Status != http.StatusOK {
		return secret.Value{}, v.client.Refusal("vault: login as role "+v.spec.Role, a, vaultText(a, jwt))
	}
	var w struct {
		Auth struct {
			Token string `json:"client_token"`
		} `json:"auth"`
	}
	if json.Unmarshal(a.Body, &w) != nil || minting.CheckSecret(w.Auth.Token) != nil {
		return secret.Value{}, fmt.Errorf("%w: vault: login answered nonsense: no auth.client_token", minting.ErrUnavailable)
	}
	return secret.New(w.Auth.Token), nil
}

// logout revokes the login's token. A failure costs little: the role's TTL
// ends the token.
func (v *vault) logout(ctx context.Context, token secret.Value) {
	ctx, cancel := context.WithTimeout(ctx, vaultLogout)
	defer cancel()
	a, err := v.call(ctx, http.MethodPost, "auth/token/revoke-self", token, nil)
	if err == nil && a.Status >= 300 {
		err = v.client.Refusal("vault: revoke-self", a, vaultText(a, token.Reveal()))
	}
	if err != nil {
		v.deps.Logger.WarnContext(ctx, "vault token not revoked; it ends with its role's ttl", "provider", v.name, "error", err)
	}
}

// call does one API call with a JSON body, nil for none.
func (v *vault) call(ctx context.Context, method, where string, token secret.Value, body map[string]string) (issuer.Answer, error) {
	var buf bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&buf).Encode(body); err != nil {
			return issuer.Answer{}, fmt.Errorf("%w: vault: %w", minting.ErrDenied, err)
		}
	}
	u, err := url.Parse(v.spec.Address)
	if err != nil {
		return issuer.Answer{}, fmt.Errorf("%w: vault: address is no URL", minting.ErrDenied)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.JoinPath("v1", where).String(), &buf)
	if err != nil {
		return issuer.Answer{}, fmt.Errorf("%w: vault: address is no URL", minting.ErrDenied)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	// Vault refuses to serve a request that a browser could be tricked into.
	req.Header.Set("X-Vault-Request", "true")
	if v.spec.Namespace != "" {
		req.Header.Set("X-Vault-Namespace", v.spec.Namespace)
	}
	if !token.IsZero() {
		req.Header.Set("X-Vault-Token", token.Reveal())
	}
	a, err := v.client.Do(ctx, req)
	if err != nil {
		return a, fmt.Errorf("vault: %w", err)
	}
	return a, nil
}

// vaultText is what may be shown of {"errors": […]}.
func vaultText(a issuer.Answer, sent ...string) string {
	var w struct {
		Errors []string `json:"errors"`
	}
	if json.Unmarshal(a.Body, &w) != nil {
		return ""
	}
	return issuer.Safe(strings.Join(w.Errors, " "), sent...)
}

// parseKV reads the answer of KV version 2, which wraps the fields once more
// and adds metadata, or of version 1.
func parseKV(body []byte, field string, now time.Time) (string, time.Time, error) {
	bad := func(text string) (string, time.Time, error) {
		return "", time.Time{}, fmt.Errorf("%w: vault: %s", minting.ErrUnavailable, text)
	}
	var w struct {
		Lease int64                      `json:"lease_duration"` // seconds
		Data  map[string]json.RawMessage `json:"data"`
	}
	if json.Unmarshal(body, &w) != nil || w.Data == nil {
		return bad("the answer is no secret")
	}
	var expires time.Time
	if w.Lease > 0 {
		expires = now.Add(time.Duration(min(w.Lease, int64(maxLease/time.Second))) * time.Second)
	}
	data := w.Data
	var meta struct {
		Deletion  string `json:"deletion_time"`
		Destroyed bool   `json:"destroyed"`
	}
	if m, ok := data["metadata"]; ok && json.Unmarshal(m, &meta) == nil {
		var inner map[string]json.RawMessage
		if json.Unmarshal(data["data"], &inner) == nil {
			data = inner
			end, err := time.Parse(time.RFC3339Nano, meta.Deletion)
			switch {
			case meta.Destroyed || inner == nil || err == nil && !end.After(now):
				return bad("the secret's current version was deleted")
			case err == nil && (expires.IsZero() || end.Before(expires)):
				expires = end
			}
		}
	}
	var key string
	raw, ok := data[field]
	if !ok {
		return bad(fmt.Sprintf("the secret has no field %q; set apiKey.vault.field", field))
	}
	if json.Unmarshal(raw, &key) != nil {
		return bad(fmt.Sprintf("field %q of the secret is no text", field))
	}
	return key, expires, nil
}

// maxLease bounds what is believed of lease_duration.
const maxLease = 30 * 24 * time.Hour
