// Package sweep does something again and again beside what a program serves.
package sweep

import (
	"context"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"
)

// Start calls do once in interval, and for the last time when stop is called,
// which is after the call under way. The end of ctx stops nothing. A panic of do
// is logged: the next call comes at its time.
func Start(ctx context.Context, log *slog.Logger, interval time.Duration, do func(ctx context.Context, last bool)) (stop func()) {
	ctx = context.WithoutCancel(ctx)
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(interval)
		defer t.Stop()
		for {
			select {
			case <-over:
				return
			case <-t.C:
				safely(ctx, log, do, false)
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(over)
		<-done
		safely(ctx, log, do, true)
	})
}

func safely(ctx context.Context, log *slog.Logger, do func(ctx context.Context, last bool), last bool) {
	defer func() {
		if v := recover(); v != nil {
			log.ErrorContext(ctx, "sweep panicked", "panic", v, "stack", string(debug.Stack()))
		}
	}()
	do(ctx, last)
}
