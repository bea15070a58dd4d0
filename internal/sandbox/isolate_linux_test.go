package sandbox_test

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/internal/sandbox"
)

// Sockets with a path are found wherever they are in our own network and in
// those that we may look at, and as files in the usual folders.
func TestOutsideSockets(t *testing.T) {
	deep := filepath.Join(t.TempDir(), "a", "b", "c")
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	here, there := filepath.Join(deep, "here sock"), filepath.Join(deep, "there")
	ln, err := net.Listen("unix", here)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()

	other, err := os.CreateTemp("", "sandbox-test-") // of a network that we cannot look at, so to speak
	if err != nil {
		t.Fatal(err)
	}
	stale := other.Name()
	_, _ = other.Close(), os.Remove(stale)
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	defer os.Remove(stale)

	want := []string{here, stale}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", there)
	cmd.Env = []string{roleVar + "=" + roleListen}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}},
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Logf("no other network to look into: %v", err)
	} else {
		line, _ := bufio.NewReader(out).ReadString('\n')
		if !strings.HasPrefix(line, "true") {
			t.Fatalf("the daemon: %s", line)
		}
		want = append(want, there)
		defer func() { _ = in.Close(); _ = cmd.Wait() }()
	}
	got := sandbox.OutsideSockets()
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("%s is not found", w)
		}
	}
}
