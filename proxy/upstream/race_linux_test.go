package upstream_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/proxy/destination"
	"github.com/attache-dev/attache/proxy/upstream"
)

// blackhole listens at ap (port 0: any) and answers no SYN: its queue of
// connections that nobody accepts is full.
func blackhole(t *testing.T, ap netip.AddrPort) netip.AddrPort {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	ap = netip.AddrPortFrom(ap.Addr(), uint16(name.(*syscall.SockaddrInet4).Port))
	for range 8 {
		c, err := (&net.Dialer{Timeout: 100 * time.Millisecond}).Dial("tcp", ap.String())
		if err != nil {
			return ap
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Fatal("the queue is never full")
	return ap
}

// patient limits leave the first address half a minute.
func patient() v1alpha1.Limits {
	l := limits()
	l.DialTimeout = v1alpha1.Duration(30 * time.Second)
	return l
}

// TestDeadAddressFirst: a destination whose first address swallows everything
// is reached at its second one soon, by requests and by tunnels.
func TestDeadAddressFirst(t *testing.T) {
	s := tlsServer(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "alive") }, false)
	dead := blackhole(t, netip.MustParseAddrPort("127.0.0.1:0")).String()
	r := newRig(t, upstream.Config{Limits: patient()},
		v1alpha1.Destination{Host: "example.com", Addresses: []string{dead, s.Listener.Addr().String()}, CABundle: caPEM(s)})
	start := time.Now()
	if got, err := r.get(t, dest("example.com"), upstream.Who{}); err != nil || !strings.HasSuffix(got, "alive") {
		t.Errorf("got %q, %v", got, err)
	}
	c, err := r.pool.DialRaw(t.Context(), dest("example.com"))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if d := time.Since(start); d < 2*upstream.AttemptDelay || d > 10*time.Second {
		t.Errorf("took %v for two connections, want some %v", d, 2*upstream.AttemptDelay)
	}
}

// The same for the addresses that a name resolves to: here a parent proxy's,
// which may stand on loopback.
func TestDeadResolvedAddressFirst(t *testing.T) {
	parent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "parent") }))
	defer parent.Close()
	alive := netip.MustParseAddrPort(parent.Listener.Addr().String())
	dead := netip.MustParseAddr("127.0.0.2")
	blackhole(t, netip.AddrPortFrom(dead, alive.Port()))
	u := "http://proxy.test:" + strings.TrimPrefix(alive.String(), "127.0.0.1:")
	r := newRig(t, upstream.Config{Limits: patient(), Resolver: resolver(t, dead, alive.Addr()), Upstream: v1alpha1.UpstreamConfig{ParentProxy: u}})
	start := time.Now()
	got, err := r.get(t, destination.Destination{Scheme: "http", Host: "example.com", Port: 80}, upstream.Who{})
	if d := time.Since(start); err != nil || !strings.HasSuffix(got, "parent") || d > 10*time.Second {
		t.Errorf("got %q, %v after %v", got, err, d)
	}
}

// Rule 1: each address that races is checked; one that is refused is not
// dialled, whatever the others do.
func TestRacingAddressesAreChecked(t *testing.T) {
	s := tlsServer(t, func(http.ResponseWriter, *http.Request) { t.Error("request arrived") }, false)
	at := netip.MustParseAddrPort(s.Listener.Addr().String())
	r := newRig(t, upstream.Config{Limits: patient(), Resolver: resolver(t, at.Addr(), netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("169.254.169.254"))})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := r.pool.DialRaw(ctx, destination.Destination{Scheme: "https", Host: "rebind.example.com", Port: int(at.Port())})
	if c != nil || !errors.Is(err, upstream.ErrAddress) {
		t.Errorf("got %v, %v; want ErrAddress", c, err)
	}
	// Our own listener is refused among pins, too.
	r = newRig(t, upstream.Config{Limits: patient()}, v1alpha1.Destination{Host: "example.com", Addresses: []string{at.String(), at.String()}})
	r.pool.SetOwn([]net.Addr{s.Listener.Addr()})
	if c, err := r.pool.DialRaw(ctx, dest("example.com")); c != nil || !errors.Is(err, upstream.ErrLoop) {
		t.Errorf("got %v, %v; want ErrLoop", c, err)
	}
}
