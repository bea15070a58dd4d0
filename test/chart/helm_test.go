package chart

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attache-dev/attache/test/cluster"
)

const chartDir = "../../charts/attache"

// touch reads the chart, since Go remembers a test's result until a file that
// the test itself has read changes; Helm's reading it does not see.
func touch(t testing.TB) {
	t.Helper()
	err := filepath.WalkDir(chartDir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			_, err = os.ReadFile(p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// program finds one of the Helms that test/cluster/build.sh builds.
func program(t testing.TB, name string) string {
	t.Helper()
	touch(t)
	p, err := filepath.Abs(filepath.Join("..", "..", ".cache", "bin", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p); err != nil {
		if os.Getenv(cluster.Require) != "" {
			t.Fatal(err)
		}
		t.Skipf("%s is not built: run `test/cluster/build.sh api`", name)
	}
	return p
}

// helm runs one of the Helms with an empty home of its own.
func helm(t testing.TB, name, stdin string, args ...string) (out string, err error) {
	t.Helper()
	home := t.TempDir()
	cmd := exec.CommandContext(t.Context(), program(t, name), args...)
	cmd.Env = append(os.Environ(), "HOME="+home, "KUBECONFIG=/dev/null", "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err = cmd.Run(); err != nil {
		return stderr.String(), err
	}
	return stdout.String(), nil
}

// template renders the chart.
func template(t testing.TB, name, values string, args ...string) (string, error) {
	t.Helper()
	return helm(t, name, values, append([]string{
		"template", "attache", chartDir, "--namespace", release, "--kube-version", "1.37.2", "--values", "-",
	}, args...)...)
}

// render is template with Helm 4, which must succeed.
func render(t testing.TB, values string, args ...string) string {
	t.Helper()
	out, err := template(t, "helm", values, args...)
	if err != nil {
		t.Fatalf("helm template: %v\n%s", err, out)
	}
	return out
}
