package checkpoint

import (
	"fmt"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
)

// Kinds of [Problem].
const (
	ProblemCheckpoint = "checkpoint" // the chain of checkpoints is broken, changed or rolled back
	ProblemDeleted    = "deleted"    // lines that a checkpoint covers are gone
	ProblemChanged    = "changed"    // a line is not as it was written
	ProblemOrder      = "order"      // a line stands at another place than it was written at
	ProblemForged     = "forged"     // lines fit together, but are not those that were there
	ProblemIndex      = "index"      // what searches find is not what the lines say
)

// Problem is something that is not as the checkpoint says it was.
type Problem struct {
	Kind       string `json:"kind"`
	Epoch      string `json:"epoch,omitempty"`
	From       uint64 `json:"from,omitempty"` // sequence
	To         uint64 `json:"to,omitempty"`
	Record     string `json:"record,omitempty"`     // id, as the line says it
	Checkpoint uint64 `json:"checkpoint,omitempty"` // number
	Text       string `json:"text"`
}

// String tells p in a line for people.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.Kind)
	if p.Checkpoint > 0 {
		fmt.Fprintf(&b, ": checkpoint %d", p.Checkpoint)
	}
	if p.Epoch != "" {
		fmt.Fprintf(&b, ": epoch %s", p.Epoch)
	}
	if p.From > 0 {
		b.WriteString(", " + sequences(p.From, p.To))
	}
	if p.Record != "" {
		b.WriteString(", record " + p.Record)
	}
	b.WriteString(": " + p.Text)
	return audit.Safe(b.String())
}

// maxProblems bounds a report; the rest is counted.
const maxProblems = 1000

// Report is what [Verify] found.
type Report struct {
	Outside     uint64    `json:"outside"` // number of the checkpoint from outside; 0: none was given
	OutsideTime time.Time `json:"outside_time,omitzero"`
	Checkpoints int       `json:"checkpoints"` // in the store
	Newest      uint64    `json:"newest"`      // number of the store's newest
	Epochs      int       `json:"epochs"`
	Lines       uint64    `json:"lines"`

	Covered uint64 `json:"covered"` // lines that the checkpoint speaks for
	// What is not covered, by reason.
	Uncovered       uint64   `json:"uncovered"`        // lines behind the checkpoint
	EpochsUncovered int      `json:"epochs_uncovered"` // epochs that it does not know
	Unchained       uint64   `json:"unchained"`        // lines of producers from before the chain
	AfterGap        uint64   `json:"after_gap"`        // first lines behind a gap: what they follow never came
	Gaps            int      `json:"gaps"`             // known when the checkpoint was made
	NotCovered      []string `json:"not_covered,omitempty"`

	Problems []Problem `json:"problems,omitempty"`
	More     int       `json:"more_problems,omitempty"` // beyond maxProblems
}

// OK reports whether nothing that is covered was removed or changed.
func (r *Report) OK() bool { return len(r.Problems) == 0 }

func (r *Report) problem(p Problem) {
	if len(r.Problems) == maxProblems {
		r.More++
		return
	}
	r.Problems = append(r.Problems, p)
}

func (r *Report) notCovered(text string) {
	if len(r.NotCovered) < maxProblems {
		r.NotCovered = append(r.NotCovered, text)
	}
}

// Text tells the report in lines for people.
func (r *Report) Text(now time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d lines of %d epochs, %d checkpoints\n", r.Lines, r.Epochs, r.Checkpoints)
	if r.Outside > 0 {
		fmt.Fprintf(&b, "checkpoint %d from outside, made %s (%s ago), covers %d lines\n",
			r.Outside, r.OutsideTime.Format(time.RFC3339), r.age(now), r.Covered)
	}
	for _, p := range r.Problems {
		b.WriteString("NOT AS IT WAS: " + p.String() + "\n")
	}
	if r.More > 0 {
		fmt.Fprintf(&b, "and %d more problems\n", r.More)
	}
	after, began := "came after that checkpoint", "began after it"
	switch {
	case r.Outside > 0:
	case r.Newest > 0:
		after = "came after the store's own newest checkpoint"
	default:
		after, began = "are in no checkpoint", "are in none"
	}
	for _, n := range []struct {
		count uint64
		text  string
	}{
		{r.Uncovered, "lines " + after},
		{uint64(r.EpochsUncovered), "epochs " + began}, //nolint:gosec // a count
		{r.Unchained, "lines are of producers from before lines had a hash"},
		{r.AfterGap, "lines stand behind a gap, so that nothing proves their own text"},
	} {
		if n.count > 0 {
			fmt.Fprintf(&b, "not covered: %d %s\n", n.count, n.text)
		}
	}
	for _, text := range r.NotCovered {
		b.WriteString("not covered: " + audit.Safe(text) + "\n")
	}
	switch {
	case !r.OK():
		b.WriteString("the store is NOT as the checkpoint says it was\n")
	case r.Outside == 0:
		b.WriteString("the store agrees with itself, which proves nothing against who can write it; give --checkpoint\n")
	default:
		b.WriteString("whole: no covered line was removed, changed, moved or added\n")
	}
	return b.String()
}
