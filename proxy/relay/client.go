package relay

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// Times of a [Client] beside those of the limits.
const (
	idleTimeout = 90 * time.Second // below the relay's own
	pingAfter   = 15 * time.Second
	pingTimeout = 10 * time.Second
	// hereAndThere is what the way to the relay and its own work may add to the
	// time that an origin has to answer.
	hereAndThere = 5 * time.Second
)

// Target is where the relay is and how a sidecar shows who it is.
type Target struct {
	Addr string // host:port
	// TLS presents the pod's X.509-SVID and verifies the control plane.
	TLS *tls.Config
}

// Client sends requests through a relay. It is safe for concurrent use.
type Client struct {
	addr     string
	h2, once *http.Transport // once: for upgrades, by HTTP/1.1
}

// NewClient returns a Client; it connects when it first sends.
func NewClient(t Target, l v1alpha1.Limits) *Client {
	dialer := &net.Dialer{Timeout: l.DialTimeout.D(), KeepAlive: 30 * time.Second}
	transport := func(protocol string) *http.Transport {
		cfg := t.TLS.Clone()
		cfg.NextProtos = []string{protocol}
		cfg.ClientSessionCache = nil // a resumed session would show yesterday's SVID
		tr := &http.Transport{
			DialContext:            dialer.DialContext,
			TLSClientConfig:        cfg,
			TLSHandshakeTimeout:    l.TLSTimeout.D(),
			DisableCompression:     true,
			MaxIdleConnsPerHost:    l.MaxIdlePerHost,
			IdleConnTimeout:        idleTimeout,
			ExpectContinueTimeout:  l.ContinueTimeout.D(),
			MaxResponseHeaderBytes: int64(l.MaxAnswerHeaderBytes),
			Protocols:              new(http.Protocols),
			HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		}
		if d := l.ResponseTimeout.D(); d > 0 {
			tr.ResponseHeaderTimeout = d + hereAndThere
		}
		tr.Protocols.SetHTTP1(protocol != "h2")
		tr.Protocols.SetHTTP2(protocol == "h2")
		return tr
	}
	return &Client{addr: t.Addr, h2: transport("h2"), once: transport("http/1.1")}
}

// Send sends r, whose URL holds the canonical destination, through the relay.
// The answer is the origin's or, see [ReadRefusal], the relay's own. The caller
// closes its body.
func (c *Client) Send(r *http.Request, call Call) (*http.Response, error) {
	out := r.WithContext(r.Context()) // its trailer is filled in while it is sent
	out.Header = r.Header.Clone()
	call.put(out.Header)
	u := *r.URL
	u.Scheme, u.Host = "https", c.addr
	out.URL = &u
	if r.Header.Get("Upgrade") != "" {
		return c.once.RoundTrip(out)
	}
	return c.h2.RoundTrip(out)
}

// Close drops idle connections.
func (c *Client) Close() {
	c.h2.CloseIdleConnections()
	c.once.CloseIdleConnections()
}

// Beside is the relay's address on the host of the control plane's own.
func Beside(control string) string {
	host := control
	if u, err := url.Parse("//" + control); err == nil && u.Hostname() != "" {
		host = u.Hostname()
	}
	return net.JoinHostPort(host, Port)
}
