package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
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
	resolver     Resolver
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

// dial connects to addr ("host:port"), to the route's pins if there are any,
// else to what the name resolves to. A trusted address is not checked. Several addresses race, see [race].
func (d *dialer) dial(ctx context.Context, network, addr string, route *Route, trusted bool) (net.Conn, error) {
	if d.timeout > 0 { // for the look-up and all attempts together
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.timeout)
		defer cancel()
	}
	nd := &net.Dialer{KeepAlive: 30 * time.Second}
	pinned := len(route.pins) > 0
	nd.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
		return d.check(address, pinned || trusted, route.networks)
	}
	addrs, err := d.addresses(ctx, addr, route.pins)
	if err != nil {
		return nil, err
	}
	return race(ctx, addrs, func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		return nd.DialContext(ctx, network, to.String())
	})
}

// addresses are those to try for addr, in order.
func (d *dialer) addresses(ctx context.Context, addr string, pins []netip.AddrPort) ([]netip.AddrPort, error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("%s: the port is no number", addr)
	}
	port := uint16(n)
	if len(pins) > 0 {
		out := make([]netip.AddrPort, len(pins))
		for i, pin := range pins {
			if pin.Port() == 0 {
				pin = netip.AddrPortFrom(pin.Addr(), port)
			}
			out[i] = pin
		}
		return out, nil
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(a, port)}, nil
	}
	found, err := d.resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", host, err)
	}
	out := make([]netip.AddrPort, 0, len(found))
	for _, a := range interleave(found) {
		out = append(out, netip.AddrPortFrom(a, port))
	}
	return out, nil
}

// check is called by the runtime for each address right before connect(2).
func (d *dialer) check(address string, operator bool, networks []netip.Prefix) error {
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
	if len(networks) == 0 {
		return CheckAddress(ap.Addr(), d.allowPrivate)
	}
	// The operator says where the name may point, private space included.
	if a := ap.Addr().Unmap(); !slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return fmt.Errorf("%w: %v is in none of the destination's cidrs", ErrAddress, a)
	}
	return CheckAddress(ap.Addr(), true)
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
