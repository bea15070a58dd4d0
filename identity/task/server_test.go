package task_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity/identitytest"
	"github.com/attache-dev/attache/identity/task"
	"github.com/attache-dev/attache/internal/secret"
)

func endRun(s *task.Store) func(http.ResponseWriter, *http.Request) bool {
	return func(http.ResponseWriter, *http.Request) bool { s.CloseRun(agent().RunID); return false }
}

func serve(t *testing.T, s *task.Store, allow func(int, uint32) error) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "task")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	srv, err := task.NewServer(task.ServerConfig{Store: s, Allow: allow, Workload: task.OneRun(agent())})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := task.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := errors.Join(srv.Shutdown(ctx), <-done); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); err == nil {
			t.Error("the socket was left behind")
		}
		_ = os.RemoveAll(dir)
	})
	return path
}

func anyone(int, uint32) error { return nil }

func TestServer(t *testing.T) {
	p := identitytest.NewProvider(t)
	s, _ := store(t, task.StoreConfig{Verifier: verifier(t, task.VerifierConfig{Issuers: []v1alpha1.HumanIssuer{humans(p)}})})
	path := serve(t, s, func(pid int, uid uint32) error {
		if pid != os.Getpid() || uid != uint32(os.Getuid()) {
			return errors.New("not me")
		}
		return nil
	})
	c := task.NewClient(path)
	tok := p.Sign(t, "", grant(p, nil))
	got, err := c.Open(t.Context(), task.ClientRequest{Purpose: "triage", HumanToken: secret.New(tok + "\n"), TTL: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	k, err := s.Lookup(got.ID, agent())
	if err != nil || k.OpenedBy != task.ByOrchestrator || k.Human.Subject != "alice" || !k.Expires.Equal(got.Expires) {
		t.Fatalf("%+v %v", k, err)
	}
	list, err := c.List(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != got.ID || list[0].Subject != "alice" || list[0].Workload != agentID {
		t.Errorf("%+v %v", list, err)
	}
	if _, err := c.Open(t.Context(), task.ClientRequest{Purpose: "again", HumanToken: secret.New(tok)}); task.CodeOf(err) != task.CodeReplayed || strings.Contains(err.Error(), tok[:20]) {
		t.Errorf("got %v", err)
	}
	if _, err := c.Open(t.Context(), task.ClientRequest{Purpose: "x", Run: "another"}); task.CodeOf(err) != task.CodeNotFound {
		t.Errorf("got %v", err)
	}
	if err := c.Close(t.Context(), got.ID); err != nil {
		t.Error(err)
	}
	if err := c.Close(t.Context(), got.ID); task.CodeOf(err) != task.CodeNotFound {
		t.Errorf("got %v", err)
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %v %v", fi.Mode(), err)
	}
	if _, err := task.Listen(path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a live socket was taken: %v", err)
	}
}

// TestServerPeers: peers are asked about when they connect and again later,
// and a refusal at first is not forgotten.
func TestServerPeers(t *testing.T) {
	s, _ := store(t, task.StoreConfig{})
	var calls atomic.Int32
	for _, tt := range []struct {
		name  string
		allow func(int, uint32) error
	}{
		{"never", func(int, uint32) error { return errors.New("inside the child's tree") }},
		{"only at first", func(int, uint32) error {
			if calls.Add(1) > 1 {
				return errors.New("gone")
			}
			return nil
		}},
		{"only later", func(int, uint32) error {
			if calls.Add(1) == 1 {
				return errors.New("inside the child's tree")
			}
			return nil
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			calls.Store(0)
			c := task.NewClient(serve(t, s, tt.allow))
			if _, err := c.Open(t.Context(), task.ClientRequest{Purpose: "x"}); task.CodeOf(err) != task.CodeForbidden || strings.Contains(err.Error(), "tree") {
				t.Errorf("got %v", err)
			}
			if len(s.List()) != 0 {
				t.Error("a task was opened")
			}
		})
	}
}

func TestServerRequests(t *testing.T) {
	s, _ := store(t, task.StoreConfig{})
	path := serve(t, s, anyone)
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	for _, tt := range []struct {
		name, body string
		edit       func(*http.Request)
		want       int
	}{
		{"good", `{"purpose":"x"}`, nil, 201},
		{"named", `{"purpose":"x","workload":"` + agentID + `","run":"` + agent().RunID + `"}`, nil, 201},
		{"unknown field", `{"purpose":"x","admin":"1"}`, nil, 400},
		{"other case", `{"Purpose":"x"}`, nil, 400},
		{"twice", `{"purpose":"x","purpose":"y"}`, nil, 400},
		{"trailing", `{"purpose":"x"} {}`, nil, 400},
		{"list", `[]`, nil, 400},
		{"number", `{"purpose":1}`, nil, 400},
		{"null", `{"purpose":null}`, nil, 400},
		{"bad ttl", `{"purpose":"x","ttl":"-1s"}`, nil, 400},
		{"empty token", `{"purpose":"x","human_token":" "}`, nil, 400},
		{"no purpose", `{}`, nil, 400},
		{"too long", `{"purpose":"` + strings.Repeat("x", 65<<10) + `"}`, nil, 400},
		{"form", `purpose=x`, func(r *http.Request) { r.Header.Set("Content-Type", "application/x-www-form-urlencoded") }, 400},
		{"origin", `{"purpose":"x"}`, func(r *http.Request) { r.Header.Set("Origin", "https://evil.example") }, 403},
		{"host", `{"purpose":"x"}`, func(r *http.Request) { r.Host = "evil.example" }, 403},
		{"method", `{"purpose":"x"}`, func(r *http.Request) { r.Method = http.MethodPut }, 405},
		{"path", `{"purpose":"x"}`, func(r *http.Request) { r.URL.Path = "/v2/tasks" }, 404},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://attache/v1/tasks", strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			if tt.edit != nil {
				tt.edit(req)
			}
			before := len(s.List())
			res, err := hc.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			b, _ := io.ReadAll(res.Body)
			if res.StatusCode != tt.want {
				t.Errorf("%d %s; want %d", res.StatusCode, b, tt.want)
			}
			if opened := len(s.List()) > before; opened != (tt.want == 201) {
				t.Errorf("opened: %v", opened)
			}
		})
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := task.Listen(file); err == nil {
		t.Error("a file was replaced")
	}
	stale := filepath.Join(dir, "stale")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := task.Listen(stale)
	if err != nil {
		t.Fatalf("a stale socket is in the way: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestServerConfig(t *testing.T) {
	if _, err := task.NewServer(task.ServerConfig{}); err == nil {
		t.Error("a server without a check of its peers")
	}
}
