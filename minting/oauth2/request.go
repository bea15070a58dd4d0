package oauth2

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/dpop"
	"github.com/attache-dev/attache/minting/internal/issuer"
)

// fields is a request body before it is encoded.
type fields map[string][]string

func (f fields) set(name, value string) { f[name] = []string{value} }

// setIf sets name unless value is empty.
func (f fields) setIf(name, value string) {
	if value != "" {
		f.set(name, value)
	}
}

// encode returns the body and its media type. In JSON a field with one value
// is a string and one with several is a list; authorization_details is JSON
// already.
func (f fields) encode(body string) ([]byte, string, error) {
	if body != BodyJSON {
		return []byte(url.Values(f).Encode()), "application/x-www-form-urlencoded", nil
	}
	doc := make(map[string]any, len(f))
	for k, v := range f {
		switch {
		case k == "authorization_details":
			doc[k] = json.RawMessage(v[0])
		case len(v) == 1:
			doc[k] = v[0]
		default:
			doc[k] = v
		}
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, "", fmt.Errorf("%w: authorization_details is no JSON", minting.ErrDenied)
	}
	return b, "application/json", nil
}

// exchange asks the token endpoint, a second time where it wants its nonce in
// the proof (RFC 9449 section 8).
func (m *Minter) exchange(ctx context.Context, ends endpoints, w wish, e minting.Evidence, key crypto.Signer) (token, error) {
	for attempt := 1; ; attempt++ {
		// Built anew each time: assertions are for one use.
		f, sent, err := m.fields(ctx, ends, w, e)
		if err != nil {
			return token{}, err
		}
		a, err := m.post(ctx, ends.token, f, m.spec.Body, key, sent[len(sent)-1])
		if err != nil {
			return token{}, err
		}
		if a.Status == http.StatusOK {
			return m.parse(a, w)
		}
		code, text := errorText(a, sent)
		if code == "use_dpop_nonce" && key != nil && attempt == 1 && a.Header.Get("DPoP-Nonce") != "" {
			continue
		}
		err = m.client.Refusal("token endpoint", a, text)
		if a.Status == http.StatusBadRequest && (code == "temporarily_unavailable" || code == "server_error" || code == "slow_down") {
			err = fmt.Errorf("%w: token endpoint answered %d: %s", minting.ErrUnavailable, a.Status, text)
		}
		return token{}, err
	}
}

// fields builds the body of a token request and lists the secrets in it.
func (m *Minter) fields(ctx context.Context, ends endpoints, w wish, e minting.Evidence) (fields, []string, error) {
	f := fields{}
	for _, k := range m.extra() {
		f.set(k, m.spec.Extra[k])
	}
	f.setIf("scope", strings.Join(w.scope, " "))
	if len(w.resources) > 0 {
		f["resource"] = w.resources // RFC 8707 section 2
	}
	f.setIf("authorization_details", w.authorization) // RFC 9396 section 5
	var sent []string
	var err error
	switch m.spec.Grant {
	case GrantClientCredentials:
		f.set("grant_type", "client_credentials")
		f.setIf("audience", w.audience) // no standard, but many servers' word for it
	case GrantJWTBearer:
		sent, err = m.bearerFields(ctx, f, ends, w, e)
	case GrantTokenExchange:
		sent, err = m.exchangeFields(ctx, f, ends, w, e)
	}
	if err != nil {
		return nil, nil, err
	}
	assertion, err := m.authenticate(ctx, f, ends, e)
	if err != nil {
		return nil, nil, err
	}
	return f, append(sent, assertion), nil
}

// bearerFields: RFC 7523 section 2.1.
func (m *Minter) bearerFields(ctx context.Context, f fields, ends endpoints, w wish, e minting.Evidence) ([]string, error) {
	t, err := m.jwt(ctx, e, identity.JWTRequest{Workload: e.Workload, Audience: m.audience(ends), TTL: assertionTTL})
	if err != nil {
		return nil, err
	}
	f.set("grant_type", uriGrantJWTBearer)
	f.set("assertion", t)
	f.setIf("audience", w.audience)
	return []string{t}, nil
}

// exchangeFields: RFC 8693 section 2.1.
func (m *Minter) exchangeFields(ctx context.Context, f fields, ends endpoints, w wish, e minting.Evidence) ([]string, error) {
	f.set("grant_type", uriGrantExchange)
	f.setIf("audience", w.audience)
	f.setIf("requested_token_type", m.spec.RequestedTokenType)
	var sent []string
	if m.spec.Subject == PartyHuman {
		human, kind, err := m.human(e.Task)
		if err != nil {
			return nil, err
		}
		f.set("subject_token", human.Reveal())
		f.set("subject_token_type", kind)
		sent = append(sent, human.Reveal())
	} else {
		t, err := m.jwt(ctx, e, identity.JWTRequest{Workload: e.Workload, Audience: m.audience(ends), TTL: assertionTTL})
		if err != nil {
			return nil, err
		}
		f.set("subject_token", t)
		f.set("subject_token_type", or(m.spec.SubjectTokenType, uriTypeJWT))
		sent = append(sent, t)
	}
	if m.spec.Actor != PartyWorkload {
		return sent, nil
	}
	t, err := m.jwt(ctx, e, identity.JWTRequest{Workload: e.Workload, Audience: m.audience(ends), TTL: assertionTTL})
	if err != nil {
		return nil, err
	}
	f.set("actor_token", t)
	f.set("actor_token_type", or(m.spec.ActorTokenType, uriTypeJWT))
	return append(sent, t), nil
}

// human returns the subject token of a task and its type.
func (m *Minter) human(t *identity.Task) (secret.Value, string, error) {
	switch {
	case t == nil || t.Human == nil || t.SubjectToken.IsZero():
		return secret.Value{}, "", fmt.Errorf("%w: this credential is for a human's task, and none is open; start with --task and --human-token-file, or open a task", minting.ErrDenied)
	case !t.Expires.IsZero() && !m.deps.Now().Before(t.Expires):
		return secret.Value{}, "", fmt.Errorf("%w: the task has ended", minting.ErrDenied)
	}
	return t.SubjectToken, or(m.spec.SubjectTokenType, or(t.SubjectTokenType, uriTypeID)), nil
}

// audience of our assertions: the issuer alone, as RFC 7523bis and the SPIFFE
// client authentication draft ask. Where no issuer is known, the token
// endpoint stands for it (RFC 7523 section 3).
func (m *Minter) audience(ends endpoints) string {
	return or(m.spec.AssertionAudience, or(m.spec.Issuer, ends.token))
}

// authenticate adds the client's authentication and returns its secret.
func (m *Minter) authenticate(ctx context.Context, f fields, ends endpoints, e minting.Evidence) (string, error) {
	r := identity.JWTRequest{Workload: e.Workload, Audience: m.audience(ends), TTL: assertionTTL}
	kind := uriAssertionJWT
	switch m.spec.ClientAuth {
	case AuthSecretBasic: // in the header, see post
		return m.clientSecret(ctx)
	case AuthSecretPost:
		return m.secretPost(ctx, f)
	case AuthTLS:
		f.set("client_id", m.spec.ClientID) // RFC 8705 section 2
		return "", nil
	case AuthNone:
		f.setIf("client_id", m.spec.ClientID)
		return "", nil
	case AuthPrivateKeyJWT:
		r.ClientID = or(m.spec.ClientID, e.Workload.ID.String())
		f.set("client_id", r.ClientID)
	case AuthJWTSPIFFE:
		kind = uriAssertionSPIFFE
		f.setIf("client_id", m.spec.ClientID)
	case AuthJWTSVID:
		f.setIf("client_id", m.spec.ClientID)
	}
	t, err := m.jwt(ctx, e, r)
	if err != nil {
		return "", err
	}
	f.set("client_assertion_type", kind)
	f.set("client_assertion", t)
	return t, nil
}

// jwt asks the identity source for a fresh token.
func (m *Minter) jwt(ctx context.Context, e minting.Evidence, r identity.JWTRequest) (string, error) {
	t, err := e.Source.JWT(ctx, r)
	switch {
	case err == nil:
		return t.Token.Reveal(), nil
	case errors.Is(err, identity.ErrUnavailable), ctx.Err() != nil:
		return "", fmt.Errorf("%w: sign assertion: %w", minting.ErrUnavailable, err)
	default:
		return "", fmt.Errorf("%w: sign assertion: %w", minting.ErrDenied, err)
	}
}

// post sends f and remembers the server's nonce. sent is what authenticate
// returned.
func (m *Minter) post(ctx context.Context, endpoint string, f fields, body string, key crypto.Signer, sent string) (issuer.Answer, error) {
	b, kind, err := f.encode(body)
	if err != nil {
		return issuer.Answer{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, bytes.NewReader(b))
	if err != nil {
		return issuer.Answer{}, fmt.Errorf("%w: endpoint is no URL", minting.ErrDenied)
	}
	for k, v := range m.spec.Headers {
		req.Header.Set(k, v)
	}
	req.Header.Set("Content-Type", kind)
	req.Header.Set("Accept", "application/json")
	if m.spec.ClientAuth == AuthSecretBasic {
		m.secretBasic(req, sent)
	}
	origin := req.URL.Scheme + "://" + req.URL.Host
	if key != nil {
		p, err := dpop.Proof(key, req.Method, endpoint, "", m.nonces.Get(origin), m.deps.Now())
		if err != nil {
			return issuer.Answer{}, fmt.Errorf("%w: %w", minting.ErrUnavailable, err)
		}
		req.Header.Set("DPoP", p)
	}
	a, err := m.client.Do(ctx, req)
	if err == nil && key != nil {
		m.nonces.Set(origin, a.Header.Get("DPoP-Nonce"))
	}
	return a, err
}
