package collector

import (
	"cmp"
	"context"
	"maps"
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
