package sidecar

import (
	"context"
	"net"

	"github.com/attache-dev/attache/identity"
)

// local attests every connection as the pod's: the doors are on loopback, and
// whoever is in the pod's network namespace is the pod.
type local struct{ control Control }

// Attest implements [identity.Attestor].
func (a local) Attest(context.Context, net.Conn) (identity.Caller, error) {
	w := a.control.Workload()
	if w == nil {
		return identity.Caller{}, identity.ErrUnattested
	}
	return identity.Caller{Workload: w}, nil
}
