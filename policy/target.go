package policy

import (
	"fmt"
	"slices"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
)

// target narrows a policy's selectors to what it is attached to: a workload
// must fit one of both. In a cluster that is at least the policy's namespace.
func (c *compiler) target(p *policy, refs []v1alpha1.TargetRef) {
	if len(refs) == 0 && c.bundle.Place != api.PlaceRun && p.ref.Namespace != "" && !p.cluster {
		refs = []v1alpha1.TargetRef{{Kind: api.TargetNamespace, Name: p.ref.Namespace}}
	}
	if len(refs) == 0 {
		return
	}
	chosen := p.selectors
	if len(chosen) == 0 {
		chosen = []selector{{}}
	}
	p.selectors = nil
	for i, t := range refs {
		var at selector
		switch t.Kind {
		case api.TargetNamespace:
			at.namespaces = []string{t.Name}
		case api.TargetServiceAccount:
			at.serviceAccounts = []string{t.Name}
			if p.ref.Namespace != "" {
				at.namespaces = []string{p.ref.Namespace}
			}
		default:
			c.report(p, fmt.Sprintf("spec.targetRefs[%d].kind", i), "is %q; must be Namespace or ServiceAccount", t.Kind)
			continue
		}
		for _, s := range chosen {
			var ok [2]bool
			s.namespaces, ok[0] = both(s.namespaces, at.namespaces)
			s.serviceAccounts, ok[1] = both(s.serviceAccounts, at.serviceAccounts)
			if ok[0] && ok[1] {
				p.selectors = append(p.selectors, s)
			}
		}
	}
	if len(p.selectors) == 0 {
		c.report(p, "spec.targetRefs", "name nothing that spec.workloads selects; change one of them")
	}
}

// both lists what two lists share, where an empty list has everything. It
// fails if they share nothing.
func both(a, b []string) ([]string, bool) {
	switch {
	case len(a) == 0:
		return b, true
	case len(b) == 0:
		return a, true
	}
	shared := slices.DeleteFunc(slices.Clone(a), func(v string) bool { return !slices.Contains(b, v) })
	return shared, len(shared) > 0
}
