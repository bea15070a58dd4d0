package reconcile

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/crd"
)

// object is a custom resource as it was read last.
type object struct {
	api.Object
	uid, version string // version is the resourceVersion it was converted at
	print        string // tells this content from any other
	// problems are those of the newest generation.
	problems api.Problems
	// inForce is the generation that pods get; 0: none.
	inForce int64
	// lost is the generation that was in force and is not known any more.
	lost int64
}

// readObjects brings e.objects up to date with the cache.
func (e *Engine) readObjects(ctx context.Context) error {
	seen := map[api.Ref]bool{}
	for _, kind := range crd.PolicyKinds() {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(crd.Kind(kind + "List"))
		if err := e.Cache.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return fmt.Errorf("list %s: %w", kind, err)
		}
		for i := range list.Items {
			u := &list.Items[i]
			if !u.GetDeletionTimestamp().IsZero() {
				continue
			}
			ref := api.Ref{Kind: kind, Namespace: u.GetNamespace(), Name: u.GetName()}
			seen[ref] = true
			old := e.objects[ref]
			if old != nil && old.version == u.GetResourceVersion() {
				continue
			}
			if old != nil && old.uid != string(u.GetUID()) {
				e.lastGood.forget(ref)
				old = nil
			}
			e.lastGood.read(ref, u)
			if old != nil && old.Generation == u.GetGeneration() {
				old.version = u.GetResourceVersion()
				continue
			}
			spec, err := json.Marshal(u.Object["spec"])
			if err != nil {
				return fmt.Errorf("%s %s/%s: %w", kind, ref.Namespace, ref.Name, err)
			}
			o := &object{uid: string(u.GetUID()), version: u.GetResourceVersion(), Object: api.Object{
				Kind: kind, Namespace: ref.Namespace, Name: ref.Name, Generation: u.GetGeneration(),
				Created: u.GetCreationTimestamp().Time, Spec: spec,
			}}
			o.print = fmt.Sprintf("%s/%s/%s/%s/%d", kind, ref.Namespace, ref.Name, o.uid, o.Generation)
			if old != nil {
				o.problems, o.inForce = old.problems, old.inForce
			}
			e.objects[ref] = o
		}
	}
	for ref := range e.objects {
		if !seen[ref] {
			delete(e.objects, ref)
			e.lastGood.forget(ref)
		}
	}
	return nil
}

// readNamespaces returns the labels of each namespace and which are opted in.
func (e *Engine) readNamespaces(ctx context.Context) (map[string]map[string]string, error) {
	list := &corev1.NamespaceList{}
	if err := e.Cache.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	out := make(map[string]map[string]string, len(list.Items))
	for i := range list.Items {
		out[list.Items[i].Name] = list.Items[i].Labels
	}
	return out, nil
}

// space is one namespace's objects, checked: or the cluster's own.
type space struct {
	print   string
	catalog *api.Catalog
	keys    []string // labels that policies select by
	// effective are the objects that the catalog was made of, by ref: the
	// newest, or the last good.
	effective map[api.Ref]api.Object
	shared    map[string]*group // by service account and labels
	// held says why no documents can be made: what was in force is lost, and
	// without it pods might do more than they could.
	held bool
}

// fingerprint tells a set of objects, what of the last good stands in for
// them, and more, from any other.
func (e *Engine) fingerprint(list []*object, more ...string) string {
	h := sha256.New()
	slices.SortFunc(list, func(a, b *object) int { return cmp.Compare(a.print, b.print) })
	for _, o := range list {
		write(h, o.print)
		if g, ok := e.lastGood.get(o.Ref()); ok {
			write(h, fmt.Sprint(g.Generation))
		}
	}
	for _, m := range more {
		write(h, m)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func write(h hash.Hash, s string) { _, _ = fmt.Fprintf(h, "%d:%s,", len(s), s) }

func flat(m map[string]string) string {
	h := sha256.New()
	for _, k := range slices.Sorted(maps.Keys(m)) {
		write(h, k)
		write(h, m[k])
	}
	return hex.EncodeToString(h.Sum(nil))
}

// check makes the space of a list of objects. What has mistakes is replaced
// by its last good generation, where there is one.
func (e *Engine) check(ns string, own []*object, shared map[api.Ref]api.Object, labels map[string]string) (*space, error) {
	build := func(pick func(*object) api.Object) (*api.Catalog, map[api.Ref]api.Object, error) {
		effective := map[api.Ref]api.Object{}
		var list []api.Object
		for _, o := range shared {
			list = append(list, o)
		}
		for _, o := range own {
			p := pick(o)
			list = append(list, p)
			effective[o.Ref()] = p
		}
		c, err := api.NewCatalog(api.Objects{List: list, Namespaces: map[string]map[string]string{ns: labels}, TrustDomain: e.TrustDomain, Nameservers: e.Nameservers, Check: e.Check})
		return c, effective, err
	}
	c, effective, err := build(func(o *object) api.Object { return o.Object })
	if err != nil {
		return nil, err
	}
	problems := c.Problems()
	stands := false
	for _, o := range own {
		o.problems = problems[o.Ref()]
		if !left(o.problems) {
			continue
		}
		if _, ok := e.lastGood.standIn(o); ok {
			stands = true
		}
	}
	if stands {
		if c, effective, err = build(func(o *object) api.Object {
			if g, ok := e.lastGood.standIn(o); ok {
				return g
			}
			return o.Object
		}); err != nil {
			return nil, err
		}
		problems = c.Problems()
	}
	held := false
	for _, o := range own {
		if o.lost = e.lastGood.lost(o); o.lost > 0 {
			held = true
		}
		if left(problems[o.Ref()]) {
			o.inForce = 0
			delete(effective, o.Ref())
			continue
		}
		o.inForce = effective[o.Ref()].Generation
		if o.inForce == o.Generation {
			e.lastGood.good(o.Object)
		}
	}
	return &space{catalog: c, keys: c.LabelKeys(), effective: effective, shared: map[string]*group{}, held: held}, nil
}

// left reports whether an object is left out for its mistakes. A reference
// that leads nowhere closes only the rule that has it.
func left(ps api.Problems) bool {
	return slices.ContainsFunc(ps, func(p api.Problem) bool { return !p.Reason.Unresolved() })
}
