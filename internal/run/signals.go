package run

import (
	"context"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

// sameSignal is how soon a signal is no second one: timeout(1) and others send
// theirs to the process and to its group.
const sameSignal = 50 * time.Millisecond

// Phases of a run, for signals.
const (
	starting int32 = iota // end before the agent starts
	running               // the sandbox passes them on to the agent
	ending                // the agent has ended; records and credentials are settled
)

// signals keeps a signal from ending the process half-way: credentials would
// stay valid and the spool open.
type signals struct {
	phase atomic.Int32
	stop  func()
}

// catchSignals returns a context that ends when a signal comes before the
// agent runs. A second signal in the last phase ends the process at once.
func catchSignals(ctx context.Context, o *Options) (context.Context, *signals) {
	ctx, cancel := context.WithCancel(ctx)
	s := &signals{}
	ch := make(chan os.Signal, 4)
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	quit := make(chan struct{})
	s.stop = func() { signal.Stop(ch); close(quit); cancel() }
	go func() {
		var asked time.Time // zero: not yet
		for {
			select {
			case <-quit:
				return
			case sig := <-ch:
				switch s.phase.Load() {
				case starting:
					cancel()
				case ending:
					if n, ok := sig.(syscall.Signal); ok && !asked.IsZero() && time.Since(asked) > sameSignal {
						os.Exit(128 + int(n))
					}
					if asked.IsZero() {
						asked = time.Now()
						o.say("revoking credentials and closing the records; once more to leave at once")
					}
				}
			}
		}
	}()
	return ctx, s
}
