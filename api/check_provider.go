package api

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/attache-dev/attache/api/v1alpha1"
)

const maxTTL = v1alpha1.Duration(24 * time.Hour)

// provider expands the preset, checks the result and fills in defaults. Which
// of oauth2, apiKey, jwt and aws the user wrote is asked before defaults hide it.
func (c *checker) provider(s *v1alpha1.CredentialProviderSpec) {
	c.preset(s)
	expandPreset(s)
	c.kind(s)
	as := s.Inject.As
	defaultProvider(s)
	c.destinations(s.Destinations)
	for i, d := range s.Destinations {
		field := fmt.Sprintf("spec.destinations[%d]", i)
		// Below AWS's own domains package policy tells endpoints from strangers' names.
		if tooWide(d.Host) && !(s.AWS != nil && ofAWS(d.Host)) && c.sound(field+".host") {
			c.bad(field+".host", "is %s; anyone can register a name below it and would receive the credential, name the hosts", quote(d.Host))
		}
		if d.Scheme == SchemeHTTP && !s.UnsafeCleartext {
			c.bad(field+".scheme", "is http, which would send the credential in clear text; use https, or set spec.unsafeCleartext: true")
		} else if d.Scheme == SchemeHTTP && c.place == PlacePod && len(d.CIDRs) == 0 {
			c.bad(field+".scheme", "is http without cidrs; in a cluster a credential goes in clear text to named networks only")
		}
	}
	if s.UnsafeCleartext && c.foreign() {
		c.bad("spec.unsafeCleartext", "is for a ClusterCredentialProvider; use https, or ask the cluster's operator for one")
	}
	if s.OAuth2 != nil {
		c.oauth2(s.OAuth2, s)
	}
	if s.APIKey != nil {
		c.apiKey(s.APIKey, &s.UnsafeCleartext)
	}
	if s.AWS != nil {
		c.aws(s.AWS, s)
	}
	c.reserved(s)
	c.injection(&s.Inject, as, s)
	c.placeholders(s)
	c.baseURLs(s)
	if s.TTL > maxTTL {
		c.bad("spec.ttl", "is %s; must be at most 24h", s.TTL.D())
	}
	for i, status := range s.RetryStatus {
		if at := fmt.Sprintf("spec.retryStatus[%d]", i); c.sound(at) && (status < 400 || status > 599) {
			c.bad(at, "is %d; must be an error status between 400 and 599", status)
		}
	}
}

func (c *checker) preset(s *v1alpha1.CredentialProviderSpec) {
	oneOf(c, "spec.preset", s.Preset, "anthropic", "openai")
	_, extra := preset(s.Preset)
	for _, name := range extra {
		if s.OAuth2 == nil || s.OAuth2.Extra[name] == "" {
			c.bad("spec.oauth2.extra["+name+"]", "is missing; the preset %s requires it", s.Preset)
		}
	}
}

// kind wants exactly one of the four kinds of credential.
func (c *checker) kind(s *v1alpha1.CredentialProviderSpec) {
	var given []string
	for _, k := range []struct {
		name string
		set  bool
	}{{"oauth2", s.OAuth2 != nil}, {"apiKey", s.APIKey != nil}, {"jwt", s.JWT != nil}, {"aws", s.AWS != nil}} {
		if k.set || c.has("spec."+k.name) {
			given = append(given, k.name)
		}
	}
	switch {
	case len(given) == 1 || !c.has("spec") || !c.sound("spec.preset"):
	case len(given) == 0:
		c.bad("spec", "says not which credential to mint; give exactly one of oauth2, apiKey, jwt, aws, or a preset")
	case s.Preset != "":
		c.bad("spec."+given[1], "stands beside preset %s, which is oauth2; remove one of them", s.Preset)
	default:
		c.bad("spec."+given[1], "stands beside %s; give exactly one of oauth2, apiKey, jwt, aws", given[0])
	}
}

func (c *checker) oauth2(o *v1alpha1.OAuth2, s *v1alpha1.CredentialProviderSpec) {
	const f = "spec.oauth2"
	if o.Issuer == "" && o.TokenEndpoint == "" && !c.has(f+".issuer") && !c.has(f+".tokenEndpoint") {
		c.bad(f, "names no server; give issuer (for discovery) or tokenEndpoint")
	}
	c.httpsURL(f+".issuer", o.Issuer, &s.UnsafeCleartext, o.Addresses)
	if u, err := url.Parse(o.Issuer); err == nil && (u.RawQuery != "" || u.ForceQuery) {
		c.bad(f+".issuer", "is %s; an issuer has no ?query", quote(o.Issuer)) // RFC 8414 section 2
	}
	c.httpsURL(f+".tokenEndpoint", o.TokenEndpoint, &s.UnsafeCleartext, o.Addresses)
	c.httpsURL(f+".revocationEndpoint", o.RevocationEndpoint, &s.UnsafeCleartext, o.Addresses)
	c.ca(f, &o.CAFile, o.CABundle)
	c.addresses(f+".addresses", o.Addresses)
	oneOf(c, f+".grant", o.Grant, GrantClientCredentials, GrantTokenExchange, GrantJWTBearer)
	auth := []string{ClientAuthPrivateKeyJWT, ClientAuthJWTSVID, ClientAuthJWTSPIFFE, ClientAuthNone}
	if c.place != PlaceRun {
		auth = append(auth, ClientAuthSecretBasic, ClientAuthSecretPost, ClientAuthTLS)
	}
	oneOf(c, f+".clientAuth", o.ClientAuth, auth...)
	c.clientSecret(o)
	oneOf(c, f+".body", o.Body, BodyForm, BodyJSON)
	if o.Grant == GrantClientCredentials && o.ClientAuth == ClientAuthNone {
		c.bad(f+".clientAuth", "is none, so grant clientCredentials would prove nothing; must be one of privateKeyJWT, jwtSVID, jwtSPIFFE")
	}
	if o.ClientID != "" && o.ClientAuth == ClientAuthPrivateKeyJWT && c.foreign() {
		// One issuer signs for all namespaces: nobody could tell whose assertion it is.
		c.bad(f+".clientID", "is a name of your choice, and an assertion would prove it; leave it out for the workload's SPIFFE ID, set clientAuth: jwtSVID, or ask the cluster's operator for a ClusterCredentialProvider")
	}
	c.exchange(o)
	c.scopes(f+".scopes", o.Scopes)
	c.resources(f+".resources", o.Resources)
	c.extra(f+".extra", o.Extra)
	c.headers(f+".headers", o.Headers)
	if o.Timeout > v1alpha1.Duration(time.Minute) {
		c.bad(f+".timeout", "is %s; must be at most 1m", o.Timeout.D())
	}
}

// exchange checks the fields of RFC 8693.
func (c *checker) exchange(o *v1alpha1.OAuth2) {
	const f = "spec.oauth2."
	oneOf(c, f+"subject", o.Subject, PartyHuman, PartyWorkload)
	oneOf(c, f+"actor", o.Actor, PartyWorkload, PartyNone)
	if o.Grant != GrantTokenExchange {
		for _, name := range []string{"subject", "subjectTokenType", "actor", "actorTokenType", "requireAct", "requestedTokenType"} {
			if c.has(f + name) {
				c.bad(f+name, "is for grant tokenExchange; remove it or change the grant")
			}
		}
		return
	}
	if o.RequireAct && o.Actor == PartyNone {
		c.bad(f+"requireAct", "is true without an actor; set actor: workload")
	}
	if o.ActorTokenType != "" && o.Actor == PartyNone {
		c.bad(f+"actorTokenType", "is given without an actor; set actor: workload or remove it")
	}
	for _, t := range []struct{ name, value string }{
		{"subjectTokenType", o.SubjectTokenType}, {"actorTokenType", o.ActorTokenType}, {"requestedTokenType", o.RequestedTokenType},
	} {
		if u, err := url.Parse(t.value); t.value != "" && (err != nil || !u.IsAbs()) {
			c.bad(f+t.name, "is %s; must be a token type URI such as urn:ietf:params:oauth:token-type:jwt", quote(t.value))
		}
	}
}

// reservedParams are set by Attaché or would be a secret in a document.
var reservedParams = []string{
	"grant_type", "client_assertion", "client_assertion_type", "client_id", "assertion", "scope", "audience", "resource",
	"subject_token", "subject_token_type", "actor_token", "actor_token_type", "requested_token_type", "authorization_details",
}

func (c *checker) extra(field string, extra map[string]string) {
	for name := range extra {
		at := field + "[" + name + "]"
		switch {
		case slices.Contains(reservedParams, name):
			c.bad(at, "is set by Attaché; remove it and use the field of oauth2 for it")
		case name == "client_secret" || strings.Contains(name, "password"):
			c.bad(at, "is a secret, which no document may hold; use clientAuth: privateKeyJWT or jwtSVID")
		}
	}
}

func (c *checker) apiKey(k *v1alpha1.APIKey, cleartext *bool) {
	const f = "spec.apiKey"
	var given []string
	for _, name := range []string{"file", "env", "vault", "secretRef"} {
		if c.has(f + "." + name) {
			given = append(given, name)
		}
	}
	switch {
	case len(given) == 0 && c.sound(f):
		c.bad(f, "names no source; give exactly one of file, env, vault")
	case len(given) > 1:
		c.bad(f+"."+given[1], "stands beside %s; give exactly one of file, env, vault, secretRef", given[0])
	}
	for _, name := range []string{"file", "env"} {
		if c.place == PlacePod && c.has(f+"."+name) {
			c.bad(f+"."+name, "would be read by the sidecar, which no object in a cluster can ask for; give secretRef or vault")
		}
	}
	if k.SecretRef != nil {
		c.secretRef(f+".secretRef", k.SecretRef.Name, k.SecretRef.Key)
	}
	if k.File != "" {
		k.File = c.resolve(k.File)
	}
	if k.Env != "" && !envRule.MatchString(k.Env) {
		// The value itself may be the key: it is not shown.
		c.bad(f+".env", "is no variable name; give the name of the variable that holds the key")
	}
	v := k.Vault
	if v == nil {
		return
	}
	c.httpsURL(f+".vault.address", v.Address, cleartext, v.Addresses)
	c.ca(f+".vault", &v.CAFile, "")
	c.addresses(f+".vault.addresses", v.Addresses)
	for _, p := range []struct{ name, value string }{{"path", v.Path}, {"authMount", v.AuthMount}} {
		if p.value != "" && (strings.HasPrefix(p.value, "/") || strings.HasSuffix(p.value, "/") || badPath("/"+p.value) != "") {
			c.bad(f+".vault."+p.name, "is %s; must be a path as in the API, such as secret/data/openai, without / at either end", quote(p.value))
		}
	}
}

func (c *checker) injection(in *v1alpha1.Injection, as string, s *v1alpha1.CredentialProviderSpec) {
	const f = "spec.inject"
	oneOf(c, f+".as", in.As, InjectBearer, InjectHeader, InjectBasic, InjectQuery, InjectDPoP, InjectSigV4)
	c.injectName(in)
	c.injectBy(s)
	if in.Prefix != "" && in.As != InjectHeader {
		c.bad(f+".prefix", "is for as: header; remove it")
	}
	if !httpguts.ValidHeaderFieldValue(in.Prefix) {
		c.bad(f+".prefix", "has control characters")
	}
	switch {
	case in.As == InjectBasic && in.Username == "" && !c.has(f+".username"):
		c.bad(f+".username", "is missing; as: basic requires it (x-access-token for GitHub)")
	case in.As != InjectBasic && in.Username != "":
		c.bad(f+".username", "is for as: basic; remove it")
	case strings.ContainsFunc(in.Username, func(r rune) bool { return r < ' ' || r == ':' || r == 0x7f }):
		c.bad(f+".username", "is %s; must hold no colon or control character", quote(in.Username)) // RFC 7617 section 2
	}
	c.headers(f+".headers", in.Headers)
	dpop := s.OAuth2 != nil && s.OAuth2.DPoP
	if dpop && as != "" && as != InjectDPoP {
		c.bad(f+".as", "is %s, but oauth2.dpop binds the token to a proof; must be dpop", quote(as)) // RFC 9449 section 7.1
	}
	if as == InjectDPoP && !dpop {
		c.bad(f+".as", "is dpop, but the provider mints no DPoP token; set oauth2.dpop: true")
	}
	if as == InjectSigV4 && s.AWS == nil {
		c.bad(f+".as", "is sigv4, which signs with sessions of spec.aws; choose another")
	}
	if in.RequirePlaceholder != nil && *in.RequirePlaceholder && len(s.Placeholders) == 0 && c.sound("spec.placeholders") {
		c.bad(f+".requirePlaceholder", "is true, but the provider declares no placeholders; add spec.placeholders")
	}
}

// injectBy checks that the relay can do what is asked of it: it reads Secrets,
// has no identity of the pod's, and stands where tenants do not.
func (c *checker) injectBy(s *v1alpha1.CredentialProviderSpec) {
	const f = "spec.inject.by"
	oneOf(c, f, s.Inject.By, InjectBySidecar, InjectByRelay)
	if s.Inject.By != InjectByRelay {
		return
	}
	if !NeedsBroker(s) {
		c.bad(f, "is relay, which is for roots that are Secrets: apiKey.secretRef, oauth2.clientSecretRef or oauth2.clientCertificateRef; remove it")
	}
	for i, d := range s.Destinations {
		at := fmt.Sprintf("spec.destinations[%d]", i)
		if d.ClientSVID {
			c.bad(at+".clientSVID", "is true, but a relay has no identity of the pod's to show; remove it, or inject by the sidecar")
		}
		if c.foreign() && len(d.Addresses)+len(d.CIDRs) > 0 {
			c.bad(at, "says where the host's addresses are; a relay goes there for a ClusterCredentialProvider only, and to public addresses for others")
		}
	}
}

// ByRelay reports whether the provider's credentials are put on by a relay, and
// never leave the control plane.
func ByRelay(s *v1alpha1.CredentialProviderSpec) bool { return s.Inject.By == InjectByRelay }

func (c *checker) injectName(in *v1alpha1.Injection) {
	const f = "spec.inject.name"
	switch in.As {
	case InjectHeader, InjectQuery:
		if in.Name == "" {
			if !c.has(f) {
				c.bad(f, "is missing; as: %s requires it", in.As)
			}
			return
		}
	default:
		if in.Name != "" && c.sound("spec.inject.as") {
			c.bad(f, "is for as: header and as: query; remove it")
		}
		return
	}
	if in.As == InjectHeader {
		switch {
		case !httpguts.ValidHeaderFieldName(in.Name):
			c.bad(f, "is %s; must be a header name", quote(in.Name))
		case connectionHeaders[strings.ToLower(in.Name)]:
			c.bad(f, "is %s, which belongs to the connection; choose the header that the vendor documents", quote(in.Name))
		}
	}
}

const maxPrefix = 32

func (c *checker) placeholders(s *v1alpha1.CredentialProviderSpec) {
	for i, p := range s.Placeholders {
		field := fmt.Sprintf("spec.placeholders[%d]", i)
		c.env(field+".env", p.Env)
		bad := strings.ContainsFunc(p.Prefix, func(r rune) bool { return r <= ' ' || r > '~' })
		if bad || len(p.Prefix) > maxPrefix {
			c.bad(field+".prefix", "must be at most %d characters of visible ASCII", maxPrefix)
		}
	}
}

func (c *checker) baseURLs(s *v1alpha1.CredentialProviderSpec) {
	for i, b := range s.BaseURLs {
		field := fmt.Sprintf("spec.baseURLs[%d]", i)
		c.env(field+".env", b.Env)
		c.port(field+".port", b.Port)
		oneOf(c, field+".scheme", b.Scheme, SchemeHTTP, SchemeHTTPS)
		c.listen(field+".listen", b.Listen, true)
		c.ownPorts(field+".listen", b.Listen)
		if why := badPath(b.Path); b.Path != "" && why != "" {
			c.bad(field+".path", "is %s; %s", quote(b.Path), why)
		}
		if b.Host == "" {
			continue
		}
		if why := checkHost(b.Host); why != "" {
			c.bad(field+".host", "is %s; %s", quote(b.Host), why)
		} else if c.sound("spec.destinations") && c.sound(field) && !covered(s.Destinations, b.Host, b.Port) {
			c.bad(field+".host", "is %s:%d, which is none of the provider's destinations (%s); add it there", quote(b.Host), b.Port, hostsOf(s.Destinations))
		}
	}
}

// hostsOf lists destinations for a message.
func hostsOf(ds []v1alpha1.Destination) string {
	const most = 6
	var out []string
	for i, d := range ds {
		if i == most {
			out = append(out, "…")
			break
		}
		out = append(out, fmt.Sprintf("%s:%d", quoteBare(d.Host), d.Port))
	}
	return strings.Join(out, ", ")
}

// badPath says what is wrong with a literal path.
func badPath(p string) string {
	if !strings.HasPrefix(p, "/") {
		return "must begin with /"
	}
	if strings.ContainsFunc(p, func(r rune) bool { return r <= ' ' || r > '~' }) || strings.ContainsAny(p, `?#\`) {
		return "must be a path alone, other characters percent-encoded"
	}
	for _, seg := range strings.Split(p[1:], "/") {
		if seg == "." || seg == ".." {
			return "must hold no . or .. segment, which servers read differently"
		}
	}
	if strings.Contains(p, "//") {
		return "must hold no empty segment, which servers read differently"
	}
	return ""
}
