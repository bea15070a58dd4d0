package injector

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/attache-dev/attache/policy"
)

// Ambient reports whether a request may carry the provider's credential, or
// merely happens to reach us: an error that matches [ErrNoPlaceholder] or
// [ErrCrossSite] means that it goes without, whatever policy granted. It must
// see the request as the agent sent it, with scheme and host in r.URL. For a
// provider that signs requests the placeholder is the key that the agent's own
// signature names: the caller asks [Injector.OwnKey] in addition.
func (in *Injector) Ambient(r *http.Request, d policy.Decision, p Placeholders) error {
	if !d.CrossSite {
		if err := sameSite(r); err != nil {
			return err
		}
	}
	if in.need && in.as != asSigV4 && !in.asked(r, p) {
		return fmt.Errorf("%w: set the client's key to the value of %s in its environment",
			ErrNoPlaceholder, strings.Join(in.envs, " or "))
	}
	return nil
}

// OwnKey reports whether the access key id that a signature names is the one
// that the agent was given for this provider. The error matches
// [ErrNoPlaceholder]. A secret key, or another provider's key id, does not count.
func (in *Injector) OwnKey(id string, p Placeholders) error {
	if !in.need {
		return nil
	}
	if p != nil {
		if env, ok := p.Contains(id); ok && env == in.envs[0] {
			return nil
		}
	}
	return fmt.Errorf("%w: sign with the keys in %s of its environment", ErrNoPlaceholder, strings.Join(in.envs, " and "))
}

// asked reports whether a header or parameter holds this provider's
// placeholder. Another provider's does not count.
func (in *Injector) asked(r *http.Request, p Placeholders) bool {
	for _, values := range r.Header {
		for _, v := range values {
			if in.mine(p, v) {
				return true
			}
			// Several cookies share a line, each may hold another placeholder.
			for part := range strings.SplitSeq(v, ";") {
				if part != v && in.mine(p, part) {
					return true
				}
			}
		}
	}
	for part := range strings.FieldsFuncSeq(r.URL.RawQuery, func(c rune) bool { return c == '&' || c == ';' }) {
		if in.mine(p, part) {
			return true
		}
	}
	if u := r.URL.User; u != nil { // curl https://key@host
		password, _ := u.Password()
		return in.mine(p, u.Username()) || in.mine(p, password)
	}
	return false
}

func (in *Injector) mine(p Placeholders, v string) bool {
	env, ok := findPlaceholder(p, v)
	return ok && slices.Contains(in.envs, env)
}

// sameSite looks at what browsers say of a request's maker (Fetch standard,
// Origin; Fetch Metadata, Sec-Fetch-Site). Programs that are no browsers send
// neither.
func sameSite(r *http.Request) error {
	for _, v := range folded(r.Header, "sec-fetch-site") {
		switch v {
		case "same-origin", "none":
		default:
			return fmt.Errorf("%w: Sec-Fetch-Site is %.20q; a rule may set allowCrossSite", ErrCrossSite, v)
		}
	}
	for _, v := range folded(r.Header, "origin") {
		o, err := url.Parse(v)
		if err != nil || o.Host == "" || !sameOrigin(o, r) {
			return fmt.Errorf("%w: Origin is %.80q; a rule may set allowCrossSite", ErrCrossSite, v)
		}
	}
	return nil
}

func folded(h http.Header, name string) []string {
	var out []string
	for k, values := range h {
		if strings.EqualFold(k, name) {
			out = append(out, values...)
		}
	}
	return out
}

// sameOrigin compares scheme, host and port (RFC 6454 section 5).
func sameOrigin(o *url.URL, r *http.Request) bool {
	dest := *r.URL
	if dest.Host == "" {
		dest.Host = r.Host
	}
	return strings.EqualFold(o.Scheme, dest.Scheme) &&
		strings.EqualFold(strings.TrimSuffix(o.Hostname(), "."), strings.TrimSuffix(dest.Hostname(), ".")) &&
		port(o) == port(&dest)
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if strings.EqualFold(u.Scheme, "http") {
		return "80"
	}
	return "443"
}
