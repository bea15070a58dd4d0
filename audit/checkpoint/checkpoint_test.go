package checkpoint_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/mod/sumdb/note"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/chain"
	"github.com/attache-dev/attache/audit/checkpoint"
	"github.com/attache-dev/attache/audit/store"
)

// world is a store, its key and its maker, and what is kept outside.
type world struct {
	t        testing.TB
	url      string
	db       *store.DB
	signer   note.Signer
	key      note.Verifier
	maker    *checkpoint.Maker
	outside  string   // folder
	notes    [][]byte // of it, once an attacker's copy is verified
	producer map[string]*producer
	now      time.Time
}

// producer writes lines as a spool does.
type producer struct {
	id, epoch string
	next      uint64
	head      chain.Hash
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, outside: t.TempDir(), producer: map[string]*producer{}, now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	private, public, err := checkpoint.NewKey("attache/test")
	w.must(err)
	w.signer, err = note.NewSigner(private)
	w.must(err)
	w.key, err = note.NewVerifier(public)
	w.must(err)
	w.open("sqlite:" + filepath.Join(t.TempDir(), "audit.db"))
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// open goes on with the store at url.
func (w *world) open(url string) {
	w.t.Helper()
	if w.db != nil {
		w.must(w.db.Close())
	}
	db, err := store.Open(w.t.Context(), url, store.Options{})
	w.must(err)
	w.t.Cleanup(func() { _ = db.Close() })
	w.url, w.db = url, db
	w.maker, err = checkpoint.New(checkpoint.Config{
		Store: db, Origin: "attache/test", Signer: w.signer, Now: func() time.Time { return w.now },
		Sinks: []checkpoint.Sink{checkpoint.Directory{Path: w.outside}},
	})
	w.must(err)
}

// line makes the next line of a producer.
func (p *producer) line(at time.Time, note string) audit.Line {
	p.next++
	if p.next == 1 {
		p.head = chain.First(p.epoch)
	}
	id := fmt.Sprintf("rec_%s%024x", p.epoch[:8], p.next)
	json := fmt.Appendf(nil, `{"schema":%q,"type":"event","id":%q,"epoch":%q,"sequence":%d,"time":%q,"workload":{"id":"spiffe://test/ns/a/sa/%s","namespace":"a"},"event":{"name":"test.%s"}}`,
		audit.SchemaVersion, id, p.epoch, p.next, at.Format(time.RFC3339Nano), p.id, note)
	p.head = chain.Next(p.head, json)
	return audit.Line{Epoch: p.epoch, Sequence: p.next, JSON: json, Chain: p.head, Chained: true}
}

func (w *world) of(id string) *producer {
	p := w.producer[id]
	if p == nil {
		p = &producer{id: id, epoch: fmt.Sprintf("%032x", len(w.producer)+1)}
		w.producer[id] = p
	}
	return p
}

// lines makes n lines of a producer and stores them.
func (w *world) lines(id string, n int) {
	w.t.Helper()
	p := w.of(id)
	var l []audit.Line
	for range n {
		w.now = w.now.Add(time.Second)
		l = append(l, p.line(w.now, "line"))
	}
	w.append(id, l...)
}

func (w *world) append(id string, l ...audit.Line) {
	w.t.Helper()
	_, err := w.db.Append(w.t.Context(), store.Producer{ID: id, Kind: "sidecar", Namespace: "a"}, l)
	w.must(err)
}

// checkpoint makes one and delivers it outside.
func (w *world) checkpoint() {
	w.t.Helper()
	w.now = w.now.Add(time.Minute)
	ctx, cancel := context.WithCancel(w.t.Context())
	cancel() // one turn now, one at the end
	w.maker.Run(ctx)
}

// verify compares with every checkpoint outside.
func (w *world) verify() *checkpoint.Report {
	w.t.Helper()
	notes, err := checkpoint.ReadFiles(w.outside)
	w.must(err)
	r, err := checkpoint.Verify(w.t.Context(), w.db, checkpoint.Options{Keys: []note.Verifier{w.key}, Outside: notes})
	w.must(err)
	return r
}

func (w *world) whole() *checkpoint.Report {
	w.t.Helper()
	r := w.verify()
	if !r.OK() {
		w.t.Fatalf("an untouched store is not whole:\n%s", r.Text(w.now))
	}
	return r
}

// find demands a problem of that kind (any if it is empty) that names the
// sequence (any if it is 0).
func (w *world) find(r *checkpoint.Report, kind, producer string, sequence uint64) {
	w.t.Helper()
	for _, p := range r.Problems {
		if (kind == "" || p.Kind == kind) && (sequence == 0 || p.Epoch == w.of(producer).epoch && p.From <= sequence && sequence <= p.To) {
			return
		}
	}
	w.t.Errorf("no problem %s that names sequence %d of %q:\n%s", kind, sequence, producer, r.Text(w.now))
}

func TestWholeStore(t *testing.T) {
	w := newWorld(t)
	w.lines("a", 3)
	w.lines("b", 200)
	w.checkpoint()
	w.lines("a", 2)
	w.lines("c", 1)
	w.checkpoint()
	r := w.whole()
	if r.Covered != 206 || r.Checkpoints != 2 || r.Outside != 2 || r.Uncovered != 0 {
		t.Errorf("report: %+v", r)
	}
	w.lines("b", 5)
	w.lines("d", 4)
	if r := w.whole(); r.Uncovered != 9 || r.EpochsUncovered != 1 {
		t.Errorf("what came later is not said to be not covered: %+v", r)
	}
}

func TestNoCheckpointWhereNothingMoved(t *testing.T) {
	w := newWorld(t)
	w.lines("a", 3)
	w.checkpoint()
	w.checkpoint()
	if c, err := w.maker.Make(t.Context()); c != nil || err != nil {
		t.Errorf("Make = %+v, %v", c, err)
	}
	if r := w.whole(); r.Checkpoints != 1 {
		t.Errorf("%d checkpoints, want 1", r.Checkpoints)
	}
}

func TestARestartedMakerGoesOn(t *testing.T) {
	w := newWorld(t)
	w.lines("a", 3)
	w.lines("b", 3)
	w.checkpoint()
	w.lines("a", 1)
	w.open(w.url)
	w.checkpoint()
	l, err := w.db.Checkpoints(t.Context(), 2, 0)
	w.must(err)
	c, err := chain.Parse(l[0].Note, w.key)
	if err != nil || c.Number != 2 || c.Leaves != 1 {
		t.Errorf("second checkpoint: %+v, %v; want the one head that moved", c, err)
	}
	w.whole()
}

func TestTwoMakersShareAStore(t *testing.T) {
	w := newWorld(t)
	w.lines("a", 3)
	w.checkpoint()
	other, err := checkpoint.New(checkpoint.Config{Store: w.db, Origin: "attache/test", Signer: w.signer, Now: func() time.Time { return w.now }})
	w.must(err)
	w.lines("a", 1)
	if _, err := other.Make(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.lines("a", 1)
	w.checkpoint()
	if r := w.whole(); r.Checkpoints != 3 || r.Covered != 5 {
		t.Errorf("report: %+v", r)
	}
}

func TestASinkThatWasAwayGetsAll(t *testing.T) {
	w := newWorld(t)
	w.must(os.Chmod(w.outside, 0o500)) //nolint:gosec // a folder that cannot be written
	if os.Geteuid() == 0 {
		w.must(os.Chmod(w.outside, 0o700)) //nolint:gosec // root writes everywhere
		w.must(os.Rename(w.outside, w.outside+".away"))
	}
	for range 3 {
		w.lines("a", 2)
		w.checkpoint()
	}
	if os.Geteuid() == 0 {
		w.must(os.Rename(w.outside+".away", w.outside))
	} else {
		w.must(os.Chmod(w.outside, 0o700)) //nolint:gosec // back
	}
	w.checkpoint()
	notes, err := checkpoint.ReadFiles(w.outside)
	if err != nil || len(notes) != 3 {
		t.Errorf("%d checkpoints outside, %v; want 3", len(notes), err)
	}
	w.whole()
}

func TestAnotherOriginIsRefused(t *testing.T) {
	w := newWorld(t)
	w.lines("a", 1)
	w.checkpoint()
	m, err := checkpoint.New(checkpoint.Config{Store: w.db, Origin: "attache/other", Signer: w.signer})
	w.must(err)
	if _, err := m.Make(t.Context()); err == nil {
		t.Error("a maker of another origin went on with the chain")
	}
}

func TestMetrics(t *testing.T) {
	w := newWorld(t)
	w.lines("a", 1)
	w.checkpoint()
	w.lines("a", 1)
	w.checkpoint()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(checkpoint.Metrics(w.maker))
	got, err := registry.Gather()
	w.must(err)
	want := map[string]float64{
		"attache_audit_checkpoints_total": 2, "attache_audit_checkpoint_number": 2, "attache_audit_checkpoint_delivered_number": 2,
		"attache_audit_checkpoint_timestamp_seconds": float64(w.now.Unix()),
	}
	for _, f := range got {
		m := f.GetMetric()[0]
		if v, ok := want[f.GetName()]; ok && v != m.GetCounter().GetValue()+m.GetGauge().GetValue() {
			t.Errorf("%s = %v, want %v", f.GetName(), m, v)
		}
		delete(want, f.GetName())
	}
	if len(want) > 0 {
		t.Errorf("metrics missing: %v", want)
	}
}

// What the store takes for an epoch, a checkpoint can name: else one producer
// could end all checkpoints with a name.
func TestNoEpochOfTheStoreEndsCheckpoints(t *testing.T) {
	w := newWorld(t)
	w.producer["a"] = &producer{id: "a", epoch: "epoch.of_a-1.2"}
	w.lines("a", 2)
	w.lines("b", 1)
	w.checkpoint()
	if r := w.whole(); r.Covered != 3 || r.Checkpoints != 1 {
		t.Errorf("report: %+v", r)
	}
}

// A producer that writes its members in another order raises no alarm.
func TestMembersInAnotherOrder(t *testing.T) {
	w := newWorld(t)
	p := w.of("a")
	p.next, p.head = 1, chain.First(p.epoch)
	text := fmt.Appendf(nil, `{"sequence":1,"epoch":%q,"type":"event","time":"2026-03-01T12:00:00Z","id":"rec_1","event":{"name":"x"},"schema":%q}`, p.epoch, audit.SchemaVersion)
	p.head = chain.Next(p.head, text)
	w.append("a", audit.Line{Epoch: p.epoch, Sequence: 1, JSON: text, Chain: p.head, Chained: true})
	w.checkpoint()
	w.whole()
}
