package chart

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/attache-dev/attache/test/cluster"
	"github.com/attache-dev/attache/webhook/inject"
)

// The control plane's namespace, and what the chart's default values name.
const (
	release = "attache-system"
	image   = "ghcr.io/attache-dev/attache-sidecar:0.1.0"
	control = "attache-control." + release + ".svc:8443"
)

// object is JSON.
type object = map[string]any

// agentPod is what an author writes: two containers and an init container.
func agentPod() object {
	return object{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": object{"generateName": "agent-", "labels": object{"app": "agent", "tier": "gold"}},
		"spec": object{
			"serviceAccountName": "default",
			"initContainers":     []any{object{"name": "setup", "image": "busybox"}},
			"containers":         []any{object{"name": "agent", "image": "agent"}, object{"name": "helper", "image": "helper"}},
		},
	}
}

// injected is that pod after admission.
func injected(t testing.TB, mode inject.Mode) object {
	t.Helper()
	r, err := inject.Pod(agentPod(), object{"labels": object{"attache.dev/inject": "enabled"}}, inject.Config{
		Image: image, Mode: mode, Modes: []inject.Mode{inject.Explicit, inject.Transparent}, Control: control,
		Nonce: "0123456789abcdef0123456789abcdef",
	})
	if err != nil {
		t.Fatal(err)
	}
	return r.Pod
}

// guarded is an API server with the chart's guards, and the accounts of who
// attacks it.
type guarded struct {
	*cluster.Env
	admin, eve, tenant kubernetes.Interface
	eveConfig          *rest.Config
}

// eve has what the built-in role edit gives in a namespace. No controller
// manager aggregates that role here, so its parts are bound. tenant is the
// operator of a platform: it may also write namespaces, statuses and bindings.
const accounts = `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: test-tenant}
rules:
- {apiGroups: [""], resources: [namespaces, namespaces/status, namespaces/finalize], verbs: [get, update, patch]}
- {apiGroups: [""], resources: [pods/status, pods/resize, pods/ephemeralcontainers], verbs: [get, update, patch]}
- {apiGroups: [""], resources: [pods/binding, bindings], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: test-debug}
rules:
- {apiGroups: [""], resources: [pods/ephemeralcontainers, pods/resize], verbs: [get, update, patch]}
- {apiGroups: [""], resources: [pods/exec, pods/attach, pods/portforward], verbs: [get, create]}
- {apiGroups: [""], resources: [serviceaccounts/token], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: test-tenant}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: test-tenant}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: tenant}]
`

func bind(role, user, namespace string) string {
	return fmt.Sprintf(`---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: %s-%s, namespace: %s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: %s}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: %s}]
`, user, strings.ReplaceAll(role, ":", "-"), namespace, role, user)
}

// newGuarded applies the whole chart, but for the webhook: nobody would answer
// the API server's calls here.
func newGuarded(t *testing.T) *guarded {
	t.Helper()
	g := &guarded{Env: cluster.API(t)}
	g.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+release+"}\n")
	g.apply(t, render(t, "control: {roles: [issuer, xds, broker]}\nguards: {frozenLabels: [tier]}\n", "--no-hooks"))
	g.apply(t, accounts)
	client := func(name string, groups ...string) (kubernetes.Interface, *rest.Config) {
		config, err := g.User(name, groups...)
		if err != nil {
			t.Fatal(err)
		}
		return kubernetes.NewForConfigOrDie(config), config
	}
	g.admin = kubernetes.NewForConfigOrDie(g.Config)
	g.eve, g.eveConfig = client("eve")
	g.tenant, _ = client("tenant")
	return g
}

func (g *guarded) apply(t testing.TB, text string) {
	t.Helper()
	if _, err := g.Kubectl(t.Context(), text, "apply", "--server-side", "--force-conflicts", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// namespace makes one in which eve has edit.
func (g *guarded) namespace(t testing.TB, labels map[string]string) string {
	t.Helper()
	ns := g.Namespace(t, labels)
	g.apply(t, bind("system:aggregate-to-edit", "eve", ns)+bind("system:aggregate-to-view", "eve", ns)+bind("test-debug", "eve", ns))
	return ns
}

// create makes a pod from JSON, which may have fields that our library lacks.
func create(ctx context.Context, c kubernetes.Interface, ns string, pod object) (*corev1.Pod, error) {
	body, err := json.Marshal(pod)
	if err != nil {
		return nil, err
	}
	var out corev1.Pod
	err = c.CoreV1().RESTClient().Post().Namespace(ns).Resource("pods").Body(body).
		SetHeader("Content-Type", "application/json").Do(ctx).Into(&out)
	return &out, err
}

// patch changes a pod or one of its subresources by a strategic merge.
func patch(ctx context.Context, c kubernetes.Interface, ns, pod, body string, sub ...string) error {
	_, err := c.CoreV1().Pods(ns).Patch(ctx, pod, types.StrategicMergePatchType, []byte(body), metav1.PatchOptions{}, sub...)
	return err
}

// refusal is the guards' reason in an error; "" if they are not its cause.
func refusal(err error) string {
	var status apierrors.APIStatus
	if err == nil || !apierrors.IsInvalid(err) && !apierrors.IsForbidden(err) {
		return ""
	}
	if s, ok := err.(apierrors.APIStatus); ok {
		status = s
	}
	if status == nil || !strings.Contains(status.Status().Message, "ValidatingAdmissionPolicy '") {
		return ""
	}
	return status.Status().Message
}

// waitActive returns once the API server evaluates the policies: it takes
// seconds, and a policy that is not active yet admits everything.
func waitActive(t testing.TB, what string, denied func() string) {
	t.Helper()
	await(t, "until "+what+" is active", func() bool { return denied() != "" })
}

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited 90s %s", what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// edit changes a pod by path: keys of objects, and names of list members.
func edit(pod object, change func(object), path ...string) {
	o := pod
	for i := 0; i < len(path); i++ {
		switch v := o[path[i]].(type) {
		case object:
			o = v
		case []any:
			i++
			at := slices.IndexFunc(v, func(m any) bool { return m.(object)["name"] == path[i] })
			o = v[at].(object)
		case nil:
			next := object{}
			o[path[i]] = next
			o = next
		default:
			panic(fmt.Sprintf("edit: %v is a %T", path[:i+1], v))
		}
	}
	change(o)
}

func appendTo(o object, key string, members ...any) {
	list, _ := o[key].([]any)
	o[key] = append(slices.Clone(list), members...)
}
