package sandbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/internal/isolate"
	"github.com/attache-dev/attache/internal/sandbox"
)

// Roles in which the test binary plays attache. It is started again, as root
// or as another user, since what is tested changes the whole process.
const (
	roleVar    = "SANDBOX_TEST_ROLE"
	canaryVar  = "SANDBOX_TEST_CANARY"
	mountsVar  = "SANDBOX_TEST_MOUNTS" // the launcher has a mount namespace of its own
	roleNone   = "unconfined"          // the positive control
	roleFull   = "confined"
	roleListen = "listener" // no attache: a daemon
	roleNoNS   = "landlock-only"
	roleOwnUID = "own-user"
	roleNet    = "isolated"    // with a network of its own
	roleNoLL   = "no-landlock" // on a kernel without
	roleUnsafe = "unsafe"      // the same, with --unsafe-same-user
)

func TestMain(m *testing.M) {
	sandbox.MaybeStage()
	if role := os.Getenv(roleVar); role == roleListen {
		ln, err := net.Listen("unix", os.Args[1])
		fmt.Println(ln != nil, err)
		_, _ = io.Copy(io.Discard, os.Stdin) // until the test has seen enough
		return
	} else if role != "" {
		code, err := launch(role, os.Args[1], os.Args[2:])
		if err != nil {
			fmt.Fprintln(os.Stderr, "launcher:", err)
			os.Exit(125)
		}
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// stageSet is where a test keeps what the launcher and its child use.
type stageSet struct {
	Base, Hostile, Suid string
}

// memory is the canary in the launcher's memory.
var memory []byte //nolint:gochecknoglobals // must stay alive while it is attacked

// targets mirrors test/hostile.
type targets struct {
	Parent                     int
	Address                    uintptr
	Size                       int
	State, Key, Spool          string
	Secrets                    []string
	Policy                     string
	Renames                    []string
	Binary, Startup            string
	Sockets                    []string
	Abstract                   string
	Cgroup, Suid, Scratch      string
	Cgroups                    []string
	Near                       string
	Nodes                      []string
	FD                         int
	spiffe, tokenDir, provider string
}

// launch plays attache run: it holds secrets of every kind and starts args.
func launch(role, base string, args []string) (int, error) {
	secret := os.Getenv(canaryVar)
	memory = []byte(secret)
	t, closeAll, err := furnish(base, secret)
	if err != nil {
		return 0, err
	}
	defer closeAll()
	file := filepath.Join(base, "proj", "targets.json")
	b, err := json.Marshal(t)
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(file, b, 0o644); err != nil {
		return 0, err
	}
	for i, a := range args {
		args[i] = strings.ReplaceAll(a, "TARGETS", file)
	}
	env := []string{"HOME=" + os.Getenv("HOME"), "PATH=/usr/bin:/bin", "SSH_AUTH_SOCK=/x", "KEEP=1"}
	// A descriptor that some parent forgot to close.
	if _, err := unix.Dup(t.FD); err != nil {
		return 0, err
	}
	if role == roleNone {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir, cmd.Env = filepath.Join(base, "proj"), env
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		_ = cmd.Run()
		return cmd.ProcessState.ExitCode(), nil
	}
	if err := sandbox.Harden(); err != nil {
		return 0, err
	}
	o := sandbox.Options{
		Dir:      filepath.Join(base, "proj"),
		Hide:     []string{t.State, t.provider, filepath.Join(t.tokenDir, "human.token"), t.spiffe},
		ReadOnly: []string{filepath.Dir(t.Policy)},
	}
	create := sandbox.New
	switch role {
	case roleNoNS:
		create = sandbox.NewLandlockOnly
	case roleNet:
		o.Isolate = &isolate.Spec{}
	case roleOwnUID:
		o.User = &sandbox.User{UID: 65533, GID: 65533}
	case roleNoLL, roleUnsafe:
		o.UnsafeSameUser = role == roleUnsafe
		if err := withoutLandlock(); err != nil {
			return 0, err
		}
	}
	s, err := create(context.Background(), o)
	if err != nil {
		return 0, err
	}
	defer func() { _ = s.Close() }()
	fmt.Println("confinement:", s.Confinement())
	err = s.Start(sandbox.Command{Path: args[0], Args: args, Env: env, Stdin: stdin(), Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		return 0, err
	}
	code, err := s.Wait(context.Background())
	runtime.KeepAlive(memory)
	return code, err
}

// withoutLandlock makes the kernel answer this process as one that does not
// know Landlock.
func withoutLandlock() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_LANDLOCK_CREATE_RULESET, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog))); e != 0 {
		return e
	}
	return nil
}

// stdin is the terminal, where a test gives one.
func stdin() *os.File {
	if os.Getenv("SANDBOX_TEST_TTY") == "" {
		return nil
	}
	return os.Stdin
}

// furnish fills base with everything that the child must not reach.
func furnish(base, secret string) (*targets, func(), error) {
	home := filepath.Join(base, "home")
	state := filepath.Join(home, ".local/state/attache")
	proj := filepath.Join(base, "proj")
	exe, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	t := &targets{
		Parent: os.Getpid(), Address: uintptr(unsafe.Pointer(&memory[0])), Size: len(memory),
		State: state, Key: filepath.Join(state, "issuer.key"), Spool: filepath.Join(state, "spool.log"),
		Policy: filepath.Join(proj, "policy", "policy.yaml"), Binary: exe, Startup: filepath.Join(home, ".bashrc"),
		Sockets: []string{filepath.Join(state, "admin.sock"), filepath.Join(base, "spiffe", "agent.sock"), filepath.Join(base, "bus", "bus.sock")},
		Renames: []string{proj, filepath.Dir(filepath.Dir(state)), filepath.Dir(state)},
		Suid:    os.Getenv("SANDBOX_TEST_SUID"), Scratch: filepath.Join(proj, "scratch"),
		spiffe: filepath.Join(base, "spiffe", "agent.sock"), tokenDir: filepath.Join(base, "tokens"), provider: filepath.Join(proj, "provider.key"),
		Near: "provider.key",
	}
	for _, f := range []string{".aws/credentials", ".netrc", ".ssh/id_ed25519", ".config/gh/hosts.yml", ".config/gcloud/credentials.db", ".kube/config",
		".docker/config.json", ".npmrc", ".git-credentials", ".pypirc", ".cargo/credentials.toml", ".azure/token", ".vault-token", ".local/share/keyrings/login", ".gnupg/key"} {
		t.Secrets = append(t.Secrets, filepath.Join(home, f))
	}
	t.Secrets = append(t.Secrets, t.provider, filepath.Join(t.tokenDir, "human.token"), filepath.Join(base, "spiffe", "svid.key"),
		filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "session.key"), os.Getenv("KUBECONFIG"), filepath.Join(os.Getenv("DOCKER_CONFIG"), "token.json"))
	for _, f := range append([]string{t.Key, t.Spool}, t.Secrets...) {
		if err := put(f, secret, 0o600); err != nil {
			return nil, nil, err
		}
	}
	for _, f := range []string{t.Policy, t.Startup, filepath.Join(t.Scratch, "x")} {
		if err := put(f, "fine", 0o644); err != nil {
			return nil, nil, err
		}
	}
	if err := os.Chmod(t.tokenDir, 0o700); err != nil {
		return nil, nil, err
	}
	key, err := os.Open(t.Key)
	if err != nil {
		return nil, nil, err
	}
	t.FD = int(key.Fd())
	t.Abstract = "attache-test-" + strconv.Itoa(os.Getpid())
	if err := os.MkdirAll(filepath.Join(base, "bus"), 0o755); err != nil {
		return nil, nil, err
	}
	for _, a := range append([]string{"@" + t.Abstract}, t.Sockets...) {
		if err := listen(a, secret); err != nil {
			return nil, nil, err
		}
	}
	t.Cgroup = ownCgroup()
	if err := t.mounts(base, secret); err != nil {
		return nil, nil, err
	}
	t.Nodes = nodes(proj)
	return t, func() {
		_ = key.Close()
		for _, n := range t.Nodes {
			_ = os.Remove(n)
		}
	}, nil
}

func put(path, text string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), mode)
}

func listen(address, secret string) error {
	_ = os.Remove(address)
	l, err := net.Listen("unix", address)
	if err != nil {
		return err
	}
	go answer(l, secret)
	return nil
}

// mounts shows the state folder at a second place, cgroups outside /sys, and a
// /run of its own with what machines keep there. It takes a mount namespace.
func (t *targets) mounts(base, secret string) error {
	if os.Getenv(mountsVar) == "" {
		return nil
	}
	alias, cgroups, passwd, other := filepath.Join(base, "alias"), filepath.Join(base, "cgroups"), filepath.Join(base, "passwd"), filepath.Join(base, "other")
	for _, dir := range []string{alias, cgroups} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	// Root can become any user: another's home is as close as its own.
	if err := errors.Join(put(passwd, "other:x:1234:1234::"+other+":/bin/sh\n", 0o644), put(filepath.Join(other, ".pgpass"), secret, 0o600)); err != nil {
		return err
	}
	if err := errors.Join(unix.Mount(passwd, "/etc/passwd", "", unix.MS_BIND, ""), unix.Mount(filepath.Dir(t.State), alias, "", unix.MS_BIND, ""), unix.Mount("attache", "/run", "tmpfs", 0, "mode=0755")); err != nil {
		return err
	}
	t.Secrets = append(t.Secrets, filepath.Join(alias, filepath.Base(t.State), "issuer.key"), "/run/secrets/token", filepath.Join(other, ".pgpass"))
	if err := put("/run/secrets/token", secret, 0o644); err != nil {
		return err
	}
	t.Sockets = append(t.Sockets, "/run/docker.sock")
	if unix.Mount("attache", cgroups, "cgroup2", 0, "") == nil { // where the machine has them
		own, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			return err
		}
		if _, path, ok := strings.Cut(string(own), "0::"); ok {
			t.Cgroups = append(t.Cgroups, filepath.Join(cgroups, strings.TrimSpace(path)))
		}
	}
	return listen("/run/docker.sock", secret)
}

func answer(l net.Listener, secret string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = c.Write([]byte(secret))
		_ = c.Close()
	}
}

// nodes makes devices that stand for the machine's: /dev/zero by names that
// nobody would call harmless. Only root can.
func nodes(dir string) []string {
	var list []string
	for _, path := range []string{filepath.Join(dir, "device"), "/dev/attache-test-" + strconv.Itoa(os.Getpid())} {
		if unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))) == nil && os.Chmod(path, 0o666) == nil {
			list = append(list, path)
		}
	}
	return list
}

// ownCgroup is where this process lives in the version 2 hierarchy.
func ownCgroup() string {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	own, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if !strings.Contains(line, " - cgroup2 ") || len(f) < 5 {
			continue
		}
		for l := range strings.Lines(string(own)) {
			if p, ok := strings.CutPrefix(strings.TrimSpace(l), "0::"); ok {
				return filepath.Join(f[4], p)
			}
		}
	}
	return ""
}
