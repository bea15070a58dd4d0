package collector

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

// Times of the search for lost producers.
const (
	// DefaultGrace is how long after its pod is gone a producer's last lines may
	// still be on their way.
	DefaultGrace = time.Minute
	sweepEvery   = 10 * time.Second
	reloadEvery  = 5 * time.Minute // what another collector took
	// attestedFor is how far back pods are looked for that were attested and
	// never sent a line.
	attestedFor = 24 * time.Hour
)

// OpeningOf reads the first line of epochs in a store, for [Lost.Opening].
func OpeningOf(db *store.DB) func(context.Context, string) (string, string, error) {
	return func(ctx context.Context, epoch string) (before, head string, err error) {
		for l, err := range db.Lines(ctx, epoch, 1) {
			if err != nil {
				return "", "", err
			}
			h, err := headOf(l.JSON)
			if err != nil || h.Event == nil || h.Sequence != 1 {
				return "", "", err
			}
			return h.Event.Fields["previous_epoch"], h.Event.Fields["previous_head"], nil
		}
		return "", "", nil
	}
}

// Memory is what the search for lost producers asks of the store: *store.DB.
type Memory interface {
	Heads(ctx context.Context) ([]store.Head, error)
	Head(ctx context.Context, epoch string) (store.Head, error)
	State(ctx context.Context, name string) ([]byte, error)
	PutState(ctx context.Context, name string, value []byte) error
}

// Lost finds producers that are gone without the end of their epoch: a pod that
// was deleted before its sidecar could send what it had. It records what is
// missing, and if lines come all the same, that they did.
type Lost struct {
	Collector *Collector
	Store     Memory
	// Pods returns the uids of the pods that are there, and may run, and
	// ControlPrefix with the names of those of the control plane; an error if
	// that is not known now.
	Pods func(ctx context.Context) (map[string]bool, error)
	// Attested returns the producers that were attested lately. nil: unknown.
	Attested func(ctx context.Context, since time.Time) ([]store.Producer, error)
	// Opening returns what the first line of an epoch says of the epoch before
	// it: its id and its head. nil: unknown.
	Opening func(ctx context.Context, epoch string) (before, head string, err error)
	Grace   time.Duration // default DefaultGrace

	mu   sync.Mutex // guards all below
	open map[string]*epochState
	// told are notes of the store's that may need a correction: by epoch, or by
	// producer where no epoch is known. All others stay in the store, or the
	// memory would grow with each pod that ever was lost.
	told map[string]lostNote
	// ask are epochs and producers of which a line came, and that may have been
	// told of.
	ask map[string]bool
	// given are the last lines of epochs that were told of, so that the store is
	// not asked at each load.
	given *lru.Cache[string, uint64]
	// missing is when a producer was first not found.
	missing  map[string]time.Time
	settled  map[string]time.Time // when a line came of a producer
	attested map[string]store.Producer
	loaded   time.Time
}

// rememberedLosses bounds Lost.given.
const rememberedLosses = 4096

// epochState is an epoch without end.
type epochState struct {
	producer store.Producer
	last     uint64
	next     string // the epoch of the same producer after it
}

// of sets whose epoch it is. The pod's name may have been known before and be
// no more, or the other way round.
func (e *epochState) of(p store.Producer) {
	p.Pod = cmp.Or(p.Pod, e.producer.Pod)
	e.producer = p
}

// lostNote is what was recorded of an epoch; it is kept in the store.
type lostNote struct {
	Producer store.Producer `json:"producer"`
	Epoch    string         `json:"epoch,omitempty"`
	Last     uint64         `json:"last"`
	Time     time.Time      `json:"time"`
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: one collector
// of several records a loss.
func (l *Lost) NeedLeaderElection() bool { return true }

// Start searches until ctx ends.
func (l *Lost) Start(ctx context.Context) error {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		if err := l.Sweep(ctx); err != nil && ctx.Err() == nil {
			l.Collector.Log.ErrorContext(ctx, "lost producers not looked for", "cause", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// Sweep looks once. [Lost.Start] calls it.
func (l *Lost) Sweep(ctx context.Context) error {
	now := l.Collector.Now()
	if err := l.load(ctx, now); err != nil {
		return err
	}
	pods, err := l.Pods(ctx)
	if err != nil {
		return err
	}
	if err := l.corrections(ctx); err != nil {
		return err
	}
	for _, g := range l.due(now, pods) {
		if err := l.give(ctx, g, now); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lost) grace() time.Duration {
	if l.Grace > 0 {
		return l.Grace
	}
	return DefaultGrace
}

// load reads what the store knows, at first and once in a while.
func (l *Lost) load(ctx context.Context, now time.Time) error {
	l.mu.Lock()
	old := l.loaded
	if l.open == nil {
		l.open, l.told, l.missing = map[string]*epochState{}, map[string]lostNote{}, map[string]time.Time{}
		l.settled, l.attested, l.ask = map[string]time.Time{}, map[string]store.Producer{}, map[string]bool{}
		l.given, _ = lru.New[string, uint64](rememberedLosses) // fails for no size only
	}
	l.mu.Unlock()
	if !old.IsZero() && now.Sub(old) < reloadEvery {
		return nil
	}
	if old.IsZero() {
		l.Collector.watched(l.arrived)
	}
	heads, err := l.Store.Heads(ctx)
	if err != nil {
		return fmt.Errorf("read the heads of epochs: %w", err)
	}
	notes := map[string]lostNote{}
	newest := map[string]store.Head{} // by producer
	for _, h := range heads {
		if n, ok := newest[h.Producer.ID]; !ok || h.Opened.After(n.Opened) {
			newest[h.Producer.ID] = h
		}
	}
	for _, h := range heads {
		if h.Closed || h.Producer.Kind == audit.KindRun {
			continue
		}
		n, ok, err := l.wasGiven(ctx, h)
		if err != nil {
			return err
		}
		if ok && n.Last >= h.Last {
			continue // told, and nothing came since
		} else if ok {
			notes[h.Epoch] = n
		}
		l.mu.Lock()
		e := l.open[h.Epoch]
		if e == nil {
			e = &epochState{}
			l.open[h.Epoch] = e
		}
		e.of(h.Producer)
		e.last = max(e.last, h.Last)
		if n := newest[h.Producer.ID]; n.Epoch != h.Epoch {
			e.next = n.Epoch
		}
		l.mu.Unlock()
	}
	var attested []store.Producer
	if l.Attested != nil {
		if attested, err = l.Attested(ctx, now.Add(-attestedFor)); err != nil {
			return fmt.Errorf("read attested pods: %w", err)
		}
	}
	for _, p := range attested {
		n, ok, err := l.note(ctx, p.ID)
		if err != nil {
			return err
		}
		if ok {
			notes[p.ID] = n
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, n := range notes {
		l.told[k] = n
	}
	for _, p := range attested {
		l.attested[p.ID] = p
	}
	l.forget(now)
	for id := range newest {
		_, is := l.attested[id]
		if _, was := l.told[id]; is || was {
			l.settled[id] = now
		}
	}
	l.loaded = now
	return nil
}

// forget drops what nobody asks for any more. The caller holds l.mu.
func (l *Lost) forget(now time.Time) {
	for id, at := range l.settled {
		if now.Sub(at) > attestedFor+reloadEvery {
			delete(l.settled, id)
		}
	}
	for key, n := range l.told {
		if n.Epoch == "" && now.Sub(n.Time) > attestedFor+reloadEvery { // nobody lists it as attested now
			delete(l.told, key)
		}
	}
}

// wasGiven returns what was recorded of an epoch that the memory does not have.
func (l *Lost) wasGiven(ctx context.Context, h store.Head) (lostNote, bool, error) {
	l.mu.Lock()
	_, have := l.open[h.Epoch]
	last, known := l.given.Get(h.Epoch)
	l.mu.Unlock()
	if have {
		return lostNote{}, false, nil
	}
	if known && last >= h.Last {
		return lostNote{Last: last}, true, nil
	}
	n, ok, err := l.note(ctx, h.Epoch)
	if err == nil && ok {
		l.mu.Lock()
		l.given.Add(h.Epoch, n.Last)
		l.mu.Unlock()
	}
	return n, ok, err
}

// noteName is the store's name of what was recorded.
func noteName(of string) string { return "lost/" + of }

func (l *Lost) note(ctx context.Context, of string) (lostNote, bool, error) {
	var n lostNote
	text, err := l.Store.State(ctx, noteName(of))
	if err != nil || len(text) == 0 {
		return n, false, err
	}
	return n, json.Unmarshal(text, &n) == nil, nil
}

// arrived takes note of lines that were stored.
func (l *Lost) arrived(p store.Producer, lines []line) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settled[p.ID] = l.Collector.Now()
	for i := range lines {
		x := &lines[i]
		if p.Kind == audit.KindControl && x.head.Event != nil && x.head.Event.Name == audit.EventIdentityIssued {
			if f := x.head.Event.Fields; f["kind"] == "x509" && f["pod_uid"] != "" {
				l.attested[f["pod_uid"]] = store.Producer{ID: f["pod_uid"], Kind: audit.KindSidecar, Namespace: f["namespace"], Pod: f["pod"]}
			}
		}
		e := l.open[x.Epoch]
		if e == nil && x.Sequence > 1 {
			l.ask[x.Epoch] = true
		} else if e == nil {
			l.ask[p.ID] = true
		}
		if x.head.Type == audit.TypeEpochEnd {
			delete(l.open, x.Epoch)
			continue
		}
		if e == nil {
			e = &epochState{}
			l.open[x.Epoch] = e
		}
		e.of(p)
		e.last = max(e.last, x.Sequence)
		if x.head.Type == audit.TypeEpochOpen && x.head.Event != nil {
			if prev := l.open[x.head.Event.Fields["previous_epoch"]]; prev != nil && prev.producer.ID == p.ID {
				prev.next = x.Epoch
			}
		}
	}
}

// gone is a producer that is to be given up.
type gone struct {
	epoch    string // empty: none is known
	producer store.Producer
}

// due lists the producers that are gone for longer than the grace.
func (l *Lost) due(now time.Time, pods map[string]bool) (out []gone) {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := map[string]bool{}
	defer func() {
		maps.DeleteFunc(l.missing, func(id string, _ time.Time) bool { return !seen[id] })
	}()
	away := func(id string) bool {
		seen[id] = true
		if pods[id] {
			delete(l.missing, id)
			return false
		}
		at, ok := l.missing[id]
		if !ok {
			l.missing[id] = now
			at = now
		}
		return now.Sub(at) >= l.grace()
	}
	for epoch, e := range l.open {
		n, told := l.told[epoch]
		if away(e.producer.ID) && (!told || n.Last < e.last) {
			out = append(out, gone{epoch, e.producer})
		}
	}
	for id, p := range l.attested {
		if _, ok := l.settled[id]; ok {
			delete(l.attested, id)
			continue
		}
		if _, told := l.told[id]; !told && away(id) {
			out = append(out, gone{"", p})
		}
	}
	return out
}

// give records a loss, unless the store knows better by now.
func (l *Lost) give(ctx context.Context, g gone, now time.Time) error {
	note := lostNote{Producer: g.producer, Epoch: g.epoch, Time: now}
	key := g.epoch
	if g.epoch == "" {
		key = g.producer.ID
	} else {
		h, err := l.Store.Head(ctx, g.epoch)
		if err != nil {
			return err
		}
		if h.Closed || l.wentOn(ctx, g.epoch, h) {
			l.mu.Lock()
			delete(l.open, g.epoch)
			l.mu.Unlock()
			return nil
		}
		note.Last = h.Last
	}
	if old, ok, err := l.note(ctx, key); err != nil {
		return err
	} else if !ok || old.Last < note.Last {
		fields := map[string]string{
			"producer": g.producer.ID, "producer_kind": g.producer.Kind, "workload": g.producer.Workload, "namespace": g.producer.Namespace, "pod": g.producer.Pod,
			"epoch": g.epoch, "last": strconv.FormatUint(note.Last, 10), "from": strconv.FormatUint(note.Last+1, 10), "to": "?",
			"missing": strconv.FormatUint(note.Last+1, 10) + "..?",
			"reason":  "the pod is gone, and its sidecar did not end its epoch: what it recorded after that line never came",
		}
		if g.epoch == "" {
			fields["reason"] = "the pod was attested and is gone, and no line of it ever came"
		}
		for k, v := range fields {
			if v == "" {
				delete(fields, k)
			}
		}
		// First the record: a second one of the same loss is better than none.
		if err := l.Collector.Record(ctx, &audit.Record{Event: &audit.Event{Name: audit.EventProducerLost, Fields: fields}}); err != nil {
			return fmt.Errorf("record a lost producer: %w", err)
		}
		l.Collector.metrics.lost.Inc()
		l.Collector.Log.WarnContext(ctx, "a producer is lost", "producer", g.producer.ID, "epoch", g.epoch, "last", note.Last)
		if err := l.keep(ctx, key, note); err != nil {
			return err
		}
	} else {
		note = old
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if g.epoch == "" {
		l.told[key] = note // is among the attested for a day
		delete(l.attested, g.producer.ID)
		return nil
	}
	l.given.Add(g.epoch, note.Last)
	if e := l.open[g.epoch]; e != nil && e.last <= note.Last {
		delete(l.open, g.epoch)
	} else {
		l.told[key] = note
	}
	return nil
}

func (l *Lost) keep(ctx context.Context, key string, n lostNote) error {
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return l.Store.PutState(ctx, noteName(key), text)
}

// wentOn reports whether a later epoch of the same producer says that this one
// ended where the store's does: its process was killed, and nothing is lost.
func (l *Lost) wentOn(ctx context.Context, epoch string, h store.Head) bool {
	l.mu.Lock()
	e := l.open[epoch]
	next := ""
	if e != nil {
		next = e.next
	}
	l.mu.Unlock()
	if next == "" || l.Opening == nil {
		return false
	}
	before, head, err := l.Opening(ctx, next)
	return err == nil && before == epoch && head == h.Hash.String()
}

// corrections records of which lost producers lines came.
func (l *Lost) corrections(ctx context.Context) error {
	if err := l.askNotes(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	var back []lostNote
	for key, n := range l.told {
		if n.Epoch == "" {
			if _, ok := l.settled[key]; ok {
				back = append(back, n)
			}
			continue
		}
		if e := l.open[n.Epoch]; e == nil || e.last > n.Last {
			back = append(back, n)
		}
	}
	l.mu.Unlock()
	for _, n := range back {
		if err := l.correct(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// askNotes finds out whether what came anew had been told of as lost.
func (l *Lost) askNotes(ctx context.Context) error {
	l.mu.Lock()
	ask := l.ask
	l.ask = map[string]bool{}
	l.mu.Unlock()
	for key := range ask {
		n, ok, err := l.note(ctx, key)
		l.mu.Lock()
		switch {
		case err != nil:
			maps.Copy(l.ask, ask) // again
		case ok:
			l.told[key] = n
		}
		l.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *Lost) correct(ctx context.Context, n lostNote) error {
	fields := map[string]string{"producer": n.Producer.ID, "producer_kind": n.Producer.Kind, "lost_at": n.Time.UTC().Format(time.RFC3339), "lost_from": strconv.FormatUint(n.Last+1, 10)}
	key := n.Epoch
	if n.Epoch == "" {
		key = n.Producer.ID
	} else {
		h, err := l.Store.Head(ctx, n.Epoch)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if err != nil || h.Last <= n.Last { // retention took it, or nothing came
			l.mu.Lock()
			delete(l.told, key)
			l.mu.Unlock()
			return nil
		}
		fields["epoch"], fields["to"], fields["ended"] = n.Epoch, strconv.FormatUint(h.Last, 10), strconv.FormatBool(h.Closed)
		fields["from"] = strconv.FormatUint(n.Last+1, 10)
	}
	if err := l.Collector.Record(ctx, &audit.Record{Event: &audit.Event{Name: audit.EventProducerReturned, Fields: fields}}); err != nil {
		return fmt.Errorf("record a producer that came back: %w", err)
	}
	l.Collector.metrics.returned.Inc()
	l.Collector.Log.WarnContext(ctx, "lines of a lost producer came", "producer", n.Producer.ID, "epoch", n.Epoch)
	l.mu.Lock()
	delete(l.told, key)
	l.given.Remove(key)
	delete(l.missing, n.Producer.ID) // a new grace
	l.mu.Unlock()
	return l.Store.PutState(ctx, noteName(key), nil)
}
