package sidecar

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/test/servers"
)

// The world's and the pod's ends of the only link.
const (
	world4, world6 = "10.5.0.1", "fd00:5::1"
	pod4, pod6     = "10.5.0.2", "fd00:5::2"
	stranger4      = "203.0.113.9" // what the agent believes names to be
	sidecarUID     = 64200
	agentUID       = 1000
	healthPort     = 15020
	apiName        = "api.attache.example"
	gitName        = "git.attache.example"
	plainName      = "plain.attache.example"
)

// world has the origins, a resolver and the pod.
type world struct {
	t   *testing.T
	dir string
	key string // of the API; drawn anew, since this binary is readable, too
	pod int    // a process whose network namespace is the pod's
	pem string

	mu   sync.Mutex
	seen []string // Authorization, as the origin got it
	rawN int
	left int // clients of /gone that left
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "sc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{t: t, dir: dir, key: "sk-live-" + rand.Text(), pem: filepath.Join(dir, "origin-ca.pem")}
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // two other users work below it
		t.Fatal(err)
	}
	// What the pod's own files say of names is a lie, and must not matter.
	hosts, resolv := filepath.Join(dir, "hosts"), filepath.Join(dir, "resolv.conf")
	w.write(hosts, "127.0.0.1 localhost\n"+stranger4+" "+apiName+" "+gitName+" "+plainName+"\n", 0o644)
	w.write(resolv, "nameserver 127.0.0.1\nsearch attache.example\n", 0o644)
	w.sh("mount --make-rprivate / && mount --bind " + hosts + " /etc/hosts && mount --bind " + resolv + " /etc/resolv.conf" +
		" && mount -t tmpfs -o size=16m tmpfs /dev/shm") // a pod has its own
	holder := exec.Command("sleep", "infinity")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	w.pod = holder.Process.Pid
	w.sh("ip link set lo up && ip link add world0 type veth peer name eth0 netns " + strconv.Itoa(w.pod) +
		" && ip addr add " + world4 + "/24 dev world0 && ip -6 addr add " + world6 + "/64 dev world0 nodad && ip link set world0 up")
	w.in(0, "ip link set lo up && ip addr add "+pod4+"/24 dev eth0 && ip -6 addr add "+pod6+"/64 dev eth0 nodad && ip link set eth0 up"+
		" && ip route add default via "+world4+" && ip -6 route add default via "+world6)
	w.serve()
	w.resolver()
	return w
}

func (w *world) write(name, text string, mode os.FileMode) {
	w.t.Helper()
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) sh(script string) string {
	w.t.Helper()
	return w.must(exec.CommandContext(w.t.Context(), "sh", "-ec", script))
}

func (w *world) must(c *exec.Cmd) string {
	w.t.Helper()
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Run(); err != nil {
		w.t.Fatalf("%q: %v\n%s", c.Args, err, out.String())
	}
	return out.String()
}

// in runs a script in the pod's network as a user.
func (w *world) in(uid int, script string) string {
	w.t.Helper()
	return w.must(w.podCommand(uid, "sh", "-ec", script))
}

// podCommand is a program in the pod's network.
func (w *world) podCommand(uid int, args ...string) *exec.Cmd {
	return w.podCommandContext(w.t.Context(), uid, args...)
}

func (w *world) podCommandContext(ctx context.Context, uid int, args ...string) *exec.Cmd {
	enter := []string{"-t", strconv.Itoa(w.pod), "-n"}
	if uid != 0 {
		enter = append(enter, "-S", strconv.Itoa(uid), "-G", strconv.Itoa(uid))
	}
	c := exec.CommandContext(ctx, "nsenter", append(append(enter, "--"), args...)...) //nolint:gosec // the tests' own
	c.Dir = w.dir                                                                     // the agent may not see where the tests are
	c.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=" + w.dir, "LANG=C.UTF-8"}
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return c
}

// serve starts the origins: https and http on both families, and a protocol in
// which the server speaks first.
func (w *world) serve() {
	ca, err := servers.NewAuthority("world", w.pem)
	if err != nil {
		w.t.Fatal(err)
	}
	cert, key := filepath.Join(w.dir, "origin.pem"), filepath.Join(w.dir, "origin.key")
	if err := ca.Issue(cert, key, apiName, gitName); err != nil {
		w.t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, addr := range []string{world4, world6} {
		s := &http.Server{Handler: http.HandlerFunc(w.origin), ReadHeaderTimeout: patience}
		tln := w.listen("tcp", net.JoinHostPort(addr, "443"))
		go func() {
			_ = s.Serve(tls.NewListener(tln, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}))
		}()
		pln := w.listen("tcp", net.JoinHostPort(addr, "80"))
		go func() { _ = s.Serve(pln) }()
		w.t.Cleanup(func() { _ = s.Close() })
	}
	raw := w.listen("tcp", world4+":3306")
	go func() {
		for {
			c, err := raw.Accept()
			if err != nil {
				return
			}
			w.mu.Lock()
			w.rawN++
			w.mu.Unlock()
			_, _ = io.WriteString(c, "greeting of the server\n")
			_ = c.Close()
		}
	}()
}

func (w *world) listen(network, addr string) net.Listener {
	w.t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(w.t.Context(), network, addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// origin repeats what it was sent, credentials too: what an origin should not
// do, and some do.
func (w *world) origin(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	w.seen = append(w.seen, r.Header.Get("Authorization"))
	w.mu.Unlock()
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	switch r.URL.Path {
	case "/slow": // long enough to notice that the client has half-closed
		<-time.After(time.Second)
	case "/gone":
		select {
		case <-r.Context().Done():
			w.mu.Lock()
			w.left++
			w.mu.Unlock()
		case <-time.After(patience):
		}
		return
	}
	if strings.HasSuffix(r.URL.Path, "/info/refs") {
		rw.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
		_, _ = io.WriteString(rw, "001e# service=git-upload-pack\n0000")
		// An empty repository: capabilities on a line of zeros.
		line := strings.Repeat("0", 40) + " capabilities^{}\x00 agent=world\n"
		_, _ = fmt.Fprintf(rw, "%04x%s0000", len(line)+4, line)
		return
	}
	_, _ = fmt.Fprintf(rw, "%s %s%s said %q with %q\n", r.Method, r.Host, r.URL, body, r.Header.Get("Authorization"))
}

func (w *world) authorizations() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.seen...)
}

// resolver answers for the world's names, at its own addresses.
func (w *world) resolver() {
	pc, err := (&net.ListenConfig{}).ListenPacket(w.t.Context(), "udp", world4+":53")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = pc.Close() })
	known := map[string]bool{apiName + ".": true, gitName + ".": true, plainName + ".": true}
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			if out := answer(buf[:n], known); out != nil {
				_, _ = pc.WriteTo(out, from)
			}
		}
	}()
}

func answer(b []byte, known map[string]bool) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: h.ID, Response: true}, Questions: []dnsmessage.Question{q}}
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}
	switch {
	case !known[q.Name.String()]:
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.AResource{A: netip.MustParseAddr(world4).As4()}}}
	case q.Type == dnsmessage.TypeAAAA:
		m.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr(world6).As16()}}}
	}
	out, err := m.Pack()
	if err != nil {
		return nil
	}
	return out
}

// eventually waits for what another process is about to do.
func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if err = ok(); err == nil {
			return
		}
		<-time.After(20 * time.Millisecond)
	}
	t.Fatalf("%s: %v", what, err)
}
