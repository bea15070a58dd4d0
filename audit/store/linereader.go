package store

import (
	"context"
	"errors"

	"github.com/attache-dev/attache/audit"
)

// lineReader reads lines by their place and keeps the blocks that it unpacked,
// since records of one time share them.
type lineReader struct {
	d      *DB
	t      *tx
	blocks map[int64]*ownedBlock
	order  []int64
	epochs map[int64]*epochState
	alive  map[int64]bool
}

type ownedBlock struct {
	*block

	epoch *epochState
}

// keepBlocks bounds the unpacked blocks of one question.
const keepBlocks = 256

func (d *DB) newLineReader(t *tx) *lineReader {
	return &lineReader{d: d, t: t, blocks: map[int64]*ownedBlock{}, epochs: map[int64]*epochState{}, alive: map[int64]bool{}}
}

func (l *lineReader) block(ctx context.Context, id int64) (*ownedBlock, error) {
	if b := l.blocks[id]; b != nil {
		return b, nil
	}
	b := &ownedBlock{}
	var epoch int64
	err := l.t.each(ctx, func(scan func(...any) error) error {
		var err error
		b.block, err = l.d.scanBlock(func(dest ...any) error { return scan(append([]any{&epoch}, dest...)...) }, "")
		return err
	}, "SELECT epoch, "+blockColumns+" FROM block WHERE id = ?", id)
	if err != nil {
		return nil, err
	}
	if b.block == nil {
		return nil, errNoBlock
	}
	if b.epoch, err = l.epoch(ctx, epoch); err != nil {
		return nil, err
	}
	b.block.epoch = b.epoch.name
	if len(l.order) == keepBlocks {
		delete(l.blocks, l.order[0])
		l.order = l.order[1:]
	}
	l.blocks[id] = b
	l.order = append(l.order, id)
	return b, nil
}

func (l *lineReader) epoch(ctx context.Context, id int64) (*epochState, error) {
	if e := l.epochs[id]; e != nil {
		return e, nil
	}
	e, err := l.t.epochByID(ctx, id)
	if err == nil {
		l.epochs[id] = e
	}
	return e, err
}

// record reads the line at a place.
func (l *lineReader) record(ctx context.Context, p place) (audit.Record, *ownedBlock, error) {
	b, err := l.block(ctx, p.block)
	if err != nil {
		return audit.Record{}, nil, err
	}
	if int(p.line) >= len(b.lines) {
		return audit.Record{}, nil, damaged("block %d has no line %d", p.block, p.line)
	}
	r, err := decodeLine(b.lines[p.line])
	return r, b, err
}

// row reads a record of one or two lines.
func (l *lineReader) row(ctx context.Context, begin, end place) (Row, error) {
	if end.block == 0 {
		r, b, err := l.record(ctx, begin)
		if err != nil {
			return Row{}, lost(err, begin)
		}
		open, err := l.open(ctx, b.epoch)
		if err != nil {
			return Row{}, err
		}
		r.Result = &audit.Result{Outcome: open}
		return Row{Record: r, Producer: b.epoch.producer.ID}, nil
	}
	r, b, err := l.record(ctx, end)
	if err != nil {
		return Row{}, lost(err, end)
	}
	if begin.block != 0 {
		first, _, err := l.record(ctx, begin)
		switch {
		case errors.Is(err, errNoBlock): // retention took it: the end tells what it can
		case err != nil:
			return Row{}, err
		default:
			r = audit.Join(first, r)
		}
	}
	return Row{Record: r, Producer: b.epoch.producer.ID}, nil
}

func lost(err error, p place) error {
	if errors.Is(err, errNoBlock) {
		return damaged("block %d is not there", p.block)
	}
	return err
}

// open returns the outcome of a request without an end: open while its producer
// may still write it, unknown otherwise.
func (l *lineReader) open(ctx context.Context, e *epochState) (string, error) {
	alive, ok := l.alive[e.id]
	if !ok {
		var newer int
		_, err := l.t.one(ctx, "SELECT count(*) FROM epoch WHERE producer = ? AND opened > ?", []any{e.producer.ID, e.opened}, &newer)
		if err != nil {
			return "", err
		}
		alive = newer == 0 && !e.closed
		l.alive[e.id] = alive
	}
	if alive {
		return audit.OutcomeOpen, nil
	}
	return audit.OutcomeUnknown, nil
}

// maxHalves and maxHalvesBytes bound the requests without an end that a question
// looks at; the newest count. The bytes are those of JSON: lines of 1 MiB, which
// no spool of ours writes, must not fill the memory.
const (
	maxHalves      = 20_000
	maxHalvesBytes = 32 << 20
)

// halves returns a view of the lines whose other half has not come; nil if
// there are none in that time. If there are more than may be looked at, those that
// came last are there, and cut is the newest microsecond of one that is not.
func (d *DB) halves(ctx context.Context, t *tx, low, high int64) (v *view, cut *int64, err error) {
	type line struct {
		epoch  string
		ending bool
		at     place
		json   []byte
	}
	var l []line
	size := 0
	err = t.each(ctx, func(scan func(...any) error) error {
		if len(l) == maxHalves {
			return errEnough
		}
		var x line
		var ending int
		err := scan(&x.epoch, &ending, &x.at.block, &x.at.line, &x.json)
		x.ending = ending != 0
		if size += len(x.json); err == nil && size > maxHalvesBytes {
			return errEnough
		}
		l = append(l, x)
		return err
	}, "SELECT epoch, ending, block, line, json FROM half WHERE time >= ? AND time < ? ORDER BY block DESC, line DESC LIMIT ?", low, high, maxHalves+1)
	if errors.Is(err, errEnough) && len(l) > 0 {
		at := l[len(l)-1].at
		cut = new(int64)
		_, err = t.one(ctx, "SELECT time FROM half WHERE time >= ? AND time < ? AND (block < ? OR block = ? AND line < ?) ORDER BY time DESC LIMIT 1", []any{low, high, at.block, at.block, int(at.line)}, cut)
	}
	if err != nil || len(l) == 0 {
		return nil, nil, err
	}
	reader := d.newLineReader(t)
	states := map[string]*epochState{}
	b := newBuilder(&d.layout)
	for _, x := range l {
		r, err := decodeLine(x.json)
		if err != nil {
			return nil, nil, err
		}
		if x.ending {
			b.add(d.layout.fill(&r, place{}, x.at))
			continue
		}
		e := states[x.epoch]
		if e == nil {
			if e, err = t.epoch(ctx, x.epoch); err != nil {
				return nil, nil, err
			}
			if e == nil {
				return nil, nil, damaged("epoch %s is not there", x.epoch)
			}
			states[x.epoch] = e
		}
		open, err := reader.open(ctx, e)
		if err != nil {
			return nil, nil, err
		}
		r.Result = &audit.Result{Outcome: open}
		b.add(d.layout.fill(&r, x.at, place{}))
	}
	return memoryView(b.finish()), cut, nil
}
