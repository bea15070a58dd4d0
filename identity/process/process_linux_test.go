package process_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/process"
)

// dialVar makes the test binary a client: "network address [share]".
const dialVar = "PROCESS_TEST_DIAL"

func TestMain(m *testing.M) {
	if arg := os.Getenv(dialVar); arg != "" {
		client(strings.Fields(arg))
		return
	}
	os.Exit(m.Run())
}

// client connects and keeps the connection until its input ends.
func client(args []string) {
	if len(args) > 2 && args[2] == "held" {
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	}
	c, err := net.Dial(args[0], args[1])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	defer func() { _ = c.Close() }()
	if len(args) > 2 { // a child that inherits the socket under the same number
		raw, _ := c.(syscall.Conn).SyscallConn()
		_ = raw.Control(func(fd uintptr) {
			_, _ = unix.FcntlInt(fd, unix.F_SETFD, 0)
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = []string{dialVar + "=" + args[0] + " " + args[1] + " held"}
			cmd.Stdin = os.Stdin
			_ = cmd.Start()
			fmt.Println("child", cmd.Process.Pid)
		})
	}
	fmt.Println("connected")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// workload is who every caller must be.
func workload() *identity.Workload { return &identity.Workload{Namespace: "local", RunID: "r"} }

// start runs the client until the test ends and returns its pid.
func start(t *testing.T, dial string, attr *syscall.SysProcAttr) int {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = []string{dialVar + "=" + dial}
	cmd.SysProcAttr = attr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	for r := bufio.NewScanner(out); r.Scan(); {
		if r.Text() == "connected" {
			return cmd.Process.Pid
		}
		if !strings.HasPrefix(r.Text(), "child ") {
			t.Fatalf("client: %s", r.Text())
		}
	}
	t.Fatal("client ended")
	return 0
}

func listen(t *testing.T, network, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Skipf("no %s here: %v", addr, err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func accept(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func newAttestor(t testing.TB, o process.Options) *process.Attestor {
	t.Helper()
	a, err := process.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

func wantProcess(t *testing.T, got identity.Caller, err error, w *identity.Workload, pid int) {
	t.Helper()
	exe, _ := os.Executable()
	p := got.Process
	if err != nil || got.Workload != w || p.PID != pid || p.UID != uint32(os.Getuid()) || p.Exe != exe || !strings.HasPrefix(p.Digest, "sha256:") || len(p.Digest) != 71 {
		t.Errorf("got %+v, %v; want pid %d, exe %s and its digest", got, err, pid, exe)
	}
}

func TestAttest(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "s")
	tests := []struct{ name, network, addr, dial string }{
		{"v4", "tcp", "127.0.0.1:0", "tcp4"},
		{"v6", "tcp", "[::1]:0", "tcp6"},
		{"v4 client of a dual-stack listener", "tcp", "[::]:0", "tcp4"},
		{"v4-mapped", "tcp", "127.0.0.1:0", "mapped"},
		{"unix", "unix", sock, "unix"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := listen(t, tt.network, tt.addr)
			target := l.Addr().String()
			if tt.dial == "tcp4" {
				target = strings.Replace(target, "[::]", "127.0.0.1", 1)
			}
			dial := tt.dial + " " + target
			if tt.dial == "mapped" {
				dial = "tcp [::ffff:127.0.0.1]" + target[strings.LastIndex(target, ":"):]
			}
			w := workload()
			a := newAttestor(t, process.Options{Workload: w})
			pid := start(t, dial, nil)
			got, err := a.Attest(t.Context(), accept(t, l))
			wantProcess(t, got, err, w, pid)
		})
	}
}

// A process of the same user that is not of the run is refused: this one.
func TestRefusesOutsiders(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			addr := "127.0.0.1:0"
			if network == "unix" {
				addr = filepath.Join(t.TempDir(), "s")
			}
			l := listen(t, network, addr)
			c, err := net.Dial(network, l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			a := newAttestor(t, process.Options{Workload: workload()})
			got, err := a.Attest(t.Context(), accept(t, l))
			if !errors.Is(err, identity.ErrUnattested) || got != (identity.Caller{}) {
				t.Errorf("got %+v, %v; want a refusal", got, err)
			}
		})
	}
}

func TestRefusesGoneSockets(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	a := newAttestor(t, process.Options{Workload: workload()})
	for _, how := range []string{"closed", "reset", "replaced by a listener"} {
		t.Run(how, func(t *testing.T) {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			if how != "closed" {
				_ = c.(*net.TCPConn).SetLinger(0)
			}
			conn := accept(t, l)
			local := c.LocalAddr().String()
			_ = c.Close()
			if how == "replaced by a listener" {
				listen(t, "tcp", local)
			}
			if _, err := a.Attest(t.Context(), conn); !errors.Is(err, identity.ErrUnattested) || !strings.Contains(err.Error(), "gone") {
				t.Errorf("got %v, want the socket to be gone", err)
			}
		})
	}
}

func TestSharedSocketGoesToLowestPID(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	w := workload()
	a := newAttestor(t, process.Options{Workload: w})
	pid := start(t, "tcp "+l.Addr().String()+" share", nil)
	got, err := a.Attest(t.Context(), accept(t, l))
	wantProcess(t, got, err, w, pid)
	if !got.Process.Shared {
		t.Error("a socket that a forked child holds too is not marked")
	}
}

// cgroup makes two sibling cgroups, or skips where this user may not.
func cgroups(t testing.TB) (run, other string) {
	t.Helper()
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if !strings.Contains(line, " - cgroup2 ") {
			continue
		}
		run, err := os.MkdirTemp(f[4], "attache-test-")
		if err != nil {
			break
		}
		other := run + "-other"
		if err := os.MkdirAll(filepath.Join(run, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(other, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			for _, d := range []string{filepath.Join(run, "sub"), run, other} {
				for range 200 {
					if err := os.Remove(d); err == nil {
						break
					}
					time.Sleep(5 * time.Millisecond) // the kernel is still emptying it
				}
			}
		})
		return run, other
	}
	t.Skip("no cgroup2 hierarchy to write to; attribution by tree is tested above")
	return "", ""
}

func inCgroup(t testing.TB, dir string) *syscall.SysProcAttr {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
}

func TestCgroup(t *testing.T) {
	run, other := cgroups(t)
	w := workload()
	a := newAttestor(t, process.Options{Workload: w, CgroupDir: run})
	tests := []struct {
		name, dir string
		want      bool
	}{
		{"member", run, true},
		{"member of a cgroup below", filepath.Join(run, "sub"), true},
		{"sibling cgroup of the same user and parent", other, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := listen(t, "tcp", "127.0.0.1:0")
			pid := start(t, "tcp "+l.Addr().String(), inCgroup(t, tt.dir))
			got, err := a.Attest(t.Context(), accept(t, l))
			if tt.want {
				wantProcess(t, got, err, w, pid)
				var st unix.Stat_t
				if err := unix.Stat(tt.dir, &st); err != nil || got.Process.CgroupID != st.Ino {
					t.Errorf("cgroup %d, want %d (%v)", got.Process.CgroupID, st.Ino, err)
				}
			} else if !errors.Is(err, identity.ErrUnattested) {
				t.Errorf("got %+v, %v; want a refusal", got, err)
			}
		})
	}
	t.Run("socket made outside and moved in", func(t *testing.T) {
		l := listen(t, "tcp", "127.0.0.1:0")
		pid := start(t, "tcp "+l.Addr().String(), inCgroup(t, other))
		if err := os.WriteFile(filepath.Join(run, "cgroup.procs"), fmt.Append(nil, pid), 0); err != nil {
			t.Fatal(err)
		}
		if got, err := a.Attest(t.Context(), accept(t, l)); !errors.Is(err, identity.ErrUnattested) {
			t.Errorf("got %+v, %v; want a refusal", got, err)
		}
	})
}

func TestClosedAttestorRefuses(t *testing.T) {
	l := listen(t, "tcp", "127.0.0.1:0")
	a := newAttestor(t, process.Options{Workload: workload()})
	start(t, "tcp "+l.Addr().String(), nil)
	conn := accept(t, l)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Attest(t.Context(), conn); !errors.Is(err, identity.ErrUnattested) {
		t.Errorf("got %v, want a refusal", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Attest(ctx, conn); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 16))
	f.Add(append([]byte{88, 0, 0, 0, 20, 0}, make([]byte, 82)...))
	f.Add(append([]byte{100, 0, 0, 0, 20, 0}, append(make([]byte, 82), 12, 0, 21, 0, 1, 2, 3, 4, 5, 6, 7, 8)...))
	f.Fuzz(func(_ *testing.T, b []byte) { _ = process.Parse(b) })
}

// BenchmarkAttest is the cost a connection; requests on it pay nothing.
func BenchmarkAttest(b *testing.B) {
	b.Run("tree", func(b *testing.B) { benchmark(b, "", nil) })
	b.Run("cgroup", func(b *testing.B) {
		run, _ := cgroups(b)
		benchmark(b, run, inCgroup(b, run))
	})
}

func benchmark(b *testing.B, cgroup string, attr *syscall.SysProcAttr) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	cmd := exec.CommandContext(b.Context(), "/proc/self/exe")
	cmd.Env = []string{dialVar + "=tcp " + l.Addr().String()}
	cmd.SysProcAttr = attr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = in.Close(); _ = cmd.Wait() }()
	conn, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	a := newAttestor(b, process.Options{Workload: workload(), CgroupDir: cgroup})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Attest(b.Context(), conn); err != nil {
			b.Fatal(err)
		}
	}
}

// A socket that was half-closed is held; one that was closed is not.
func TestHeld(t *testing.T) {
	a := newAttestor(t, process.Options{Workload: workload()})
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(address, func(t *testing.T) {
			l := listen(t, "tcp", address)
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			conn := accept(t, l)
			if !a.Held(conn) {
				t.Error("an open socket is not held")
			}
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if !a.Held(conn) {
				t.Error("a half-closed socket is not held")
			}
			_ = c.Close()
			if a.Held(conn) {
				t.Error("a closed socket is held")
			}
		})
	}
}
