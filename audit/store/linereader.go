package store

import (
	"context"
	"errors"
	"slices"

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
	var x *readBlock
	err := l.t.each(ctx, func(scan func(...any) error) error {
		var err error
		x, err = l.d.readBlock(scan)
		return err
	}, oneBlock, id)
	if err != nil {
		return nil, err
	}
	if x == nil {
		return nil, errNoBlock
	}
	return l.own(ctx, x)
}

// oneBlock is what readBlock reads.
const oneBlock = "SELECT epoch, " + blockColumns + " FROM block WHERE id = ?"

type readBlock struct {
	*block

	of int64 // epoch
}

func (d *DB) readBlock(scan func(...any) error) (*readBlock, error) {
	x := &readBlock{}
	var err error
	x.block, err = d.scanBlock(func(dest ...any) error { return scan(append([]any{&x.of}, dest...)...) }, "")
	return x, err
}

// own keeps a block, with its epoch.
func (l *lineReader) own(ctx context.Context, x *readBlock) (*ownedBlock, error) {
	e, err := l.epoch(ctx, x.of)
	if err != nil {
		return nil, err
	}
	x.block.epoch = e.name
	if len(l.order) == keepBlocks {
		delete(l.blocks, l.order[0])
		l.order = l.order[1:]
	}
	b := &ownedBlock{x.block, e}
	l.blocks[x.id] = b
	l.order = append(l.order, x.id)
	return b, nil
}

// ahead reads blocks that are about to be asked for, several at once and beside
// the snapshot, as fetch does. What is not found there, block looks for.
func (l *lineReader) ahead(ctx context.Context, ids []int64) error {
	slices.Sort(ids)
	ids = slices.DeleteFunc(slices.Compact(ids), func(id int64) bool { return id == 0 || l.blocks[id] != nil })
	if len(ids) < 2 {
		return nil
	}
	got := make([]*readBlock, len(ids))
	err := each(ctx, min(parallel(), len(ids)), len(ids), func(ctx context.Context, _, i int) error {
		rows, err := l.t.beside(ctx, oneBlock, ids[i])
		if err != nil {
			return err
		}
		defer rows.Close() //nolint:errcheck // read to the end, or an error is returned
		if rows.Next() {
			if got[i], err = l.d.readBlock(rows.Scan); err != nil {
				return err
			}
		}
		return rows.Err()
	}, func(int) {})
	if err != nil {
		return err
	}
	for _, x := range got {
		if x == nil {
			continue
		}
		if _, err := l.own(ctx, x); err != nil {
			return err
		}
	}
	return nil
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
