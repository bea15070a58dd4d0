package isolate

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/attache-dev/attache/proxy/redirect"
)

// Original is the address that the peer of c, accepted by one of
// [Sockets.Transparent], connected to. The error matches
// [redirect.ErrNotRedirected] if that was the listener.
func Original(c net.Conn) (netip.AddrPort, error) {
	t, ok := c.LocalAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("original destination: %T is not a TCP connection", c)
	}
	a := t.AddrPort()
	a = netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	for _, p := range own() {
		if p.Contains(a.Addr()) {
			return netip.AddrPort{}, redirect.ErrNotRedirected
		}
	}
	return a, nil
}
