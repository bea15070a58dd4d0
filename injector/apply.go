package injector

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/injector/guard"
	"github.com/attache-dev/attache/injector/internal/names"
	"github.com/attache-dev/attache/injector/internal/wire"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
)

// Values of v1alpha1.Injection.As.
const (
	asBearer = "bearer"
	asHeader = "header"
	asBasic  = "basic"
	asQuery  = "query"
	asDPoP   = "dpop"
	asSigV4  = "sigv4"
)

// Injector puts one provider's credentials on requests. It is immutable and
// safe for concurrent use.
type Injector struct {
	provider  string
	as        string
	name      string
	prefix    string
	username  string
	fixed     map[string]string
	cleartext bool
	need      bool     // a placeholder must ask for the credential
	envs      []string // variables of this provider's placeholders
	prover    Prover
}

// New returns the injector of a provider whose presets have been filled in.
// prover may be nil if no credential of the provider is bound to a key.
func New(p *v1alpha1.CredentialProvider, prover Prover) (*Injector, error) {
	i := p.Spec.Inject
	in := &Injector{
		provider: p.Metadata.Name, as: i.As, name: i.Name, prefix: i.Prefix, username: i.Username,
		cleartext: p.Spec.UnsafeCleartext, prover: prover,
		need:  len(p.Spec.Placeholders) > 0,
		fixed: make(map[string]string, len(i.Headers)),
	}
	if in.as == "" {
		in.as = asBearer
		if p.Spec.OAuth2 != nil && p.Spec.OAuth2.DPoP {
			in.as = asDPoP
		}
		if p.Spec.AWS != nil {
			in.as = asSigV4
		}
	}
	if i.RequirePlaceholder != nil {
		in.need = *i.RequirePlaceholder
	}
	for _, ph := range p.Spec.Placeholders {
		in.envs = append(in.envs, ph.Env)
	}
	if in.need && len(in.envs) == 0 {
		return nil, fmt.Errorf("inject.requirePlaceholder: is true but no placeholder is declared; declare one in placeholders")
	}
	for name, value := range i.Headers {
		if err := checkName(name); err != nil {
			return nil, fmt.Errorf("inject.headers: %w", err)
		}
		if badText(value) {
			return nil, fmt.Errorf("inject.headers[%s]: holds a control character; remove it", name)
		}
		in.fixed[textproto.CanonicalMIMEHeaderKey(name)] = value
	}
	if err := in.check(); err != nil {
		return nil, err
	}
	return in, nil
}

func (in *Injector) check() error {
	switch in.as {
	case asBearer:
	case asHeader:
		if err := checkName(in.name); err != nil {
			return fmt.Errorf("inject.name: %w", err)
		}
		if badText(in.prefix) {
			return fmt.Errorf("inject.prefix: holds a control character; remove it")
		}
		in.name = textproto.CanonicalMIMEHeaderKey(in.name)
	case asBasic:
		// RFC 7617 section 2: the first colon ends the user-id.
		if strings.Contains(in.username, ":") || badText(in.username) {
			return fmt.Errorf("inject.username: is %q; it must hold neither a colon nor a control character", in.username)
		}
	case asQuery:
		if in.name == "" {
			return fmt.Errorf("inject.name: is empty; name the query parameter")
		}
	case asDPoP:
		if in.prover == nil {
			return fmt.Errorf("inject.as: is dpop, but the credential has no proof key; set oauth2.dpop")
		}
	case asSigV4:
		if len(in.fixed) > 0 {
			return fmt.Errorf("inject.headers: cannot be put on signed requests; leave it out")
		}
	default:
		return fmt.Errorf("inject.as: is %q; must be one of bearer, header, basic, query, dpop, sigv4", in.as)
	}
	return nil
}

// checkName accepts header names (RFC 9110 section 5.1) that are not about
// framing or routing.
func checkName(name string) error {
	if name == "" {
		return fmt.Errorf("is empty; name the header")
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`()<>@,;:\"/[]?={}`, c) >= 0 {
			return fmt.Errorf("is %q; a header name is a token such as X-Api-Key", name)
		}
	}
	switch n := strings.ToLower(name); n {
	case "host", "content-length", "transfer-encoding", "cookie":
		return fmt.Errorf("is %q; this header cannot be injected", name)
	default:
		if hopByHop(n) || overriding(n) {
			return fmt.Errorf("is %q; this header cannot be injected", name)
		}
	}
	return nil
}

// badText reports control characters: in a header they would begin another
// one, or end the request (RFC 9110 section 5.5).
func badText(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return true
		}
	}
	return false
}

// Apply puts c on r, in the place of anything that stands there. It refuses
// with [ErrCleartext] a request that would not be encrypted, and with
// [ErrUnusable] a credential that would break out of its place. Credentials that
// sign requests are for the package sigv4 to apply.
func (in *Injector) Apply(r *http.Request, c minting.Credential) error {
	if r.URL.Scheme != "https" && !in.cleartext {
		return fmt.Errorf("%w: the scheme is %q; use https or set unsafeCleartext on provider %s", ErrCleartext, r.URL.Scheme, in.provider)
	}
	if c.Provider != "" && c.Provider != in.provider {
		return fmt.Errorf("%w: it was minted by provider %s, not %s", ErrUnusable, c.Provider, in.provider)
	}
	if in.as == asSigV4 {
		return fmt.Errorf("%w: provider %s signs requests; sigv4.Signer does", ErrUnusable, in.provider)
	}
	value := c.Secret.Reveal()
	if value == "" || badText(value) || strings.TrimSpace(value) != value {
		return fmt.Errorf("%w: it is empty or holds control characters or outer spaces; check what provider %s reads", ErrUnusable, in.provider)
	}
	as := in.as
	if c.Kind == minting.KindDPoP && as == asBearer {
		as = asDPoP // RFC 9449 section 7.1: a bound token is no bearer token
	}
	switch as {
	case asBearer:
		setHeader(r.Header, "Authorization", "Bearer "+value)
	case asHeader:
		setHeader(r.Header, in.name, in.prefix+value)
	case asBasic:
		enc := base64.StdEncoding.EncodeToString([]byte(in.username + ":" + value))
		setHeader(r.Header, "Authorization", "Basic "+enc)
	case asQuery:
		r.URL.RawQuery = setParam(r.URL.RawQuery, in.name, value)
	case asDPoP:
		if err := in.dpop(r, c, value); err != nil {
			return err
		}
	}
	for name, fixed := range in.fixed {
		if list := mergeable(r.Header, name, fixed); list != "" {
			fixed = list
		}
		setHeader(r.Header, name, fixed)
	}
	return nil
}

func (in *Injector) dpop(r *http.Request, c minting.Credential, token string) error {
	if c.Key == nil || in.prover == nil {
		return fmt.Errorf("%w: it has no proof key; set oauth2.dpop on provider %s", ErrUnusable, in.provider)
	}
	proof, err := in.prover.Prove(c, r.Method, htu(r))
	if err != nil {
		return fmt.Errorf("make DPoP proof: %w", err)
	}
	setHeader(r.Header, "Authorization", "DPoP "+token)
	setHeader(r.Header, "Dpop", proof)
	return nil
}

// htu is the request's URL as RFC 9449 section 4.2 wants it: without query and
// fragment, normalised as in RFC 3986 section 6.2.3.
func htu(r *http.Request) string {
	host := r.URL.Host
	if host == "" {
		host = r.Host
	}
	if h, port, err := net.SplitHostPort(host); err == nil &&
		(port == "443" && r.URL.Scheme == "https" || port == "80" && r.URL.Scheme == "http") {
		host = h
		if strings.Contains(h, ":") {
			host = "[" + h + "]"
		}
	}
	path := r.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	return r.URL.Scheme + "://" + strings.ToLower(host) + path
}

// Secrets is what the echo guard must look for once c was applied.
func (in *Injector) Secrets(c minting.Credential) []secret.Value {
	switch in.as {
	case asBasic:
		return []secret.Value{c.Secret, guard.Basic(in.username, c.Secret)}
	case asSigV4: // the access key id is none: AWS repeats it, and records show it
		return []secret.Value{c.Secret, c.SessionToken}
	}
	return []secret.Value{c.Secret}
}

// Places names the headers or query parameters that the injector writes, so
// that [Strip] takes the agent's own from there as well.
func (in *Injector) Places() (headers, params []string) {
	switch in.as {
	case asHeader:
		return []string{in.name}, nil
	case asQuery:
		return nil, []string{in.name}
	case asSigV4:
		return []string{"Authorization", "X-Amz-Security-Token", "X-Amz-S3session-Token"},
			[]string{"X-Amz-Credential", "X-Amz-Signature", "X-Amz-Security-Token", "X-Amz-S3session-Token"}
	}
	return []string{"Authorization"}, nil
}

// setHeader replaces every spelling of a header that an origin might read as
// the same one.
func setHeader(h http.Header, name, value string) {
	fold := names.Fold(name)
	for k := range h {
		if names.Fold(k) == fold {
			delete(h, k)
		}
	}
	h[textproto.CanonicalMIMEHeaderKey(name)] = []string{value}
}

// mergeable returns the list that a fixed header makes together with the
// agent's value where the header is a list of features: the agent's SDK needs
// its own entries too.
func mergeable(h http.Header, name, fixed string) string {
	switch name {
	case "Anthropic-Beta", "Openai-Beta":
	default:
		return ""
	}
	var list []string
	for _, v := range append(slices.Clone(h.Values(name)), fixed) {
		for item := range strings.SplitSeq(v, ",") {
			if item = strings.TrimSpace(item); item != "" && !slices.Contains(list, item) {
				list = append(list, item)
			}
		}
	}
	return strings.Join(list, ",")
}

// setParam replaces a parameter and keeps every byte of the others: some
// origins sign or route by the raw query.
func setParam(query, name, value string) string {
	if query != "" {
		query = wire.Params(query, func(n, raw string) (string, bool) { return raw, n != name })
	}
	pair := url.QueryEscape(name) + "=" + url.QueryEscape(value)
	if query == "" {
		return pair
	}
	return query + "&" + pair
}
