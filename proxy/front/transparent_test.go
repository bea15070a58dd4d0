package front_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/proxy"
	"github.com/attache-dev/attache/proxy/front"
	"github.com/attache-dev/attache/proxy/redirect"
)

// redirected is a transparent door to which every connection was redirected
// from one address.
type redirected struct {
	*door
	mu      sync.Mutex
	to      netip.AddrPort // original destination
	err     error
	tunnels []string // destination and protocol
	passes  func(*proxy.Conn) bool
}

func openRedirected(t *testing.T, o front.Transparent, changes ...func(*front.Front)) *redirected {
	t.Helper()
	r := &redirected{to: netip.MustParseAddrPort("203.0.113.9:443")}
	o.Original = func(net.Conn) (netip.AddrPort, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.to, r.err
	}
	r.door = open(t, func(f *front.Front) {
		for _, change := range changes {
			change(f)
		}
		f.Passthrough = func(_ context.Context, c *proxy.Conn) bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.passes != nil && r.passes(c)
		}
		f.Tunnel = func(_ context.Context, c *proxy.Conn, client net.Conn) error {
			r.mu.Lock()
			r.tunnels = append(r.tunnels, c.Dest.HostPort()+" "+c.Opaque)
			r.mu.Unlock()
			if c.Refusal != nil {
				return c.Refusal
			}
			_, err := io.WriteString(client, "tunnelled")
			return err
		}
	})
	ln := listen(t)
	r.addr = ln.Addr().String()
	served := make(chan error, 1)
	go func() { served <- r.ServeTransparent(context.Background(), ln, o) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = r.Shutdown(ctx)
		if err := <-served; !errors.Is(err, front.ErrClosed) {
			t.Errorf("ServeTransparent ended with %v", err)
		}
	})
	return r
}

func (r *redirected) from(to string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
	if to != "" {
		r.to = netip.MustParseAddrPort(to)
	}
}

func (r *redirected) tunnelled() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.tunnels...)
}

// https asks for / over TLS with an SNI, empty for none.
func (r *redirected) https(t *testing.T, sni, host string, protos ...string) (int, string) {
	t.Helper()
	cfg := &tls.Config{RootCAs: r.roots, ServerName: sni, NextProtos: protos, InsecureSkipVerify: sni == ""} //nolint:gosec // verified below
	c := tls.Client(r.dial(t), cfg)
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if sni == "" {
		if _, err := c.ConnectionState().PeerCertificates[0].Verify(x509.VerifyOptions{Roots: r.roots}); err != nil {
			t.Fatal(err)
		}
	}
	return ask(t, c, "GET /x HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
}

func TestRedirectedTLS(t *testing.T) {
	r := openRedirected(t, front.Transparent{})
	for _, tt := range []struct{ name, to, sni, host, want string }{
		{"the SNI is the destination", "203.0.113.9:443", "api.example.com", "api.example.com", "200 transparent|GET|https://api.example.com/x"},
		{"at the port connected to", "203.0.113.9:8443", "api.example.com", "api.example.com:8443", "200 transparent|GET|https://api.example.com:8443/x"},
		{"without SNI the address is", "203.0.113.9:443", "", "203.0.113.9", "200 transparent|GET|https://203.0.113.9/x"},
		{"over IPv6", "[2001:db8:1::9]:443", "", "[2001:db8:1::9]", "200 transparent|GET|https://[2001:db8:1::9]/x"},
		{"Host differs from SNI", "203.0.113.9:443", "api.example.com", "other.example.com", "421 "},
		{"Host names another port", "203.0.113.9:443", "api.example.com", "api.example.com:444", "421 "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.from(tt.to, nil)
			status, got := r.https(t, tt.sni, tt.host)
			if !strings.HasPrefix(fmt.Sprint(status, " ", got), tt.want) {
				t.Errorf("got %d %s, want %s", status, got, tt.want)
			}
		})
	}
}

func TestRedirectedHTTP(t *testing.T) {
	r := openRedirected(t, front.Transparent{})
	for _, tt := range []struct{ name, to, raw, want string }{
		{"Host is the destination", "203.0.113.9:80", "GET /x HTTP/1.1\r\nHost: API.example.com\r\n\r\n", "200 transparent|GET|http://api.example.com/x|"},
		{"at the port connected to", "203.0.113.9:8080", "GET /x HTTP/1.1\r\nHost: api.example.com:8080\r\n\r\n", "200 transparent|GET|http://api.example.com:8080/x|"},
		{"which Host may leave out", "203.0.113.9:8080", "GET /x HTTP/1.1\r\nHost: api.example.com\r\n\r\n", "200 transparent|GET|http://api.example.com:8080/x|"},
		{"HTTP/1.0 without Host", "203.0.113.9:80", "GET /x HTTP/1.0\r\n\r\n", "400 "},
		{"absolute form", "203.0.113.9:80", "GET http://api.example.com/x HTTP/1.1\r\nHost: api.example.com\r\n\r\n", "200 transparent|GET|http://api.example.com/x|"},
		{"Host of another port", "203.0.113.9:80", "GET /x HTTP/1.1\r\nHost: api.example.com:81\r\n\r\n", "421 "},
		{"Host is another address", "203.0.113.9:80", "GET /x HTTP/1.1\r\nHost: 203.0.113.10\r\n\r\n", "421 "},
		{"an address in another spelling", "203.0.113.9:80", "GET /x HTTP/1.1\r\nHost: 0xcb.0.113.9\r\n\r\n", "421 "},
		{"https in the URL", "203.0.113.9:80", "GET https://api.example.com/x HTTP/1.1\r\nHost: api.example.com\r\n\r\n", "421 "},
		{"CONNECT to another proxy", "203.0.113.9:3128", "CONNECT api.example.com:443 HTTP/1.1\r\nHost: api.example.com:443\r\n\r\n", "501 "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.from(tt.to, nil)
			status, got := ask(t, r.dial(t), tt.raw)
			if !strings.HasPrefix(fmt.Sprint(status, " ", got), tt.want) {
				t.Errorf("got %d %s, want %s", status, got, tt.want)
			}
		})
	}
	// Each request of a connection names its own destination.
	r.from("203.0.113.9:80", nil)
	c := r.dial(t)
	in := bufio.NewReader(c)
	for _, host := range []string{"one.example.com", "two.example.com"} {
		_, _ = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host)
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		if !strings.Contains(string(b), "http://"+host+"/") {
			t.Errorf("got %s", b)
		}
	}
}

// What names no host goes by the address that it was for, and to policy first.
func TestRedirectedOpaque(t *testing.T) {
	r := openRedirected(t, front.Transparent{})
	for _, tt := range []struct{ name, to, send, want string }{
		{"MySQL", "203.0.113.9:3306", "", "203.0.113.9:3306 mysql"},
		{"SSH", "[2001:db8:1::9]:22", "", "[2001:db8:1::9]:22 ssh"},
		{"PostgreSQL", "203.0.113.9:5432", "\x00\x00\x00\x08\x04\xd2\x16\x2f", "203.0.113.9:5432 tcp"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.from(tt.to, nil)
			start := time.Now()
			c := r.dial(t)
			_, _ = io.WriteString(c, tt.send)
			b, _ := io.ReadAll(c)
			if got := r.tunnelled(); string(b) != "tunnelled" || got[len(got)-1] != tt.want {
				t.Errorf("got %q through %q, want %q", b, got, tt.want)
			}
			if d := time.Since(start); d > 3*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
	// A silent client at a port that policy passes is not waited for long.
	r.from("203.0.113.9:9999", nil)
	r.mu.Lock()
	r.passes = func(c *proxy.Conn) bool { return c.Dest.HostPort() == "203.0.113.9:9999" }
	r.mu.Unlock()
	start := time.Now()
	if b, _ := io.ReadAll(r.dial(t)); string(b) != "tunnelled" || time.Since(start) > 4*time.Second {
		t.Errorf("a silent client at a passed address: %q after %v", b, time.Since(start))
	}
}

// Connections to the listener itself would meet themselves.
func TestRedirectedToItself(t *testing.T) {
	r := openRedirected(t, front.Transparent{})
	r.from("", redirect.ErrNotRedirected)
	c := r.dial(t)
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n")
	if b, _ := io.ReadAll(c); len(b) > 0 {
		t.Errorf("got %q", b)
	}
	eventually(t, "the refusal counted", func() bool { return r.counted(front.KindDirect) == 1 })
}

// TestEncryptedName: where the SNI may not be the name that the origin reads,
// the connection is never tunnelled, whatever policy says of the SNI.
func TestEncryptedName(t *testing.T) {
	r := openRedirected(t, front.Transparent{})
	r.mu.Lock()
	r.passes = func(c *proxy.Conn) bool { return c.Dest.Host == "public.example" }
	r.mu.Unlock()
	// Without ECH it is tunnelled.
	plain := tls.Client(r.dial(t), &tls.Config{ServerName: "public.example", RootCAs: r.roots})
	if err := plain.HandshakeContext(t.Context()); err == nil || len(r.tunnelled()) != 1 {
		t.Fatalf("got %v, tunnels %q", err, r.tunnelled())
	}
	c := tls.Client(r.dial(t), &tls.Config{ServerName: "secret.example", EncryptedClientHelloConfigList: echConfig(), RootCAs: r.roots, MinVersion: tls.VersionTLS13})
	err := c.HandshakeContext(t.Context())
	var rejected *tls.ECHRejectionError
	if !errors.As(err, &rejected) || len(r.tunnelled()) != 1 {
		t.Errorf("got %v, tunnels %q; want the client to see that ECH is not spoken here", err, r.tunnelled())
	}
}

// echConfig is a valid ECHConfigList for public.example, whose key nobody has.
func echConfig() []byte {
	c := append([]byte{7, 0, 0x20, 0, 32}, make([]byte, 32)...)
	c[5] = 9 // a point of the curve
	c = append(c, 0, 4, 0, 1, 0, 1, 32, byte(len("public.example")))
	c = append(append(c, "public.example"...), 0, 0)
	c = append([]byte{0xfe, 0x0d, 0, byte(len(c))}, c...)
	return append([]byte{0, byte(len(c))}, c...)
}

// Names that a resolver of ours gave out bind what is asked for.
func TestNamesOfAResolver(t *testing.T) {
	r := openRedirected(t, front.Transparent{Names: func(a netip.Addr) (string, bool) {
		switch a.String() {
		case "198.18.0.1":
			return "api.example.com", true
		case "198.18.0.2":
			return "", true
		}
		return "", false
	}})
	for _, tt := range []struct{ name, to, sni, host, want string }{
		{"the name", "198.18.0.1:443", "api.example.com", "api.example.com", "200 "},
		{"no SNI", "198.18.0.1:443", "", "api.example.com", "200 "},
		{"another name", "198.18.0.1:443", "other.example.com", "other.example.com", "403 "},
		{"an address that nobody was given", "198.18.0.2:443", "api.example.com", "api.example.com", "403 "},
		{"a real address", "203.0.113.9:443", "api.example.com", "api.example.com", "200 "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.from(tt.to, nil)
			status, got := r.https(t, tt.sni, tt.host)
			if !strings.HasPrefix(fmt.Sprint(status, " ", got), tt.want) {
				t.Errorf("got %d %s, want %s", status, got, tt.want)
			}
		})
	}
	r.from("198.18.0.1:80", nil)
	if status, got := ask(t, r.dial(t), "GET / HTTP/1.1\r\nHost: other.example.com\r\n\r\n"); status != http.StatusMisdirectedRequest {
		t.Errorf("plain HTTP with another name: %d %s", status, got)
	}
	r.from("198.18.0.1:3306", nil)
	if b, _ := io.ReadAll(r.dial(t)); string(b) != "tunnelled" || r.tunnelled()[0] != "api.example.com:3306 mysql" {
		t.Errorf("a protocol without names: %q through %q", b, r.tunnelled())
	}
	r.from("198.18.0.2:3306", nil)
	if b, _ := io.ReadAll(r.dial(t)); len(b) > 0 {
		t.Errorf("an address without a name was tunnelled: %q", b)
	}
}

// The proof's connections are no calls.
func TestProofIsAnswered(t *testing.T) {
	answered := make(chan netip.AddrPort, 1)
	r := openRedirected(t, front.Transparent{Answer: func(c net.Conn, to netip.AddrPort) bool {
		if !redirect.IsTest(to.Addr()) {
			return false
		}
		answered <- to
		_ = c.Close()
		return true
	}}, func(f *front.Front) {
		f.Attestor = attestor(func(net.Conn) (identity.Caller, error) {
			t.Error("asked who proves")
			return identity.Caller{}, nil
		})
	})
	r.from("192.0.2.64:443", nil)
	if b, _ := io.ReadAll(r.dial(t)); len(b) > 0 || (<-answered).String() != "192.0.2.64:443" {
		t.Errorf("got %q", b)
	}
}

// A client that breaks off, or says half of something, ends its connection
// only.
func TestHalfSaid(t *testing.T) {
	r := openRedirected(t, front.Transparent{})
	for _, send := range []string{"", "\x16", "\x16\x03\x01\x00\xa5\x01\x00", "GET / HT", "PRI * HTTP/2.0\r\n"} {
		c := r.dial(t).(*net.TCPConn)
		_, _ = io.WriteString(c, send)
		_ = c.CloseWrite()
		_, _ = io.ReadAll(c)
		c = r.dial(t).(*net.TCPConn)
		_, _ = io.WriteString(c, send)
		_ = c.SetLinger(0) // a reset
		_ = c.Close()
	}
	r.from("203.0.113.9:443", nil)
	if status, got := r.https(t, "api.example.com", "api.example.com"); status != http.StatusOK {
		t.Errorf("afterwards: %d %s", status, got)
	}
	eventually(t, "all ended", func() bool { return r.Active() <= 1 })
}
