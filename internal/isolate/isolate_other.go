//go:build !linux

package isolate

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
)

func unsupported() error {
	return fmt.Errorf("%w: %s has no network namespaces: %w", ErrForbidden, runtime.GOOS, errors.ErrUnsupported)
}

// Sockets are what was opened inside.
type Sockets struct {
	Transparent, Doors []net.Listener
	Diag               *os.File
	IPv6               bool
}

// Build is not supported on this platform.
func Build(Spec) ([]*os.File, []string, error) { return nil, nil, unsupported() }

// Pass is not supported on this platform.
func Pass(int, []*os.File, []string) error { return unsupported() }

// Receive is not supported on this platform.
func Receive(*net.UnixConn) (*Sockets, error) { return nil, unsupported() }

// Close does nothing on this platform.
func (s *Sockets) Close() error { return nil }

// Serve does nothing on this platform.
func (r *Resolver) Serve(*Sockets) {}

// Explain returns err: there is nothing to look up on this platform.
func Explain(err error) error { return err }
