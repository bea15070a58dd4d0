// Package proxy holds what its rooms share: front doors accept connections
// and read requests (proxy/front with the codec proxy/http1), the pipeline
// decides and sends them on (proxy/pipeline through proxy/upstream). The
// pipeline takes an *http.Request and knows nothing of the codec that read it.
package proxy

import (
	"context"
	"net/netip"
	"time"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/proxy/destination"
)

// Doors by which a request comes in.
const (
	DoorConnect     = "connect"
	DoorAbsolute    = "absolute"
	DoorBaseURL     = "base-url"
	DoorTransparent = "transparent"
	// DoorAWS is a port of Attaché's own where AWS SDKs fetch credentials.
	// Nothing that comes in there goes out.
	DoorAWS = "aws"
	// DoorRelay is a relay's port. A sidecar's own pipeline was there before.
	DoorRelay = "relay"
)

// Conn is what is known of the agent's connection that a request came on. It
// is immutable and found in the request's context.
type Conn struct {
	ID     string // unique in this process
	Door   string
	Caller identity.Caller
	// Refusal, if not nil, is why every request on this connection is refused
	// (unattested caller, limit reached). The front door still reads the
	// request, so that the refusal is answered in the protocol's own form.
	Refusal error
	// Dest is the one destination that this connection may talk to: the
	// CONNECT authority confirmed by SNI, or the base URL's. It is zero for
	// absolute-form requests, where each request names its own.
	Dest destination.Destination
	// Original is the address that a redirected connection was made to
	// (DoorTransparent). Plain HTTP has no Dest there: each request names its
	// own, and only the port is this one's.
	Original netip.AddrPort
	// Name, if not empty, is what a resolver of ours gave Original out for:
	// what is asked for must be it.
	Name string
	// Opaque is what a connection speaks that nobody reads, for its record;
	// empty: TLS.
	Opaque string
	// Local is the local listener's own authority (host:port) for base URLs and
	// DoorAWS.
	Local string
	// HangUp ends an HTTP/2 connection with all that is on it, also where its
	// owner reads nothing. It is nil for others, whose one answer ends by
	// itself.
	HangUp func()

	// Record is the id under which a sidecar recorded the one request of
	// DoorRelay.
	Record string

	Accepted time.Time
	Attested time.Time
}

type connKey struct{}

// WithConn returns a context that carries c.
func WithConn(ctx context.Context, c *Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// ConnFrom returns the connection of a request's context, or nil.
func ConnFrom(ctx context.Context) *Conn {
	c, _ := ctx.Value(connKey{}).(*Conn)
	return c
}

// Refused is the error of a connection that goes no further. All but Err is for
// the agent's developer.
type Refused struct {
	Record string // id
	Code   string
	Reason string
	Err    error // for the operator
}

// Error implements error; it is for the operator, too.
func (r *Refused) Error() string { return r.Err.Error() }

// Unwrap gives the cause.
func (r *Refused) Unwrap() error { return r.Err }

// Unclear is a Conn.Refusal: where the connection goes cannot be told, or is
// told in two ways. The text is for the agent's developer.
type Unclear string

// Error implements error.
func (u Unclear) Error() string { return string(u) }
