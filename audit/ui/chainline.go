package ui

import (
	"context"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/chain"
	"github.com/attache-dev/attache/audit/store"
)

// chainLine is the place of a line and what was checked of it.
type chainLine struct {
	Type     string
	Epoch    string
	Sequence uint64
	Hash     string
	State    word
	Text     string // what was checked, and what was not
	Covered  uint64 // number of the first checkpoint over it; 0: none found
}

// checkLine reads a line as it is stored, with the one before it, and computes
// its hash. What this does not prove is said: that nobody rewrote all of the
// epoch since the last checkpoint.
func (s *Server) checkLine(ctx context.Context, ref store.Ref) (chainLine, audit.Line, error) {
	out := chainLine{Epoch: ref.Epoch, Sequence: ref.Sequence}
	from := ref.Sequence
	if from > 1 {
		from--
	}
	var before, line audit.Line
	for l, err := range s.c.Store.Lines(ctx, ref.Epoch, from) {
		if err != nil {
			return out, line, err
		}
		if l.Sequence == ref.Sequence {
			line = l
		} else if l.Sequence < ref.Sequence {
			before = l
			continue
		}
		break
	}
	if line.JSON == nil {
		out.State, out.Text = word{"removed", "warn"}, "The line is not in the store any more; its columns are."
		return out, line, nil
	}
	if rec, err := line.Record(); err == nil {
		out.Type = rec.Type
	}
	if !line.Chained {
		out.State, out.Text = word{"not chained", "warn"}, "The producer wrote it without a hash: only its checksum was checked."
		return out, line, nil
	}
	out.Hash = line.Chain.String()
	prev := before.Chain
	switch {
	case ref.Sequence == 1:
		prev = chain.First(ref.Epoch)
	case before.JSON == nil:
		out.State, out.Text = word{"follows a gap", "warn"}, "The line before it is missing, so its hash cannot be computed."
		return out, line, nil
	}
	if !line.Follows(prev) {
		out.State, out.Text = word{"broken", "bad"}, "The hash does not follow from the line before it: one of both was changed."
		return out, line, nil
	}
	out.State, out.Text = word{"hash holds", "good"}, "Computed now from this line and the one before it. “attache audit verify” checks all lines against a checkpoint kept elsewhere."
	return out, line, nil
}
