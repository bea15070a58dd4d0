package sweep_test

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attache-dev/attache/internal/sweep"
)

// It goes on though its context ends and though a call panics, until it is
// stopped: once more then, and never again.
func TestStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		var at []time.Duration
		var last []bool
		stop := sweep.Start(ctx, slog.New(slog.NewTextHandler(&out, nil)), time.Minute, func(ctx context.Context, l bool) {
			at, last = append(at, time.Since(began)), append(last, l)
			if ctx.Err() != nil {
				t.Error(ctx.Err())
			}
			if len(at) == 1 || l {
				panic("too bad")
			}
		})
		cancel()
		time.Sleep(2*time.Minute + 30*time.Second)
		stop()
		stop()
		time.Sleep(time.Hour)
		if !slices.Equal(at, []time.Duration{time.Minute, 2 * time.Minute, 150 * time.Second}) || !slices.Equal(last, []bool{false, false, true}) {
			t.Errorf("called at %v, the last: %v", at, last)
		}
		if n := strings.Count(out.String(), "panic=\"too bad\""); n != 2 || !strings.Contains(out.String(), "sweep_test.go") {
			t.Errorf("%d panics are logged: %s", n, &out)
		}
	})
}

// Who stops it waits for the call under way.
func TestStopWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls []string
		stop := sweep.Start(t.Context(), slog.New(slog.DiscardHandler), time.Minute, func(_ context.Context, last bool) {
			calls = append(calls, "begins")
			if !last {
				time.Sleep(10 * time.Second)
			}
			calls = append(calls, "ends")
		})
		time.Sleep(time.Minute + time.Second)
		stop()
		if !slices.Equal(calls, []string{"begins", "ends", "begins", "ends"}) {
			t.Errorf("calls: %v", calls)
		}
	})
}
