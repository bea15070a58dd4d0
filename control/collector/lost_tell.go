package collector

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

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
		// First the record: a second one of the same loss is better than none.
		if err := l.Collector.Record(ctx, &audit.Record{Event: &audit.Event{Name: audit.EventProducerLost, Fields: g.fields(note.Last)}}); err != nil {
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

// fields say what may be missing, where last is the last line that came.
func (g gone) fields(last uint64) map[string]string {
	fields := map[string]string{
		"producer": g.producer.ID, "producer_kind": g.producer.Kind, "workload": g.producer.Workload, "namespace": g.producer.Namespace, "pod": g.producer.Pod,
		"epoch": g.epoch, "last": strconv.FormatUint(last, 10), "from": strconv.FormatUint(last+1, 10), "to": "?",
		"missing": strconv.FormatUint(last+1, 10) + "..?",
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
	return fields
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
