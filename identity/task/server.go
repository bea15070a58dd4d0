package task

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/peercred"
	"github.com/attache-dev/attache/internal/secret"
)

const (
	maxBody   = 64 << 10
	localHost = "attache" // the Host that requests must name
)

// ServerConfig describes a [Server]. Store, Allow and Workload are required.
type ServerConfig struct {
	Store *Store
	// Allow refuses peers that may not open tasks, above all processes of the
	// agent's own tree. It is asked when a peer connects and again at each
	// request, and must be safe for concurrent use.
	Allow func(pid int, uid uint32) error
	// Workload finds the running workload that a task is for; both arguments
	// may be empty. See [OneRun].
	Workload func(spiffeID, run string) (*identity.Workload, error)
	// Log receives refusals and failures. Default: discarded.
	Log *slog.Logger
}

// Server lets an orchestrator open and close tasks over HTTP on a Unix socket:
//
//	POST   /v1/tasks       {"purpose", "workload", "run", "human_token", "ttl"}
//	GET    /v1/tasks
//	DELETE /v1/tasks/{id}
type Server struct {
	cfg  ServerConfig
	http *http.Server
}

// OneRun is a ServerConfig.Workload for a single workload w: requests may name
// it and its run, or leave them out.
func OneRun(w *identity.Workload) func(spiffeID, run string) (*identity.Workload, error) {
	return func(id, run string) (*identity.Workload, error) {
		if id != "" && id != w.ID.String() || run != "" && !equal(run, w.RunID) {
			return nil, refuse(CodeNotFound, "no such run; this one is %s of workload %s", w.RunID, w.ID)
		}
		return w, nil
	}
}

// NewServer checks c.
func NewServer(c ServerConfig) (*Server, error) {
	if c.Store == nil || c.Allow == nil || c.Workload == nil {
		return nil, errors.New("task server: Store, Allow and Workload are required")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: c}
	s.http = &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    8 << 10,
		ConnContext:       s.connect,
		ErrorLog:          slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Listen makes the socket, mode 0600. A stale socket is replaced; a live one,
// or another kind of file, is an error.
func Listen(path string) (net.Listener, error) {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("task socket: %w", err)
	case fi.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("task socket: %s exists and is no socket; choose another path", path)
	default:
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			_ = c.Close()
			return nil, fmt.Errorf("task socket: another process serves %s", path)
		}
	}
	// Born in a private folder and moved once its mode is right: between bind
	// and chmod nobody else can connect.
	dir, err := os.MkdirTemp(filepath.Dir(path), ".t")
	if err != nil {
		return nil, fmt.Errorf("task socket: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	tmp := filepath.Join(dir, "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("task socket: %w", err)
	}
	ln.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		return nil, errors.Join(fmt.Errorf("task socket: %w", err), ln.Close())
	}
	return &listener{UnixListener: ln, path: path}, nil
}

// listener removes its socket, which moved since it was bound.
type listener struct {
	*net.UnixListener
	path string
}

// Close implements net.Listener.
func (l *listener) Close() error {
	err := l.UnixListener.Close()
	if err == nil {
		_ = os.Remove(l.path)
	}
	return err
}

// Addr implements net.Listener with the socket's final path.
func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Serve answers on ln until [Server.Shutdown] and then returns nil.
func (s *Server) Serve(ln net.Listener) error {
	if err := s.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("task server: %w", err)
	}
	return nil
}

// Shutdown stops the server once its requests are answered or ctx ends. The
// store's tasks stay open.
func (s *Server) Shutdown(ctx context.Context) error { return s.http.Shutdown(ctx) }

type peerKey struct{}

// peer is who connected, and whether it was allowed to then.
type peer struct {
	peercred.Peer
	err error
}

func (s *Server) connect(ctx context.Context, c net.Conn) context.Context {
	p, err := peercred.Of(c)
	if err == nil {
		err = s.cfg.Allow(p.PID, p.UID)
	}
	return context.WithValue(ctx, peerKey{}, peer{p, err})
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/tasks", s.open)
	mux.HandleFunc("GET /v1/tasks", s.list)
	mux.HandleFunc("DELETE /v1/tasks/{id}", s.close)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if err := s.admit(r); err != nil {
			s.cfg.Log.WarnContext(r.Context(), "task request refused", "error", err)
			answerError(w, refuse(CodeForbidden, "this process may not manage tasks"))
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// admit lets only the right peers in. The answer at connect time stands when
// it was a refusal, since a process id can pass to another process; that the
// peer is still there and still allowed is asked again.
func (s *Server) admit(r *http.Request) error {
	p, ok := r.Context().Value(peerKey{}).(peer)
	switch {
	case !ok:
		return errors.New("no peer credentials")
	case p.err != nil:
		return p.err
	case r.Header.Get("Origin") != "" || r.Host != localHost:
		// A browser, or somebody's forwarding proxy.
		return fmt.Errorf("request with Host %s or an Origin; want Host %s and none", quote(r.Host), localHost)
	}
	return s.cfg.Allow(p.PID, p.UID)
}

// openBody is the body of POST /v1/tasks.
type openBody struct {
	purpose, workload, run string
	token                  secret.Value
	ttl                    time.Duration
}

func (s *Server) open(w http.ResponseWriter, r *http.Request) {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		answerError(w, refuse(CodeInvalid, "content type must be application/json"))
		return
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		answerError(w, refuse(CodeInvalid, "the body cannot be read or is longer than %d bytes", maxBody))
		return
	}
	body, err := parseOpen(b)
	clear(b) // it held the human's token
	if err != nil {
		answerError(w, err)
		return
	}
	wl, err := s.cfg.Workload(body.workload, body.run)
	if err != nil {
		answerError(w, err)
		return
	}
	t, err := s.cfg.Store.Open(r.Context(), OpenRequest{
		Workload: wl, RunID: body.run, Purpose: body.purpose,
		OpenedBy: ByOrchestrator, HumanToken: body.token, TTL: body.ttl,
	})
	if err != nil {
		s.cfg.Log.WarnContext(r.Context(), "task not opened", "error", err, "cause", errors.Unwrap(err))
		answerError(w, err)
		return
	}
	answer(w, http.StatusCreated, Opened{ID: t.ID, Expires: t.Expires.UTC()})
}

// parseOpen reads the body of POST /v1/tasks. Errors do not repeat values.
func parseOpen(b []byte) (openBody, error) {
	m, err := object(b)
	if err != nil {
		return openBody{}, refuse(CodeInvalid, "the body: %v", err)
	}
	var out openBody
	for name, raw := range m {
		var v *string
		if json.Unmarshal(raw, &v) != nil || v == nil {
			return openBody{}, refuse(CodeInvalid, "%s must be a text", quote(name))
		}
		switch name {
		case "purpose":
			out.purpose = *v
		case "workload":
			out.workload = *v
		case "run":
			out.run = *v
		case "human_token":
			// Read from files, tokens often end in a newline.
			out.token = secret.New(strings.TrimSpace(*v))
			if out.token.IsZero() {
				return openBody{}, refuse(CodeInvalid, "human_token is empty; leave it out for a task without a human")
			}
		case "ttl":
			if out.ttl, err = time.ParseDuration(*v); err != nil || out.ttl <= 0 {
				return openBody{}, refuse(CodeInvalid, "ttl must be a duration above zero such as \"15m\"")
			}
		default:
			return openBody{}, refuse(CodeInvalid, "%s is unknown; known are purpose, workload, run, human_token, ttl", quote(name))
		}
	}
	return out, nil
}

func (s *Server) list(w http.ResponseWriter, _ *http.Request) {
	out := []Listed{}
	for _, t := range s.cfg.Store.List() {
		l := Listed{
			ID: t.ID, Purpose: t.Purpose, OpenedBy: t.OpenedBy, Workload: t.WorkloadID.String(), Run: t.RunID,
			Opened: t.Opened.UTC(), Expires: t.Expires.UTC(),
		}
		if t.Human != nil {
			l.Subject, l.Issuer = t.Human.Subject, t.Human.Issuer
		}
		out = append(out, l)
	}
	answer(w, http.StatusOK, map[string]any{"tasks": out})
}

func (s *Server) close(w http.ResponseWriter, r *http.Request) {
	if err := s.cfg.Store.Close(r.PathValue("id"), "closed by the orchestrator"); err != nil {
		answerError(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// wireError is the body of every refusal.
type wireError struct {
	Error struct {
		Code    Code   `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

// answerError writes the text of an [*Error]; other errors are not for the
// peer's eyes.
func answerError(w http.ResponseWriter, err error) {
	var out wireError
	out.Error.Code, out.Error.Message = CodeInvalid, "the request was refused"
	if e, ok := errors.AsType[*Error](err); ok {
		out.Error.Code, out.Error.Message = e.Code, e.Text
	}
	answer(w, status(out.Error.Code), out)
}

func status(c Code) int {
	switch c {
	case CodeInvalid:
		return http.StatusBadRequest
	case CodeNotFound:
		return http.StatusNotFound
	case CodeReplayed, CodeClosed:
		return http.StatusConflict
	case CodeLimit:
		return http.StatusTooManyRequests
	case CodeUnavailable, CodeState:
		return http.StatusServiceUnavailable
	default:
		return http.StatusForbidden
	}
}
