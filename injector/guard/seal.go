package guard

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/attache-dev/attache/injector/internal/names"
	"github.com/attache-dev/attache/injector/internal/wire"
)

// sealer replaces credentials of one answer by handles.
type sealer struct {
	v   *Vault
	who Who
	n   int
	// members, in lower case, are credentials whatever they hold.
	members []string
}

// member reports whether a member or element is a credential.
func (s *sealer) member(name, value string) bool {
	return names.Member(name, value) || value != "" && s.named(name)
}

func (s *sealer) named(name string) bool {
	return len(s.members) > 0 && slices.Contains(s.members, strings.ToLower(name))
}

func (s *sealer) seal(who Who, slot, value string) string {
	s.n++
	return s.v.seal(who, slot, value)
}

func (s *sealer) header(h http.Header) {
	for name, values := range h {
		switch strings.ToLower(name) {
		case "set-cookie":
			for i, v := range values {
				values[i] = s.cookie(v)
			}
		case "location", "content-location", "refresh":
			for i, v := range values {
				values[i] = s.url(v)
			}
		case "link":
			for i, v := range values {
				values[i] = s.link(v)
			}
		default:
			if names.Header(name) {
				for i, v := range values {
					values[i] = s.issued(v)
				}
			}
		}
	}
}

// cookie seals the value of a Set-Cookie line (RFC 6265 section 5.2) if the
// cookie is of a credential's kind or hidden from scripts.
func (s *sealer) cookie(line string) string {
	pair, attrs, _ := strings.Cut(line, ";")
	name, value, ok := strings.Cut(pair, "=")
	bare := strings.TrimSpace(value)
	if !ok || strings.Trim(bare, `"`) == "" || isHandle(bare) {
		return line
	}
	name = strings.TrimSpace(name)
	if !names.Cookie(name) && !httpOnly(attrs) {
		return line
	}
	return line[:len(pair)-len(value)] + s.seal(s.who, "cookie:"+name, bare) + line[len(pair):]
}

func httpOnly(attrs string) bool {
	for a := range strings.SplitSeq(attrs, ";") {
		if strings.EqualFold(strings.TrimSpace(a), "httponly") {
			return true
		}
	}
	return false
}

// issued seals the value of a header such as X-Subject-Token. An
// authentication scheme before it stays.
func (s *sealer) issued(v string) string {
	scheme, token, ok := strings.Cut(v, " ")
	if !ok {
		scheme, token = "", v
	}
	if token == "" || isHandle(token) {
		return v
	}
	handle := s.seal(s.who, slotToken, token)
	if scheme == "" {
		return handle
	}
	return scheme + " " + handle
}

// link seals the targets of a Link header (RFC 8288 section 3).
func (s *sealer) link(v string) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(v, '<')
		j := strings.IndexByte(v[i+1:], '>') + i + 1
		if i < 0 || j <= i {
			b.WriteString(v)
			return b.String()
		}
		b.WriteString(v[:i+1])
		b.WriteString(s.url(v[i+1 : j]))
		v = v[j:]
	}
}

// url seals signatures and tokens in a URL: in the query, in the fragment
// (RFC 6749 section 4.2.2) and the password. What is sealed opens at the host
// that the URL points to, for that is where it is worth something.
func (s *sealer) url(raw string) string {
	who := s.who
	if u, err := url.Parse(strings.TrimSpace(raw)); err == nil && u.Host != "" {
		who.Host = strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
		if u.Scheme != "" {
			who.Cleartext = u.Scheme == "http" || u.Scheme == "ws"
		}
	}
	rest, fragment, hasFragment := strings.Cut(raw, "#")
	rest, query, hasQuery := strings.Cut(rest, "?")
	out := s.userinfo(who, rest)
	if hasQuery {
		out += "?" + s.params(query, func(name, value string) string {
			if names.Issued(name) {
				return s.token(who, value)
			}
			return s.seal(who, "param:"+names.Fold(name), value)
		})
	}
	if hasFragment {
		out += "#" + s.params(fragment, func(_, value string) string { return s.token(s.who, value) })
	}
	return out
}

func (s *sealer) token(who Who, raw string) string {
	if v, err := url.QueryUnescape(raw); err == nil {
		raw = v
	}
	return s.seal(who, slotToken, raw)
}

func (s *sealer) userinfo(who Who, base string) string {
	scheme, rest, ok := strings.Cut(base, "//")
	if !ok {
		return base
	}
	authority, path, hasPath := strings.Cut(rest, "/")
	at := strings.LastIndexByte(authority, '@')
	if at < 0 {
		return base
	}
	user, password, ok := strings.Cut(authority[:at], ":")
	if !ok || password == "" || isHandle(password) {
		return base
	}
	if p, err := url.PathUnescape(password); err == nil {
		password = p
	}
	out := scheme + "//" + user + ":" + s.seal(who, slotToken, password) + authority[at:]
	if hasPath {
		out += "/" + path
	}
	return out
}

// params replaces the raw values of signature parameters and keeps every other
// byte.
func (s *sealer) params(query string, replace func(name, raw string) string) string {
	return wire.Params(query, func(name, raw string) (string, bool) {
		if raw == "" || isHandle(raw) || !names.Signature(name) {
			return raw, true
		}
		return replace(name, raw), true
	})
}

// form seals tokens in a form-encoded answer, which is what some token
// endpoints send.
func (s *sealer) form(body []byte) []byte {
	return []byte(wire.Params(string(body), func(name, raw string) (string, bool) {
		value, err := url.QueryUnescape(raw)
		if err != nil {
			value = raw
		}
		if isHandle(value) || !names.Member(name, value) {
			return raw, true
		}
		return s.seal(s.who, slotToken, value), true
	}))
}
