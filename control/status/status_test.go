package status

import (
	"bytes"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/attache-dev/attache/api/crd"
	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/webhook/inject"
)

func digest(c string) string { return "sha256:" + strings.Repeat(c, 64) }

func injected(t *testing.T, image string) *unstructured.Unstructured {
	t.Helper()
	r, err := inject.Pod(map[string]any{"metadata": map[string]any{"name": "agent"}, "spec": map[string]any{"containers": []any{map[string]any{"name": "agent"}}}},
		map[string]any{"labels": map[string]any{"attache.dev/inject": "enabled"}}, inject.Config{Image: image, Nonce: "a nonce that is long enough"})
	if err != nil {
		t.Fatal(err)
	}
	return &unstructured.Unstructured{Object: r.Pod}
}

// The state of a pod is that of the accepted template that it has.
func TestStates(t *testing.T) {
	pinned := "registry.example/sidecar@" + digest("a")
	list, err := inject.Config{Image: pinned}.Templates()
	if err != nil {
		t.Fatal(err)
	}
	hash := list[0].Hash
	member := func(change func(*Template)) []Template {
		m := Template{Template: hash, Digest: digest("a"), Image: pinned, Current: true}
		if change != nil {
			change(&m)
		}
		return []Template{{Template: "another", Digest: digest("a")}, m}
	}
	running := func(u *unstructured.Unstructured, id string) *unstructured.Unstructured {
		u.Object["status"] = map[string]any{"initContainerStatuses": []any{map[string]any{"name": inject.SidecarName, "ready": true, "restartCount": int64(2), "imageID": id}}}
		return u
	}
	foreign := injected(t, pinned)
	foreign.Object["spec"].(map[string]any)["hostPID"] = true
	plain := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"containers": []any{}}}}
	optedOut := plain.DeepCopy()
	optedOut.SetLabels(map[string]string{"attache.dev/inject": "false"})
	for name, tt := range map[string]struct {
		pod       *unstructured.Unstructured
		templates []Template
		mayOptOut bool
		want      string
	}{
		"current":                 {injected(t, pinned), member(nil), false, Current},
		"old":                     {injected(t, pinned), member(func(m *Template) { m.Current = false }), false, Old},
		"retired":                 {injected(t, pinned), member(func(m *Template) { m.Retired = true }), false, Retired},
		"another digest":          {injected(t, pinned), member(func(m *Template) { m.Digest = digest("b") }), false, Unaccepted},
		"another shape":           {injected(t, pinned), member(func(m *Template) { m.Template = "x" }), false, Unaccepted},
		"a tag that is pinned":    {running(injected(t, "sidecar:v1"), "docker.io/sidecar@"+digest("a")), member(nil), false, Current},
		"a tag, another program":  {running(injected(t, "sidecar:v1"), "docker.io/sidecar@"+digest("c")), member(nil), false, Unaccepted},
		"a tag by name":           {injected(t, "sidecar:v1"), member(func(m *Template) { m.Digest, m.Image = "", "sidecar:v1" }), false, Current},
		"foreign":                 {foreign, member(nil), false, Foreign},
		"uninjected":              {plain, member(nil), true, Uninjected},
		"opted out":               {optedOut, member(nil), true, OptedOut},
		"opted out without leave": {optedOut, member(nil), false, Uninjected},
	} {
		r := &Report{Templates: tt.templates}
		p := r.pod(tt.pod, tt.mayOptOut, map[string]issuer.Attested{})
		if p.State != tt.want || (p.Why == "") != (tt.want == Current || tt.want == OptedOut) {
			t.Errorf("%s: %+v; want %s", name, p, tt.want)
		}
		if counted := r.Templates[1].Pods == 1; counted != (tt.want == Current || tt.want == Old || tt.want == Retired) {
			t.Errorf("%s: counted %v", name, counted)
		}
	}
	r := &Report{Templates: member(nil)}
	if p := r.pod(running(injected(t, pinned), ""), false, nil); !p.Ready || p.Restarts != 2 || p.Mode != "explicit" {
		t.Errorf("%+v", p)
	}
}

func TestObjects(t *testing.T) {
	u := &unstructured.Unstructured{Object: map[string]any{"kind": "AccessPolicy"}}
	u.SetGeneration(2)
	condition := func(kind string, s metav1.ConditionStatus, generation int64) metav1.Condition {
		return metav1.Condition{Type: kind, Status: s, ObservedGeneration: generation, Message: kind + " says why"}
	}
	o := object(u, &crd.Status{Conditions: []metav1.Condition{
		condition("Accepted", metav1.ConditionTrue, 2), condition("ResolvedRefs", metav1.ConditionFalse, 2), condition("Programmed", metav1.ConditionTrue, 1),
	}})
	if o.Accepted != "True" || o.Resolved != "False" || o.Programmed != "Unknown" || o.Message != "ResolvedRefs says why" {
		t.Errorf("%+v", o)
	}
	if o := object(u, &crd.Status{}); o.Accepted != "Unknown" {
		t.Errorf("%+v", o)
	}
}

func TestText(t *testing.T) {
	r := &Report{
		Kubernetes: "v1.37.2",
		Templates:  []Template{{Template: "abc", Image: "sidecar:v1", Since: time.Unix(0, 0), Current: true, Pods: 1}},
		Namespaces: []Namespace{{Name: "team-a", Pods: 2, By: map[string]int{Current: 1, Foreign: 1}}},
		Pods: []Pod{
			{Namespace: "team-a", Name: "good", State: Current, Ready: true, Template: "abc"},
			{Namespace: "team-a", Name: "bad", State: Foreign, Why: "first line\nsecond line"},
		},
		Objects: []Object{{Kind: "AccessPolicy", Namespace: "team-a", Name: "p", Accepted: "True", Resolved: "True", Programmed: "False", Sidecars: &crd.Sidecars{Summary: "1/2", Rejected: 1}, Message: "refused"}},
	}
	var short, all bytes.Buffer
	if err := r.Text(&short, false); err != nil {
		t.Fatal(err)
	}
	if err := r.Text(&all, true); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(short.String(), "team-a/good") || !strings.Contains(all.String(), "team-a/good") {
		t.Errorf("--all:\n%s\n%s", &short, &all)
	}
	for _, want := range []string{"team-a/bad", "first line", "1/2", "AccessPolicy team-a/p"} {
		if !strings.Contains(short.String(), want) {
			t.Errorf("no %q in\n%s", want, &short)
		}
	}
	if strings.Contains(short.String(), "second line") {
		t.Error("a table with two lines a row")
	}
	err := r.Wrong()
	if err == nil || !strings.Contains(err.Error(), "team-a/bad is foreign") || !strings.Contains(err.Error(), "AccessPolicy team-a/p: refused") {
		t.Errorf("wrong: %v", err)
	}
}
