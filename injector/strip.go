package injector

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/injector/internal/names"
	"github.com/attache-dev/attache/injector/internal/wire"
)

// StripOptions say what [Strip] leaves.
type StripOptions struct {
	// Agent is the rule's choice; pass leaves the agent's own credentials, but
	// never a placeholder.
	Agent v1alpha1.AgentCredentials
	// Placeholders of this run; may be nil.
	Placeholders Placeholders
	// Sealed reports whether a handle was sealed for this caller and host
	// (guard.Vault.Holds): such a value is ours, not the agent's. May be nil.
	Sealed func(handle string) bool
	// Headers and Params are further places that carry credentials here, see
	// [Injector.Places].
	Headers, Params []string
}

// Strip takes the agent's own credentials and every placeholder off a request
// to a ruled host. It returns the names of what it removed, sorted, for the
// record: a header's name, or "cookie NAME", "query NAME", "userinfo".
func Strip(r *http.Request, o StripOptions) []string {
	s := stripper{StripOptions: o, removed: map[string]bool{}}
	if r.URL.User != nil {
		r.URL.User = nil
		s.removed["userinfo"] = true
	}
	s.header(r.Header)
	s.header(r.Trailer)
	if r.URL.RawQuery != "" {
		r.URL.RawQuery = wire.Params(r.URL.RawQuery, s.param)
		if s.placeholder(r.URL.RawQuery) { // in text that decodes to something else
			r.URL.RawQuery = wire.Drop(r.URL.RawQuery, s.placeholder)
			s.removed["query (placeholder)"] = true
		}
	}
	return s.names()
}

// StripTrailer does for the trailers of a request what [Strip] did for its
// header. Trailers are known only when the body has been read.
func StripTrailer(h http.Header, o StripOptions) []string {
	s := stripper{StripOptions: o, removed: map[string]bool{}}
	s.header(h)
	return s.names()
}

type stripper struct {
	StripOptions
	removed map[string]bool
}

func (s *stripper) names() []string {
	if len(s.removed) == 0 {
		return nil
	}
	out := make([]string, 0, len(s.removed))
	for n := range s.removed {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

func (s *stripper) header(h http.Header) {
	for name, values := range h {
		if strings.EqualFold(name, "cookie") {
			wire.CookieLines(h, name, s.cookie, s.cookieLine)
			continue
		}
		own := s.own(name, s.Headers, names.Header)
		if len(values) == 0 && own { // an announced trailer
			delete(h, name)
			s.removed[name] = true
			continue
		}
		drop := func(v string) bool { return s.placeholder(v) || own && !s.sealedHeader(v) }
		if !slices.ContainsFunc(values, drop) {
			continue
		}
		s.removed[name] = true
		kept := values[:0:0]
		for _, v := range values {
			if !drop(v) {
				kept = append(kept, v)
			}
		}
		if len(kept) == 0 {
			delete(h, name)
		} else {
			h[name] = kept
		}
	}
}

// own reports whether a name is one of the agent's credentials that must go.
func (s *stripper) own(name string, extra []string, known func(string) bool) bool {
	// Proxy-Authorization is for us, not for the origin, whatever the rule.
	if names.Fold(name) == "proxy-authorization" {
		return true
	}
	if s.Agent == v1alpha1.AgentCredentialsPass {
		return false
	}
	if known(name) {
		return true
	}
	fold := names.Fold(name)
	return slices.ContainsFunc(extra, func(e string) bool { return names.Fold(e) == fold })
}

func (s *stripper) cookie(name, value string) (string, bool) {
	own := s.own(name, nil, names.Cookie) && !s.sealed(strings.Trim(value, `"`))
	if own || s.placeholder(value) || s.placeholder(name) {
		s.removed["cookie "+s.label(name)] = true
		return "", false
	}
	return value, true
}

// cookieLine finds what Contains sees in the whole and not in the parts.
func (s *stripper) cookieLine(line string) bool {
	bad := s.placeholder(line)
	if bad {
		s.removed["cookie"] = true
	}
	return bad
}

func (s *stripper) param(name, raw string) (string, bool) {
	value, err := url.QueryUnescape(raw)
	if err != nil {
		value = raw
	}
	own := s.own(name, s.Params, names.Param) && !s.sealed(value)
	if own || s.placeholder(value) || s.placeholder(raw) || s.placeholder(name) {
		s.removed["query "+s.label(name)] = true
		return "", false
	}
	return raw, true
}

// label keeps a placeholder that stands for a name out of the record.
func (s *stripper) label(name string) string {
	if s.placeholder(name) {
		return "(placeholder)"
	}
	return name
}

func (s *stripper) sealed(v string) bool { return s.Sealed != nil && s.Sealed(v) }

// sealedHeader reports whether a header's value is a handle, alone, behind a
// scheme, or as user or password of Basic.
func (s *stripper) sealedHeader(v string) bool {
	if s.Sealed == nil {
		return false
	}
	if s.sealed(v) {
		return true
	}
	scheme, rest, ok := strings.Cut(v, " ")
	if !ok {
		return false
	}
	rest = strings.TrimSpace(rest)
	if plain, ok := basic(scheme, rest); ok {
		user, password, _ := strings.Cut(plain, ":")
		return s.sealed(password) || s.sealed(user)
	}
	return s.sealed(rest)
}

func (s *stripper) placeholder(v string) bool {
	_, ok := findPlaceholder(s.Placeholders, v)
	return ok
}

// maxUnescape is how often a value is percent-decoded in search of a
// placeholder: a URL within a URL is encoded twice.
const maxUnescape = 3

// findPlaceholder looks at a value as it stands, percent-decoded, and inside
// Basic credentials.
func findPlaceholder(p Placeholders, v string) (string, bool) {
	if p == nil || v == "" {
		return "", false
	}
	for range maxUnescape {
		if name, ok := p.Contains(v); ok {
			return name, true
		}
		plain, err := url.QueryUnescape(v)
		if err != nil || plain == v {
			break
		}
		v = plain
	}
	scheme, rest, ok := strings.Cut(v, " ")
	if !ok {
		return "", false
	}
	if plain, ok := basic(scheme, strings.TrimSpace(rest)); ok {
		return p.Contains(plain)
	}
	return "", false
}

// basic decodes Basic credentials (RFC 7617) as leniently as servers do.
func basic(scheme, enc string) (string, bool) {
	if !strings.EqualFold(scheme, "basic") {
		return "", false
	}
	enc = strings.TrimRight(enc, "=")
	enc = strings.NewReplacer("-", "+", "_", "/").Replace(enc)
	b, err := base64.RawStdEncoding.DecodeString(enc)
	return string(b), err == nil
}
