package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/chain"
)

// epochState is a row of the table epoch.
type epochState struct {
	id       int64
	name     string
	producer Producer
	first    uint64
	last     uint64 // 0: none yet
	lines    uint64
	chained  bool
	head     chain.Hash
	opened   int64
	seen     int64
	stored   int64
	closed   bool
	gaps     []Gap // within 1 to last, ascending
}

// maxGaps bounds what an epoch may leave out: a producer that skips every other
// number would cost more with each line.
const maxGaps = 1000

const epochColumns = "id, name, owner, first, last, lines, chained, head, opened, seen, stored, closed, gaps"

func (e *epochState) scan(scan func(...any) error) error {
	var owner, head, gaps []byte
	var chained, closed int
	if err := scan(&e.id, &e.name, &owner, &e.first, &e.last, &e.lines, &chained, &head, &e.opened, &e.seen, &e.stored, &closed, &gaps); err != nil {
		return err
	}
	e.chained, e.closed = chained != 0, closed != 0
	if len(head) != len(e.head) {
		return damaged("the head of epoch %s", e.name)
	}
	copy(e.head[:], head)
	if err := errors.Join(json.Unmarshal(owner, &e.producer), json.Unmarshal(gaps, &e.gaps)); err != nil {
		return damaged("epoch %s: %v", e.name, err)
	}
	return nil
}

func (t *tx) epoch(ctx context.Context, name string) (*epochState, error) {
	var e *epochState
	err := t.each(ctx, func(scan func(...any) error) error {
		e = &epochState{}
		return e.scan(scan)
	}, "SELECT "+epochColumns+" FROM epoch WHERE name = ?", name)
	return e, err
}

// readEpochs reads all that the lines name.
func (c *commit) readEpochs(ctx context.Context, l []*job) error {
	var names []string
	name := func(n string) {
		if _, ok := c.epochs[n]; !ok && n != "" {
			c.epochs[n] = nil
			names = append(names, n)
		}
	}
	for _, j := range l {
		for i := range j.x.records {
			name(j.x.records[i].Epoch)
			name(j.x.records[i].BeginEpoch)
		}
	}
	read := func(where string, arg any) error {
		return c.t.each(ctx, func(scan func(...any) error) error {
			e := &epochState{}
			err := e.scan(scan)
			c.epochs[e.name] = e
			return err
		}, "SELECT "+epochColumns+" FROM epoch WHERE name "+where, arg)
	}
	if c.t.e.postgres {
		return read("= ANY(?)", names)
	}
	for _, n := range names {
		if err := read("= ?", n); err != nil {
			return err
		}
	}
	return nil
}

// saveEpochs writes those that lines were added to.
func (c *commit) saveEpochs(ctx context.Context) error {
	l := make([][]any, 0, len(c.touched))
	for name := range c.touched {
		e := c.epochs[name]
		owner, err := json.Marshal(e.producer)
		if err != nil {
			return err
		}
		gaps, err := json.Marshal(e.gaps)
		if err != nil {
			return err
		}
		l = append(l, []any{e.id, e.name, e.producer.ID, owner, int64(e.first), int64(e.last), int64(e.lines), toInt(e.chained), e.head[:], e.opened, e.seen, e.stored, toInt(e.closed), gaps}) //nolint:gosec // at most 2^62
	}
	return c.t.insert(ctx, "INSERT INTO epoch (id, name, producer, owner, first, last, lines, chained, head, opened, seen, stored, closed, gaps)", l,
		"ON CONFLICT (id) DO UPDATE SET producer=excluded.producer, owner=excluded.owner, first=excluded.first, last=excluded.last, lines=excluded.lines, chained=excluded.chained,"+
			" head=excluded.head, opened=excluded.opened, seen=excluded.seen, stored=excluded.stored, closed=excluded.closed, gaps=excluded.gaps")
}

func toInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// has reports whether the epoch has that line.
func (e *epochState) has(n uint64) bool {
	if n == 0 || n > e.last {
		return false
	}
	i, _ := slices.BinarySearchFunc(e.gaps, n, func(g Gap, n uint64) int {
		if g.To < n {
			return -1
		}
		return 1
	})
	return i == len(e.gaps) || e.gaps[i].From > n
}

// take notes a new line.
func (e *epochState) take(l *audit.Line, r *audit.Record) error {
	n := l.Sequence
	if n > e.last {
		if n > e.last+1 {
			e.gaps = append(e.gaps, Gap{e.name, e.last + 1, n - 1})
		}
		e.last, e.head = n, l.Chain
	} else {
		e.fill(n)
	}
	if len(e.gaps) > maxGaps {
		return fmt.Errorf("%w: epoch %s leaves out numbers in more than %d places", ErrForged, e.name, maxGaps)
	}
	if e.lines == 0 {
		e.first, e.chained = n, l.Chained
	}
	e.first = min(e.first, n)
	e.lines++
	t := r.Time.UnixMicro()
	if e.opened == 0 || r.Type == audit.TypeEpochOpen {
		e.opened = t
	}
	e.seen = max(e.seen, t)
	e.closed = e.closed || r.Type == audit.TypeEpochEnd
	return nil
}

// fill takes a number out of the gap that it lies in.
func (e *epochState) fill(n uint64) {
	for i, g := range e.gaps {
		if n < g.From || n > g.To {
			continue
		}
		var rest []Gap
		if n > g.From {
			rest = append(rest, Gap{e.name, g.From, n - 1})
		}
		if n < g.To {
			rest = append(rest, Gap{e.name, n + 1, g.To})
		}
		e.gaps = slices.Replace(e.gaps, i, i+1, rest...)
		return
	}
}

// head returns the state as callers see it.
func (e *epochState) public() Head {
	return Head{
		Producer: e.producer, Epoch: e.name, First: e.first, Last: e.last, Lines: e.lines, Chained: e.chained, Hash: e.head,
		Opened: micro(e.opened), Seen: micro(e.seen), Stored: micro(e.stored), Closed: e.closed, Gaps: e.gaps,
	}
}

func micro(t int64) time.Time { return time.UnixMicro(t).UTC() }

// Heads returns the state of every epoch, in the order of their names.
func (d *DB) Heads(ctx context.Context) ([]Head, error) {
	return d.heads(ctx, "SELECT "+epochColumns+" FROM epoch ORDER BY name")
}

// Head returns the state of one epoch; ErrNotFound if the store has none of its
// lines.
func (d *DB) Head(ctx context.Context, epoch string) (Head, error) {
	l, err := d.heads(ctx, "SELECT "+epochColumns+" FROM epoch WHERE name = ?", strings.ToValidUTF8(epoch, ""))
	if err == nil && len(l) == 0 {
		err = fmt.Errorf("epoch %s: %w", clip(epoch), ErrNotFound)
	}
	if err != nil {
		return Head{}, err
	}
	return l[0], nil
}

// Producers returns the newest epoch of each producer, in the order of their
// names.
func (d *DB) Producers(ctx context.Context) ([]Head, error) {
	return d.heads(ctx, "SELECT "+epochColumns+" FROM epoch e WHERE NOT EXISTS (SELECT 1 FROM epoch f WHERE f.producer = e.producer AND (f.opened > e.opened OR f.opened = e.opened AND f.id > e.id)) ORDER BY producer")
}

func (d *DB) heads(ctx context.Context, q string, args ...any) ([]Head, error) {
	var l []Head
	err := d.reading(ctx, func(ctx context.Context, t *tx) error {
		return t.each(ctx, func(scan func(...any) error) error {
			var e epochState
			if err := e.scan(scan); err != nil {
				return err
			}
			l = append(l, e.public())
			return nil
		}, q, args...)
	})
	return l, err
}
