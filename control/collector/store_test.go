package collector_test

import (
	"context"
	"errors"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/audit/ship/otlp"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/control/collector"
)

func openSQLite(t *testing.T) *store.DB {
	t.Helper()
	db, err := store.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "records.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// flaky fails each third append, and each fifth after it has committed: an
// answer that was lost.
type flaky struct {
	*store.DB
	mu sync.Mutex
	n  int
}

func (f *flaky) Append(ctx context.Context, p store.Producer, lines []audit.Line) (store.Ack, error) {
	f.mu.Lock()
	f.n++
	n := f.n
	f.mu.Unlock()
	if n%3 == 0 {
		return store.Ack{}, errDown
	}
	ack, err := f.DB.Append(ctx, p, lines)
	if n%5 == 0 && err == nil {
		return store.Ack{}, errDown
	}
	return ack, err
}

// A real spool, its shipper, the collector and SQLite: what a sidecar wrote is
// in the store, each line once and byte for byte, through an outage.
func TestSpoolToStore(t *testing.T) {
	db := openSQLite(t)
	r := start(t, func(c *collector.Config) { c.Store = &flaky{DB: db} })
	dir := t.TempDir()
	spool, err := audit.Open(audit.Options{Dir: dir, Producer: uid, Kind: audit.KindSidecar, Collector: true, SegmentBytes: 16 << 10, MaxBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	sink, err := otlp.New(otlp.Config{
		Name: "collector", Endpoint: r.grpcAt, Control: true, Gzip: true,
		TLS: r.ca.Client(r.ca.SVID("team", "agent", uid, time.Now().Add(time.Hour))),
	})
	if err != nil {
		t.Fatal(err)
	}
	g, err := ship.Start(spool, []ship.Sink{sink}, ship.Options{MinWait: time.Millisecond, MaxWait: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	const n = 2000
	for range n {
		if err := spool.Event(audit.EventPolicyLoaded, map[string]string{"a": "b"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := spool.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := g.Close(ctx); err != nil {
		t.Fatal(err)
	}
	h, err := db.Head(t.Context(), spool.Epoch())
	if err != nil || h.Lines != n+2 || !h.Closed || len(h.Gaps) != 0 || h.Producer.ID != uid {
		t.Fatalf("head %+v, %v", h, err)
	}
	for _, e := range r.told(audit.EventProducerGap) {
		t.Errorf("gap %v", e)
	}
	if n := len(r.told(audit.EventProducerForged)); n != 0 {
		t.Errorf("forged: %v", r.events)
	}
	page, err := db.Search(t.Context(), store.Query{Limit: 10})
	if err != nil || len(page.Rows) != 10 || page.Rows[0].Producer != uid {
		t.Errorf("search: %d rows, %v", len(page.Rows), err)
	}
}

// Another producer cannot write on an epoch that a collector before this one
// has stored.
func TestBindingHoldsOverARestart(t *testing.T) {
	db := openSQLite(t)
	r := start(t, func(c *collector.Config) { c.Store = db })
	e := begin("e1")
	r.must(r.pod("team", "agent", uid), e.lines(2)...)
	again := start(t, func(c *collector.Config) { c.Store = db })
	n, why, err := again.send(again.pod("team", "agent", uid+"-other"), e.lines(1)...)
	if err != nil || n != 1 || len(again.told(audit.EventProducerRejected)) != 1 {
		t.Errorf("%d, %s, %v", n, why, err)
	}
	e.seq, e.head = 2, r.headOf(t, db, "e1")
	again.must(again.pod("team", "agent", uid), e.lines(1)...)
}

func (r *rig) headOf(t *testing.T, db *store.DB, epoch string) store.Hash {
	t.Helper()
	h, err := db.Head(t.Context(), epoch)
	if err != nil {
		t.Fatal(err)
	}
	return h.Hash
}

// taker is a sink that fails now and then.
type taker struct {
	mu   sync.Mutex
	got  []audit.Line
	fail int
	full chan struct{}
	want int
}

func (*taker) Name() string { return "siem" }

func (k *taker) Send(_ context.Context, b ship.Batch) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail++; k.fail%3 == 0 {
		return errors.New("the SIEM is away")
	}
	k.got = append(k.got, b.Lines...)
	if len(k.got) >= k.want {
		select {
		case <-k.full:
		default:
			close(k.full)
		}
	}
	return nil
}

// What the store takes is sent on, all of it and in order, and a start anew
// goes on where the one before stopped.
func TestForwardFromTheStore(t *testing.T) {
	db := openSQLite(t)
	r := start(t, func(c *collector.Config) { c.Store = db })
	client := r.pod("team", "agent", uid)
	e := begin("e1")
	forward := func(want int) []audit.Line {
		t.Helper()
		k := &taker{full: make(chan struct{}), want: want}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		s := ship.New(ship.Config{Source: &collector.Forward{Store: db, Sink: k.Name(), Every: time.Millisecond}, Sink: k, MinWait: time.Millisecond, MaxWait: time.Millisecond})
		done := make(chan error, 1)
		run, stop := context.WithCancel(ctx)
		go func() { done <- s.Run(run) }()
		select {
		case <-k.full:
		case <-ctx.Done():
			t.Fatalf("%d of %d lines came", len(k.got), want)
		}
		// The last batch's place is kept before the next is asked for.
		for deadline := time.Now().Add(patience); s.Status().Batches == 0 || !committed(t, db); {
			if time.Now().After(deadline) {
				t.Fatal("the place is not kept")
			}
			time.Sleep(time.Millisecond)
		}
		stop()
		<-done
		return k.got
	}
	r.must(client, e.lines(1300)...)
	first := forward(1300)
	for i, l := range first {
		if l.Sequence != uint64(i+1) {
			t.Fatalf("line %d is %d", i+1, l.Sequence)
		}
	}
	r.must(client, e.lines(5)...)
	if second := forward(5); len(second) != 5 || second[0].Sequence != 1301 {
		t.Errorf("second time: %d lines", len(second))
	}
}

// committed reports whether the place is behind the last batch.
func committed(t *testing.T, db *store.DB) bool {
	t.Helper()
	text, err := db.State(t.Context(), "forward/siem")
	if err != nil {
		t.Fatal(err)
	}
	var last int64
	for b, err := range db.Batches(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		last = b.ID
	}
	return string(text) == itoa(last)+"/0"
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
