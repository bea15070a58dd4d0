package policy

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// MayGrant reports whether the set could decide [Inject] with a credential of
// a provider for a request of which only workload, scheme, host, port, method,
// path and protocol are known. The grant is the one that Decide would give,
// with the rule's static scope.
//
// It is how a broker decides again: it knows the pod, but has not seen the
// request. What it cannot know (headers, query, conditions) it takes to be as
// an opening rule wants it; deny rules that depend on nothing else count. So
// the answer is never narrower than Decide's, and no wider than the rules.
// Without a grant the reason says why.
func (s *Set) MayGrant(r *Request, provider string) (g Grant, rule, reason string) {
	q, refused := s.begin(r)
	if refused != "" {
		return Grant{}, "", refused
	}
	var list []*variant
	var bucketSpace [12]*bucket
	var leafSpace [12]*leaf
	for _, b := range s.hosts.find(r.Host, bucketSpace[:0]) {
		for _, l := range b.find(q.path, leafSpace[:0]) {
			list = append(list, l.all...)
		}
	}
	slices.SortStableFunc(list, func(a, b *variant) int {
		// Of equally specific rules a denial wins.
		return cmp.Or(cmp.Compare(b.rank, a.rank), -cmp.Compare(btoi(a.denies()), btoi(b.denies())))
	})
	for _, v := range list {
		if !v.known(&q) {
			continue
		}
		if v.action == v1alpha1.ActionAllow && v.provider != nil && v.provider.name == provider && v.decision.Verdict == Inject && v.provider.covers(r) && v.provider.serves(r.Workload.Namespace) {
			return v.decision.Grant, v.policy.name + "/" + v.name, ""
		}
		if v.when == nil && len(v.headers) == 0 && len(v.query) == 0 && !v.policy.audit {
			return Grant{}, "", fmt.Sprintf("rule %q of policy %q decides such calls, and gives no credential of provider %q", v.name, v.policy.name, provider)
		}
	}
	return Grant{}, "", fmt.Sprintf("no rule gives this workload a credential of provider %q for %s", provider, place{port: r.Port, scheme: r.Scheme}.describe(r.Host))
}

// known compares what is known of the request.
func (v *variant) known(q *search) bool {
	return v.policy.selects(q.r.Workload, q.id) && v.coversPort(q.r.Port) &&
		(len(v.methods) == 0 || slices.Contains(v.methods, q.r.Method)) &&
		(len(v.protocols) == 0 || slices.Contains(v.protocols, q.protocol()))
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
