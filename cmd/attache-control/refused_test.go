package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ship"
)

// A sink that refuses everything fills no spool, and no refused line goes
// uncounted.
func TestRefusedLinesAreSummed(t *testing.T) {
	now, got, fail := time.Now(), []string(nil), errors.New("full")
	f := &refusedLines{sink: "siem", now: func() time.Time { return now }, write: func(_ context.Context, r *audit.Record) error {
		if fail != nil {
			return fail
		}
		got = append(got, r.Event.Fields["lines"])
		return nil
	}}
	b, r := ship.Batch{Lines: []audit.Line{{Epoch: "e", Sequence: 7}}}, &ship.RejectedError{Count: 3, Reason: "too large"}
	if err := f.tell(b, r); !errors.Is(err, fail) {
		t.Fatalf("passed by without a record: %v", err)
	}
	fail = nil
	for range 1000 {
		if err := f.tell(b, r); err != nil {
			t.Fatal(err)
		}
	}
	now = now.Add(refusedEvery)
	if err := f.tell(b, r); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0] != "3" || got[1] != "3000" {
		t.Errorf("recorded %v", got)
	}
}
