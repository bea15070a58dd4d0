package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/audit/ship/otlp"
	"github.com/attache-dev/attache/control/xds/client"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/kubernetes"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/broker"
	"github.com/attache-dev/attache/proxy/relay"
)

// cluster is the control plane.
type cluster struct {
	o      *Options
	log    *slog.Logger
	source *kubernetes.Source
	xds    *client.Client
	to     Follower // set by Follow before xds runs
	conn   *grpc.ClientConn
	broker *broker.Broker
}

// NewCluster returns a [Control] over the control plane that o names.
func NewCluster(o *Options) (Control, error) {
	c := &cluster{o: o, log: o.Log}
	var err error
	c.source, err = kubernetes.New(kubernetes.Config{
		Control: o.Control, ControlCA: []byte(o.ControlCA), TokenFile: o.TokenFile, CertificateFile: o.Certificate, PodUID: o.PodUID, Log: o.Log,
	})
	if err != nil {
		return nil, err
	}
	if c.conn, err = grpc.NewClient(o.Control, grpc.WithTransportCredentials(credentials.NewTLS(c.source.TLS())), grpc.WithDisableServiceConfig()); err != nil {
		return nil, fmt.Errorf("connect to the control plane at %s: %w", o.Control, err)
	}
	c.broker = broker.New(c.conn)
	c.xds, err = client.New(client.Config{
		Target: o.Control, TLS: c.source.TLS(), PodUID: o.PodUID, Log: o.Log,
		Apply: c.apply, Revoke: func(r *controlpb.Revocation) { c.to.Revoke(revocation(r, c.source.Skew())) },
	})
	return c, err
}

// Attest implements [Control]. The identity is kept alive until ctx ends.
func (c *cluster) Attest(ctx context.Context) (identity.Source, error) {
	go func() {
		if err := c.source.Run(ctx); err != nil && ctx.Err() == nil {
			c.log.Error("the pod's identity is not renewed any more", "cause", err)
		}
	}()
	if err := c.source.Wait(ctx); err != nil {
		return nil, err
	}
	return c.source, ctx.Err()
}

// Fresh, Until and Skew are for metrics.
func (c *cluster) Fresh() time.Time    { return c.xds.Fresh() }
func (c *cluster) Until() time.Time    { return c.source.Until() }
func (c *cluster) Skew() time.Duration { return c.source.Skew() }

// Workload implements [Control].
func (c *cluster) Workload() *identity.Workload { return c.source.Workload() }

// Minter implements [Broker].
func (c *cluster) Minter(p v1alpha1.CredentialProvider) (minting.Minter, error) {
	return c.broker.Minter(p)
}

// Relay implements [Broker]: on the host of the control plane, at its own port.
func (c *cluster) Relay() relay.Target {
	return relay.Target{Addr: relay.Beside(c.o.Control), TLS: c.source.TLS()}
}

// controlSink is the name of the sink that is the control plane.
const controlSink = "control"

// Records implements [Recorder]. The collector is recognised by the roots of the
// pod's specification, as the rest of the control plane is.
func (c *cluster) Records() (ship.Sink, error) {
	if c.o.Audit == "" {
		return nil, nil
	}
	host, _, err := net.SplitHostPort(c.o.Audit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; must be HOST:PORT", envAudit, err)
	}
	t := c.source.TLS()
	t.ServerName = host
	w := c.source.Workload()
	// Not compressed: that would cost five times what all the rest of shipping
	// does, for 1 KB a line that stays in the cluster.
	return otlp.New(otlp.Config{
		Name: controlSink, Endpoint: c.o.Audit, TLS: t, Control: true, Service: "attache-sidecar", Version: c.o.Version,
		Resource: map[string]string{"k8s.pod.uid": c.o.PodUID, "k8s.namespace.name": w.Namespace, "k8s.node.name": w.Node},
	})
}

// Stale implements [Control].
func (c *cluster) Stale() error {
	if err := c.source.Ready(); err != nil { // never beyond the SVID
		return err
	}
	fresh := c.xds.Fresh()
	if fresh.IsZero() {
		return errors.New("the control plane has sent none yet")
	}
	if age := time.Since(fresh); age > api.PolicyLifetime {
		return fmt.Errorf("the control plane last confirmed it %s ago, and it lasts %s", age.Round(time.Second), api.PolicyLifetime)
	}
	return nil
}

// Follow implements [Control].
func (c *cluster) Follow(ctx context.Context, to Follower) error {
	c.to = to
	return c.xds.Run(ctx)
}

// noDocuments stands for a bundle without any: nothing is allowed.
const noDocuments = "apiVersion: attache.dev/v1alpha1\nkind: AttacheConfig\nmetadata: {name: default}\nspec: {}\n"

func (c *cluster) apply(pb *controlpb.Bundle) error {
	if w := pb.GetWorkload(); w != nil {
		if err := c.source.Update(w); err != nil {
			return err
		}
	}
	docs := pb.GetDocuments()
	if len(docs) == 0 {
		docs = []byte(noDocuments)
	}
	b, err := api.ParseFor(api.PlacePod, "bundle", docs)
	if err != nil {
		c.to.Rejected(err)
		return err
	}
	if err := c.to.Apply(b); err != nil {
		err = b.Located(err)
		c.to.Rejected(err)
		return err
	}
	for _, p := range b.Unresolved {
		c.log.Warn("a rule refers to what it may not use, and denies", "problem", p.Error())
	}
	return nil
}

// revocation is r by our clock, which may be ahead: what we minted before it then
// says that it was minted later. skew is how far the control plane's is ahead.
func revocation(r *controlpb.Revocation, skew time.Duration) Revocation {
	out := Revocation{ID: r.GetId(), Provider: r.GetProvider(), Handle: r.GetHandle(), Task: r.GetTask(), Owner: r.GetOwner(), Reason: r.GetReason()}
	if t := r.GetNotBefore(); t.IsValid() {
		out.Before = t.AsTime().Add(max(0, -skew))
	}
	out.All = out.Provider == "" && out.Handle == "" && out.Task == ""
	return out
}
