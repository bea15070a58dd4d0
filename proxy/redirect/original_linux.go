package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// soOriginalDst is SO_ORIGINAL_DST of linux/netfilter_ipv4.h and, by the same
// number at level IPPROTO_IPV6, IP6T_SO_ORIGINAL_DST.
const soOriginalDst = 80

// OriginalDst is the address that the peer of c, an accepted TCP connection,
// connected to before a rule sent it here. The error matches
// [ErrNotRedirected] if it connected to the listener itself: who went on
// with that address would connect to itself, and so on.
func OriginalDst(c net.Conn) (netip.AddrPort, error) {
	sc, ok := c.(syscall.Conn)
	local, ok2 := c.LocalAddr().(*net.TCPAddr)
	if !ok || !ok2 {
		return netip.AddrPort{}, fmt.Errorf("original destination: %T is not a TCP connection", c)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	here := local.AddrPort()
	here = netip.AddrPortFrom(here.Addr().Unmap(), here.Port())
	var dst netip.AddrPort
	var optErr error
	if err := raw.Control(func(fd uintptr) { dst, optErr = originalDst(int(fd), here.Addr().Is4()) }); err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	switch {
	case errors.Is(optErr, unix.ENOENT): // not tracked: no rule has touched it
		return netip.AddrPort{}, ErrNotRedirected
	case optErr != nil:
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", optErr)
	case dst == here:
		return netip.AddrPort{}, ErrNotRedirected
	}
	return dst, nil
}

// originalDst asks at the level of the connection's family: an IPv4 peer of a
// dual-stack socket is known at IPv4's only. The structs are those of
// x/sys/unix that are large enough for the answer, a sockaddr.
func originalDst(fd int, v4 bool) (netip.AddrPort, error) {
	if v4 {
		m, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, soOriginalDst) // sockaddr_in: family, port, address
		if err != nil {
			return netip.AddrPort{}, err
		}
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(m.Multiaddr[4:8])), binary.BigEndian.Uint16(m.Multiaddr[2:4])), nil
	}
	m, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, soOriginalDst)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, m.Addr.Port))
	return netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr).Unmap(), port), nil
}
