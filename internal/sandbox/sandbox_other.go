//go:build !linux

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/attache-dev/attache/internal/isolate"
)

// Sandbox runs one child, unconfined: this platform has none of what the
// package enforces elsewhere.
type Sandbox struct {
	opts Options
	cmd  *exec.Cmd
	sigs chan os.Signal
}

// MaybeStage does nothing on this platform.
func MaybeStage() {}

// Harden does nothing on this platform.
func Harden() error { return nil }

// New refuses unless o.UnsafeSameUser is set, and isolation in any case.
func New(_ context.Context, o Options) (*Sandbox, error) {
	if o.Isolate != nil {
		return nil, fmt.Errorf("%w: %s has no network namespaces", isolate.ErrForbidden, runtime.GOOS)
	}
	if !o.UnsafeSameUser {
		return nil, fmt.Errorf("%w: %s has no Landlock, so the agent could read attache's files; use a Linux machine, or go on with --unsafe-same-user", ErrUnconfined, runtime.GOOS)
	}
	if o.User != nil {
		return nil, fmt.Errorf("%w: --user is not supported on %s", ErrUnconfined, runtime.GOOS)
	}
	return &Sandbox{opts: o}, nil
}

// Confinement says that nothing is enforced.
func (s *Sandbox) Confinement() Confinement {
	return Confinement{Unsafe: true, Limits: []string{runtime.GOOS + " has no Landlock: nothing is enforced"}}
}

// CgroupDir is empty: there are no cgroups here.
func (s *Sandbox) CgroupDir() string { return "" }

// Start starts c.
func (s *Sandbox) Start(c Command) error {
	s.cmd = &exec.Cmd{Path: c.Path, Args: c.Args, Env: scrub(c.Env), Dir: s.opts.Dir}
	if c.Stdin != nil {
		s.cmd.Stdin = c.Stdin
	}
	if c.Stdout != nil {
		s.cmd.Stdout = c.Stdout
	}
	if c.Stderr != nil {
		s.cmd.Stderr = c.Stderr
	}
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("start child: %w", err)
	}
	// The child shares our process group: the terminal signals it itself.
	s.sigs = make(chan os.Signal, 8)
	signal.Notify(s.sigs, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP)
	return nil
}

// PID is the child's process id.
func (s *Sandbox) PID() int { return s.cmd.Process.Pid }

// Wait waits for the child and returns its exit status, 128+n if signal n
// ended it. When ctx ends, the child is killed.
func (s *Sandbox) Wait(ctx context.Context) (int, error) {
	done := make(chan error, 1)
	go func() { done <- s.cmd.Wait() }()
	defer signal.Stop(s.sigs)
	stop := ctx.Done()
	for {
		select {
		case sig := <-s.sigs:
			if sig == syscall.SIGTERM || sig == syscall.SIGHUP {
				_ = s.cmd.Process.Signal(sig)
			}
		case <-stop:
			_ = s.cmd.Process.Kill()
			stop = nil
		case err := <-done:
			var ee *exec.ExitError
			if err != nil && !errors.As(err, &ee) {
				return 0, fmt.Errorf("wait for child: %w", err)
			}
			if ws, ok := s.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
				return 128 + int(ws.Signal()), nil
			}
			return s.cmd.ProcessState.ExitCode(), nil
		}
	}
}

// Close does nothing on this platform.
func (s *Sandbox) Close() error { return nil }
