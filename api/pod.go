package api

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// Pod is what of a pod decides which objects concern it.
type Pod struct {
	SPIFFEID       string
	Namespace      string
	ServiceAccount string
	Labels         map[string]string // as they were at admission
}

// Selection is what concerns one pod.
type Selection struct {
	// Documents are what the sidecar loads ([PlacePod]). The same objects always
	// give the same bytes.
	Documents []byte
	// Bundle is what the documents say. Its Version is their digest.
	Bundle *Bundle
	// Audiences are those of the JWT-SVIDs that the providers need, sorted; see
	// [AllowsAudience].
	Audiences []string
	// ClientIDs are those of RFC 7523 client assertions that are not the pod's
	// SPIFFE ID, sorted.
	ClientIDs []string
	Objects   []Ref // those in Documents
	// Problems are mistakes that only these objects together have. Others are
	// those of the Catalog.
	Problems map[Ref]Problems
}

// ForPod is [NewCatalog] and [Catalog.ForPod] for a single pod.
func ForPod(objects Objects, pod Pod) (*Selection, error) {
	c, err := NewCatalog(objects)
	if err != nil {
		return nil, err
	}
	return c.ForPod(pod)
}

// ForPod selects the objects that concern a pod: policies of its namespace and
// of the cluster that select it, and the providers that their rules name.
//
// Providers come from the pod's namespace, or from the cluster where they
// allow the namespace. An object that conflicts with an older one in this pod
// is left out. It fails only if the documents are too large.
func (c *Catalog) ForPod(pod Pod) (*Selection, error) {
	all := c.concerned(pod)
	withheld := c.withheld(pod.Namespace)
	s := &Selection{Problems: map[Ref]Problems{}}
	for {
		l := newLoader(PlacePod)
		l.withheld = withheld
		read(l, c.podConfig())
		for _, o := range all {
			read(l, in(pod.Namespace, o))
		}
		l.check()
		if len(l.problems) == 0 {
			break
		}
		for _, p := range l.problems {
			p.Position = Position{}
			s.Problems[p.Ref.Object()] = append(s.Problems[p.Ref.Object()], p)
		}
		all = without(all, l.problems, withheld)
	}
	s.render(c.podConfig())
	for _, o := range all {
		s.render(in(pod.Namespace, o))
		s.Objects = append(s.Objects, o.Ref())
	}
	var err error
	if s.Bundle, err = ParseFor(PlacePod, "documents", s.Documents); err != nil {
		return nil, fmt.Errorf("documents of pods in namespace %s: %w", pod.Namespace, err)
	}
	s.describe()
	return s, nil
}

// render adds an object to the documents.
func (s *Selection) render(o *Object) {
	data, err := renderObject(o, o.Spec)
	if err != nil {
		panic("api: " + o.Ref().String() + ": " + err.Error()) // it was read before
	}
	s.Documents = append(s.Documents, data...)
}

// concerned lists the objects that concern a pod, those of the cluster first.
func (c *Catalog) concerned(pod Pod) []*Object {
	usable := map[string]candidate{}
	for _, p := range c.granted(pod.Namespace) {
		usable[p.Name] = p
	}
	spaces := []*space{c.spaces[""], c.spaces[pod.Namespace]}
	if pod.Namespace == "" || spaces[1] == nil {
		spaces[1] = &space{}
	}
	for _, p := range spaces[1].providers {
		usable[p.Name] = p
	}
	var policies []*Object
	used := map[string]bool{}
	for _, space := range spaces {
		for _, p := range space.policies {
			if !selectsPod(&p.doc.policy.Spec, pod) {
				continue
			}
			policies = append(policies, p.Object)
			for _, r := range p.doc.policy.Spec.Rules {
				if r.Credential != nil {
					used[r.Credential.Provider] = true
				}
			}
		}
	}
	var all []*Object
	for _, p := range slices.Concat(c.granted(pod.Namespace), spaces[1].providers) {
		if used[p.Name] && usable[p.Name].Object == p.Object {
			all = append(all, p.Object)
		}
	}
	return append(all, policies...)
}

// podConfig is what a sidecar must know of the cluster's configuration. The
// rest, such as who owns which namespace, is nobody's business there.
func (c *Catalog) podConfig() *Object {
	o := c.parsed[Ref{Kind: v1alpha1.KindAttacheConfig, Name: ConfigName}]
	spec := json.RawMessage("{}")
	if o != nil {
		spec = o.Spec
	}
	for _, field := range []string{"workload", "identity", "admin", "cluster"} {
		spec = replace(spec, field, nil)
	}
	n := c.config.Cluster.Nameservers
	if len(n) == 0 {
		for _, a := range c.objects.Nameservers {
			n = append(n, a.String())
		}
	}
	if len(n) > 0 {
		spec = replace(spec, "cluster", map[string]any{"nameservers": n})
	}
	return &Object{Kind: v1alpha1.KindAttacheConfig, Name: ConfigName, Spec: replace(spec, "trustDomain", c.config.TrustDomain)}
}

// replace sets a field of a JSON object, or removes it where value is nil.
func replace(object json.RawMessage, field string, value any) json.RawMessage {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(object, &m); err != nil || m == nil {
		return object // no object: the loader says so
	}
	delete(m, field)
	if value != nil {
		b, err := json.Marshal(value)
		if err != nil {
			panic("api: marshal " + field + ": " + err.Error()) // text and lists of it
		}
		m[field] = b
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic("api: marshal object: " + err.Error()) // it was unmarshalled before
	}
	return b
}

// selectsPod reports whether a policy of the cluster or of the pod's namespace
// speaks of the pod.
func selectsPod(s *v1alpha1.AccessPolicySpec, pod Pod) bool {
	targeted := len(s.TargetRefs) == 0
	for _, t := range s.TargetRefs {
		switch t.Kind {
		case TargetNamespace:
			targeted = targeted || t.Name == pod.Namespace
		case TargetServiceAccount:
			targeted = targeted || t.Name == pod.ServiceAccount
		}
	}
	return targeted && (len(s.Workloads) == 0 || slices.ContainsFunc(s.Workloads, func(w v1alpha1.WorkloadSelector) bool { return selectsWorkload(&w, pod) }))
}

func selectsWorkload(w *v1alpha1.WorkloadSelector, pod Pod) bool {
	if prefix, ok := strings.CutSuffix(w.SPIFFEID, "/*"); ok {
		if !strings.HasPrefix(pod.SPIFFEID, prefix+"/") {
			return false
		}
	} else if w.SPIFFEID != "" && w.SPIFFEID != pod.SPIFFEID {
		return false
	}
	if len(w.Namespaces) > 0 && !slices.Contains(w.Namespaces, pod.Namespace) ||
		len(w.ServiceAccounts) > 0 && !slices.Contains(w.ServiceAccounts, pod.ServiceAccount) {
		return false
	}
	for k, v := range w.MatchLabels {
		if got, ok := pod.Labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// LabelKeys lists the labels of pods that policies select by, sorted. They
// must not change while a pod lives.
func (c *Catalog) LabelKeys() []string {
	var keys []string
	for _, s := range c.spaces {
		for _, p := range s.policies {
			for _, w := range p.doc.policy.Spec.Workloads {
				for k := range w.MatchLabels {
					keys = append(keys, k)
				}
			}
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// describe fills in what follows from the bundle.
func (s *Selection) describe() {
	s.Audiences = audiences(s.Bundle)
	for i := range s.Bundle.Providers {
		if o := s.Bundle.Providers[i].Spec.OAuth2; o != nil && o.ClientAuth == ClientAuthPrivateKeyJWT && o.ClientID != "" {
			s.ClientIDs = append(s.ClientIDs, o.ClientID)
		}
	}
	slices.Sort(s.ClientIDs)
	s.ClientIDs = slices.Compact(s.ClientIDs)
}

// audiences are those that the providers of a bundle ask JWT-SVIDs for.
func audiences(b *Bundle) []string {
	var list []string
	denied := map[Ref]bool{} // rules
	for _, p := range b.Unresolved {
		p.Ref.Field, _, _ = strings.Cut(p.Ref.Field, "]")
		denied[p.Ref] = true
	}
	refs := map[string][]*v1alpha1.Rule{}
	for i := range b.Policies {
		p, rules := &b.Policies[i], b.Policies[i].Spec.Rules
		for j := range rules {
			at := Ref{p.Kind, p.Metadata.Namespace, p.Metadata.Name, fmt.Sprintf("spec.rules[%d", j)}
			if rules[j].Credential != nil && !denied[at] {
				refs[rules[j].Credential.Provider] = append(refs[rules[j].Credential.Provider], &rules[j])
			}
		}
	}
	for i := range b.Providers {
		p := &b.Providers[i]
		if NeedsBroker(&p.Spec) {
			continue
		}
		list = append(list, providerAudiences(&p.Spec)...)
		if p.Spec.JWT != nil {
			for _, r := range refs[p.Metadata.Name] {
				list = append(list, ruleAudiences(p.Spec.JWT, r)...)
			}
		}
	}
	slices.Sort(list)
	return slices.DeleteFunc(slices.Compact(list), func(a string) bool { return a == "" })
}

// providerAudiences are those that do not depend on rules.
func providerAudiences(s *v1alpha1.CredentialProviderSpec) []string {
	switch o := s.OAuth2; {
	case o != nil:
		return []string{cmp.Or(o.AssertionAudience, o.Issuer, o.TokenEndpoint)} // as minting/oauth2
	case s.APIKey != nil && s.APIKey.Vault != nil:
		return []string{cmp.Or(s.APIKey.Vault.Audience, s.APIKey.Vault.Address)}
	case s.AWS != nil && s.AWS.TokenFile == "" && s.AWS.RolesAnywhere == nil:
		return []string{s.AWS.Audience}
	}
	return nil
}

// ruleAudiences are those of minting/jwtsvid: the rule's, the provider's or
// the host's own.
func ruleAudiences(j *v1alpha1.JWT, r *v1alpha1.Rule) []string {
	if a := cmp.Or(r.Credential.Audience, j.Audience); a != "" {
		return []string{a}
	}
	var list []string
	for _, h := range r.Hosts {
		if strings.Contains(h, ":") { // IPv6
			h = "[" + h + "]"
		}
		list = append(list, "https://"+h)
	}
	return list
}

// AllowsAudience reports whether a JWT-SVID may have the audience. An entry
// such as https://*.example.com stands for the hosts that it covers.
func AllowsAudience(audiences []string, audience string) bool {
	if slices.Contains(audiences, audience) {
		return !strings.Contains(audience, "*")
	}
	host, ok := strings.CutPrefix(audience, "https://")
	if !ok || strings.Contains(host, "*") || checkHost(host) != "" {
		return false
	}
	return slices.ContainsFunc(audiences, func(a string) bool {
		pattern, ok := strings.CutPrefix(a, "https://")
		_, wild := wildcard(pattern)
		return ok && wild && covers(pattern, host)
	})
}
