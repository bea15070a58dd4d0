package suggest

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/policy/replay"
)

const (
	maxPaths = 64  // of a rule, as the loader has it
	maxName  = 100 // of a rule, with room for a number
)

// draft is a policy in the making.
type draft struct {
	b     *Builder
	agent string
	rules []*ruleDraft
	exact map[string]bool // hosts whose paths are written out
}

// ruleDraft is one rule and the uses that it is made of.
type ruleDraft struct {
	v1alpha1.Rule
	from string
	uses []*use
}

// group makes a rule for each set of uses that one rule of the present policy
// allowed alike, to one host, by the same methods.
func (d *draft) group(uses []*use, literal bool) {
	families := map[string][]*use{}
	for _, u := range uses {
		q := u.record.Request
		k := strings.Join([]string{u.was.Policy, u.was.Rule, q.Host, fmt.Sprintf("%05d", q.Port), q.Protocol, u.was.Verdict, u.was.Provider, strings.Join(u.was.Scope, " ")}, "\x01")
		families[k] = append(families[k], u)
	}
	for _, k := range slices.Sorted(maps.Keys(families)) {
		d.family(families[k], literal)
	}
	d.name()
}

// family makes the rules of uses that differ in method and path only.
func (d *draft) family(uses []*use, literal bool) {
	first := uses[0]
	if first.was.Verdict == policy.Passthrough.String() || first.record.Request.Protocol == policy.TLS {
		r := d.base(first)
		r.Action, r.Methods, r.Paths, r.Protocols = v1alpha1.ActionPassthrough, nil, nil, nil
		r.uses = uses
		d.rules = append(d.rules, r)
		return
	}
	t := &tree{literal: literal || d.exact[first.record.Request.Host]}
	for _, u := range uses {
		t.add(u.record.Request.Path, u)
	}
	byMethods := map[string][]leaf{}
	for _, l := range t.leaves() {
		k := strings.Join(l.methods(), ",")
		byMethods[k] = append(byMethods[k], l)
	}
	for _, k := range slices.Sorted(maps.Keys(byMethods)) {
		for list := range slices.Chunk(byMethods[k], maxPaths) {
			r := d.base(first)
			r.Methods, r.Paths, r.uses = list[0].methods(), nil, nil
			for _, l := range list {
				r.Paths = append(r.Paths, l.template)
				r.uses = append(r.uses, l.uses...)
			}
			d.narrowAWS(r)
			d.rules = append(d.rules, r)
		}
	}
}

// base is the rule that allowed a use, narrowed to its host; without it, one
// that does the same.
func (d *draft) base(u *use) *ruleDraft {
	q := u.record.Request
	r := &ruleDraft{}
	if old := d.present(u.was.Policy, u.was.Rule); old != nil && old.Action != v1alpha1.ActionDeny {
		r.Rule, r.from = *old, u.was.Policy+"/"+u.was.Rule
		d.plain(&r.Rule)
	} else {
		r.Action = v1alpha1.ActionAllow
		if u.was.Provider != "" {
			r.Credential = &v1alpha1.CredentialRef{Provider: u.was.Provider, Scope: u.was.Scope}
		}
		if u.record.Human != nil {
			r.When = "human.present"
		}
	}
	if u.was.Verdict == policy.Allow.String() && r.Action == v1alpha1.ActionPassthrough {
		r.Action = v1alpha1.ActionAllow
	}
	r.Name = cmp.Or(r.Name, q.Host)
	r.Hosts = []string{q.Host}
	r.Ports = []int{q.Port}
	r.Protocols = []string{cmp.Or(q.Protocol, policy.HTTP)}
	if r.Credential != nil {
		c := *r.Credential
		r.Credential = &c
		if u.was.Verdict != policy.Inject.String() || c.Provider != u.was.Provider {
			r.Credential = nil
			if u.was.Provider != "" {
				r.Credential = &v1alpha1.CredentialRef{Provider: u.was.Provider, Scope: u.was.Scope}
			}
		}
	} else if u.was.Provider != "" {
		r.Credential = &v1alpha1.CredentialRef{Provider: u.was.Provider, Scope: u.was.Scope}
	}
	return r
}

// plain takes off a rule what the loader fills in.
func (d *draft) plain(r *v1alpha1.Rule) {
	if r.AgentCredential == v1alpha1.AgentCredentialsStrip {
		r.AgentCredential = ""
	}
	if r.AnswerCredentials == v1alpha1.AnswersSeal {
		r.AnswerCredentials = ""
	}
	if r.Durability == d.b.opts.Bundle.Config.Spec.Audit.Durability {
		r.Durability = ""
	}
}

// present is a rule of the policy in force.
func (d *draft) present(of, name string) *v1alpha1.Rule {
	b := d.b.opts.Bundle
	if b == nil {
		return nil
	}
	for i := range b.Policies {
		p := &b.Policies[i]
		if nameOf(p) != of {
			continue
		}
		for j := range p.Spec.Rules {
			if p.Spec.Rules[j].Name == name {
				return &p.Spec.Rules[j]
			}
		}
	}
	return nil
}

var notInNames = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

// name gives each rule a name of its own.
func (d *draft) name() {
	taken := map[string]int{}
	for _, r := range d.rules {
		base := strings.Trim(notInNames.ReplaceAllString(r.Name, "-"), "-._")
		base = cmp.Or(strings.Trim(base[:min(len(base), maxName)], "-._"), "rule")
		taken[base]++
		r.Name = base
		for n := taken[base]; n > 1; n++ {
			r.Name = fmt.Sprintf("%s-%d", base, n)
			if taken[r.Name] == 0 {
				taken[r.Name] = 1
				break
			}
		}
	}
}

// policy is the draft as a document.
func (d *draft) policy() v1alpha1.AccessPolicy {
	name := d.agent[strings.LastIndexByte(d.agent, '/')+1:]
	name = strings.Trim(regexp.MustCompile(`[^a-z0-9.-]+`).ReplaceAllString(strings.ToLower(name), "-"), "-.")
	p := v1alpha1.AccessPolicy{
		TypeMeta: v1alpha1.TypeMeta{APIVersion: v1alpha1.APIVersion, Kind: v1alpha1.KindAccessPolicy},
		Metadata: v1alpha1.ObjectMeta{Name: "suggested-" + cmp.Or(name[:min(len(name), 200)], "agent"), Namespace: d.namespace()},
		Spec:     v1alpha1.AccessPolicySpec{Workloads: []v1alpha1.WorkloadSelector{{SPIFFEID: d.agent}}},
	}
	for _, r := range d.rules {
		p.Spec.Rules = append(p.Spec.Rules, r.Rule)
	}
	p.Spec.Destinations = d.destinations()
	return p
}

// destinations are those of the present policies that say how hosts of the
// draft's rules are reached.
func (d *draft) destinations() []v1alpha1.Destination {
	b := d.b.opts.Bundle
	if b == nil {
		return nil
	}
	var out []v1alpha1.Destination
	for i := range b.Policies {
		for _, dest := range b.Policies[i].Spec.Destinations {
			used := slices.ContainsFunc(d.rules, func(r *ruleDraft) bool {
				return strings.HasPrefix(r.from, nameOf(&b.Policies[i])+"/") && policy.HostMatches(dest.Host, r.Hosts[0]) && (dest.Port == 0 || slices.Contains(r.Ports, dest.Port))
			})
			same := func(o v1alpha1.Destination) bool {
				return o.Host == dest.Host && o.Port == dest.Port && o.Scheme == dest.Scheme
			}
			if used && !slices.ContainsFunc(out, same) {
				out = append(out, dest)
			}
		}
	}
	return out
}

// nameOf is how decisions name a policy.
func nameOf(p *v1alpha1.AccessPolicy) string {
	switch {
	case p.Kind == v1alpha1.KindClusterAccessPolicy:
		return "cluster:" + p.Metadata.Name
	case p.Metadata.Namespace != "":
		return p.Metadata.Namespace + "/" + p.Metadata.Name
	}
	return p.Metadata.Name
}

// namespace is the agent's, if the present documents have any.
func (d *draft) namespace() string {
	b := d.b.opts.Bundle
	if b == nil || len(d.rules) == 0 || len(d.rules[0].uses) == 0 {
		return ""
	}
	ns := d.rules[0].uses[0].record.Workload.Namespace
	for i := range b.Policies {
		if b.Policies[i].Metadata.Namespace == ns {
			return ns
		}
	}
	return ""
}

// bundle is the draft with the present providers, or with stand-ins for those
// that are not known.
func (d *draft) bundle() *api.Bundle {
	b := &api.Bundle{Grants: map[string]*v1alpha1.NamespaceGrant{}, Version: "suggestion"}
	known := map[string]bool{}
	if o := d.b.opts.Bundle; o != nil {
		b.Config, b.Providers, b.Grants, b.Place, b.Generations = o.Config, slices.Clone(o.Providers), o.Grants, o.Place, o.Generations
		for i := range o.Providers {
			known[o.Providers[i].Metadata.Name] = true
		}
	}
	stand := map[string]*v1alpha1.CredentialProvider{}
	for _, r := range d.rules {
		if r.Credential == nil || known[r.Credential.Provider] {
			continue
		}
		p := stand[r.Credential.Provider]
		if p == nil {
			p = &v1alpha1.CredentialProvider{TypeMeta: v1alpha1.TypeMeta{Kind: v1alpha1.KindCredentialProvider}, Metadata: v1alpha1.ObjectMeta{Name: r.Credential.Provider}, Spec: v1alpha1.CredentialProviderSpec{JWT: &v1alpha1.JWT{}}}
			if u := r.uses[0].record.Credential; u != nil && u.AWS != nil {
				p.Spec.JWT, p.Spec.AWS = nil, &v1alpha1.AWS{}
			}
			stand[r.Credential.Provider] = p
		}
		q := r.uses[0].record.Request
		p.Spec.Destinations = append(p.Spec.Destinations, v1alpha1.Destination{Host: q.Host, Port: q.Port, Scheme: q.Scheme})
	}
	for _, name := range slices.Sorted(maps.Keys(stand)) {
		b.Providers = append(b.Providers, *stand[name])
	}
	b.Policies = []v1alpha1.AccessPolicy{d.policy()}
	return b
}

// ask decides every use by the draft. Rules that a use needs another flag of
// get it, and the answer is true: ask again.
func (d *draft) ask(p *replay.Replay) (again bool) {
	for _, r := range d.rules {
		for _, u := range r.uses {
			now, _, why := p.Decide(&u.record)
			if why != "" || now.Opens() {
				continue
			}
			switch {
			case strings.Contains(now.Reason, "credentialCall: true") && !r.CredentialCall:
				r.CredentialCall, again = true, true
			case strings.HasSuffix(now.Reason, "the rule has no rawPaths") && !r.RawPaths:
				r.RawPaths, again = true, true
			}
		}
	}
	return again
}

// check flags rules as their uses need, and returns the uses that the draft
// denies all the same, with why.
func (d *draft) check() (map[*use]string, error) {
	var p *replay.Replay
	for range 3 {
		var err error
		if p, err = replay.New(d.bundle(), replay.Options{PathOK: d.b.opts.PathOK}); err != nil {
			return nil, fmt.Errorf("the suggestion does not compile: %w", err)
		}
		if !d.ask(p) {
			break
		}
	}
	lost := map[*use]string{}
	for _, r := range d.rules {
		for _, u := range r.uses {
			if now, _, why := p.Decide(&u.record); why == "" && !now.Opens() {
				lost[u] = "no rule would allow it: " + now.Reason
			}
		}
	}
	return lost, nil
}

// opens looks for calls that were denied and that the draft would open. Their
// host's paths are written out, which is what again tells; where that is done
// already, the uses are returned without which they stay denied.
func (d *draft) opens(p *replay.Replay, literal bool) (lost map[*use]string, again bool) {
	lost = map[*use]string{}
	for _, k := range slices.Sorted(maps.Keys(d.b.denied)) {
		x := d.b.denied[k]
		now, _, why := p.Decide(&x.record)
		if why != "" || !now.Opens() {
			continue
		}
		if host := x.record.Request.Host; !literal && !d.exact[host] {
			d.exact[host], again = true, true
			continue
		}
		i := slices.IndexFunc(d.rules, func(r *ruleDraft) bool { return r.Name == now.Rule })
		if i < 0 {
			continue
		}
		same := slices.DeleteFunc(slices.Clone(d.rules[i].uses), func(u *use) bool { return u.request() != x.request() })
		switch {
		case slices.ContainsFunc(same, func(u *use) bool { return u.last.After(x.last) }): // allowed since
		case len(same) > 0:
			for _, u := range same {
				lost[u] = "the same call was denied later"
			}
		default:
			for _, u := range d.rules[i].uses {
				lost[u] = "a rule for it would open what was denied"
			}
		}
	}
	return lost, again
}
