package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
)

// Warnings lists what is no mistake in b but seldom what its author meant, in
// the order of the documents: deny rules for a whole host that lose to an allow
// rule for a path of it, because a path beats none. A bundle that does not
// compile has none.
func Warnings(b *api.Bundle) []api.Problem {
	c, err := compile(b)
	if err != nil {
		return nil
	}
	var denies, allows []*variant
	for _, v := range c.variants {
		switch {
		case v.action == v1alpha1.ActionDeny && v.path.any() && !v.isDefault():
			denies = append(denies, v)
		case v.action == v1alpha1.ActionAllow && !v.path.any():
			allows = append(allows, v)
		}
	}
	byDocument := func(a, b *variant) int { return cmp.Compare(a.position, b.position) }
	slices.SortFunc(denies, byDocument)
	slices.SortFunc(allows, byDocument)
	var list []api.Problem
	type pair struct{ deny, allow *rule }
	seen := map[pair]bool{}
	for _, d := range denies {
		for _, a := range allows {
			if p := (pair{d.rule, a.rule}); !seen[p] && loses(d, a) {
				seen[p] = true
				list = append(list, c.warnLoses(d, a))
			}
		}
	}
	return append(list, warnAWS(b)...)
}

// isDefault reports whether v only says aloud, often with a reason, what holds
// where no rule matches.
func (v *variant) isDefault() bool {
	return v.host.class == hostAny && len(v.methods)+len(v.protocols)+len(v.headers)+len(v.query) == 0 && v.when == nil
}

// loses reports whether a wins over d for some request.
func loses(d, a *variant) bool {
	return a.spec.compare(&d.spec) > 0 && d.host.covers(a.host) && overlap(a, d)
}

func (c *compiler) warnLoses(d, a *variant) api.Problem {
	where := ""
	if a.rule.position.File != "" {
		where = " (" + a.rule.position.String() + ")"
	}
	ref := d.policy.ref
	ref.Field = d.field
	return api.Problem{Position: d.rule.position, Ref: ref, Text: fmt.Sprintf(
		"rule %q of policy %q denies calls to the whole of %s, but rule %q of policy %q%s allows %s there and wins, because a path is more specific than none; if the denial must win, give it that path too",
		d.name, d.policy.name, d.host.source, a.name, a.policy.name, where, a.path.source)}
}

// any reports whether t matches every path.
func (t *template) any() bool { return t == nil || t.segments[0].kind == segmentTail }

// covers reports whether p matches every host that o matches.
func (p hostPattern) covers(o hostPattern) bool {
	if o.class == hostExact {
		return p.matches(o.name)
	}
	switch p.class {
	case hostAny:
		return true
	case hostSuffix:
		return o.class != hostAny && (o.name == p.name || strings.HasSuffix(o.name, "."+p.name))
	case hostLabel:
		return o.class == hostLabel && o.name == p.name
	default:
		return false
	}
}
