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
		_, err := c.t.exec(ctx, "INSERT INTO block (id, epoch, first, last, low, high, raw, chained, chain, tail, data) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
			b.id, c.epochs[b.epoch].id, int64(b.first), int64(b.last()), b.low, b.hi, raw, toInt(b.chained), head[:], tail[:], x.data[i]) //nolint:gosec // at most 2^62
		if err != nil {
			return err
		}
	}
	waiting := map[string]map[uint64]bool{} // ends that wait for a begin, by its epoch
	for i := range x.records {
		r := &x.records[i]
		at := place{x.blocks[x.spots[i].block].id, x.spots[i].line}
		if err := c.document(ctx, r); err != nil {
			return err
		}
		switch {
		case r.Type == audit.TypeBegin:
			w, ok := waiting[r.Epoch]
			if !ok {
				var err error
				if w, err = c.t.waiting(ctx, r.Epoch); err != nil {
					return err
				}
				waiting[r.Epoch] = w
			}
			if err := c.begin(ctx, x.producer.ID, r, x.lines[i].JSON, at, w[r.Sequence]); err != nil {
				return err
			}
		case r.Type == audit.TypeEnd && r.BeginSequence != 0:
			if err := c.end(ctx, x.producer.ID, r, x.lines[i].JSON, at); err != nil {
				return err
			}
		default:
			c.row(r, place{}, at)
		}
	}
	return nil
}

func (c *commit) row(r *audit.Record, begin, end place) { c.b.add(c.d.layout.fill(r, begin, end)) }

// begin joins a begin with an end that came before it, or keeps it.
func (c *commit) begin(ctx context.Context, producer string, r *audit.Record, text []byte, at place, endWaits bool) error {
	key := halfKey{r.Epoch, r.Sequence}
	if endWaits {
		h, ok, err := c.t.half(ctx, key, true)
		if err != nil {
			return err
		}
		if ok && h.record.ID == r.ID && h.producer == producer {
			whole := audit.Join(*r, h.record)
			c.row(&whole, at, h.at)
			return c.t.dropHalf(ctx, key, true)
		}
	}
	c.begins[key] = half{producer, *r, text, at}
	return nil
}

// end joins an end with its begin. An end of another producer, or with another
// id, is no end of that begin: it stands by itself.
func (c *commit) end(ctx context.Context, producer string, r *audit.Record, text []byte, at place) error {
	key := halfKey{r.BeginEpoch, r.BeginSequence}
	if h, ok := c.begins[key]; ok {
		if h.record.ID != r.ID || h.producer != producer {
			c.row(r, place{}, at)
			return nil
		}
		delete(c.begins, key)
		whole := audit.Join(h.record, *r)
		c.row(&whole, h.at, at)
		return nil
	}
	h, ok, err := c.t.half(ctx, key, false)
	if err != nil {
		return err
	}
	if ok {
		if h.record.ID != r.ID || h.producer != producer {
			c.row(r, place{}, at)
			return nil
		}
		whole := audit.Join(h.record, *r)
		c.row(&whole, h.at, at)
		return c.t.dropHalf(ctx, key, false)
	}
	e, err := c.state(ctx, r.BeginEpoch)
	if err != nil {
		return err
	}
	if e != nil && (e.has(r.BeginSequence) || e.producer.ID != producer) {
		c.row(r, place{}, at) // it has an end already, or is no begin
		return nil
	}
	kept, err := c.t.keepHalf(ctx, key, true, &half{producer, *r, text, at})
	if err == nil && !kept {
		c.row(r, place{}, at) // another end waits
	}
	return err
}

// half reads a line whose other half is missing.
func (t *tx) half(ctx context.Context, k halfKey, ending bool) (half, bool, error) {
	var h half
	ok, err := t.one(ctx, "SELECT producer, block, line, json FROM half WHERE epoch = ? AND sequence = ? AND ending = ?",
		[]any{k.epoch, int64(k.seq), toInt(ending)}, &h.producer, &h.at.block, &h.at.line, &h.json) //nolint:gosec // at most 2^62
	if err != nil || !ok {
		return h, false, err
	}
	h.record, err = decodeLine(h.json)
	return h, err == nil, err
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

func (t *tx) keepHalf(ctx context.Context, k halfKey, ending bool, h *half) (bool, error) {
	n, err := t.exec(ctx, "INSERT INTO half (epoch, sequence, ending, producer, time, block, line, json) VALUES (?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
		k.epoch, int64(k.seq), toInt(ending), h.producer, h.record.Time.UnixMicro(), h.at.block, int(h.at.line), h.json) //nolint:gosec // at most 2^62
	return n == 1, err
}

func (t *tx) dropHalf(ctx context.Context, k halfKey, ending bool) error {
	_, err := t.exec(ctx, "DELETE FROM half WHERE epoch = ? AND sequence = ? AND ending = ?", k.epoch, int64(k.seq), toInt(ending)) //nolint:gosec // at most 2^62
	return err
}

// waiting returns the begins of an epoch whose ends have come already.
func (t *tx) waiting(ctx context.Context, epoch string) (map[uint64]bool, error) {
	m := map[uint64]bool{}
	err := t.each(ctx, func(scan func(...any) error) error {
		var n uint64
		err := scan(&n)
		m[n] = true
		return err
	}, "SELECT sequence FROM half WHERE epoch = ? AND ending = 1", epoch)
	return m, err
}

// finish writes what the jobs left behind.
func (c *commit) finish(ctx context.Context) error {
	if !c.wrote {
		return nil
	}
	for key, h := range c.begins {
		if _, err := c.t.keepHalf(ctx, key, false, &h); err != nil {
			return err
		}
	}
	for name := range c.touched {
		if err := c.t.saveEpoch(ctx, c.epochs[name]); err != nil {
			return err
		}
		c.epochs[name].fresh = false
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
	for name, data := range x.parts {
		if _, err := t.exec(ctx, "INSERT INTO part (segment, name, data) VALUES (?,?,?)", id, name, data); err != nil {
			return err
		}
	}
	return nil
}
