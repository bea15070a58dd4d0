package chart

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/attache-dev/attache/webhook/inject"
)

// target is a pod that the attacker finds running in a namespace.
type target struct {
	g       *guarded
	ns, pod string
}

// podChange is something done to a running pod, or to what leads to it.
type podChange struct {
	name, number string
	policy, want string // want "" for harmless ones
	do           func(ctx context.Context, t target) error
	// otherwise is in the API server's own answer to what cannot be done here
	// even when the guards let it pass.
	otherwise string
	// uninjected says that the pod has no sidecar: it is older than the opt-in.
	uninjected bool
	// userns gives the pod a user namespace, for which it is in explicit mode.
	userns bool
}

func eve(sub, body string) func(context.Context, target) error {
	return func(ctx context.Context, t target) error { return patch(ctx, t.g.eve, t.ns, t.pod, body, subs(sub)...) }
}

func tenant(sub, body string) func(context.Context, target) error {
	return func(ctx context.Context, t target) error {
		return patch(ctx, t.g.tenant, t.ns, t.pod, body, subs(sub)...)
	}
}

func subs(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

func debug(fields string) func(context.Context, target) error {
	return eve("ephemeralcontainers", `{"spec":{"ephemeralContainers":[{"name":"debug","image":"x"`+fields+`}]}}`)
}

// connect opens an exec, attach or port-forward; the answer of a server whose
// pod has no node is an error of its own.
func connect(sub string, query ...string) func(context.Context, target) error {
	return func(ctx context.Context, t target) error {
		r := t.g.eve.CoreV1().RESTClient().Post().Namespace(t.ns).Resource("pods").Name(t.pod).SubResource(sub)
		for _, q := range query {
			k, v, _ := strings.Cut(q, "=")
			r = r.Param(k, v)
		}
		return r.Do(ctx).Error()
	}
}

const noNode = "does not have a host assigned"

func binding(meta metav1.ObjectMeta) func(context.Context, target) error {
	return func(ctx context.Context, t target) error {
		meta := *meta.DeepCopy()
		meta.Name = t.pod
		return t.g.tenant.CoreV1().Pods(t.ns).Bind(ctx, &corev1.Binding{
			ObjectMeta: meta, Target: corev1.ObjectReference{Kind: "Node", Name: "n1"},
		}, metav1.CreateOptions{})
	}
}

const (
	immutable    = "attache-sidecar and attache-redirect cannot be changed"
	frozenLabel  = "frozen once the pod is made; change the template"
	frozenLabels = "labels that policies select on are frozen"
	frozenNotes  = "those that begin with attache.dev/ are frozen"
	noExec       = "nobody may exec in or attach to"
	noForward    = "port-forward reaches the sidecar's own ports"
	tellsNode    = "are told by the pod's node alone"
	noBinding    = "a binding may not bring"
	noTarget     = "is the sidecar, whose processes nobody may see"
	noMount      = "attache-spool are the sidecar's"
	noMount2     = "attache-spool and attache-none are the sidecar's"
)

var podChanges = []podChange{
	{name: "another image for the sidecar", number: "9", policy: "attache-pod-updates", want: immutable,
		do: eve("", `{"spec":{"initContainers":[{"name":"attache-sidecar","image":"evil"}]}}`)},
	{name: "another image for the redirect", number: "9", policy: "attache-pod-updates", want: immutable,
		do: eve("", `{"spec":{"initContainers":[{"name":"attache-redirect","image":"evil"}]}}`)},
	{name: "a starved sidecar", number: "10", policy: "attache-pod-updates", want: immutable,
		do: eve("resize", `{"spec":{"initContainers":[{"name":"attache-sidecar","resources":{"requests":{"cpu":"1m"},"limits":{"cpu":"1m"}}}]}}`)},
	{name: "a label that policies select on", policy: "attache-pod-updates", want: frozenLabels, do: eve("", `{"metadata":{"labels":{"tier":"platinum"}}}`)},
	{name: "no label that policies select on", policy: "attache-pod-updates", want: frozenLabels, do: eve("", `{"metadata":{"labels":{"tier":null}}}`)},
	{name: "a label that policies select on, by status", policy: "attache-pod-updates", want: frozenLabels, do: tenant("status", `{"metadata":{"labels":{"tier":"platinum"}}}`)},
	{name: "opted out once it runs", policy: "attache-pod-updates", want: frozenLabels, do: eve("", `{"metadata":{"labels":{"attache.dev/inject":"false"}}}`)},
	{name: "another owner", policy: "attache-pod-updates", want: frozenNotes, do: eve("", `{"metadata":{"annotations":{"attache.dev/owner":"ceo"}}}`)},
	{name: "no status annotation", policy: "attache-pod-updates", want: frozenNotes, do: eve("", `{"metadata":{"annotations":{"attache.dev/status":null}}}`)},
	{name: "another status annotation, by status", policy: "attache-pod-updates", want: frozenNotes, do: tenant("status", `{"metadata":{"annotations":{"attache.dev/status":"{}"}}}`)},

	{name: "ephemeral container that sees the sidecar", number: "2", policy: "attache-ephemeral", want: noTarget, do: debug(`,"targetContainerName":"attache-sidecar"`)},
	{name: "ephemeral container that mounts the token", number: "2", policy: "attache-ephemeral", want: noMount2, do: debug(`,"volumeMounts":[{"name":"attache-token","mountPath":"/t"}]`)},
	{name: "ephemeral container that mounts the state", number: "2", policy: "attache-ephemeral", want: noMount2, do: debug(`,"volumeMounts":[{"name":"attache-state","mountPath":"/t"}]`)},
	{name: "ephemeral container that writes the bundle", policy: "attache-ephemeral", want: noMount2, do: debug(`,"volumeMounts":[{"name":"attache-trust","mountPath":"/t"}]`)},
	{name: "ephemeral container as the sidecar", number: "2", policy: "attache-ephemeral", want: badUID, do: debug(`,"securityContext":{"runAsUser":64200}`)},
	{name: "ephemeral container with privileges", policy: "attache-ephemeral", want: badPriv, do: debug(`,"securityContext":{"privileged":true}`)},
	{name: "ephemeral container with SYS_PTRACE", policy: "attache-ephemeral", want: badCap, do: debug(`,"securityContext":{"capabilities":{"add":["SYS_PTRACE"]}}`)},

	{name: "ephemeral container with an unmasked proc", policy: "attache-ephemeral", want: "is Unmasked", userns: true, do: debug(`,"securityContext":{"procMount":"Unmasked"}`)},

	{name: "an address of another pod's", policy: "attache-pod-status", want: tellsNode, do: tenant("status", `{"status":{"podIPs":[{"ip":"10.0.0.9"}],"podIP":"10.0.0.9"}}`)},
	{name: "another image in the status", policy: "attache-pod-status", want: tellsNode,
		do: tenant("status", `{"status":{"containerStatuses":[{"name":"agent","image":"good","imageID":"sha256:good","ready":true,"restartCount":0}]}}`)},
	{name: "a sidecar that did not restart", policy: "attache-pod-status", want: tellsNode,
		do: tenant("status", `{"status":{"initContainerStatuses":[{"name":"attache-sidecar","image":"x","imageID":"x","ready":true,"restartCount":3}]}}`)},

	{name: "annotations by a binding", policy: "attache-bindings", want: noBinding, do: binding(metav1.ObjectMeta{Annotations: map[string]string{"attache.dev/owner": "ceo"}})},
	{name: "labels by a binding", policy: "attache-bindings", want: noBinding, do: binding(metav1.ObjectMeta{Labels: map[string]string{"tier": "platinum"}})},

	{name: "exec in the sidecar", number: "7", policy: "attache-connect", want: noExec, otherwise: noNode, do: connect("exec", "container=attache-sidecar", "command=x", "stdout=true")},
	{name: "exec in the redirect", number: "7", policy: "attache-connect", want: noExec, otherwise: noNode, do: connect("exec", "container=attache-redirect", "command=x", "stdout=true")},
	{name: "attach to the sidecar", number: "7", policy: "attache-connect", want: noExec, otherwise: noNode, do: connect("attach", "container=attache-sidecar", "stdout=true")},
	{name: "port-forward", policy: "attache-connect", want: noForward, otherwise: noNode, do: connect("portforward")},
}

var harmlessChanges = []podChange{
	{name: "image of the agent", do: eve("", `{"spec":{"containers":[{"name":"agent","image":"agent:2"}]}}`)},
	{name: "image of an init container", do: eve("", `{"spec":{"initContainers":[{"name":"setup","image":"busybox:2"}]}}`)},
	{name: "a label that no policy selects on", do: eve("", `{"metadata":{"labels":{"app":"other","new":"x"}}}`)},
	{name: "an annotation", do: eve("", `{"metadata":{"annotations":{"note":"x"}}}`)},
	{name: "a finalizer", do: eve("", `{"metadata":{"finalizers":["example.com/x"]}}`)},
	{name: "time to live", do: eve("", `{"spec":{"activeDeadlineSeconds":3600}}`)},
	{name: "resize of the agent", do: eve("resize", `{"spec":{"containers":[{"name":"agent","resources":{"requests":{"memory":"64Mi"}}}]}}`)},
	{name: "debug", do: debug("")},
	{name: "debug of the agent's processes", do: debug(`,"targetContainerName":"agent","securityContext":{"runAsUser":1000,"capabilities":{"drop":["ALL"]}}`)},
	{name: "debug that reads the bundle", do: debug(`,"volumeMounts":[{"name":"attache-trust","mountPath":"/t","readOnly":true}]`)},
	{name: "a condition", do: tenant("status", `{"status":{"conditions":[{"type":"example.com/Gate","status":"True"}]}}`)},
	{name: "phase of a lost pod", do: tenant("status", `{"status":{"phase":"Failed","reason":"NodeLost"}}`)},
	{name: "binding", do: binding(metav1.ObjectMeta{Labels: map[string]string{"topology.kubernetes.io/zone": "a"}, Annotations: map[string]string{"note": "x"}})},
	{name: "exec in the agent", do: connect("exec", "container=agent", "command=x", "stdout=true"), otherwise: noNode},
	{name: "attach to the agent", do: connect("attach", "container=agent", "stdout=true"), otherwise: noNode},
	{name: "deletion", do: func(ctx context.Context, t target) error {
		return t.g.eve.CoreV1().Pods(t.ns).Delete(ctx, t.pod, metav1.DeleteOptions{})
	}},
	{name: "eviction", do: func(ctx context.Context, t target) error {
		return t.g.eve.CoreV1().Pods(t.ns).EvictV1(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: t.pod}})
	}},

	{name: "label of a pod older than the opt-in", uninjected: true, do: eve("", `{"metadata":{"labels":{"tier":"x","attache.dev/inject":"enabled"}}}`)},
	{name: "image of a pod older than the opt-in", uninjected: true, do: eve("", `{"spec":{"containers":[{"name":"agent","image":"agent:2"}]}}`)},
	{name: "debug of a pod older than the opt-in", uninjected: true, do: debug(`,"securityContext":{"privileged":true}`)},
	{name: "status of a pod older than the opt-in", uninjected: true, do: tenant("status", `{"status":{"podIPs":[{"ip":"10.0.0.9"}],"podIP":"10.0.0.9"}}`)},
}

// passed says that an error is not a refusal by admission: there is none, or it
// is the one that the API server gives because no node is here.
func (c podChange) passed(err error) bool {
	if c.otherwise == "" {
		return err == nil
	}
	return err != nil && strings.Contains(err.Error(), c.otherwise)
}

// Each change of a running pod is refused by the validation meant for it, and
// passes when that one alone is taken out; harmless changes pass.
func TestChangeGuards(t *testing.T) {
	g := newGuarded(t)
	ctx := t.Context()
	guards := policies(t, render(t, ""))
	names := []string{"attache-pod-updates", "attache-ephemeral", "attache-pod-status", "attache-bindings", "attache-connect"}
	mutant := func(i int) string { return fmt.Sprintf("test-change-%d", i) }
	var text strings.Builder
	for i, c := range podChanges {
		text.WriteString(only(t, without(t, guards[c.policy], c.want), mutant(i), mutant(i)))
	}
	g.apply(t, text.String())

	// found is a pod that runs in a namespace where the guards are active.
	found := func(t *testing.T, label string, c podChange) target {
		labels := map[string]string{"chart-test": label}
		ns := g.namespace(t, labels)
		pod := injected(t, inject.Transparent) // it has both of our containers
		switch {
		case c.uninjected:
			pod = agentPod()
		case c.userns:
			pod = injected(t, inject.Explicit)
			onSpec(set("hostUsers", false))(pod)
		}
		p, err := create(ctx, g.admin, ns, pod)
		if err != nil {
			t.Fatal(err)
		}
		g.apply(t, bind("test-tenant", "tenant", ns))
		if label == "" {
			// Opted in once the pod is there, as a pod older than the opt-in is.
			if _, err := g.admin.CoreV1().Namespaces().Patch(ctx, ns, types.MergePatchType, []byte(`{"metadata":{"labels":{"attache.dev/inject":"enabled"}}}`), metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
			waitActive(t, "every guard in "+ns, func() string { return g.everyGuard(ctx, t, ns) })
		} else if i := slices.IndexFunc(podChanges, func(o podChange) bool { return o.policy == c.policy && o.want != c.want }); i >= 0 {
			waitActive(t, "the mutant in "+ns, func() string { return g.refused(ctx, t, ns, podChanges[i]) })
		}
		return target{g, ns, p.Name}
	}
	for i, c := range podChanges {
		t.Run("deny "+c.name, func(t *testing.T) {
			t.Parallel()
			err := c.do(ctx, found(t, "", c))
			if got := refusal(err); !strings.Contains(got, c.want) && !(c.want == frozenLabels && strings.Contains(got, frozenLabel)) {
				t.Errorf("got %v, want a refusal with %q", err, c.want)
			}
			if err := c.do(ctx, found(t, mutant(i), c)); !c.passed(err) {
				t.Errorf("without that validation got %v, want that it passes: what else refuses it?", err)
			}
		})
	}
	for _, c := range harmlessChanges {
		t.Run("admit "+c.name, func(t *testing.T) {
			t.Parallel()
			if err := c.do(ctx, found(t, "", c)); !c.passed(err) {
				t.Error(err)
			}
		})
	}
	for _, name := range names {
		for _, v := range guards[name]["spec"].(object)["validations"].([]any) {
			hit := false
			for _, c := range podChanges {
				hit = hit || c.policy == name && strings.Contains(v.(object)["message"].(string), c.want)
			}
			if !hit {
				t.Errorf("%s: no attack on %v", name, v.(object)["message"])
			}
		}
	}
	t.Run("port-forward by who may", func(t *testing.T) {
		to := found(t, "", podChange{})
		g.apply(t, bind("attache-injection-admin", "eve", to.ns))
		await(t, "until the right is known", func() bool {
			err := connect("portforward")(ctx, to)
			return err != nil && strings.Contains(err.Error(), noNode)
		})
	})
}

// everyGuard is a refusal of each policy that speaks of running pods; "" while
// one is missing.
func (g *guarded) everyGuard(ctx context.Context, t testing.TB, ns string) string {
	var all string
	seen := map[string]bool{}
	for _, c := range podChanges {
		if seen[c.policy] {
			continue
		}
		seen[c.policy] = true
		got := g.refused(ctx, t, ns, c)
		if got == "" {
			return ""
		}
		all += got + "\n"
	}
	return all
}

// refused is how the guards refuse a change of a pod made for it.
func (g *guarded) refused(ctx context.Context, t testing.TB, ns string, c podChange) string {
	t.Helper()
	p, err := create(ctx, g.admin, ns, injected(t, inject.Transparent))
	if err != nil {
		return "" // the guard of new pods may be active before its parameters
	}
	defer func() {
		_ = g.admin.CoreV1().Pods(ns).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
	}()
	return refusal(c.do(ctx, target{g, ns, p.Name}))
}
