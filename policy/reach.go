package policy

import (
	"cmp"
	"slices"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/identity"
)

// ReachRule is one rule of a policy that speaks of a workload.
type ReachRule struct {
	Policy   string // namespace/name, cluster:name
	Rule     string
	Position api.Position
	Audit    bool // the policy is in audit mode
	Action   string
	Hosts    []string // patterns
	Methods  []string // empty: any
	Paths    []string // templates; empty: any
	Provider string   // of the credential; empty: none
}

// Reach lists the rules of every policy that selects w, in the order of the
// documents: what w may do, and what it may not. A rule may lose to a more
// specific one, and what its conditions ask of a request is left out; Explain
// says what becomes of one.
func (s *Set) Reach(w *identity.Workload) []ReachRule {
	if s == nil || w == nil || w.ID.IsZero() {
		return nil
	}
	id := w.ID.String()
	found := map[*rule]*ReachRule{}
	var order []*rule
	s.hosts.each(func(v *variant) {
		if !v.policy.selects(w, id) {
			return
		}
		r := found[v.rule]
		if r == nil {
			r = &ReachRule{Policy: v.policy.name, Rule: v.name, Position: v.rule.position, Audit: v.policy.audit, Action: v.action, Methods: slices.Clone(v.methods), Provider: v.decision.Grant.Provider}
			found[v.rule] = r
			order = append(order, v.rule)
		}
		if !slices.Contains(r.Hosts, v.host.source) {
			r.Hosts = append(r.Hosts, v.host.source)
		}
		if p := v.template(); p != "" && !slices.Contains(r.Paths, p) {
			r.Paths = append(r.Paths, p)
		}
	})
	slices.SortFunc(order, func(a, b *rule) int { return cmp.Compare(a.order, b.order) })
	out := make([]ReachRule, len(order))
	for i, r := range order {
		out[i] = *found[r]
		slices.Sort(out[i].Hosts) // the index has no order
		slices.Sort(out[i].Paths)
	}
	return out
}

// each calls fn with every variant, in no order.
func (x *index) each(fn func(*variant)) {
	buckets := []*bucket{x.any}
	for _, m := range []map[string]*bucket{x.exact, x.label, x.suffix} {
		for _, b := range m {
			buckets = append(buckets, b)
		}
	}
	for _, b := range buckets {
		if b == nil {
			continue
		}
		for _, v := range b.all {
			fn(v)
		}
	}
}

// HostMatches reports whether a rule's host pattern covers a host.
func HostMatches(pattern, host string) bool {
	p, err := parseHost(pattern)
	return err == nil && p.matches(host)
}
