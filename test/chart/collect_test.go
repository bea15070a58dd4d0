package chart

import (
	"log/slog"
	"os"
	"os/exec"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/attache-dev/attache/control/defaults"
)

// Whoever deletes the control plane's namespace, and forgets the rest, stops no
// pod: the garbage collector removes what could refuse pods.
func TestNamespaceDeleted(t *testing.T) {
	e := own(t)
	manager := e.Program("kube-controller-manager")
	if _, err := os.Stat(manager); err != nil {
		t.Skip("kube-controller-manager is not built: run `test/cluster/build.sh all`")
	}
	ctx := t.Context()
	c := kubernetes.NewForConfigOrDie(e.Config)
	if err := e.InstallChart(ctx, release, ""); err != nil {
		t.Fatal(err)
	}
	if err := defaults.Run(ctx, e.Config, defaults.Options{Namespace: release, Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, manager, "--kubeconfig="+e.Kubeconfig, "--leader-elect=false", "--secure-port=0",
		"--cert-dir="+t.TempDir(), "--controllers=namespace-controller,garbage-collector-controller")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if err := c.CoreV1().Namespaces().Delete(ctx, release, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	a := c.AdmissionregistrationV1()
	await(t, "until the webhooks are gone", func() bool {
		_, m := a.MutatingWebhookConfigurations().Get(ctx, "attache", metav1.GetOptions{})
		_, v := a.ValidatingWebhookConfigurations().Get(ctx, "attache", metav1.GetOptions{})
		return apierrors.IsNotFound(m) && apierrors.IsNotFound(v)
	})
	ns := e.Namespace(t, map[string]string{"attache.dev/inject": "enabled"})
	await(t, "until pods of opted-in namespaces start", func() bool {
		_, err := create(ctx, c, ns, agentPod())
		return err == nil
	})
}
