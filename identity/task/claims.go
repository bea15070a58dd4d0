package task

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/attache-dev/attache/identity"
)

// Bounds of what a token may say.
const (
	maxToken   = 16 << 10
	maxGroups  = 512
	maxName    = 255 // OpenID Connect Core 1.0 section 2: sub is at most 255
	maxJTI     = 512
	maxAudList = 64
)

// claims are the parts of a human's token that matter here.
type claims struct {
	Issuer, Subject, ID string
	Audience            []string
	Expires, Issued     time.Time
	NotBefore           time.Time // zero if absent
	AuthorizedParty     string
	MayAct              string // sub of may_act, RFC 8693 section 4.4
	HasMayAct           bool
	Actors              []identity.Actor // act and what is nested in it, RFC 8693 section 4.1
	Email               string           // only if verified
	Groups              []string
	Logout              bool // has events: a logout token, no grant
}

var errDuplicate = errors.New("a member stands twice")

// object reads one JSON object. encoding/json alone would match member names
// in any case and take the last of two: the signer and we could then read one
// token differently. RFC 7519 section 4 allows to refuse duplicates.
func object(b []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(b) {
		return nil, errors.New("not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	out := map[string]json.RawMessage{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, errors.New("not a JSON object")
		}
		name, ok := t.(string)
		if !ok {
			return nil, errors.New("not a JSON object")
		}
		if _, twice := out[name]; twice {
			return nil, errDuplicate
		}
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return nil, errors.New("not a JSON object")
		}
		out[name] = v
	}
	if _, err := d.Token(); err != nil {
		return nil, errors.New("not a JSON object")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("text after the JSON object")
	}
	return out, nil
}

// parseClaims reads a verified payload. Errors name the claim, never its
// value.
func parseClaims(b []byte) (claims, error) {
	m, err := object(b)
	if err != nil {
		return claims{}, fmt.Errorf("claims: %w", err)
	}
	var c claims
	r := reader{m: m}
	c.Issuer = r.text("iss", 2048)
	c.Subject = r.text("sub", maxName)
	c.ID = r.text("jti", maxJTI)
	c.AuthorizedParty = r.text("azp", 2048)
	c.Audience = r.list("aud", maxAudList)
	c.Groups = r.list("groups", maxGroups)
	c.Expires = r.date("exp")
	c.Issued = r.date("iat")
	c.NotBefore = r.date("nbf")
	if email := r.text("email", 320); r.flag("email_verified") {
		c.Email = email
	}
	_, c.Logout = m["events"]
	if raw, ok := m["may_act"]; ok {
		inner, err := object(raw)
		if err != nil {
			return claims{}, fmt.Errorf("claim may_act: %w", err)
		}
		ir := reader{m: inner}
		c.MayAct, c.HasMayAct = ir.text("sub", 2048), true
		r.err = errors.Join(r.err, ir.err)
	}
	if raw, ok := m["act"]; ok {
		if c.Actors, err = actors(raw); err != nil {
			return claims{}, err
		}
	}
	return c, r.err
}

// maxActors bounds a chain of agents.
const maxActors = 8

// actors reads the chain that act names: who presents the token first, then who
// called that one, and so on (RFC 8693 section 4.1). Only the first has a say in
// access; the others are told in records.
func actors(raw json.RawMessage) ([]identity.Actor, error) {
	var out []identity.Actor
	for raw != nil {
		if len(out) == maxActors {
			return nil, fmt.Errorf("claim act is nested more than %d deep", maxActors)
		}
		m, err := object(raw)
		if err != nil {
			return nil, fmt.Errorf("claim act: %w", err)
		}
		r := reader{m: m}
		a := identity.Actor{Subject: r.text("sub", 2048), Issuer: r.text("iss", 2048)}
		if a.Subject == "" {
			a.Subject = r.text("client_id", 2048)
		}
		if r.err != nil {
			return nil, r.err
		}
		if a.Subject == "" {
			return nil, errors.New("claim act must have a sub")
		}
		out = append(out, a)
		raw = m["act"]
	}
	return out, nil
}

// reader takes claims out of an object and keeps the first error.
type reader struct {
	m   map[string]json.RawMessage
	err error
}

func (r *reader) fail(name, want string) {
	if r.err == nil {
		r.err = fmt.Errorf("claim %s must be %s", name, want)
	}
}

func (r *reader) text(name string, limit int) string {
	raw, ok := r.m[name]
	if !ok {
		return ""
	}
	var s *string
	if json.Unmarshal(raw, &s) != nil || s == nil || len(*s) > limit || hasControl(*s) {
		r.fail(name, fmt.Sprintf("a text of at most %d bytes", limit))
		return ""
	}
	return *s
}

// list reads a text or a list of texts.
func (r *reader) list(name string, limit int) []string {
	raw, ok := r.m[name]
	if !ok {
		return nil
	}
	var one string
	if json.Unmarshal(raw, &one) == nil && string(raw) != "null" {
		return slices.DeleteFunc([]string{one}, func(s string) bool { return s == "" })
	}
	var many []*string
	if json.Unmarshal(raw, &many) != nil || many == nil || len(many) > limit {
		r.fail(name, fmt.Sprintf("a text or a list of at most %d texts", limit))
		return nil
	}
	out := make([]string, 0, len(many))
	for _, s := range many {
		if s == nil || len(*s) > 2048 || hasControl(*s) {
			r.fail(name, "a list of texts without control characters")
			return nil
		}
		out = append(out, *s)
	}
	return out
}

// date reads a NumericDate (RFC 7519 section 2), which may have a fraction.
func (r *reader) date(name string) time.Time {
	raw, ok := r.m[name]
	if !ok {
		return time.Time{}
	}
	var f *float64
	const year9999 = 253402300799
	if json.Unmarshal(raw, &f) != nil || f == nil || math.IsNaN(*f) || *f <= 0 || *f > year9999 {
		r.fail(name, "seconds since 1970")
		return time.Time{}
	}
	return time.Unix(int64(*f), 0)
}

// flag reads a boolean; some providers write it as text.
func (r *reader) flag(name string) bool {
	raw := strings.TrimSpace(string(r.m[name]))
	return raw == "true" || raw == `"true"`
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(c rune) bool { return c < 0x20 || c == 0x7f })
}
