// Package spire gets the control plane an X.509 authority from a SPIRE server:
// an intermediate CA of the trust domain that SPIRE has.
//
// The control plane is a workload of SPIRE with a registration entry that is
// marked downstream. Its X.509-SVID, from the Workload API, opens two calls of
// the SPIRE server to it: SVID.NewDownstreamX509CA and
// Bundle.PublishJWTAuthority (github.com/spiffe/spire-api-sdk). The Workload API
// also has the authorities of the trust domain, and tells of each change.
//
// The intermediate's key is made here, never leaves memory, and is another one
// in each replica: what any of them signs is verified by SPIRE's authorities.
package spire

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/attache-dev/attache/identity/issuer"
)

const (
	callTimeout = 10 * time.Second
	firstWait   = time.Second // after a failure; doubled up to longestWait
	longestWait = 30 * time.Second
	maxChain    = 10 // certificates in an answer
)

// errAnswer marks what no retry mends.
var errAnswer = errors.New("wrong answer")

// Config describes an [Authority]. All but Metrics, Log and Now are required.
type Config struct {
	Socket      string // of the Workload API: unix:///PATH or tcp://IP:PORT
	Server      string // HOST:PORT of the SPIRE server
	TrustDomain spiffeid.TrustDomain
	// Metrics registers a gauge. Default: none is kept.
	Metrics prometheus.Registerer
	Log     *slog.Logger // default: discarded
	Now     func() time.Time
}

// Authority is an intermediate CA, kept alive by [Authority.Start]. It is safe
// for concurrent use.
type Authority struct {
	cfg    Config
	source *workloadapi.X509Source
	conn   *grpc.ClientConn
	until  prometheus.Gauge

	state atomic.Pointer[state]
}

// state is an intermediate, and the bundle that the Workload API told when it
// was got: the agent may learn later than us of a new authority.
type state struct {
	got  *issuer.Intermediate
	then *x509bundle.Bundle
}

// Open connects and waits, as long as ctx allows, for the first intermediate.
// Call [Authority.Close] when done.
func Open(ctx context.Context, c Config) (*Authority, error) {
	if err := c.fill(); err != nil {
		return nil, err
	}
	a := &Authority{cfg: c, until: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "attache_issuer_upstream_expiry_timestamp_seconds", Help: "When the intermediate authority that SPIRE gave expires.",
	})}
	var err error
	a.source, err = workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(c.Socket)))
	if err != nil {
		return nil, fmt.Errorf("SPIRE: no X.509-SVID at %s; is the agent there, and this workload registered? %w", c.Socket, err)
	}
	// The server is known by its SPIFFE ID, whatever name it is reached by.
	id, err := spiffeid.FromSegments(c.TrustDomain, "spire", "server")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("SPIRE: %w", err), a.source.Close())
	}
	a.conn, err = grpc.NewClient(c.Server, grpc.WithNoProxy(),
		grpc.WithTransportCredentials(credentials.NewTLS(tlsconfig.MTLSClientConfig(a.source, a.source, tlsconfig.AuthorizeID(id)))))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("SPIRE: connect to %s: %w", c.Server, err), a.source.Close())
	}
	if err := a.first(ctx); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	if c.Metrics != nil {
		if err := c.Metrics.Register(a.until); err != nil {
			return nil, errors.Join(fmt.Errorf("SPIRE: %w", err), a.Close())
		}
	}
	return a, nil
}

func (c *Config) fill() error {
	if err := workloadapi.ValidateAddress(c.Socket); err != nil {
		return fmt.Errorf("SPIRE: socket is %q; must be unix:///PATH or tcp://IP:PORT: %w", c.Socket, err)
	}
	if host, port, err := net.SplitHostPort(c.Server); err != nil || host == "" || port == "" {
		return fmt.Errorf("SPIRE: server is %q; must be HOST:PORT", c.Server)
	}
	if c.TrustDomain.IsZero() {
		return errors.New("SPIRE: no trust domain")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return nil
}

// first gets the first intermediate. SPIRE may be starting, too; but a refusal
// is an answer.
func (a *Authority) first(ctx context.Context) error {
	wait := firstWait
	for {
		err := a.renew(ctx)
		if err == nil {
			return nil
		}
		if status.Code(err) == codes.PermissionDenied || errors.Is(err, errAnswer) {
			return err
		}
		a.cfg.Log.WarnContext(ctx, "no intermediate authority from SPIRE yet; trying again", "error", err)
		if !sleep(ctx, wait) {
			return err
		}
		wait = min(2*wait, longestWait)
	}
}

// Intermediate is the authority of now, with the trust domain's authorities as
// the Workload API last told them; nil before the first.
func (a *Authority) Intermediate() *issuer.Intermediate {
	st := a.state.Load()
	if st == nil {
		return nil
	}
	b, err := a.source.GetX509BundleForTrustDomain(a.cfg.TrustDomain)
	if err != nil || b == st.then || b.Empty() {
		return st.got
	}
	return &issuer.Intermediate{Key: st.got.Key, Chain: st.got.Chain, Roots: b.X509Authorities()}
}

// Start renews the intermediate at half of its life until ctx ends, and at once
// when the trust domain drops the authority above it. While SPIRE cannot be
// reached, the one at hand goes on to its end.
func (a *Authority) Start(ctx context.Context) error {
	wait := firstWait
	for {
		if !a.due(ctx) {
			return nil
		}
		c := a.state.Load().got.Chain[0]
		err := a.renew(ctx)
		if err == nil {
			wait = firstWait
			if !sleep(ctx, wait) {
				return nil
			}
			continue
		}
		a.cfg.Log.ErrorContext(ctx, "intermediate authority not renewed; the one at hand goes on", "until", c.NotAfter, "error", err)
		if !sleep(ctx, wait) {
			return nil
		}
		wait = min(2*wait, longestWait)
	}
}

// due waits until the intermediate should be renewed; false: ctx ended.
func (a *Authority) due(ctx context.Context) bool {
	for {
		now := a.cfg.Now()
		i := a.Intermediate()
		c := i.Chain[0]
		half := c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2)
		if !now.Before(half) || i.Check(now) != nil {
			return ctx.Err() == nil
		}
		t := time.NewTimer(half.Sub(now))
		select {
		case <-ctx.Done():
			t.Stop()
			return false
		case <-a.source.Updated():
			t.Stop()
		case <-t.C:
		}
	}
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: no, each
// replica has its own.
func (a *Authority) NeedLeaderElection() bool { return false }

// Close ends the connections. [Authority.Start] must have ended.
func (a *Authority) Close() error { return errors.Join(a.conn.Close(), a.source.Close()) }

// renew makes a key and has it certified.
func (a *Authority) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("SPIRE: make key: %w", err)
	}
	// SPIRE takes the key alone from the request.
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return fmt.Errorf("SPIRE: make certificate request: %w", err)
	}
	then, err := a.source.GetX509BundleForTrustDomain(a.cfg.TrustDomain)
	if err != nil {
		return fmt.Errorf("SPIRE: the agent has no authorities of %s: %w", a.cfg.TrustDomain, err)
	}
	r, err := svidv1.NewSVIDClient(a.conn).NewDownstreamX509CA(ctx, &svidv1.NewDownstreamX509CARequest{Csr: csr})
	if status.Code(err) == codes.PermissionDenied {
		return fmt.Errorf("SPIRE: %s gives no intermediate authority; mark the registration entry of the control plane as downstream: %w", a.cfg.Server, err)
	}
	if err != nil {
		return fmt.Errorf("SPIRE: get an intermediate authority from %s: %w", a.cfg.Server, err)
	}
	i, err := a.read(key, r)
	if err != nil {
		return fmt.Errorf("SPIRE: %w of %s: %w", errAnswer, a.cfg.Server, err)
	}
	a.state.Store(&state{got: i, then: then})
	a.until.Set(float64(i.Chain[0].NotAfter.Unix()))
	a.cfg.Log.InfoContext(ctx, "intermediate authority from SPIRE", "until", i.Chain[0].NotAfter, "roots", len(i.Roots))
	return nil
}

// read checks an answer.
func (a *Authority) read(key *ecdsa.PrivateKey, r *svidv1.NewDownstreamX509CAResponse) (*issuer.Intermediate, error) {
	if len(r.GetCaCertChain()) == 0 || len(r.GetCaCertChain()) > maxChain {
		return nil, fmt.Errorf("has %d certificates; must be 1 to %d", len(r.GetCaCertChain()), maxChain)
	}
	i := &issuer.Intermediate{Key: key}
	for n, der := range r.GetCaCertChain() {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", n, err)
		}
		if n == 0 || c.CheckSignatureFrom(c) != nil { // a root is of no use in a chain
			i.Chain = append(i.Chain, c)
		}
	}
	for n, der := range r.GetX509Authorities() {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("authority %d: %w", n, err)
		}
		i.Roots = append(i.Roots, c)
	}
	if u := i.Chain[0].URIs; len(u) != 1 || u[0].String() != a.cfg.TrustDomain.IDString() {
		return nil, fmt.Errorf("the authority is for %v; must be %s", u, a.cfg.TrustDomain.IDString())
	}
	return i, i.Check(a.cfg.Now())
}

// PublishJWT adds a key to the trust domain's bundle, from where all workloads
// of SPIRE learn it. A key that is there already stays there once.
func (a *Authority) PublishJWT(ctx context.Context, k issuer.PublicKey) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	der, err := x509.MarshalPKIXPublicKey(k.Key)
	if err != nil {
		return fmt.Errorf("SPIRE: encode key: %w", err)
	}
	r, err := bundlev1.NewBundleClient(a.conn).PublishJWTAuthority(ctx, &bundlev1.PublishJWTAuthorityRequest{
		JwtAuthority: &types.JWTKey{PublicKey: der, KeyId: k.ID, ExpiresAt: k.Expires.Unix()},
	})
	if err != nil {
		return fmt.Errorf("SPIRE: publish a JWT key at %s: %w", a.cfg.Server, err)
	}
	for _, known := range r.GetJwtAuthorities() {
		if known.GetKeyId() == k.ID {
			return nil
		}
	}
	return fmt.Errorf("SPIRE: %s took a JWT key, and does not have it", a.cfg.Server)
}

// sleep reports whether ctx is still alive after d.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
