package doctor

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"time"
)

const maxOutput = 64 << 10

// Direct is a [Probe] that runs the command unconfined.
func Direct(ctx context.Context, env, cmd []string) Result {
	c := exec.CommandContext(ctx, cmd[0], cmd[1:]...)
	c.Env = env
	var out bounded
	c.Stdout, c.Stderr = &out, &out
	c.WaitDelay = 2 * time.Second // a grandchild may hold the pipe
	err := c.Run()
	r := Result{Output: out.String()}
	exit, exited := errors.AsType[*exec.ExitError](err)
	switch {
	case ctx.Err() != nil:
		r.Code, r.Err = -1, ctx.Err()
	case exited:
		r.Code = exit.ExitCode()
	case err != nil:
		r.Code, r.Err = -1, err
	}
	return r
}

// bounded keeps the first maxOutput bytes.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if room := maxOutput - b.Len(); room > 0 {
		_, _ = b.Buffer.Write(p[:min(room, len(p))]) // a Buffer takes everything
	}
	return len(p), nil
}
