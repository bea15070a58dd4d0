package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/attache-dev/attache/proxy/destination"
)

// parentAddress is the address of a parent proxy, as net/http dials it.
func parentAddress(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "80"
		if u.Scheme == "https" {
			port = "443"
		}
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// connectParent opens a connection to the parent proxy itself. Its certificate
// is of its own name and of an authority that the system trusts: neither what a
// destination's roots nor its client certificate are for.
func (p *Pool) connectParent(ctx context.Context, u *url.URL) (net.Conn, error) {
	c, err := p.dial.dial(ctx, "tcp", parentAddress(u), public, true)
	if err != nil {
		return nil, fmt.Errorf("dial parent proxy: %w", err)
	}
	if u.Scheme != "https" {
		return c, nil
	}
	_ = c.SetDeadline(time.Now().Add(p.cfg.Limits.DialTimeout.D()))
	tc := tls.Client(c, &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12})
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("parent proxy TLS: %w", err)
	}
	_ = c.SetDeadline(time.Time{})
	return tc, nil
}

// dialParent asks the parent proxy for a tunnel (RFC 9110 section 9.3.6). The
// transports do this by themselves; raw tunnels need it here.
func (p *Pool) dialParent(ctx context.Context, u *url.URL, d destination.Destination) (net.Conn, error) {
	c, err := p.connectParent(ctx, u)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(p.cfg.Limits.DialTimeout.D()))
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: d.HostPort()}, Host: d.HostPort(), Header: http.Header{}}
	if u.User != nil {
		pw, _ := u.User.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+pw)))
	}
	if err := req.Write(c); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("ask parent proxy: %w", err)
	}
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("parent proxy answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK || br.Buffered() > 0 {
		_ = c.Close()
		return nil, fmt.Errorf("parent proxy refuses the tunnel to %s: %s", d.HostPort(), resp.Status)
	}
	_ = c.SetDeadline(time.Time{})
	return c, nil
}
