package run

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/attache-dev/attache/internal/sandbox"
	"github.com/attache-dev/attache/internal/trust"
)

// findNode asks the node on the agent's PATH for its version, in a sandbox as
// the agent's own: an agent of an earlier run may have written that program.
// Without one the version is zero and the error says why.
func findNode(ctx context.Context, o sandbox.Options) (v trust.NodeVersion, err error) {
	const patience = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	path, err := exec.LookPath("node")
	if err != nil {
		return v, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return v, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return v, err
	}
	defer func() { _ = r.Close() }()
	box, err := sandbox.New(ctx, o)
	if err != nil {
		_ = w.Close()
		return v, err
	}
	defer func() { _ = box.Close() }()
	err = box.Start(sandbox.Command{Path: path, Args: []string{"node", "--version"}, Env: []string{"PATH=" + os.Getenv("PATH")}, Stdout: w})
	_ = w.Close() // the child has its own
	if err != nil {
		return v, err
	}
	if status, err := box.Wait(ctx); err != nil || status != 0 {
		return v, fmt.Errorf("ask node for its version: exit status %d: %w", status, err)
	}
	var out [64]byte // far less than a pipe holds, so nobody waits to write it
	n, err := io.ReadFull(r, out[:])
	if n == 0 {
		return v, fmt.Errorf("read node's version: %w", err)
	}
	return trust.ParseNodeVersion(string(out[:n]))
}
