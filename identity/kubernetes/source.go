package kubernetes

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/identity"
)

// Config describes a [Source]. Control, ControlCA and one of TokenFile and
// CertificateFile are required.
type Config struct {
	Control   string // host:port of the control plane; the host is what its certificate must name
	ControlCA []byte // PEM: the roots that sign the control plane's certificate
	TokenFile string // the projected token; read anew for each use, since the kubelet replaces it
	// CertificateFile has the pod's certificate with its key, which the kubelet
	// replaces (credentialBundlePath of a podCertificate volume). It then is the
	// X.509-SVID, and no token is needed.
	CertificateFile string
	PodUID          string // if set, an answer about another pod is refused
	// Dial connects to the control plane. Default: a net.Dialer.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Updated is called after each change of what is attested, and not
	// concurrently. It must not block.
	Updated func(*identity.Workload)
	// Log receives changes of state. Default: discarded.
	Log *slog.Logger
}

// Source implements [identity.Source] for the pod that it runs in. It is safe
// for concurrent use. [Source.Run] keeps it alive.
type Source struct {
	cfg      Config
	roots    *x509.CertPool
	key      *ecdsa.PrivateKey
	instance string
	group    singleflight.Group
	first    chan struct{} // closed with the first SVID

	state atomic.Pointer[state]
	conn  connection

	mu     sync.Mutex // guards everything below
	last   error      // of the last attempt
	denied bool       // the last answer was a refusal
	jwts   *lru.Cache[string, token]
	sum    [sha256.Size]byte // of the certificate's file as last read
	epoch  int               // counts drops: a token asked for before one is not kept after
}

// state is one answer of the control plane.
type state struct {
	svid     *x509svid.SVID
	bundle   *x509bundle.Bundle
	workload *identity.Workload
	until    time.Time     // end of the SVID, by this process's monotonic clock
	skew     time.Duration // of the control plane's clock against ours
}

var _ identity.Source = (*Source)(nil)

// New checks c and makes the key. Nothing is sent before [Source.Run].
func New(c Config) (*Source, error) {
	host, _, err := net.SplitHostPort(c.Control)
	switch {
	case err != nil || host == "":
		return nil, fmt.Errorf("control plane address is %q; must be HOST:PORT", c.Control)
	case (c.TokenFile == "") == (c.CertificateFile == ""):
		return nil, errors.New("no file with the pod's token, nor with its certificate; or both")
	}
	s := &Source{cfg: c, roots: x509.NewCertPool(), first: make(chan struct{})}
	if !s.roots.AppendCertsFromPEM(c.ControlCA) {
		return nil, errors.New("the control plane's roots are no certificates in PEM")
	}
	if s.cfg.Log == nil {
		s.cfg.Log = slog.New(slog.DiscardHandler)
	}
	if s.cfg.Dial == nil {
		s.cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return (&net.Dialer{Timeout: callTimeout, KeepAlive: 15 * time.Second}).DialContext(ctx, "tcp", addr)
		}
	}
	if s.cfg.Updated == nil {
		s.cfg.Updated = func(*identity.Workload) {}
	}
	if s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("make the pod's key: %w", err)
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails (crypto/rand, Go 1.24)
	s.instance = hex.EncodeToString(id[:])
	s.jwts, err = lru.New[string, token](cachedTokens)
	s.conn.open = s.dial
	return s, err
}

// TLS is the configuration of a client of the control plane: the server is
// verified by the roots of the pod's specification, and the X.509-SVID of the
// moment of the handshake is presented, none before the first.
func (s *Source) TLS() *tls.Config {
	host, _, _ := net.SplitHostPort(s.cfg.Control) // checked by New
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		RootCAs:    s.roots,
		ServerName: host,
		NextProtos: []string{"h2"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			st, err := s.current()
			if err != nil {
				return &tls.Certificate{}, nil //nolint:nilerr // without one: so the first attestation goes
			}
			return presented(st.svid), nil
		},
	}
}

// presented is an SVID for a handshake.
func presented(v *x509svid.SVID) *tls.Certificate {
	c := &tls.Certificate{PrivateKey: v.PrivateKey, Leaf: v.Certificates[0]}
	for _, x := range v.Certificates {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	return c
}

// current is the last answer while its SVID lives and no refusal came since.
func (s *Source) current() (*state, error) {
	st := s.state.Load()
	if st != nil && time.Now().Before(st.until) {
		return st, nil
	}
	s.mu.Lock()
	last := s.last
	s.mu.Unlock()
	switch {
	case last != nil:
		return nil, fmt.Errorf("pod identity: %w: %w", identity.ErrUnavailable, last)
	case st != nil:
		return nil, fmt.Errorf("pod identity: %w: the X.509-SVID expired", identity.ErrUnavailable)
	}
	return nil, fmt.Errorf("pod identity: %w: not attested yet", identity.ErrUnavailable)
}

// Ready reports why the pod has no identity now, nil if it has.
func (s *Source) Ready() error {
	_, err := s.current()
	return err
}

// Wait returns when the pod has been attested, or ctx ends; then the error
// says what the control plane answered last.
func (s *Source) Wait(ctx context.Context) error {
	select {
	case <-s.first:
		return nil
	case <-ctx.Done():
		if err := s.Ready(); err != nil {
			return err
		}
		return nil
	}
}

// Workload is what was attested last; nil before the first time. It stays when
// the identity is lost: whether it holds is [Source.Ready]'s answer.
func (s *Source) Workload() *identity.Workload {
	if st := s.state.Load(); st != nil {
		return st.workload
	}
	return nil
}

// Until is when the X.509-SVID ends, by the monotonic clock; zero without one.
// Policies must not be used beyond it.
func (s *Source) Until() time.Time {
	st, err := s.current()
	if err != nil {
		return time.Time{}
	}
	return st.until
}

// Skew is how far the control plane's clock is ahead of ours, as last seen.
// Beyond [MaxSkew] it is a condition that operators should see.
func (s *Source) Skew() time.Duration {
	if st := s.state.Load(); st != nil {
		return st.skew
	}
	return 0
}

// Update takes over what the control plane says of the pod outside of an
// attestation: posture that became known later. What says another pod or
// another SPIFFE ID is refused.
func (s *Source) Update(w *controlpb.Workload) error {
	next, err := FromProto(w)
	if err != nil {
		return err
	}
	for {
		st := s.state.Load()
		switch {
		case st == nil:
			return errors.New("not attested yet")
		case next.ID != st.workload.ID || next.RunID != st.workload.RunID:
			return fmt.Errorf("the control plane speaks of %s, another pod", next.ID)
		case next.PostureDigest() == st.workload.PostureDigest():
			return nil
		}
		changed := *st
		changed.workload = next
		if s.state.CompareAndSwap(st, &changed) {
			s.forget() // tokens say the old posture
			s.cfg.Updated(next)
			return nil
		}
	}
}

// X509 implements [identity.Source].
func (s *Source) X509(_ context.Context, w *identity.Workload) (*x509svid.SVID, error) {
	st, err := s.current()
	if err != nil {
		return nil, err
	}
	if err := owns(st, w); err != nil {
		return nil, err
	}
	return st.svid, nil
}

// Bundle implements [identity.Source].
func (s *Source) Bundle(context.Context) (*x509bundle.Bundle, error) {
	st, err := s.current()
	if err != nil {
		return nil, err
	}
	return st.bundle, nil
}

// owns refuses to speak for any workload but the pod's own.
func owns(st *state, w *identity.Workload) error {
	if w == nil || w.ID.IsZero() {
		return errors.New("pod identity: no workload; attest the caller first")
	}
	if w.ID != st.workload.ID {
		return fmt.Errorf("pod identity: this pod is %s, not %s", st.workload.ID, w.ID)
	}
	return nil
}

// connection is a client connection that can be replaced.
type connection struct {
	open func() (*grpc.ClientConn, error)
	mu   sync.Mutex // guards conn
	conn *grpc.ClientConn
}

func (c *connection) get() (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		conn, err := c.open()
		if err != nil {
			return nil, err
		}
		c.conn = conn
	}
	return c.conn, nil
}

// drop closes old, unless it has been replaced already.
func (c *connection) drop(old *grpc.ClientConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == old && old != nil {
		_ = old.Close()
		c.conn = nil
	}
}

// Close ends the connections. [Source.Run] must have ended.
func (s *Source) Close() error {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	if s.conn.conn == nil {
		return nil
	}
	err := s.conn.conn.Close()
	s.conn.conn = nil
	return err
}
