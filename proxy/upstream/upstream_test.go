package upstream_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/proxy/destination"
	"github.com/attache-dev/attache/proxy/upstream"
)

func TestCheckAddress(t *testing.T) {
	refused := []string{
		"127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "100.100.100.200",
		"169.254.169.254", "169.254.170.2", "168.63.129.16", "224.0.0.1", "255.255.255.255", "192.0.0.8", "198.18.0.1",
		"::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "2001:db8::1", "2001::1",
		"::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
		"64:ff9b:1::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:0a00:0001::",
	}
	for _, s := range refused {
		if err := upstream.CheckAddress(netip.MustParseAddr(s), false); !errors.Is(err, upstream.ErrAddress) {
			t.Errorf("%s: got %v, want ErrAddress", s, err)
		}
	}
	if err := upstream.CheckAddress(netip.MustParseAddr("fe80::1%eth0"), true); !errors.Is(err, upstream.ErrAddress) {
		t.Errorf("zone: got %v", err)
	}
	for _, s := range []string{"1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101", "2002:101:101::1"} {
		if err := upstream.CheckAddress(netip.MustParseAddr(s), false); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	private := map[string]bool{ // address -> admitted with allowPrivate
		"10.0.0.1": true, "192.168.0.1": true, "fd12::1": true, "100.64.0.1": true, "::ffff:10.0.0.1": true,
		"127.0.0.1": false, "169.254.169.254": false, "100.100.100.200": false, "fd00:ec2::254": false, "::1": false, "64:ff9b::7f00:1": false,
	}
	for s, want := range private {
		if err := upstream.CheckAddress(netip.MustParseAddr(s), true); (err == nil) != want {
			t.Errorf("allowPrivate %s: got %v, want admitted=%v", s, err, want)
		}
	}
}

func limits() v1alpha1.Limits {
	d := v1alpha1.Duration(5 * time.Second)
	return v1alpha1.Limits{DialTimeout: d, TLSTimeout: d, ResponseTimeout: d, MaxIdlePerHost: 8}
}

func caPEM(s *httptest.Server) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

type rig struct {
	pool  *upstream.Pool
	dials atomic.Int64
}

func newRig(t *testing.T, cfg upstream.Config, ds ...v1alpha1.Destination) *rig {
	t.Helper()
	r := &rig{}
	if cfg.Limits.DialTimeout == 0 {
		cfg.Limits = limits()
	}
	if cfg.Upstream.ParentProxy == "" {
		cfg.Upstream.ParentProxy = "none"
	}
	cfg.Dialed = func(destination.Destination) { r.dials.Add(1) }
	p, err := upstream.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := upstream.NewRoutes(ds)
	if err != nil {
		t.Fatal(err)
	}
	p.SetRoutes(rs)
	t.Cleanup(p.Close)
	r.pool = p
	return r
}

func (r *rig) get(t *testing.T, d destination.Destination, who upstream.Who) (string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.Scheme+"://"+d.HostPort()+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := r.pool.Send(req, d, who)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.Proto + " " + string(b), err
}

func tlsServer(t *testing.T, h http.HandlerFunc, h2 bool) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = h2
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func dest(host string) destination.Destination {
	return destination.Destination{Scheme: "https", Host: host, Port: 443}
}

func TestPinReachesLoopbackAndVerifiesTheName(t *testing.T) {
	s := tlsServer(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host) }, true)
	pin := s.Listener.Addr().String()
	r := newRig(t, upstream.Config{},
		v1alpha1.Destination{Host: "example.com", Addresses: []string{pin}, CABundle: caPEM(s)},
		v1alpha1.Destination{Host: "other.test", Addresses: []string{pin}, CABundle: caPEM(s)},
		v1alpha1.Destination{Host: "untrusted.example.com", Addresses: []string{pin}})
	got, err := r.get(t, dest("example.com"), upstream.Who{})
	if err != nil || !strings.HasPrefix(got, "HTTP/2.0 example.com") {
		t.Fatalf("pinned name: got %q, %v", got, err)
	}
	var hostErr x509.HostnameError
	if _, err := r.get(t, dest("other.test"), upstream.Who{}); !errors.As(err, &hostErr) {
		t.Errorf("wrong name in certificate: got %v", err)
	}
	var authErr x509.UnknownAuthorityError
	if _, err := r.get(t, dest("untrusted.example.com"), upstream.Who{}); !errors.As(err, &authErr) {
		t.Errorf("unknown authority: got %v", err)
	}
}

// TestNameThatPointsInside is DNS rebinding: the name resolves to loopback, so
// the dial itself must be refused.
func TestNameThatPointsInside(t *testing.T) {
	s := tlsServer(t, func(http.ResponseWriter, *http.Request) { t.Error("request arrived") }, false)
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	n, _ := strconv.Atoi(port)
	for _, ip := range []string{"127.0.0.1", "169.254.169.254", "10.0.0.1"} {
		res := resolver(t, netip.MustParseAddr(ip))
		r := newRig(t, upstream.Config{Resolver: res})
		d := destination.Destination{Scheme: "https", Host: "rebind.example.com", Port: n}
		if _, err := r.get(t, d, upstream.Who{}); !errors.Is(err, upstream.ErrAddress) {
			t.Errorf("%s: got %v, want ErrAddress", ip, err)
		}
		if _, err := r.pool.DialRaw(t.Context(), d); !errors.Is(err, upstream.ErrAddress) {
			t.Errorf("%s raw: got %v, want ErrAddress", ip, err)
		}
	}
}

func TestLoopIsRefused(t *testing.T) {
	s := tlsServer(t, func(http.ResponseWriter, *http.Request) { t.Error("request arrived") }, false)
	r := newRig(t, upstream.Config{}, v1alpha1.Destination{Host: "example.com", Addresses: []string{s.Listener.Addr().String()}, CABundle: caPEM(s)})
	r.pool.SetOwn([]net.Addr{s.Listener.Addr()})
	if _, err := r.get(t, dest("example.com"), upstream.Who{}); !errors.Is(err, upstream.ErrLoop) {
		t.Errorf("got %v, want ErrLoop", err)
	}
}

func TestSteadyStateDialsNothing(t *testing.T) {
	s := tlsServer(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "x") }, false)
	r := newRig(t, upstream.Config{}, v1alpha1.Destination{Host: "example.com", Addresses: []string{s.Listener.Addr().String()}, CABundle: caPEM(s)})
	for range 20 {
		if _, err := r.get(t, dest("example.com"), upstream.Who{}); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.dials.Load(); n != 1 {
		t.Errorf("got %d dials for 20 requests in a row, want 1", n)
	}
	// A reload that changes nothing keeps the pool.
	rs, _ := upstream.NewRoutes([]v1alpha1.Destination{{Host: "example.com", Addresses: []string{s.Listener.Addr().String()}, CABundle: caPEM(s)}})
	r.pool.SetRoutes(rs)
	if _, err := r.get(t, dest("example.com"), upstream.Who{}); err != nil || r.dials.Load() != 1 {
		t.Errorf("after reload: %d dials, %v", r.dials.Load(), err)
	}
}

type svidSource struct {
	identity.Source
	cert *x509svid.SVID
}

func (s svidSource) X509(context.Context, *identity.Workload) (*x509svid.SVID, error) {
	return s.cert, nil
}
func (s svidSource) Bundle(context.Context) (*x509bundle.Bundle, error) { return nil, nil }

// TestConnectionsThatCarryIdentityAreNotShared: one task's authenticated
// connection never serves another task or human (invariant 8).
func TestConnectionsThatCarryIdentityAreNotShared(t *testing.T) {
	s := tlsServer(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.RemoteAddr) }, false)
	r := newRig(t, upstream.Config{Identity: svidSource{}},
		v1alpha1.Destination{Host: "example.com", Addresses: []string{s.Listener.Addr().String()}, CABundle: caPEM(s), ClientSVID: true})
	w := &identity.Workload{ID: spiffeid.RequireFromString("spiffe://td/a"), RunID: "1"}
	seen := map[string]string{}
	whos := map[string]upstream.Who{
		"no task":       {Workload: w},
		"task 1":        {Workload: w, Task: &identity.Task{ID: "1"}},
		"task 2":        {Workload: w, Task: &identity.Task{ID: "2"}},
		"task 2, human": {Workload: w, Task: &identity.Task{ID: "2", Human: &identity.Human{Subject: "ana", Issuer: "i"}}},
		"other run":     {Workload: &identity.Workload{ID: w.ID, RunID: "2"}},
	}
	for name, who := range whos {
		addr, err := r.get(t, dest("example.com"), who)
		if err != nil {
			t.Fatal(err)
		}
		if other, dup := seen[addr]; dup {
			t.Errorf("%q and %q shared connection %s", name, other, addr)
		}
		seen[addr] = name
		if again, _ := r.get(t, dest("example.com"), who); again != addr {
			t.Errorf("%q did not reuse its own connection", name)
		}
	}
}

func TestServerName(t *testing.T) {
	s := tlsServer(t, func(http.ResponseWriter, *http.Request) {}, false)
	r := newRig(t, upstream.Config{}, v1alpha1.Destination{Host: "nope.example", Addresses: []string{s.Listener.Addr().String()}, CABundle: caPEM(s), ServerName: "example.com"})
	if _, err := r.get(t, dest("nope.example"), upstream.Who{}); err != nil {
		t.Errorf("serverName: %v", err)
	}
}

// TestParentProxy goes through a real CONNECT proxy, in both forms.
func TestParentProxy(t *testing.T) {
	s := tlsServer(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "origin") }, false)
	var connects atomic.Int64
	parent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodConnect || req.Host != "example.com:443" {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		connects.Add(1)
		up, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		c, buf, _ := http.NewResponseController(w).Hijack()
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { io.Copy(up, buf); up.Close() }()
		io.Copy(c, up)
		c.Close()
	}))
	defer parent.Close()
	r := newRig(t, upstream.Config{Upstream: v1alpha1.UpstreamConfig{ParentProxy: parent.URL}}, v1alpha1.Destination{Host: "example.com", CABundle: caPEM(s)})
	if got, err := r.get(t, dest("example.com"), upstream.Who{}); err != nil || !strings.HasSuffix(got, "origin") {
		t.Fatalf("got %q, %v", got, err)
	}
	c, err := r.pool.DialRaw(t.Context(), dest("example.com"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tc := tls.Client(c, &tls.Config{ServerName: "example.com", RootCAs: s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs})
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	io.WriteString(tc, "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(tc), nil); err != nil || resp.StatusCode != 200 {
		t.Errorf("raw tunnel: %v, %v", resp, err)
	}
	if _, err := r.pool.DialRaw(t.Context(), dest("refused.example.com")); err == nil || !strings.Contains(err.Error(), "refuses the tunnel") {
		t.Errorf("refused tunnel: %v", err)
	}
	if connects.Load() != 2 {
		t.Errorf("got %d CONNECTs, want 2", connects.Load())
	}
}

// TestParentProxyTLS checks that TLS to the parent proxy itself is verified for
// the proxy's name, not the origin's, for requests and for tunnels.
func TestParentProxyTLS(t *testing.T) {
	names := make(chan string, 2)
	parent := httptest.NewUnstartedServer(nil)
	parent.Config.ErrorLog = log.New(io.Discard, "", 0)
	parent.TLS = &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		names <- h.ServerName
		return nil, nil
	}}
	parent.StartTLS()
	defer parent.Close()
	_, port, err := net.SplitHostPort(parent.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, upstream.Config{Upstream: v1alpha1.UpstreamConfig{ParentProxy: "https://localhost:" + port}})
	var refused *tls.CertificateVerificationError
	if got, err := r.get(t, dest("example.com"), upstream.Who{}); !errors.As(err, &refused) {
		t.Errorf("got %q, %v; want the proxy's certificate refused", got, err)
	}
	if _, err := r.pool.DialRaw(t.Context(), dest("example.com")); !errors.As(err, &refused) {
		t.Errorf("tunnel: got %v; want the proxy's certificate refused", err)
	}
	for range 2 {
		if name := <-names; name != "localhost" {
			t.Errorf("the parent proxy was asked for a certificate of %q", name)
		}
	}
}

// TestParentProxyGetsNoInnerAddress checks that what only the operator may
// name is not reached through the parent proxy either, in both forms.
func TestParentProxyGetsNoInnerAddress(t *testing.T) {
	var asked atomic.Int64
	parent := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer parent.Close()
	r := newRig(t, upstream.Config{Upstream: v1alpha1.UpstreamConfig{ParentProxy: parent.URL}})
	for _, host := range []string{"169.254.169.254", "127.0.0.1", "10.0.0.1", "::1", "::ffff:a9fe:a9fe", "localhost", "a.localhost"} {
		for _, d := range []destination.Destination{{Scheme: "http", Host: host, Port: 80}, dest(host)} {
			if _, err := r.get(t, d, upstream.Who{}); !errors.Is(err, upstream.ErrAddress) {
				t.Errorf("%v: got %v, want ErrAddress", d, err)
			}
			if c, err := r.pool.DialRaw(t.Context(), d); !errors.Is(err, upstream.ErrAddress) {
				t.Errorf("tunnel to %v: got %v, %v, want ErrAddress", d, c, err)
			}
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the parent proxy was asked %d times", n)
	}
}

// TestParentProxyTarget checks the request line that a parent proxy gets of an
// http request whose path was set as it came.
func TestParentProxyTarget(t *testing.T) {
	parent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { io.WriteString(w, req.RequestURI) }))
	defer parent.Close()
	r := newRig(t, upstream.Config{Upstream: v1alpha1.UpstreamConfig{ParentProxy: parent.URL}})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://example.com/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.URL.Opaque, req.URL.RawQuery = "/a%2Db", "q=1"
	resp, err := r.pool.Send(req, destination.Destination{Scheme: "http", Host: "example.com", Port: 80}, upstream.Who{})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "http://example.com/a%2Db?q=1" {
		t.Errorf("the parent proxy got the target %q, %v", b, err)
	}
	if req.URL.Opaque != "/a%2Db" {
		t.Errorf("Send changed the caller's request: %q", req.URL.Opaque)
	}
}

func TestRoutesFind(t *testing.T) {
	rs, err := upstream.NewRoutes([]v1alpha1.Destination{
		{Host: "a.example.com", Addresses: []string{"192.0.2.1"}},
		{Host: "*.example.com", Addresses: []string{"192.0.2.2"}},
		{Host: "**.example.com", Addresses: []string{"192.0.2.3"}},
		{Host: "p.example.com", Port: 8443, Addresses: []string{"192.0.2.4"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	same := func(a, b destination.Destination) bool { return rs.Find(a) == rs.Find(b) }
	if same(dest("a.example.com"), dest("b.example.com")) || same(dest("b.example.com"), dest("x.b.example.com")) ||
		!same(dest("x.b.example.com"), dest("y.b.example.com")) || same(dest("example.com"), dest("b.example.com")) ||
		!same(dest("example.com"), dest("evilexample.com")) || same(dest("p.example.com"), destination.Destination{Scheme: "https", Host: "p.example.com", Port: 8443}) {
		t.Error("routes are mixed up")
	}
	if rs.Covers(dest("evilexample.com")) || rs.Covers(dest("example.com")) || !rs.Covers(dest("x.y.example.com")) ||
		rs.Covers(destination.Destination{Scheme: "http", Host: "a.example.com", Port: 80}) {
		t.Error("Covers is wrong")
	}
	for _, bad := range []string{"localhost", "127.0.0.1:0", "127.0.0.1:99999", "1.2.3", ""} {
		if _, err := upstream.NewRoutes([]v1alpha1.Destination{{Host: "x", Addresses: []string{bad}}}); err == nil {
			t.Errorf("address %q accepted", bad)
		}
	}
}

// resolver answers every A query with ips, from a real DNS server on loopback.
func resolver(t *testing.T, ips ...netip.Addr) *net.Resolver {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			var p dnsmessage.Parser
			h, err := p.Start(buf[:n])
			if err != nil {
				continue
			}
			q, err := p.Question()
			if err != nil {
				continue
			}
			m := dnsmessage.Message{Header: dnsmessage.Header{ID: h.ID, Response: true, Authoritative: true}, Questions: []dnsmessage.Question{q}}
			if q.Type == dnsmessage.TypeA {
				for _, ip := range ips {
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}, Body: &dnsmessage.AResource{A: ip.As4()}})
				}
			}
			if out, err := m.Pack(); err == nil {
				pc.WriteTo(out, from)
			}
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", pc.LocalAddr().String())
	}}
}

func FuzzCheckAddress(f *testing.F) {
	f.Add("127.0.0.1")
	f.Add("64:ff9b::a9fe:a9fe")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return
		}
		// Whatever the spelling, what unmaps to loopback or link-local is out.
		if u := a.Unmap(); (u.IsLoopback() || u.IsLinkLocalUnicast() || u.IsMulticast() || u.IsUnspecified()) && upstream.CheckAddress(a, true) == nil {
			t.Errorf("%s admitted", s)
		}
	})
}
