//go:build !linux

package process

import (
	"errors"
	"net/netip"
)

// Sockets is not supported on this platform.
type Sockets struct{}

// OpenSockets fails on this platform.
func OpenSockets() (*Sockets, error) { return nil, errors.ErrUnsupported }

// Owner finds nobody on this platform.
func (*Sockets) Owner(_, _ netip.AddrPort) (uid uint32, cgroup uint64, ok bool) { return 0, 0, false }

// Close does nothing on this platform.
func (*Sockets) Close() error { return nil }
