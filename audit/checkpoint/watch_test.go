package checkpoint_test

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/checkpoint"
	"github.com/attache-dev/attache/audit/store"
)

// LastCheckpoint makes a copy one that can be watched.
func (s *snapshot) LastCheckpoint(context.Context) (store.Checkpoint, error) {
	if len(s.checkpoints) == 0 {
		return store.Checkpoint{}, store.ErrNotFound
	}
	return s.checkpoints[len(s.checkpoints)-1], nil
}

type latest struct {
	note []byte
	err  error
}

func (latest) Name() string { return "witness:x" }

func (l latest) Latest(context.Context, string) ([]byte, error) { return l.note, l.err }

// swapped is a store that becomes another one, or fails.
type swapped struct {
	now  atomic.Pointer[snapshot]
	fail atomic.Bool
}

func of(s *snapshot) *swapped {
	w := &swapped{}
	w.now.Store(s)
	return w
}

func (s *swapped) Heads(ctx context.Context) ([]store.Head, error) { return s.now.Load().Heads(ctx) }
func (s *swapped) Removed(ctx context.Context) ([]store.Removal, error) {
	return s.now.Load().Removed(ctx)
}
func (s *swapped) Lines(ctx context.Context, epoch string, from uint64) iter.Seq2[audit.Line, error] {
	return s.now.Load().Lines(ctx, epoch, from)
}

func (s *swapped) Checkpoints(ctx context.Context, from uint64, limit int) ([]store.Checkpoint, error) {
	return s.now.Load().Checkpoints(ctx, from, limit)
}

func (s *swapped) LastCheckpoint(ctx context.Context) (store.Checkpoint, error) {
	if s.fail.Load() {
		return store.Checkpoint{}, errors.New("the store is away")
	}
	return s.now.Load().LastCheckpoint(ctx)
}

// kept is what a store holds for its callers.
type kept struct {
	mu   sync.Mutex
	m    map[string]string
	fail atomic.Bool
}

func (k *kept) State(_ context.Context, name string) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail.Load() {
		return nil, errors.New("the store is away")
	}
	return []byte(k.m[name]), nil
}

func (k *kept) PutState(_ context.Context, name string, value []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.m[name] = string(value)
	return nil
}

func TestWatchFindsWhatChanged(t *testing.T) {
	w := newWorld(t)
	w.lines("a", 20)
	w.checkpoint()
	w.lines("a", 20)
	w.checkpoint()
	whole := w.take()
	cut := whole.clone()
	for e, l := range cut.lines {
		cut.lines[e] = append(l[:5:5], l[6:]...)
	}
	rolledBack := whole.clone()
	rolledBack.checkpoints = rolledBack.checkpoints[:1]
	emptied := &snapshot{}
	unsigned := whole.clone()
	unsigned.checkpoints[1].Note = []byte(strings.Replace(string(unsigned.checkpoints[1].Note), "— ", "— x", 1))
	for name, c := range map[string]struct {
		then *snapshot
		from []checkpoint.Latest
		want bool // whole
	}{
		"as it was":                {whole, nil, true},
		"a line is gone":           {cut, nil, false},
		"rolled back":              {rolledBack, nil, false},
		"emptied":                  {emptied, nil, false},
		"a note that is no note":   {unsigned, nil, false},
		"a witness that is away":   {whole, []checkpoint.Latest{latest{err: errors.New("away")}}, true},
		"a witness that agrees":    {whole, []checkpoint.Latest{latest{note: whole.checkpoints[0].Note}}, true},
		"a witness with another's": {whole, []checkpoint.Latest{latest{note: []byte("nonsense")}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := of(whole)
			v := &checkpoint.Watch{Store: s, Origin: "attache/test", Key: w.key, Logger: slog.New(slog.DiscardHandler)}
			if r, err := v.Pass(t.Context()); err != nil || !r.OK() || r.Lines != 40 {
				t.Fatalf("before: %+v, %v", r, err)
			}
			s.now.Store(c.then)
			v.From = c.from
			r, err := v.Pass(t.Context())
			if err != nil || r.OK() != c.want {
				t.Errorf("%+v, %v", r, err)
			}
			if s.now.Store(whole); c.want {
				return
			}
			v.From = nil
			if r, err := v.Pass(t.Context()); err != nil || !r.OK() {
				t.Errorf("when it is whole again: %+v, %v", r, err)
			}
		})
	}
	// A rollback that a restarted process cannot know of is found by the witness.
	v := &checkpoint.Watch{
		Store: rolledBack, Origin: "attache/test", Key: w.key, Logger: slog.New(slog.DiscardHandler),
		From: []checkpoint.Latest{latest{note: whole.checkpoints[1].Note}},
	}
	if r, err := v.Pass(t.Context()); err != nil || r.OK() {
		t.Errorf("rolled back, after a restart: %+v, %v", r, err)
	}
}

// A finding counts when it stands some minutes later: what retention takes is
// in the next checkpoint.
func TestWatchTellsOfWhatStands(t *testing.T) {
	w := newWorld(t)
	w.lines("a", 20)
	w.checkpoint()
	whole := w.take()
	cut := whole.clone()
	for e, l := range cut.lines {
		cut.lines[e] = l[:10]
	}
	synctest.Test(t, func(t *testing.T) {
		s, events := of(whole), []*audit.Record(nil)
		var log bytes.Buffer
		v := &checkpoint.Watch{
			Store: s, Origin: "attache/test", Key: w.key, Every: time.Hour, Logger: slog.New(slog.NewTextHandler(&log, nil)),
			Record: func(_ context.Context, r *audit.Record) error { events = append(events, r); return nil },
		}
		reg := prometheus.NewRegistry()
		reg.MustRegister(checkpoint.WatchMetrics(v))
		began := time.Now()
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go v.Run(ctx)
		expect := func(after time.Duration, want map[string]float64) {
			t.Helper()
			time.Sleep(after) // in the bubble
			synctest.Wait()
			list, err := reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range list {
				n := f.GetMetric()[0].GetCounter().GetValue() + f.GetMetric()[0].GetGauge().GetValue()
				if x, ok := want[strings.TrimPrefix(f.GetName(), "attache_audit_verify_")]; ok && n != x {
					t.Errorf("%s is %v, want %v", f.GetName(), n, x)
				}
			}
		}
		expect(time.Second, map[string]float64{"passes_total": 0, "success_timestamp_seconds": float64(began.Unix())})
		expect(4*time.Minute, map[string]float64{"passes_total": 1, "failures_total": 0, "lines": 20, "success_timestamp_seconds": float64(began.Add(3 * time.Minute).Unix())})
		s.now.Store(cut)
		expect(time.Hour, map[string]float64{"passes_total": 1, "failures_total": 0}) // looked at again in three minutes
		s.now.Store(whole)
		expect(3*time.Minute, map[string]float64{"passes_total": 2, "failures_total": 0, "problems": 0})
		s.now.Store(cut)
		expect(time.Hour+4*time.Minute, map[string]float64{"passes_total": 3, "failures_total": 1, "problems": 1})
		if !strings.Contains(log.String(), "level=WARN msg=\"the record store seems not to be") {
			t.Errorf("the first look says nothing: %s", log.String())
		}
		if !strings.Contains(log.String(), "not_compared=\"what searches find\"") {
			t.Errorf("a good pass does not say what it did not look at: %s", log.String())
		}
		if len(events) != 1 || events[0].Event.Fields["sink"] != "verify" || !strings.Contains(events[0].Event.Fields["error"], "deleted") {
			t.Errorf("recorded %+v", events)
		}
	})
}

// A look again that the store does not answer is made anew, soon.
func TestWatchLooksAgainAfterAnError(t *testing.T) {
	w := newWorld(t)
	w.lines("a", 20)
	w.checkpoint()
	cut := w.take()
	for e, l := range cut.lines {
		cut.lines[e] = l[:10]
	}
	synctest.Test(t, func(t *testing.T) {
		s := of(cut)
		var events atomic.Int64
		v := &checkpoint.Watch{
			Store: s, Origin: "attache/test", Key: w.key, Logger: slog.New(slog.DiscardHandler),
			Record: func(context.Context, *audit.Record) error { events.Add(1); return nil },
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go v.Run(ctx)
		time.Sleep(4 * time.Minute) // in the bubble: found once
		synctest.Wait()
		s.fail.Store(true)
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		s.fail.Store(false)
		if n := events.Load(); n != 0 {
			t.Errorf("%d events of what was seen once", n)
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if n := events.Load(); n != 1 {
			t.Errorf("%d events of what stands", n)
		}
	})
}

// A store that does not answer is verified when it does, and not a day later:
// it is asked again after three minutes, then after ever longer, at most an hour.
func TestWatchTriesAgainSoon(t *testing.T) {
	w := newWorld(t)
	w.lines("a", 20)
	w.checkpoint()
	whole := w.take()
	synctest.Test(t, func(t *testing.T) {
		s := &counted{swapped: of(whole)}
		s.fail.Store(true)
		v := &checkpoint.Watch{Store: s, Origin: "attache/test", Key: w.key, Logger: slog.New(slog.DiscardHandler)}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		began := time.Now()
		go v.Run(ctx)
		expect := func(at int, want int64) {
			t.Helper()
			time.Sleep(time.Until(began.Add(time.Duration(at)*time.Minute + time.Second))) // in the bubble
			synctest.Wait()
			if n := s.asked.Load(); n != want {
				t.Errorf("asked %d times in %d minutes, want %d", n, at, want)
			}
		}
		minutes := []int{3, 6, 12, 24, 48, 96, 156, 216, 276}
		for i, at := range minutes {
			expect(at-1, int64(i))
			expect(at, int64(i)+1)
		}
		s.fail.Store(false)
		expect(336, 10)
		// That one was made: the next is a day later, and from there as at first.
		s.fail.Store(true)
		expect(336+24*60-1, 10)
		expect(336+24*60, 11)
		expect(336+24*60+3, 12)
	})
}

// counted is a store that counts how often it is verified.
type counted struct {
	*swapped
	asked atomic.Int64
}

func (c *counted) LastCheckpoint(ctx context.Context) (store.Checkpoint, error) {
	c.asked.Add(1)
	return c.swapped.LastCheckpoint(ctx)
}

// A process that starts again and again before it verified is late all the same.
func TestWatchIsLateOverRestarts(t *testing.T) {
	w := newWorld(t)
	w.lines("a", 20)
	w.checkpoint()
	whole := w.take()
	synctest.Test(t, func(t *testing.T) {
		k := &kept{m: map[string]string{}}
		// start runs a process for a while and returns its time of success, 0 if
		// it says none.
		start := func(life time.Duration) (at float64) {
			v := &checkpoint.Watch{Store: of(whole), Origin: "attache/test", Key: w.key, Kept: k, Logger: slog.New(slog.DiscardHandler)}
			reg := prometheus.NewRegistry()
			reg.MustRegister(checkpoint.WatchMetrics(v))
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			go v.Run(ctx)
			time.Sleep(life)
			synctest.Wait()
			list, err := reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range list {
				switch n := f.GetMetric()[0].GetGauge().GetValue(); f.GetName() {
				case "attache_audit_verify_success_timestamp_seconds":
					at = n
				case "attache_audit_verify_interval_seconds":
					if n != 86400 {
						t.Errorf("interval %v", n)
					}
				}
			}
			return at
		}
		first := float64(time.Now().Unix())
		for range 3 {
			if at := start(time.Minute); at != first {
				t.Errorf("at %v, want %v", at, first)
			}
		}
		began := float64(time.Now().Unix())
		if at := start(4 * time.Minute); at != began+180 {
			t.Errorf("verified at %v, want %v", at, began+180)
		}
		if at := start(time.Minute); at != began+180 {
			t.Errorf("after a restart %v, want %v", at, began+180)
		}
		k.fail.Store(true)
		if at := start(time.Minute); at != 0 {
			t.Errorf("%v where the store does not say", at)
		}
		k.fail.Store(false)
		k.mu.Lock()
		for n := range k.m {
			k.m[n] = "99999999999" // no excuse for a thousand years
		}
		k.mu.Unlock()
		if now := float64(time.Now().Unix()); start(time.Minute) != now {
			t.Error("a time to come is believed")
		}
	})
}
