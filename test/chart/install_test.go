package chart

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"github.com/attache-dev/attache/control/defaults"
	"github.com/attache-dev/attache/test/cluster"
)

// own starts an API server for this test alone: a release's objects are the
// cluster's.
func own(t *testing.T) *cluster.Env {
	t.Helper()
	program(t, "helm")
	cluster.API(t) // skips where nothing is built
	e, err := cluster.StartAPI(t.Context(), cluster.Options{Dir: t.TempDir(), NoControllerManager: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

// The chart is installed, upgraded and removed by both Helms. What controllers
// own survives an upgrade; what could refuse pods is removed first; CRDs stay,
// and a second installation takes them over.
func TestInstall(t *testing.T) {
	for _, name := range []string{"helm", "helm3"} {
		t.Run(name, func(t *testing.T) {
			e := own(t)
			ctx := t.Context()
			c := kubernetes.NewForConfigOrDie(e.Config)
			run := func(args ...string) string {
				t.Helper()
				out, err := e.Run(ctx, "", name, append(args, "--namespace", release)...)
				if err != nil {
					t.Fatal(out, err)
				}
				return out
			}
			const noClass = "this cluster has no default StorageClass"
			if out := run("install", "attache", chartDir, "--create-namespace"); !strings.Contains(out, noClass) {
				t.Errorf("nothing says that the store's volume will not be made: %s", out)
			}
			class := &storagev1.StorageClass{Provisioner: "example.com/disks", ObjectMeta: metav1.ObjectMeta{Name: "disks", Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}}}
			if _, err := c.StorageV1().StorageClasses().Create(ctx, class, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			rotate(t, ctx, c)
			if err := defaults.Run(ctx, e.Config, defaults.Options{Namespace: release, Log: slog.New(slog.DiscardHandler)}); err != nil {
				t.Fatal(err)
			}
			out := run("upgrade", "attache", chartDir, "--set", "sidecar.image.tag=v2", "--set", "control.replicas=1", "--set", "networkPolicy.enabled=true",
				"--set", "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.team=monitoring")
			if strings.Contains(out, noClass) {
				t.Errorf("with a default StorageClass: %s", out)
			}
			keptAfterUpgrade(t, ctx, c)
			if l, err := c.NetworkingV1().NetworkPolicies(release).List(ctx, metav1.ListOptions{}); err != nil || len(l.Items) == 0 {
				t.Errorf("network policies: %v, %v", l, err)
			}

			order := removals(t, ctx, c)
			run("uninstall", "attache")
			got := order()
			for _, first := range []string{"binding attache-pods", "mutating attache", "validating attache"} {
				if got[first] > got["service attache-control"] || got[first] > got["deployment attache-control"] {
					t.Errorf("%s was removed after the control plane: %v", first, got)
				}
			}
			if out, err := e.Kubectl(ctx, "", "get", "crds", "-o", "name"); err != nil || strings.Count(out, "attache.dev") < 5 {
				t.Errorf("CRDs left: %s, %v", out, err)
			}
			left, err := e.Kubectl(ctx, "", "get", "-o", "name", "mutatingwebhookconfigurations,validatingwebhookconfigurations,validatingadmissionpolicies,validatingadmissionpolicybindings,clusterroles,clusterrolebindings")
			// That one refuses nothing: see templates/guards/params.yaml.
			left = strings.ReplaceAll(left, "/attache-parameters\n", "/\n")
			if err != nil || strings.Contains(left, "/attache") {
				t.Errorf("left behind: %s, %v", left, err)
			}
			// Pods of namespaces that are still labelled start, now without a sidecar.
			ns := e.Namespace(t, map[string]string{"attache.dev/inject": "enabled"})
			await(t, "until no guard is left", func() bool {
				_, err := create(ctx, c, ns, agentPod())
				return err == nil
			})
			run("install", "attache", chartDir)
		})
	}
}

// rotate does what controllers do to objects of the chart.
func rotate(t *testing.T, ctx context.Context, c kubernetes.Interface) {
	t.Helper()
	by := metav1.PatchOptions{FieldManager: "attache-control"}
	caBundle := `[{"op":"add","path":"/webhooks/0/clientConfig/caBundle","value":"` + testCA + `"}]`
	if _, err := c.AdmissionregistrationV1().MutatingWebhookConfigurations().Patch(ctx, "attache", types.JSONPatchType, []byte(caBundle), by); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CoreV1().Secrets(release).Patch(ctx, "attache-ca", types.MergePatchType, []byte(`{"stringData":{"ca":"key"}}`), by); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CoreV1().ConfigMaps(release).Patch(ctx, "attache-guard", types.MergePatchType, []byte(`{"data":{"images.accepted":"old"}}`), by); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CoreV1().ConfigMaps(release).Patch(ctx, "attache-ca", types.MergePatchType, []byte(`{"data":{"roots.pem":"root"}}`), by); err != nil {
		t.Fatal(err)
	}
}

// testCA is a certificate, as the API server asks for one.
const testCA = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1JSUJNakNCNWFBREFnRUNBaFJObVZ0Nkw4T1dydy90WVV1WTJ0QVRQTGhDYlRBRkJnTXJaWEF3RHpFTk1Bc0cKQTFVRUF3d0VkR1Z6ZERBZUZ3MHlOakV4TWpNeE1EUTVNVFZhRncwek5qRXhNakF4TURRNU1UVmFNQTh4RFRBTApCZ05WQkFNTUJIUmxjM1F3S2pBRkJnTXJaWEFESVFEVDZiS2pCM2FrZ3VWb21HMVZKWWd2VEZGTGtXeEU5ZUJCCkkvcnVMSzB5KzZOVE1GRXdIUVlEVlIwT0JCWUVGTXgwQTU1SmhwWmJKWnlVQXdGYW1Qc2kwMWZsTUI4R0ExVWQKSXdRWU1CYUFGTXgwQTU1SmhwWmJKWnlVQXdGYW1Qc2kwMWZsTUE4R0ExVWRFd0VCL3dRRk1BTUJBZjh3QlFZRApLMlZ3QTBFQXNTUzI4eU43WDF0b2xYWTJtNVo2UzlzeU1sblI5RnZ5K2lmaXplQ0tiTU10d0daeUhFckZ3emdQCmR3NzdkV1JsczF0azJoeHVNNGVka1lYeXZDc0tCUT09Ci0tLS0tRU5EIENFUlRJRklDQVRFLS0tLS0K"

func keptAfterUpgrade(t *testing.T, ctx context.Context, c kubernetes.Interface) {
	t.Helper()
	hook, err := c.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, "attache", metav1.GetOptions{})
	if err != nil || len(hook.Webhooks[0].ClientConfig.CABundle) == 0 {
		t.Errorf("the upgrade took the caBundle away: %v", err)
	}
	if len(hook.OwnerReferences) != 1 || hook.OwnerReferences[0].Name != release {
		t.Errorf("the webhook stays when its namespace is deleted: owners %v", hook.OwnerReferences)
	}
	secret, err := c.CoreV1().Secrets(release).Get(ctx, "attache-ca", metav1.GetOptions{})
	if err != nil || string(secret.Data["ca"]) != "key" {
		t.Errorf("the upgrade took the authority's key away: %v", err)
	}
	guard, err := c.CoreV1().ConfigMaps(release).Get(ctx, "attache-guard", metav1.GetOptions{})
	if err != nil || guard.Data["images.accepted"] != "old" || !strings.Contains(guard.Data["images"], "attache-sidecar:v2\n") {
		t.Errorf("the guard's parameters after the upgrade: %v, %v", guard.Data, err)
	}
	roots, err := c.CoreV1().ConfigMaps(release).Get(ctx, "attache-ca", metav1.GetOptions{})
	if err != nil || roots.Data["roots.pem"] != "root" {
		t.Errorf("the upgrade took the roots away: %v", err)
	}
	if pdbs, err := c.PolicyV1().PodDisruptionBudgets(release).List(ctx, metav1.ListOptions{}); err != nil || len(pdbs.Items) != 0 {
		t.Errorf("a disruption budget for one replica would block every drain: %v", err)
	}
}

// removals watches what is deleted, and tells in which order each object was,
// when asked.
func removals(t *testing.T, ctx context.Context, c kubernetes.Interface) func() map[string]int64 {
	t.Helper()
	var mu sync.Mutex
	order := map[string]int64{}
	var done []chan struct{}
	follow := func(what, name string, w watch.Interface, err error) {
		if err != nil {
			t.Fatal(err)
		}
		gone := make(chan struct{})
		done = append(done, gone)
		go func() {
			defer close(gone)
			defer w.Stop()
			for e := range w.ResultChan() {
				o, ok := e.Object.(metav1.Object)
				if !ok || o.GetName() != name || e.Type != watch.Deleted {
					continue
				}
				// One etcd numbers all changes.
				var rv int64
				fmt.Sscan(o.GetResourceVersion(), &rv)
				mu.Lock()
				order[what+" "+name] = rv
				mu.Unlock()
				return
			}
		}()
	}
	o := metav1.ListOptions{}
	a := c.AdmissionregistrationV1()
	w, err := a.MutatingWebhookConfigurations().Watch(ctx, o)
	follow("mutating", "attache", w, err)
	w, err = a.ValidatingWebhookConfigurations().Watch(ctx, o)
	follow("validating", "attache", w, err)
	w, err = a.ValidatingAdmissionPolicyBindings().Watch(ctx, o)
	follow("binding", "attache-pods", w, err)
	w, err = c.CoreV1().Services(release).Watch(ctx, o)
	follow("service", "attache-control", w, err)
	w, err = c.AppsV1().Deployments(release).Watch(ctx, o)
	follow("deployment", "attache-control", w, err)
	return func() map[string]int64 {
		for _, d := range done {
			<-d
		}
		mu.Lock()
		defer mu.Unlock()
		return order
	}
}
