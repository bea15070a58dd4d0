package cluster_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/attache-dev/attache/test/cluster"
)

func pod(name string, change func(*corev1.PodSpec)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "example.test/app"}}},
	}
	if change != nil {
		change(&p.Spec)
	}
	return p
}

// TestAPI: the server admits pods as a real one does (service account, pod
// security, RBAC, the version that build.sh gave it).
func TestAPI(t *testing.T) {
	e := cluster.API(t)
	admin, err := kubernetes.NewForConfig(e.Config)
	if err != nil {
		t.Fatal(err)
	}
	version, err := admin.Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	if version.GitVersion != "v1.37.2" || version.Minor != "37" {
		t.Errorf("the server says it is %s (minor %q), want v1.37.2", version.GitVersion, version.Minor)
	}
	ns := e.Namespace(t, map[string]string{"pod-security.kubernetes.io/enforce": "baseline"})
	created, err := admin.CoreV1().Pods(ns).Create(t.Context(), pod("a", nil), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if created.Spec.ServiceAccountName != "default" || len(created.Spec.Volumes) != 1 {
		t.Errorf("the service account's token was not mounted: %+v", created.Spec)
	}
	_, err = admin.CoreV1().Pods(ns).Create(t.Context(), pod("b", func(s *corev1.PodSpec) { s.HostNetwork = true }), metav1.CreateOptions{})
	if err == nil || !strings.Contains(err.Error(), "violates PodSecurity") {
		t.Errorf("a pod on the host's network in a baseline namespace: got %v, want a refusal by PodSecurity", err)
	}
	config, err := e.User("mallory", "devs")
	if err != nil {
		t.Fatal(err)
	}
	user, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := user.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a user with no rights lists pods: got %v, want forbidden", err)
	}
	if out, err := e.KubectlAs(t.Context(), config, "", "auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.groups[0]}"); err != nil || out != "mallory devs" {
		t.Errorf("kubectl as a user: got %q, %v", out, err)
	}
}

// TestAccountsOfNamespacesOfOthers: a namespace that kubectl or a chart makes
// gets its service account, too.
func TestAccountsOfNamespacesOfOthers(t *testing.T) {
	e := cluster.API(t)
	name, err := e.Kubectl(t.Context(), "{apiVersion: v1, kind: Namespace, metadata: {generateName: made-by-kubectl-}}", "create", "-f", "-", "-o", "jsonpath={.metadata.name}")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Kubectl(t.Context(), "", "wait", "--for=create", "serviceaccount/default", "-n", name, "--timeout=60s"); err != nil {
		t.Fatal(err)
	}
}

// TestEndsWithItsParent: a test binary that is killed leaves neither servers
// nor files.
func TestEndsWithItsParent(t *testing.T) {
	if os.Getenv("CLUSTER_TEST_CHILD") != "" {
		e := cluster.API(t)
		if err := os.WriteFile(os.Getenv("CLUSTER_TEST_CHILD"), []byte(e.Dir), 0o644); err != nil {
			t.Fatal(err)
		}
		<-t.Context().Done() // until the parent kills this process
		return
	}
	cluster.API(t) // skips where the programs are missing
	told := filepath.Join(t.TempDir(), "dir")
	cmd := exec.Command(os.Args[0], "-test.run=^TestEndsWithItsParent$")
	cmd.Env = append(os.Environ(), "CLUSTER_TEST_CHILD="+told)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	dir := ""
	eventually(t, "the child has a server", func() bool {
		b, err := os.ReadFile(told)
		dir = string(b)
		return err == nil && dir != ""
	})
	if n := running(t, dir); n != 2 {
		t.Fatalf("%d programs run in %s, want 2", n, dir)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	eventually(t, "the programs and the files are gone", func() bool {
		_, err := os.Stat(dir)
		return os.IsNotExist(err) && running(t, dir) == 0
	})
}

// running counts processes whose arguments name dir, of the server's programs.
func running(t *testing.T, dir string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(text), dir) && !strings.HasPrefix(string(text), "/bin/sh") {
			n++
		}
	}
	return n
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}
