package main

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// apis are the three protected APIs. Each verifies what it gets and refuses
// everything else.
type apis struct {
	w    *world
	mu   sync.Mutex // guards seen
	seen []access
}

// access is a line of the APIs' own log.
type access struct {
	Call, Who string
	Status    int
	Record    string // the id that Attaché carries upstream
}

func newAPIs(w *world) *apis { return &apis{w: w} }

// errRefused is matched by refusals; the text is for the log only.
var errRefused = errors.New("refused")

// ServeHTTP implements http.Handler: authenticate, then answer.
func (a *apis) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var who string
	var err error
	switch r.Host {
	case ticketsHost:
		who, err = a.tickets(r)
	case reportsHost:
		who, err = a.reports(r)
	case notesHost:
		who, err = a.notes(r)
	default:
		http.NotFound(w, r)
		return
	}
	status := http.StatusOK
	if err != nil {
		who, status = err.Error(), http.StatusUnauthorized
	}
	a.mu.Lock()
	a.seen = append(a.seen, access{r.Method + " " + r.Host + r.URL.Path, who, status, recordID(r)})
	a.mu.Unlock()
	if err != nil {
		w.Header().Set("WWW-Authenticate", "Bearer")
		http.Error(w, `{"error":"unauthorized"}`, status)
		return
	}
	a.answer(w, r)
}

func recordID(r *http.Request) string {
	for _, v := range r.Header {
		if i := strings.Index(v[0], "rec_"); i >= 0 && len(v[0]) >= i+36 {
			return v[0][i : i+36]
		}
	}
	return ""
}

// since returns the log from line n on.
func (a *apis) since(n int) []access {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.seen[n:])
}

func (a *apis) answer(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch {
	case r.URL.Path == "/v1/echo": // tells the caller what arrived, as careless origins do
		_ = json.NewEncoder(w).Encode(r.Header)
	case r.URL.Path == "/v1/canary":
		w.Header().Set("X-Note", a.w.canary.answer[0])
		_ = json.NewEncoder(w).Encode(map[string]string{"first": b64(a.w.canary.answer[1]), "second": b64gzip(a.w.canary.answer[2])})
	case r.Host == ticketsHost:
		_, _ = io.WriteString(w, `{"ticket":7,"text":"the printer is on fire","for":"`+human+`"}`+"\n")
	case r.Host == reportsHost:
		_, _ = io.WriteString(w, `{"open":3,"closed":39}`+"\n")
	default:
		_, _ = io.WriteString(w, `{"saved":true}`+"\n")
	}
}

func bearer(r *http.Request) (string, error) {
	t, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || t == "" {
		return "", fmt.Errorf("%w: no token", errRefused)
	}
	return t, nil
}

// tickets verifies a JWT against the keys of the authorization server, asks
// whether it was revoked, and wants a human and the agent that acts for them.
func (a *apis) tickets(r *http.Request) (string, error) {
	raw, err := bearer(r)
	if err != nil {
		return "", err
	}
	a.w.secrets.add("token at tickets", raw)
	tok, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		return "", fmt.Errorf("%w: no JWT", errRefused)
	}
	keys, err := a.keys(r.Context())
	if err != nil {
		return "", err
	}
	var std jwt.Claims
	var own struct {
		Scope string `json:"scope"`
		Act   struct {
			Sub string `json:"sub"`
		} `json:"act"`
	}
	if err := tok.Claims(keys, &std, &own); err != nil {
		return "", fmt.Errorf("%w: signature", errRefused)
	}
	if err := std.ValidateWithLeeway(jwt.Expected{Issuer: loginURL, AnyAudience: jwt.Audience{"https://" + ticketsHost}, Time: time.Now()}, 0); err != nil {
		return "", fmt.Errorf("%w: %w", errRefused, err)
	}
	if std.Subject != human || own.Act.Sub != agentID || own.Scope != "tickets:read" {
		return "", fmt.Errorf("%w: sub %q act %q scope %q", errRefused, std.Subject, own.Act.Sub, own.Scope)
	}
	in, err := a.introspect(r.Context(), raw)
	if err != nil || !in.Active {
		return "", fmt.Errorf("%w: token is not active", errRefused)
	}
	return "sub=" + std.Subject + " act.sub=" + own.Act.Sub + " scope=" + own.Scope, nil
}

// reports asks the authorization server about an opaque token.
func (a *apis) reports(r *http.Request) (string, error) {
	raw, err := bearer(r)
	if err != nil {
		return "", err
	}
	a.w.secrets.add("token at reports", raw)
	in, err := a.introspect(r.Context(), raw)
	if err != nil {
		return "", err
	}
	if !in.Active || in.ClientID != agentID || in.Scope != "reports:read" || in.Aud != "https://"+reportsHost {
		return "", fmt.Errorf("%w: active %v client %q scope %q aud %q", errRefused, in.Active, in.ClientID, in.Scope, in.Aud)
	}
	return "client=" + in.ClientID + " scope=" + in.Scope, nil
}

// notes compares a static key.
func (a *apis) notes(r *http.Request) (string, error) {
	if subtle.ConstantTimeCompare([]byte(r.Header.Get("X-Api-Key")), []byte(a.w.apiKey)) != 1 {
		return "", fmt.Errorf("%w: wrong key", errRefused)
	}
	return "the vendor's key", nil
}

// keys reads the authorization server's JWKS.
func (a *apis) keys(ctx context.Context) (*jose.JSONWebKeySet, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, loginURL+"/jwks", nil)
	if err != nil {
		return nil, err
	}
	var set jose.JSONWebKeySet
	return &set, a.json(req, &set)
}

// introspection is the answer of RFC 7662 section 2.2.
type introspection struct {
	Active   bool   `json:"active"`
	ClientID string `json:"client_id"`
	Scope    string `json:"scope"`
	Aud      string `json:"aud"`
}

func (a *apis) introspect(ctx context.Context, token string) (introspection, error) {
	var in introspection
	form := url.Values{"token": {token}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, loginURL+"/token/introspection", strings.NewReader(form.Encode()))
	if err != nil {
		return in, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth("apis", a.w.rsKey)
	return in, a.json(req, &in)
}

func (a *apis) json(req *http.Request, v any) error {
	res, err := a.w.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: status %d", req.URL.Path, res.StatusCode)
	}
	return json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(v)
}
