package store

import (
	"context"
	"encoding/json"

	"github.com/attache-dev/attache/audit"
)

// counters are the numbers that were given last.
type counters struct{ Block, Segment, Epoch, Document, Removal int64 }

const countersName = "store/counters"

func (t *tx) counters(ctx context.Context) (counters, error) {
	var c counters
	var raw []byte
	ok, err := t.one(ctx, "SELECT value FROM state WHERE name = ?", []any{countersName}, &raw)
	if err != nil || !ok {
		return c, err
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, damaged("the counters: %v", err)
	}
	return c, nil
}

func (t *tx) putState(ctx context.Context, name string, value []byte) error {
	_, err := t.exec(ctx, "INSERT INTO state (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", name, value)
	return err
}

func (t *tx) saveCounters(ctx context.Context, c counters) error {
	raw, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return t.putState(ctx, countersName, raw)
}

// add stores the blocks of a batch and indexes its records.
func (c *commit) add(ctx context.Context, x *prepared) error {
	c.wrote = true
	for i, b := range x.blocks {
		c.counters.Block++
		b.id = c.counters.Block
		raw := 0
		for _, l := range b.lines {
			raw += len(l)
		}
		head, tail := b.head(), b.tail()
		c.blocks = append(c.blocks, []any{b.id, c.epochs[b.epoch].id, int64(b.first), int64(b.last()), b.low, b.hi, int64(raw), toInt(b.chained), head[:], tail[:], x.data[i]}) //nolint:gosec // at most 2^62
	}
	at := func(i int) place { return place{x.blocks[x.spots[i].block].id, x.spots[i].line} }
	for i := range x.records { // before all ends: those may be of an epoch that stands first
		if r := &x.records[i]; r.Type == audit.TypeBegin {
			if err := c.begin(ctx, x.producer.ID, r, x.lines[i].JSON, at(i)); err != nil {
				return err
			}
		}
	}
	for i := range x.records {
		r := &x.records[i]
		at := at(i)
		if err := c.document(ctx, r); err != nil {
			return err
		}
		switch {
		case r.Type == audit.TypeBegin:
		case isEnd(r):
			if err := c.end(ctx, x.producer.ID, r, x.lines[i].JSON, at); err != nil {
				return err
			}
		default:
			c.row(r, place{}, at)
		}
	}
	return nil
}

// isEnd reports whether a record ends a request whose begin is another record.
func isEnd(r *audit.Record) bool { return r.Type == audit.TypeEnd && r.BeginSequence != 0 }

// saveBlocks writes the blocks that are not written yet.
func (c *commit) saveBlocks(ctx context.Context) error {
	l := c.blocks
	c.blocks = nil
	return c.t.insert(ctx, "INSERT INTO block (id, epoch, first, last, low, high, raw, chained, chain, tail, data)", l, "")
}

func (c *commit) row(r *audit.Record, begin, end place) { c.b.add(c.d.layout.fill(r, begin, end)) }

// finish writes what the jobs left behind.
func (c *commit) finish(ctx context.Context) error {
	if !c.wrote {
		return nil
	}
	if err := c.saveBlocks(ctx); err != nil {
		return err
	}
	if err := c.halves.save(ctx, c.t); err != nil {
		return err
	}
	if err := c.saveEpochs(ctx); err != nil {
		return err
	}
	if c.b.rows() > 0 {
		c.counters.Segment++
		if err := c.t.saveSegment(ctx, c.counters.Segment, c.b.finish()); err != nil {
			return err
		}
	}
	return c.t.saveCounters(ctx, c.counters)
}

// saveSegment writes a segment and its parts.
func (t *tx) saveSegment(ctx context.Context, id int64, s *segment) error {
	return t.saveParts(ctx, id, newStoredSegment(s))
}

// storedSegment is a segment as it is stored.
type storedSegment struct {
	segmentInfo

	parts map[string][]byte
}

func newStoredSegment(s *segment) *storedSegment {
	x := &storedSegment{parts: s.encode()}
	low, high := s.blocks()
	x.segmentInfo = segmentInfo{rows: len(s.time), shapes: len(s.shapes), buckets: bucketCount(len(s.names)),
		low: s.time[0], high: s.time[len(s.time)-1], blow: low, bhi: high, packed: len(s.time) < packRows}
	if x.packed {
		x.parts = map[string][]byte{partAll: packAll(x.parts)}
	} else {
		group(x.parts)
	}
	for name, raw := range x.parts {
		x.parts[name] = pack(raw)
		x.size += int64(len(x.parts[name]))
	}
	return x
}

func (t *tx) saveParts(ctx context.Context, id int64, x *storedSegment) error {
	_, err := t.exec(ctx, "INSERT INTO segment (id, rows, shapes, buckets, low, high, blow, bhigh, packed, size) VALUES (?,?,?,?,?,?,?,?,?,?)",
		id, x.rows, x.shapes, x.buckets, x.low, x.high, x.blow, x.bhi, toInt(x.packed), x.size)
	if err != nil {
		return err
	}
	l := make([][]any, 0, len(x.parts))
	for name, data := range x.parts {
		l = append(l, []any{id, name, data})
	}
	return t.insert(ctx, "INSERT INTO part (segment, name, data)", l, "")
}
