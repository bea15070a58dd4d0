// Package peercred asks the kernel who is at the other end of a Unix socket.
package peercred

import (
	"errors"
	"fmt"
	"net"
)

// ErrUnsupported is matched where the platform cannot tell.
var ErrUnsupported = errors.New("peer credentials are not available on this platform")

// Peer is the process that connected, as it was at that moment: its id may
// since belong to another process.
type Peer struct {
	PID int
	UID uint32
}

// Of returns the peer of c, which must be a Unix socket.
func Of(c net.Conn) (Peer, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return Peer{}, fmt.Errorf("peer credentials: %T is no Unix socket", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	var p Peer
	var inner error
	if err := raw.Control(func(fd uintptr) { p, inner = ask(int(fd)) }); err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	if inner != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", inner)
	}
	return p, nil
}
