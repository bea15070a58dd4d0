//go:build !linux

package redirect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
)

func unsupported() error {
	return fmt.Errorf("redirect connections: %w: %s has no nftables; use explicit proxy settings", errors.ErrUnsupported, runtime.GOOS)
}

// Apply is not supported on this platform.
func Apply(Config) error { return unsupported() }

// Remove is not supported on this platform.
func Remove() error { return unsupported() }

// OriginalDst is not supported on this platform.
func OriginalDst(net.Conn) (netip.AddrPort, error) { return netip.AddrPort{}, unsupported() }

// Prover is not supported on this platform.
type Prover struct{}

// NewProver returns a Prover that proves nothing.
func NewProver() *Prover { return &Prover{} }

// Answer claims no connection.
func (*Prover) Answer(net.Conn, netip.AddrPort) bool { return false }

// Prove is not supported on this platform.
func (*Prover) Prove(context.Context) error { return unsupported() }
