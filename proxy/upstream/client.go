package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/url"
	"time"
)

// Client returns an HTTP client for an issuer: it dials only the pinned
// addresses (none: the name's public ones), trusts the system's roots and
// those of caPEM, follows no redirect and keeps no cookie. Bad pins or roots
// make every call fail with their error.
func (p *Pool) Client(addresses []string, caPEM []byte) *http.Client {
	fail := func(err error) *http.Client { return &http.Client{Transport: failing{err}} }
	pins, err := parsePins(addresses)
	if err != nil {
		return fail(err)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(caPEM) > 0 {
		if cfg.RootCAs, err = pool(caPEM, false); err != nil {
			return fail(err)
		}
	}
	t := &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return p.dial.dial(ctx, network, addr, &Route{pins: pins}, p.isParent(addr))
		},
		TLSClientConfig:        cfg,
		TLSHandshakeTimeout:    p.cfg.Limits.TLSTimeout.D(),
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
	if len(pins) == 0 {
		t.Proxy = func(r *http.Request) (*url.URL, error) { return p.parent(r.URL) }
	}
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return errRedirect }}
}

var errRedirect = errors.New("the issuer answered with a redirect, which is never followed")

// isParent reports whether addr is the parent proxy's: that one the operator
// chose, wherever it stands.
func (p *Pool) isParent(addr string) bool {
	u, err := p.parent(&url.URL{Scheme: "https", Host: "issuer.invalid:443"})
	if err != nil || u == nil {
		return false
	}
	return addr == parentAddress(u)
}

type failing struct{ err error }

// RoundTrip implements http.RoundTripper.
func (f failing) RoundTrip(*http.Request) (*http.Response, error) { return nil, f.err }
