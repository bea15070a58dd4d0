package isolate_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/process"
	"github.com/attache-dev/attache/internal/isolate"
	"github.com/attache-dev/attache/internal/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.MaybeStage()
	if os.Getenv(agentVar) != "" {
		agent()
		return
	}
	if os.Getenv(twiceVar) != "" {
		twice()
		return
	}
	if os.Getenv(noIPv6Var) != "" {
		withoutIPv6()
		return
	}
	os.Exit(m.Run())
}

// patience bounds what must happen; it is never waited for in full.
const patience = 30 * time.Second

// world is what the agent sees: an HTTP server that answers whatever was
// connected to with the address that it was, its name and who called.
type world struct {
	t        *testing.T
	names    *isolate.Names
	attestor *process.Attestor
	box      *sandbox.Sandbox
	wg       sync.WaitGroup
	sockets  *isolate.Sockets
}

// door is where the explicit proxy would listen.
const door = 15002

// forbidden skips the test where this machine's settings give no namespaces to
// this user, and where they do not work for another reason unless they must.
func forbidden(t *testing.T, err error) {
	t.Helper()
	set := strings.Contains(err.Error(), "sysctl -w ") || strings.Contains(err.Error(), "seccomp filter")
	if errors.Is(err, isolate.ErrForbidden) && (set || os.Getenv("ATTACHE_REQUIRE_SERVERS") != "1") {
		t.Skipf("SKIPPED, NOTHING OF THE ISOLATION IS TESTED: %v", err)
	}
	t.Fatal(err)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, names: isolate.NewNames(time.Now)}
	conf := t.TempDir() + "/resolv.conf"
	if err := os.WriteFile(conf, []byte(isolate.ResolvConf), 0o644); err != nil {
		t.Fatal(err)
	}
	var err error
	w.box, err = sandbox.New(t.Context(), sandbox.Options{
		Dir: t.TempDir(), ResolvConf: conf, Isolate: &isolate.Spec{Ports: []uint16{door}}, Isolated: w.serve,
	})
	if err != nil {
		forbidden(t, err)
	}
	t.Cleanup(func() {
		_ = w.box.Close()
		if w.sockets != nil {
			if err := w.sockets.Close(); err != nil {
				t.Error(err)
			}
		}
		w.wg.Wait()
	})
	w.attestor, err = process.New(process.Options{Workload: &identity.Workload{}, CgroupDir: w.box.CgroupDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.attestor.Close() })
	return w
}

func (w *world) serve(s *isolate.Sockets) error {
	w.sockets = s
	if err := w.attestor.Enter(s.Diag); err != nil {
		return err
	}
	r := &isolate.Resolver{Names: w.names, IPv6: s.IPv6}
	w.wg.Go(func() { r.Serve(s) })
	for _, ln := range append(append([]net.Listener{}, s.Transparent...), s.Doors...) {
		w.wg.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				w.wg.Go(func() { w.answer(c) })
			}
		})
	}
	return nil
}

// answer is HTTP where the client speaks first, and one line where it does
// not within a moment.
func (w *world) answer(c net.Conn) {
	defer func() { _ = c.Close() }()
	caller, aerr := w.attestor.Attest(context.Background(), c)
	orig, err := isolate.Original(c)
	name, _ := w.names.Name(orig.Addr())
	text := fmt.Sprintf("orig=%v err=%v name=%s exe=%s attest=%v\n", orig, err, name, caller.Process.Exe, aerr)
	_ = c.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 4096)
	n, _ := c.Read(buf)
	if n == 0 {
		return
	}
	if bytes.HasPrefix(buf[:n], []byte("GET ")) {
		_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(text), text)
		return
	}
	_, _ = io.WriteString(c, text)
}

// run runs a command inside and returns its output and status.
func (w *world) run(args ...string) (string, int) {
	w.t.Helper()
	path, err := exec.LookPath(args[0])
	if err != nil {
		w.t.Skipf("%s is not installed", args[0])
	}
	r, wr, err := os.Pipe()
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	var out bytes.Buffer
	read := make(chan struct{})
	go func() { defer close(read); _, _ = io.Copy(&out, r) }()
	err = w.box.Start(sandbox.Command{Path: path, Args: args, Env: []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", agentVar + "=1"}, Stdout: wr, Stderr: wr})
	_ = wr.Close()
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	status, err := w.box.Wait(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	<-read
	return out.String(), status
}

// attempt runs attempts of agent_linux_test.go inside, and returns a line for
// each.
func (w *world) attempt(attempts ...string) []string {
	w.t.Helper()
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	out, status := w.run(append([]string{self}, attempts...)...)
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if status != 0 || len(lines) != len(attempts)/2 {
		w.t.Fatalf("%q ended with %d: %s", attempts, status, out)
	}
	return lines
}

// outside makes the same attempt without any confinement.
func outside(t *testing.T, what, at string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", what, at)
	cmd.Env = append(os.Environ(), agentVar+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("outside: %v %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// asUser runs the calling test again as a user without privileges, if it runs
// as root.
func asUser(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	dir, err := os.MkdirTemp("", "isolate-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	if err := errors.Join(os.WriteFile(dir+"/isolate.test", self, 0o755), os.Chown(dir, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, dir+"/isolate.test", "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Dir, cmd.Env = dir, []string{"PATH=/usr/bin:/bin", "HOME=" + dir, "TMPDIR=" + dir, "ATTACHE_REQUIRE_SERVERS=" + os.Getenv("ATTACHE_REQUIRE_SERVERS")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "--- SKIP: "+t.Name()+" ") {
		t.Skipf("as a user: %s", out)
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()+" ") {
		t.Errorf("as a user: %v\n%s", err, out)
	}
}

// canary is what must not be reached: it counts who came, and says so.
type canary struct {
	tcp, udp       string // on loopback
	tcpAll, udpAll string // on an address of the machine's own
	abstract, path string
	hits           atomic.Int32
}

func newCanary(t *testing.T) *canary {
	t.Helper()
	c := &canary{abstract: "@isolate-test-" + strconv.Itoa(os.Getpid()) + t.Name(), path: t.TempDir() + "/canary.sock"}
	stream := func(network, addr string) string {
		ln, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ln.Close() })
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				c.hits.Add(1)
				_, _ = io.WriteString(conn, "canary")
				if t, ok := conn.(*net.TCPConn); ok { // its words are not read
					_ = t.CloseWrite()
					_, _ = io.Copy(io.Discard, conn)
				}
				_ = conn.Close()
			}
		}()
		return ln.Addr().String()
	}
	packets := func(addr string) string {
		pc, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = pc.Close() })
		go func() {
			b := make([]byte, 64)
			for {
				_, from, err := pc.ReadFrom(b)
				if err != nil {
					return
				}
				c.hits.Add(1)
				_, _ = pc.WriteTo([]byte("canary"), from)
			}
		}()
		return pc.LocalAddr().String()
	}
	c.tcp, c.udp = stream("tcp", "127.0.0.1:0"), packets("127.0.0.1:0")
	if a := ownAddress(); a != "" {
		c.tcpAll, c.udpAll = stream("tcp", net.JoinHostPort(a, "0")), packets(net.JoinHostPort(a, "0"))
	}
	stream("unix", c.abstract)
	stream("unix", c.path)
	return c
}

// ownAddress is an address of this machine that is not loopback, if it has one.
func ownAddress() string {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		// One of the namespace's own would be inside, too.
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && n.IP.To4() != nil && !strings.HasPrefix(n.IP.String(), "198.1") {
			return n.IP.String()
		}
	}
	return ""
}

// No attempt leads out, and each is refused at once; the same attempts succeed
// outside.
func TestNoWayOut(t *testing.T) {
	asUser(t)
	c := newCanary(t)
	type row struct {
		what, at, inside string // inside: what the attempt says
		outside          string // empty: not tried
	}
	rows := []row{
		{"tcp", c.tcp, "failed: dial tcp " + c.tcp + ": connect: connection refused", "reached: canary"},
		{"udp", c.udp, "connection refused", "reached: canary"},
		{"unix", c.abstract, "connection refused", "reached: canary"},
		{"unix", c.path, "failed: ", "reached: canary"},
		{"udp", "203.0.113.9:443", "failed: ", ""},
		{"udp", "[2001:db8::9]:443", "failed: ", ""},
		{"udp", "203.0.113.9:123", "failed: ", ""},
		{"sendto", "203.0.113.9:443", "operation not permitted", ""}, // else the sender would wait
		{"sendto", "[2001:db8::9]:443", "operation not permitted", ""},
		{"raw", "", "failed: ", ""},
		{"caps", "", "failed: ", ""},
		{"meddle", "", "failed: everything is refused", ""},
		{"nested", "", "failed: ", ""},
		{"setns", strconv.Itoa(os.Getpid()), "failed: ", ""},
		{"setns", "1", "failed: ", ""},
		{"family", strconv.Itoa(unix.AF_PACKET), "failed: address family", ""},
		{"family", strconv.Itoa(unix.AF_VSOCK), "failed: address family", ""},
		{"family", strconv.Itoa(unix.AF_ALG), "failed: address family", ""},
		{"family", strconv.Itoa(unix.AF_BLUETOOTH), "failed: address family", ""},
		{"family", strconv.Itoa(unix.AF_TIPC), "failed: address family", ""},
		{"family", strconv.Itoa(unix.AF_XDP), "failed: address family", ""},
	}
	if c.tcpAll != "" {
		rows = append(rows,
			row{"tcp", c.tcpAll, "reached: orig=" + c.tcpAll + " ", "reached: canary"},
			row{"udp", c.udpAll, "failed: ", "reached: canary"})
	}
	for _, r := range rows {
		if r.outside == "" {
			continue
		}
		if got := outside(t, r.what, r.at); got != r.outside {
			t.Fatalf("outside: %s %s: %s; want %s", r.what, r.at, got, r.outside)
		}
	}
	before := c.hits.Load()
	var args []string
	for _, r := range rows {
		args = append(args, r.what, r.at)
	}
	for i, got := range newWorld(t).attempt(args...) {
		if r := rows[i]; !strings.Contains(got, r.inside) || strings.HasSuffix(got, "canary") {
			t.Errorf("inside: %s %s: %s; want %s", r.what, r.at, got, r.inside)
		}
	}
	if c.hits.Load() != before {
		t.Error("the canary was reached")
	}
}

// Everything that connects arrives at the door, as what it was meant for.
func TestEverythingArrives(t *testing.T) {
	asUser(t)
	const count = 300
	rows := []struct{ what, at, want string }{
		{"tcp", "203.0.113.9:443", "orig=203.0.113.9:443 err=<nil>"},
		{"tcp", "[2001:db8::9]:8443", "orig=[2001:db8::9]:8443 err=<nil>"},
		{"tcp", "[::ffff:203.0.113.9]:22", "orig=203.0.113.9:22 err=<nil>"},
		{"tcp", "169.254.169.254:80", "orig=169.254.169.254:80 err=<nil>"},
		{"tcp", "api.example.com:5432", "name=api.example.com"},
		{"tcp", "127.0.0.1:15001", "connection was not redirected"},
		{"tcp", "127.0.0.1:15002", "connection was not redirected"},
		{"many", strconv.Itoa(count), "reached: " + strconv.Itoa(count)},
		{"ownlocal", "", "reached: mine mine mine mine mine"},
		{"resolve", "udp!198.18.0.1:53!api.example.com", "[198.18.1.0 fd61:7474:6163::100] [api.example.com.]"},
		{"resolve", "udp!8.8.8.8:53!api.example.com", "[198.18.1.0"},
		{"resolve", "udp![2001:4860:4860::8888]:53!api.example.com", "[198.18.1.0"},
		{"resolve", "tcp!8.8.8.8:53!api.example.com", "[198.18.1.0"},
		{"resolve", "tcp![2001:4860:4860::8888]:53!api.example.com", "[198.18.1.0"},
		{"resolve", "udp!127.0.0.53:53!api.example.com", "[198.18.1.0"},
	}
	var args []string
	for _, r := range rows {
		args = append(args, r.what, r.at)
	}
	for i, got := range newWorld(t).attempt(args...) {
		r := rows[i]
		if !strings.Contains(got, r.want) {
			t.Errorf("%s %s: %s; want %s", r.what, r.at, got, r.want)
		}
		if strings.Contains(got, "attest=") && !strings.Contains(got, "/isolate.test attest=<nil>") {
			t.Errorf("%s %s is not attributed: %s", r.what, r.at, got)
		}
	}
}

// The agent's resolvers ask ours, whatever the machine's configuration says.
func TestResolvConf(t *testing.T) {
	if _, err := os.Stat("/etc/resolv.conf"); err != nil {
		t.Skip("this machine has no resolv.conf")
	}
	want := "reached: " + strings.ReplaceAll(strings.TrimSpace(isolate.ResolvConf), "\n", "|")
	if got := newWorld(t).attempt("resolv", "")[0]; got != want && !strings.Contains(got, "no such file") {
		t.Errorf("resolv.conf: %s", got)
	}
}

// noIPv6Var makes the test binary build a namespace in which IPv6 is switched
// off, as on machines whose administrators do.
const noIPv6Var = "ISOLATE_TEST_NO_IPV6"

func withoutIPv6() {
	err := os.WriteFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6", []byte("1"), 0)
	if err != nil {
		fmt.Println("cannot switch IPv6 off:", err)
		return
	}
	_, kinds, err := isolate.Build(isolate.Spec{})
	fmt.Println(kinds, err)
	_, err = net.DialTimeout("tcp", "[2001:db8::9]:443", shortly)
	fmt.Println(err)
}

// A machine without IPv6 has isolation all the same, and nothing leaves by it.
func TestWithoutIPv6(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = []string{noIPv6Var + "=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE},
	}
	out, err := cmd.CombinedOutput()
	text := string(out)
	if cmd.Process == nil || strings.Contains(text, "cannot switch IPv6 off") {
		forbidden(t, fmt.Errorf("%w: %w: %s", isolate.ErrForbidden, err, text))
	}
	lines := strings.SplitN(text, "\n", 2)
	if lines[0] != "[transparent dns-tcp dns-udp sock-diag] <nil>" || len(lines) < 2 || !strings.Contains(lines[1], "unreachable") && !strings.Contains(lines[1], "cannot assign") {
		t.Errorf("without IPv6: %v %s", err, text)
	}
}

// A namespace in use, which would lose all its connections, is refused. It is
// one of the test's own: were it not refused, the machine's must not suffer.
func TestNoOthersNetwork(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = []string{twiceVar + "=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE},
	}
	out, err := cmd.CombinedOutput()
	if cmd.Process == nil {
		forbidden(t, fmt.Errorf("%w: %w", isolate.ErrForbidden, err))
	}
	if text := string(out); text != "<nil>\nisolate: interface lo is up: this is no new network namespace\n" {
		t.Errorf("built twice: %v %s", err, text)
	}
}

const twiceVar = "ISOLATE_TEST_TWICE"

func twice() {
	for range 2 {
		_, _, err := isolate.Build(isolate.Spec{})
		fmt.Println(err)
	}
}

// The namespace ends with its last process and socket.
func TestNothingIsLeft(t *testing.T) {
	w := newWorld(t)
	got := w.attempt("netns", "")[0]
	ns, ok := strings.CutPrefix(got, "reached: ")
	if !ok {
		t.Fatal(got)
	}
	if own, err := os.Readlink("/proc/self/ns/net"); err != nil || own == ns {
		t.Fatalf("the agent is in our own network %s: %v", own, err)
	}
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if target, err := os.Readlink(l); err == nil && target == ns {
			t.Errorf("%s is still in it", l)
		}
	}
	if _, err := os.Stat(w.box.CgroupDir()); w.box.CgroupDir() != "" && err != nil {
		t.Errorf("cgroup: %v", err)
	}
}

// Where isolation is impossible New says so, whatever else is unsafe.
func TestForbidden(t *testing.T) {
	_, err := sandbox.New(t.Context(), sandbox.Options{
		Dir: t.TempDir(), Isolate: &isolate.Spec{Ports: []uint16{dnsTwice}}, UnsafeSameUser: true,
	})
	if !errors.Is(err, isolate.ErrForbidden) || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a port that is taken inside: %v", err)
	}
}

// dnsTwice is taken by the resolver inside.
const dnsTwice = 53

// A launcher that cannot serve the sockets has no agent.
func TestNotServed(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "ran")
	box, err := sandbox.New(t.Context(), sandbox.Options{
		Dir: t.TempDir(), Isolate: &isolate.Spec{}, Isolated: func(s *isolate.Sockets) error { return errors.Join(errors.New("not today"), s.Close()) },
	})
	if err != nil {
		forbidden(t, err)
	}
	defer box.Close()
	if err := box.Start(sandbox.Command{Path: "/bin/sh", Args: []string{"sh", "-c", "echo > " + mark}}); err == nil {
		t.Error("the agent is started")
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("the agent ran")
	}
}
