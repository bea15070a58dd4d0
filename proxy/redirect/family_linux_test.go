package redirect_test

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/proxy/redirect"
)

// A pod of IPv4 alone, which has no more of IPv6 than link-local addresses,
// is proved by IPv4.
func TestProveOnIPv4Only(t *testing.T) {
	if !inPod(t) {
		return
	}
	deleteRoute(t, unix.AF_INET6)
	deleteAddress(t, podAddr6+"/64")
	s := &sidecar{prover: redirect.NewProver(), accepted: make(chan result, 10)}
	s.port4 = s.listen(t, "tcp4", listener4)
	s.port6 = s.port4
	apply(t, s.config(podUID))
	if got := s.proof(t, patience); got != "proved" {
		t.Errorf("with rules: %s", got)
	}
	remove(t, "redirect: tcp over IPv4")
	if got := s.proof(t, silence); got != "does not arrive" {
		t.Errorf("without: %s", got)
	}
}

// A family that has an address but no default route reaches its neighbours:
// that it cannot be proved is no reason to leave it out.
func TestProveNeedsARoute(t *testing.T) {
	if !inPod(t) {
		return
	}
	s := startSidecar(t)
	apply(t, s.config(podUID))
	deleteRoute(t, unix.AF_INET6)
	err := s.prover.Prove(t.Context())
	if !errors.Is(err, unix.ENETUNREACH) || !strings.Contains(err.Error(), "[2001:db8::64]:443") {
		t.Errorf("no route: %v", err)
	}
	deleteInterface(t)
	if err := s.prover.Prove(t.Context()); err == nil || !strings.Contains(err.Error(), "no address of either family") {
		t.Errorf("no interface: %v", err)
	}
}

// Where no listener is, nothing goes on; the other family's does.
func TestNoListenerNoWay(t *testing.T) {
	if !inPod(t) {
		return
	}
	s := &sidecar{prover: redirect.NewProver(), accepted: make(chan result, 10)}
	w := sniff(t)
	s.port4 = s.listen(t, "tcp4", listener4)
	s.port6 = s.port4
	apply(t, s.config(somebodyElse))
	to := "[" + outside6 + "]:443"
	if c, err := net.DialTimeout("tcp", to, patience); !errors.Is(err, unix.ECONNREFUSED) {
		if err == nil {
			_ = c.Close()
		}
		t.Errorf("connect to %s: %v, want a refusal", to, err)
	}
	w.flush(t)
	if ok, _ := w.left(tcp(to)); ok {
		t.Errorf("packets to %s have left", to)
	}
	s.redirected(t, w, outside4+":443")
}

// What agents send to the test addresses ends at the sidecar and tells
// nobody's proof.
func TestAnswerIsForTheProverOnly(t *testing.T) {
	if !inPod(t) {
		return
	}
	s := startSidecar(t)
	apply(t, s.config(somebodyElse))
	for _, to := range []string{"192.0.2.64:443", "192.0.2.65:80", "[2001:db8::64]:1", "[2001:db8::65]:443"} {
		c, err := net.DialTimeout("tcp", to, patience)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(make([]byte, 16)); err != nil {
			t.Error(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: read %d, %v; want the end", to, n, err)
		}
		_ = c.Close()
	}
	if len(s.accepted) != 0 {
		t.Error("the proxy was given connections to test addresses")
	}
}

// A host that answers at the proof's address does not pass for the listener,
// and neither does an agent that says something else there meanwhile.
func TestProveKnowsImpostors(t *testing.T) {
	if !inPod(t) {
		return
	}
	p := redirect.NewProver()
	beHost(t, "192.0.2.64/32")
	l, err := net.Listen("tcp", "192.0.2.64:443")
	if err != nil {
		t.Fatal(err)
	}
	met := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			met <- err
			return
		}
		agent, here := net.Pipe()
		go func() { _, _ = agent.Write(make([]byte, 16)) }()
		if !p.Answer(here, ap("192.0.2.64:443")) {
			err = errors.New("connection to the proof address not taken")
		}
		_, _ = c.Write(make([]byte, 16))
		met <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), silence)
	defer cancel()
	if err := p.Prove(ctx); err == nil || !strings.Contains(err.Error(), "192.0.2.64:443 does not arrive at the listener: somebody else has answered it") {
		t.Errorf("got %v", err)
	}
	_ = l.Close()
	if err := <-met; err != nil {
		t.Error(err)
	}
}
