package chart

import (
	"context"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"sigs.k8s.io/yaml"
)

func requestToken(ctx context.Context, c kubernetes.Interface, ns, audience string, to *corev1.Pod) error {
	r := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{"first", audience}}}
	if to != nil {
		r.Spec.Audiences = []string{audience}
		r.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: to.Name, UID: to.UID}
	}
	_, err := c.CoreV1().ServiceAccounts(ns).CreateToken(ctx, "default", r, metav1.CreateOptions{})
	return err
}

func label(ctx context.Context, c kubernetes.Interface, ns, body string, sub ...string) error {
	_, err := c.CoreV1().Namespaces().Patch(ctx, ns, types.MergePatchType, []byte(body), metav1.PatchOptions{}, sub...)
	return err
}

// namespaceChange is something that whoever may write namespaces does to one
// that is opted in.
type namespaceChange struct {
	name, number string
	want         string
	sub          string
	body         string
	verb         string // on injection.attache.dev that allows it
}

const (
	onlyDisable = "may turn injection off"
	onlyOptOut  = "may let pods opt out"
	onlyMode    = "may turn transparent mode off"
	onlyOwner   = "are changed by who has the verb configure"
)

var namespaceChanges = []namespaceChange{
	{"no opt-in", "11", onlyDisable, "", `{"metadata":{"labels":{"attache.dev/inject":null}}}`, "disable"},
	{"another value of the opt-in", "11", onlyDisable, "", `{"metadata":{"labels":{"attache.dev/inject":"off"}}}`, "disable"},
	{"no opt-in, by status", "", onlyDisable, "status", `{"metadata":{"labels":{"attache.dev/inject":null}}}`, "disable"},
	{"pods may opt out", "", onlyOptOut, "", `{"metadata":{"labels":{"attache.dev/allow-opt-out":"true"}}}`, "disable"},
	{"pods may opt out, by status", "", onlyOptOut, "status", `{"metadata":{"labels":{"attache.dev/allow-opt-out":"true"}}}`, "disable"},
	{"explicit instead of transparent", "", onlyMode, "", `{"metadata":{"labels":{"attache.dev/mode":"explicit"}}}`, "disable"},
	{"no mode", "", onlyMode, "", `{"metadata":{"labels":{"attache.dev/mode":null}}}`, "disable"},
	{"another owner", "", onlyOwner, "", `{"metadata":{"annotations":{"attache.dev/owner":"ceo"}}}`, "configure"},
	{"no owner", "", onlyOwner, "", `{"metadata":{"annotations":{"attache.dev/owner":null}}}`, "configure"},
	{"an empty owner", "", onlyOwner, "", `{"metadata":{"annotations":{"attache.dev/new":""}}}`, "configure"},
	{"a label of ours that is not known yet", "", onlyOwner, "", `{"metadata":{"labels":{"attache.dev/new":"x"}}}`, "configure"},
}

// A namespace that is opted in stays so, with what was said of it, unless
// somebody has the right to change that.
func TestNamespaceGuards(t *testing.T) {
	g := newGuarded(t)
	ctx := t.Context()
	fresh := func(t *testing.T) string {
		ns := g.Namespace(t, map[string]string{"attache.dev/inject": "enabled", "attache.dev/mode": "transparent"})
		if err := label(ctx, g.admin, ns, `{"metadata":{"annotations":{"attache.dev/owner":"team"}}}`); err != nil {
			t.Fatal(err)
		}
		return ns
	}
	// Each probe has a namespace of its own: one that is admitted changes it.
	waitActive(t, "the guard of namespaces", func() string {
		return refusal(label(ctx, g.tenant, fresh(t), `{"metadata":{"labels":{"attache.dev/allow-opt-out":"true"}}}`))
	})
	for _, c := range namespaceChanges {
		t.Run("deny "+c.name, func(t *testing.T) {
			ns := fresh(t)
			if got := refusal(label(ctx, g.tenant, ns, c.body, subs(c.sub)...)); !strings.Contains(got, c.want) {
				t.Errorf("got %q, want a refusal with %q", got, c.want)
			}
			// Who has the right, has it in that namespace.
			g.apply(t, `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: test-`+c.verb+`}
rules: [{apiGroups: [attache.dev], resources: [injection], verbs: [`+c.verb+`]}]
`+bind("test-"+c.verb, "tenant", ns))
			await(t, "until the right is known", func() bool { return label(ctx, g.tenant, ns, c.body, subs(c.sub)...) == nil })
		})
	}
	for _, c := range []namespaceChange{
		{name: "a label", body: `{"metadata":{"labels":{"team":"x"}}}`},
		{name: "an annotation", body: `{"metadata":{"annotations":{"note":"x"}}}`},
		{name: "a condition", sub: "status", body: `{"status":{"conditions":[{"type":"x","status":"True"}]}}`},
		{name: "what it is already", body: `{"metadata":{"labels":{"attache.dev/inject":"enabled","attache.dev/mode":"transparent"},"annotations":{"attache.dev/owner":"team"}}}`},
	} {
		t.Run("admit "+c.name, func(t *testing.T) {
			if err := label(ctx, g.tenant, fresh(t), c.body, subs(c.sub)...); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("admit a namespace that is not opted in", func(t *testing.T) {
		ns := g.Namespace(t, map[string]string{"attache.dev/mode": "transparent"})
		if err := label(ctx, g.tenant, ns, `{"metadata":{"labels":{"attache.dev/inject":"enabled","attache.dev/mode":null,"attache.dev/allow-opt-out":"true"}}}`); err != nil {
			t.Error(err)
		}
	})
	t.Run("finalizers", func(t *testing.T) {
		// The subresource takes the whole object.
		ns := fresh(t)
		o, err := g.tenant.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = g.tenant.CoreV1().Namespaces().Finalize(ctx, o, metav1.UpdateOptions{}); err != nil {
			t.Errorf("a namespace could not be deleted: %v", err)
		}
		delete(o.Labels, "attache.dev/inject")
		if _, err = g.tenant.CoreV1().Namespaces().Finalize(ctx, o, metav1.UpdateOptions{}); !strings.Contains(refusal(err), onlyDisable) {
			t.Errorf("got %v, want a refusal with %q", err, onlyDisable)
		}
	})
	t.Run("frozen labels", func(t *testing.T) {
		g.apply(t, asYAML(t, policies(t, render(t, "guards: {frozenNamespaceLabels: [team, cost]}\n"))["attache-namespaces"]))
		for _, body := range []string{`{"metadata":{"labels":{"team":"x"}}}`, `{"metadata":{"labels":{"cost":"x"}}}`} {
			waitActive(t, "the guard of labels", func() string {
				got := refusal(label(ctx, g.tenant, fresh(t), body))
				if got != "" && !strings.Contains(got, "decide which providers the namespace gets") {
					t.Fatal(got)
				}
				return got
			})
		}
		if err := label(ctx, g.tenant, fresh(t), `{"metadata":{"labels":{"other":"x"}}}`); err != nil {
			t.Error(err)
		}
		g.apply(t, asYAML(t, policies(t, render(t, ""))["attache-namespaces"]))
		await(t, "until labels are free again", func() bool { return label(ctx, g.tenant, fresh(t), `{"metadata":{"labels":{"team":"x"}}}`) == nil })
	})
	// The guard is what refuses: each validation, taken out, lets the change pass.
	policy := policies(t, render(t, ""))["attache-namespaces"]
	for _, want := range []string{onlyDisable, onlyOptOut, onlyMode, onlyOwner} {
		t.Run("without "+want, func(t *testing.T) {
			g.apply(t, asYAML(t, without(t, policy, want)))
			defer func() {
				g.apply(t, asYAML(t, policy))
			}()
			for _, c := range namespaceChanges {
				if c.want != want {
					continue
				}
				ns := fresh(t)
				await(t, "until "+c.name+" passes", func() bool { return label(ctx, g.tenant, ns, c.body, subs(c.sub)...) == nil })
			}
		})
		// And it is back, for the next.
		for _, c := range namespaceChanges {
			if c.want == want {
				waitActive(t, "the whole guard again", func() string { return refusal(label(ctx, g.tenant, fresh(t), c.body, subs(c.sub)...)) })
				break
			}
		}
	}
}

func asYAML(t testing.TB, o object) string {
	t.Helper()
	b, err := yaml.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Tokens with our audience are for nodes, in any namespace.
func TestTokenGuard(t *testing.T) {
	g := newGuarded(t)
	ctx := t.Context()
	const want = "only nodes may ask for it"
	ns := g.namespace(t, map[string]string{"attache.dev/inject": "enabled"})
	elsewhere := g.namespace(t, nil)
	for name, namespace := range map[string]string{"in the namespace": ns, "elsewhere": elsewhere} {
		t.Run("deny "+name, func(t *testing.T) {
			var got string
			waitActive(t, "the guard of tokens", func() string {
				got = refusal(requestToken(ctx, g.eve, namespace, "attache.dev", nil))
				return got
			})
			if !strings.Contains(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
	t.Run("deny a bound token", func(t *testing.T) {
		p, err := create(ctx, g.admin, ns, injected(t, ""))
		if err != nil {
			t.Fatal(err)
		}
		if err := requestToken(ctx, g.eve, ns, "attache.dev", p); !strings.Contains(refusal(err), want) {
			t.Errorf("got %v, want a refusal", err)
		}
	})
	t.Run("deny who is only called like a node", func(t *testing.T) {
		config, err := g.User("system:node:impostor")
		if err != nil {
			t.Fatal(err)
		}
		g.apply(t, bind("test-debug", "system:node:impostor", ns))
		impostor := kubernetes.NewForConfigOrDie(config)
		await(t, "until the right is known", func() bool { return requestToken(ctx, impostor, ns, "vault", nil) == nil })
		if err := requestToken(ctx, impostor, ns, "attache.dev", nil); !strings.Contains(refusal(err), want) {
			t.Errorf("got %v, want a refusal", err)
		}
	})
	t.Run("admit another audience", func(t *testing.T) {
		if err := requestToken(ctx, g.eve, ns, "vault", nil); err != nil {
			t.Error(err)
		}
	})
	t.Run("admit the node", func(t *testing.T) {
		node, err := g.User("system:node:n1", "system:nodes")
		if err != nil {
			t.Fatal(err)
		}
		pod := injected(t, "")
		onSpec(set("nodeName", "n1"))(pod)
		p, err := create(ctx, g.admin, ns, pod)
		if err != nil {
			t.Fatal(err)
		}
		kubelet := kubernetes.NewForConfigOrDie(node)
		var last error
		await(t, "until the node's authorizer knows the pod", func() bool {
			last = requestToken(ctx, kubelet, ns, "attache.dev", p)
			if got := refusal(last); got != "" {
				t.Fatal(got)
			}
			return last == nil
		})
	})
	t.Run("without the guard", func(t *testing.T) {
		policy := policies(t, render(t, ""))["attache-tokens"]
		g.apply(t, asYAML(t, without(t, policy, want)))
		await(t, "until the request passes", func() bool { return requestToken(ctx, g.eve, ns, "attache.dev", nil) == nil })
		g.apply(t, asYAML(t, policy))
		waitActive(t, "the guard again", func() string { return refusal(requestToken(ctx, g.eve, ns, "attache.dev", nil)) })
	})
}

// While its parameters are gone, the guard refuses what it cannot judge.
func TestGuardWithoutParameters(t *testing.T) {
	g := newGuarded(t)
	ctx := t.Context()
	ns := g.namespace(t, map[string]string{"attache.dev/inject": "enabled"})
	await(t, "until pods are admitted", func() bool {
		_, err := create(ctx, g.eve, ns, injected(t, ""))
		return err == nil
	})
	maps := g.admin.CoreV1().ConfigMaps(release)
	params, err := maps.Get(ctx, "attache-guard", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := maps.Delete(ctx, params.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, "until pods are refused", func() bool {
		_, err := create(ctx, g.eve, ns, injected(t, ""))
		return err != nil && strings.Contains(err.Error(), "no params found")
	})
	// An upgrade: the control plane adds the image of the templates before.
	params.ResourceVersion, params.UID = "", ""
	params.Data["images"] = "registry.example/attache-sidecar:next\n"
	params.Data["images.accepted"] = "registry.example/attache-sidecar:last\n" + image
	if _, err := maps.Create(ctx, params, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	defer g.apply(t, render(t, "control: {roles: [issuer, xds, broker]}\nguards: {frozenLabels: [tier]}\n", "--no-hooks"))
	for _, next := range []string{"next", "last", ""} {
		pod := injected(t, "")
		if next != "" {
			onSidecar(set("image", "registry.example/attache-sidecar:"+next))(pod)
		}
		await(t, "until a pod of version "+next+" is admitted", func() bool {
			_, err := create(ctx, g.eve, ns, pod)
			return err == nil
		})
	}
}

// Through nodes/proxy nobody gets into the sidecar, nor at its memory.
func TestNodeGuard(t *testing.T) {
	g := newGuarded(t)
	ctx := t.Context()
	do := func(path string) error {
		return g.admin.CoreV1().RESTClient().Post().AbsPath("/api/v1/nodes/n1/proxy" + path).Do(ctx).Error()
	}
	const want = "nobody may exec in, attach to or checkpoint"
	waitActive(t, "the guard of nodes", func() string { return refusal(do("/exec/ns/pod/attache-sidecar")) })
	for _, path := range []string{
		"/exec/ns/pod/attache-sidecar", "/exec/ns/pod/uid/attache-redirect", "/run/ns/pod/attache-sidecar", "/attach/ns/pod/attache-sidecar",
		"/checkpoint/ns/pod/attache-sidecar", "//checkpoint/ns/pod/attache-sidecar", "/exec/ns/pod/%2561ttache-sidecar",
	} {
		if err := do(path); !strings.Contains(refusal(err), want) {
			t.Errorf("%s: got %v, want a refusal", path, err)
		}
	}
	harmless := []string{"/exec/ns/pod/agent", "/metrics", "/containerLogs/ns/pod/attache-sidecar", ""}
	for _, path := range harmless {
		if err := do(path); refusal(err) != "" || err == nil || !strings.Contains(err.Error(), `nodes "n1" not found`) {
			t.Errorf("%s: got %v, want only that there is no such node", path, err)
		}
	}
	policy := policies(t, render(t, ""))["attache-nodes"]
	g.apply(t, asYAML(t, without(t, policy, want)))
	await(t, "until it passes", func() bool { return refusal(do("/exec/ns/pod/attache-sidecar")) == "" })
	g.apply(t, asYAML(t, policy))
	waitActive(t, "the guard again", func() string { return refusal(do("/exec/ns/pod/attache-sidecar")) })
}

// Of all that is wrong the author reads the first: it must be the cause.
func TestCauseComesFirst(t *testing.T) {
	g := newGuarded(t)
	ctx := t.Context()
	ns := g.namespace(t, map[string]string{"attache.dev/inject": "enabled"})
	waitActive(t, "the guard", func() string {
		_, err := create(ctx, g.eve, ns, agentPod())
		return refusal(err)
	})
	for want, change := range map[string]func(object){
		"spec.hostNetwork: is true": onSpec(set("hostNetwork", true)),
		badOptOut:                   func(p object) { edit(p, set("attache.dev/inject", "false"), "metadata", "labels") },
		missing:                     func(object) {},
		badMirror: func(p object) {
			p["metadata"] = object{"generateName": "x-", "annotations": object{"kubernetes.io/config.mirror": "x"}}
			onSpec(func(s object) { s["nodeName"] = "n1"; delete(s, "serviceAccountName") })(p)
		},
	} {
		pod := agentPod()
		change(pod)
		if _, err := create(ctx, g.eve, ns, pod); !strings.Contains(refusal(err), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// A pod that the API refuses for reasons of its own is told those.
func TestInvalidPods(t *testing.T) {
	g := newGuarded(t)
	ctx := t.Context()
	ns := g.namespace(t, map[string]string{"attache.dev/inject": "enabled"})
	canary := agentPod()
	waitActive(t, "the guard", func() string {
		_, err := create(ctx, g.eve, ns, canary)
		return refusal(err)
	})
	// What the guards leave to the API.
	for want, change := range map[string]func(object){
		"must not contain '..'": hostPath("/srv/../var/lib/kubelet"),
		"block mode":            onAgent(set("volumeDevices", []any{object{"name": "attache-state", "devicePath": "/d"}})),
	} {
		pod := injected(t, "")
		change(pod)
		if _, err := create(ctx, g.eve, ns, pod); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	for name, change := range map[string]func(object){
		"no containers":        onSpec(set("containers", []any{})),
		"sidecar of no image":  onSidecar(func(c object) { delete(c, "image") }),
		"volume of no kind":    addVolume(object{"name": "x"}),
		"path of no host path": addVolume(object{"name": "x", "hostPath": object{}}),
		"mount of no path":     onAgent(mount(object{"name": "attache-trust"})),
		"port of no number":    onAgent(set("ports", []any{object{}})),
		"no metadata":          func(p object) { p["metadata"] = object{"name": "x"} },
		"nulls": onSpec(func(s object) {
			s["volumes"], s["initContainers"], s["securityContext"], s["nodeSelector"] = nil, nil, nil, nil
		}),
	} {
		pod := injected(t, "")
		change(pod)
		if _, err := create(ctx, g.eve, ns, pod); err != nil && strings.Contains(err.Error(), "resulted in error") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
