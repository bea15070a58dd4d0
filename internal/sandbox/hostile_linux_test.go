package sandbox_test

import (
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// otherUID is a user that owns nothing on any machine.
const otherUID = 65534

// stageFor makes a folder with a copy of this test program and of hostile,
// owned by uid.
func stageFor(t *testing.T, uid int) stageSet {
	t.Helper()
	base, err := os.MkdirTemp("", "attache-sandbox-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	s := stageSet{Base: base, Hostile: filepath.Join(base, "bin", "hostile"), Suid: filepath.Join(base, "suid")}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"bin", "home", "proj"} {
		if err := os.MkdirAll(filepath.Join(base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	copyFile(t, exe, filepath.Join(base, "bin", "attache"))
	copyFile(t, hostileBinary(t), s.Hostile)
	if os.Getuid() != 0 {
		return s
	}
	copyFile(t, s.Hostile, s.Suid)
	if err := os.Chmod(s.Suid, 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"", "bin", "bin/attache", "bin/hostile", "home", "proj"} {
		if err := os.Chown(filepath.Join(base, p), uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	return s
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// hostileBinary builds test/hostile; go's cache makes the second time cheap.
func hostileBinary(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "hostile")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", out, "github.com/attache-dev/attache/test/hostile")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build test/hostile: %v\n%s", err, b)
	}
	return out
}

// launcher is a process that plays attache in a role, as user uid.
func launcher(t *testing.T, s stageSet, role string, uid int, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(s.Base, "bin", "attache"), append([]string{s.Base}, args...)...)
	cmd.Dir = filepath.Join(s.Base, "proj")
	cmd.Env = []string{
		roleVar + "=" + role, canaryVar + "=CANARY-" + rand.Text(), "HOME=" + filepath.Join(s.Base, "home"),
		"PATH=/usr/bin:/bin", "SANDBOX_TEST_SUID=" + s.Suid, "TMPDIR=" + s.Base,
		// Folders and files of the user's that variables name.
		"XDG_RUNTIME_DIR=" + filepath.Join(s.Base, "runtime"), "KUBECONFIG=" + filepath.Join(s.Base, "elsewhere", "kube.yaml"),
		"DOCKER_CONFIG=" + filepath.Join(s.Base, "docker-config"), "DBUS_SESSION_BUS_ADDRESS=unix:path=" + filepath.Join(s.Base, "bus", "bus.sock") + ",guid=1",
		"GORACE=atexit_sleep_ms=0", // else each exit of a race-enabled program takes a second
	}
	if os.Getuid() == 0 && uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	return cmd
}

// attacker is a launcher that runs test/hostile, as root among mounts of its
// own.
func attacker(t *testing.T, s stageSet, role string, uid int) *exec.Cmd {
	t.Helper()
	cmd := launcher(t, s, role, uid, s.Hostile, "TARGETS")
	if uid == 0 {
		cmd.Env = append(cmd.Env, mountsVar+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	}
	return cmd
}

// users returns the users that this test can play.
func users() map[string]int {
	if os.Getuid() == 0 {
		return map[string]int{"root": 0, "user": otherUID}
	}
	return map[string]int{"user": os.Getuid()}
}

// TestHostile runs test/hostile in the sandbox and wants every attempt
// blocked; run outside, the attempts that this user can make must succeed, or
// the test could not fail.
func TestHostile(t *testing.T) {
	for name, uid := range users() {
		t.Run(name, func(t *testing.T) {
			s := stageFor(t, uid)
			t.Run("control", func(t *testing.T) { control(t, s, uid) })
			roles := []string{roleFull, roleNoNS, roleNet}
			if uid == 0 {
				roles = append(roles, roleOwnUID)
			}
			for _, role := range roles {
				t.Run(role, func(t *testing.T) { confined(t, s, role, uid) })
			}
		})
	}
}

func confined(t *testing.T, s stageSet, role string, uid int) {
	out, err := attacker(t, s, role, uid).CombinedOutput()
	leaks := leaked(string(out))
	known := len(leaks)
	if role == roleNoNS {
		// Landlock restricts neither chmod nor devices: docs/sandbox.md.
		leaks = slices.DeleteFunc(leaks, func(a string) bool {
			return a == "chmod the policy" || a == "read a device in "+filepath.Join(s.Base, "proj")
		})
	}
	known -= len(leaks)
	if len(leaks) > 0 {
		t.Errorf("leaked: %s", strings.Join(leaks, "; "))
	}
	if !strings.Contains(string(out), fmt.Sprintf(" passed, %d failed\n", known)) || strings.Count(string(out), "\nattempt: ") < 80 {
		t.Errorf("the hostile program did not come to a good end: %v", err)
	}
	if t.Failed() || testing.Verbose() {
		t.Logf("%s", out)
	}
}

// mustLeak are attempts that succeed without a sandbox, for any user and for
// root. They stand for each thing that the sandbox does.
var (
	mustLeak = []string{
		"inherited descriptors", "read the issuer's key", "list the state folder", "read the key through /proc/self/cwd/..",
		"read the key through a symbolic link", "read the key through a hard link", "delete the spool", "edit the policy", "add a policy",
		"replace the policy", "replace attache's binary", "put another folder in the place of proj", "put another folder in the place of .local",
		"read .aws/credentials", "read home/.netrc", "read proj/provider.key", "read provider.key from the working folder", "read runtime/session.key", "read elsewhere/kube.yaml",
		"read docker-config/token.json", "read tokens/human.token", "read spiffe/svid.key",
		"connect to admin.sock", "connect to agent.sock", "connect to bus.sock", "connect to admin.sock through /proc/PID/root", "connect to an abstract socket",
		"read /proc/PID/environ", "read /proc/PID/mem", "read /proc/TID/mem of a thread", "read /proc/PID/maps", "read the links of /proc/PID/fd", "open /proc/PID/fd/N",
		"read the key through /proc/PID/root", "read the key through /proc/PID/cwd", "ptrace seize", "ptrace attach", "process_vm_readv", "pidfd_getfd",
		"signal", "signal a thread", "signal by pidfd", "prlimit", "type into the terminal", "keyrings",
		"edit a start-up file of the shell", "mount in a new namespace", "io_uring",
	}
	mustLeakUser = []string{"gain privileges from a set-user-id program"}
	mustLeakRoot = []string{
		"mount", "clone the root mount", "chroot", "enter the mount namespace", "open_by_handle_at", "bpf", "perf on everything", "raw packets",
		"make a disk's node", "read a device in /dev", "read attache/issuer.key", "read secrets/token", "read other/.pgpass", "connect to docker.sock", "hold dangerous capabilities", "set core_pattern",
	}
)

func control(t *testing.T, s stageSet, uid int) {
	out, _ := attacker(t, s, roleNone, uid).CombinedOutput()
	want := append(slices.Clone(mustLeak), mustLeakUser...)
	if uid == 0 {
		want = append(slices.Clone(mustLeak), mustLeakRoot...)
	}
	if uid == 0 && !forbidsDevices(t, s.Base) {
		want = append(want, "read a device in "+filepath.Join(s.Base, "proj"))
	}
	got := leaked(string(out))
	for _, name := range want {
		if !slices.Contains(got, name) {
			t.Errorf("%q must succeed without a sandbox, or it proves nothing with one", name)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}

// forbidsDevices reports whether the file system of dir does so on its own.
func forbidsDevices(t *testing.T, dir string) bool {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Flags&unix.ST_NODEV != 0
}

// leaked lists the attempts that succeeded.
func leaked(out string) []string {
	var list []string
	for line := range strings.Lines(out) {
		if name, ok := strings.CutSuffix(line, ": LEAKED\n"); ok {
			list = append(list, strings.TrimPrefix(name, "attempt: "))
		}
	}
	return list
}
