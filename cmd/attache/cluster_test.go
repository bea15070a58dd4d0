package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Only a command that both programs have is the cluster's, and only where it
// says so itself.
func TestForCluster(t *testing.T) {
	for line, want := range map[string]string{
		"status --cluster": "status",
		"-o json status --only team --cluster --check":     "-o json status --only team --check",
		"--state run status --cluster":                     "--state run status",
		"issuer export --cluster --issuer-url https://x d": "issuer export --issuer-url https://x d",
		"revoke --cluster --owner a@example.com":           "revoke --owner a@example.com",
		"status":                                           "",
		"--cluster status":                                 "",
		"run --cluster -- agent":                           "",
		"run -- agent status --cluster":                    "",
		"audit search status --cluster":                    "",
		"status -- --cluster":                              "",
	} {
		got, ok := forCluster(strings.Fields(line))
		if strings.Join(got, " ") != want || ok != (want != "") {
			t.Errorf("%q gave %q, %v; want %q", line, got, ok, want)
		}
	}
}

// build makes the real programs. That of clusters takes long to link: where the
// project's own build is there, it is that one, whose commands these are.
func build(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	names := []string{"attache", clusterProgram}
	if b, err := os.ReadFile(filepath.Join("..", "..", "bin", clusterProgram)); err == nil {
		if err := os.WriteFile(filepath.Join(dir, clusterProgram), b, 0o700); err != nil {
			t.Fatal(err)
		}
		names = names[:1]
	}
	for _, n := range names {
		if out, err := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(dir, n), "../"+n).CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", n, err, out)
		}
	}
	return dir
}

func try(t *testing.T, env []string, program string, args ...string) (out string, status int) {
	t.Helper()
	c := exec.Command(program, args...)
	c.Env = env
	b, err := c.CombinedOutput()
	if e, ok := err.(*exec.ExitError); ok { //nolint:errorlint // Run wraps nothing
		return string(b), e.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b), 0
}

// The cluster's forms run the cluster's program with the same words and end as
// it does; without it they say what to install.
func TestClusterCommands(t *testing.T) {
	if testing.Short() {
		t.Skip("builds two programs")
	}
	dir := build(t)
	attache := filepath.Join(dir, "attache")
	none := filepath.Join(t.TempDir(), "none")
	env := []string{"HOME=" + t.TempDir(), "KUBECONFIG=" + none, "PATH=/usr/bin:/bin"}
	check := func(what string, wantStatus int, want, out string, status int) {
		t.Helper()
		if status != wantStatus || !strings.Contains(out, want) {
			t.Errorf("%s: status %d, %s; want %d and %q", what, status, out, wantStatus, want)
		}
	}
	out, status := try(t, env, attache, "status", "--cluster", "--help")
	check("help", 0, "attache-control status --only team-a", out, status)
	out, status = try(t, env, attache, "status", "--cluster", "--nonsense")
	check("a mistake", 2, "attache-control: unknown flag: --nonsense", out, status)
	out, status = try(t, env, attache, "status", "--cluster", "-o", "json")
	check("no cluster", 1, "attache-control: find the cluster", out, status)
	out, status = try(t, env, attache, "issuer", "export", "--cluster", "--issuer-url", "ftp://x", dir)
	check("issuer", 2, "attache-control: usage: --issuer-url", out, status)
	out, status = try(t, env, attache, "status")
	check("the machine's own", 0, "RUN", out, status)

	elsewhere := t.TempDir()
	if err := os.Rename(filepath.Join(dir, "attache-control"), filepath.Join(elsewhere, "attache-control")); err != nil {
		t.Fatal(err)
	}
	out, status = try(t, env, attache, "status", "--cluster")
	check("not installed", 2, "install it from the same release", out, status)
	env[slices.Index(env, "PATH=/usr/bin:/bin")] = "PATH=" + elsewhere
	out, status = try(t, env, attache, "status", "--cluster", "--help")
	check("in PATH", 0, "attache-control status", out, status)
}
