// Package destination turns what clients write (CONNECT authority, SNI, Host)
// into one canonical value, and refuses every other spelling.
package destination

import (
	"net"
	"strconv"
)

// Destination is a canonical scheme, host and port. Host is lower case, an
// A-label name without trailing dot or an IP address in its one normal
// spelling. Values are made by Parse and comparable.
type Destination struct {
	Scheme string // https or http
	Host   string
	Port   int
}

// IsZero reports whether d names nothing.
func (d Destination) IsZero() bool { return d == Destination{} }

// HostPort returns host:port, for dialling.
func (d Destination) HostPort() string { return net.JoinHostPort(d.Host, strconv.Itoa(d.Port)) }
