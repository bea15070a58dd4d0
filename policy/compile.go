package policy

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/policy/awsscope"
)

// defaultTTL of credentials whose rule and provider say nothing.
const defaultTTL = 5 * time.Minute

// Set is a compiled set of policies. It never changes and is safe for
// concurrent use. The nil Set denies everything.
type Set struct {
	version    string
	durability v1alpha1.Durability
	hosts      index
	rehearses  bool // some guard rails are in audit mode
	calls      credentialCallIndex
	pool       activations
}

// policy is a compiled AccessPolicy.
type policy struct {
	ref       api.Ref
	name      string // namespace/name
	cluster   bool   // a ClusterAccessPolicy
	audit     bool
	selectors []selector
	selection selectionRank
}

// rule is a compiled rule. Its decision lacks only what differs from request
// to request.
type rule struct {
	policy    *policy
	field     string // spec.rules[i]
	position  api.Position
	order     int // in the bundle
	name      string
	action    string
	reason    string
	ports     []int
	methods   []string
	protocols []string
	headers   []valueMatch
	query     []valueMatch
	when      *condition
	provider  *issuer // of the credential, nil without
	decision  Decision
	outcome   int  // equal for rules that decide alike
	flagged   bool // credentialCall
	// unresolved says what is wrong with what the rule refers to: where the rule
	// wins, it denies.
	unresolved string
}

// variant is a rule for one of its hosts and one of its paths: what a request
// is compared with.
type variant struct {
	*rule
	host     hostPattern
	path     *template
	spec     specificity
	rank     int // position of spec in the order of all; greater wins
	position int // in the bundle, for stable order
}

// issuer is a provider as far as policy must know it.
type issuer struct {
	name         string
	ttl          time.Duration
	scopes       []string         // where a rule names none
	aws          *awsscope.Policy // the most that sessions of an aws provider may do, where a rule names nothing
	destinations []place
	// grant names the namespaces that may use a provider of the cluster.
	cluster bool
	grant   *v1alpha1.NamespaceGrant
	relay   bool // its credentials are put on where no task and process is known
}

// place is a destination of a provider.
type place struct {
	host   hostPattern
	port   int
	scheme string
}

type compiler struct {
	bundle   *api.Bundle
	problems Problems
	issuers  map[string]*issuer
	when     *conditions
	variants []*variant
	outcomes map[string]int
	rules    int
	// unresolved holds what the loader found wrong with references of rules.
	unresolved map[api.Ref]string
}

// Compile compiles the policies of b. An error is of type [Problems] and holds
// every mistake.
func Compile(b *api.Bundle) (*Set, error) {
	c, err := compile(b)
	if err != nil {
		return nil, err
	}
	s := &Set{
		version:    b.Version,
		durability: cmp.Or(b.Config.Spec.Audit.Durability, v1alpha1.DurabilityProcess),
		hosts:      newIndex(c.variants),
		rehearses:  slices.ContainsFunc(c.variants, (*variant).rehearsed),
		calls:      newCredentialCallIndex(),
	}
	return s, nil
}

// compile does all of [Compile] that finds mistakes.
func compile(b *api.Bundle) (*compiler, error) {
	c := &compiler{bundle: b, issuers: map[string]*issuer{}, outcomes: map[string]int{}, unresolved: map[api.Ref]string{}}
	for _, p := range b.Unresolved {
		if end := strings.IndexByte(p.Ref.Field, ']'); end > 0 {
			p.Ref.Field = p.Ref.Field[:end+1] // spec.rules[i]
		}
		c.unresolved[p.Ref] = p.Text
	}
	for i := range b.Providers {
		c.addIssuer(&b.Providers[i])
	}
	if slices.ContainsFunc(b.Policies, hasWhen) {
		var err error
		if c.when, err = newConditions(); err != nil {
			return nil, err
		}
	}
	for i := range b.Policies {
		c.addPolicy(&b.Policies[i])
	}
	c.rank()
	c.findConflicts()
	if len(c.problems) > 0 {
		return nil, c.problems
	}
	return c, nil
}

func hasWhen(p v1alpha1.AccessPolicy) bool {
	return slices.ContainsFunc(p.Spec.Rules, func(r v1alpha1.Rule) bool { return r.When != "" })
}

// addIssuer notes where a provider's credentials may go. A destination that
// the loader should have refused covers nothing.
func (c *compiler) addIssuer(p *v1alpha1.CredentialProvider) {
	is := &issuer{
		name: p.Metadata.Name, ttl: p.Spec.TTL.D(),
		cluster: p.Kind == v1alpha1.KindClusterCredentialProvider, grant: c.bundle.Grants[p.Metadata.Name],
		relay: api.ByRelay(&p.Spec),
	}
	if p.Spec.OAuth2 != nil {
		is.scopes = p.Spec.OAuth2.Scopes
	}
	if p.Spec.AWS != nil {
		is.aws = c.providerPolicy(p)
		c.checkEndpoints(p)
	}
	for _, d := range p.Spec.Destinations {
		host, err := parseHost(d.Host)
		if err != nil || host.class == hostAny {
			continue
		}
		pl := place{host: host, port: d.Port, scheme: cmp.Or(d.Scheme, "https")}
		if pl.port == 0 {
			pl.port = 443
			if pl.scheme == "http" {
				pl.port = 80
			}
		}
		is.destinations = append(is.destinations, pl)
	}
	c.issuers[is.name] = is
}

// serves reports whether workloads of a namespace may use the provider.
func (is *issuer) serves(namespace string) bool {
	return !is.cluster || api.Granted(is.grant, namespace, map[string]string{"kubernetes.io/metadata.name": namespace})
}

// covers reports whether the provider's credentials may go where r goes.
func (is *issuer) covers(r *Request) bool {
	for i := range is.destinations {
		d := &is.destinations[i]
		if d.port == r.Port && d.host.matches(r.Host) && (r.Scheme == d.scheme || r.Scheme == "" && d.scheme == "https") {
			return true
		}
	}
	return false
}

func (c *compiler) addPolicy(doc *v1alpha1.AccessPolicy) {
	p := &policy{
		ref:  api.Ref{Kind: cmp.Or(doc.Kind, v1alpha1.KindAccessPolicy), Namespace: doc.Metadata.Namespace, Name: doc.Metadata.Name},
		name: doc.Metadata.Name,
	}
	switch p.cluster = p.ref.Kind == v1alpha1.KindClusterAccessPolicy; {
	case p.cluster:
		p.name = "cluster:" + doc.Metadata.Name // no namespace has such a name
	case doc.Metadata.Namespace != "":
		p.name = doc.Metadata.Namespace + "/" + doc.Metadata.Name
	}
	switch doc.Spec.Mode {
	case "", "enforce":
	case "audit":
		p.audit = true
	default:
		c.report(p, "spec.mode", "is %q; must be enforce or audit", doc.Spec.Mode)
	}
	for i := range doc.Spec.Workloads {
		c.addSelector(p, fmt.Sprintf("spec.workloads[%d]", i), &doc.Spec.Workloads[i])
	}
	c.target(p, doc.Spec.TargetRefs)
	p.selection = rankSelection(p.selectors)
	names := map[string]bool{}
	for i := range doc.Spec.Rules {
		field := fmt.Sprintf("spec.rules[%d]", i)
		r := &doc.Spec.Rules[i]
		if r.Name == "" {
			c.report(p, field+".name", "is empty; records and refusals show it, so give the rule a name")
		} else if names[r.Name] {
			c.report(p, field+".name", "%q is the name of another rule of this policy", r.Name)
		}
		names[r.Name] = true
		c.addRule(p, field, r)
	}
}

func (c *compiler) addSelector(p *policy, field string, doc *v1alpha1.WorkloadSelector) {
	s := selector{id: doc.SPIFFEID, namespaces: doc.Namespaces, serviceAccounts: doc.ServiceAccounts, labels: doc.MatchLabels}
	if s.id == "" && len(s.namespaces) == 0 && len(s.serviceAccounts) == 0 && len(s.labels) == 0 {
		c.report(p, field, "selects by nothing; leave out workloads to mean every workload")
	}
	if s.id != "" {
		base, prefix := strings.CutSuffix(s.id, "/*")
		s.prefix = prefix
		if prefix {
			s.id = base + "/"
		}
		if _, err := spiffeid.FromString(base); err != nil {
			c.report(p, field+".spiffeID", "is %q; must be a SPIFFE ID such as spiffe://example.org/agent/a, or a prefix that ends in \"/*\" (%v)", doc.SPIFFEID, err)
		}
	}
	p.selectors = append(p.selectors, s)
}

// addRule checks and compiles one rule into its variants. A part that is wrong
// is reported and left out, so that the next mistake is found too.
func (c *compiler) addRule(p *policy, field string, doc *v1alpha1.Rule) {
	ref := p.ref
	ref.Field = field
	r := &rule{
		policy: p, field: field, position: c.bundle.Locate(ref), order: c.rules,
		name: doc.Name, action: doc.Action, reason: doc.Reason,
		ports: unique(doc.Ports), methods: unique(doc.Methods), protocols: unique(doc.Protocols), flagged: doc.CredentialCall,
	}
	r.unresolved = c.unresolved[ref]
	c.rules++
	c.checkAction(p, field, doc)
	c.checkLists(p, field, doc)
	r.headers = c.values(p, field+".headers", doc.Headers, true)
	r.query = c.values(p, field+".query", doc.Query, false)
	c.addWhen(r, doc)
	c.addDecision(r, doc)
	if r.provider != nil && r.provider.relay && r.when != nil && r.when.inPod != "" {
		c.report(p, field+".when", "looks at %s, which only the pod knows; the relay of provider %q decides again and would deny every call", r.when.inPod, r.provider.name)
	}
	paths := c.paths(r, doc)
	if len(doc.Hosts) == 0 {
		c.report(p, field+".hosts", "is empty; name the hosts, or \"*\" for any")
	}
	seen := map[hostPattern]bool{}
	for i, h := range doc.Hosts {
		host, err := parseHost(h)
		if err != nil {
			c.report(p, fmt.Sprintf("%s.hosts[%d]", field, i), "%v", err)
			continue
		}
		host.source = strings.ToLower(host.source)
		if seen[host] {
			continue
		}
		seen[host] = true
		for _, path := range paths {
			v := &variant{rule: r, host: host, path: path, position: len(c.variants)}
			v.spec = rankVariant(v)
			c.variants = append(c.variants, v)
		}
	}
}

// unique sorts a list and removes what it says twice.
func unique[T cmp.Ordered](list []T) []T {
	return slices.Compact(slices.Sorted(slices.Values(list)))
}

// checkAction checks the action and what may stand beside it.
func (c *compiler) checkAction(p *policy, field string, doc *v1alpha1.Rule) {
	switch doc.Action {
	case v1alpha1.ActionAllow:
	case v1alpha1.ActionDeny:
		if doc.Credential != nil {
			c.report(p, field+".credential", "stands on a deny rule; only allow rules hand out credentials")
		}
	case v1alpha1.ActionPassthrough:
		given := map[string]bool{
			"methods": len(doc.Methods) > 0, "paths": len(doc.Paths) > 0, "headers": len(doc.Headers) > 0, "query": len(doc.Query) > 0,
			"protocols": len(doc.Protocols) > 0, "credential": doc.Credential != nil, "credentialCall": doc.CredentialCall,
		}
		for _, name := range []string{"methods", "paths", "headers", "query", "protocols", "credential", "credentialCall"} {
			if given[name] {
				c.report(p, field+"."+name, "stands on a passthrough rule, which never sees a request; remove it or use action: allow")
			}
		}
	default:
		c.report(p, field+".action", "is %q; must be allow, deny or passthrough", doc.Action)
	}
}

// checkLists checks the fields that are used as they are written.
func (c *compiler) checkLists(p *policy, field string, doc *v1alpha1.Rule) {
	for i, port := range doc.Ports {
		if port < 1 || port > 65535 {
			c.report(p, fmt.Sprintf("%s.ports[%d]", field, i), "is %d; must be 1 to 65535", port)
		}
	}
	for i, m := range doc.Methods {
		if m != strings.ToUpper(m) || !isToken(m) {
			c.report(p, fmt.Sprintf("%s.methods[%d]", field, i), "is %q; must be a method in capital letters such as GET", m)
		}
	}
	for i, proto := range doc.Protocols {
		if proto != HTTP && proto != GRPC && proto != WebSocket {
			c.report(p, fmt.Sprintf("%s.protocols[%d]", field, i), "is %q; must be http, grpc or websocket", proto)
		}
	}
	if doc.MaxStream < 0 {
		c.report(p, field+".maxStream", "is negative; leave it out for no limit")
	}
	if v := doc.AgentCredential; v != "" && v != v1alpha1.AgentCredentialsStrip && v != v1alpha1.AgentCredentialsPass {
		c.report(p, field+".agentCredential", "is %q; must be strip or pass", v)
	}
	if v := doc.AnswerCredentials; v != "" && v != v1alpha1.AnswersSeal && v != v1alpha1.AnswersPass {
		c.report(p, field+".answerCredentials", "is %q; must be seal or pass", v)
	}
	if v := doc.Durability; v != "" && v != v1alpha1.DurabilityProcess && v != v1alpha1.DurabilityPower && v != v1alpha1.DurabilityCollector {
		c.report(p, field+".durability", "is %q; must be process, power or collector", v)
	}
}

// isToken reports a token of RFC 9110 section 5.6.2: methods, field names.
func isToken(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isAlpha(c) && !isDigit(c) && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return s != ""
}

func (c *compiler) values(p *policy, field string, docs []v1alpha1.ValueMatch, header bool) []valueMatch {
	var list []valueMatch
	for i, doc := range docs {
		at := fmt.Sprintf("%s[%d]", field, i)
		switch {
		case doc.Name == "" || header && !isToken(doc.Name):
			c.report(p, at+".name", "is %q; must be the name of a header or query parameter", doc.Name)
		case doc.Absent && (doc.Exact != "" || doc.Prefix != ""):
			c.report(p, at, "asks for a value and for its absence; keep one")
		case doc.Exact != "" && doc.Prefix != "":
			c.report(p, at, "has exact and prefix; keep one")
		}
		if header {
			doc.Name = http.CanonicalHeaderKey(doc.Name)
		}
		list = append(list, valueMatch{doc, header})
	}
	return list
}

func (c *compiler) paths(r *rule, doc *v1alpha1.Rule) []*template {
	if len(doc.Paths) == 0 {
		return []*template{nil}
	}
	var list []*template
	seen := map[string]bool{}
	for i, s := range doc.Paths {
		t, err := parseTemplate(s)
		if err != nil {
			c.report(r.policy, fmt.Sprintf("%s.paths[%d]", r.field, i), "%v", err)
			continue
		}
		if k := t.key() + t.literals(); !seen[k] {
			seen[k] = true
			list = append(list, t)
		}
	}
	return list
}

func (c *compiler) addWhen(r *rule, doc *v1alpha1.Rule) {
	if doc.When == "" {
		return
	}
	var err error
	if r.when, err = c.when.compile(doc.When); err != nil {
		c.report(r.policy, r.field+".when", "%v", err)
	} else if doc.Action == v1alpha1.ActionPassthrough && !r.when.connection {
		c.report(r.policy, r.field+".when", "looks at the request, which a passthrough rule never sees; of request only host and port are known")
	}
}

// addDecision prepares what the rule decides.
func (c *compiler) addDecision(r *rule, doc *v1alpha1.Rule) {
	d := Decision{
		Policy:           r.policy.name,
		Rule:             doc.Name,
		Version:          c.bundle.Version,
		AgentCredentials: cmp.Or(doc.AgentCredential, v1alpha1.AgentCredentialsStrip),
		Answers:          cmp.Or(doc.AnswerCredentials, v1alpha1.AnswersSeal),
		CrossSite:        doc.AllowCrossSite,
		EchoRisk:         doc.EchoRisk,
		RawPaths:         doc.RawPaths,
		OpenTask:         doc.OpenTask,
		CredentialCall:   doc.CredentialCall,
		MaxStream:        doc.MaxStream.D(),
		Durability:       cmp.Or(doc.Durability, c.bundle.Config.Spec.Audit.Durability, v1alpha1.DurabilityProcess),
	}
	switch {
	case doc.Action == v1alpha1.ActionAllow && doc.Credential != nil:
		d.Verdict = Inject
		d.Grant = c.grant(r, doc.Credential)
		d.RawPaths = d.RawPaths || d.Grant.AWS != nil // read byte for byte by awsscope, and signed so
		d.Reason = fmt.Sprintf("rule %q of policy %q allows the call with a credential of provider %q", r.name, r.policy.name, doc.Credential.Provider)
	case doc.Action == v1alpha1.ActionAllow:
		d.Verdict = Allow
		d.Reason = fmt.Sprintf("rule %q of policy %q allows the call without a credential", r.name, r.policy.name)
	case doc.Action == v1alpha1.ActionPassthrough:
		// For a request: a passed connection that was intercepted nevertheless.
		d.Verdict = Allow
		d.Reason = fmt.Sprintf("rule %q of policy %q passes the connection through; this request was intercepted and passes without a credential", r.name, r.policy.name)
	default:
		d.Reason = fmt.Sprintf("rule %q of policy %q denies the call", r.name, r.policy.name)
		if doc.Reason != "" {
			d.Reason += ": " + doc.Reason
		}
	}
	r.decision = d
	r.outcome = c.outcome(outcomeOf(doc.Action, d))
}

// outcomeOf is equal for two decisions that treat a request alike. Denials are
// alike whatever they say.
func outcomeOf(action string, d Decision) string {
	if action == v1alpha1.ActionDeny {
		return action
	}
	d.Policy, d.Rule, d.Reason = "", "", ""
	aws := ""
	if d.Grant.AWS != nil {
		aws = fmt.Sprintf("%#v", *d.Grant.AWS) // what it says, not where it is
		d.Grant.AWS = nil
	}
	return fmt.Sprintf("%s %+v %s", action, d, aws)
}

// outcome numbers outcomes.
func (c *compiler) outcome(key string) int {
	n, ok := c.outcomes[key]
	if !ok {
		n = len(c.outcomes)
		c.outcomes[key] = n
	}
	return n
}

func (c *compiler) grant(r *rule, doc *v1alpha1.CredentialRef) Grant {
	field := r.field + ".credential"
	g := Grant{
		Provider:    doc.Provider,
		Scope:       doc.Scope,
		ScopeSource: "static",
		Audience:    doc.Audience,
		Resources:   doc.Resources,
		Role:        doc.Role,
		TTL:         cmp.Or(doc.TTL.D(), defaultTTL),
	}
	if r.provider = c.issuers[doc.Provider]; r.provider == nil && r.unresolved != "" {
		return g // the rule only denies
	} else if r.provider == nil {
		c.report(r.policy, field+".provider", "%q is no CredentialProvider of this set", doc.Provider)
	} else {
		if doc.TTL == 0 && r.provider.ttl > 0 {
			g.TTL = r.provider.ttl
		}
		if len(g.Scope) == 0 { // so that records and explain say what is asked for
			g.Scope = r.provider.scopes
		}
		if r.provider.aws != nil {
			c.grantAWS(r, doc.AWS, &g)
		}
	}
	if doc.TTL < 0 {
		c.report(r.policy, field+".ttl", "is negative; leave it out for the provider's")
	}
	if len(doc.AuthorizationDetails) > 0 {
		var err error
		if g.AuthorizationDetails, err = canonicalDetails(doc.AuthorizationDetails); err != nil {
			c.report(r.policy, field+".authorizationDetails", "%v", err)
		}
	}
	return g
}
