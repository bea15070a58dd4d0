package sandbox_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/internal/sandbox"
)

// run starts a shell script in a sandbox and returns its output and status.
func run(t *testing.T, o sandbox.Options, script string) (string, int) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	s, err := sandbox.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if dir := s.CgroupDir(); dir != "" {
			if _, err := os.Stat(dir); err == nil {
				t.Errorf("cgroup %s outlives the run", dir)
			}
		}
	}()
	err = s.Start(sandbox.Command{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin", "SSH_AUTH_SOCK=/tmp/x", "KEEP=1"}, Stdout: w, Stderr: w})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	done := make(chan struct{})
	go func() { _, _ = out.ReadFrom(r); close(done) }()
	code, err := s.Wait(t.Context())
	if err != nil {
		t.Error(err)
	}
	<-done // nothing that could write is left
	return out.String(), code
}

func TestExitStatus(t *testing.T) {
	tests := []struct {
		name, script string
		want         int
	}{
		{"success", "exit 0", 0},
		{"failure", "exit 7", 7},
		{"signal", "kill -TERM $$", 128 + 15},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if out, got := run(t, sandbox.Options{}, tt.script); got != tt.want {
				t.Errorf("got %d, want %d: %s", got, tt.want, out)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	out, _ := run(t, sandbox.Options{}, "env; grep -E 'NoNewPrivs|Seccomp:' /proc/self/status; pwd")
	for _, want := range []string{"KEEP=1\n", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	if strings.Contains(out, "SSH_AUTH_SOCK") {
		t.Error("the child is told of an agent it cannot reach")
	}
}

// What ordinary programs do must go on working.
func TestOrdinaryWork(t *testing.T) {
	out, code := run(t, sandbox.Options{}, `set -e
echo a > f; mv f g; ln g h; mkdir d; mv g d/; rm -r d h
echo x > /dev/null; head -c 4 /dev/urandom > r; ls / /dev /proc/self > /dev/null
mktemp -d > t; rmdir "$(cat t)"; sleep 0 & wait; kill -0 $$; echo fine`)
	if code != 0 || !strings.Contains(out, "fine") {
		t.Errorf("status %d: %s", code, out)
	}
}

// Nothing outlives the run: not a background process, not one in a session of
// its own whose parent is gone.
func TestNothingOutlives(t *testing.T) {
	out, code := run(t, sandbox.Options{}, "sleep 300 & echo $!; (setsid sleep 300 & echo $!); exit 3")
	pids := strings.Fields(out)
	if code != 3 || len(pids) != 2 {
		t.Fatalf("status %d: %s", code, out)
	}
	for _, f := range pids {
		pid, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(pid, 0); err == nil {
			t.Errorf("process %d outlives the run", pid)
		}
	}
}

func TestContextKills(t *testing.T) {
	s, err := sandbox.New(t.Context(), sandbox.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if err := s.Start(sandbox.Command{Path: "/bin/sleep", Args: []string{"sleep", "300"}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if code, err := s.Wait(ctx); code != 128+9 || err != nil {
		t.Errorf("got %d, %v; want 137", code, err)
	}
}

// Signals to the launcher reach the child; a second SIGINT kills it, but not
// one that comes with the first.
func TestSignals(t *testing.T) {
	trap := "trap 'echo got it; exit 9' TERM; trap 'echo once' INT; echo ready; while :; do sleep 0.01; done"
	tests := []struct {
		name string
		send []syscall.Signal
		want int
	}{
		{"TERM is forwarded", []syscall.Signal{syscall.SIGTERM}, 9},
		{"TERM at once again is the same", []syscall.Signal{syscall.SIGTERM, syscall.SIGTERM}, 9},
		{"INT twice kills", []syscall.Signal{syscall.SIGINT, syscall.SIGINT}, 128 + 9},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := stageFor(t, os.Getuid())
			cmd := launcher(t, s, roleFull, os.Getuid(), "/bin/sh", "-c", trap)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal
			pr, pw, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = pr.Close() }()
			cmd.Stdout = pw
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			_ = pw.Close()
			wait := func(word string) {
				var seen []byte
				buf := make([]byte, 256)
				for !bytes.Contains(seen, []byte(word)) {
					n, err := pr.Read(buf)
					if err != nil {
						t.Fatalf("%v after %q", err, seen)
					}
					seen = append(seen, buf[:n]...)
				}
			}
			wait("ready")
			for i, sig := range tt.send {
				if i > 0 && sig == syscall.SIGINT {
					wait("once")
					time.Sleep(100 * time.Millisecond) // sooner would be the same signal
				}
				if err := cmd.Process.Signal(sig); err != nil {
					t.Fatal(err)
				}
			}
			_ = cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

// TestTerminal runs an interactive child: it owns the terminal, reads from it,
// and Ctrl-C is its own and not Attaché's.
func TestTerminal(t *testing.T) {
	m, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	defer func() { _ = m.Close() }()
	if err := unix.IoctlSetPointerInt(int(m.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(m.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	s := stageFor(t, os.Getuid())
	cmd := launcher(t, s, roleFull, os.Getuid(), "/bin/sh", "-c", "trap 'echo inter''rupted; exit 5' INT; echo rea''dy; read x; echo got:$x; read y")
	cmd.Env = append(cmd.Env, "SANDBOX_TEST_TTY=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = tty.Close()
	stop := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill(); _ = m.Close() })
	defer stop.Stop()
	var seen []byte
	for _, step := range []struct{ want, send string }{{"ready", "word\n"}, {"got:word", "\x03"}, {"interrupted", ""}} {
		buf := make([]byte, 512)
		for !bytes.Contains(seen, []byte(step.want)) {
			n, err := m.Read(buf)
			if err != nil {
				t.Fatalf("%v before %q, after %q", err, step.want, seen)
			}
			seen = append(seen, buf[:n]...)
		}
		if _, err := m.WriteString(step.send); err != nil {
			t.Fatal(err)
		}
	}
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 5 {
		t.Errorf("got %d, want the child's own 5: %s", got, seen)
	}
}

func TestOnlyProxy(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("needs bash to connect")
	}
	var ports []int
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	script := fmt.Sprintf("for p in %d %d; do bash -c \"echo > /dev/tcp/127.0.0.1/$p\" 2>/dev/null && echo $p; done; true", ports[0], ports[1])
	out, _ := run(t, sandbox.Options{OnlyProxy: []uint16{uint16(ports[0])}}, script)
	if got := strings.Fields(out); len(got) != 1 || got[0] != strconv.Itoa(ports[0]) {
		t.Errorf("connected to %v, want %d alone", got, ports[0])
	}
	if out, _ := run(t, sandbox.Options{}, script); len(strings.Fields(out)) != 2 {
		t.Errorf("without the option connected to %q, want both", out)
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	tests := []struct {
		name string
		o    sandbox.Options
		want string
	}{
		{"relative folder", sandbox.Options{Dir: "x"}, "must be absolute"},
		{"hide what is not there", sandbox.Options{Dir: dir, Hide: []string{filepath.Join(dir, "none")}}, "create it before the child starts"},
		{"hide the working folder", sandbox.Options{Dir: dir, Hide: []string{dir}}, "a folder of its own"},
		{"policy that is not there", sandbox.Options{Dir: dir, ReadOnly: []string{filepath.Join(dir, "none")}}, "read-only"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := sandbox.New(t.Context(), tt.o)
			if err == nil {
				_ = s.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestStartErrors(t *testing.T) {
	s, err := sandbox.New(t.Context(), sandbox.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if err := s.Start(sandbox.Command{Path: "/no/such/program", Args: []string{"x"}}); err == nil || !strings.Contains(err.Error(), "exec /no/such/program: no such file") {
		t.Errorf("got %v, want a missing program", err)
	}
	root, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	if err := s.Start(sandbox.Command{Path: "/bin/true", Args: []string{"true"}, Stdin: root}); err == nil || !strings.Contains(err.Error(), "is a folder") {
		t.Errorf("got %v, want a folder as standard input refused", err)
	}
}

func FuzzMountinfo(f *testing.F) {
	f.Add(`41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw`)
	f.Add(`1 2 8:1 /a\040b /c\134d rw shared:1 - ext4 /dev/x rw`)
	f.Fuzz(func(_ *testing.T, line string) { sandbox.ParseMount(line) })
}
