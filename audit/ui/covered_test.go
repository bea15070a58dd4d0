package ui

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit/chain"
	"github.com/attache-dev/attache/audit/store"
)

// The record says which checkpoint was the first over its line, and does not
// take one of another epoch or of lines before it for that.
func TestCovered(t *testing.T) {
	h := world(t, nil)
	h.login()
	_, refs, err := h.db.Get(t.Context(), "rec_a1")
	if err != nil || len(refs) != 1 {
		t.Fatalf("%v, %v", refs, err)
	}
	if text := textOf(h.page200("/record/rec_a1")); !strings.Contains(text, "No checkpoint over it was found") {
		t.Errorf("without checkpoints: %s", text)
	}
	leaf := func(epoch string, last uint64) string {
		return chain.Leaf{Producer: "p", Epoch: epoch, From: 1, Last: last, State: chain.Open}.Text() + "\n"
	}
	for n := range uint64(40) {
		heads := leaf("0123", 99)
		switch {
		case n+1 == 31:
			heads += leaf(refs[0].Epoch, refs[0].Sequence-1)
		case n+1 >= 33:
			heads += leaf(refs[0].Epoch, refs[0].Sequence+uint64(n))
		}
		at := h.clock.t.Add(-time.Hour + time.Duration(int(n)-29)*time.Minute)
		if err := h.db.PutCheckpoint(t.Context(), store.Checkpoint{Number: n + 1, Time: at, Note: fmt.Append(nil, "note ", n), Heads: []byte(heads)}); err != nil {
			t.Fatal(err)
		}
	}
	if text := textOf(h.page200("/record/rec_a1")); !strings.Contains(text, "Checkpoint 33 was the first over it") {
		t.Errorf("got %s", text)
	}
}
