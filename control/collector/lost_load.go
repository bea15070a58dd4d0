package collector

import (
	"context"
	"fmt"
	"maps"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

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
	newest := newestOf(heads)
	notes := map[string]lostNote{}
	if err := l.loadOpen(ctx, heads, newest, notes); err != nil {
		return err
	}
	attested, err := l.loadAttested(ctx, now, notes)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.Copy(l.told, notes)
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

// newestOf returns each producer's newest epoch.
func newestOf(heads []store.Head) map[string]store.Head {
	newest := map[string]store.Head{}
	for _, h := range heads {
		if n, ok := newest[h.Producer.ID]; !ok || h.Opened.After(n.Opened) {
			newest[h.Producer.ID] = h
		}
	}
	return newest
}

// loadOpen takes epochs that are to be watched, with what was told of them.
func (l *Lost) loadOpen(ctx context.Context, heads []store.Head, newest map[string]store.Head, notes map[string]lostNote) error {
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
	return nil
}

// loadAttested returns who was attested lately, and takes what was told of them.
func (l *Lost) loadAttested(ctx context.Context, now time.Time, notes map[string]lostNote) ([]store.Producer, error) {
	if l.Attested == nil {
		return nil, nil
	}
	attested, err := l.Attested(ctx, now.Add(-attestedFor))
	if err != nil {
		return nil, fmt.Errorf("read attested pods: %w", err)
	}
	for _, p := range attested {
		n, ok, err := l.note(ctx, p.ID)
		if err != nil {
			return nil, err
		}
		if ok {
			notes[p.ID] = n
		}
	}
	return attested, nil
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
