package reconcile

import (
	"encoding/json"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/attache-dev/attache/api"
)

// lastGood remembers objects as they were when they had no mistakes. The loop
// alone uses it.
type lastGood struct {
	memory map[api.Ref]api.Object
	// stored are those in status.inForce, which the leader writes while a newer
	// generation is bad: what replicas agree on, and know after a restart.
	stored map[api.Ref]api.Object
	// was is the generation that status says was in force, where it does not
	// say what that was.
	was map[api.Ref]int64
}

func newLastGood() *lastGood {
	return &lastGood{memory: map[api.Ref]api.Object{}, stored: map[api.Ref]api.Object{}, was: map[api.Ref]int64{}}
}

func (l *lastGood) good(o api.Object) { l.memory[o.Ref()] = o }

func (l *lastGood) forget(r api.Ref) {
	delete(l.memory, r)
	delete(l.stored, r)
	delete(l.was, r)
}

// read takes what an object's status says.
func (l *lastGood) read(ref api.Ref, u *unstructured.Unstructured) {
	delete(l.stored, ref)
	delete(l.was, ref)
	generation, _, _ := unstructured.NestedInt64(u.Object, "status", "inForce", "generation")
	spec, ok, _ := unstructured.NestedMap(u.Object, "status", "inForce", "spec")
	if !ok || generation <= 0 {
		if generation > 0 {
			l.was[ref] = generation
		}
		return
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return
	}
	l.stored[ref] = api.Object{
		Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name, Generation: generation,
		Created: u.GetCreationTimestamp().Time, Spec: data,
	}
}

func (l *lastGood) get(r api.Ref) (api.Object, bool) {
	if o, ok := l.stored[r]; ok {
		return o, true
	}
	o, ok := l.memory[r]
	return o, ok
}

// standIn is the generation that is in force in place of an object's newest,
// bad one. A name that was deleted and made again has no past.
func (l *lastGood) standIn(o *object) (api.Object, bool) {
	g, ok := l.get(o.Ref())
	return g, ok && left(o.problems) && g.Generation < o.Generation && g.Created.Equal(o.Created)
}

// lost is the generation that was in force in place of an object's bad one,
// when nobody knows any more what it said: the object was edited, or the
// checks became stricter, while no control plane ran. 0: nothing is lost.
func (l *lastGood) lost(o *object) int64 {
	_, known := l.get(o.Ref())
	bad := slices.ContainsFunc(o.problems, func(p api.Problem) bool { return !p.Reason.Unresolved() && p.Reason != api.ReasonConflicted })
	if !bad || known {
		return 0
	}
	return l.was[o.Ref()]
}

// inForceChanged reports whether the leader stored another stand-in.
func inForceChanged(a, b *unstructured.Unstructured) bool {
	x, _, _ := unstructured.NestedInt64(a.Object, "status", "inForce", "generation")
	y, _, _ := unstructured.NestedInt64(b.Object, "status", "inForce", "generation")
	_, xs, _ := unstructured.NestedFieldNoCopy(a.Object, "status", "inForce", "spec")
	_, ys, _ := unstructured.NestedFieldNoCopy(b.Object, "status", "inForce", "spec")
	return ys && (!xs || x != y)
}
