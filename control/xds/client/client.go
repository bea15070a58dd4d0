// Package client is the sidecar's end of control/xds: it keeps one delta ADS
// stream to the control plane, applies bundles and revocations in the order in
// which they come, and says how fresh what it has is.
//
// A bundle that the sidecar refuses is answered with a NACK that carries the
// reason; the last good one stays in force, at both ends. After a lost
// connection the client says what it has and is sent only what changed.
package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/attache-dev/attache/api/controlpb"
)

// Defaults of a [Config].
const (
	DefaultHeartbeat = time.Minute
	DefaultMinWait   = 250 * time.Millisecond
	DefaultMaxWait   = 15 * time.Second
	maxResponse      = 4 << 20 // bytes; a bundle holds at most 1 MiB of documents
	maxErrorText     = 1024
)

// Config of a [Client]. Target, TLS, PodUID, Apply and Revoke are required.
type Config struct {
	Target string // host:port of the control plane
	// TLS verifies the control plane and presents the X.509-SVID. Its
	// GetClientCertificate is asked for each connection, so that a renewed SVID
	// is used by the next one.
	TLS    *tls.Config
	PodUID string // our own: the name of our Bundle
	// Apply puts a bundle into force. Its error is sent to the control plane;
	// it must not hold a secret, and the last good bundle must stay in force.
	Apply func(*controlpb.Bundle) error
	// Revoke is called for each revocation, before any bundle that came after
	// it. It must have taken effect when it returns: then it is acknowledged.
	Revoke func(*controlpb.Revocation)
	// Heartbeat is how often the control plane is asked whether it is still
	// there and up to date. Default 1m.
	Heartbeat time.Duration
	// MinWait and MaxWait bound the wait between attempts. Defaults 250ms, 15s.
	MinWait, MaxWait time.Duration
	Log              *slog.Logger
	// Dial adds options, for tests.
	Dial []grpc.DialOption
}

// Client keeps the stream. [Client.Fresh] and [Client.Version] may be called
// while [Client.Run] runs.
type Client struct {
	c     Config
	fresh atomic.Pointer[time.Time]
	// applied is the version (of the Bundle message) last applied.
	applied atomic.Pointer[string]

	// What Run alone uses: versions of resources, for resumption.
	bundle      string
	revocations map[string]string
	progress    bool // the current stream delivered something
}

// New checks c. It does not connect.
func New(c Config) (*Client, error) {
	if c.Target == "" || c.TLS == nil || c.PodUID == "" || c.Apply == nil || c.Revoke == nil {
		return nil, errors.New("xds client: Target, TLS, PodUID, Apply and Revoke are required")
	}
	if c.Heartbeat <= 0 {
		c.Heartbeat = DefaultHeartbeat
	}
	if c.MinWait <= 0 {
		c.MinWait = DefaultMinWait
	}
	if c.MaxWait < c.MinWait {
		c.MaxWait = max(DefaultMaxWait, c.MinWait)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Client{c: c, revocations: map[string]string{}}, nil
}

// Fresh is when the control plane last said that what this client has is up to
// date; zero before the first bundle was applied. It carries a monotonic
// reading, so that time.Since tells an age that no change of the clock alters.
// After a refused bundle the control plane knows that the last good one is in
// force, so Fresh goes on.
func (c *Client) Fresh() time.Time {
	if t := c.fresh.Load(); t != nil && c.applied.Load() != nil {
		return *t
	}
	return time.Time{}
}

// Version is that of the bundle in force (Bundle.version), empty without one.
func (c *Client) Version() string {
	if v := c.applied.Load(); v != nil {
		return *v
	}
	return ""
}

// Run keeps a stream open until ctx ends, and returns when nothing of it is
// left running. The error is one of configuration, or ctx's.
func (c *Client) Run(ctx context.Context) error {
	opts := append([]grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(c.c.TLS)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// The wait between streams is ours; a connection follows at once.
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 10 * time.Second, Backoff: backoff.Config{
			BaseDelay: c.c.MinWait, Multiplier: 1.6, Jitter: 0.3, MaxDelay: c.c.MaxWait,
		}}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponse)),
		grpc.WithDisableServiceConfig(),
	}, c.c.Dial...)
	conn, err := grpc.NewClient(c.c.Target, opts...)
	if err != nil {
		return fmt.Errorf("connect to the control plane at %s: %w", c.c.Target, err)
	}
	defer func() { _ = conn.Close() }()

	ads := discovery.NewAggregatedDiscoveryServiceClient(conn)
	wait := c.c.MinWait
	for {
		c.progress = false
		err := c.stream(ctx, ads)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		level := slog.LevelWarn
		if c.progress {
			wait, level = c.c.MinWait, slog.LevelInfo // connections have a maximum age
		}
		// Full jitter: after a restart of the control plane all sidecars come
		// back, and not at once.
		pause := wait/2 + rand.N(wait)
		c.c.Log.Log(ctx, level, "no stream to the control plane, the last good policy stays for as long as it may", "target", c.c.Target, "again_in", pause, "cause", err)
		wait = min(2*wait, c.c.MaxWait)
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
	}
}
