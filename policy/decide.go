package policy

import (
	"fmt"
	"strings"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
)

// maxErrorText bounds what a refusal repeats of a failed condition, in bytes.
const maxErrorText = 200

// search is the state of one decision.
type search struct {
	set         *Set
	r           *Request
	id          string // SPIFFE ID
	path        string // canonical
	enforceOnly bool   // leave out policies in audit mode
	rehearse    bool   // look at guard rails in audit mode, and at nothing else
	act         *activation
	world       *world // of a recorded request; nil: everything is known

	best     *variant
	rival    *variant // as specific as best, but with another outcome
	failed   error    // the condition of best, a deny rule, gave no answer
	examined int      // variants looked at
}

func (q *search) protocol() string { return protocolOf(q.r) }

// Decide says what becomes of a request. It depends on nothing but the set and
// the request, and is safe for concurrent use. Slices of the decision are
// shared and must not be modified.
//
// For protocol [TLS] it is [Set.DecideConn].
func (s *Set) Decide(r *Request) Decision {
	if s != nil && r.Protocol == TLS {
		return s.DecideConn(r)
	}
	return s.decideIn(r, nil)
}

// decideIn decides in one world of a recorded request.
func (s *Set) decideIn(r *Request, w *world) Decision {
	q, refused := s.begin(r)
	if refused != "" {
		return s.refuse(refused)
	}
	q.world = w
	s.scan(&q)
	d := s.settle(&q)
	if s.rehearses && d.Verdict != Deny {
		s.rehearse(&q, &d)
	}
	s.end(&q)
	return d
}

// rehearse notes which guard rail in audit mode would deny what d opens.
func (s *Set) rehearse(q *search, d *Decision) {
	r := search{set: s, r: q.r, id: q.id, path: q.path, act: q.act, world: q.world, rehearse: true}
	s.scan(&r)
	q.act = r.act
	if r.best == nil {
		return
	}
	d.WouldDeny = true
	d.Reason += fmt.Sprintf("; policy %s is in audit mode and would deny: %s", r.best.policy.name, r.best.decision.Reason)
}

// begin checks what every decision needs. Its second result refuses.
func (s *Set) begin(r *Request) (search, string) {
	q := search{set: s, r: r}
	switch {
	case s == nil:
		return q, "no policy is loaded, so every call is denied"
	case r.Workload == nil || r.Workload.ID.IsZero():
		return q, "the caller has no attested identity, so no rule can apply to it"
	case strings.HasPrefix(r.Host, ".") || strings.HasSuffix(r.Host, ".") || strings.Contains(r.Host, ".."):
		return q, "the host has an empty label, which is no name" // a destination never has
	case strings.ToUpper(r.Method) != r.Method:
		// Methods are case-sensitive (RFC 9110 section 9.1), but many frameworks
		// read "delete" as DELETE, which a rule against DELETE does not match.
		return q, "the method is not in upper case, which origins read in different ways"
	}
	q.id = r.Workload.ID.String()
	path := r.Path
	if path == "" {
		path = "/" // RFC 9110 section 4.2.3
	}
	var ok bool
	if q.path, ok = canonicalPath(path); !ok {
		return q, "the path has a \"%\" without two hexadecimal digits"
	}
	if q.path[0] != '/' && q.path != "*" { // RFC 9112 section 3.2.4
		return q, "the path does not start with \"/\""
	}
	return q, ""
}

// end gives back what conditions needed.
func (s *Set) end(q *search) {
	if q.act != nil {
		s.pool.put(q.act)
		q.act = nil
	}
}

// refuse is a denial that comes from no rule.
func (s *Set) refuse(reason string) Decision {
	d := Decision{
		Reason:           reason,
		AgentCredentials: v1alpha1.AgentCredentialsStrip,
		Answers:          v1alpha1.AnswersSeal,
		Durability:       v1alpha1.DurabilityProcess,
	}
	if s != nil {
		d.Version, d.Durability = s.version, s.durability
	}
	return d
}

// scan finds the most specific rule that matches.
func (s *Set) scan(q *search) {
	var bucketSpace [12]*bucket
	var leafSpace [12]*leaf
	for _, b := range s.hosts.find(q.r.Host, bucketSpace[:0]) {
		for _, l := range b.find(q.path, leafSpace[:0]) {
			q.consider(l.other)
			if l.method != nil {
				q.consider(l.method[q.r.Method])
			}
			if l.id != nil {
				q.consider(l.id[q.id])
			}
			if l.both != nil {
				q.consider(l.both[[2]string{q.r.Method, q.id}])
			}
		}
	}
}

// consider looks at variants, most specific first, as long as they can matter.
func (q *search) consider(list []*variant) {
	for _, v := range list {
		if q.best != nil && v.rank < q.best.rank {
			return
		}
		q.examined++
		if q.enforceOnly && v.policy.audit || v.rehearsed() != q.rehearse {
			continue
		}
		if m, err := q.match(v); m == matched {
			q.take(v, err)
		}
	}
}

// match compares all but host and path, which the index has compared. A
// condition without an answer does not hold for a rule that opens something,
// and holds for a deny rule; the error is returned with both.
func (q *search) match(v *variant) (mismatch, error) {
	if q.world != nil {
		if m, unknown := q.world.match(q, v); unknown {
			return m, nil
		}
	}
	if m := v.static(q); m != matched || v.when == nil {
		return m, nil
	}
	if q.act == nil {
		q.act = q.set.pool.get(q.r, q.path)
	}
	ok, err := v.when.holds(q.act)
	switch {
	case err != nil && v.action == v1alpha1.ActionDeny:
		return matched, err
	case err != nil:
		return mismatchWhenError, err
	case !ok:
		return mismatchWhen, nil
	}
	return matched, nil
}

// take keeps the more specific of two variants, and of equally specific ones
// the denial; denials of enforcing policies come before those in audit mode.
func (q *search) take(v *variant, err error) {
	if q.best == nil || v.rank > q.best.rank {
		q.best, q.rival, q.failed = v, nil, err
		return
	}
	switch bestDenies, denies := q.best.denies(), v.denies(); {
	case bestDenies && !denies:
	case denies && !bestDenies,
		denies && q.best.policy.audit && !v.policy.audit:
		q.best, q.rival, q.failed = v, nil, err
	case denies && !q.best.policy.audit && v.policy.audit:
	case !denies && v.outcome != q.best.outcome:
		if q.rival == nil || v.order < q.rival.order {
			q.rival = v
		}
		if v.order < q.best.order {
			q.best, q.rival = v, q.best
		}
	case v.order < q.best.order:
		q.best, q.failed = v, err
	}
}

func (r *rule) denies() bool { return r.action == v1alpha1.ActionDeny }

// settle turns the outcome of a scan into a decision.
func (s *Set) settle(q *search) Decision {
	switch v := q.best; {
	case v == nil:
		return s.byDefault(q)
	case q.rival != nil:
		return s.ambiguous(q)
	case v.denies():
		return s.denied(q)
	default:
		return s.opened(q)
	}
}

// opened is the decision of a rule that opens something.
func (s *Set) opened(q *search) Decision {
	v := q.best
	d := v.decision
	d.PathTemplate = v.template()
	// Calls to AWS are read by name before they are signed: awsscope tells which
	// of them hand out credentials, better than host and path do.
	if what := s.calls.match(q.r, q.path); what != "" && !v.flagged && d.Grant.AWS == nil {
		return v.withdraw(d, fmt.Sprintf("the call hands out credentials (%s), which rule %q of policy %q does not name; to allow it the rule needs credentialCall: true", what, v.name, v.policy.name))
	}
	if v.unresolved != "" {
		return v.withdraw(d, fmt.Sprintf("rule %q of policy %q asks for a credential that it cannot have (%s); its owner must correct it", v.name, v.policy.name, v.unresolved))
	}
	if d.Verdict == Inject && !v.provider.serves(q.r.Workload.Namespace) {
		return v.withdraw(d, fmt.Sprintf("rule %q of policy %q asks for a credential of provider %q, which namespace %q may not use; its owner must add it to spec.allowedNamespaces", v.name, v.policy.name, v.provider.name, bounded(q.r.Workload.Namespace)))
	}
	if d.Verdict == Inject && !v.provider.covers(q.r) {
		return v.withdraw(d, fmt.Sprintf("rule %q of policy %q asks for a credential of provider %q, which may not go to %s; it must be among the provider's destinations", v.name, v.policy.name, v.provider.name, place{port: q.r.Port, scheme: q.r.Scheme}.describe(q.r.Host)))
	}
	return d
}

func (p place) describe(host string) string {
	if p.scheme == "" {
		p.scheme = "https"
	}
	return fmt.Sprintf("%s://%s port %d", p.scheme, host, p.port)
}

// withdraw denies what the rule would have opened.
func (v *variant) withdraw(d Decision, reason string) Decision {
	d.Verdict, d.Grant, d.Reason = Deny, Grant{}, reason
	return d
}

func (v *variant) template() string {
	if v.path == nil {
		return ""
	}
	return v.path.source
}

// ambiguous denies a request that equally specific rules treat differently.
// Compile finds those that no condition separates; these have conditions that
// hold together.
func (s *Set) ambiguous(q *search) Decision {
	v := q.best
	d := v.withdraw(v.decision, fmt.Sprintf("rule %q of policy %q and rule %q of policy %q apply with equal specificity but treat the call differently; their owners must make one more specific",
		v.name, v.policy.name, q.rival.name, q.rival.policy.name))
	d.PathTemplate = v.template()
	return d
}

// denied is the decision of a deny rule. One in audit mode passes without a
// credential, unless the enforcing policies alone deny the request too.
func (s *Set) denied(q *search) Decision {
	v := q.best
	d := v.decision
	d.PathTemplate = v.template()
	if q.failed != nil {
		d.Reason += fmt.Sprintf(" (its condition could not be evaluated, which counts as true: %s)", bounded(q.failed.Error()))
	}
	if !v.policy.audit || s.calls.match(q.r, q.path) != "" {
		return d
	}
	e := search{set: s, r: q.r, id: q.id, path: q.path, act: q.act, world: q.world, enforceOnly: true}
	s.scan(&e)
	q.act = e.act
	if e.best != nil && (e.rival != nil || e.best.denies()) {
		return s.settle(&e)
	}
	return s.pass(d)
}

// byDefault denies a request that no rule matches, or lets it pass if a policy
// in audit mode speaks of this workload and this place.
func (s *Set) byDefault(q *search) Decision {
	d := s.refuse(s.nearest(q))
	if s.calls.match(q.r, q.path) != "" {
		return d
	}
	var space [12]*bucket
	for _, b := range s.hosts.find(q.r.Host, space[:0]) {
		for _, v := range b.audited {
			if v.coversPort(q.r.Port) && v.policy.selects(q.r.Workload, q.id) {
				d.Policy = v.policy.name
				return s.pass(d)
			}
		}
	}
	return d
}

// pass turns a denial in audit mode into a pass without a credential and with
// the strictest obligations.
func (s *Set) pass(d Decision) Decision {
	p := s.refuse("policy " + d.Policy + " is in audit mode and would deny: " + d.Reason)
	p.Verdict, p.WouldDeny = Allow, true
	p.Policy, p.Rule, p.PathTemplate, p.Durability = d.Policy, d.Rule, d.PathTemplate, d.Durability
	return p
}

// bounded cuts text of foreign origin and leaves out control characters.
func bounded(s string) string {
	if len(s) > maxErrorText {
		s = strings.ToValidUTF8(s[:maxErrorText], "") + "…"
	}
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return ' '
		}
		return c
	}, s)
}

// DecideConn says, before any request is seen, whether a connection is passed
// through without interception. It uses host, port, workload, process, task
// and time of r only.
//
// The verdict is [Passthrough] if the most specific rule that could apply to a
// request to that host and port is a passthrough rule. Any other verdict is
// [Deny] and means: do not tunnel bytes; intercept, and let [Set.Decide] answer
// each request.
func (s *Set) DecideConn(r *Request) Decision {
	// What is not known yet must not decide by accident.
	conn := &Request{Host: r.Host, Port: r.Port, Protocol: TLS, Workload: r.Workload, Process: r.Process, Task: r.Task, Time: r.Time}
	q, refused := s.begin(conn)
	if refused != "" {
		return s.refuse(refused)
	}
	defer s.end(&q)
	var space [12]*bucket
	buckets := s.hosts.find(r.Host, space[:0])
	for _, b := range buckets {
		for _, v := range b.passing {
			if q.best == nil || v.rank > q.best.rank {
				if m, _ := q.match(v); m == matched {
					q.best = v
				}
			}
		}
	}
	if q.best == nil {
		return s.refuse(fmt.Sprintf("no rule passes connections to %s port %d through", r.Host, r.Port))
	}
	for _, b := range buckets {
		for _, v := range b.all {
			if v.rank < q.best.rank {
				break
			}
			if v.action != v1alpha1.ActionPassthrough && !v.rehearsed() && q.couldApply(v) {
				d := s.refuse(fmt.Sprintf("rule %q of policy %q is at least as specific as passthrough rule %q, so the connection is intercepted", v.name, v.policy.name, q.best.name))
				d.Policy, d.Rule = v.policy.name, v.name
				return d
			}
		}
	}
	d := q.best.decision
	d.Verdict = Passthrough
	d.Reason = fmt.Sprintf("rule %q of policy %q passes the connection through", q.best.name, q.best.policy.name)
	return d
}

// couldApply reports whether a rule may match some request on a connection.
func (q *search) couldApply(v *variant) bool {
	if !v.coversPort(q.r.Port) || !v.policy.selects(q.r.Workload, q.id) {
		return false
	}
	if v.when == nil || !v.when.connection {
		return true
	}
	if q.act == nil {
		q.act = q.set.pool.get(q.r, q.path)
	}
	ok, err := v.when.holds(q.act)
	return ok || err != nil
}

// Knows reports whether some rule of a policy that selects w names the host
// and port, whatever it says of them.
func (s *Set) Knows(host string, port int, w *identity.Workload) bool {
	if s == nil || w == nil || w.ID.IsZero() {
		return false
	}
	id := w.ID.String()
	var space [12]*bucket
	for _, b := range s.hosts.find(host, space[:0]) {
		for _, v := range b.all {
			if v.coversPort(port) && v.policy.selects(w, id) {
				return true
			}
		}
	}
	return false
}
