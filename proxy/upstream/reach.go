package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/attache-dev/attache/proxy/destination"
	"github.com/attache-dev/attache/proxy/http1"
)

// ErrResponse is matched when an origin's HTTP/1.1 answer could be read in two
// ways.
var ErrResponse = http1.ErrResponse

// What an origin chose by ALPN (RFC 7301) when it was last asked.
const (
	protocolUnknown int32 = iota
	protocolH1
	protocolH2
)

// reach is one way to one destination. Origins that speak HTTP/1.1 are reached
// by our own strict codec, which costs half of what net/http's does; HTTP/2,
// and what goes through a parent proxy, stays with net/http.
type reach struct {
	std *http.Transport
	h1  *http1.Client // nil behind a parent proxy
	up  *http1.Client // for upgrades, which HTTP/2 has none of; keeps nothing
	tls *tls.Config   // nil: plain http

	timeout  time.Duration // of a TLS handshake
	raw      func(context.Context) (net.Conn, error)
	protocol atomic.Int32

	mu       sync.Mutex    // guards what follows
	learning chan struct{} // closed when the one that finds the protocol out is done; nil: none does
	handed   []net.Conn    // for std: they turned out to speak HTTP/2
}

func (p *Pool) newReach(d destination.Destination, route *Route, parent *url.URL, who Who) *reach {
	l := p.cfg.Limits
	cfg := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		RootCAs:            route.roots,
		ServerName:         d.Host,
		ClientSessionCache: tls.NewLRUClientSessionCache(64),
	}
	if route.serverName != "" {
		cfg.ServerName = route.serverName
	}
	if route.clientSVID {
		cfg.GetClientCertificate = p.clientSVID(who.Workload)
	}
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := p.dial.dial(ctx, network, addr, route, parent != nil)
		if err == nil && p.cfg.Dialed != nil {
			p.cfg.Dialed(d)
		}
		return c, err
	}
	t := &reach{timeout: l.TLSTimeout.D()}
	t.std = &http.Transport{
		DialContext:            dial,
		TLSClientConfig:        cfg,
		TLSHandshakeTimeout:    l.TLSTimeout.D(),
		DisableCompression:     true, // the agent's own Accept-Encoding is what counts
		MaxIdleConns:           0,
		MaxIdleConnsPerHost:    l.MaxIdlePerHost,
		IdleConnTimeout:        l.OriginIdleTimeout.D(),
		ResponseHeaderTimeout:  l.ResponseTimeout.D(),
		ExpectContinueTimeout:  l.ContinueTimeout.D(),
		ForceAttemptHTTP2:      true,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
		MaxResponseHeaderBytes: int64(l.MaxAnswerHeaderBytes),
	}
	if parent != nil {
		t.std.Proxy = http.ProxyURL(parent)
		// Called for TLS to the proxy alone, whose name is not the origin's.
		t.std.DialTLSContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := p.connectParent(ctx, parent)
			if err == nil && p.cfg.Dialed != nil {
				p.cfg.Dialed(d)
			}
			return c, err
		}
		return t
	}
	t.raw = func(ctx context.Context) (net.Conn, error) { return dial(ctx, "tcp", d.HostPort()) }
	client := func(idle int, dial func(context.Context) (net.Conn, error)) *http1.Client {
		return &http1.Client{
			Dial: dial, MaxIdle: idle, IdleTimeout: l.OriginIdleTimeout.D(), ResponseTimeout: l.ResponseTimeout.D(),
			ContinueTimeout: l.ContinueTimeout.D(), MaxHeaderBytes: l.MaxAnswerHeaderBytes,
		}
	}
	t.h1 = client(l.MaxIdlePerHost, t.dialH1)
	t.up = client(0, func(ctx context.Context) (net.Conn, error) { return t.dial(ctx, "http/1.1") })
	if d.Scheme == "https" {
		t.tls = cfg.Clone()
		t.std.DialTLSContext = t.dialStd
	} else {
		t.protocol.Store(protocolH1)
	}
	return t
}

// RoundTrip implements http.RoundTripper.
func (t *reach) RoundTrip(r *http.Request) (*http.Response, error) {
	switch {
	case t.h1 == nil:
		return t.std.RoundTrip(r)
	case len(r.Header["Upgrade"]) > 0:
		return t.up.RoundTrip(r)
	case t.protocol.Load() != protocolH2:
		resp, err := t.h1.RoundTrip(r)
		if !errors.Is(err, http1.ErrOtherProtocol) {
			return resp, err
		}
	}
	resp, err := t.std.RoundTrip(r)
	if err == nil && resp.ProtoMajor == 1 {
		t.protocol.CompareAndSwap(protocolH2, protocolUnknown) // the origin changed its mind
	}
	return resp, err
}

// dialH1 opens a connection for our own codec. While it is not known what the
// origin speaks, one connection is opened to find out, and the others wait for
// it: once, so that those to a dead origin do not fail one after the other.
func (t *reach) dialH1(ctx context.Context) (net.Conn, error) {
	if t.protocol.Load() == protocolUnknown {
		if learned := t.learn(); learned != nil {
			defer learned()
		} else if err := t.learned(ctx); err != nil {
			return nil, err
		}
		if t.protocol.Load() == protocolH2 {
			return nil, http1.ErrOtherProtocol
		}
	}
	c, err := t.dial(ctx, "h2", "http/1.1")
	if err != nil {
		return nil, err
	}
	if tc, ok := c.(*tls.Conn); ok && tc.ConnectionState().NegotiatedProtocol == "h2" {
		t.mu.Lock()
		t.handed = append(t.handed, c)
		t.mu.Unlock()
		t.protocol.Store(protocolH2)
		return nil, http1.ErrOtherProtocol
	}
	t.protocol.Store(protocolH1)
	return c, nil
}

// learn makes the caller the one that finds the protocol out, until it calls
// the function. Nil: somebody else is.
func (t *reach) learn() func() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.learning != nil {
		return nil
	}
	done := make(chan struct{})
	t.learning = done
	return func() {
		t.mu.Lock()
		t.learning = nil
		t.mu.Unlock()
		close(done)
	}
}

// learned waits for the one that finds the protocol out.
func (t *reach) learned(ctx context.Context) error {
	t.mu.Lock()
	done := t.learning
	t.mu.Unlock()
	if done == nil { // just now
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// dialStd opens a connection for net/http, or hands over one that is there.
func (t *reach) dialStd(ctx context.Context, _, _ string) (net.Conn, error) {
	t.mu.Lock()
	if n := len(t.handed); n > 0 {
		c := t.handed[n-1]
		t.handed = t.handed[:n-1]
		t.mu.Unlock()
		return c, nil
	}
	t.mu.Unlock()
	return t.dial(ctx, "h2", "http/1.1")
}

// dial connects, and verifies the certificate where there is TLS.
func (t *reach) dial(ctx context.Context, protocols ...string) (net.Conn, error) {
	c, err := t.raw(ctx)
	if err != nil {
		return nil, err
	}
	c = http1.Probed(c)
	if t.tls == nil {
		return c, nil
	}
	cfg := t.tls.Clone()
	cfg.NextProtos = protocols
	if t.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, t.timeout)
		defer cancel()
	}
	tc := tls.Client(c, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	return tc, nil
}

// close drops idle connections; no connection is kept any more.
func (t *reach) close() {
	t.std.CloseIdleConnections()
	if t.h1 == nil {
		return
	}
	t.h1.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.handed {
		_ = c.Close()
	}
	t.handed = nil
}
