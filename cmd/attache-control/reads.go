package main

import (
	"context"
	"os"

	"github.com/attache-dev/attache/internal/reads"
)

// serveReads lets commands in this pod say what they read of the records, until
// the function that it returns is called. They show nothing before it is written
// here.
func (h *host) serveReads(ctx context.Context) (stop func(), err error) {
	at := os.Getenv(reads.Env)
	if at == "" || h.trail == nil {
		return func() {}, nil
	}
	pod, err := replicaName()
	if err != nil {
		return nil, err
	}
	ln, err := reads.Listen(ctx, at)
	if err != nil {
		return nil, err
	}
	s := newServer(reads.Handler("a command in pod "+pod, h.trail.Write), h.log)
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := serveUntil(serving, s, func() error { return s.Serve(ln) }); err != nil {
			h.log.ErrorContext(ctx, "commands that read records are refused from now on", "cause", err)
		}
	}()
	return func() { cancel(); <-done }, nil
}
