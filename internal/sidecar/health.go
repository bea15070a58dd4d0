package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Steps of the start, in order: what /started waits for.
const (
	stepTrust    = "trust bundle"
	stepAttest   = "attestation"
	stepPolicy   = "first policy"
	stepRedirect = "redirect"
)

// maxProbes bounds the connections to the health port, which the whole network
// can reach. With one more the oldest ends: who keeps connections open must not
// keep the kubelet out, which would take the pod for a dead one.
const maxProbes = 32

// health answers probes. It shows no more than the state of the start and
// metrics.
type health struct {
	mu    sync.Mutex // guards what follows
	step  string     // under way; empty: started
	cause error      // of the last attempt at it
	ready func() error
	reg   *prometheus.Registry
}

func newHealth() *health { return &health{step: stepTrust} }

// begin says which step is under way.
func (h *health) begin(step string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.step, h.cause = step, nil
}

// trouble says why the step is not done yet.
func (h *health) trouble(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cause = err
}

// serving says how readiness is asked from now on.
func (h *health) serving(ready func() error, reg *prometheus.Registry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ready, h.reg = ready, reg
}

func (h *health) started() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.step == "":
		return nil
	case h.cause != nil:
		return fmt.Errorf("waiting for: %s: %w", h.step, h.cause)
	}
	return errors.New("waiting for: " + h.step)
}

func (h *health) isReady() error {
	if err := h.started(); err != nil {
		return err
	}
	h.mu.Lock()
	ready := h.ready
	h.mu.Unlock()
	return ready()
}

// told is what a peer may read of err: the network reads the step, and the pod
// also why it is not done, which may name servers and settings.
func (h *health) told(peer string, err error) string {
	if a, e := netip.ParseAddrPort(peer); e == nil && a.Addr().Unmap().IsLoopback() {
		return err.Error()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.step != "" {
		return "waiting for: " + h.step
	}
	return "not ready; the log says why"
}

func (h *health) metrics(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	reg := h.reg
	h.mu.Unlock()
	if reg == nil {
		http.Error(w, "not yet", http.StatusServiceUnavailable)
		return
	}
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 2}).ServeHTTP(w, r)
}

func (h *health) handler() http.Handler {
	probe := func(check func() error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Header().Set("X-Content-Type-Options", "nosniff")
			if err := check(); err != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
				_, _ = w.Write([]byte(h.told(r.RemoteAddr, err) + "\n"))
				return
			}
			_, _ = w.Write([]byte("ok\n"))
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /started", probe(h.started))
	mux.HandleFunc("GET /ready", probe(h.isReady))
	mux.HandleFunc("GET /metrics", h.metrics)
	return mux
}

// serve answers at where until the returned function is called.
func (h *health) serve(ctx context.Context, where string) (addr net.Addr, stop func(), err error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", where)
	if err != nil {
		return nil, nil, fmt.Errorf("open the health port: %w; choose another with --health", err)
	}
	s := &http.Server{
		Handler: h.handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second,
		WriteTimeout: 10 * time.Second, IdleTimeout: 30 * time.Second, MaxHeaderBytes: 8 << 10,
	}
	s.ConnState = (&newest{max: maxProbes}).state
	go func() { _ = s.Serve(ln) }()
	return ln.Addr(), func() { _ = s.Close() }, nil
}

// newest closes the oldest connections of a server when there are more than
// max.
type newest struct {
	max  int
	mu   sync.Mutex // guards what follows
	open []net.Conn // the oldest first
}

func (n *newest) state(c net.Conn, st http.ConnState) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch st {
	case http.StateNew:
		if n.open = append(n.open, c); len(n.open) > n.max {
			_ = n.open[0].Close() // StateClosed follows, and finds nothing
			n.open = slices.Delete(n.open, 0, 1)
		}
	case http.StateClosed, http.StateHijacked:
		n.open = slices.DeleteFunc(n.open, func(o net.Conn) bool { return o == c })
	}
}
