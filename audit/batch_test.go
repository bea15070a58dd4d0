package audit

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func (d *disk) count(op string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.n[op]
}

func TestEndsGoWithTheNextLine(t *testing.T) {
	d := &disk{}
	s := mustOpen(t, Options{fault: d.hook, EndDelay: time.Hour})
	first, r := mustBegin(t, s)
	second, _ := mustBegin(t, s)
	before := d.count("write")
	mustEnd(t, first)
	mustEnd(t, second)
	if n := d.count("write") - before; n != 0 {
		t.Errorf("%d writes for two ends alone, want none yet", n)
	}
	if st := s.Stats(); st.Open != 0 || st.Pending != 0 {
		t.Errorf("open %d, pending %d; both requests have ended", st.Open, st.Pending)
	}
	mustBegin(t, s)
	if n := d.count("write") - before; n != 1 {
		t.Errorf("%d writes for two ends and a begin, want 1", n)
	}
	// What a kill now would leave.
	left := requests(t, snapshot(t, s.opts.Dir))
	if got := left[r.ID]; got.Result == nil || got.Result.Outcome != OutcomeOK {
		t.Errorf("the first request reads %+v", got.Result)
	}
	if st := s.Stats(); st.Reserved != endReserve {
		t.Errorf("%d bytes reserved, want those of one request", st.Reserved)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantWhole(t, s.opts.Dir)
}

func TestWaitingEndIsWrittenInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &disk{}
		s, err := Open(Options{Dir: t.TempDir(), fault: d.hook, EndDelay: 2 * time.Millisecond, SyncEvery: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close() //nolint:errcheck // nothing is left to write
		for range 3 {   // the timer serves again
			tk, r := mustBegin(t, s)
			mustEnd(t, tk)
			time.Sleep(2 * time.Millisecond)
			synctest.Wait()
			if got := requests(t, snapshot(t, s.opts.Dir))[r.ID]; got.Result == nil || got.Result.Outcome != OutcomeOK {
				t.Errorf("after EndDelay the record reads %+v", got.Result)
			}
		}
	})
}

func TestManyEndsDoNotWait(t *testing.T) {
	d := &disk{}
	s := mustOpen(t, Options{fault: d.hook, EndDelay: time.Hour})
	var open []Ticket
	for range 200 {
		tk, _ := mustBegin(t, s)
		open = append(open, tk)
	}
	before := d.count("write")
	for _, tk := range open {
		mustEnd(t, tk)
	}
	if d.count("write") == before || len(s.batch) > maxBatch {
		t.Errorf("%d bytes of ends wait", len(s.batch))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if rep := wantWhole(t, s.opts.Dir); rep.Requests != 200 {
		t.Errorf("%d requests, want 200", rep.Requests)
	}
}

func TestWaitingEndsSurviveADiskThatFails(t *testing.T) {
	for _, part := range []int{0, 100, 1000} { // bytes of the batch that are written
		d := &disk{part: part}
		s := mustOpen(t, Options{fault: d.hook, EndDelay: time.Hour})
		first, a := mustBegin(t, s)
		second, b := mustBegin(t, s)
		mustEnd(t, first)
		mustEnd(t, second)
		d.set("write", unix.EIO)
		if _, err := s.Begin(t.Context(), sample()); !errors.Is(err, ErrUnavailable) {
			t.Errorf("begin: %v, want ErrUnavailable", err)
		}
		if st := s.Stats(); st.Pending != 2 || st.Open != 0 {
			t.Errorf("pending %d, open %d; want the two ends kept", st.Pending, st.Open)
		}
		if err := s.Healthy(); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Healthy: %v", err)
		}
		d.set("write", nil)
		third, _ := mustBegin(t, s)
		mustEnd(t, third)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		rep := wantWhole(t, s.opts.Dir)
		got := requests(t, s.opts.Dir)
		if rep.Requests != 3 || got[a.ID].Result.Outcome != OutcomeOK || got[b.ID].Result.Outcome != OutcomeOK {
			t.Errorf("%d requests, outcomes %v and %v", rep.Requests, got[a.ID].Result, got[b.ID].Result)
		}
	}
}

// TestBatchesRotate has ends wait across segments, at the bound of the spool.
func TestBatchesRotate(t *testing.T) {
	s := mustOpen(t, Options{EndDelay: time.Millisecond, SegmentBytes: minSegmentBytes, MaxBytes: 4 << 20})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				tk, err := s.Begin(context.Background(), sample())
				if err == nil {
					err = tk.End(ok200(), nil, nil, nil)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if rep := wantWhole(t, s.opts.Dir); rep.Requests != 400 {
		t.Errorf("%d requests, want 400", rep.Requests)
	}
	if n, _ := filepath.Glob(filepath.Join(s.opts.Dir, "*.jsonl")); len(n) < 10 {
		t.Errorf("%d segments; the test wants many", len(n))
	}
}
