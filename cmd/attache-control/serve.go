package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/attache-dev/attache/control/defaults"
	"github.com/attache-dev/attache/control/reconcile"
)

// restConfig finds the cluster.
func (g *global) restConfig() (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = g.kubeconfig
	c, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("find the cluster: %w; run in a pod, or give --kubeconfig", err)
	}
	c.QPS, c.Burst = 100, 200 // the API server has priorities of its own
	c.UserAgent = "attache-control"
	return c, nil
}

// serve runs the roles until ctx ends, and then drains.
func serve(ctx context.Context, g *global, o options, log *slog.Logger) error {
	g.loggers(log)
	config, err := g.restConfig()
	if err != nil {
		return err
	}
	if err := supported(config); err != nil {
		return err
	}
	mgr, err := newManager(config, o, log)
	if err != nil {
		return err
	}
	h := &host{options: o, log: log, mgr: mgr, health: &health{}, registry: prometheus.NewRegistry()}
	// Probes are answered at once: a role may have to wait for the cluster.
	probes, stopProbes := context.WithCancel(context.WithoutCancel(ctx))
	defer stopProbes()
	probesDone := make(chan error, 1)
	go func() {
		probesDone <- serveHTTP(probes, h.metricsListen, nil, newServer(h.health.handler(prometheus.Gatherers{metrics.Registry, h.registry}), log))
	}()
	if err := h.openTrail(ctx); err != nil {
		return err
	}
	defer h.closeStore() // after the last records are in it
	if err := h.addRoles(ctx); err != nil {
		return errors.Join(err, h.trail.Close())
	}
	stopShipping, err := h.shipRecords(ctx)
	if err != nil {
		return errors.Join(err, h.trail.Close())
	}
	defer stopShipping()
	stopReads, err := h.serveReads(ctx)
	if err != nil {
		return err
	}
	defer stopReads()
	return h.serve(ctx, probesDone)
}

// addRoles makes the roles of this replica.
func (h *host) addRoles(ctx context.Context) error {
	var synced atomic.Bool
	h.health.add("caches", func() error {
		if !synced.Load() {
			return errors.New("are not synced; can the service account list what its ClusterRole names?")
		}
		return nil
	})
	for _, r := range roles() {
		if !h.has(r.name) {
			continue
		}
		if err := r.add(ctx, h); err != nil {
			return fmt.Errorf("role %s: %w", r.name, err)
		}
	}
	if h.holdsKeys() {
		if err := h.mgr.Add(h.leaderDefaults()); err != nil {
			return fmt.Errorf("apply defaults: %w", err)
		}
	}
	return h.run(func(ctx context.Context) error {
		synced.Store(true)
		return h.serveSidecars(ctx)
	})
}

// leaderDefaults applies what the chart cannot, in one replica at a time: a
// RunnableFunc waits for the leader election.
func (h *host) leaderDefaults() manager.RunnableFunc {
	return func(ctx context.Context) error {
		err := defaults.Run(ctx, h.mgr.GetConfig(), defaults.Options{File: h.defaults, Namespace: h.namespace, Log: h.log})
		if ctx.Err() != nil {
			return nil // it ended with the replica
		}
		return err
	}
}

// newManager makes the client and the caches. Secrets are seen in the control
// plane's own namespace only.
func newManager(config *rest.Config, o options, log *slog.Logger) (ctrl.Manager, error) {
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                        scheme.Scheme,
		Logger:                        logr.FromSlogHandler(log.Handler()),
		Metrics:                       metricsserver.Options{BindAddress: "0"}, // ours serves them
		LeaderElection:                o.leaderElect,
		LeaderElectionID:              o.service,
		LeaderElectionNamespace:       o.namespace,
		LeaderElectionReleaseOnCancel: true,
		GracefulShutdownTimeout:       new(stopTimeout + 5*time.Second),
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject: map[client.Object]cache.ByObject{
				&corev1.Secret{}:    {Namespaces: map[string]cache.Config{o.namespace: {}}},
				&corev1.ConfigMap{}: {Namespaces: map[string]cache.Config{o.namespace: {}}},
				&corev1.Pod{}:       {Transform: reconcile.Strip},
			},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("reach the cluster: %w", err)
	}
	return mgr, nil
}

// serve runs the manager, and drains: when ctx ends, readiness does, and
// everything else once no endpoint can name this replica.
func (h *host) serve(ctx context.Context, probesDone <-chan error) error {
	base := context.WithoutCancel(ctx)
	running, stop := context.WithCancel(base)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- h.mgr.Start(running) }()
	h.log.Info("started", "roles", h.roles, "namespace", h.namespace)
	select {
	case err := <-done:
		return ended(err)
	case err := <-probesDone:
		return fmt.Errorf("serve probes at %s: %w", h.metricsListen, err)
	case <-ctx.Done():
	}
	h.health.draining.Store(true)
	h.log.Info("draining", "for", h.drain.String())
	select {
	case <-time.After(h.drain):
	case err := <-done:
		return ended(err)
	}
	stop()
	if err := <-done; err != nil {
		return ended(err)
	}
	h.log.Info("stopped")
	return nil
}

func ended(err error) error {
	if err == nil {
		err = errors.New("it ended by itself")
	}
	return fmt.Errorf("control plane: %w", err)
}
