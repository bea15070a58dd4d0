package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"k8s.io/client-go/kubernetes"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/control/broker"
	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/control/reconcile"
	"github.com/attache-dev/attache/control/relay"
	"github.com/attache-dev/attache/control/xds"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/proxy/upstream"
	"github.com/attache-dev/attache/webhook/server"
)

// policyParts are what roles share of the pods' policies.
type policyParts struct {
	engineOf *reconcile.Engine
	storeOf  *xds.Server
	// revoked is told of the revocations in force; nil: nobody asks.
	revoked func([]*controlpb.Revocation)
}

// policies are the pods' bundles, kept up to date from now on. The roles that
// need them are added one after the other.
func (h *host) policies(ctx context.Context) (*reconcile.Engine, *xds.Server, error) {
	if h.engineOf != nil {
		return h.engineOf, h.storeOf, nil
	}
	for _, gvk := range append(server.Kinds(), reconcile.RevocationKind()) {
		if err := h.waitForKind(ctx, gvk); err != nil {
			return nil, nil, err
		}
	}
	identity, err := h.identity(ctx)
	if err != nil {
		return nil, nil, err
	}
	cluster, err := kubernetes.NewForConfig(h.mgr.GetConfig())
	if err != nil {
		return nil, nil, fmt.Errorf("reach the cluster: %w", err)
	}
	replica, err := os.Hostname() // the pod's name
	if err != nil {
		return nil, nil, err
	}
	nameservers, err := resolvers("/etc/resolv.conf")
	if err != nil {
		return nil, nil, err
	}
	var e *reconcile.Engine
	s := xds.New(xds.Config{Peer: identity.Peer, Revoked: func(list []*controlpb.Revocation) {
		if h.revoked != nil {
			h.revoked(list)
		}
	}, Current: func() bool { return e.Current() }, Metrics: xds.NewMetrics(h.registry), Log: h.log})
	e, err = reconcile.New(reconcile.Config{
		Cache: h.mgr.GetCache(), Client: h.mgr.GetClient(), Recorder: h.mgr.GetEventRecorder("attache-control"), Store: s, Workload: identity.Workload,
		Check:       func(b *api.Bundle) error { _, err := policy.Compile(b); return err },
		TrustDomain: h.trustDomain, Nameservers: nameservers, Namespace: h.namespace, Replica: replica, Elected: h.mgr.Elected(), Observer: h.observer(),
		Ping: func(ctx context.Context) error {
			return cluster.Discovery().RESTClient().Get().AbsPath("/version").Do(ctx).Error()
		},
		Root:     h.readRoot(cluster),
		Registry: h.registry, Log: h.log,
	})
	if err != nil {
		return nil, nil, err
	}
	if err := e.Watch(ctx); err != nil {
		return nil, nil, err
	}
	if err := h.mgr.Add(e); err != nil {
		return nil, nil, err
	}
	h.health.add("policies", e.Ready)
	h.audiences, h.clientIDs, h.frozen = e.Audiences, e.ClientIDs, e.Frozen
	h.cluster = func() *v1alpha1.ClusterConfig { return e.Cluster() }
	h.engineOf, h.storeOf = e, s
	return e, s, nil
}

// roots are the Secrets that the broker reads.
func (h *host) roots(c kubernetes.Interface) broker.Cluster {
	return broker.Cluster{Client: c.CoreV1(), Own: []string{h.namespace + "/" + h.caSecret, h.namespace + "/" + h.webhookSecret}}
}

// readRoot tries a Secret for the status of its provider; only where the
// broker runs has this program the right to.
func (h *host) readRoot(c kubernetes.Interface) func(context.Context, string, string, string) error {
	if !h.has("broker") && !h.has("relay") {
		return nil
	}
	return func(ctx context.Context, namespace, name, key string) error {
		_, err := h.roots(c).Read(ctx, namespace, name, key)
		return err
	}
}

// addXDS serves policies and revocations to sidecars.
func addXDS(ctx context.Context, h *host) error {
	_, s, err := h.policies(ctx)
	if err != nil {
		return err
	}
	if err := h.useAPITLS(ctx); err != nil {
		return err
	}
	h.serveAPI(s.Register)
	// A graceful stop waits for streams, so these are ended first.
	return h.run(func(ctx context.Context) error {
		<-ctx.Done()
		s.Close()
		return nil
	})
}

// addBroker mints where a root cannot be avoided.
func addBroker(ctx context.Context, h *host) error {
	m, err := h.minting(ctx)
	if err != nil {
		return err
	}
	b, err := broker.New(broker.Config{
		Peer: m.pods.Peer, Bundle: m.policies.Bundle, Secrets: m.roots, Namespace: h.namespace, Client: m.out.Client,
		Metrics: broker.NewMetrics(h.registry), Log: h.log,
		Record: func(ctx context.Context, e broker.Event) error {
			h.log.LogAttrs(ctx, slog.LevelInfo, "mint", slog.Any("record", e))
			return h.trail.Mint(ctx, e)
		},
	})
	if err != nil {
		return err
	}
	if err := h.useAPITLS(ctx); err != nil {
		return err
	}
	h.serveAPI(b.Register)
	return nil
}

// minting is what a role needs that reads roots and decides for pods.
type minting struct {
	policies *xds.Server
	pods     *issuer.Server
	roots    broker.Cluster
	// out reaches authorization servers and origins as a sidecar does: at public
	// addresses, or at those that the operator pins.
	out    *upstream.Pool
	limits v1alpha1.Limits
}

func (h *host) minting(ctx context.Context) (minting, error) {
	_, s, err := h.policies(ctx)
	if err != nil {
		return minting{}, err
	}
	cluster, err := kubernetes.NewForConfig(h.mgr.GetConfig())
	if err != nil {
		return minting{}, fmt.Errorf("reach the cluster: %w", err)
	}
	defaults, err := api.ParseFor(api.PlacePod, "defaults", []byte("{apiVersion: attache.dev/v1alpha1, kind: AttacheConfig, metadata: {name: default}, spec: {}}"))
	if err != nil {
		return minting{}, err
	}
	limits := defaults.Config.Spec.Limits
	out, err := upstream.New(upstream.Config{Limits: limits, Upstream: defaults.Config.Spec.Upstream})
	if err != nil {
		return minting{}, err
	}
	pods, err := h.identity(ctx)
	if err != nil {
		return minting{}, err
	}
	return minting{policies: s, pods: pods, roots: h.roots(cluster), out: out, limits: limits}, nil
}

// Bounds of --relay-rate.
const (
	defaultRelayRate = relay.DefaultRate
	maxRelayRate     = 100_000
)

// addRelay puts credentials on calls of pods that must not hold them.
func addRelay(ctx context.Context, h *host) error {
	m, err := h.minting(ctx)
	if err != nil {
		return err
	}
	r, err := relay.New(h.relayConfig(m))
	if err != nil {
		return err
	}
	h.revoked = r.Revoke
	if err := h.useAPITLS(ctx); err != nil {
		return err
	}
	config := relay.TLS(h.apiTLS)
	return h.run(func(ctx context.Context) error {
		stop := r.Sweep(ctx)
		defer stop() // nobody calls any more, and the trail is open still
		if err := serveHTTP(ctx, h.relayListen, config, r.HTTP()); err != nil {
			return fmt.Errorf("relay: %w", err)
		}
		return nil
	})
}

// relayConfig is the relay of this replica.
func (h *host) relayConfig(m minting) relay.Config {
	return relay.Config{
		Peer: m.pods.Peer, Bundle: m.policies.Bundle, Secrets: m.roots, Namespace: h.namespace, Client: m.out.Client, Upstream: m.out, Limits: m.limits, Rate: h.relayRate,
		Metrics: relay.NewMetrics(h.registry), Log: h.log,
		Record: func(ctx context.Context, e relay.Event) error {
			level := slog.LevelInfo // the only place there is
			if h.trail != nil {
				level = slog.LevelDebug
			}
			h.log.LogAttrs(ctx, level, "relay", slog.Any("record", e))
			return h.trail.Relayed(ctx, e)
		},
	}
}
