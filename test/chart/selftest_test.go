package chart

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/attache-dev/attache/control/selftest"
	"github.com/attache-dev/attache/test/cluster"
	"github.com/attache-dev/attache/webhook/inject"
	"github.com/attache-dev/attache/webhook/server"
)

// one gives every namespace the same settings, and its own metadata.
type one struct {
	client kubernetes.Interface
	config inject.Config
}

func (o one) Settings(ctx context.Context, pod server.Pod) (server.Settings, error) {
	ns, err := o.client.CoreV1().Namespaces().Get(ctx, pod.Namespace, metav1.GetOptions{})
	if err != nil {
		return server.Settings{}, err
	}
	meta, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&ns.ObjectMeta)
	return server.Settings{Namespace: meta, Config: o.config}, err
}

// whole is an API server with all of the chart: its webhooks are answered by
// the real handler, at a URL.
func whole(t *testing.T) (e *cluster.Env, c kubernetes.Interface, hook *httptest.Server) {
	t.Helper()
	e = own(t)
	c = kubernetes.NewForConfigOrDie(e.Config)
	s, err := server.New(server.Options{
		Source: one{c, inject.Config{Image: image, Control: control, Mode: inject.Explicit}},
		Log:    slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	hook = httptest.NewTLSServer(s.Handler())
	t.Cleanup(hook.Close)
	ca := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: hook.Certificate().Raw}))
	var text strings.Builder
	text.WriteString("apiVersion: v1\nkind: Namespace\nmetadata: {name: " + release + "}\n")
	for _, doc := range strings.Split(render(t, "", "--no-hooks"), "\n---\n") {
		var o object
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatal(err)
		}
		if hooks, ok := o["webhooks"].([]any); ok {
			for _, h := range hooks {
				config := h.(object)["clientConfig"].(object)
				path := config["service"].(object)["path"].(string)
				h.(object)["clientConfig"] = object{"url": hook.URL + path, "caBundle": ca}
			}
		}
		b, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		text.WriteString("---\n" + string(b) + "\n")
	}
	if _, err := e.Kubectl(t.Context(), text.String(), "apply", "--server-side", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	return e, c, hook
}

// The self-test passes on the whole chart, and fails when what it tests is
// taken away.
func TestSelftest(t *testing.T) {
	e, c, hook := whole(t)
	ctx := t.Context()
	optedIn := map[string]string{"attache.dev/inject": "enabled"}
	patience := 20 * time.Second
	try := func(ns string, timeout time.Duration) (string, error) {
		var out strings.Builder
		err := selftest.Run(ctx, c, selftest.Options{Namespace: ns, Image: "x", Guards: true, Timeout: timeout, Patience: patience}, &out)
		return out.String(), err
	}
	ns := e.Namespace(t, optedIn)
	if out, err := try(ns, 90*time.Second); err != nil || !strings.Contains(out, "6 passed, 0 failed") {
		t.Fatalf("%v\n%s", err, out)
	}
	if left, err := c.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{}); err != nil || len(left.Items) != 0 {
		t.Errorf("left behind: %d pods, %v", len(left.Items), err)
	}

	// An author's attack on the first round is refused by one of the two.
	eve := agentPod()
	onAgent(mount(object{"name": "attache-token", "mountPath": "/t"}))(eve)
	if _, err := create(ctx, c, ns, eve); err == nil || !strings.Contains(err.Error(), "spec.containers[0].volumeMounts[0].name") {
		t.Errorf("a mount of the token: %v", err)
	}
	// The conditions of the webhook hold for the barest of pods and the mirror
	// of a static one.
	if p, err := create(ctx, c, ns, agentPod()); err != nil || p.Spec.InitContainers[0].Name != inject.SidecarName {
		t.Errorf("a bare pod: %v", err)
	}

	t.Run("a binding of no policy", func(t *testing.T) {
		if _, err := e.Kubectl(ctx, "", "patch", "validatingadmissionpolicybinding", "attache-connect", "--type=merge", "-p", `{"spec":{"policyName":"attache-conect"}}`); err != nil {
			t.Fatal(err)
		}
		patience = 3 * time.Second
		await(t, "until the binding is inert", func() bool {
			out, err := try(ns, 60*time.Second)
			return err != nil && strings.Contains(out, "FAILED refused: a command in the sidecar") && strings.Contains(out, "5 passed, 1 failed")
		})
	})
	t.Run("webhook down", func(t *testing.T) {
		hook.Close()
		if _, err := create(ctx, c, ns, agentPod()); err == nil || !strings.Contains(err.Error(), "pods.attache.dev") {
			t.Errorf("in an opted-in namespace: %v", err)
		}
		if _, err := create(ctx, c, e.Namespace(t, nil), agentPod()); err != nil {
			t.Errorf("elsewhere: %v", err)
		}
		out, err := try(ns, 2*time.Second)
		if err == nil || !strings.Contains(out, "FAILED a pod is injected") || !strings.Contains(out, "pods.attache.dev") {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("namespace that is not opted in", func(t *testing.T) {
		out, err := try(e.Namespace(t, nil), 2*time.Second)
		if err == nil || !strings.Contains(out, "has no attache-sidecar") {
			t.Errorf("%v\n%s", err, out)
		}
	})
}
