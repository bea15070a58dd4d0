package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/attache-dev/attache/api/crd"
	"github.com/attache-dev/attache/test/cluster"
)

func TestRevokeFlags(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"nothing":    {nil, "name what to revoke"},
		"a bare pod": {[]string{"--pod=writer"}, `--pod is "writer"; must be NAMESPACE/NAME`},
		"two pods":   {[]string{"--pod=a/b", "--pod-uid=c"}, "without --pod-uid"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := execute(t, append([]string{"revoke", "--kubeconfig=/nonexistent/config"}, c.args...)...)
			if !errors.Is(err, errUsage) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// The command makes the Revocation, follows its status, and lists who has not
// heard of it.
func TestRevoke(t *testing.T) {
	env := cluster.API(t)
	if err := env.InstallCRDs(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(s), crd.AddToScheme(s)); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(env.Config, client.Options{Scheme: s})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.DeleteAllOf(context.Background(), &crd.Revocation{}) })
	kubeconfig, err := env.WriteKubeconfig("revoke", env.Config)
	if err != nil {
		t.Fatal(err)
	}
	// A control plane that has one sidecar of two.
	go func() {
		for t.Context().Err() == nil {
			list := &crd.RevocationList{}
			_ = c.List(t.Context(), list)
			for i := range list.Items {
				r := &list.Items[i]
				if len(r.Status.Conditions) > 0 {
					continue
				}
				r.Status = crd.RevocationStatus{
					Conditions:   []metav1.Condition{{Type: crd.ConditionComplete, Status: metav1.ConditionFalse, Reason: crd.ReasonPending, LastTransitionTime: metav1.Now()}},
					Acknowledged: 1, Total: 2,
					Outstanding: []crd.OutstandingPod{{Namespace: "agents", Pod: "writer-0", UID: "u", LastHeard: metav1.Now(), LatestExpiry: metav1.NewTime(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))}},
				}
				if r.Spec.Owner == "done" {
					r.Status.Conditions[0].Status, r.Status.Conditions[0].Reason = metav1.ConditionTrue, "Acknowledged"
				}
				_ = c.Status().Update(t.Context(), r)
			}
			time.Sleep(20 * time.Millisecond) // asks again, nothing depends on it
		}
	}()
	out, err := execute(t, "revoke", "--kubeconfig", kubeconfig, "--provider=agents/model", "--reason=leak", "--wait=2s")
	if !errors.Is(err, errOutstanding) || !strings.Contains(out, "1 of 2 sidecars acknowledged") || !strings.Contains(out, "agents") ||
		!strings.Contains(out, "writer-0") || !strings.Contains(out, "2030-01-02T03:04:05Z") {
		t.Errorf("%v: %s", err, out)
	}
	out, err = execute(t, "revoke", "--kubeconfig", kubeconfig, "--owner=done", "--wait=30s", "-o", "json")
	if err != nil || !strings.Contains(out, `"complete": true`) {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := execute(t, "revoke", "--kubeconfig", kubeconfig, "--pod=default/not-there"); err == nil || !strings.Contains(err.Error(), "--pod-uid") {
		t.Errorf("a pod that is gone: %v", err)
	}
}
