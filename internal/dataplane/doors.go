package dataplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/proxy"
	"github.com/attache-dev/attache/proxy/destination"
	"github.com/attache-dev/attache/proxy/front"
)

// Open readies the doors for callers that attestor tells apart; own are all our
// own addresses, which no request may reach. Only then listeners may be
// served. ctx ends them all.
func (p *Plane) Open(ctx context.Context, attestor identity.Attestor, own []net.Addr) {
	p.doors, p.stop = context.WithCancel(ctx)
	p.front = &front.Front{
		Attestor: attestor, CA: p.ca, Handler: p.pipe, Passthrough: p.pipe.Passthrough, Tunnel: p.pipe.Tunnel,
		Limits: p.spec.Limits, Log: p.cfg.Log, Refused: p.metrics.Connection,
		TLSFailed: func(c *proxy.Conn, err error, hint string) {
			p.cfg.Log.Warn("a client broke off TLS", "host", c.Dest.Host, "cause", err, "hint", hint)
		},
	}
	p.upstream.SetOwn(own)
}

// ServeProxy serves the explicit proxy at ln, which is closed in the end.
func (p *Plane) ServeProxy(ln net.Listener) {
	p.serve(func() error { return p.front.ServeProxy(p.doors, ln) })
}

// ServeTransparent serves, at ln, connections that were redirected there. AWS
// SDKs find the instance metadata service if that is one of the doors.
func (p *Plane) ServeTransparent(ln net.Listener, o front.Transparent) {
	o.Metadata = p.AWSMetadata()
	p.serve(func() error { return p.front.ServeTransparent(p.doors, ln, o) })
}

// ServeAWS serves, at ln, the doors at which AWS SDKs fetch placeholder keys.
func (p *Plane) ServeAWS(ln net.Listener) {
	p.aws.addr = ln.Addr().String()
	p.serve(func() error { return p.front.ServeAWS(p.doors, ln) })
}

// ServeBaseURL serves a provider's base URL at ln and returns the variable
// (NAME=value) that leads an agent there.
func (p *Plane) ServeBaseURL(ln net.Listener, b v1alpha1.BaseURL) (variable string, err error) {
	port := b.Port
	if port == 0 {
		port = 443
	}
	dest, err := destination.Parse(api.SchemeHTTPS, net.JoinHostPort(b.Host, strconv.Itoa(port)), 443)
	if err != nil {
		return "", fmt.Errorf("base URL %s: %w", b.Env, err)
	}
	var cfg *tls.Config
	if b.Scheme == api.SchemeHTTPS {
		if cfg, err = p.ca.Config("127.0.0.1"); err != nil {
			return "", fmt.Errorf("base URL %s: %w", b.Env, err)
		}
	}
	p.serve(func() error { return p.front.ServeBaseURL(p.doors, ln, dest, cfg) })
	return b.Env + "=" + front.LocalURL(ln, cfg != nil) + b.Path, nil
}

func (p *Plane) serve(f func() error) {
	p.servers.Go(func() {
		if err := f(); err != nil && !errors.Is(err, front.ErrClosed) && !errors.Is(err, context.Canceled) && !errors.Is(err, http.ErrServerClosed) {
			p.cfg.Log.Error("listener ended", "cause", err)
		}
	})
}
