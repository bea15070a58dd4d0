package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attache-dev/attache/control/status"
	"github.com/attache-dev/attache/test/cluster"
	"github.com/attache-dev/attache/webhook/inject"
)

// objects that the chart makes. The webhook is reached by URL: no Service has
// an address here.
const chartObjects = `
apiVersion: v1
kind: Secret
metadata: {name: attache-webhook-cert, namespace: %[1]s}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: attache-ca, namespace: %[1]s}
data: {roots.pem: "the roots"}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: attache}
webhooks:
  - name: pods.attache.dev
    clientConfig: {url: "https://localhost:%[2]s/mutate"}
    rules: [{operations: [CREATE], apiGroups: [""], apiVersions: [v1], resources: [pods], scope: Namespaced}]
    failurePolicy: Fail
    matchPolicy: Equivalent
    reinvocationPolicy: IfNeeded
    sideEffects: None
    timeoutSeconds: 5
    admissionReviewVersions: [v1]
    namespaceSelector: {matchLabels: {attache.dev/inject: enabled}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: attache}
webhooks:
  - name: objects.attache.dev
    clientConfig: {url: "https://localhost:%[2]s/validate"}
    rules: [{operations: [CREATE, UPDATE], apiGroups: [attache.dev], apiVersions: [v1alpha1], resources: ["*"], scope: "*"}]
    failurePolicy: Fail
    sideEffects: None
    timeoutSeconds: 5
    admissionReviewVersions: [v1]
`

// plane is a control plane beside a real API server.
type plane struct {
	*cluster.Env
	namespace, probes string
	kubeconfig        string
	stop              func() error // drains, and returns what serve did
	log               *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// eventually repeats f until it succeeds: caches follow the API by themselves.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

func startPlane(t *testing.T) *plane {
	t.Helper()
	e := cluster.API(t)
	if err := e.InstallCRDs(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := &plane{Env: e, namespace: e.Namespace(t, nil), probes: "127.0.0.1:" + freePort(t), log: &syncBuffer{}}
	port := freePort(t)
	p.apply(t, "", fmt.Sprintf(chartObjects, p.namespace, port))
	t.Cleanup(func() {
		_, _ = e.Kubectl(context.WithoutCancel(t.Context()), "", "delete", "mutatingwebhookconfigurations,validatingwebhookconfigurations", "attache")
	})
	kubeconfig, err := e.WriteKubeconfig("control.kubeconfig", e.Config)
	if err != nil {
		t.Fatal(err)
	}
	p.kubeconfig = kubeconfig
	c, _ := root()
	c.SetArgs([]string{
		"serve", "--roles=webhook", "--namespace=" + p.namespace, "--sidecar-image=registry.example/attache-sidecar:v1", "--leader-elect=false",
		"--kubeconfig=" + kubeconfig, "--metrics-listen=" + p.probes, "--webhook-listen=127.0.0.1:" + port, "--webhook-names=localhost",
		"--drain=100ms", "--log-level=debug",
	})
	c.SetErr(p.log)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- c.ExecuteContext(ctx) }()
	var once sync.Once
	p.stop = func() (err error) {
		once.Do(func() { cancel(); err = <-done })
		return err
	}
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			text := p.log.String()
			t.Log(text[max(0, len(text)-6000):])
		}
	})
	eventually(t, "ready", func() error {
		select {
		case err := <-done:
			done <- err
			t.Fatalf("ended: %v", err)
		default:
		}
		return p.probe("/readyz")
	})
	return p
}

func (p *plane) probe(path string) error {
	res, err := http.Get("http://" + p.probes + path) //nolint:noctx // ends with the server
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		return fmt.Errorf("%d %s %w", res.StatusCode, b, err)
	}
	return nil
}

func (p *plane) metrics(t *testing.T) string {
	t.Helper()
	res, err := http.Get("http://" + p.probes + "/metrics") //nolint:noctx // ends with the server
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (p *plane) apply(t *testing.T, ns, text string, args ...string) string {
	t.Helper()
	out, err := p.create(t, ns, text, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (p *plane) create(t *testing.T, ns, text string, args ...string) (string, error) {
	t.Helper()
	args = append([]string{"create", "-f", "-"}, args...)
	if ns != "" {
		args = append(args, "-n", ns)
	}
	return p.Kubectl(t.Context(), text, args...)
}

// pod creates one and returns what the API server made of it.
func (p *plane) pod(t *testing.T, ns, text string, args ...string) (object, error) {
	t.Helper()
	out, err := p.create(t, ns, text, append([]string{"-o", "json"}, args...)...)
	if err != nil {
		return nil, err
	}
	var o object
	if err := json.Unmarshal([]byte(out), &o); err != nil {
		t.Fatal(err)
	}
	return o, nil
}

type object = map[string]any

func (p *plane) optedIn(t *testing.T, labels ...string) string {
	t.Helper()
	m := map[string]string{"attache.dev/inject": "enabled"}
	for _, l := range labels {
		k, v, _ := strings.Cut(l, "=")
		m[k] = v
	}
	return p.Namespace(t, m)
}

func names(pod object, list string) []string {
	var out []string
	l, _ := pod["spec"].(object)[list].([]any)
	for _, v := range l {
		out = append(out, v.(object)["name"].(string))
	}
	return out
}

const plainPod = `
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: agent}}
spec:
  serviceAccountName: default
  initContainers: [{name: fetch, image: fetch}]
  containers: [{name: agent, image: agent}]
`

func TestWebhookInCluster(t *testing.T) {
	p := startPlane(t)
	ns := p.optedIn(t)

	t.Run("pods are injected", func(t *testing.T) {
		pod, err := p.pod(t, ns, fmt.Sprintf(plainPod, "first"))
		if err != nil {
			t.Fatal(err)
		}
		if got := names(pod, "initContainers"); !slices.Equal(got, []string{"attache-sidecar", "fetch"}) {
			t.Errorf("init containers: %v", got)
		}
		if _, err := inject.TemplateOf(pod); err != nil {
			t.Errorf("is not what admission makes: %v", err)
		}
		// The ServiceAccount plugin runs again after us, and finds our empty folder.
		sidecar := fmt.Sprint(pod["spec"].(object)["initContainers"].([]any)[0])
		if strings.Contains(sidecar, "kube-api-access") {
			t.Errorf("the sidecar has the API token: %s", sidecar)
		}
		if text := fmt.Sprint(pod); !strings.Contains(text, "kube-api-access") {
			t.Error("the ServiceAccount plugin did not run: the check above is void")
		}
	})

	t.Run("a dry run is the same", func(t *testing.T) {
		pod, err := p.pod(t, ns, fmt.Sprintf(plainPod, "dry"), "--dry-run=server")
		if err != nil {
			t.Fatal(err)
		}
		if got := names(pod, "initContainers"); !slices.Equal(got, []string{"attache-sidecar", "fetch"}) {
			t.Errorf("init containers: %v", got)
		}
		if _, err := p.Kubectl(t.Context(), "", "get", "pod", "-n", ns, "dry"); err == nil {
			t.Error("the dry run made a pod")
		}
	})

	t.Run("an injected pod that is applied again does not change", func(t *testing.T) {
		pod, err := p.pod(t, ns, fmt.Sprintf(plainPod, "again"))
		if err != nil {
			t.Fatal(err)
		}
		out, err := p.Kubectl(t.Context(), fmt.Sprintf(plainPod, "again"), "diff", "-n", ns, "--server-side", "--force-conflicts", "-f", "-")
		if strings.Contains(out, "attache") {
			t.Errorf("apply would change: %s, %v", out, err)
		}
		_ = pod
	})

	t.Run("other namespaces are left alone", func(t *testing.T) {
		pod, err := p.pod(t, p.Namespace(t, nil), fmt.Sprintf(plainPod, "other"))
		if err != nil {
			t.Fatal(err)
		}
		if got := names(pod, "initContainers"); !slices.Equal(got, []string{"fetch"}) {
			t.Errorf("init containers: %v", got)
		}
	})

	t.Run("refusals name field and fix", func(t *testing.T) {
		for name, c := range map[string]struct{ spec, want string }{
			"host network": {"hostNetwork: true, containers: [{name: agent, image: agent}]", "spec.hostNetwork: is true: the sidecar cannot be kept apart from the agent; remove it"},
			"our name":     {"containers: [{name: agent, image: agent}, {name: attache-sidecar, image: agent}]", "spec.containers[1].name: attache-sidecar is reserved; rename"},
			"our volume":   {"containers: [{name: agent, image: agent, volumeMounts: [{name: attache-token, mountPath: /x}]}], volumes: [{name: attache-token, emptyDir: {}}]", "is reserved"},
			"our user":     {"containers: [{name: agent, image: agent, securityContext: {runAsUser: 64200}}]", "runAsUser: is 64200, which is the sidecar's alone; choose another user"},
			"privileged":   {"containers: [{name: agent, image: agent, securityContext: {privileged: true}}]", "privileged: is true"},
		} {
			_, err := p.pod(t, ns, "{apiVersion: v1, kind: Pod, metadata: {generateName: bad-}, spec: {"+c.spec+"}}")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v; want %s", name, err, c.want)
			}
		}
	})

	t.Run("warnings reach the author", func(t *testing.T) {
		_, err := p.Kubectl(t.Context(), fmt.Sprintf(plainPod, "warned"), "create", "-n", ns, "-f", "-", "--warnings-as-errors")
		if err == nil || !strings.Contains(err.Error(), "spec.serviceAccountName: is default, which agents share") {
			t.Errorf("the default service account: %v", err)
		}
	})

	t.Run("another webhook cannot go first", p.reinvocation)
	t.Run("pod security restricted", p.restricted)
	t.Run("limit ranges and quotas", p.limits)
	t.Run("ephemeral storage", p.storage)
	t.Run("a guaranteed pod stays so", p.guaranteed)
	t.Run("events are on the owner", p.events)
	t.Run("a namespace is known at once", p.newNamespaces)
	t.Run("modes are the operator's", p.modes)

	t.Run("providers give placeholders and base URLs", p.providers)
	t.Run("objects are checked while their author waits", p.objects)

	t.Run("status tells the operator", p.status)

	t.Run("metrics", func(t *testing.T) {
		text := p.metrics(t)
		for _, want := range []string{
			`attache_admissions_total{result="injected"}`, `attache_admissions_total{result="denied"}`, "attache_admission_seconds_count",
			"attache_admission_patch_bytes_count", "attache_webhook_certificate_expiry_timestamp_seconds 1.",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("no %s", want)
			}
		}
		if strings.Contains(text, `attache_admissions_total{result="error"} 0`) == false {
			t.Error("admissions failed")
		}
	})

	t.Run("without the webhook only its namespaces suffer", func(t *testing.T) {
		if err := p.stop(); err != nil {
			t.Fatal(err)
		}
		_, err := p.pod(t, ns, fmt.Sprintf(plainPod, "down"))
		if err == nil || !strings.Contains(err.Error(), "pods.attache.dev") {
			t.Errorf("opted in: %v", err)
		}
		if _, err := p.pod(t, p.Namespace(t, nil), fmt.Sprintf(plainPod, "down")); err != nil {
			t.Errorf("not opted in: %v", err)
		}
	})
}

// reinvocation lets a second webhook, which is called after ours, put an init
// container of its own in front: ours is called again, and repairs that.
func (p *plane) reinvocation(t *testing.T) {
	var calls int
	var mu sync.Mutex
	other := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Request struct{ UID string }
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		mu.Lock()
		calls++
		mu.Unlock()
		patch := []byte(`[{"op":"add","path":"/spec/initContainers/0","value":{"name":"pushy","image":"pushy"}}]`)
		_ = json.NewEncoder(w).Encode(object{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": object{
			"uid": in.Request.UID, "allowed": true, "patchType": "JSONPatch", "patch": patch,
		}})
	}))
	defer other.Close()
	ca := pemOf(other.Certificate().Raw)
	ns := p.optedIn(t, "test.attache.dev/pushy="+strings.ToLower(t.Name()[:4]))
	p.apply(t, "", fmt.Sprintf(`
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: pushy}
webhooks:
  - name: pushy.example.com
    clientConfig: {url: %q, caBundle: %s}
    rules: [{operations: [CREATE], apiGroups: [""], apiVersions: [v1], resources: [pods]}]
    sideEffects: None
    admissionReviewVersions: [v1]
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %s}}
`, other.URL, ca, ns))
	defer func() {
		_, _ = p.Kubectl(context.WithoutCancel(t.Context()), "", "delete", "mutatingwebhookconfiguration", "pushy")
	}()
	eventually(t, "the second webhook", func() error {
		pod, err := p.pod(t, ns, fmt.Sprintf(plainPod, "pushed"), "--dry-run=server")
		if err != nil {
			t.Fatal(err)
		}
		got := names(pod, "initContainers")
		if !slices.Contains(got, "pushy") {
			return fmt.Errorf("not called yet: %v", got)
		}
		if !slices.Equal(got, []string{"attache-sidecar", "pushy", "fetch"}) {
			t.Fatalf("init containers: %v", got)
		}
		env := fmt.Sprint(pod["spec"].(object)["initContainers"].([]any)[1])
		if !strings.Contains(env, "SSL_CERT_FILE") {
			t.Errorf("the new container is not equipped: %s", env)
		}
		return nil
	})
}

func (p *plane) restricted(t *testing.T) {
	ns := p.optedIn(t, "pod-security.kubernetes.io/enforce=restricted")
	const text = `
apiVersion: v1
kind: Pod
metadata: {name: agent, annotations: {%s}}
spec:
  securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
  containers: [{name: agent, image: agent, securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}]
`
	if pod, err := p.pod(t, ns, fmt.Sprintf(text, "")); err != nil || !slices.Equal(names(pod, "initContainers"), []string{"attache-sidecar"}) {
		t.Errorf("explicit mode: %v", err)
	}
}

func (p *plane) limits(t *testing.T) {
	ns := p.optedIn(t)
	p.apply(t, ns, `
apiVersion: v1
kind: LimitRange
metadata: {name: small}
spec: {limits: [{type: Container, max: {cpu: 500m, memory: 200Mi}, maxLimitRequestRatio: {cpu: 4}}]}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: all}
spec: {hard: {limits.cpu: 4, limits.memory: 4Gi, requests.cpu: 4, requests.memory: 4Gi}}
`)
	// Nobody fills in the status here but us.
	if _, err := p.Kubectl(t.Context(), "", "patch", "resourcequota", "all", "-n", ns, "--subresource=status", "--type=merge", "-p",
		`{"status":{"hard":{"limits.cpu":"4","limits.memory":"4Gi","requests.cpu":"4","requests.memory":"4Gi"},"used":{"limits.cpu":"0","limits.memory":"0","requests.cpu":"0","requests.memory":"0"}}}`); err != nil {
		t.Fatal(err)
	}
	const text = `
apiVersion: v1
kind: Pod
metadata: {name: agent}
spec: {containers: [{name: agent, image: agent, resources: {requests: {cpu: 100m, memory: 50Mi}, limits: {cpu: 200m, memory: 100Mi}}}]}
`
	eventually(t, "a pod within the limits", func() error {
		pod, err := p.pod(t, ns, text, "--dry-run=server")
		if err != nil {
			return err
		}
		r := pod["spec"].(object)["initContainers"].([]any)[0].(object)["resources"].(object)
		if got := fmt.Sprint(r["limits"]); got != "map[cpu:500m memory:200Mi]" {
			return fmt.Errorf("limits: %s", got)
		}
		return nil
	})
}

// storage: the sidecar asks for its spool's room, and bounds it where the
// agent is bounded. The API server's LimitRange plugin runs before admission and
// again after it.
func (p *plane) storage(t *testing.T) {
	const text = `
apiVersion: v1
kind: Pod
metadata: {name: agent}
spec: {containers: [{name: agent, image: agent}]}
`
	for _, c := range []struct{ name, rangeSpec, requests, limits, volume string }{
		{"without a LimitRange", "", "320Mi", "<nil>", "256Mi"},
		{"with a default", "{type: Container, default: {ephemeral-storage: 1Gi}}", "320Mi", "320Mi", "256Mi"},
		{"with a maximum and a ratio", "{type: Container, max: {ephemeral-storage: 200Mi}, maxLimitRequestRatio: {ephemeral-storage: 2}}", "200Mi", "200Mi", "136Mi"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := p.optedIn(t)
			if c.rangeSpec != "" {
				p.apply(t, ns, `
apiVersion: v1
kind: LimitRange
metadata: {name: disk}
spec: {limits: [`+c.rangeSpec+`]}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: disk}
spec: {hard: {limits.ephemeral-storage: 4Gi, requests.ephemeral-storage: 4Gi}}
`)
				if _, err := p.Kubectl(t.Context(), "", "patch", "resourcequota", "disk", "-n", ns, "--subresource=status", "--type=merge", "-p",
					`{"status":{"hard":{"limits.ephemeral-storage":"4Gi","requests.ephemeral-storage":"4Gi"},"used":{"limits.ephemeral-storage":"0","requests.ephemeral-storage":"0"}}}`); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "a pod with its share", func() error {
				pod, err := p.pod(t, ns, text, "--dry-run=server")
				if err != nil {
					return err
				}
				spec := pod["spec"].(object)
				for _, ours := range spec["initContainers"].([]any) {
					ours := ours.(object)
					r, _ := ours["resources"].(object)
					limits, requests := fmt.Sprint(r["limits"].(object)["ephemeral-storage"]), fmt.Sprint(r["requests"].(object)["ephemeral-storage"])
					if bounded := limits != "<nil>"; bounded != (c.limits != "<nil>") {
						return fmt.Errorf("limit of %s: %s", ours["name"], limits)
					}
					if ours["name"] == "attache-sidecar" && (limits != c.limits || requests != c.requests) {
						return fmt.Errorf("requests %s, limits %s; want %s, %s", requests, limits, c.requests, c.limits)
					}
				}
				for _, v := range spec["volumes"].([]any) {
					if v := v.(object); v["name"] == "attache-spool" && fmt.Sprint(v["emptyDir"].(object)["sizeLimit"]) != c.volume {
						return fmt.Errorf("volume: %v", v)
					}
				}
				return nil
			})
		})
	}
}

func (p *plane) guaranteed(t *testing.T) {
	pod, err := p.pod(t, p.optedIn(t), `
apiVersion: v1
kind: Pod
metadata: {name: agent}
spec: {containers: [{name: agent, image: agent, resources: {limits: {cpu: 200m, memory: 100Mi}}}]}
`)
	if err != nil {
		t.Fatal(err)
	}
	if got := pod["status"].(object)["qosClass"]; got != "Guaranteed" {
		t.Errorf("class: %v", got)
	}
}

func (p *plane) events(t *testing.T) {
	ns := p.optedIn(t)
	out := p.apply(t, ns, `
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: agents}
spec:
  selector: {matchLabels: {app: agent}}
  template: {metadata: {labels: {app: agent}}, spec: {containers: [{name: agent, image: agent}]}}
`, "-o", "jsonpath={.metadata.uid}")
	pod := func(name, extra string) string {
		return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata:
  name: %s
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: agents, uid: %s, controller: true}]
spec: {containers: [{name: agent, image: agent}]%s}
`, name, out, extra)
	}
	if _, err := p.pod(t, ns, pod("dry", ", hostPID: true"), "--dry-run=server"); err == nil {
		t.Error("hostPID is taken")
	}
	for i := range 3 {
		if _, err := p.pod(t, ns, pod(fmt.Sprintf("agents-%d", i), "")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.pod(t, ns, pod("bad", ", hostNetwork: true")); err == nil {
		t.Error("hostNetwork is taken")
	}
	eventually(t, "events", func() error {
		text, err := p.Kubectl(t.Context(), "", "get", "events", "-n", ns, "-o", "jsonpath={range .items[*]}{.type} {.reason} {.involvedObject.kind}/{.involvedObject.name}: {.message}{'\\n'}{end}")
		if err != nil {
			return err
		}
		if strings.Contains(text, "hostPID") {
			t.Fatalf("a dry run has side effects: %s", text)
		}
		if n := strings.Count(text, "Normal Injected ReplicaSet/agents: pods get the Attaché sidecar, in explicit mode; warnings (1): spec.serviceAccountName: is default"); n != 1 {
			return fmt.Errorf("%d events of injection:\n%s", n, text)
		}
		if !strings.Contains(text, "Warning InjectionRefused ReplicaSet/agents: spec.hostNetwork: is true") {
			return fmt.Errorf("no event of the refusal:\n%s", text)
		}
		return nil
	})
}

// newNamespaces makes pods in namespaces that the cache may not know yet.
func (p *plane) newNamespaces(t *testing.T) {
	for range 10 {
		pod, err := p.pod(t, p.optedIn(t), fmt.Sprintf(plainPod, "early"))
		if err != nil {
			t.Fatal(err)
		}
		if got := names(pod, "initContainers"); !slices.Contains(got, "attache-sidecar") {
			t.Fatalf("init containers: %v", got)
		}
	}
}

// modes changes the AttacheConfig, well and badly.
func (p *plane) modes(t *testing.T) {
	ns := p.optedIn(t)
	text := fmt.Sprintf(plainPod, "clear")
	text = strings.Replace(text, "labels:", "annotations: {attache.dev/mode: transparent}, labels:", 1)
	if _, err := p.pod(t, ns, text, "--dry-run=server"); err == nil || !strings.Contains(err.Error(), "which the operator does not allow") {
		t.Errorf("transparent mode without leave: %v", err)
	}
	p.apply(t, "", `
apiVersion: attache.dev/v1alpha1
kind: AttacheConfig
metadata: {name: default}
spec: {cluster: {injection: {modes: [explicit, transparent], mode: explicit}, nameservers: [10.96.0.10]}}
`)
	defer func() { _, _ = p.Kubectl(context.WithoutCancel(t.Context()), "", "delete", "attacheconfig", "default") }()
	eventually(t, "transparent mode", func() error {
		pod, err := p.pod(t, ns, text, "--dry-run=server")
		if err != nil {
			return err
		}
		if got := names(pod, "initContainers"); !slices.Equal(got, []string{"attache-redirect", "attache-sidecar", "fetch"}) {
			return fmt.Errorf("init containers: %v", got)
		}
		if args := fmt.Sprint(pod["spec"].(object)["initContainers"].([]any)[0].(object)["args"]); !strings.Contains(args, "--nameservers=10.96.0.10") {
			return fmt.Errorf("args of the redirect: %s", args)
		}
		return nil
	})
}

const provider = `
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: %s}
spec:
  destinations: [{host: api.example.com}]
  jwt: {}
  placeholders: [{env: EXAMPLE_API_KEY, prefix: sk-}]
  baseURLs: [{env: EXAMPLE_BASE_URL, host: api.example.com, path: /v1}]
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: %[1]s}
spec:
  workloads: [{matchLabels: {app: agent}}]
  rules:
    - name: all
      action: allow
      hosts: [api.example.com]
      credential: {provider: %[1]s}
`

func (p *plane) providers(t *testing.T) {
	ns := p.optedIn(t)
	p.apply(t, ns, fmt.Sprintf(provider, "example"))
	eventually(t, "the provider's variables", func() error {
		pod, err := p.pod(t, ns, fmt.Sprintf(plainPod, "agent"), "--dry-run=server")
		if err != nil {
			t.Fatal(err)
		}
		agent := fmt.Sprint(pod["spec"].(object)["containers"])
		sidecar := fmt.Sprint(pod["spec"].(object)["initContainers"].([]any)[0])
		for text, in := range map[string]string{
			"EXAMPLE_API_KEY": agent, "sk-attache": agent, "name:EXAMPLE_BASE_URL value:http://127.0.0.1:15100/v1": agent,
			`"host":"api.example.com","port":443`: sidecar, `"prefix":"sk-","provider":"example"`: sidecar,
		} {
			if !strings.Contains(in, text) {
				return fmt.Errorf("no %s in %s", text, in)
			}
		}
		return nil
	})
	other := strings.Replace(fmt.Sprintf(plainPod, "agent"), "app: agent", "app: other", 1)
	if pod, err := p.pod(t, ns, other, "--dry-run=server"); err != nil || strings.Contains(fmt.Sprint(pod), "EXAMPLE_API_KEY") {
		t.Errorf("a pod that no policy selects has the placeholder: %v", err)
	}
}

func (p *plane) objects(t *testing.T) {
	ns := p.optedIn(t)
	doc := func(text string, i int) string { return strings.Split(text, "---")[i] }
	p.apply(t, ns, doc(fmt.Sprintf(provider, "good"), 0))
	for name, c := range map[string]struct{ text, want string }{
		"a host": {strings.Replace(doc(fmt.Sprintf(provider, "bad"), 0), "host: api.example.com}]", "host: '*.*.com'}]", 1), "spec.destinations[0].host"},
		"CEL":    {strings.Replace(doc(fmt.Sprintf(provider, "good"), 1), "      action: allow", "      action: allow\n      when: 'nonsense('", 1), "spec.rules[0].when"},
		"a mode": {"{apiVersion: attache.dev/v1alpha1, kind: AttacheConfig, metadata: {name: default}, spec: {cluster: {injection: {mode: transparent, modes: [transparent], resources: {cpuRequest: '2', cpuLimit: '1'}}}}}", "spec.cluster: resources: the cpu request is 0 or above the limit"},
	} {
		eventually(t, name, func() error { // the provider may be too new for the cache
			_, err := p.create(t, ns, c.text, "--dry-run=server")
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "Attaché") {
				return fmt.Errorf("%w; want %s", err, c.want)
			}
			return nil
		})
	}
	dangling := doc(fmt.Sprintf(provider, "lonely"), 1)
	if _, err := p.create(t, ns, dangling, "--warnings-as-errors", "--dry-run=server"); err == nil || !strings.Contains(err.Error(), "lonely") {
		t.Errorf("a policy without its provider: %v", err)
	}
	p.apply(t, ns, dangling)
}

func (p *plane) status(t *testing.T) {
	ns := p.Namespace(t, nil)
	if _, err := p.pod(t, ns, fmt.Sprintf(plainPod, "older")); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Kubectl(t.Context(), "", "label", "namespace", ns, "attache.dev/inject=enabled"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.pod(t, ns, fmt.Sprintf(plainPod, "good")); err != nil {
		t.Fatal(err)
	}
	if _, err := p.pod(t, ns, fmt.Sprintf(plainPod, "changed")); err != nil {
		t.Fatal(err)
	}
	// No guard is installed here: the image of a running sidecar can be changed.
	if _, err := p.Kubectl(t.Context(), "", "patch", "pod", "changed", "-n", ns, "--type=json", "-p", `[{"op":"replace","path":"/spec/initContainers/0/image","value":"evil"}]`); err != nil {
		t.Fatal(err)
	}
	want := func(states map[string]string) func() error {
		return func() error {
			out, err := execute(t, "status", "--kubeconfig="+p.kubeconfig, "--namespace="+p.namespace, "--only="+ns, "-o", "json")
			if err != nil {
				t.Fatal(err)
			}
			var r status.Report
			if err := json.Unmarshal([]byte(out), &r); err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for _, pod := range r.Pods {
				got[pod.Name] = pod.State
			}
			if fmt.Sprint(got) != fmt.Sprint(states) || r.Kubernetes == "" || len(r.Templates) == 0 || r.Namespaces[0].By[status.Uninjected] != 1 {
				return fmt.Errorf("got %v; want %v: %s", got, states, out)
			}
			return nil
		}
	}
	eventually(t, "status", want(map[string]string{"older": "uninjected", "good": "current", "changed": "unaccepted"}))
	// No scheduler is here: that the record store has no volume is said in its stead.
	const store = `{apiVersion: v1, kind: Pod, metadata: {name: attache-audit-0, namespace: %s, labels: {app.kubernetes.io/component: audit}}, spec: {containers: [{name: a, image: a}], volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]}}`
	if out, err := p.Kubectl(t.Context(), fmt.Sprintf(store, p.namespace), "create", "-f", "-"); err != nil {
		t.Fatal(out, err)
	}
	if out, err := p.Kubectl(t.Context(), "", "patch", "pod", "attache-audit-0", "-n", p.namespace, "--subresource=status", "-p", `{"status":{"conditions":[{"type":"PodScheduled","status":"False","reason":"Unschedulable","message":"unbound claims"}]}}`); err != nil {
		t.Fatal(out, err)
	}
	text, err := execute(t, "status", "--kubeconfig="+p.kubeconfig, "--namespace="+p.namespace, "--only="+ns, "--all", "--check")
	for _, w := range []string{"NAMESPACE", "current", ns + "/older", "uninjected"} {
		if !strings.Contains(text, w) {
			t.Errorf("no %s in %s", w, text)
		}
	}
	if !errors.Is(err, errWrong) || !strings.Contains(err.Error(), "pod "+ns+"/older is uninjected") || !strings.Contains(err.Error(), "this cluster has no default StorageClass") {
		t.Errorf("--check: %v", err)
	}
	if _, err := execute(t, "status", "--kubeconfig="+p.kubeconfig, "--namespace="+p.namespace, "--only=nowhere"); err == nil {
		t.Error("a namespace that is not there")
	}
	// New roots make a new template; the pods before have the old one.
	if _, err := p.Kubectl(t.Context(), "", "patch", "configmap", "attache-ca", "-n", p.namespace, "-p", `{"data":{"roots.pem":"new roots"}}`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "new roots", func() error {
		pod, err := p.pod(t, ns, fmt.Sprintf(plainPod, "fresh"), "--dry-run=server")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(fmt.Sprint(pod), "new roots") {
			return errors.New("not in pods yet")
		}
		return nil
	})
	if _, err := p.pod(t, ns, fmt.Sprintf(plainPod, "fresh")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "status after the change", want(map[string]string{"older": "uninjected", "good": "old", "changed": "unaccepted", "fresh": "current"}))
}

func pemOf(der []byte) string {
	return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
