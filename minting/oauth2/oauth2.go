// Package oauth2 mints access tokens at an authorization server. The workload
// proves itself by a JWT of its own; a client secret or certificate, where a
// server knows nothing better, is read by the broker of a cluster alone.
//
// Grants are client credentials (RFC 6749 section 4.4), JWT bearer (RFC 7523
// section 2.1) and token exchange (RFC 8693) with the human as subject and the
// workload as actor. The client authenticates by private_key_jwt (RFC 7523
// section 2.2, with the audience that RFC 7523bis asks for), by its JWT-SVID,
// or not at all. Around them: metadata discovery (RFC 8414), resource
// indicators (RFC 8707), rich authorization requests (RFC 9396), DPoP
// (RFC 9449) and revocation (RFC 7009).
//
// # Why the requests are our own
//
// golang.org/x/oauth2 reaches none of these calls whole. Its clientcredentials
// package sends forms only, has no place for an assertion that is new in each
// call, for a DPoP proof or for the second try with the server's nonce; its
// token exchange and JWT bearer live in vendor packages; it parses answers
// leniently (form-encoded ones too, any token_type, a negative expires_in),
// hides Retry-After, and its RetrieveError prints the server's body, which may
// repeat our assertion. What is left would be the encoding of a form.
package oauth2

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/dpop"
	"github.com/attache-dev/attache/minting/internal/issuer"
)

// Values of the provider's fields.
const (
	GrantClientCredentials = "clientCredentials"
	GrantTokenExchange     = "tokenExchange"
	GrantJWTBearer         = "jwtBearer"

	AuthPrivateKeyJWT = "privateKeyJWT"
	AuthJWTSVID       = "jwtSVID"
	AuthJWTSPIFFE     = "jwtSPIFFE"
	AuthNone          = "none"
	AuthSecretBasic   = "clientSecretBasic" // RFC 6749 section 2.3.1
	AuthSecretPost    = "clientSecretPost"
	AuthTLS           = "tlsClientAuth" // RFC 8705 section 2

	PartyHuman    = "human"
	PartyWorkload = "workload"
	PartyNone     = "none"

	BodyForm = "form"
	BodyJSON = "json"
)

// URIs of the wire.
const (
	uriGrantJWTBearer = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	uriGrantExchange  = "urn:ietf:params:oauth:grant-type:token-exchange"
	uriAssertionJWT   = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	// draft-ietf-oauth-spiffe-client-auth section 3.
	uriAssertionSPIFFE = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"
	uriTypeAccess      = "urn:ietf:params:oauth:token-type:access_token"
	uriTypeJWT         = "urn:ietf:params:oauth:token-type:jwt"
	uriTypeID          = "urn:ietf:params:oauth:token-type:id_token"
)

// assertionTTL is how long our own assertions live: they are used at once.
const assertionTTL = time.Minute

// reserved are fields that extra must not replace: they say who asks for what.
var reserved = []string{
	"grant_type", "client_id", "client_secret", "client_assertion", "client_assertion_type", "assertion",
	"subject_token", "subject_token_type", "actor_token", "actor_token_type", "requested_token_type",
	"scope", "resource", "audience", "authorization_details",
}

// reservedHeaders are headers that the provider sets itself.
var reservedHeaders = []string{"authorization", "content-type", "content-length", "host", "dpop", "cookie", "transfer-encoding", "connection", "accept"}

// Minter mints tokens of one CredentialProvider. It is safe for concurrent
// use.
type Minter struct {
	name   string
	spec   v1alpha1.OAuth2
	deps   minting.Deps
	client *issuer.Client
	meta   *discovery
	nonces *dpop.Nonces
	key    crypto.Signer // the provider's own proof key, see KeyThumbprint
	thumb  string
}

// New returns the Minter of the provider called name. It reads spec.CAFile and
// calls nobody.
func New(name string, spec v1alpha1.OAuth2, d minting.Deps) (*Minter, error) {
	d = d.WithDefaults()
	if err := check(&spec); err != nil {
		return nil, fmt.Errorf("provider %s: oauth2.%w", name, err)
	}
	if err := rooted(&spec, &d); err != nil {
		return nil, fmt.Errorf("provider %s: oauth2.%w", name, err)
	}
	c, err := issuer.Connect(d, spec.Addresses, spec.CAFile, spec.CABundle, spec.Timeout.D())
	if err != nil {
		return nil, fmt.Errorf("provider %s: oauth2: %w", name, err)
	}
	m := &Minter{name: name, spec: spec, deps: d, client: c, nonces: dpop.NewNonces()}
	m.meta = newDiscovery(spec, c, d.Now)
	if spec.DPoP {
		k, err := dpop.NewKey()
		if err != nil {
			return nil, fmt.Errorf("provider %s: %w", name, err)
		}
		m.key = k
		if m.thumb, err = dpop.Thumbprint(k); err != nil {
			return nil, fmt.Errorf("provider %s: %w", name, err)
		}
	}
	return m, nil
}

// check validates spec and fills in its defaults.
func check(s *v1alpha1.OAuth2) error {
	s.Grant = or(s.Grant, GrantClientCredentials)
	s.Body = or(s.Body, BodyForm)
	s.ClientAuth = or(s.ClientAuth, defaultAuth(s.Grant))
	s.Subject = or(s.Subject, PartyHuman)
	if s.Actor == "" {
		s.Actor = PartyNone
		if s.Subject == PartyHuman {
			s.Actor = PartyWorkload
		}
	}
	for _, f := range []struct {
		name, value string
		allowed     []string
	}{
		{"grant", s.Grant, []string{GrantClientCredentials, GrantTokenExchange, GrantJWTBearer}},
		{"clientAuth", s.ClientAuth, []string{AuthPrivateKeyJWT, AuthJWTSVID, AuthJWTSPIFFE, AuthNone, AuthSecretBasic, AuthSecretPost, AuthTLS}},
		{"body", s.Body, []string{BodyForm, BodyJSON}},
		{"subject", s.Subject, []string{PartyHuman, PartyWorkload}},
		{"actor", s.Actor, []string{PartyWorkload, PartyNone}},
	} {
		if !slices.Contains(f.allowed, f.value) {
			return fmt.Errorf("%s: is %q; must be one of %s", f.name, f.value, strings.Join(f.allowed, ", "))
		}
	}
	if err := checkURLs(s); err != nil {
		return err
	}
	for k := range s.Extra {
		if slices.Contains(reserved, k) {
			return fmt.Errorf("extra.%s: belongs to the grant; use the provider's own field", k)
		}
	}
	for k, v := range s.Headers {
		if slices.Contains(reservedHeaders, strings.ToLower(k)) || strings.ContainsAny(k+v, "\r\n\x00") {
			return fmt.Errorf("headers.%s: cannot be set by a provider", k)
		}
	}
	if s.Grant == GrantClientCredentials && s.ClientAuth == AuthNone {
		return errors.New("clientAuth: is none; clientCredentials need one of privateKeyJWT, jwtSVID, jwtSPIFFE")
	}
	if s.RequireAct && (s.Grant != GrantTokenExchange || s.Actor != PartyWorkload) {
		return errors.New("requireAct: needs grant tokenExchange with actor workload")
	}
	return nil
}

func checkURLs(s *v1alpha1.OAuth2) error {
	if s.Issuer == "" && s.TokenEndpoint == "" {
		return errors.New("issuer: is missing; name the issuer, or the tokenEndpoint itself")
	}
	for _, f := range []struct{ name, value string }{
		{"issuer", s.Issuer}, {"tokenEndpoint", s.TokenEndpoint}, {"revocationEndpoint", s.RevocationEndpoint},
	} {
		if f.value == "" {
			continue
		}
		u, err := issuer.CheckURL(f.name, f.value, s.Addresses)
		if err != nil {
			return err
		}
		if f.name == "issuer" && u.RawQuery != "" { // RFC 8414 section 2
			return fmt.Errorf("issuer: is %q; must have no query", f.value)
		}
	}
	for i, r := range s.Resources {
		if err := checkResource(r); err != nil {
			return fmt.Errorf("resources[%d]: %w", i, err)
		}
	}
	return nil
}

// checkResource: an absolute URI without fragment (RFC 8707 section 2).
func checkResource(r string) error {
	u, err := url.Parse(r)
	if err != nil || !u.IsAbs() || strings.Contains(r, "#") {
		return fmt.Errorf("is %q; must be an absolute URI without fragment", r)
	}
	return nil
}

func defaultAuth(grant string) string {
	if grant == GrantClientCredentials || grant == GrantTokenExchange {
		return AuthPrivateKeyJWT
	}
	return AuthNone
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func orList(s, def []string) []string {
	if len(s) == 0 {
		return def
	}
	return s
}

// KeyThumbprint is the thumbprint of the provider's own proof key, empty
// without DPoP. A request that names it in KeyThumbprint gets a token bound to
// that key; one that names none gets a key of its own.
func (m *Minter) KeyThumbprint() string { return m.thumb }

// Endpoint names the issuer for the circuit breaker.
func (m *Minter) Endpoint() string { return or(m.spec.Issuer, m.spec.TokenEndpoint) }

// Mint implements [minting.Minter].
func (m *Minter) Mint(ctx context.Context, r minting.Request, e minting.Evidence) (minting.Credential, error) {
	c, err := m.mint(ctx, r, e)
	if err != nil {
		return minting.Credential{}, fmt.Errorf("provider %s: %w", m.name, err)
	}
	return c, nil
}

func (m *Minter) mint(ctx context.Context, r minting.Request, e minting.Evidence) (minting.Credential, error) {
	if e.Workload == nil || e.Source == nil && m.deps.Root == nil {
		return minting.Credential{}, fmt.Errorf("%w: no attested workload", minting.ErrDenied)
	}
	ends, err := m.meta.endpoints(ctx)
	if err != nil {
		return minting.Credential{}, err
	}
	ask, err := m.ask(r)
	if err != nil {
		return minting.Credential{}, err
	}
	key, err := m.proofKey(r)
	if err != nil {
		return minting.Credential{}, err
	}
	t, err := m.exchange(ctx, ends, ask, e, key)
	if err != nil {
		return minting.Credential{}, err
	}
	c := m.credential(r, e, ends, t, key)
	if err := m.accept(r, e, ask, t); err != nil {
		// The token is good for something we did not ask for: end it. Its
		// revocation is best effort and must not depend on the caller.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), issuer.DefaultTimeout)
		defer cancel()
		if rerr := minting.Revoke(ctx, m, c); rerr != nil {
			m.deps.Logger.WarnContext(ctx, "refused token not revoked", "provider", m.name, "error", rerr)
		}
		return minting.Credential{}, err
	}
	return c, nil
}

// proofKey returns the key to bind the token to, nil without DPoP.
func (m *Minter) proofKey(r minting.Request) (crypto.Signer, error) {
	switch {
	case !m.spec.DPoP && r.KeyThumbprint == "":
		return nil, nil
	case m.spec.DPoP && r.KeyThumbprint == "":
		k, err := dpop.NewKey()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", minting.ErrUnavailable, err)
		}
		return k, nil
	case m.spec.DPoP && r.KeyThumbprint == m.thumb:
		return m.key, nil
	default:
		return nil, fmt.Errorf("%w: the request names proof key %s, which this provider does not hold", minting.ErrDenied, r.KeyThumbprint)
	}
}

// wish is what a token is asked for: the rule's words, or else the provider's.
type wish struct {
	scope, resources        []string
	audience, authorization string
}

func (m *Minter) ask(r minting.Request) (wish, error) {
	w := wish{
		scope:         orList(r.Scope, m.spec.Scopes),
		resources:     orList(r.Resources, m.spec.Resources),
		audience:      or(r.Audience, m.spec.Audience),
		authorization: r.AuthorizationDetails,
	}
	for _, s := range w.scope {
		if s == "" || strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '"' || c == '\\' }) {
			return wish{}, fmt.Errorf("%w: scope %q is not one RFC 6749 section 3.3 token", minting.ErrDenied, s)
		}
	}
	for _, s := range w.resources {
		if err := checkResource(s); err != nil {
			return wish{}, fmt.Errorf("%w: resource %w", minting.ErrDenied, err)
		}
	}
	return w, nil
}

// credential wraps a token. Its Undo holds what a revocation needs.
func (m *Minter) credential(r minting.Request, e minting.Evidence, ends endpoints, t token, key crypto.Signer) minting.Credential {
	now := m.deps.Now()
	ttl := r.TTL
	if ttl <= 0 || ttl > t.lifetime {
		ttl = t.lifetime
	}
	c := minting.Credential{
		Handle: minting.NewHandle(), Kind: minting.KindBearer, Provider: m.name,
		Secret: t.access, Key: key, Issued: now, Expires: now.Add(ttl),
		Scope: t.scope, Derived: true,
	}
	if key != nil {
		c.Kind = minting.KindDPoP
	}
	if t.lifetime > ttl {
		c.Outlives = now.Add(t.lifetime)
	}
	if ends.revocation != "" {
		access := t.access
		c.Undo = func(ctx context.Context) error { return m.revoke(ctx, ends, access, e) }
	}
	return c
}

// Revoke implements [minting.Revoker] (RFC 7009).
func (m *Minter) Revoke(ctx context.Context, c minting.Credential) error {
	if c.Undo == nil {
		return fmt.Errorf("provider %s: %w: the server names no revocation endpoint", m.name, errors.ErrUnsupported)
	}
	return c.Undo(ctx)
}

func (m *Minter) revoke(ctx context.Context, ends endpoints, access secret.Value, e minting.Evidence) error {
	f := fields{}
	f.set("token", access.Reveal())
	f.set("token_type_hint", "access_token")
	sent := []string{access.Reveal()}
	assertion, err := m.authenticate(ctx, f, ends, e)
	if err != nil {
		return fmt.Errorf("provider %s: revoke: %w", m.name, err)
	}
	sent = append(sent, assertion)
	// RFC 7009 section 2.1 knows forms only.
	a, err := m.post(ctx, ends.revocation, f, BodyForm, nil, assertion)
	if err != nil {
		return fmt.Errorf("provider %s: revoke: %w", m.name, err)
	}
	if a.Status == 200 || a.Status == 204 {
		return nil
	}
	code, text := errorText(a, sent)
	if code == "unsupported_token_type" {
		return fmt.Errorf("provider %s: revoke: %w: %s", m.name, errors.ErrUnsupported, text)
	}
	return fmt.Errorf("provider %s: %w", m.name, m.client.Refusal("revocation endpoint", a, text))
}

// extra returns the provider's fixed fields in a stable order.
func (m *Minter) extra() []string { return slices.Sorted(maps.Keys(m.spec.Extra)) }
