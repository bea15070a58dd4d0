package redirect_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/proxy/redirect"
)

// somebodyElse is a sidecar's uid that the tests do not run as: they are the
// agent then. With SidecarUID podUID they are the sidecar.
const somebodyElse = 64200

// sidecar is a sidecar's accept loops, and what they have accepted.
type sidecar struct {
	port4, port6 uint16
	prover       *redirect.Prover
	accepted     chan result
}

type result struct {
	dst  netip.AddrPort
	peer string
	err  error
}

func startSidecar(t *testing.T) *sidecar {
	t.Helper()
	s := &sidecar{prover: redirect.NewProver(), accepted: make(chan result, 1000)}
	s.port4 = s.listen(t, "tcp4", listener4)
	s.port6 = s.listen(t, "tcp6", listener6)
	return s
}

func (s *sidecar) listen(t *testing.T, network, addr string) uint16 {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			dst, err := redirect.OriginalDst(c)
			if err == nil && s.prover.Answer(c, dst) {
				continue
			}
			s.accepted <- result{dst, c.RemoteAddr().String(), err}
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func (s *sidecar) config(uid uint32) redirect.Config {
	return redirect.Config{Port4: s.port4, Port6: s.port6, SidecarUID: uid}
}

func apply(t *testing.T, c redirect.Config) {
	t.Helper()
	if err := redirect.Apply(c); err != nil {
		t.Fatal(err)
	}
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func tcp(to string) packet { return packet{unix.IPPROTO_TCP, ap(to)} }
func udp(to string) packet { return packet{unix.IPPROTO_UDP, ap(to)} }

// redirected connects and expects to be at the listener, as one for to.
func (s *sidecar) redirected(t *testing.T, w *wire, to string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", to, patience)
	if err != nil {
		t.Errorf("connect to %s: %v, want the listener", to, err)
		return
	}
	defer func() { _ = c.Close() }()
	select {
	case got := <-s.accepted:
		if got.err != nil || got.dst != ap(to) || got.peer != c.LocalAddr().String() {
			t.Errorf("original destination %v of %v, %v; want %s of %v", got.dst, got.peer, got.err, to, c.LocalAddr())
		}
	case <-time.After(patience):
		t.Errorf("connection to %s is not at the listener", to)
	}
	w.flush(t)
	if ok, _ := w.left(tcp(to)); ok {
		t.Errorf("packets to %s have left", to)
	}
}

// leaves connects and expects that the SYN leaves the pod.
func (s *sidecar) leaves(t *testing.T, w *wire, to string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", to)
		if err == nil {
			_ = c.Close()
		}
		done <- err
	}()
	w.wait(t, tcp(to))
	cancel()
	if err := <-done; err == nil {
		t.Errorf("connection to %s was answered", to)
	}
	if len(s.accepted) != 0 {
		t.Errorf("connection to %s is at the listener, too", to)
	}
}

// rejected sends a datagram and expects a quick error, and none on the wire.
func rejected(t *testing.T, w *wire, to string) {
	t.Helper()
	start := time.Now()
	if err := datagram(ap(to)); !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("datagram to %s: %v, want a refusal", to, err)
	}
	if d := time.Since(start); d > patience/2 {
		t.Errorf("refusing a datagram took %v", d)
	}
	w.flush(t)
	if ok, _ := w.left(udp(to)); ok {
		t.Errorf("datagrams to %s have left", to)
	}
}

func sends(t *testing.T, w *wire, to string) {
	t.Helper()
	if err := datagram(ap(to)); err != nil {
		t.Errorf("datagram to %s: %v", to, err)
		return
	}
	w.wait(t, udp(to))
}

func TestRedirect(t *testing.T) {
	if !inPod(t) {
		return
	}
	s, w := startSidecar(t), sniff(t)
	apply(t, s.config(somebodyElse))
	for _, to := range []string{
		outside4 + ":443", outside4 + ":80", outside4 + ":53", "10.5.0.9:5432", "8.8.8.8:1",
		"[" + outside6 + "]:443", "[" + outside6 + "]:22", "[fd00:5::9]:80",
		"169.254.169.254:80", "[fd00:ec2::254]:80", // the sidecar decides
	} {
		s.redirected(t, w, to)
	}
	for _, to := range []string{
		outside4 + ":443", "[" + outside6 + "]:443",
		"169.254.169.254:9", "[fd00:ec2::254]:9", "168.63.129.16:9", "100.100.100.200:9", "[fd20:ce::254]:9",
	} {
		rejected(t, w, to)
	}
	sends(t, w, outside4+":53")
	sends(t, w, "["+outside6+"]:4433")
}

func TestSidecarIsExempt(t *testing.T) {
	if !inPod(t) {
		return
	}
	s, w := startSidecar(t), sniff(t)
	apply(t, s.config(podUID))
	for _, to := range []string{outside4 + ":443", "[" + outside6 + "]:443", "169.254.169.254:80"} {
		s.leaves(t, w, to)
	}
	sends(t, w, outside4+":443")
	sends(t, w, "169.254.169.254:9")
}

func TestExclusions(t *testing.T) {
	if !inPod(t) {
		return
	}
	s, w := startSidecar(t), sniff(t)
	c := s.config(somebodyElse)
	c.APIServer = []netip.AddrPort{ap("10.96.0.1:443"), ap("[fd00:96::1]:443")}
	c.Nameservers = []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::a"), netip.MustParseAddr("169.254.20.10")}
	c.ExcludedCIDRs = []netip.Prefix{netip.MustParsePrefix("198.51.96.0/20"), netip.MustParsePrefix("fd00:7::/33"), netip.MustParsePrefix("169.254.0.0/16")}
	c.ExcludedPorts = []uint16{5432}
	apply(t, c)
	for _, to := range []string{
		"10.96.0.1:443", "[fd00:96::1]:443",
		"10.96.0.10:53", "[fd00:96::a]:53", "169.254.20.10:53",
		"198.51.96.0:443", "198.51.111.255:80", "[fd00:7:7fff::1]:443",
		outside4 + ":5432", "[" + outside6 + "]:5432",
	} {
		s.leaves(t, w, to)
	}
	for _, to := range []string{
		"10.96.0.1:444", "10.96.0.2:443", "[fd00:96::2]:443", // beside the API server
		"10.96.0.10:443", outside4 + ":53", // DNS is a port of resolvers only
		"198.51.95.255:443", "198.51.112.0:443", "[fd00:7:8000::1]:443", // beside the CIDRs
		"169.254.169.254:80", "169.254.169.254:5432", // no exclusion reaches metadata
	} {
		s.redirected(t, w, to)
	}
	for _, to := range []string{"10.96.0.10:53", "[fd00:96::a]:53", "169.254.20.10:53", "198.51.100.9:443", outside4 + ":53"} {
		sends(t, w, to)
	}
	for _, to := range []string{"10.96.0.1:443", "169.254.20.10:54", "169.254.169.254:53"} {
		rejected(t, w, to)
	}
}

func TestExcludedUID(t *testing.T) {
	if !inPod(t) {
		return
	}
	s, w := startSidecar(t), sniff(t)
	c := s.config(somebodyElse)
	c.ExcludedUIDs = []uint32{podUID}
	apply(t, c)
	s.leaves(t, w, outside4+":443")
	s.leaves(t, w, "["+outside6+"]:443")
	c.ExcludedUIDs = []uint32{podUID + 1}
	apply(t, c)
	s.redirected(t, w, "203.0.113.10:443")
}

// The longest Config fits into one transaction, and its last rule works.
func TestAsManyExclusionsAsAllowed(t *testing.T) {
	if !inPod(t) {
		return
	}
	s, w := startSidecar(t), sniff(t)
	c := s.config(somebodyElse)
	for i := range 31 {
		c.Nameservers = append(c.Nameservers, netip.AddrFrom4([4]byte{10, 96, 1, byte(i)}))
	}
	c.ExcludedPorts = []uint16{22, 5432}
	apply(t, c)
	s.leaves(t, w, "10.96.1.30:53")
	s.leaves(t, w, outside4+":5432")
	s.redirected(t, w, outside4+":443")
}

func TestStrict(t *testing.T) {
	if !inPod(t) {
		return
	}
	s, w := startSidecar(t), sniff(t)
	c := s.config(somebodyElse)
	c.Nameservers = []netip.Addr{netip.MustParseAddr("10.96.0.10")}
	apply(t, c)
	sends(t, w, outside4+":123")
	c.Strict = true
	apply(t, c)
	sends(t, w, "10.96.0.10:53")
	s.redirected(t, w, outside4+":443")
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, 132) // SCTP
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Sendto(fd, make([]byte, 12), 0, &unix.SockaddrInet4{Addr: [4]byte{203, 0, 113, 9}}); !errors.Is(err, unix.EPERM) {
		t.Errorf("SCTP: %v, want a refusal", err)
	}
	for _, to := range []string{outside4 + ":124", outside4 + ":53", "[" + outside6 + "]:124", "10.96.0.10:124"} {
		if err := datagram(ap(to)); !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("datagram to %s: %v, want a refusal", to, err)
		}
	}
}
