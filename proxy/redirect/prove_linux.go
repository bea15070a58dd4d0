package redirect

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	proofTimeout = 3 * time.Second // for each dial, all of which are local
	nonceSize    = 16
)

// A Prover shows, from within the sidecar and without privilege, that the
// rules of [Apply] are in force. The sidecar's accept loop gives it, by
// Answer, the connections that Prove makes. It is safe for concurrent use.
type Prover struct {
	mu      sync.Mutex
	waiting map[[nonceSize]byte]chan struct{} // guarded by mu; closed on arrival
}

// NewProver returns a Prover.
func NewProver() *Prover { return &Prover{waiting: map[[nonceSize]byte]chan struct{}{}} }

// Answer takes c if dst, its original destination, is a test address; it then
// reads from c, closes it, and returns true. It may wait a few seconds for a
// peer that says nothing: call it from the connection's own goroutine. The
// proof's secret is compared within the process: nobody outside can pass for
// the listener.
func (p *Prover) Answer(c net.Conn, dst netip.AddrPort) bool {
	if !IsTest(dst.Addr()) {
		return false
	}
	defer func() { _ = c.Close() }()
	var nonce [nonceSize]byte
	if err := c.SetReadDeadline(time.Now().Add(proofTimeout)); err != nil {
		return true
	}
	if _, err := io.ReadFull(c, nonce[:]); err != nil {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if ch := p.waiting[nonce]; ch != nil {
		delete(p.waiting, nonce)
		close(ch)
	}
	return true
}

// Prove returns nil if, for each family that the host has a route or an
// address of, and at least one,
//   - a connection to the proof address arrives at the listener with that
//     original destination: the redirect, and the exclusions before it, are
//     in force;
//   - one to the control address is reset: the sidecar is exempt, and the
//     filter is in force;
//   - a datagram to port 443 of the proof address is rejected.
func (p *Prover) Prove(ctx context.Context) error {
	var errs []error
	proved := false
	for i, a := range proofs() {
		switch err := p.proveFamily(ctx, a, controls()[i]); {
		case err == nil:
			proved = true
		case unreachable(err) && !hasAddress(a.Is4()):
			// Nothing can leave by a family that has neither route nor address.
		default:
			errs = append(errs, fmt.Errorf("prove redirect: %w", err))
		}
	}
	if !proved && len(errs) == 0 {
		return errors.New("prove redirect: the host has no address of either family")
	}
	return errors.Join(errs...)
}

func (p *Prover) proveFamily(ctx context.Context, proof, control netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	to := netip.AddrPortFrom(proof, httpsPort)
	if err := p.dial(ctx, to); err != nil {
		return fmt.Errorf("connection to %v does not arrive at the listener: %w", to, err)
	}
	to = netip.AddrPortFrom(control, httpsPort)
	switch err := p.dial(ctx, to); {
	case err == nil:
		return fmt.Errorf("the sidecar's own connection to %v is redirected to itself: it runs as another user than the rules exempt", to)
	case !errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("connection to %v is not reset: %w", to, err)
	}
	return proveQUIC(ctx, netip.AddrPortFrom(proof, httpsPort))
}

// dial connects to an address, sends a secret, and waits until Answer is given
// the connection that brings it.
func (p *Prover) dial(ctx context.Context, to netip.AddrPort) error {
	var nonce [nonceSize]byte
	_, _ = rand.Read(nonce[:]) // never fails
	arrived := make(chan struct{})
	p.mu.Lock()
	p.waiting[nonce] = arrived
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.waiting, nonce)
	}()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", to.String())
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write(nonce[:]); err != nil {
		return err
	}
	select {
	case <-arrived:
		return nil
	case <-ctx.Done():
		return errors.New("somebody else has answered it")
	}
}

// proveQUIC sends datagrams until the kernel says that they are rejected: a
// reject in the output hook fails the send itself with EPERM, or the next one
// by the ICMP error.
func proveQUIC(ctx context.Context, to netip.AddrPort) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "udp", to.String())
	if err != nil {
		return fmt.Errorf("datagram to %v: %w", to, err)
	}
	defer func() { _ = c.Close() }()
	for range 2 {
		if _, err = c.Write([]byte{0}); err != nil {
			break
		}
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	if err == nil {
		err = errors.New("it left")
	}
	return fmt.Errorf("datagram to %v is not rejected: %w", to, err)
}

func unreachable(err error) bool {
	return errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)
}

// hasAddress tells whether the host has an address of the family by which it
// could reach others. If that cannot be told, it has.
func hasAddress(v4 bool) bool {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return true
	}
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || p.Addr().Unmap().Is4() == v4 && p.Addr().IsGlobalUnicast() {
			return true
		}
	}
	return false
}
