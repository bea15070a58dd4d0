package api

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// ConfigName is the name of the AttacheConfig of a cluster; others are not
// looked at.
const ConfigName = "default"

// Object is a custom resource as the API server has it.
type Object struct {
	Kind, Namespace, Name string
	Generation            int64
	Created               time.Time // of conflicting objects the older one stays
	Spec                  json.RawMessage
}

// Ref names the object.
func (o *Object) Ref() Ref { return Ref{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name} }

// Objects are all that a cluster says of who may call what.
type Objects struct {
	List []Object
	// Namespaces holds the labels of each namespace, by name.
	Namespaces map[string]map[string]string
	// TrustDomain is the control plane's own; it stands in every pod's
	// documents. Empty: the AttacheConfig's.
	TrustDomain string
	// Nameservers are the cluster's resolvers, where the AttacheConfig names
	// none: without any a sidecar takes those of its pod, which are its author's.
	Nameservers []netip.Addr
	// Check finds the mistakes that package policy does (its Compile). An error
	// of type [Problems] blames objects; any other is the caller's. Nil finds none.
	Check func(*Bundle) error
}

// Catalog is a set of [Objects] whose mistakes were found. It is immutable and
// safe for concurrent use.
type Catalog struct {
	objects  Objects
	parsed   map[Ref]*Object
	problems map[Ref]Problems
	config   v1alpha1.AttacheConfigSpec
	err      error // of Check
	// spaces holds what is good, by namespace; "" is what belongs to none.
	spaces map[string]*space
}

// space is one namespace.
type space struct {
	inputs    [sha256.Size]byte // what it was made of
	providers []candidate
	policies  []candidate
	found     Problems
}

// candidate is an object without mistakes.
type candidate struct {
	*Object
	doc document
}

// NewCatalog finds the mistakes of each object: of its own and with those that
// it can meet in a pod. An object with mistakes of its own is left out, and
// nothing else is. Its error is the one of [Objects.Check] that blames nobody.
func NewCatalog(objects Objects) (*Catalog, error) { return (&Catalog{}).Next(objects) }

// Next is [NewCatalog] after some objects changed: only their namespaces are
// looked at again. Check must be the same.
func (before *Catalog) Next(objects Objects) (*Catalog, error) {
	c := &Catalog{objects: objects, parsed: map[Ref]*Object{}, problems: map[Ref]Problems{}, spaces: map[string]*space{}}
	byKind := map[string][]*Object{}
	for i := range objects.List {
		o := &objects.List[i]
		byKind[o.Kind] = append(byKind[o.Kind], o)
	}
	for _, list := range byKind {
		slices.SortFunc(list, older)
	}
	c.config = c.readConfig(byKind[v1alpha1.KindAttacheConfig])
	c.addSpace(before, "", byKind[v1alpha1.KindClusterCredentialProvider], byKind[v1alpha1.KindClusterAccessPolicy])
	names := map[string]bool{}
	spaces := map[string][2][]*Object{}
	for i, kind := range []string{v1alpha1.KindCredentialProvider, v1alpha1.KindAccessPolicy} {
		for _, o := range byKind[kind] {
			s := spaces[o.Namespace]
			s[i] = append(s[i], o)
			spaces[o.Namespace], names[o.Namespace] = s, true
		}
	}
	for ns := range names {
		if ns != "" { // which the API server allows for no such kind
			c.addSpace(before, ns, spaces[ns][0], spaces[ns][1])
		}
	}
	if c.err != nil {
		return nil, c.err
	}
	return c, nil
}

// older sorts the objects of one kind: of two that conflict the later is left
// out.
func older(a, b *Object) int {
	return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// Problems lists the mistakes of objects, by their Ref without a field.
// Objects that lack nothing are not in it. Mistakes whose Reason is unresolved
// leave the object in force but for the rule that has them.
func (c *Catalog) Problems() map[Ref]Problems { return c.problems }

// Config is the cluster's configuration with defaults.
func (c *Catalog) Config() v1alpha1.AttacheConfigSpec { return c.config }

func (c *Catalog) readConfig(list []*Object) v1alpha1.AttacheConfigSpec {
	spec := defaultConfig(PlacePod).Spec
	for _, o := range list {
		if o.Name != ConfigName {
			c.blame(Problem{Ref: o.Ref(), Text: fmt.Sprintf("metadata.name: is %s; the cluster's AttacheConfig is called %s, others are not looked at", quote(o.Name), ConfigName)})
			continue
		}
		l := newLoader(PlacePod)
		read(l, o)
		l.check()
		if c.blameAll(l.problems); len(l.problems) == 0 && len(l.docs) == 1 {
			spec = l.docs[0].config.Spec
			c.parsed[o.Ref()] = o
		}
	}
	if c.objects.TrustDomain != "" {
		spec.TrustDomain = c.objects.TrustDomain
	}
	return spec
}

// read adds an object to a loader.
func read(l *loader, o *Object) {
	data, err := renderObject(o, o.Spec)
	if err != nil {
		l.problems = append(l.problems, Problem{Ref: o.Ref(), Text: "spec: " + err.Error()})
		return
	}
	before := len(l.problems)
	l.add("", "", data)
	for i := before; i < len(l.problems); i++ {
		if l.problems[i].Ref.Kind == "" { // it is no YAML
			field := l.problems[i].Ref.Field
			l.problems[i].Ref = o.Ref()
			l.problems[i].Ref.Field = field
		}
	}
}

// addSpace finds what is good in a namespace, or in the cluster's own objects.
func (c *Catalog) addSpace(before *Catalog, ns string, providers, policies []*Object) {
	withheld, reserved := c.withheld(ns), c.reservations(ns)
	var all []*Object
	for _, p := range c.granted(ns) { // first, so that others are blamed for conflicts
		all = append(all, in(ns, p.Object))
	}
	all = slices.Concat(all, providers, policies)
	s := &space{inputs: inputsOf(all, withheld, reserved)}
	if old := before.spaces[ns]; old != nil && old.inputs == s.inputs {
		s = old
	} else {
		c.judge(s, ns, all, withheld, reserved)
	}
	c.spaces[ns] = s
	c.blameAll(s.found)
}

// judge fills in what is good and what is not.
func (c *Catalog) judge(s *space, ns string, all []*Object, withheld map[string]Problem, reserved []reservation) {
	for {
		l := newLoader(PlacePod)
		l.withheld, l.reservations = withheld, reserved
		for _, o := range all {
			read(l, o)
		}
		l.checkAlone()
		bad := l.problems
		if len(bad) == 0 {
			bad = c.compile(l.bundle())
		}
		if len(bad) == 0 {
			s.found = append(s.found, l.unresolved...)
			s.keep(ns, l, all)
			return
		}
		s.found = append(s.found, bad...)
		all = without(all, bad, withheld)
	}
}

// inputsOf is a digest of all that judge looks at.
func inputsOf(all []*Object, withheld map[string]Problem, reserved []reservation) [sha256.Size]byte {
	h := sha256.New()
	for _, o := range all {
		writeJSON(h, []any{o.Kind, o.Namespace, o.Name, len(o.Spec)})
		h.Write(o.Spec)
	}
	for _, name := range slices.Sorted(maps.Keys(withheld)) {
		writeJSON(h, []string{name, withheld[name].Text})
	}
	for _, r := range reserved {
		writeJSON(h, []any{r.owner, r.audience, r.hosts, r.reach})
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// in is an object as a namespace sees it: a provider of the cluster grants that
// namespace.
func in(ns string, o *Object) *Object {
	if o.Kind != v1alpha1.KindClusterCredentialProvider || ns == "" {
		return o
	}
	seen := *o
	seen.Spec = replace(o.Spec, "allowedNamespaces", v1alpha1.NamespaceGrant{Names: []string{ns}})
	return &seen
}

// without leaves out the objects that are blamed; all of them if nobody is.
func without(all []*Object, bad Problems, withheld map[string]Problem) []*Object {
	blamed := map[Ref]bool{}
	for _, p := range bad {
		blamed[p.Ref.Object()] = true
	}
	rest := slices.DeleteFunc(slices.Clone(all), func(o *Object) bool {
		gone := blamed[o.Ref()]
		if gone && isProvider(o.Kind) {
			if _, known := withheld[o.Name]; !known {
				withheld[o.Name] = Problem{Reason: ReasonProviderNotFound, Text: fmt.Sprintf("is %s, which is not accepted; its status says why", o.Ref())}
			}
		}
		return gone
	})
	if len(rest) == len(all) {
		return nil
	}
	return rest
}

func isProvider(kind string) bool {
	return kind == v1alpha1.KindCredentialProvider || kind == v1alpha1.KindClusterCredentialProvider
}

// compile asks Check for mistakes that it blames on objects.
func (c *Catalog) compile(b *Bundle) Problems {
	if c.objects.Check == nil {
		return nil
	}
	err := c.objects.Check(b)
	if found, ok := errors.AsType[Problems](err); ok && len(found) > 0 {
		return found
	}
	c.err = cmp.Or(c.err, err)
	return nil
}

// keep notes what is good.
func (s *space) keep(ns string, l *loader, all []*Object) {
	byRef := map[Ref]*Object{}
	for _, o := range all {
		byRef[o.Ref()] = o
	}
	for _, d := range l.docs {
		o := byRef[d.ref]
		switch {
		case d.ref.Namespace != ns: // the cluster's, in a namespace
		case d.provider != nil:
			s.providers = append(s.providers, candidate{o, d})
		case d.policy != nil:
			s.policies = append(s.policies, candidate{o, d})
		}
	}
}

// granted lists the cluster's providers that a namespace may use.
func (c *Catalog) granted(ns string) []candidate {
	var list []candidate
	if s := c.spaces[""]; s != nil && ns != "" {
		for _, p := range s.providers {
			if Granted(p.doc.grant, ns, c.labels(ns)) {
				list = append(list, p)
			}
		}
	}
	return list
}

// withheld says why a namespace cannot use other providers of the cluster.
func (c *Catalog) withheld(ns string) map[string]Problem {
	out := map[string]Problem{}
	s := c.spaces[""]
	if s == nil || ns == "" {
		return out
	}
	for _, p := range s.providers {
		if !Granted(p.doc.grant, ns, c.labels(ns)) {
			out[p.Name] = Problem{Reason: ReasonRefNotPermitted, Text: fmt.Sprintf("is ClusterCredentialProvider %s, which namespace %s may not use; ask its owner for an entry in spec.allowedNamespaces", quote(p.Name), quote(ns))}
		}
	}
	return out
}

// reservations are the audiences of all the cluster's providers, which those
// of a namespace cannot send elsewhere.
func (c *Catalog) reservations(ns string) []reservation {
	s := c.spaces[""]
	if s == nil || ns == "" {
		return nil
	}
	var list []reservation
	for _, p := range s.providers {
		for _, cl := range claims(&p.doc.provider.Spec) {
			list = append(list, reservation{cl, p.Ref()})
		}
	}
	return list
}

// labels are those of a namespace, with the one that each has.
func (c *Catalog) labels(ns string) map[string]string {
	labels := map[string]string{}
	for k, v := range c.objects.Namespaces[ns] {
		labels[k] = v
	}
	labels[nameLabel] = ns
	return labels
}

func (c *Catalog) blame(p Problem) {
	p.Position = Position{}
	ref := p.Ref.Object()
	if !slices.Contains(c.problems[ref], p) {
		c.problems[ref] = append(c.problems[ref], p)
	}
}

func (c *Catalog) blameAll(ps Problems) {
	for _, p := range ps {
		c.blame(p)
	}
}

// renderObject writes an object with another spec as a document, always alike.
func renderObject(o *Object, spec json.RawMessage) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(spec))
	dec.UseNumber()
	var value any
	if err := dec.Decode(&value); err != nil {
		return nil, fmt.Errorf("is no JSON: %w", err)
	}
	meta := map[string]any{"name": o.Name}
	if o.Namespace != "" {
		meta["namespace"] = o.Namespace
	}
	data, err := json.MarshalIndent(map[string]any{"apiVersion": v1alpha1.APIVersion, "kind": o.Kind, "metadata": meta, "spec": value}, "", " ")
	if err != nil {
		return nil, err
	}
	return slices.Concat([]byte("---\n"), data, []byte("\n")), nil
}
