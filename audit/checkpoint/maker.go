// Package checkpoint states, at least once a minute, what an audit store holds,
// sends the statements to where the store's owner cannot rewrite them, and
// verifies a store against a statement from there.
package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/chain"
	"github.com/attache-dev/attache/audit/store"
)

// Published is one checkpoint as it goes outside.
type Published struct {
	Origin string
	Number uint64
	Time   time.Time
	Note   []byte // the signed note, text
	Leaves []byte // the texts of its leaves, a line each
}

// Sink takes checkpoints to a place that the control plane cannot rewrite. Put
// is called in the order of numbers, again after an error, and perhaps twice
// for one number: it must be idempotent.
type Sink interface {
	Name() string // stable: what was delivered is kept under it
	Put(ctx context.Context, p Published) error
}

// DefaultEvery is how often checkpoints are made.
const DefaultEvery = time.Minute

// Config of [New]. Store, Origin and Signer are required.
type Config struct {
	Store  *store.DB
	Origin string // which store: letters, digits and - _ . : /
	Signer note.Signer
	Every  time.Duration // 0 means DefaultEvery
	Sinks  []Sink
	// Record writes an event into the control plane's own spool; nil: none.
	Record func(ctx context.Context, r *audit.Record) error
	Logger *slog.Logger     // nil discards
	Now    func() time.Time // nil means time.Now
}

// Maker makes checkpoints. Replicas that share a store may each have one.
type Maker struct {
	Config
	known map[string]chain.Leaf // newest leaf of each epoch
	last  *chain.Checkpoint
	sinks []*delivery
	stats counters
}

type counters struct {
	made, failed atomic.Uint64
	lastMade     atomic.Int64 // Unix seconds
	lastNumber   atomic.Uint64
}

// New returns a Maker; Run it.
func New(c Config) (*Maker, error) {
	if c.Store == nil || c.Signer == nil {
		return nil, errors.New("checkpoints: a store and a signing key are needed")
	}
	if c.Every <= 0 {
		c.Every = DefaultEvery
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	m := &Maker{Config: c}
	for _, s := range c.Sinks {
		m.sinks = append(m.sinks, &delivery{sink: s})
	}
	return m, nil
}

// Run makes checkpoints until ctx ends, and a last one then. An error is
// logged, counted, recorded and tried again at the next turn.
func (m *Maker) Run(ctx context.Context) {
	tick := time.NewTicker(m.Every)
	defer tick.Stop()
	for {
		m.turn(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			late, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			m.turn(late)
			return
		}
	}
}

func (m *Maker) turn(ctx context.Context) {
	if _, err := m.Make(ctx); err != nil {
		m.complain(ctx, "make", err)
	}
	for _, d := range m.sinks {
		if err := d.deliver(ctx, m.Store); err != nil {
			m.complain(ctx, d.sink.Name(), err)
		}
	}
}

func (m *Maker) complain(ctx context.Context, where string, err error) {
	m.stats.failed.Add(1)
	m.Logger.Error("a checkpoint of the audit store was not made or not delivered; it is tried again", "sink", where, "error", err)
	m.record(ctx, audit.EventCheckpointFailed, map[string]string{"sink": where, "error": err.Error()})
}

func (m *Maker) record(ctx context.Context, name string, fields map[string]string) {
	if m.Record == nil {
		return
	}
	r := &audit.Record{Type: audit.TypeEvent, Event: &audit.Event{Name: name, Fields: fields}}
	if err := m.Record(ctx, r); err != nil {
		m.Logger.Error("event cannot be recorded", "event", name, "error", err)
	}
}

// Make states the heads that moved since the last checkpoint, and stores the
// statement. It returns nil if none moved.
func (m *Maker) Make(ctx context.Context) (*chain.Checkpoint, error) {
	if err := m.load(ctx); err != nil {
		return nil, err
	}
	heads, err := m.Store.Heads(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the heads of the audit store: %w", err)
	}
	removed, err := m.Store.Removed(ctx)
	if err != nil {
		return nil, fmt.Errorf("read what retention took: %w", err)
	}
	from := lowest(removed)
	var moved []chain.Leaf
	var lines uint64
	for _, h := range heads {
		if !h.Chained || h.Last == 0 {
			continue
		}
		leaf := leafOf(h, from[h.Epoch])
		lines += covered(leaf)
		if m.known[h.Epoch] != leaf {
			moved = append(moved, leaf)
		}
	}
	if len(moved) == 0 {
		return nil, nil //nolint:nilnil // nothing moved is no error
	}
	return m.publish(ctx, moved, lines)
}

func (m *Maker) publish(ctx context.Context, moved []chain.Leaf, lines uint64) (*chain.Checkpoint, error) {
	chain.SortLeaves(moved)
	root, err := chain.Root(moved)
	if err != nil {
		return nil, err
	}
	c := &chain.Checkpoint{
		Origin: m.Origin, Number: 1, Time: m.Now().UTC().Truncate(time.Second),
		Leaves: uint64(len(moved)), Root: root, Lines: lines,
	}
	if m.last != nil {
		c.Number, c.Previous = m.last.Number+1, m.last.Digest()
	}
	signed, err := chain.Sign(c, m.Signer)
	if err != nil {
		return nil, err
	}
	err = m.Store.PutCheckpoint(ctx, store.Checkpoint{Number: c.Number, Time: c.Time, Note: signed, Heads: encodeLeaves(moved)})
	if err != nil {
		m.last, m.known = nil, nil // another replica may have made this number: read anew
		return nil, fmt.Errorf("store checkpoint %d: %w", c.Number, err)
	}
	m.last = c
	for _, l := range moved {
		m.known[l.Epoch] = l
	}
	m.stats.made.Add(1)
	m.stats.lastMade.Store(c.Time.Unix())
	m.stats.lastNumber.Store(c.Number)
	m.record(ctx, audit.EventCheckpointMade, map[string]string{
		"number": strconv.FormatUint(c.Number, 10), "origin": c.Origin, "digest": c.Digest().String(),
		"leaves": strconv.FormatUint(c.Leaves, 10), "lines": strconv.FormatUint(c.Lines, 10), "note": string(signed),
	})
	return c, nil
}

// page is how many checkpoints are read at a time.
const page = 500

// load reads the last checkpoint and the newest leaf of each epoch, unless they
// are known and nobody else has made a checkpoint since.
func (m *Maker) load(ctx context.Context) error {
	newest, err := m.Store.LastCheckpoint(ctx)
	if errors.Is(err, store.ErrNotFound) {
		m.last, m.known = nil, map[string]chain.Leaf{}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the last checkpoint: %w", err)
	}
	if m.last != nil && m.last.Number == newest.Number {
		return nil
	}
	last, err := chain.ParseUnverified(newest.Note)
	if err != nil {
		return fmt.Errorf("last checkpoint of the audit store: %w", err)
	}
	if last.Origin != m.Origin {
		return fmt.Errorf("last checkpoint of the audit store is of %q and not of %q; give the origin that the store was begun with", last.Origin, m.Origin)
	}
	known := map[string]chain.Leaf{}
	from := uint64(1)
	if m.last != nil { // another replica's checkpoints only
		known, from = m.known, m.last.Number+1
	}
	err = eachCheckpoint(ctx, m.Store, from, func(c store.Checkpoint) error {
		leaves, err := decodeLeaves(c.Heads)
		for _, l := range leaves {
			known[l.Epoch] = l
		}
		return err
	})
	if err != nil {
		return err
	}
	m.last, m.known = last, known
	return nil
}

// eachCheckpoint calls f with the checkpoints from a number on, ascending.
func eachCheckpoint(ctx context.Context, db Source, from uint64, f func(store.Checkpoint) error) error {
	for {
		l, err := db.Checkpoints(ctx, from, page)
		if err != nil {
			return fmt.Errorf("read checkpoints: %w", err)
		}
		for _, c := range l {
			if err := f(c); err != nil {
				return fmt.Errorf("checkpoint %d: %w", c.Number, err)
			}
		}
		if len(l) < page {
			return nil
		}
		from = l[len(l)-1].Number + 1
	}
}

// lowest says for each epoch which sequence retention has left as the first.
func lowest(removed []store.Removal) map[string]uint64 {
	from := map[string]uint64{}
	for _, r := range removed {
		from[r.Epoch] = max(from[r.Epoch], r.Last+1)
	}
	return from
}

func leafOf(h store.Head, from uint64) chain.Leaf {
	l := chain.Leaf{
		Producer: h.Producer.ID, Epoch: h.Epoch, From: max(from, 1), Last: h.Last, Head: h.Hash,
		Missing: chain.FormatRanges(missing(h)), State: chain.Open,
	}
	if h.Closed {
		l.State = chain.Closed
	}
	return l
}

// missing lists what never came of an epoch, ascending.
func missing(h store.Head) []chain.Range {
	var l []chain.Range
	for _, g := range h.Gaps {
		l = append(l, chain.Range{From: g.From, To: g.To})
	}
	if h.First > 1 && (len(l) == 0 || l[0].From > 1) {
		l = append([]chain.Range{{From: 1, To: h.First - 1}}, l...)
	}
	return l
}

// covered is how many lines a leaf speaks for.
func covered(l chain.Leaf) uint64 {
	n := l.Last
	gaps, err := chain.ParseRanges(l.Missing)
	if err != nil {
		return n
	}
	for _, g := range gaps {
		n -= g.To - g.From + 1
	}
	return n
}

func encodeLeaves(leaves []chain.Leaf) []byte {
	var b strings.Builder
	for _, l := range leaves {
		b.WriteString(l.Text())
		b.WriteByte('\n')
	}
	return []byte(b.String())
}

func decodeLeaves(b []byte) ([]chain.Leaf, error) {
	var l []chain.Leaf
	for text := range strings.Lines(string(b)) {
		leaf, err := chain.ParseLeaf(strings.TrimSuffix(text, "\n"))
		if err != nil {
			return l, err
		}
		l = append(l, leaf)
	}
	return l, nil
}
