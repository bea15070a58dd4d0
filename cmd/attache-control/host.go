package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// host is what roles are given: the flags, the cluster, and places to serve
// and to report.
type host struct {
	options
	log    *slog.Logger
	mgr    manager.Manager // client, caches, runnables; its runnables start once the caches are synced
	health *health
	// registry is of our metrics. Those of controller-runtime and of Go are in
	// a registry of the process's, which /metrics shows too.
	registry *prometheus.Registry

	// apiTLS is the configuration of the sidecars' gRPC port, see useAPITLS.
	apiTLS   *tls.Config
	services []func(grpc.ServiceRegistrar)

	identityParts
	policyParts
	recordParts
}

// serveAPI adds a service to the sidecars' gRPC port.
func (h *host) serveAPI(register func(grpc.ServiceRegistrar)) {
	h.services = append(h.services, register)
}

// runnable is a function that the manager runs on every replica, leader or
// not, until its context ends.
type runnable func(context.Context) error

// Start implements [manager.Runnable].
func (r runnable) Start(ctx context.Context) error { return r(ctx) }

// NeedLeaderElection implements [manager.LeaderElectionRunnable].
func (runnable) NeedLeaderElection() bool { return false }

// run adds a function that the manager runs on every replica.
func (h *host) run(f func(context.Context) error) error { return h.mgr.Add(runnable(f)) }

// Times of the servers. The API server waits 5 s for a webhook, at most 30.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 30 * time.Second
	writeTimeout      = 30 * time.Second
	idleTimeout       = 2 * time.Minute
	stopTimeout       = 20 * time.Second
)

// newServer makes an HTTP server with bounds on time and headers.
func newServer(handler http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug), // scanners and probes without TLS
	}
}

// serveHTTP serves until ctx ends, and then ends the running requests in
// peace. A nil config is plain HTTP.
func serveHTTP(ctx context.Context, addr string, config *tls.Config, s *http.Server) error {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if config != nil {
		s.TLSConfig = config
		return serveUntil(ctx, s, func() error { return s.ServeTLS(ln, "", "") })
	}
	return serveUntil(ctx, s, func() error { return s.Serve(ln) })
}

func serveUntil(ctx context.Context, s *http.Server, serve func() error) error {
	done := make(chan error, 1)
	go func() { done <- serve() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := s.Shutdown(stop); err != nil {
		_ = s.Close()
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Bounds of the sidecars' port, which anybody reaches who is let by network
// policy, and who shows an SVID or a token only inside of a call. A sidecar has
// one stream, and as many calls as it mints at a time; more of them wait.
const (
	maxCalls     = 128 // of a connection at a time
	maxHeaders   = 64 << 10
	maxMessage   = 1 << 20
	maxHandshake = 15 * time.Second
)

func apiOptions(config *tls.Config) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(credentials.NewTLS(config)),
		// New replicas get their share of the streams. With SVIDs of an hour,
		// renewed at half, no connection outlives its certificate.
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge: 15 * time.Minute, MaxConnectionAgeGrace: time.Minute,
			Time: 30 * time.Second, Timeout: 10 * time.Second,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxConcurrentStreams(maxCalls), grpc.MaxHeaderListSize(maxHeaders), grpc.ConnectionTimeout(maxHandshake),
	}
}

// serveSidecars serves the gRPC port, if any role has a service there.
func (h *host) serveSidecars(ctx context.Context) error {
	if len(h.services) == 0 {
		return nil
	}
	if h.apiTLS == nil {
		return errors.New("the sidecars' port has services, and no role that gives it a certificate")
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", h.apiListen)
	if err != nil {
		return fmt.Errorf("listen for sidecars: %w", err)
	}
	s := grpc.NewServer(apiOptions(h.apiTLS)...)
	for _, register := range h.services {
		register(s)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	// Policy streams never end by themselves: a graceful stop tells their
	// clients to go elsewhere, and the rest is cut.
	timer := time.AfterFunc(stopTimeout/4, s.Stop)
	defer timer.Stop()
	s.GracefulStop()
	<-done
	return nil
}
