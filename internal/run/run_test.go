package run

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
)

// bundle parses documents.
func bundle(t *testing.T, text string) *api.Bundle {
	t.Helper()
	b, err := api.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const provider = `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: p}
spec:
  destinations: [{host: api.example.com}]
`

// Everything that holds a secret or a way to one is out of the agent's sight.
func TestHidden(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"tls.pem", "tls.key"} {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "unix:///run/spire/env.sock")
	b := bundle(t, provider+`  apiKey: {file: /etc/key}
---
apiVersion: attache.dev/v1alpha1
kind: AttacheConfig
metadata: {name: a}
spec:
  identity: {sshAgent: /run/ssh-agent.sock, listen: '127.0.0.1:0', issuerURL: 'https://i.example', tlsCertFile: `+dir+`/tls.pem, tlsKeyFile: `+dir+`/tls.key}
  audit: {dir: /var/spool/attache}
  admin: {listen: 'unix:/run/attache/admin.sock'}
`)
	b.Config.Spec.Identity.Socket = "unix:///run/spire/agent.sock" // of the other source
	o := Options{State: "/state", HumanTokenFile: "/token.jwt"}
	got := o.hidden(b)
	for _, want := range []string{"/state", "/token.jwt", "/etc/key", "/run/spire/agent.sock", "/run/spire/env.sock", "/run/ssh-agent.sock", dir + "/tls.key", "/var/spool/attache", "/run/attache/admin.sock"} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is not hidden: %v", want, got)
		}
	}
}

// A process of ours is the agent's; whoever is above us or beside us is not.
func TestAllowPeer(t *testing.T) {
	uid := uint32(os.Getuid())
	child := exec.Command("sh", "-c", "sleep 60 & echo up; wait")
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, pid := range children(t, child.Process.Pid) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		_ = child.Wait()
	})
	if n, err := out.Read(make([]byte, 32)); n == 0 {
		t.Fatal(err)
	}
	if err := allowPeer(child.Process.Pid, uid); err == nil {
		t.Error("a child of ours is allowed")
	}
	for _, pid := range children(t, child.Process.Pid) {
		if err := allowPeer(pid, uid); err == nil {
			t.Error("a grandchild of ours is allowed")
		}
	}
	for _, pid := range []int{os.Getpid(), os.Getppid()} {
		if err := allowPeer(pid, uid); err != nil {
			t.Errorf("process %d is refused: %v", pid, err)
		}
	}
	if err := allowPeer(os.Getppid(), uid+1); err == nil {
		t.Error("another user is allowed")
	}
	if err := allowPeer(1<<22+1, uid); err == nil {
		t.Error("a process that is not there is allowed")
	}
}

// children lists the children of a process.
func children(t *testing.T, pid int) []int {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, f := range all {
		var n int
		if json.Unmarshal([]byte(filepath.Base(filepath.Dir(f))), &n) != nil {
			continue
		}
		if p, err := parentOf(n); err == nil && p == pid {
			out = append(out, n)
		}
	}
	if len(out) == 0 {
		t.Fatal("no children found")
	}
	return out
}

// What changes something is refused to peers that the kernel does not name.
func TestLocal(t *testing.T) {
	called := false
	s := httptest.NewServer(local(func(http.ResponseWriter, *http.Request) { called = true }))
	defer s.Close()
	res, err := http.Post(s.URL, "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusForbidden || called {
		t.Errorf("over TCP: %s, called %v", res.Status, called)
	}
}

func TestRevokeBody(t *testing.T) {
	p := &plane{}
	for _, body := range []string{"", "{}", "[]", `{"hanlde":"x"}`, `{"all":false}`, `{"handle":"` + strings.Repeat("x", 8<<10) + `"}`} {
		w := httptest.NewRecorder()
		p.serveRevoke(w, httptest.NewRequest(http.MethodPost, "/v1/revoke", strings.NewReader(body)))
		if w.Code != http.StatusBadRequest {
			t.Errorf("%.20s: got %d, want 400", body, w.Code)
		}
	}
}

func TestListenLoopback(t *testing.T) {
	for _, where := range []string{"0.0.0.0:0", "[::]:0", ":0"} {
		ln, err := listenLoopback(t.Context(), where)
		if err == nil {
			_ = ln.Close()
		}
		if !errors.Is(err, ErrUsage) {
			t.Errorf("%s: got %v, want %v", where, err, ErrUsage)
		}
	}
	ln, err := listenLoopback(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
}

// Runs that were killed are swept away; those alive come oldest first.
func TestRuns(t *testing.T) {
	state := t.TempDir()
	for i, id := range []string{"b-older", "a-newer", "c-dead"} {
		dir := filepath.Join(state, "run", id)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		ln, err := listenUnix(t.Context(), filepath.Join(dir, adminSocket))
		if err != nil {
			t.Fatal(err)
		}
		ln.(*net.UnixListener).SetUnlinkOnClose(false)
		t.Cleanup(func() { _ = ln.Close() })
		if id == "c-dead" {
			_ = ln.Close()
		}
		b, _ := json.Marshal(Info{Run: id, Dir: dir, Started: time.Unix(int64(1000+i), 0)})
		if err := os.WriteFile(filepath.Join(dir, infoFile), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rs, err := Runs(state)
	if err != nil || len(rs) != 2 || rs[0].Run != "b-older" || rs[1].Run != "a-newer" {
		t.Errorf("got %+v, %v", rs, err)
	}
	if _, err := os.Stat(filepath.Join(state, "run", "c-dead")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the dead run's folder is still there: %v", err)
	}
}

// noSVID leaves the end of an epoch unsigned.
func noSVID() (*x509svid.SVID, error) { return nil, errors.New("no identity in this test") }

// Each run writes a spool of its own; a configured one is not shared.
func TestOpenSpool(t *testing.T) {
	o := &Options{State: t.TempDir()}
	b := bundle(t, provider+"  jwt: {}\n")
	one, dir1, err := openSpool(o, b, noSVID, false)
	if err != nil {
		t.Fatal(err)
	}
	two, dir2, err := openSpool(o, b, noSVID, false)
	if err != nil {
		t.Fatal(err)
	}
	if dir1 == dir2 {
		t.Errorf("two runs write %s", dir1)
	}
	if dirs, err := Spools(o.State); err != nil || len(dirs) != 2 {
		t.Errorf("spools %v, %v", dirs, err)
	}
	if err := errors.Join(one.Close(), two.Close()); err != nil {
		t.Error(err)
	}
	if s, dir3, err := openSpool(o, b, noSVID, false); err != nil || dir3 != dir1 {
		t.Errorf("a free spool is not used again: %s, %v", dir3, err)
	} else if err := s.Close(); err != nil {
		t.Error(err)
	}
	b.Config.Spec.Audit.Dir = filepath.Join(o.State, "own")
	own, _, err := openSpool(o, b, noSVID, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = own.Close() }()
	if _, _, err := openSpool(o, b, noSVID, false); !errors.Is(err, audit.ErrInUse) {
		t.Errorf("got %v, want %v", err, audit.ErrInUse)
	}
	if _, err := Spools(t.TempDir()); err == nil || !strings.Contains(err.Error(), "--state") {
		t.Errorf("no records: %v", err)
	}
}

func TestStateDir(t *testing.T) {
	t.Setenv("HOME", "/home/ana")
	for _, tt := range []struct{ state, xdg, want string }{
		{"/s", "/x", "/s"}, {"", "/x", "/x/attache"}, {"", "relative", "/home/ana/.local/state/attache"}, {"", "", "/home/ana/.local/state/attache"},
	} {
		t.Setenv("ATTACHE_STATE", tt.state)
		t.Setenv("XDG_STATE_HOME", tt.xdg)
		if got, err := StateDir(); err != nil || got != tt.want {
			t.Errorf("%+v: got %q, %v", tt, got, err)
		}
	}
}

func TestWorkloadName(t *testing.T) {
	for _, tt := range []struct{ flag, config, command, want string }{
		{"f", "c", "/bin/x", "f"}, {"", "c", "/bin/x", "c"}, {"", "", "/usr/bin/python3.13", "python3.13"},
		{"", "", "my agent (v2)", "my-agent-v2"}, {"", "", "...", "agent"}, {"", "", "..", "agent"},
	} {
		o := &Options{Name: tt.flag, Command: []string{tt.command}}
		if got := workloadName(o, v1alpha1.AttacheConfigSpec{Workload: v1alpha1.WorkloadConfig{Name: tt.config}}); got != tt.want {
			t.Errorf("%+v: got %q, want %q", tt, got, tt.want)
		}
	}
}

func TestReadSecretFile(t *testing.T) {
	p := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(p, make([]byte, 64<<10+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readSecretFile(p); err == nil {
		t.Error("a file over the limit is read")
	}
}
