package main

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// health answers probes. The zero value is alive and ready.
type health struct {
	draining atomic.Bool

	mu     sync.Mutex // guards checks
	checks []check
}

type check struct {
	name string
	test func() error
}

// add makes readiness depend on a test, which must be quick and is called
// concurrently.
func (h *health) add(name string, test func() error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.checks = append(h.checks, check{name, test})
}

var errDraining = errors.New("is stopping, and serves until no endpoint names it")

// ready returns why the replica should get no requests.
func (h *health) ready() error {
	if h.draining.Load() {
		return errDraining
	}
	h.mu.Lock()
	checks := h.checks
	h.mu.Unlock()
	var errs []error
	for _, c := range checks {
		if err := c.test(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c.name, err))
		}
	}
	return errors.Join(errs...)
}

// handler serves /healthz, /readyz and /metrics. The process is healthy as
// long as it answers: restarting it mends no cluster.
func (h *health) handler(metrics prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := h.ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	return mux
}
