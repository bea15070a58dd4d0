package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/http/httpguts"

	"github.com/attache-dev/attache/api/v1alpha1"
)

var ruleName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]{0,126}[A-Za-z0-9])?$`)

func (c *checker) policy(s *v1alpha1.AccessPolicySpec, providers map[string]document) {
	oneOf(c, "spec.mode", s.Mode, ModeEnforce, ModeAudit)
	c.targetRefs(s.TargetRefs)
	c.destinations(s.Destinations)
	for i, w := range s.Workloads {
		c.selector(fmt.Sprintf("spec.workloads[%d]", i), w)
	}
	seen := map[string]string{}
	for i := range s.Rules {
		r := &s.Rules[i]
		field := fmt.Sprintf("spec.rules[%d]", i)
		if r.Name != "" {
			if !ruleName.MatchString(r.Name) {
				c.bad(field+".name", "is %s; must be letters, digits and . _ / - inside, at most 128 of them", quote(r.Name))
			} else if first := seen[r.Name]; first != "" {
				c.bad(field+".name", "is %s, the name of the rule at %s already; rename one of them", quote(r.Name), first)
			} else {
				seen[r.Name] = c.where(field + ".name")
			}
		}
		c.ruleMatch(field, r)
		c.ruleAction(field, r)
		if r.Credential != nil {
			c.credential(field, r, providers)
		}
	}
}

func (c *checker) selector(field string, w v1alpha1.WorkloadSelector) {
	if w.SPIFFEID == "" && w.Namespaces == nil && w.ServiceAccounts == nil && len(w.MatchLabels) == 0 && c.sound(field) {
		// It would match every workload, which nobody writes on purpose.
		c.bad(field, "selects nothing in particular; give a field, or leave spec.workloads out to speak of all")
	}
	if w.SPIFFEID == "" {
		return
	}
	id, prefix := strings.CutSuffix(w.SPIFFEID, "/*")
	if strings.Contains(id, "*") {
		c.bad(field+".spiffeID", `is %s; * stands only at the end, as in "spiffe://example.org/agent/*"`, quote(w.SPIFFEID))
		return
	}
	if _, err := spiffeid.FromString(id); err != nil {
		what := "a SPIFFE ID such as spiffe://attache.local/agent/demo"
		if prefix {
			what = "a SPIFFE ID before /*"
		}
		c.bad(field+".spiffeID", "is %s; must be %s", quote(w.SPIFFEID), what)
	}
}

func (c *checker) ruleMatch(field string, r *v1alpha1.Rule) {
	for i, h := range r.Hosts {
		c.hostPattern(fmt.Sprintf("%s.hosts[%d]", field, i), h)
	}
	for i, p := range r.Ports {
		c.port(fmt.Sprintf("%s.ports[%d]", field, i), p)
	}
	for i, m := range r.Methods {
		at := fmt.Sprintf("%s.methods[%d]", field, i)
		switch {
		case m == "" || !c.sound(at):
		case !httpguts.ValidHeaderFieldName(m):
			c.bad(at, "is %s; must be an HTTP method such as GET", quote(m))
		case m != strings.ToUpper(m):
			c.bad(at, "is %s; methods are case-sensitive, write %s", quote(m), strings.ToUpper(m))
		case m == "TRACE" || m == "TRACK" || m == "CONNECT":
			c.bad(at, "is %s, which is never forwarded; remove it", quote(m))
		}
	}
	for i, p := range r.Paths {
		if at := fmt.Sprintf("%s.paths[%d]", field, i); p != "" && c.sound(at) {
			if why := badTemplate(p, r.RawPaths); why != "" {
				c.bad(at, "is %s; %s", quote(p), why)
			}
		}
	}
	c.values(field+".headers", r.Headers, true)
	c.values(field+".query", r.Query, false)
	for i, p := range r.Protocols {
		oneOf(c, fmt.Sprintf("%s.protocols[%d]", field, i), p, "http", "grpc", "websocket")
	}
}

// badTemplate checks what every path template has in common; package policy
// compiles it.
func badTemplate(p string, raw bool) string {
	depth := 0
	for _, r := range p {
		switch {
		case r == '{':
			depth++
		case r == '}':
			depth--
		}
		if depth < 0 || depth > 1 {
			return "must have balanced { and }"
		}
	}
	if depth != 0 {
		return "must have balanced { and }"
	}
	if raw && strings.HasPrefix(p, "/") {
		return "" // the protocol owns dot and empty segments
	}
	return badPath(p)
}

func (c *checker) values(field string, vs []v1alpha1.ValueMatch, header bool) {
	for i, v := range vs {
		at := fmt.Sprintf("%s[%d]", field, i)
		if header && v.Name != "" && !httpguts.ValidHeaderFieldName(v.Name) {
			c.bad(at+".name", "is %s; must be a header name", quote(v.Name))
		}
		if v.Exact != "" && v.Prefix != "" {
			c.bad(at+".prefix", "stands beside exact; give one of them")
		}
		if v.Absent && (v.Exact != "" || v.Prefix != "") {
			c.bad(at+".absent", "stands beside a value; an absent one has none, remove one of them")
		}
	}
}

func (c *checker) ruleAction(field string, r *v1alpha1.Rule) {
	oneOf(c, field+".action", r.Action, v1alpha1.ActionAllow, v1alpha1.ActionDeny, v1alpha1.ActionPassthrough)
	oneOf(c, field+".agentCredential", r.AgentCredential, v1alpha1.AgentCredentialsStrip, v1alpha1.AgentCredentialsPass)
	oneOf(c, field+".answerCredentials", r.AnswerCredentials, v1alpha1.AnswersSeal, v1alpha1.AnswersPass)
	oneOf(c, field+".durability", r.Durability, v1alpha1.DurabilityProcess, v1alpha1.DurabilityPower, v1alpha1.DurabilityCollector)
	if r.Credential != nil && (r.Action == v1alpha1.ActionDeny || r.Action == v1alpha1.ActionPassthrough) {
		c.bad(field+".credential", "has no place in a rule with action %s; use action allow or remove it", r.Action)
	}
	if r.Credential != nil && r.AgentCredential == v1alpha1.AgentCredentialsPass {
		c.bad(field+".agentCredential", "is pass beside a credential of ours, which takes its place; remove one of them")
	}
	if r.Action != v1alpha1.ActionPassthrough {
		return
	}
	for _, name := range []string{
		"methods", "paths", "headers", "query", "protocols", "agentCredential", "answerCredentials",
		"allowCrossSite", "echoRisk", "rawPaths", "credentialCall", "openTask",
	} {
		if c.has(field + "." + name) {
			c.bad(field+"."+name, "looks into requests, which action passthrough does not see; remove it or use action allow")
		}
	}
}

// credential checks what a rule asks of a provider, above all that the rule
// sends it nowhere that the provider does not list: otherwise whoever may
// write a policy could send any provider's credential to a host of their own.
func (c *checker) credential(field string, r *v1alpha1.Rule, providers map[string]document) {
	ref, at := r.Credential, field+".credential"
	c.scopes(at+".scope", ref.Scope)
	c.resources(at+".resources", ref.Resources)
	if ref.TTL > maxTTL {
		c.bad(at+".ttl", "is %s; must be at most 24h", ref.TTL.D())
	}
	c.details(at+".authorizationDetails", ref.AuthorizationDetails)
	if ref.Provider == "" {
		return
	}
	d, found := providers[ref.Provider]
	if !found {
		if why, ok := c.withheld[ref.Provider]; ok {
			c.dangling(why.Reason, at+".provider", "%s", why.Text)
			return
		}
		hint := "no document defines a CredentialProvider"
		if len(providers) > 0 {
			hint = suggest(ref.Provider, slices.Collect(maps.Keys(providers)))
		}
		c.dangling(ReasonProviderNotFound, at+".provider", "no CredentialProvider is named %s; %s", quote(ref.Provider), hint)
		return
	}
	p := d.provider
	if !c.mayUse(at+".provider", d) {
		return
	}
	c.within(at, ref, d)
	if p.Spec.AWS != nil {
		c.awsCredential(at, ref, p.Spec.AWS)
	} else if c.has(at + ".aws") {
		c.bad(at+".aws", "is for aws providers, which %s is not; remove it", quote(ref.Provider))
	}
	pc := &checker{loader: c.loader, ref: Ref{Kind: p.Kind, Namespace: p.Metadata.Namespace, Name: p.Metadata.Name}}
	if len(p.Spec.Destinations) == 0 || !pc.sound("spec.destinations") || !c.sound(field+".hosts") || !c.sound(field+".ports") {
		return
	}
	for i, h := range r.Hosts {
		c.destinationFor(fmt.Sprintf("%s.hosts[%d]", field, i), field, h, r.Ports, p)
	}
}

func (c *checker) destinationFor(at, field, host string, ports []int, p *v1alpha1.CredentialProvider) {
	ds := p.Spec.Destinations
	switch {
	case host == "*":
		c.dangling(ReasonDestinationNotAllowed, at, `is "*", but provider %s gives its credential only to %s; name those hosts`, quote(p.Metadata.Name), hostsOf(ds))
		return
	case !covered(ds, host, 0):
		c.dangling(ReasonDestinationNotAllowed, at, "is %s, but provider %s gives its credential only to %s; change one of them", quote(host), quote(p.Metadata.Name), hostsOf(ds))
		return
	case len(ports) == 0 && !covered(ds, host, 443) && !covered(ds, host, 80):
		c.dangling(ReasonDestinationNotAllowed, at, "is %s on ports 443 and 80, but provider %s gives its credential only to %s; add ports to the rule", quote(host), quote(p.Metadata.Name), hostsOf(ds))
	}
	for i, port := range ports {
		if !covered(ds, host, port) {
			c.dangling(ReasonDestinationNotAllowed, fmt.Sprintf("%s.ports[%d]", field, i), "is %d with host %s, but provider %s gives its credential only to %s; change one of them", port, quote(host), quote(p.Metadata.Name), hostsOf(ds))
		}
	}
}

// details checks RFC 9396 section 2: an array of objects, each with a type.
func (c *checker) details(field string, raw json.RawMessage) {
	if raw == nil {
		return
	}
	var list []struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(raw, &list); err != nil || len(list) == 0 {
		c.bad(field, "must be a list of mappings, each with a type")
		return
	}
	for i, d := range list {
		if d.Type == "" {
			c.bad(field, "has no type in item %d; each needs one", i)
		}
	}
}
