package store

import (
	"context"
	"errors"

	"github.com/attache-dev/attache/audit"
)

// halfKey names a begin, and so both halves of a request.
type halfKey struct {
	epoch string
	seq   uint64
}

// half is a line whose other half has not come.
type half struct {
	producer string
	record   audit.Record
	json     []byte
	at       place
	stored   bool // it is in the table
}

// halves are those that a commit may need, read all at once, and those that it
// leaves.
type halves struct {
	begins, ends map[halfKey]half
	// unread are those that may be there and were too large to be read with the
	// others: begins, ends.
	unread [2]map[halfKey]bool
	gone   [2][]halfKey // stored ones that found their other half: begins, ends
}

// maxHalvesRead bounds the text of the halves that are read at once, in bytes.
const maxHalvesRead = 16 << 20

// keyOf returns the begin that a line is, or ends.
func keyOf(r *audit.Record) halfKey {
	if isEnd(r) {
		return halfKey{r.BeginEpoch, r.BeginSequence}
	}
	return halfKey{r.Epoch, r.Sequence}
}

// readHalves reads what the lines of all jobs may be joined with.
func (c *commit) readHalves(ctx context.Context, l []*job) error {
	begun := map[halfKey]bool{} // begins of this commit
	first, last := map[string]uint64{}, map[string]uint64{}
	for _, j := range l {
		for i := range j.x.records {
			r := &j.x.records[i]
			if r.Type != audit.TypeBegin {
				continue
			}
			begun[keyOf(r)] = true
			if n, ok := first[r.Epoch]; !ok || r.Sequence < n {
				first[r.Epoch] = r.Sequence
			}
			last[r.Epoch] = max(last[r.Epoch], r.Sequence)
		}
	}
	var begins, ends []halfKey
	for _, j := range l {
		for i := range j.x.records {
			r := &j.x.records[i]
			if !isEnd(r) {
				continue
			}
			switch key := keyOf(r); {
			case c.has(key):
				begins = append(begins, key)
			case !begun[key]: // another end may wait for the same
				ends = append(ends, key)
			}
		}
	}
	for epoch, n := range first {
		waiting, err := c.t.waiting(ctx, epoch, n, last[epoch])
		if err != nil {
			return err
		}
		for _, k := range waiting {
			if begun[k] {
				ends = append(ends, k)
			}
		}
	}
	var err error
	if c.halves.begins, c.halves.unread[0], err = c.t.halves(ctx, begins, false); err != nil {
		return err
	}
	c.halves.ends, c.halves.unread[1], err = c.t.halves(ctx, ends, true)
	return err
}

// half returns the half of a request that is there, the begin or the end.
func (c *commit) half(ctx context.Context, key halfKey, ending bool) (half, bool, error) {
	m, unread := c.halves.begins, c.halves.unread[toInt(ending)]
	if ending {
		m = c.halves.ends
	}
	h, ok := m[key]
	if ok || !unread[key] {
		return h, ok, nil
	}
	one, _, err := c.t.halves(ctx, []halfKey{key}, ending) // and again, if need be: it is not kept
	h, ok = one[key]
	return h, ok, err
}

// has reports whether the store has that line already.
func (c *commit) has(k halfKey) bool {
	e := c.epochs[k.epoch]
	return e != nil && e.has(k.seq)
}

// begin joins a begin with an end that came before it, or keeps it.
func (c *commit) begin(ctx context.Context, producer string, r *audit.Record, text []byte, at place) error {
	key := keyOf(r)
	h, ok, err := c.half(ctx, key, true)
	if err != nil {
		return err
	}
	if ok && h.record.ID == r.ID && h.producer == producer {
		whole := audit.Join(*r, h.record)
		c.row(&whole, at, h.at)
		c.halves.found(key, true, h.stored)
		return nil
	}
	c.halves.begins[key] = half{producer: producer, record: *r, json: text, at: at}
	return nil
}

// end joins an end with its begin. An end of another producer, or with another
// id, is no end of that begin: it stands by itself.
func (c *commit) end(ctx context.Context, producer string, r *audit.Record, text []byte, at place) error {
	key := keyOf(r)
	h, ok, err := c.half(ctx, key, false)
	switch {
	case err != nil:
		return err
	case ok && h.record.ID == r.ID && h.producer == producer:
		whole := audit.Join(h.record, *r)
		c.row(&whole, h.at, at)
		c.halves.found(key, false, h.stored)
		return nil
	case ok:
		c.row(r, place{}, at)
		return nil
	}
	_, taken, err := c.half(ctx, key, true)
	if err != nil {
		return err
	}
	if e := c.epochs[key.epoch]; taken || e != nil && (e.has(key.seq) || e.producer.ID != producer) {
		c.row(r, place{}, at) // another end waits, it has an end already, or is no begin
		return nil
	}
	c.halves.ends[key] = half{producer: producer, record: *r, json: text, at: at}
	return nil
}

func (h *halves) found(key halfKey, ending, stored bool) {
	m := h.begins
	if ending {
		m = h.ends
	}
	if stored {
		h.gone[toInt(ending)] = append(h.gone[toInt(ending)], key)
	}
	delete(m, key)
	delete(h.unread[toInt(ending)], key)
}

// save writes what is new and removes what is gone.
func (h *halves) save(ctx context.Context, t *tx) error {
	var l [][]any
	for ending, m := range []map[halfKey]half{h.begins, h.ends} {
		for k, x := range m {
			if !x.stored {
				l = append(l, []any{k.epoch, int64(k.seq), ending, x.producer, x.record.Time.UnixMicro(), spaced(audit.Namespaces(&x.record)), x.at.block, int(x.at.line), x.json}) //nolint:gosec // at most 2^62
			}
		}
	}
	if err := t.insert(ctx, "INSERT INTO half (epoch, sequence, ending, producer, time, namespaces, block, line, json)", l, ""); err != nil {
		return err
	}
	for ending, keys := range h.gone {
		if err := t.dropHalves(ctx, keys, ending == 1); err != nil {
			return err
		}
	}
	return nil
}

// halves reads those of keys that are there; unread are those to be read one by
// one.
func (t *tx) halves(ctx context.Context, keys []halfKey, ending bool) (m map[halfKey]half, unread map[halfKey]bool, err error) {
	m = map[halfKey]half{}
	size := 0
	err = t.byKey(keys, func(where string, args ...any) error {
		return t.each(ctx, func(scan func(...any) error) error {
			var k halfKey
			h := half{stored: true}
			var text []byte
			err := scan(&k.epoch, &k.seq, &h.producer, &h.at.block, &h.at.line, &text)
			if err == nil {
				h.record, err = decodeLine(text)
			}
			m[k] = h
			if size += len(text); err == nil && size > maxHalvesRead && len(keys) > 1 {
				err = errEnough
			}
			return err
		}, "SELECT epoch, sequence, producer, block, line, json FROM half WHERE "+where+" AND ending = ?", append(args, toInt(ending))...)
	})
	if !errors.Is(err, errEnough) {
		return m, nil, err
	}
	unread = map[halfKey]bool{}
	for _, k := range keys {
		if _, ok := m[k]; !ok {
			unread[k] = true
		}
	}
	return m, unread, nil
}

func (t *tx) dropHalves(ctx context.Context, keys []halfKey, ending bool) error {
	return t.byKey(keys, func(where string, args ...any) error {
		_, err := t.exec(ctx, "DELETE FROM half WHERE "+where+" AND ending = ?", append(args, toInt(ending))...)
		return err
	})
}

// byKey calls fn with a condition for all keys at once, or for each: SQLite has no
// arrays, and no way to go that would be saved.
func (t *tx) byKey(keys []halfKey, fn func(where string, args ...any) error) error {
	if !t.e.postgres {
		for _, k := range keys {
			if err := fn("epoch = ? AND sequence = ?", k.epoch, int64(k.seq)); err != nil { //nolint:gosec // at most 2^62
				return err
			}
		}
		return nil
	}
	if len(keys) == 0 {
		return nil
	}
	epochs, numbers := make([]string, len(keys)), make([]int64, len(keys))
	for i, k := range keys {
		epochs[i], numbers[i] = k.epoch, int64(k.seq) //nolint:gosec // at most 2^62
	}
	return fn("(epoch, sequence) IN (SELECT * FROM unnest(?::text[], ?::bigint[]))", epochs, numbers)
}

// waiting returns begins of an epoch whose ends have come already.
func (t *tx) waiting(ctx context.Context, epoch string, first, last uint64) ([]halfKey, error) {
	var l []halfKey
	err := t.each(ctx, func(scan func(...any) error) error {
		k := halfKey{epoch: epoch}
		err := scan(&k.seq)
		l = append(l, k)
		return err
	}, "SELECT sequence FROM half WHERE epoch = ? AND ending = 1 AND sequence BETWEEN ? AND ?", epoch, int64(first), int64(last)) //nolint:gosec // at most 2^62
	return l, err
}

func decodeLine(text []byte) (audit.Record, error) {
	r, err := audit.Line{JSON: text}.Record()
	if err != nil {
		if r, err = foreign(text); err != nil {
			return r, damaged("a stored line is no record")
		}
	}
	return r, nil
}
