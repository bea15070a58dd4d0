package run

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/attache-dev/attache/identity/task"
	"github.com/attache-dev/attache/internal/peercred"
	"github.com/attache-dev/attache/minting"
)

// Socket names inside a run's folder STATE/run/RUNID.
const (
	adminSocket = "admin.sock"
	tasksSocket = "tasks.sock"
	infoFile    = "info.json"
)

// Info describes a run to the operator's commands.
type Info struct {
	Run      string    `json:"run"`
	PID      int       `json:"pid"`
	Workload string    `json:"workload"`
	Command  []string  `json:"command"`
	Config   string    `json:"config"`
	Proxy    string    `json:"proxy"`
	Spool    string    `json:"spool"`
	Started  time.Time `json:"started"`
	Dir      string    `json:"dir"` // of its sockets
}

// Revocation asks to end credentials: exactly one field is set.
type Revocation struct {
	Handle   string `json:"handle,omitempty"`
	Task     string `json:"task,omitempty"`
	Provider string `json:"provider,omitempty"`
	All      bool   `json:"all,omitempty"`
}

// Revoked is the outcome for one credential.
type Revoked struct {
	Handle   string    `json:"handle"`
	Provider string    `json:"provider"`
	Result   string    `json:"result"`
	Ends     time.Time `json:"ends,omitzero"`
}

// admin is the operator's side of a run: a folder with sockets that the child
// cannot see and, asked nevertheless, is refused at.
type admin struct {
	dir   string
	http  *http.Server
	tasks *task.Server
}

func (p *plane) openAdmin(ctx context.Context, extra net.Listener) (_ *admin, err error) {
	dir := filepath.Join(p.o.State, "run", p.workload.RunID)
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir)
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the run's folder: %w", err)
	}
	a := &admin{dir: dir, http: &http.Server{Handler: p.adminHandler(), ReadHeaderTimeout: 5 * time.Second}}
	a.http.ConnContext = func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, peerKey{}, c) }
	ln, err := listenUnix(ctx, filepath.Join(dir, adminSocket))
	if err != nil {
		return nil, err
	}
	go func() { _ = a.http.Serve(ln) }()
	if extra != nil {
		go func() { _ = a.http.Serve(extra) }()
	}
	a.tasks, err = task.NewServer(task.ServerConfig{Store: p.Tasks(), Allow: allowPeer, Workload: task.OneRun(p.workload), Log: p.o.Log})
	if err != nil {
		return nil, err
	}
	tln, err := listenUnix(ctx, filepath.Join(dir, tasksSocket))
	if err != nil {
		return nil, err
	}
	go func() { _ = a.tasks.Serve(tln) }()
	return a, p.writeInfo(dir)
}

func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("open socket %s: %w; a socket's path has at most 107 bytes, choose a shorter --state", path, err)
	}
	return ln, os.Chmod(path, 0o600)
}

func (p *plane) writeInfo(dir string) error {
	b, err := json.MarshalIndent(Info{Run: p.workload.RunID, PID: os.Getpid(), Workload: p.workload.ID.String(), Command: p.o.Command,
		Config: p.o.Config, Proxy: p.proxyURL, Spool: p.spoolDir, Started: time.Now().UTC(), Dir: dir}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, infoFile), append(b, '\n'), 0o600)
}

func (a *admin) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return errors.Join(a.tasks.Shutdown(ctx), a.http.Shutdown(ctx), os.RemoveAll(a.dir))
}

type peerKey struct{}

// allowPeer refuses the agent's own tree: every process below us is it, since
// we are its reaper.
func allowPeer(pid int, uid uint32) error {
	if uid != 0 && int(uid) != os.Getuid() {
		return fmt.Errorf("user %d may not", uid)
	}
	self := os.Getpid()
	for depth := 0; pid > 1 && depth < 1024; depth++ {
		if pid == self {
			return nil
		}
		parent, err := parentOf(pid)
		if err != nil {
			return fmt.Errorf("process %d cannot be looked at: %w", pid, err)
		}
		if parent == self {
			return errors.New("a process of the agent may not")
		}
		pid = parent
	}
	return nil
}

// parentOf reads the parent's id from /proc/PID/stat, behind the command name,
// which may itself hold spaces and parentheses.
func parentOf(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	s := string(b)
	var state byte
	var parent int
	if _, err := fmt.Sscanf(s[strings.LastIndexByte(s, ')')+1:], " %c %d", &state, &parent); err != nil {
		return 0, err
	}
	return parent, nil
}

// local refuses requests that change something unless they came over a Unix
// socket from an allowed peer.
func local(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c, _ := r.Context().Value(peerKey{}).(net.Conn)
		peer, err := peercred.Of(c)
		if err == nil {
			err = allowPeer(peer.PID, peer.UID)
		}
		if err != nil {
			http.Error(w, "refused: "+err.Error(), http.StatusForbidden)
			return
		}
		h(w, r)
	}
}

func (p *plane) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := p.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ready\n"))
		for _, s := range p.Shipping() { // records wait, and calls go on
			if s.Error != "" {
				fmt.Fprintf(w, "sink %s has not taken %d records, the oldest %s old: %s\n", s.Sink, s.LagLines, s.Age.Round(time.Second), s.Error)
			}
		}
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.Registry(), promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /v1/inventory", local(func(w http.ResponseWriter, _ *http.Request) { reply(w, p.Live()) }))
	mux.HandleFunc("GET /v1/records", local(func(w http.ResponseWriter, _ *http.Request) { reply(w, p.Shipping()) }))
	mux.HandleFunc("POST /v1/revoke", local(p.serveRevoke))
	// A profile shows no memory, but names what runs: for the operator only.
	mux.HandleFunc("GET /debug/pprof/", local(pprof.Index))
	mux.HandleFunc("GET /debug/pprof/profile", local(pprof.Profile))
	mux.HandleFunc("GET /debug/pprof/trace", local(pprof.Trace))
	return mux
}

func (p *plane) serveRevoke(w http.ResponseWriter, r *http.Request) {
	var q Revocation
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&q); err != nil {
		http.Error(w, "want {\"handle\"|\"task\"|\"provider\": \"…\"} or {\"all\": true}", http.StatusBadRequest)
		return
	}
	var where func(minting.Request, minting.Credential) bool
	switch {
	case q.Handle != "":
		where = func(_ minting.Request, c minting.Credential) bool { return c.Handle == q.Handle }
	case q.Task != "":
		where = func(m minting.Request, _ minting.Credential) bool { return m.TaskID == q.Task }
	case q.Provider != "":
		where = func(m minting.Request, _ minting.Credential) bool { return m.Provider == q.Provider }
	case q.All:
		where = func(minting.Request, minting.Credential) bool { return true }
	default:
		http.Error(w, "name a handle, a task, a provider, or all", http.StatusBadRequest)
		return
	}
	out := []Revoked{}
	for _, d := range p.Revoke(where) {
		out = append(out, Revoked{Handle: d.Handle, Provider: d.Provider, Result: d.Result, Ends: d.Ends})
	}
	if q.Task != "" {
		_ = p.Tasks().Close(q.Task, "revoked by the operator") // it may have ended by itself
	}
	if q.All {
		p.EndRun()
	}
	reply(w, out)
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the peer may be gone
}

// Runs lists the runs of a state folder that are alive, oldest first.
func Runs(state string) ([]Info, error) {
	files, err := filepath.Glob(filepath.Join(state, "run", "*", infoFile))
	if err != nil {
		return nil, err
	}
	var out []Info
	for _, f := range files { // in no useful order: ids are random
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		var i Info
		if json.Unmarshal(b, &i) != nil {
			continue
		}
		c, err := net.DialTimeout("unix", filepath.Join(i.Dir, adminSocket), time.Second)
		if err != nil {
			if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) { // left by a run that was killed
				_ = os.RemoveAll(filepath.Dir(f))
			}
			continue
		}
		_ = c.Close()
		out = append(out, i)
	}
	slices.SortFunc(out, func(a, b Info) int { return a.Started.Compare(b.Started) })
	return out, nil
}

// Tasks returns a client of the run's task socket.
func (i Info) Tasks() *task.Client { return task.NewClient(filepath.Join(i.Dir, tasksSocket)) }

// Client returns an HTTP client of the run's admin socket; the host in URLs
// does not matter.
func (i Info) Client() *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(i.Dir, adminSocket))
		},
	}}
}
