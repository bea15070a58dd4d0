package ui

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit/chain"
	"github.com/attache-dev/attache/audit/store"
)

// checkpointsLookedAt bounds the search for the checkpoint of a line: they are
// made each minute, and lines arrive within seconds.
const checkpointsLookedAt = 15

// covered says which checkpoint was the first over a line that was written at a
// time, as far as the store knows: whoever may write the store may write that
// too. Zero: none was found.
func (s *Server) covered(ctx context.Context, ref store.Ref, written time.Time) (uint64, error) {
	last, err := s.c.Store.LastCheckpoint(ctx)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	low, high := uint64(1), last.Number // the first that is not older than the line
	for low < high {
		mid := low + (high-low)/2
		l, err := s.c.Store.Checkpoints(ctx, mid, 1)
		if err != nil {
			return 0, err
		}
		if len(l) == 1 && l[0].Time.Before(written) {
			low = mid + 1
		} else {
			high = mid
		}
	}
	l, err := s.c.Store.Checkpoints(ctx, low, checkpointsLookedAt)
	if err != nil {
		return 0, err
	}
	for _, c := range l {
		for text := range strings.Lines(string(c.Heads)) {
			if !strings.HasPrefix(text, ref.Epoch+" ") {
				continue
			}
			leaf, err := chain.ParseLeaf(strings.TrimSuffix(text, "\n"))
			if err == nil && leaf.Epoch == ref.Epoch && leaf.From <= ref.Sequence && ref.Sequence <= leaf.Last {
				return c.Number, nil
			}
		}
	}
	return 0, nil
}
