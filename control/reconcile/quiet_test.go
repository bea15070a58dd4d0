package reconcile_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/api/crd"
	"github.com/attache-dev/attache/control/reconcile"
)

// What the engine writes does not make it write again, and events that change
// nothing make it write nothing.
func TestNoHotLoop(t *testing.T) {
	r := setup(t)
	a := r.replica("a", true)
	r.apply(provider + "---" + allow)
	pod := r.pod("agent", nil)
	s := r.sidecar(a, pod)
	s.Until(t, func(b *controlpb.Bundle) bool { return strings.Contains(string(b.GetDocuments()), "agents") })
	r.becomes(r.policyObject("agents"), crd.ConditionProgrammed, metav1.ConditionTrue, crd.ReasonProgrammed, "")
	prov := &crd.CredentialProvider{ObjectMeta: metav1.ObjectMeta{Namespace: r.ns, Name: "model"}}
	r.becomes(prov, crd.ConditionProgrammed, metav1.ConditionTrue, crd.ReasonProgrammed, "")
	p := r.policyObject("agents")
	r.condition(p, crd.ConditionAccepted)
	before := []string{p.ResourceVersion, prov.ResourceVersion}
	writes := a.written("agents") + a.written("model")
	// Each of these is a pass; the last shows that all were made.
	for i := range 10 {
		if err := r.client.Get(t.Context(), client.ObjectKeyFromObject(pod), pod); err != nil {
			t.Fatal(err)
		}
		pod.Annotations["n"] = fmt.Sprint(i)
		if err := r.client.Update(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	r.apply(strings.Replace(allow, "name: agents", "name: last", 1))
	last := r.policyObject("last")
	r.becomes(last, crd.ConditionProgrammed, metav1.ConditionTrue, crd.ReasonProgrammed, "")
	r.condition(p, crd.ConditionAccepted)
	r.condition(prov, crd.ConditionAccepted)
	if now := []string{p.ResourceVersion, prov.ResourceVersion}; now[0] != before[0] || now[1] != before[1] {
		t.Errorf("status was written again: %v, then %v", before, now)
	}
	if n := a.written("agents") + a.written("model") - writes; n != 0 {
		t.Errorf("status was sent %d times again", n)
	}
	s.Until(t, func(b *controlpb.Bundle) bool { return strings.Contains(string(b.GetDocuments()), `"last"`) })
}

// A root is nowhere but in its Secret: not in a bundle, a status, a report, an
// event or a pod.
func TestNoRootLeavesItsSecret(t *testing.T) {
	const root = "sk-root-that-stays-where-it-is"
	r := setup(t)
	if err := r.client.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: r.ns, Name: "model-key"}, StringData: map[string]string{"key": root}}); err != nil {
		t.Fatal(err)
	}
	a := r.replica("a", true)
	r.apply(provider + "---" + allow)
	pod := r.pod("agent", nil)
	s := r.sidecar(a, pod)
	b := s.Until(t, func(b *controlpb.Bundle) bool { return strings.Contains(string(b.GetDocuments()), "model-key") })
	r.becomes(r.policyObject("agents"), crd.ConditionProgrammed, metav1.ConditionTrue, crd.ReasonProgrammed, "")
	r.until("the report is there", func() (bool, string) {
		m := &corev1.ConfigMap{}
		err := r.client.Get(t.Context(), client.ObjectKey{Namespace: r.own, Name: "attache-xds-a"}, m)
		return err == nil, fmt.Sprint(err)
	})
	look := func(what string, v any) {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), root) || strings.Contains(fmt.Sprintf("%+v", v), root) {
			t.Errorf("%s holds the root", what)
		}
	}
	look("the bundle", string(b.GetDocuments()))
	for what, list := range map[string]client.ObjectList{
		"a pod": &corev1.PodList{}, "a ConfigMap": &corev1.ConfigMapList{}, "an event": &corev1.EventList{},
		"a policy": &crd.AccessPolicyList{}, "a provider": &crd.CredentialProviderList{},
	} {
		if err := r.client.List(t.Context(), list); err != nil {
			t.Fatal(err)
		}
		look(what, list)
	}
}

// Of a pod without a sidecar the cache keeps next to nothing, of one with a
// sidecar what posture is made of.
func TestStrip(t *testing.T) {
	full := func(annotations map[string]string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "u", Labels: map[string]string{"a": "b"}, Annotations: annotations},
			Spec:       corev1.PodSpec{NodeName: "n", ServiceAccountName: "sa", Containers: []corev1.Container{{Name: "c", Image: "i", Env: []corev1.EnvVar{{Name: "PASSWORD", Value: "x"}}, SecurityContext: &corev1.SecurityContext{}}}},
			Status:     corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{Name: "c", ImageID: "d"}}},
		}
	}
	strip := func(p *corev1.Pod) *corev1.Pod {
		o, err := reconcile.Strip(p)
		if err != nil {
			t.Fatal(err)
		}
		return o.(*corev1.Pod)
	}
	plain := strip(full(nil))
	if len(plain.Spec.Containers) > 0 || plain.UID != "u" || plain.Status.Phase != corev1.PodRunning {
		t.Errorf("without a sidecar: %+v", plain)
	}
	with := strip(full(map[string]string{api.StatusAnnotation: "{}"}))
	c := with.Spec.Containers
	if len(c) != 1 || c[0].Env != nil || c[0].SecurityContext == nil || c[0].Image != "i" || with.Spec.NodeName != "n" || len(with.Status.ContainerStatuses) != 1 || with.Labels["a"] != "b" {
		t.Errorf("with a sidecar: %+v", with)
	}
}
