package task

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/secret"
)

// Skew is how far the clocks of an issuer and of this host may differ.
const Skew = 60 * time.Second

const (
	defaultMaxAge  = 10 * time.Minute
	defaultReplays = 65536
	// metadataLife bounds how long keys are trusted that the issuer may since
	// have withdrawn.
	metadataLife = 10 * time.Minute
)

// RFC 8693 section 3 token types.
const (
	typeIDToken     = "urn:ietf:params:oauth:token-type:id_token"     //nolint:gosec // a name, no secret
	typeAccessToken = "urn:ietf:params:oauth:token-type:access_token" //nolint:gosec // a name, no secret
)

// VerifierConfig describes a [Verifier].
type VerifierConfig struct {
	Issuers []v1alpha1.HumanIssuer
	// Client makes the HTTP client for one issuer; default [HTTPClient]. The
	// verifier bounds it: answers of 1 MiB, five seconds, no redirects.
	Client func(v1alpha1.HumanIssuer) (*http.Client, error)
	// Replays remembers used tokens; default: in memory, for this Verifier.
	Replays Replays
	// MaxRemembered bounds the token ids that the default Replays remembers;
	// when all are still needed, further tokens are refused. Default 65536.
	MaxRemembered int
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// Verifier verifies the OpenID tokens of humans, each token once. It is safe
// for concurrent use.
type Verifier struct {
	issuers map[string]*humanIssuer
	replays Replays
	now     func() time.Time
}

// Verified is what a human's token proves.
type Verified struct {
	Human   identity.Human
	Actors  []identity.Actor // identity.Task.Actors
	Expires time.Time
	// TokenType is the RFC 8693 section 3 type URI of the token.
	TokenType string
}

// humanIssuer is one configured OpenID provider.
type humanIssuer struct {
	spec   v1alpha1.HumanIssuer
	maxAge time.Duration
	client *http.Client
	now    func() time.Time

	mu      sync.Mutex // guards keys and fetched
	keys    *oidc.IDTokenVerifier
	fetched time.Time
	gate    chan struct{} // holds one token: who has it fetches metadata
}

// NewVerifier checks c. No issuer is contacted before its first token.
func NewVerifier(c VerifierConfig) (*Verifier, error) {
	if c.Client == nil {
		c.Client = HTTPClient
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.MaxRemembered == 0 {
		c.MaxRemembered = defaultReplays
	}
	if c.Replays == nil {
		c.Replays = newMemory(c.MaxRemembered)
	}
	v := &Verifier{issuers: map[string]*humanIssuer{}, replays: c.Replays, now: c.Now}
	for n, spec := range c.Issuers {
		at := fmt.Sprintf("humans[%d]", n)
		if err := checkIssuer(spec); err != nil {
			return nil, fmt.Errorf("%s: %w", at, err)
		}
		if v.issuers[spec.Issuer] != nil {
			return nil, fmt.Errorf("%s.issuer: %s stands twice; list all audiences in one entry", at, spec.Issuer)
		}
		hc, err := c.Client(spec)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", at, err)
		}
		h := &humanIssuer{spec: spec, maxAge: spec.MaxAge.D(), client: bound(hc), now: c.Now, gate: make(chan struct{}, 1)}
		if h.maxAge == 0 {
			h.maxAge = defaultMaxAge
		}
		v.issuers[spec.Issuer] = h
	}
	return v, nil
}

func checkIssuer(h v1alpha1.HumanIssuer) error {
	switch {
	case !strings.HasPrefix(h.Issuer, "https://"):
		return fmt.Errorf("issuer: is %q; must be an https URL", h.Issuer)
	case len(h.Audiences) == 0 || slices.Contains(h.Audiences, ""):
		return errors.New("audiences: name at least one audience of ours, none empty; a token for anybody proves nothing")
	case h.MaxAge < 0:
		return fmt.Errorf("maxAge: is %v; must not be negative", h.MaxAge.D())
	}
	return nil
}

// Verify checks that token was issued by a configured issuer, lately, for us
// and for workload w to act with, and was not seen before. Every refusal is an
// [*Error].
func (v *Verifier) Verify(ctx context.Context, token secret.Value, w *identity.Workload) (Verified, error) {
	raw := token.Reveal()
	jws, err := parseToken(raw)
	if err != nil {
		return Verified{}, err
	}
	// The issuer is believed only as far as to find the key to check it by.
	hint, err := parseClaims(jws.UnsafePayloadWithoutVerification())
	if err != nil {
		return Verified{}, refuse(CodeMalformed, "the human's token is malformed: %v", err)
	}
	h := v.issuers[hint.Issuer]
	if h == nil {
		return Verified{}, refuse(CodeUnknownIssuer, "the human's token is issued by %s; trusted are %s", quote(hint.Issuer), v.known())
	}
	payload, err := h.signed(ctx, raw)
	if err != nil {
		return Verified{}, err
	}
	c, err := parseClaims(payload)
	if err != nil {
		return Verified{}, refuse(CodeMalformed, "the human's token is malformed: %v", err)
	}
	now := v.now()
	if err := h.check(c, w, now); err != nil {
		return Verified{}, err
	}
	// Past this, the token is refused as expired or stale, so there is no
	// need to remember it.
	until := c.Expires
	if fresh := c.Issued.Add(h.maxAge); fresh.Before(until) {
		until = fresh
	}
	if err := v.spend(ctx, c.Issuer, c.ID, now, until.Add(2*Skew)); err != nil {
		return Verified{}, err
	}
	out := Verified{
		Human:     identity.Human{Subject: c.Subject, Issuer: c.Issuer, Email: c.Email, Groups: c.Groups},
		Actors:    c.Actors,
		Expires:   c.Expires,
		TokenType: typeIDToken,
	}
	if strings.EqualFold(headerType(jws), "at+jwt") { // RFC 9068 section 2.1
		out.TokenType = typeAccessToken
	}
	return out, nil
}

// parseToken reads a compact JWS with one asymmetric signature. Symmetric
// algorithms and "none" do not parse (RFC 8725 section 3.1).
func parseToken(raw string) (*jose.JSONWebSignature, error) {
	switch {
	case raw == "":
		return nil, refuse(CodeMalformed, "the human's token is empty")
	case len(raw) > maxToken:
		return nil, refuse(CodeMalformed, "the human's token has %d bytes; at most %d are read", len(raw), maxToken)
	case strings.Count(raw, ".") != 2:
		return nil, refuse(CodeMalformed, "the human's token is no JWT; give an OpenID token of three parts")
	}
	jws, err := jose.ParseSignedCompact(raw, algorithms())
	if err != nil { // the cause may repeat parts of the token
		return nil, refuse(CodeMalformed, "the human's token is no JWT with an asymmetric signature")
	}
	return jws, nil
}

func algorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{
		jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
		jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
	}
}

func headerType(jws *jose.JSONWebSignature) string {
	if len(jws.Signatures) != 1 {
		return ""
	}
	t, _ := jws.Signatures[0].Protected.ExtraHeaders[jose.HeaderType].(string)
	return strings.TrimPrefix(strings.ToLower(t), "application/")
}

// check is everything that a signature does not prove.
func (h *humanIssuer) check(c claims, w *identity.Workload, now time.Time) error {
	switch {
	case c.Subject == "":
		return refuse(CodeMalformed, "the human's token has no sub")
	case c.Logout:
		return refuse(CodeMalformed, "the human's token is a logout token, which grants nothing")
	case !slices.ContainsFunc(c.Audience, func(a string) bool { return slices.Contains(h.spec.Audiences, a) }):
		return refuse(CodeAudience, "the human's token is for another audience; ask %s for one with aud %s", h.spec.Issuer, strings.Join(h.spec.Audiences, " or "))
	case c.Expires.IsZero():
		return refuse(CodeMalformed, "the human's token has no exp")
	case !now.Before(c.Expires.Add(Skew)):
		return refuse(CodeExpired, "the human's token expired at %s; sign in again", c.Expires.UTC().Format(time.RFC3339))
	case !c.NotBefore.IsZero() && now.Add(Skew).Before(c.NotBefore):
		return refuse(CodeNotYetValid, "the human's token is not valid before %s; check this host's clock", c.NotBefore.UTC().Format(time.RFC3339))
	case c.Issued.IsZero():
		return refuse(CodeMalformed, "the human's token has no iat, so its freshness is unknown")
	case now.Add(Skew).Before(c.Issued):
		return refuse(CodeNotYetValid, "the human's token was issued at %s, in the future; check this host's clock", c.Issued.UTC().Format(time.RFC3339))
	case now.After(c.Issued.Add(h.maxAge + Skew)):
		return refuse(CodeStale, "the human's token was issued at %s; it must not be older than %v; get a fresh one", c.Issued.UTC().Format(time.RFC3339), h.maxAge)
	case c.ID == "":
		return refuse(CodeMalformed, "the human's token has no jti, so it cannot be used only once")
	}
	return h.checkBinding(c, w)
}

// checkBinding asks that the human's token names the workload that may act
// with it: by may_act (RFC 8693 section 4.4), else by azp. A may_act that
// names somebody else is not outdone by azp.
func (h *humanIssuer) checkBinding(c claims, w *identity.Workload) error {
	if b := h.spec.RequireBinding; b != nil && !*b {
		return nil
	}
	if w == nil || w.ID.IsZero() {
		return refuse(CodeBinding, "there is no attested workload to act for the human")
	}
	id := w.ID.String()
	if c.HasMayAct && c.MayAct == id || !c.HasMayAct && c.AuthorizedParty == id {
		return nil
	}
	return refuse(CodeBinding, "the human's token is not for this workload; it must name %s in may_act.sub or azp", id)
}

func (v *Verifier) known() string {
	if len(v.issuers) == 0 {
		return "none (configure spec.humans)"
	}
	var out []string
	for n := range v.issuers {
		out = append(out, n)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// spend notes that the token with this id is used.
func (v *Verifier) spend(ctx context.Context, issuer, id string, now, until time.Time) error {
	key := TokenKey(sha256.Sum256([]byte(issuer + "\x00" + id))) // neither holds a NUL
	err := v.replays.Use(ctx, key, now, until)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrReplayed):
		return refuse(CodeReplayed, "the human's token was used before; get a fresh one for each task")
	case errors.Is(err, ErrReplaysFull):
		return refuse(CodeLimit, "too many human tokens were used within their lifetime; wait and try again")
	}
	// Unremembered it could be used again, so it is not used at all.
	return &Error{Code: CodeState, Text: fmt.Sprintf("the human's token cannot be marked as used (%v), so it is not taken", err), Err: err}
}
