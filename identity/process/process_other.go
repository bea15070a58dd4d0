//go:build !linux

package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/attache-dev/attache/identity"
)

// Attestor takes every local connection for one of the workload's: this
// platform does not say which process owns a socket. It exists for runs with
// --unsafe-same-user only.
type Attestor struct{ w *identity.Workload }

// New returns an Attestor for o.
func New(o Options) (*Attestor, error) {
	if o.Workload == nil {
		return nil, errors.New("process attestor: no workload given")
	}
	return &Attestor{w: o.Workload}, nil
}

// Attest implements [identity.Attestor] for loopback and Unix connections.
func (a *Attestor) Attest(_ context.Context, conn net.Conn) (identity.Caller, error) {
	if t, ok := conn.RemoteAddr().(*net.TCPAddr); ok && !t.IP.IsLoopback() {
		return identity.Caller{}, fmt.Errorf("%w: %s is not on this machine", identity.ErrUnattested, t)
	}
	return identity.Caller{Workload: a.w}, nil
}

// Enter is not supported on this platform.
func (a *Attestor) Enter(*os.File) error { return errors.ErrUnsupported }

// Close does nothing on this platform.
func (a *Attestor) Close() error { return nil }
