// Package e2e builds the real attache binary and uses it as its user would:
// real child processes, real TLS servers, real signals, the command's own
// output. What one package can prove alone is proven there.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
)

// attacheBinary is what the tests drive; this test binary is itself the agent
// where curl and sh do not reach.
var attacheBinary string

// patience bounds every wait of these tests.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "agent" {
		os.Exit(agent(os.Args[2], os.Args[3:]))
	}
	os.Exit(build(m))
}

func build(m *testing.M) int {
	dir, err := os.MkdirTemp("", "attache-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // other users run it, too
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	attacheBinary = filepath.Join(dir, "attache")
	out, err := exec.Command("go", "build", "-o", attacheBinary, "-ldflags", "-X github.com/attache-dev/attache/internal/version.version=v0.0.0-e2e", "../../cmd/attache").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "build attache: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// world is one user's machine: documents, state folder, home, and servers.
type world struct {
	t      testing.TB
	dir    string // short: sockets live below it
	config string
	state  string
	env    []string            // of attache itself, beyond PATH and HOME
	cred   *syscall.Credential // attache's user; nil: ours
	lines  []string            // that the waiting agent was given
}

func newWorld(t testing.TB) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{t: t, dir: dir, config: filepath.Join(dir, "config"), state: filepath.Join(dir, "state")}
	for _, d := range []string{w.config, filepath.Join(dir, "home"), filepath.Join(dir, "work")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// write puts a document into the configuration folder.
func (w *world) write(name, text string) string {
	w.t.Helper()
	return w.file(filepath.Join("config", name), text)
}

// file writes a private file below the world's folder, atomically.
func (w *world) file(name, text string) string {
	w.t.Helper()
	p := filepath.Join(w.dir, name)
	tmp := filepath.Join(w.dir, ".new")
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(tmp, p); err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, attacheBinary, args...)
	c.Dir = filepath.Join(w.dir, "work")
	// A clean environment: the machine's own CA and proxy variables would
	// make a broken set-up look right.
	c.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Join(w.dir, "home"), "ATTACHE_STATE=" + w.state, "LANG=C.UTF-8"}, w.env...)
	c.WaitDelay = patience
	if w.cred != nil {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: w.cred}
	}
	return c
}

// result is how a command ended.
type result struct {
	code           int
	stdout, stderr string
}

func (r result) all() string { return r.stdout + r.stderr }

// attache runs a command to its end.
func (w *world) attache(args ...string) result {
	w.t.Helper()
	p := w.start(nil, args...)
	return p.wait()
}

// run is attache run --config … with flags, "--" and the agent's command.
func (w *world) run(args ...string) result {
	w.t.Helper()
	return w.attache(append([]string{"run", "--config", w.config}, args...)...)
}

// must fails the test unless the command ended well.
func (r result) must(t testing.TB) result {
	t.Helper()
	if r.code != 0 {
		t.Fatalf("exit code %d\nstdout: %s\nstderr: %s", r.code, r.stdout, r.stderr)
	}
	return r
}

// want fails the test unless the code is right and the text stands in stdout
// or stderr.
func (r result) want(t testing.TB, code int, texts ...string) result {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d, want %d", r.code, code)
	}
	for _, s := range texts {
		if !strings.Contains(r.all(), s) {
			t.Errorf("output does not say %q", s)
		}
	}
	if t.Failed() {
		t.Fatalf("stdout: %s\nstderr: %s", r.stdout, r.stderr)
	}
	return r
}

// process is a command under way.
type process struct {
	t        testing.TB
	cmd      *exec.Cmd
	out, err buffer
	done     chan struct{}
	end      error
}

func (w *world) start(stdin []byte, args ...string) *process {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	p := &process{t: w.t, cmd: w.command(ctx, args...), done: make(chan struct{})}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = bytes.NewReader(stdin), &p.out, &p.err
	if err := p.cmd.Start(); err != nil {
		cancel()
		w.t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		defer cancel()
		p.end = p.cmd.Wait()
	}()
	w.t.Cleanup(func() {
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // in order, with its agent
		select {
		case <-p.done:
		case <-time.After(5 * time.Second):
		}
		cancel()
		<-p.done
	})
	return p
}

// agent starts attache run in the background.
func (w *world) startRun(args ...string) *process {
	w.t.Helper()
	return w.start(nil, append([]string{"run", "--config", w.config}, args...)...)
}

func (p *process) wait() result {
	p.t.Helper()
	<-p.done
	if p.end != nil && p.cmd.ProcessState == nil {
		p.t.Fatal(p.end)
	}
	code := p.cmd.ProcessState.ExitCode()
	if errors.Is(p.end, context.DeadlineExceeded) {
		p.t.Fatalf("%v took too long\nstdout: %s\nstderr: %s", p.cmd.Args, p.out.String(), p.err.String())
	}
	return result{code: code, stdout: p.out.String(), stderr: p.err.String()}
}

// says waits until the process printed text.
func (p *process) says(text string) {
	p.t.Helper()
	defer func() {
		if p.t.Failed() {
			p.t.Logf("stdout: %s\nstderr: %s", p.out.String(), p.err.String())
		}
	}()
	eventually(p.t, "output "+text, func() bool {
		if strings.Contains(p.out.String(), text) || strings.Contains(p.err.String(), text) {
			return true
		}
		select {
		case <-p.done:
			if strings.Contains(p.out.String(), text) || strings.Contains(p.err.String(), text) {
				return true
			}
			p.t.Fatalf("ended without saying %q\nstdout: %s\nstderr: %s", text, p.out.String(), p.err.String())
		default:
		}
		return false
	})
}

// buffer is a bytes.Buffer for two goroutines.
type buffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// eventually waits for something that another process does.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not in time: %s", what)
		}
	}
}

// records searches with the product's own command.
func (w *world) records(query ...string) []audit.Record {
	w.t.Helper()
	r := w.attache(append([]string{"audit", "search", "--lines", "0", "--output", "json", "--"}, query...)...).must(w.t)
	var out []audit.Record
	dec := json.NewDecoder(strings.NewReader(r.stdout))
	for dec.More() {
		var rec audit.Record
		if err := dec.Decode(&rec); err != nil {
			w.t.Fatalf("audit search: %v in %s", err, r.stdout)
		}
		out = append(out, rec)
	}
	return out
}

// requests are the records of requests, not of events.
func (w *world) requests(query ...string) []audit.Record {
	w.t.Helper()
	var out []audit.Record
	for _, r := range w.records(query...) {
		if r.Request != nil {
			out = append(out, r)
		}
	}
	return out
}

// one returns the only request's record.
func (w *world) one(query ...string) audit.Record {
	w.t.Helper()
	rs := w.requests(query...)
	if len(rs) != 1 {
		w.t.Fatalf("%d records for %q, want 1: %+v", len(rs), query, rs)
	}
	return rs[0]
}

// events are the records of one event.
func (w *world) events(name string) []audit.Record {
	w.t.Helper()
	var out []audit.Record
	for _, r := range w.records("type:event") {
		if r.Event != nil && r.Event.Name == name {
			out = append(out, r)
		}
	}
	return out
}

// problem is a refusal's body.
type problem struct {
	Status int    `json:"status"`
	Code   string `json:"code"`
	Detail string `json:"detail"`
	Record string `json:"record"`
	Error  struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

func parseProblem(t testing.TB, body string) problem {
	t.Helper()
	var p problem
	if err := json.Unmarshal([]byte(body), &p); err != nil {
		t.Fatalf("not a problem document: %v: %q", err, body)
	}
	if p.Code == "" || p.Error.Code != p.Code || p.Record == "" || p.Error.Message == "" {
		t.Errorf("incomplete problem document: %s", body)
	}
	return p
}

// curl is the agent's command: an unchanged curl that prints body, then status
// on a line of its own.
func curl(args ...string) []string {
	return append([]string{"--", "curl", "-sS", "-m", "15", "-w", "\n%{http_code}\n"}, args...)
}

// answer splits what curl printed.
func (r result) answer(t testing.TB) (body, status string) {
	t.Helper()
	s := strings.TrimSuffix(r.stdout, "\n")
	i := strings.LastIndexByte(s, '\n')
	if i < 0 {
		t.Fatalf("curl printed nothing: %q\n%s", r.stdout, r.stderr)
	}
	return strings.TrimSpace(s[:i]), s[i+1:]
}

// refused checks the answer and the record of a refused call.
func (w *world) refused(r result, status int, code string) audit.Record {
	w.t.Helper()
	body, got := r.answer(w.t)
	if got != fmt.Sprint(status) {
		w.t.Fatalf("status %s, want %d: %s\n%s", got, status, body, r.stderr)
	}
	p := parseProblem(w.t, body)
	if p.Code != code || p.Status != status {
		w.t.Errorf("code %s status %d, want %s %d", p.Code, p.Status, code, status)
	}
	rec := w.one(p.Record)
	if rec.Decision == nil || rec.Decision.Code != code || rec.Result == nil || rec.Result.ErrorKind != code || rec.Result.Status != status {
		w.t.Errorf("record does not say %s %d: %+v %+v", code, status, rec.Decision, rec.Result)
	}
	return rec
}
