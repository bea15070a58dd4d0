package reconcile

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/api/crd"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/control/xds"
	"github.com/attache-dev/attache/policy"
)

// lists is a cache that has synced: it answers List alone.
type lists struct {
	cache.Cache
	pods       []corev1.Pod
	namespaces []corev1.Namespace
	objects    map[string][]unstructured.Unstructured
}

func (l *lists) List(_ context.Context, into client.ObjectList, _ ...client.ListOption) error {
	switch v := into.(type) {
	case *corev1.PodList:
		v.Items = l.pods
	case *corev1.NamespaceList:
		v.Items = l.namespaces
	case *unstructured.UnstructuredList:
		kind := v.GetObjectKind().GroupVersionKind().Kind
		v.Items = l.objects[kind[:len(kind)-len("List")]]
	default:
		return fmt.Errorf("list of %T", into)
	}
	return nil
}

func (l *lists) put(tb testing.TB, kind, ns, name string, generation int64, spec string) {
	tb.Helper()
	u := unstructured.Unstructured{Object: map[string]any{}}
	u.SetGroupVersionKind(crd.Kind(kind))
	u.SetNamespace(ns)
	u.SetName(name)
	u.SetUID(types.UID(kind + ns + name))
	u.SetGeneration(generation)
	u.SetResourceVersion(fmt.Sprint(generation))
	var m map[string]any
	if err := json.Unmarshal([]byte(spec), &m); err != nil {
		tb.Fatal(err)
	}
	u.Object["spec"] = m
	for i := range l.objects[kind] {
		if o := &l.objects[kind][i]; o.GetNamespace() == ns && o.GetName() == name {
			*o = u
			return
		}
	}
	l.objects[kind] = append(l.objects[kind], u)
}

// Thousands of pods: a change costs the namespace that it is in, and documents
// are kept once for all pods that have them.
func TestThousandsOfPods(t *testing.T) {
	const spaces, perSpace = 50, 100
	l := &lists{objects: map[string][]unstructured.Unstructured{}}
	const provider = `{"destinations":[{"host":"api.example"}],"apiKey":{"secretRef":{"name":"k","key":"k"}}}`
	const rules = `{"rules":[{"name":"r","hosts":["api.example"],"paths":["/v%d/**"],"action":"allow","credential":{"provider":"model"}}]}`
	for s := range spaces {
		ns := fmt.Sprint("team-", s)
		l.namespaces = append(l.namespaces, corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: map[string]string{api.InjectLabel: api.InjectEnabled}}})
		l.put(t, v1alpha1.KindCredentialProvider, ns, "model", 1, provider)
		for p := range 4 {
			l.put(t, v1alpha1.KindAccessPolicy, ns, fmt.Sprint("p", p), 1, fmt.Sprintf(rules, p))
		}
		for p := range perSpace {
			l.pods = append(l.pods, corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprint("agent-", p), UID: types.UID(fmt.Sprint(ns, "/", p)), ResourceVersion: "1",
					Labels: map[string]string{"app": "agent", "statefulset.kubernetes.io/pod-name": fmt.Sprint("agent-", p)}, Annotations: map[string]string{api.StatusAnnotation: "{}"}},
				Spec: corev1.PodSpec{ServiceAccountName: "default"}})
		}
	}
	described := 0
	store := xds.New(xds.Config{})
	defer store.Close()
	e, err := New(Config{
		Cache: l, Client: struct{ client.Client }{}, Store: store, Namespace: "attache-system", Replica: "a", TrustDomain: "cluster.test",
		Ping:  func(context.Context) error { return nil },
		Check: func(b *api.Bundle) error { _, err := policy.Compile(b); return err },
		Workload: func(_ context.Context, p *corev1.Pod) (*controlpb.Workload, error) {
			described++
			return &controlpb.Workload{SpiffeId: "spiffe://cluster.test/ns/" + p.Namespace + "/sa/default", Namespace: p.Namespace, ServiceAccount: "default", Pod: p.Name, PodUid: string(p.UID), Labels: p.Labels}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	pass := func() (compiled float64, took time.Duration) {
		before, started := testutil.ToFloat64(e.metrics.compiled), time.Now()
		described = 0
		if err := e.pass(t.Context()); err != nil {
			t.Fatal(err)
		}
		return testutil.ToFloat64(e.metrics.compiled) - before, time.Since(started)
	}
	var m0, m1 runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m0)
	n, cold := pass()
	if n != spaces+1 || described != spaces*perSpace {
		t.Errorf("%v namespaces were compiled and %d pods described", n, described)
	}
	runtime.GC()
	runtime.ReadMemStats(&m1)
	n, idle := pass()
	if n != 0 || described != 0 {
		t.Errorf("nothing changed, but %v namespaces were compiled and %d pods described", n, described)
	}
	a, _ := store.Bundle("team-7/0")
	other, _ := store.Bundle("team-8/0")
	l.put(t, v1alpha1.KindAccessPolicy, "team-7", "p0", 2, fmt.Sprintf(rules, 9))
	n, one := pass()
	if n != 1 || described != 0 {
		t.Errorf("one namespace changed, but %v were compiled and %d pods described", n, described)
	}
	b, _ := store.Bundle("team-7/0")
	c, _ := store.Bundle("team-7/99")
	still, _ := store.Bundle("team-8/0")
	if b.Same(a) || still != other || &b.Documents[0] != &c.Documents[0] {
		t.Error("the change is not in its namespace, or is elsewhere, or its pods share no documents")
	}
	l.pods[3].ResourceVersion = "2"
	if n, _ = pass(); n != 0 || described != 1 {
		t.Errorf("one pod changed, but %v namespaces were compiled and %d pods described", n, described)
	}
	t.Logf("%d pods in %d namespaces: first pass %v, nothing changed %v, one policy changed %v, %d KiB a pod",
		spaces*perSpace, spaces, cold.Round(time.Millisecond), idle.Round(time.Millisecond), one.Round(time.Millisecond), (m1.HeapAlloc-m0.HeapAlloc)/1024/(spaces*perSpace))
}

// What was made for pods that are gone is not kept: the labels of Jobs are new
// each time, and their author chooses them.
func TestPodsThatComeAndGo(t *testing.T) {
	l := &lists{objects: map[string][]unstructured.Unstructured{}}
	l.namespaces = []corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "team", Labels: map[string]string{api.InjectLabel: api.InjectEnabled}}}}
	l.put(t, v1alpha1.KindAccessPolicy, "team", "p", 1, `{"workloads":[{"matchLabels":{"run":"1"}}],"rules":[{"name":"r","hosts":["api.example"],"action":"allow"}]}`)
	store := xds.New(xds.Config{})
	defer store.Close()
	e, err := New(Config{
		Cache: l, Client: struct{ client.Client }{}, Store: store, Namespace: "attache-system", Replica: "a", TrustDomain: "cluster.test",
		Ping:  func(context.Context) error { return nil },
		Check: func(b *api.Bundle) error { _, err := policy.Compile(b); return err },
		Workload: func(_ context.Context, p *corev1.Pod) (*controlpb.Workload, error) {
			return &controlpb.Workload{SpiffeId: "spiffe://cluster.test/ns/team/sa/default", Namespace: p.Namespace, ServiceAccount: "default", Pod: p.Name, PodUid: string(p.UID), Labels: p.Labels}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		run := fmt.Sprint(i)
		l.pods = []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{
			Namespace: "team", Name: "job-" + run, UID: types.UID(run), ResourceVersion: "1", Labels: map[string]string{"run": run}, Annotations: map[string]string{api.StatusAnnotation: "{}"},
		}}}
		if err := e.pass(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(e.spaces["team"].shared); n != 1 {
		t.Errorf("one pod is left, and the selections of %d are kept", n)
	}
}
