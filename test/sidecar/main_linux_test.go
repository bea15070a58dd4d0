// Package sidecar drives the real attache-sidecar without Kubernetes: a network
// namespace is the pod, another one everything else, and user ids keep agent
// and sidecar apart as two containers would be.
package sidecar

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every wait for what must happen.
const patience = 30 * time.Second

// inside is set where a test runs in the namespace that stands for the world.
const inside = "ATTACHE_TEST_WORLD"

// sidecarBinary is what the tests drive; this test binary is the agent where
// other programs do not reach.
var sidecarBinary = os.Getenv("ATTACHE_TEST_SIDECAR")

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "agent" {
		os.Exit(agent(os.Args[2], os.Args[3:]))
	}
	os.Exit(build(m))
}

func build(m *testing.M) int {
	if os.Getenv(inside) != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "attache-sidecar-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // other users run it, too
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	sidecarBinary = filepath.Join(dir, "attache-sidecar")
	cmd := exec.Command("go", "build", "-trimpath", "-o", sidecarBinary, "-ldflags", "-s -w", "../../cmd/attache-sidecar") //nolint:gosec // ours
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build attache-sidecar: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// inWorld runs the calling test in network and mount namespaces of its own, by starting
// the test binary again, and tells whether this is that run.
func inWorld(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		skip(t, "not root")
	}
	for _, tool := range []string{"ip", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			skip(t, tool+" is not installed")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append(again(t), "-test.v", "-test.count=1")...)
	cmd.Env = append(os.Environ(), inside+"=1", "ATTACHE_TEST_SIDECAR="+sidecarBinary, "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if cmd.Process == nil {
		if errors.Is(err, unix.EPERM) {
			skip(t, err.Error())
		}
		t.Fatal(err)
	}
	if err != nil || !strings.Contains(out.String(), "--- PASS: "+t.Name()+" ") {
		t.Fatalf("in the world's namespace: %v\n%s", err, out.String())
	}
	t.Logf("%s", out.Bytes())
	return false
}

// again are the arguments that run this test alone. What only this process was
// told, such as a profile's file, is left out.
func again(t *testing.T) []string {
	return []string{"-test.run=^" + t.Name() + "$"}
}

func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("ATTACHE_REQUIRE_SERVERS") == "1" && os.Geteuid() == 0 && mayNamespace() {
		t.Fatal(why)
	}
	t.Skipf("SKIPPED, NOTHING OF THE SIDECAR IN A POD IS TESTED: %s", why)
}

// mayNamespace tells whether namespaces can be made here.
func mayNamespace() bool {
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	return cmd.Run() == nil
}
