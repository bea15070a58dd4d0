package front

import (
	"context"
	"fmt"
	"net"

	"github.com/attache-dev/attache/proxy"
	"github.com/attache-dev/attache/proxy/destination"
)

// ServeAWS accepts AWS SDKs that fetch credentials at ln, a port of our own on
// loopback. Callers are attested and requests checked as at every other door;
// the handler, told of [proxy.DoorAWS], answers them itself. It speaks
// HTTP/1.1 without TLS, as the services that it stands for, returns like
// [Front.ServeProxy] and closes ln.
func (f *Front) ServeAWS(ctx context.Context, ln net.Listener) error {
	local := ln.Addr().String()
	dest, err := destination.Parse("http", local, destination.PortRequired)
	if err != nil {
		return fmt.Errorf("front: %w", err)
	}
	return f.accept(ctx, ln, func(ctx context.Context, c *clientConn) {
		conn := f.attest(ctx, c)
		if conn == nil {
			return
		}
		conn.Door, conn.Dest, conn.Local = proxy.DoorAWS, dest, local
		f.h1.ServeConn(proxy.WithConn(ctx, conn), c)
	})
}
