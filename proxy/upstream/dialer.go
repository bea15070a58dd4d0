package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/attache-dev/attache/proxy/destination"
)

// ErrLoop is matched when a dial would come back to one of our own listeners.
var ErrLoop = errors.New("destination is Attaché itself")

// dialer dials one destination and checks every address at the moment it is
// tried, so that a name that changes between look-up and dial (DNS rebinding)
// is checked too.
type dialer struct {
	timeout      time.Duration
	allowPrivate bool
	own          *ownAddresses
	resolver     *net.Resolver
}

// ownAddresses is the set of our own listeners.
type ownAddresses struct {
	set atomic.Pointer[map[netip.AddrPort]bool]
}

func (o *ownAddresses) has(a netip.AddrPort) bool {
	m := o.set.Load()
	if m == nil {
		return false
	}
	return (*m)[a] || (*m)[netip.AddrPortFrom(netip.IPv4Unspecified(), a.Port())] ||
		(*m)[netip.AddrPortFrom(netip.IPv6Unspecified(), a.Port())]
}

// dial connects to addr ("host:port"), which net.Dialer resolves and races by
// RFC 8305; pins, if any, replace the look-up.
func (d *dialer) dial(ctx context.Context, network, addr string, pins []netip.AddrPort, trusted bool) (net.Conn, error) {
	nd := &net.Dialer{Timeout: d.timeout, KeepAlive: 30 * time.Second, Resolver: d.resolver}
	pinned := len(pins) > 0
	nd.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
		return d.check(address, pinned || trusted)
	}
	if !pinned {
		return nd.DialContext(ctx, network, addr)
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, pin := range pins {
		target := pin.String()
		if pin.Port() == 0 {
			target = net.JoinHostPort(pin.Addr().String(), port)
		}
		c, err := nd.DialContext(ctx, network, target)
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// check is called by the runtime for each address right before connect(2).
func (d *dialer) check(address string, operator bool) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: %s", ErrAddress, address)
	}
	if d.own.has(netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())) {
		return fmt.Errorf("%w (%s); remove the rule or the parent proxy that points here", ErrLoop, address)
	}
	if operator {
		return nil
	}
	return CheckAddress(ap.Addr(), d.allowPrivate)
}

// checkBeyond checks what of a destination can be checked when a parent proxy
// dials it: an address that stands in the URL, and names of the proxy's own
// machine (RFC 6761 section 6.3). What other names point at, only it knows.
func (d *dialer) checkBeyond(dest destination.Destination) error {
	if a, err := netip.ParseAddr(dest.Host); err == nil {
		return CheckAddress(a, d.allowPrivate)
	}
	if dest.Host == "localhost" || strings.HasSuffix(dest.Host, ".localhost") {
		return fmt.Errorf("%w: %s is the parent proxy's own machine", ErrAddress, dest.Host)
	}
	return nil
}

// parsePins reads "ip" and "ip:port" entries.
func parsePins(addresses []string) ([]netip.AddrPort, error) {
	pins := make([]netip.AddrPort, 0, len(addresses))
	for _, s := range addresses {
		if a, err := netip.ParseAddr(s); err == nil {
			pins = append(pins, netip.AddrPortFrom(a, 0))
			continue
		}
		host, port, err := net.SplitHostPort(s)
		if err != nil {
			return nil, fmt.Errorf("address %q is no IP address or IP:port", s)
		}
		a, err := netip.ParseAddr(host)
		n, perr := strconv.ParseUint(port, 10, 16)
		if err != nil || perr != nil || n == 0 {
			return nil, fmt.Errorf("address %q is no IP address or IP:port", s)
		}
		pins = append(pins, netip.AddrPortFrom(a, uint16(n)))
	}
	return pins, nil
}
