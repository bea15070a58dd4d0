package policy

import (
	"cmp"
	"slices"

	"github.com/attache-dev/attache/api"
)

// specificity says how much a variant asks for. Its fields are compared in
// their order, the first difference decides, and a greater value is more
// specific. Where one variant matches a part of what another matches, in one
// of these respects, its value there is greater. docs/policy.md describes the
// order for users.
type specificity struct {
	layer     int
	host      [2]int // class, labels
	path      string // segment kinds from the left
	methods   int
	ports     int
	headers   [3]int // conditions, exact ones, length of prefixes
	query     [3]int
	protocols int
	selection selectionRank
	when      int
}

// selectionRank is the specificity of a policy's workload selectors: that of
// the least specific of them. Kind of SPIFFE ID, its length, service accounts,
// namespaces, labels.
type selectionRank [5]int

func (s *specificity) compare(o *specificity) int {
	return cmp.Or(
		cmp.Compare(s.layer, o.layer),
		slices.Compare(s.host[:], o.host[:]),
		cmp.Compare(s.path, o.path),
		cmp.Compare(s.methods, o.methods),
		cmp.Compare(s.ports, o.ports),
		slices.Compare(s.headers[:], o.headers[:]),
		slices.Compare(s.query[:], o.query[:]),
		cmp.Compare(s.protocols, o.protocols),
		slices.Compare(s.selection[:], o.selection[:]),
		cmp.Compare(s.when, o.when),
	)
}

// Layers, the first of [specificity]: whatever a namespace's rules say, they
// cannot open what the cluster's deny; and what the cluster's open is only for
// those of whom no rule of a namespace speaks.
const (
	layerDefault   = iota // rules of the cluster that open something
	layerNamespace        // all rules of a namespace, or of files
	layerGuardRail        // rules of the cluster that deny
)

func (r *rule) layer() int {
	switch {
	case !r.policy.cluster:
		return layerNamespace
	case r.denies():
		return layerGuardRail
	default:
		return layerDefault
	}
}

// rehearsed reports a guard rail in audit mode, which decides nothing: only
// what it would deny is recorded.
func (v *variant) rehearsed() bool { return v.policy.cluster && v.policy.audit && v.denies() }

func rankVariant(v *variant) specificity {
	s := specificity{
		layer:     v.layer(),
		host:      [2]int{int(v.host.class), v.host.labels},
		path:      v.path.key(),
		methods:   fewer(len(v.methods)),
		ports:     fewer(len(v.ports)),
		headers:   rankValues(v.headers),
		query:     rankValues(v.query),
		protocols: fewer(len(v.protocols)),
		selection: v.policy.selection,
	}
	if len(v.ports) == 0 {
		s.ports = fewer(2) // 443 and 80
	}
	if v.when != nil {
		s.when = 1
	}
	return s
}

// fewer ranks a list of n alternatives: none given asks for nothing, and the
// fewer there are the more specific.
func fewer(n int) int {
	if n == 0 {
		return 0
	}
	return max(1, 1<<16-n)
}

func rankValues(list []valueMatch) [3]int {
	k := [3]int{len(list)}
	for _, m := range list {
		if m.Exact != "" || m.Absent {
			k[1]++
		}
		k[2] += len(m.Prefix)
	}
	return k
}

func rankSelection(list []selector) selectionRank {
	var least selectionRank
	for i, s := range list {
		k := selectionRank{0, len(s.id), fewer(len(s.serviceAccounts)), fewer(len(s.namespaces)), len(s.labels)}
		switch {
		case s.id == "":
		case s.prefix:
			k[0] = 1
		default:
			k[0], k[1] = 2, 0 // one exact ID is as specific as another
		}
		if i == 0 || slices.Compare(k[:], least[:]) < 0 {
			least = k
		}
	}
	return least
}

// rank sorts the variants, most specific first, and numbers equal ones alike.
func (c *compiler) rank() {
	slices.SortStableFunc(c.variants, func(a, b *variant) int { return b.spec.compare(&a.spec) })
	rank := len(c.variants)
	for i, v := range c.variants {
		if i > 0 && v.spec.compare(&c.variants[i-1].spec) != 0 {
			rank = len(c.variants) - i
		}
		v.rank = rank
	}
}

// overlapKey groups the variants that can match one request: with equal
// specificity, patterns of host and path overlap only if they are the same.
type overlapKey struct {
	rank  int
	host  hostPattern
	paths string
	id    string // of policies that select exact SPIFFE IDs
}

// findConflicts reports rules of equal specificity with different outcomes
// that some request matches both, unless different conditions tell them apart.
// The mode of a policy makes no difference: going from audit to enforce must
// not make a policy invalid.
func (c *compiler) findConflicts() {
	groups := map[overlapKey][]*variant{}
	inOrder := slices.Clone(c.variants)
	slices.SortFunc(inOrder, func(a, b *variant) int { return cmp.Compare(a.position, b.position) })
	reported := map[*rule]bool{}
	for _, v := range inOrder {
		k := overlapKey{rank: v.rank, host: v.host, paths: v.path.literals()}
		ids := v.policy.ids()
		if len(ids) == 0 {
			ids = []string{""}
		}
		for _, id := range ids {
			k.id = id
			for _, first := range groups[k] {
				if !reported[v.rule] && conflict(first, v) {
					reported[v.rule] = true
					c.reportConflict(first, v)
				}
			}
			groups[k] = append(groups[k], v)
		}
	}
}

func conflict(a, b *variant) bool {
	switch {
	case a.rule == b.rule, a.outcome == b.outcome:
		return false
	case a.when != nil && b.when != nil && a.when.source != b.when.source:
		return false
	}
	return overlap(a, b)
}

// overlap reports whether some request matches both variants, given that their
// hosts and paths do and conditions hold.
func overlap(a, b *variant) bool {
	return portsOverlap(a.rule, b.rule) &&
		intersect(a.methods, b.methods) &&
		intersect(a.protocols, b.protocols) &&
		!contradict(a.headers, b.headers) &&
		!contradict(a.query, b.query) &&
		selectionsOverlap(a.policy, b.policy)
}

func portsOverlap(a, b *rule) bool {
	if len(a.ports) == 0 && len(b.ports) == 0 {
		return true
	}
	return slices.ContainsFunc(a.ports, b.coversPort) || slices.ContainsFunc(b.ports, a.coversPort)
}

func selectionsOverlap(a, b *policy) bool {
	if len(a.selectors) == 0 || len(b.selectors) == 0 {
		return true
	}
	return slices.ContainsFunc(a.selectors, func(s selector) bool {
		return slices.ContainsFunc(b.selectors, func(o selector) bool { return s.overlaps(&o) })
	})
}

func (c *compiler) reportConflict(first, second *variant) {
	path := "any path"
	if second.path != nil {
		path = "path " + second.path.source
	}
	where := ""
	if first.rule.position.File != "" {
		where = " (" + first.rule.position.String() + ")"
	}
	c.report(second.policy, second.field,
		"rule %q of policy %q and rule %q of policy %q%s match the same requests (host %s, %s) with equal specificity but different outcomes; make one more specific, or remove one",
		second.name, second.policy.name, first.name, first.policy.name, where, second.host.source, path)
	c.problems[len(c.problems)-1].Reason = api.ReasonConflicted
}
