package sandbox

import "context"

// NewLandlockOnly is New on a machine without mount namespaces.
func NewLandlockOnly(ctx context.Context, o Options) (*Sandbox, error) {
	return newSandbox(ctx, o, false)
}

// ParseMount lets a fuzz test read mountinfo.
func ParseMount(line string) { parseMount(line) }
