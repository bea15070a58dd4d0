package checkpoint

import (
	"context"
	"iter"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/attache-dev/attache/audit"
)

// small is a store of epochs with fewer lines than are read between two looks at
// the limit.
type small struct{ Watched }

func (small) Lines(context.Context, string, uint64) iter.Seq2[audit.Line, error] {
	return func(yield func(audit.Line, error) bool) {
		for range verifyStep / 2 {
			if !yield(audit.Line{}, nil) {
				return
			}
		}
	}
}

// A store of many small epochs is read no faster than one of a long one.
func TestSmallEpochsAreReadSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{Watched: small{}, limit: rate.NewLimiter(verifyRate, verifyStep)}
		began, n := time.Now(), 0
		for n < 3*verifyRate {
			for _, err := range s.Lines(t.Context(), "e", 1) {
				if err != nil {
					t.Fatal(err)
				}
				n++
			}
		}
		if took := time.Since(began); took < 2900*time.Millisecond || took > 3100*time.Millisecond { // in the bubble
			t.Errorf("%d lines in %s", n, took)
		}
	})
}
