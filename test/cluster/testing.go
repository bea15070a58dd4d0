package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// Require is the variable that turns a missing cluster from a reason to skip
// into a failure.
const Require = "ATTACHE_REQUIRE_CLUSTER"

// shared is the API server of this test binary.
var shared = sync.OnceValues(startShared) // one process each binary: starting takes seconds

// API is an API server that every test of this binary shares: keep to a
// namespace of your own ([Env.Namespace]) and to names of your own for what
// has none. It skips the test when the programs are not built, unless
// ATTACHE_REQUIRE_CLUSTER is set. The server ends with the test binary, even
// when that panics or is killed.
//
// A failed test prints the end of the server's log.
func API(t testing.TB) *Env {
	t.Helper()
	e, err := shared()
	if errors.Is(err, ErrNotBuilt) && os.Getenv(Require) == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, p := range e.Processes() {
			t.Logf("%s: %s", p.Name, p.Tail(15))
		}
		if kept, err := e.keepLogs(t.Name()); err == nil {
			t.Logf("logs kept in %s", kept)
		}
	})
	return e
}

func startShared() (*Env, error) {
	dir, err := os.MkdirTemp(memoryDir(), "attache-cluster-")
	if err != nil {
		return nil, err
	}
	alive, err := removeAtEnd(dir)
	if err != nil {
		return nil, err
	}
	// Nobody closes it: there is no hook at the end of a test binary that
	// also runs after a panic. The kernel ends its processes instead.
	e, err := StartAPI(context.Background(), Options{Dir: dir, NoControllerManager: true})
	if err != nil {
		return nil, err
	}
	e.alive = alive
	return e, nil
}

// memoryDir is where etcd's data costs no disk, or "" for the usual place.
func memoryDir() string {
	const shm = "/dev/shm"
	if i, err := os.Stat(shm); err == nil && i.IsDir() {
		return shm
	}
	return ""
}

// removeAtEnd removes dir when this process is no more, however it ended: the
// shell's read returns when the writer of its pipe is gone. Keep the writer:
// the garbage collector closes a file that nobody holds.
func removeAtEnd(dir string) (alive io.Closer, err error) {
	cmd := exec.Command("/bin/sh", "-c", `read -r _; sleep 1; rm -rf "$0"`, dir)
	if alive, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("watch for the end of the test: %w", err)
	}
	return alive, nil
}

// keepLogs copies the logs to .cache/cluster/TEST and returns that folder.
func (e *Env) keepLogs(test string) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	to := filepath.Join(root, ".cache", "cluster", filepath.Base(test))
	if err := os.MkdirAll(to, 0o755); err != nil {
		return "", err
	}
	for _, p := range e.Processes() {
		log, err := os.ReadFile(p.Log)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(to, p.Name+".log"), log, 0o644); err != nil {
			return "", err
		}
	}
	return to, nil
}

// Namespace makes a namespace for this test alone, with its default service
// account, and returns its name. It is deleted with the server.
func (e *Env) Namespace(t testing.TB, labels map[string]string) string {
	t.Helper()
	name, err := e.MakeNamespace(t.Context(), "test", labels)
	if err != nil {
		t.Fatal(err)
	}
	return name
}
