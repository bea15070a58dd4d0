package oauth2

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/internal/issuer"
)

// Lifetimes of tokens.
const (
	// unsaidLifetime is assumed where the server says none: RFC 6749 section
	// 5.1 only recommends expires_in, and a short guess costs an extra call
	// while a long one costs failed requests.
	unsaidLifetime = time.Minute
	// maxLifetime bounds what is believed of expires_in.
	maxLifetime = 30 * 24 * time.Hour
)

// token is an answer that was understood.
type token struct {
	access   secret.Value
	lifetime time.Duration
	scope    []string // nil: not said
	details  json.RawMessage
}

// wire is the answer of RFC 6749 section 5.1 with the fields of RFC 8693
// section 2.2.1 and RFC 9396 section 7.
type wire struct {
	AccessToken     string          `json:"access_token"`
	TokenType       string          `json:"token_type"`
	IssuedTokenType string          `json:"issued_token_type"`
	ExpiresIn       json.RawMessage `json:"expires_in"` // seconds
	Scope           *string         `json:"scope"`
	Details         json.RawMessage `json:"authorization_details"`
}

// expected is what an answer is held against.
type expected struct {
	dpop      bool
	exchange  bool
	requested string // requested_token_type
}

func (m *Minter) parse(a issuer.Answer, _ wish) (token, error) {
	return parseToken(a.Body, expected{
		dpop:      m.spec.DPoP,
		exchange:  m.spec.Grant == GrantTokenExchange,
		requested: m.spec.RequestedTokenType,
	})
}

// parseToken reads a token endpoint's answer. Errors never repeat it.
func parseToken(body []byte, x expected) (token, error) {
	bad := func(format string, args ...any) (token, error) {
		return token{}, fmt.Errorf("%w: token endpoint answered nonsense: %s", minting.ErrUnavailable, fmt.Sprintf(format, args...))
	}
	var w wire
	if err := json.Unmarshal(body, &w); err != nil {
		return bad("no JSON object with the fields of RFC 6749 section 5.1")
	}
	if w.AccessToken == "" {
		return bad("no access_token")
	}
	if err := minting.CheckSecret(w.AccessToken); err != nil {
		return token{}, fmt.Errorf("token endpoint: %w", err)
	}
	if x.exchange {
		if err := checkIssued(w.IssuedTokenType, x.requested); err != nil {
			return token{}, err
		}
	}
	// RFC 8693 section 2.2.1: N_A is for what is no access token.
	notAccess := x.exchange && w.IssuedTokenType != "" && w.IssuedTokenType != uriTypeAccess && strings.EqualFold(w.TokenType, "N_A")
	switch {
	case x.dpop && strings.EqualFold(w.TokenType, "DPoP"):
	case x.dpop:
		return bad("token_type is not DPoP: the token is not bound to our key")
	case strings.EqualFold(w.TokenType, "Bearer"), notAccess:
	default:
		return bad("token_type is not Bearer")
	}
	life, err := parseLifetime(w.ExpiresIn)
	if err != nil {
		return bad("%s", err)
	}
	t := token{access: secret.New(w.AccessToken), lifetime: life, details: w.Details}
	if w.Scope != nil {
		if len(*w.Scope) > issuer.MaxError {
			return bad("scope is longer than %d bytes", issuer.MaxError)
		}
		t.scope = strings.Fields(*w.Scope)
		if t.scope == nil {
			t.scope = []string{}
		}
	}
	return t, nil
}

// checkIssued: what was issued must be what was requested. Servers that leave
// the field out (some vendors do, against RFC 8693 section 2.2.1) are believed
// only where nothing special was requested.
func checkIssued(issued, requested string) error {
	if issued == requested || issued == "" && requested == uriTypeAccess {
		return nil
	}
	if requested == "" && (issued == "" || issued == uriTypeAccess || issued == uriTypeJWT) {
		return nil
	}
	return fmt.Errorf("%w: token endpoint answered nonsense: issued_token_type is not the requested one", minting.ErrUnavailable)
}

// parseLifetime reads expires_in: seconds as a number, or as text as some
// servers write it.
func parseLifetime(raw json.RawMessage) (time.Duration, error) {
	raw = bytes.Trim(bytes.TrimSpace(raw), `"`)
	if len(raw) == 0 || string(raw) == "null" {
		return unsaidLifetime, nil
	}
	s, err := strconv.ParseFloat(string(raw), 64)
	if math.IsInf(s, 1) { // out of range is long
		return maxLifetime, nil
	}
	if err != nil || math.IsNaN(s) {
		return 0, fmt.Errorf("expires_in is no number")
	}
	if s < 1 {
		return 0, fmt.Errorf("expires_in is not positive: the token has expired already")
	}
	if s >= maxLifetime.Seconds() { // compared before it is converted: no overflow
		return maxLifetime, nil
	}
	return time.Duration(s) * time.Second, nil
}

// accept holds a token against what was asked for.
func (m *Minter) accept(r minting.Request, e minting.Evidence, w wish, t token) error {
	if len(w.scope) > 0 {
		for _, s := range t.scope {
			if !slices.Contains(w.scope, s) {
				return fmt.Errorf("%w: the server granted scope %q, which was not asked for; the token is refused", minting.ErrDenied, issuer.Safe(s))
			}
		}
	}
	if w.authorization != "" {
		if err := checkDetails(w.authorization, t.details); err != nil {
			return err
		}
	}
	if m.spec.RequireAct {
		return checkAct(t.access, m.subject(e), e.Workload.ID.String())
	}
	return nil
}

func (m *Minter) subject(e minting.Evidence) string {
	if m.spec.Subject == PartyHuman && e.Task != nil && e.Task.Human != nil {
		return e.Task.Human.Subject
	}
	return e.Workload.ID.String()
}

// checkDetails: the server must say what it granted (RFC 9396 section 7), and
// every element must be one that was asked for.
func checkDetails(asked string, granted json.RawMessage) error {
	var want, got []any
	if json.Unmarshal([]byte(asked), &want) != nil {
		return fmt.Errorf("%w: authorizationDetails is no JSON array", minting.ErrDenied)
	}
	if len(granted) == 0 || json.Unmarshal(granted, &got) != nil {
		return fmt.Errorf("%w: the server does not say which authorization_details it granted; the token may be wider than asked and is refused", minting.ErrDenied)
	}
	allowed := make(map[string]bool, len(want))
	for _, d := range want {
		b, _ := json.Marshal(d) // sorts the names
		allowed[string(b)] = true
	}
	for _, d := range got {
		b, _ := json.Marshal(d)
		if !allowed[string(b)] {
			return fmt.Errorf("%w: the server granted authorization_details that were not asked for; the token is refused", minting.ErrDenied)
		}
	}
	return nil
}

// checkAct refuses a token that does not say "subject, through actor" (RFC
// 8693 section 4.1). Many servers ignore actor_token and issue a token by
// which the workload simply is the human. The signature is not checked: the
// token came from the server itself over TLS.
func checkAct(access secret.Value, subject, actor string) error {
	var c struct {
		Subject string `json:"sub"`
		Act     struct {
			Subject string `json:"sub"`
		} `json:"act"`
	}
	parts := strings.Split(access.Reveal(), ".")
	if len(parts) != 3 {
		return fmt.Errorf("%w: requireAct: the server issued no JWT, so that its actor cannot be seen; the token is refused", minting.ErrDenied)
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(b, &c) != nil {
		return fmt.Errorf("%w: requireAct: the server issued a token that is no JWT; the token is refused", minting.ErrDenied)
	}
	switch {
	case c.Subject == "" || c.Subject != subject:
		return fmt.Errorf("%w: requireAct: the token's sub is not the subject of the exchange; the token is refused", minting.ErrDenied)
	case c.Act.Subject == "" || c.Act.Subject != actor:
		return fmt.Errorf("%w: requireAct: the token's act.sub is not this workload; the token is refused", minting.ErrDenied)
	}
	return nil
}

// errorText reads an error answer (RFC 6749 section 5.2): its code, and what
// may be shown of it. sent are the secrets in the request, which servers like
// to repeat.
func errorText(a issuer.Answer, sent []string) (code, text string) {
	var w struct {
		Error       json.RawMessage `json:"error"`
		Description string          `json:"error_description"`
	}
	if json.Unmarshal(a.Body, &w) != nil || json.Unmarshal(w.Error, &code) != nil {
		if a.Status == http.StatusOK {
			return "", ""
		}
		return "", "no OAuth error in the answer"
	}
	code = issuer.Safe(code, sent...)
	text = code
	if d := issuer.Safe(w.Description, sent...); d != "" {
		text += " (" + d + ")"
	}
	return code, text
}
