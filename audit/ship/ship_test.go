package ship

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/chain"
)

// receiver is a sink that keeps what it gets, and fails as it is told.
type receiver struct {
	name string
	mu   sync.Mutex
	got  map[string]map[uint64]audit.Line
	dup  int
	fail func(Batch) error
	came chan struct{}
}

func newReceiver(name string) *receiver {
	return &receiver{name: name, got: map[string]map[uint64]audit.Line{}, came: make(chan struct{}, 1)}
}

func (r *receiver) Name() string { return r.name }

func (r *receiver) set(f func(Batch) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = f
}

func (r *receiver) Send(_ context.Context, b Batch) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() {
		select {
		case r.came <- struct{}{}:
		default:
		}
	}()
	if r.fail != nil {
		if err := r.fail(b); err != nil {
			return err
		}
	}
	for _, l := range b.Lines {
		if r.got[l.Epoch] == nil {
			r.got[l.Epoch] = map[uint64]audit.Line{}
		}
		if _, ok := r.got[l.Epoch][l.Sequence]; ok {
			r.dup++
		}
		r.got[l.Epoch][l.Sequence] = l
	}
	return nil
}

// whole fails unless every epoch came from its first line to n lines in all,
// each chained to the one before.
func (r *receiver) whole(t *testing.T, n int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	total := 0
	for epoch, lines := range r.got {
		prev := chain.First(epoch)
		for seq := uint64(1); seq <= uint64(len(lines)); seq++ {
			l, ok := lines[seq]
			if !ok {
				t.Fatalf("epoch %s: sequence %d is missing of %d", epoch, seq, len(lines))
			}
			if !l.Follows(prev) {
				t.Fatalf("epoch %s: sequence %d is not chained", epoch, seq)
			}
			prev = l.Chain
		}
		total += len(lines)
	}
	if total != n {
		t.Errorf("%d lines came, want %d", total, n)
	}
}

func open(t *testing.T, o audit.Options) *audit.Spool {
	t.Helper()
	s, err := audit.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func start(t *testing.T, s *audit.Spool, sinks ...Sink) *Group {
	t.Helper()
	g, err := Start(s, sinks, Options{Collector: sinks[0].Name(), MinWait: time.Millisecond, MaxWait: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func finish(t *testing.T, s *audit.Spool, g *Group) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := g.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

func events(t *testing.T, s *audit.Spool, n int) {
	t.Helper()
	for i := range n {
		if err := s.Event("test.event", map[string]string{"n": fmt.Sprint(i), "pad": strings.Repeat("x", 200)}); err != nil {
			t.Fatal(err)
		}
	}
}

func count(t *testing.T, dir string) int {
	t.Helper()
	r, err := audit.Verify(dir)
	if err != nil || !r.OK() {
		t.Fatalf("verify: %v\n%s", err, r.String())
	}
	return r.Lines
}

func TestEverythingComes(t *testing.T) {
	o := audit.Options{Dir: t.TempDir(), Producer: "pod-1", Kind: audit.KindSidecar}
	s := open(t, o)
	one, two := newReceiver("one"), newReceiver("two")
	g := start(t, s, one, two)
	events(t, s, 2000)
	finish(t, s, g)
	n := count(t, o.Dir)
	one.whole(t, n)
	two.whole(t, n)
	if one.dup != 0 {
		t.Errorf("%d lines came twice without a fault", one.dup)
	}
	if st := g.Status()[0]; st.Lines != uint64(n) || st.LagLines != 0 || st.Error != "" {
		t.Errorf("status %+v", st)
	}

	// The next start sends only what is new.
	s = open(t, o)
	g = start(t, s, one, two)
	events(t, s, 10)
	finish(t, s, g)
	one.whole(t, count(t, o.Dir))
	if one.dup != 0 {
		t.Errorf("%d lines came again after a restart", one.dup)
	}
}

func TestOutageLosesNothing(t *testing.T) {
	o := audit.Options{Dir: t.TempDir()}
	s := open(t, o)
	r := newReceiver("one")
	fails := 0
	r.set(func(Batch) error {
		if fails++; fails < 20 {
			return errors.New("connection refused")
		}
		return nil
	})
	g := start(t, s, r)
	events(t, s, 1000)
	finish(t, s, g)
	r.whole(t, count(t, o.Dir))
	if st := g.Status()[0]; st.Errors != 19 {
		t.Errorf("%d errors are told, want 19", st.Errors)
	}
}

func TestUndeliveredStays(t *testing.T) {
	o := audit.Options{Dir: t.TempDir()}
	s := open(t, o)
	r := newReceiver("one")
	r.set(func(Batch) error { return errors.New("down") })
	g := start(t, s, r)
	events(t, s, 10)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Close(ctx); err == nil || !strings.Contains(err.Error(), "12 records are not delivered to sink one") {
		t.Errorf("close: %v", err)
	}
	r.set(nil)
	s = open(t, o)
	g = start(t, s, r)
	finish(t, s, g)
	r.whole(t, count(t, o.Dir))
}

func TestShippedSegmentsAreDeleted(t *testing.T) {
	o := audit.Options{Dir: t.TempDir(), MaxBytes: 256 << 10, SegmentBytes: 16 << 10}
	s := open(t, o)
	one, two := newReceiver("one"), newReceiver("two")
	g := start(t, s, one, two)
	for range 500 { // four times what the spool holds
		for {
			err := s.Event("test.event", map[string]string{"pad": strings.Repeat("x", 2000)})
			if err == nil {
				break
			}
			if !errors.Is(err, audit.ErrFull) {
				t.Fatal(err)
			}
			<-two.came
		}
	}
	finish(t, s, g)
	r, err := audit.Verify(o.Dir)
	if err != nil || !r.OK() || r.Shipped == "" || s.Stats().Released == 0 {
		t.Fatalf("verify: %v\n%s", err, r.String())
	}
	want := int(one.got[s.Epoch()][uint64(len(one.got[s.Epoch()]))].Sequence)
	one.whole(t, want)
	two.whole(t, want)
}

func TestRefusedLinesAreSetAside(t *testing.T) {
	o := audit.Options{Dir: t.TempDir()}
	s := open(t, o)
	r := newReceiver("one")
	r.set(func(b Batch) error {
		for _, l := range b.Lines {
			if strings.Contains(string(l.JSON), `"bad"`) {
				return &RejectedError{Lines: []audit.Line{l}, Count: 1, Reason: "bad"}
			}
		}
		return nil
	})
	g := start(t, s, r)
	events(t, s, 3)
	if err := s.Event("bad", nil); err != nil {
		t.Fatal(err)
	}
	finish(t, s, g)
	b, err := os.ReadFile(filepath.Join(o.Dir, "sink-one.rejected"))
	if err != nil || strings.Count(string(b), "\n") != 1 || !strings.Contains(string(b), `"bad"`) {
		t.Errorf("set aside: %v %s", err, b)
	}
	if l, err := audit.ParseLine(b); err != nil || !l.Chained {
		t.Errorf("what is set aside is not as it was written: %v", err)
	}
	if g.Status()[0].Rejected != 1 {
		t.Errorf("status %+v", g.Status()[0])
	}
}

func TestCollectorDurability(t *testing.T) {
	s := open(t, audit.Options{Dir: t.TempDir(), Collector: true, CollectorWait: 30 * time.Second})
	r := newReceiver("one")
	g := start(t, s, r)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			rec := audit.Record{Request: &audit.Request{Host: "a.example"}}
			tk, err := s.BeginDurable(t.Context(), &rec, v1alpha1.DurabilityCollector)
			if err != nil {
				t.Error(err)
				return
			}
			r.mu.Lock()
			_, ok := r.got[rec.Epoch][rec.Sequence]
			r.mu.Unlock()
			if !ok {
				t.Errorf("sequence %d may leave, and the collector does not have it", rec.Sequence)
			}
			_ = tk.End(&audit.Result{Outcome: audit.OutcomeOK}, nil, nil, nil)
		})
	}
	wg.Wait()
	finish(t, s, g)
}

func TestCollectorDownRefuses(t *testing.T) {
	s := open(t, audit.Options{Dir: t.TempDir(), Collector: true, CollectorWait: 20 * time.Millisecond})
	r := newReceiver("one")
	r.set(func(Batch) error { return errors.New("down") })
	g := start(t, s, r)
	rec := audit.Record{Request: &audit.Request{Host: "a.example"}}
	_, err := s.BeginDurable(t.Context(), &rec, v1alpha1.DurabilityCollector)
	if !errors.Is(err, audit.ErrUnavailable) || !errors.Is(err, audit.ErrEnded) {
		t.Errorf("begin: %v", err)
	}
	r.set(func(b Batch) error { return &RejectedError{Lines: b.Lines, Count: len(b.Lines), Reason: "no"} })
	rec = audit.Record{Request: &audit.Request{Host: "a.example"}}
	if _, err := s.BeginDurable(t.Context(), &rec, v1alpha1.DurabilityCollector); !errors.Is(err, audit.ErrUnavailable) {
		t.Errorf("begin of a refused line: %v", err)
	}
	r.set(nil)
	finish(t, s, g)
}

type later struct{ error }

func (later) RetryAfter() time.Duration { return time.Hour }

// A process that ends does not sit out a wait that it can still use.
func TestTheEndDoesNotWaitForTheNextTurn(t *testing.T) {
	o := audit.Options{Dir: t.TempDir()}
	s := open(t, o)
	r := newReceiver("one")
	r.set(func(Batch) error { return later{errors.New("busy")} })
	g := start(t, s, r)
	events(t, s, 10)
	<-r.came // refused once; the next turn is in an hour, or in five minutes at most
	r.set(nil)
	finish(t, s, g)
	r.whole(t, count(t, o.Dir))
}
