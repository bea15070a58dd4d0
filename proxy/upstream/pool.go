// Package upstream reaches origins: it dials checked addresses, verifies
// certificates and pools connections so that no two identities ever share one.
package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/net/http/httpproxy"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/proxy/destination"
)

// maxPools bounds the destinations whose idle connections are kept.
const maxPools = 1024

// Config of a [Pool]. Limits must have their defaults filled in.
type Config struct {
	Limits   v1alpha1.Limits
	Upstream v1alpha1.UpstreamConfig
	Identity identity.Source // for destinations with clientSVID; may be nil
	Resolver Resolver        // nil: the system's
	// Dialed is called after each new upstream connection; may be nil.
	Dialed func(destination.Destination)
}

// Resolver finds the addresses of a name, as *net.Resolver does for network
// "ip". It is safe for concurrent use.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Key says which connections a request may share: the same destination,
// reached the same way, for the same identity where the connection carries it.
type Key struct {
	Dest     destination.Destination
	Route    string // pins, roots, server name
	Parent   string // parent proxy
	Identity string // workload + task + human, only where the connection carries identity
}

// Pool sends requests upstream. It is safe for concurrent use.
type Pool struct {
	cfg    Config
	dial   *dialer
	own    ownAddresses
	parent func(*url.URL) (*url.URL, error)
	routes atomic.Pointer[Routes]

	mu         sync.Mutex
	transports *lru.Cache[Key, *reach]
}

// New returns a Pool that knows no routes yet.
func New(cfg Config) (*Pool, error) {
	p := &Pool{cfg: cfg}
	if cfg.Resolver == nil {
		cfg.Resolver = net.DefaultResolver
	}
	p.dial = &dialer{timeout: cfg.Limits.DialTimeout.D(), allowPrivate: cfg.Upstream.AllowPrivate, own: &p.own, resolver: cfg.Resolver}
	var err error
	if p.parent, err = parentProxy(cfg.Upstream.ParentProxy); err != nil {
		return nil, err
	}
	p.transports, err = lru.NewWithEvict(maxPools, func(_ Key, t *reach) { t.close() })
	if err != nil {
		return nil, err
	}
	return p, nil
}

// parentProxy returns the chooser of the proxy above us.
func parentProxy(configured string) (func(*url.URL) (*url.URL, error), error) {
	switch configured {
	case "none":
		return func(*url.URL) (*url.URL, error) { return nil, nil }, nil
	case "":
		return httpproxy.FromEnvironment().ProxyFunc(), nil
	}
	u, err := url.Parse(configured)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("spec.upstream.parentProxy: want http://host:port, https://host:port or none")
	}
	return func(*url.URL) (*url.URL, error) { return u, nil }, nil
}

// SetRoutes replaces the routes; connections to unchanged destinations stay.
func (p *Pool) SetRoutes(rs *Routes) { p.routes.Store(rs) }

// SetOwn names our own listeners, which no request may reach.
func (p *Pool) SetOwn(addrs []net.Addr) {
	m := make(map[netip.AddrPort]bool, len(addrs))
	for _, a := range addrs {
		if t, ok := a.(*net.TCPAddr); ok {
			ap := t.AddrPort()
			m[netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())] = true
		}
	}
	p.own.set.Store(&m)
}

// Who is the identity that a request is sent for.
type Who struct {
	Workload *identity.Workload
	Task     *identity.Task
	// Routes, where given, say how the destination is reached in place of the
	// pool's own.
	Routes *Routes
}

// Send sends r, whose URL holds the canonical destination. Redirects are not
// followed. The caller closes the body.
func (p *Pool) Send(r *http.Request, d destination.Destination, who Who) (*http.Response, error) {
	t, err := p.transport(d, who)
	if err != nil {
		return nil, err
	}
	if path := r.URL.Opaque; t.std.Proxy != nil && d.Scheme == "http" && strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "//") {
		// To a proxy the target is an absolute URL (RFC 9112 section 3.2.2),
		// which net/http leaves to whoever sets Opaque.
		u := *r.URL
		u.Opaque = "//" + u.Host + path
		r = r.WithContext(r.Context())
		r.URL = &u
	}
	return t.RoundTrip(r)
}

// route is how d is reached for who.
func (p *Pool) route(d destination.Destination, who Who) *Route {
	if who.Routes != nil {
		return who.Routes.Find(d)
	}
	return p.routes.Load().Find(d)
}

// ViaParent reports whether d is reached through a parent proxy for who. It
// sees everything that is not encrypted end to end.
func (p *Pool) ViaParent(d destination.Destination, who Who) bool {
	if p.route(d, who).direct() {
		return false
	}
	u, err := p.parent(&url.URL{Scheme: d.Scheme, Host: d.HostPort()})
	return err != nil || u != nil
}

func (p *Pool) transport(d destination.Destination, who Who) (*reach, error) {
	route := p.route(d, who)
	key := Key{Dest: d, Route: route.id}
	var parent *url.URL
	if !route.direct() {
		u, err := p.parent(&url.URL{Scheme: d.Scheme, Host: d.HostPort()})
		if err != nil {
			return nil, fmt.Errorf("choose parent proxy: %w", err)
		}
		if parent = u; u != nil {
			if err := p.dial.checkBeyond(d); err != nil {
				return nil, err
			}
			key.Parent = u.String()
		}
	}
	if route.clientSVID {
		if who.Workload == nil || p.cfg.Identity == nil {
			return nil, errors.New("destination wants a client SVID and there is no identity source")
		}
		key.Identity = identityKey(who)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if t, ok := p.transports.Get(key); ok {
		return t, nil
	}
	t := p.newReach(d, route, parent, who)
	p.transports.Add(key, t)
	return t, nil
}

// identityKey keeps apart connections that authenticate as somebody.
func identityKey(who Who) string {
	k := who.Workload.ID.String() + "|" + who.Workload.RunID
	if who.Task != nil {
		k += "|" + who.Task.ID
		if who.Task.Human != nil {
			k += "|" + who.Task.Human.Issuer + "|" + who.Task.Human.Subject
		}
	}
	return k
}

// clientSVID presents the workload's X.509-SVID; it is asked at each
// handshake, so rotation needs no new pool.
func (p *Pool) clientSVID(w *identity.Workload) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		svid, err := p.cfg.Identity.X509(info.Context(), w)
		if err != nil {
			return nil, fmt.Errorf("client SVID: %w", err)
		}
		c := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
		for _, x := range svid.Certificates {
			c.Certificate = append(c.Certificate, x.Raw)
		}
		return c, nil
	}
}

// DialRaw opens a TCP connection to d for a passthrough tunnel, through the
// parent proxy where there is one.
func (p *Pool) DialRaw(ctx context.Context, d destination.Destination) (net.Conn, error) {
	route := p.routes.Load().Find(d)
	if !route.direct() {
		u, err := p.parent(&url.URL{Scheme: d.Scheme, Host: d.HostPort()})
		if err != nil {
			return nil, fmt.Errorf("choose parent proxy: %w", err)
		}
		if u != nil {
			if err := p.dial.checkBeyond(d); err != nil {
				return nil, err
			}
			return p.dialParent(ctx, u, d)
		}
	}
	c, err := p.dial.dial(ctx, "tcp", d.HostPort(), route, false)
	if err == nil && p.cfg.Dialed != nil {
		p.cfg.Dialed(d)
	}
	return c, err
}

// Close drops idle connections.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.transports.Purge()
}

// ForgetIdentity drops the idle connections that were authenticated for a
// task that has ended.
func (p *Pool) ForgetIdentity(who Who) {
	if who.Workload == nil {
		return
	}
	id := identityKey(who)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range p.transports.Keys() {
		if k.Identity == id {
			p.transports.Remove(k)
		}
	}
}
