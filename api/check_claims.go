package api

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// claim is an audience for which a provider has JWT-SVIDs signed, and where it
// sends them. Whoever gets such a token can present it as the workload.
type claim struct {
	audience string // or a pattern of hosts, see AllowsAudience
	field    string
	hosts    []string // patterns
	reach    string   // how they are found and verified; empty: by DNS and public roots
}

// awsHosts stands for STS where the provider names no endpoint.
const awsHosts = "**.amazonaws.com"

// claims are those of a provider but for the audiences of rules.
func claims(s *v1alpha1.CredentialProviderSpec) []claim {
	switch {
	case NeedsBroker(s):
		return nil
	case s.OAuth2 != nil:
		o := s.OAuth2
		return []claim{{providerAudiences(s)[0], "spec.oauth2", hostsOfURLs(o.TokenEndpoint, o.Issuer), reach(o.Addresses, o.CABundle)}}
	case s.APIKey != nil && s.APIKey.Vault != nil:
		v := s.APIKey.Vault
		return []claim{{providerAudiences(s)[0], "spec.apiKey.vault", hostsOfURLs(v.Address), reach(v.Addresses)}}
	case s.AWS != nil:
		var list []claim
		for _, audience := range providerAudiences(s) {
			c := claim{audience, "spec.aws", hostsOfURLs(s.AWS.Endpoint), reach(s.AWS.Addresses, s.AWS.CABundle)}
			if s.AWS.Endpoint == "" {
				c.hosts = []string{awsHosts}
			}
			list = append(list, c)
		}
		return list
	case s.JWT != nil:
		return jwtClaims(s, s.JWT.Audience, "spec.jwt.audience")
	}
	return nil
}

// jwtClaims are those of tokens that are themselves the credential.
func jwtClaims(s *v1alpha1.CredentialProviderSpec, audience, field string) []claim {
	var list []claim
	for i, d := range s.Destinations {
		c := claim{audience, field, []string{d.Host}, reach(d.Addresses, d.CABundle, d.ServerName)}
		if d.Scheme == SchemeHTTP {
			c.reach += SchemeHTTP
		}
		if audience == "" {
			c.audience, c.field = "https://"+d.Host, fmt.Sprintf("spec.destinations[%d]", i)
		}
		list = append(list, c)
	}
	return list
}

// reach is empty where nothing is said.
func reach(addresses []string, more ...string) string {
	return strings.Join(append(slices.Clone(addresses), more...), "")
}

func hostsOfURLs(urls ...string) []string {
	var hosts []string
	for _, raw := range urls {
		if u, err := url.Parse(raw); err == nil && u.Hostname() != "" {
			hosts = append(hosts, u.Hostname())
		}
	}
	return hosts
}

// reservation is an audience that a ClusterCredentialProvider claims.
type reservation struct {
	claim
	owner Ref
}

// stolen reports who claims the audience of c, if c sends its tokens elsewhere
// than the one who claims it.
func stolen(c claim, reserved []reservation) *reservation {
	for i, r := range reserved {
		if c.audience != r.audience && !AllowsAudience([]string{r.audience}, c.audience) && !wider(c.audience, r.audience) {
			continue
		}
		for _, host := range c.hosts {
			if c.reach != "" && c.reach != r.reach || !slices.ContainsFunc(r.hosts, func(p string) bool { return covers(p, host) }) {
				return &reserved[i]
			}
		}
	}
	return nil
}

// wider reports whether a pattern of audiences has some that another has too.
func wider(a, b string) bool {
	a, okA := strings.CutPrefix(a, "https://")
	b, okB := strings.CutPrefix(b, "https://")
	return okA && okB && (covers(a, b) || covers(b, a))
}

// reserved checks that a provider of a namespace sends no tokens elsewhere for
// which a provider of the cluster is there: who may write providers in a
// namespace must not gain what the cluster's bound.
func (c *checker) reserved(s *v1alpha1.CredentialProviderSpec) {
	if !c.foreign() {
		return
	}
	for _, cl := range claims(s) {
		if r := stolen(cl, c.reservations); r != nil {
			c.conflict(cl.field, "sends tokens for %s to %s; that audience is %s's, which sends them to %s only", quote(cl.audience), strings.Join(cl.hosts, ", "), r.owner, strings.Join(r.hosts, ", "))
			return
		}
	}
}

// within checks that a rule asks a provider of the cluster for no more than
// that gives by itself, and one of a namespace for no tokens of the cluster's.
func (c *checker) within(at string, ref *v1alpha1.CredentialRef, d document) {
	p := &d.provider.Spec
	if c.ref.Kind == v1alpha1.KindClusterAccessPolicy {
		return
	}
	if d.ref.Kind != v1alpha1.KindClusterCredentialProvider {
		if p.JWT != nil && ref.Audience != "" && c.foreign() {
			for _, cl := range jwtClaims(p, ref.Audience, at+".audience") {
				if r := stolen(cl, c.reservations); r != nil {
					c.conflict(at+".audience", "is %s, the audience of %s, whose tokens go to %s only", quote(ref.Audience), r.owner, strings.Join(r.hosts, ", "))
				}
			}
		}
		return
	}
	name := quote(d.ref.Name)
	more := func(field string, asked, given []string) {
		for _, v := range asked {
			if len(given) > 0 && !slices.Contains(given, v) {
				c.dangling(ReasonScopeNotAllowed, at+"."+field, "has %s, but ClusterCredentialProvider %s gives %s only; a policy of a namespace narrows that", quote(v), name, strings.Join(given, ", "))
			}
		}
	}
	given := ""
	switch {
	case p.OAuth2 != nil:
		more("scope", ref.Scope, p.OAuth2.Scopes)
		more("resources", ref.Resources, p.OAuth2.Resources)
		given = p.OAuth2.Audience
	case p.JWT != nil:
		if given = p.JWT.Audience; given == "" && ref.Audience != "" {
			c.dangling(ReasonScopeNotAllowed, at+".audience", "is %s, but tokens of ClusterCredentialProvider %s are for the host that they go to; remove it", quote(ref.Audience), name)
		}
	case p.AWS != nil:
		if ref.Role != "" {
			c.dangling(ReasonScopeNotAllowed, at+".role", "replaces the role of ClusterCredentialProvider %s, which a policy of a namespace cannot; remove it", name)
		}
		if ref.AWS != nil && len(ref.AWS.Policy) > 0 && len(p.AWS.Policy) > 0 {
			c.dangling(ReasonScopeNotAllowed, at+".aws.policy", "stands in place of the policy of ClusterCredentialProvider %s, which a policy of a namespace cannot replace; remove it", name)
		}
	}
	if given != "" && ref.Audience != "" && ref.Audience != given {
		more("audience", []string{ref.Audience}, []string{given})
	}
	if ref.TTL > p.TTL {
		c.dangling(ReasonScopeNotAllowed, at+".ttl", "is %s, but ClusterCredentialProvider %s gives %s at most", ref.TTL.D(), name, p.TTL.D())
	}
}
