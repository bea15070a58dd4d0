package redirect_test

import (
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/attache-dev/attache/proxy/redirect"
)

// accepted connects to addr and returns the accepted end.
func accepted(t *testing.T, network, listen, dial string) net.Conn {
	t.Helper()
	l, err := net.Listen(network, listen)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if dial == "" {
		dial = l.Addr().String()
	}
	got := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			c = nil
		}
		got <- c
	}()
	c, err := net.DialTimeout("tcp", dial, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	a := <-got
	if a == nil {
		t.Fatal("nothing accepted")
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

// Whoever connects to the listener itself is told apart, with and without
// connection tracking: proxying it to its destination would loop.
func TestOriginalDstOfDirectConnections(t *testing.T) {
	if !inPod(t) {
		return
	}
	for _, tracked := range []bool{false, true} {
		if tracked {
			s := startSidecar(t)
			apply(t, s.config(somebodyElse))
		}
		for _, at := range [][2]string{{"tcp4", "127.0.0.1:0"}, {"tcp6", "[::1]:0"}} {
			c := accepted(t, at[0], at[1], "")
			if dst, err := redirect.OriginalDst(c); !errors.Is(err, redirect.ErrNotRedirected) {
				t.Errorf("tracked %v, %s: %v, %v; want ErrNotRedirected", tracked, at[0], dst, err)
			}
		}
	}
}

// A listener for both families sees IPv4 peers as mapped addresses.
func TestOriginalDstOnDualStack(t *testing.T) {
	if !inPod(t) {
		return
	}
	l, err := net.Listen("tcp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	_ = l.Close()
	apply(t, redirect.Config{Port4: port, Port6: port, SidecarUID: somebodyElse})
	for _, to := range []string{outside4 + ":443", "[" + outside6 + "]:443"} {
		c := accepted(t, "tcp", l.Addr().String(), to)
		if dst, err := redirect.OriginalDst(c); err != nil || dst != ap(to) {
			t.Errorf("got %v, %v; want %s", dst, err, to)
		}
	}
}

func TestOriginalDstOfOthers(t *testing.T) {
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	if _, err := redirect.OriginalDst(a); err == nil || !strings.Contains(err.Error(), "is not a TCP connection") {
		t.Errorf("pipe: %v", err)
	}
	c := accepted(t, "tcp4", "127.0.0.1:0", "")
	_ = c.Close()
	if _, err := redirect.OriginalDst(c); err == nil || errors.Is(err, redirect.ErrNotRedirected) {
		t.Errorf("closed: %v", err)
	}
}

// Only who may change the network may, and is told so.
func TestApplyNeedsNetAdmin(t *testing.T) {
	if !inPod(t) {
		return
	}
	s := startSidecar(t)
	dropNetAdmin(t)
	for what, err := range map[string]error{"Apply": redirect.Apply(s.config(somebodyElse)), "Remove": redirect.Remove()} {
		if err == nil || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
