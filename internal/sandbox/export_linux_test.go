package sandbox

import (
	"context"

	"golang.org/x/net/bpf"
)

// NewLandlockOnly is New on a machine without mount namespaces.
func NewLandlockOnly(ctx context.Context, o Options) (*Sandbox, error) {
	return newSandbox(ctx, o, false)
}

// ParseMount lets a fuzz test read mountinfo.
func ParseMount(line string) { parseMount(line) }

// Filter is the seccomp program.
func Filter(noUnix bool) []bpf.RawInstruction {
	var out []bpf.RawInstruction
	for _, i := range filter(noUnix, false) {
		out = append(out, bpf.RawInstruction{Op: i.Code, Jt: i.Jt, Jf: i.Jf, K: i.K})
	}
	return out
}

// OutsideSockets are those that isolation covers.
func OutsideSockets() []string { return outsideSockets() }

// KeptCaps are what a child that runs as root keeps on this kernel.
func KeptCaps() uint64 { return keptCaps(landlockABI() >= 6) }
