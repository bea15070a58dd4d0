package ui

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/attache-dev/attache/internal/secret"
)

const (
	flowLife      = 10 * time.Minute // from the log-in's begin to its return
	flowCookie    = "__Host-attache-login"
	issuerTimeout = 15 * time.Second
	maxGroups     = 64 // that a session keeps: only those that a grant names
)

// OIDC logs people in at an OpenID provider: authorization code with PKCE
// (RFC 7636), state and nonce.
type OIDC struct {
	Issuer       string // URL, as in its discovery document
	ClientID     string
	ClientSecret *secret.Value // nil: a public client
	// URL is the page's own, such as https://audit.example.com; the provider
	// must know URL/login/finish as a redirect URI.
	URL         string
	Scopes      []string // besides openid; default email, groups
	GroupsClaim string   // default groups
	Grants      []Grant
	Client      *http.Client // to the issuer; nil: the default one

	seal *sealer
	mu   sync.Mutex // guards provider
	prov *oidc.Provider
}

// flow is a log-in that has begun, in a cookie.
type flow struct {
	State, Nonce, Verifier string
	To                     string
	Began                  time.Time
}

// prepare checks the configuration. The issuer is asked at the first log-in:
// pages start without it.
func (o *OIDC) prepare(seal *sealer) (login, error) {
	for at, v := range map[string]string{"issuer": o.Issuer, "url": o.URL} {
		u, err := url.Parse(v)
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
			return nil, fmt.Errorf("audit page: oidc.%s: is %q; must be an https:// URL", at, v)
		}
	}
	if o.ClientID == "" {
		return nil, errors.New("audit page: oidc.clientID: is empty")
	}
	if len(o.Grants) == 0 {
		return nil, errors.New("audit page: grants: is empty; nobody could read a record")
	}
	for i := range o.Grants {
		if err := o.Grants[i].validate(fmt.Sprintf("grants[%d]", i)); err != nil {
			return nil, fmt.Errorf("audit page: %w", err)
		}
	}
	o.GroupsClaim = cmp.Or(o.GroupsClaim, "groups")
	if len(o.Scopes) == 0 { // as the chart writes it: []
		o.Scopes = []string{"email", "groups"}
	}
	if o.Client == nil {
		o.Client = &http.Client{Timeout: issuerTimeout}
	}
	o.seal = seal
	return o, nil
}

func (o *OIDC) grants() []Grant { return o.Grants }

// provider discovers the issuer once it answers.
func (o *OIDC) provider() (*oidc.Provider, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.prov != nil {
		return o.prov, nil
	}
	// The provider keeps this context for its keys: it must outlive the request.
	ctx := oidc.ClientContext(context.Background(), o.Client)
	p, err := oidc.NewProvider(ctx, o.Issuer)
	if err != nil {
		return nil, fmt.Errorf("ask the issuer %s: %w", o.Issuer, err)
	}
	o.prov = p
	return p, nil
}

func (o *OIDC) config(p *oidc.Provider) *oauth2.Config {
	c := &oauth2.Config{ClientID: o.ClientID, Endpoint: p.Endpoint(), RedirectURL: strings.TrimSuffix(o.URL, "/") + "/login/finish",
		Scopes: append([]string{oidc.ScopeOpenID}, o.Scopes...)}
	if o.ClientSecret != nil {
		c.ClientSecret = o.ClientSecret.Reveal()
	}
	return c
}

// start shows why there is no session, with a link to log in; or leads to the
// issuer when that link is followed.
func (o *OIDC) start(s *Server, w http.ResponseWriter, r *http.Request, why error) {
	if why != nil || r.URL.Path != "/login" || r.URL.Query().Get("go") == "" {
		s.loginPage(w, r, why)
		return
	}
	p, err := o.provider()
	if err != nil {
		s.log.ErrorContext(r.Context(), "log-in cannot begin", "error", err)
		s.loginPage(w, r, errIssuerAway)
		return
	}
	f := flow{State: rand.Text(), Nonce: rand.Text(), Verifier: oauth2.GenerateVerifier(), To: localPath(r.URL.Query().Get("to")), Began: s.c.Now().UTC()}
	text, err := o.seal.seal(flowCookie, f)
	if err != nil {
		s.fail(w, r, nil, err)
		return
	}
	// Lax: the provider leads the browser back from another site.
	http.SetCookie(w, &http.Cookie{Name: flowCookie, Value: text, Path: "/", HttpOnly: true, Secure: true, SameSite: http.SameSiteLaxMode, MaxAge: int(flowLife.Seconds())})
	http.Redirect(w, r, o.config(p).AuthCodeURL(f.State, oidc.Nonce(f.Nonce), oauth2.S256ChallengeOption(f.Verifier)), http.StatusFound)
}

var (
	errIssuerAway = errors.New("the log-in service does not answer")
	errRefused    = errors.New("the log-in service refused")
	errFlow       = errors.New("this log-in was not begun in this browser, or took too long")
	errToken      = errors.New("the answer of the log-in service does not hold")
)

func (o *OIDC) finish(s *Server, w http.ResponseWriter, r *http.Request) {
	person, to, err := o.exchange(r, s.c.Now)
	http.SetCookie(w, &http.Cookie{Name: flowCookie, Path: "/", HttpOnly: true, Secure: true, SameSite: http.SameSiteLaxMode, MaxAge: -1})
	if err != nil {
		s.log.WarnContext(r.Context(), "log-in failed", "error", err, "remote", r.RemoteAddr)
		why := plain(err, errIssuerAway, errRefused, errFlow, errToken)
		if recErr := s.loginFailed(r, why); recErr != nil {
			why = recErr
		}
		s.loginPage(w, r, why)
		return
	}
	s.admit(w, r, person, to)
}

// plain returns the one of known that err matches, for people; causes are for
// the log.
func plain(err error, known ...error) error {
	for _, k := range known {
		if errors.Is(err, k) {
			return k
		}
	}
	return errToken
}

func (o *OIDC) exchange(r *http.Request, now func() time.Time) (Person, string, error) {
	var f flow
	c, err := r.Cookie(flowCookie)
	if err != nil {
		return Person{}, "", errFlow
	}
	if err := o.seal.open(flowCookie, c.Value, &f); err != nil {
		return Person{}, "", errFlow
	}
	q := r.URL.Query()
	if now().Sub(f.Began) > flowLife || subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(f.State)) != 1 {
		return Person{}, "", errFlow
	}
	if e := q.Get("error"); e != "" {
		return Person{}, "", fmt.Errorf("%w: %q", errRefused, e)
	}
	p, err := o.provider()
	if err != nil {
		return Person{}, "", fmt.Errorf("%w: %w", errIssuerAway, err)
	}
	ctx, cancel := context.WithTimeout(oidc.ClientContext(r.Context(), o.Client), issuerTimeout)
	defer cancel()
	t, err := o.config(p).Exchange(ctx, q.Get("code"), oauth2.VerifierOption(f.Verifier))
	if err != nil {
		return Person{}, "", fmt.Errorf("%w: %w", errRefused, err)
	}
	raw, _ := t.Extra("id_token").(string)
	id, err := p.VerifierContext(ctx, &oidc.Config{ClientID: o.ClientID, Now: now}).Verify(ctx, raw)
	if err != nil {
		return Person{}, "", fmt.Errorf("%w: %w", errToken, err)
	}
	if subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(f.Nonce)) != 1 {
		return Person{}, "", fmt.Errorf("%w: another nonce", errToken)
	}
	person, err := o.person(ctx, p, t, id)
	return person, f.To, err
}

// person reads the claims of the ID token; what it lacks comes from the
// issuer's user info, where that is of the same subject (OpenID Connect Core
// section 5.3.2). An email counts only if the issuer verified it.
func (o *OIDC) person(ctx context.Context, p *oidc.Provider, t *oauth2.Token, id *oidc.IDToken) (Person, error) {
	claims := map[string]any{}
	if err := id.Claims(&claims); err != nil {
		return Person{}, fmt.Errorf("%w: %w", errToken, err)
	}
	if (claims["email"] == nil || claims[o.GroupsClaim] == nil) && p.UserInfoEndpoint() != "" {
		info, err := p.UserInfo(ctx, oauth2.StaticTokenSource(t))
		if err == nil && info.Subject == id.Subject {
			more := map[string]any{}
			if err := info.Claims(&more); err == nil {
				if claims["email"] == nil { // both from one source: another's word must not verify it
					claims["email"], claims["email_verified"] = more["email"], more["email_verified"]
				}
				if claims[o.GroupsClaim] == nil {
					claims[o.GroupsClaim] = more[o.GroupsClaim]
				}
			}
		}
	}
	out := Person{Subject: id.Subject, Issuer: id.Issuer}
	if verified, _ := claims["email_verified"].(bool); verified {
		out.Email, _ = claims["email"].(string)
	}
	groups, _ := claims[o.GroupsClaim].([]any)
	for _, g := range groups {
		if name, ok := g.(string); ok && len(out.Groups) < maxGroups && o.granted(name) {
			out.Groups = append(out.Groups, name)
		}
	}
	return out, nil
}

func (o *OIDC) granted(group string) bool {
	return slices.ContainsFunc(o.Grants, func(g Grant) bool { return slices.Contains(g.Groups, group) })
}

// localPath returns to if it is a path of this site, else the front page.
func localPath(to string) string {
	if len(to) > 2048 || !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "//") || strings.ContainsAny(to, "\\\r\n\t") || strings.HasPrefix(to, "/login") {
		return "/"
	}
	u, err := url.Parse(to)
	if err != nil || u.IsAbs() || u.Host != "" {
		return "/"
	}
	return to
}
