package reconcile

import (
	"encoding/json"

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
}

func newLastGood() *lastGood {
	return &lastGood{memory: map[api.Ref]api.Object{}, stored: map[api.Ref]api.Object{}}
}

func (l *lastGood) good(o api.Object) { l.memory[o.Ref()] = o }

func (l *lastGood) forget(r api.Ref) {
	delete(l.memory, r)
	delete(l.stored, r)
}

// read takes what an object's status says.
func (l *lastGood) read(ref api.Ref, u *unstructured.Unstructured) {
	delete(l.stored, ref)
	generation, _, _ := unstructured.NestedInt64(u.Object, "status", "inForce", "generation")
	spec, ok, _ := unstructured.NestedMap(u.Object, "status", "inForce", "spec")
	if !ok || generation <= 0 {
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

// inForceChanged reports whether the leader stored another stand-in.
func inForceChanged(a, b *unstructured.Unstructured) bool {
	x, _, _ := unstructured.NestedInt64(a.Object, "status", "inForce", "generation")
	y, _, _ := unstructured.NestedInt64(b.Object, "status", "inForce", "generation")
	_, xs, _ := unstructured.NestedFieldNoCopy(a.Object, "status", "inForce", "spec")
	_, ys, _ := unstructured.NestedFieldNoCopy(b.Object, "status", "inForce", "spec")
	return ys && (!xs || x != y)
}
