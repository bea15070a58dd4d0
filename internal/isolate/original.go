package isolate

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// ErrDirect says that a connection was made to the listener itself: it names
// no destination.
var ErrDirect = errors.New("connection was made to the listener itself")

// Original is the address that the peer of c, accepted by one of
// [Sockets.Transparent], connected to. The error matches [ErrDirect] if that
// was the listener.
func Original(c net.Conn) (netip.AddrPort, error) {
	t, ok := c.LocalAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("original destination: %T is not a TCP connection", c)
	}
	a := t.AddrPort()
	a = netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	for _, p := range own() {
		if p.Contains(a.Addr()) {
			return netip.AddrPort{}, ErrDirect
		}
	}
	return a, nil
}
