package store

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/attache-dev/attache/audit"
)

const blockColumns = "id, first, last, low, high, chained, data"

// scanBlock reads a row of blockColumns.
func (d *DB) scanBlock(scan func(...any) error, epoch string) (*block, error) {
	b := &block{epoch: epoch}
	var chained int
	var data []byte
	if err := scan(&b.id, &b.first, &b.until, &b.low, &b.hi, &chained, &data); err != nil {
		return nil, err
	}
	b.chained = chained != 0
	return b, d.codec.unpack(b, data)
}

// DamageError says which lines of an epoch cannot be read; it matches
// ErrCorrupt.
type DamageError struct {
	Epoch    string
	From, To uint64
	Err      error
}

// Error implements error.
func (e *DamageError) Error() string {
	return fmt.Sprintf("lines %d to %d of epoch %s: %v", e.From, e.To, e.Epoch, e.Err)
}

// Unwrap returns the cause.
func (e *DamageError) Unwrap() error { return e.Err }

// errEnough ends a reading that the caller has had enough of.
var errEnough = errors.New("enough")

// eachLine calls fn with the stored lines from and to an epoch's sequence.
func (d *DB) eachLine(ctx context.Context, t *tx, id int64, epoch string, from, to uint64, fn func(audit.Line) error) error {
	return t.each(ctx, func(scan func(...any) error) error {
		b, err := d.scanBlock(scan, epoch)
		if err != nil {
			return err
		}
		for _, l := range b.all() {
			if l.Sequence < from || l.Sequence > to {
				continue
			}
			if err := fn(l); err != nil {
				return err
			}
		}
		return nil
	}, "SELECT "+blockColumns+" FROM block WHERE epoch = ? AND first <= ? AND last >= ? ORDER BY last", id, int64(min(to, 1<<62)), int64(min(from, 1<<62))) //nolint:gosec // bounded
}

// pageBlocks is how many blocks one transaction reads of a long walk: a reader
// that takes its time must not keep SQLite from reclaiming its log.
const pageBlocks = 64

// Lines yields the lines of an epoch from a sequence on, ascending, as they
// were written. A missing line is left out: sequences show it. Lines that are
// damaged beyond reading are one *DamageError, behind which it goes on.
func (d *DB) Lines(ctx context.Context, epoch string, from uint64) iter.Seq2[audit.Line, error] {
	return func(yield func(audit.Line, error) bool) {
		var id int64
		next := min(from, 1<<62)
		for {
			var page []*block
			damage := map[*block]error{}
			err := d.reading(ctx, func(ctx context.Context, t *tx) error {
				e, err := t.epoch(ctx, plain(epoch))
				if err != nil {
					return err
				}
				if e == nil {
					return fmt.Errorf("epoch %s: %w", clip(epoch), ErrNotFound)
				}
				id = e.id
				return t.each(ctx, func(scan func(...any) error) error {
					b, err := d.scanBlock(scan, epoch)
					if b != nil && errors.Is(err, ErrCorrupt) {
						damage[b], err = err, nil
					}
					page = append(page, b)
					return err
				}, "SELECT "+blockColumns+" FROM block WHERE epoch = ? AND last >= ? ORDER BY last LIMIT ?", id, int64(next), pageBlocks) //nolint:gosec // bounded
			})
			if err != nil {
				yield(audit.Line{}, err)
				return
			}
			for _, b := range page {
				if err := damage[b]; err != nil {
					if !yield(audit.Line{}, &DamageError{epoch, max(b.first, next), b.until, err}) {
						return
					}
					next = max(b.until+1, next+1)
					continue
				}
				for _, l := range b.all() {
					if l.Sequence >= next && !yield(l, nil) {
						return
					}
				}
				next = b.last() + 1
			}
			if len(page) < pageBlocks {
				return
			}
		}
	}
}

// Batches yields what was stored after the batch with that id, in the order of
// commits; it ends with the newest.
func (d *DB) Batches(ctx context.Context, after int64) iter.Seq2[Batch, error] {
	return func(yield func(Batch, error) bool) {
		for {
			var page []Batch
			err := d.reading(ctx, func(ctx context.Context, t *tx) error {
				var err error
				page, err = d.batches(ctx, t, after)
				return err
			})
			if err != nil {
				yield(Batch{}, err)
				return
			}
			for _, b := range page {
				if !yield(b, nil) {
					return
				}
				after = b.ID
			}
			if len(page) < pageBlocks {
				return
			}
		}
	}
}

func (d *DB) batches(ctx context.Context, t *tx, after int64) ([]Batch, error) {
	type owned struct {
		*block
		epoch int64
	}
	var l []owned
	err := t.each(ctx, func(scan func(...any) error) error {
		var epoch int64
		b, err := d.scanBlock(func(dest ...any) error { return scan(append([]any{&epoch}, dest...)...) }, "")
		l = append(l, owned{b, epoch})
		return err
	}, "SELECT epoch, "+blockColumns+" FROM block WHERE id > ? ORDER BY id LIMIT ?", after, pageBlocks)
	if err != nil {
		return nil, err
	}
	states := map[int64]*epochState{}
	out := make([]Batch, len(l))
	for i, b := range l {
		e := states[b.epoch]
		if e == nil {
			if e, err = t.epochByID(ctx, b.epoch); err != nil {
				return nil, err
			}
			states[b.epoch] = e
		}
		b.block.epoch = e.name
		out[i] = Batch{ID: b.id, Producer: e.producer, Lines: b.all()}
	}
	return out, nil
}

func (t *tx) epochByID(ctx context.Context, id int64) (*epochState, error) {
	e := &epochState{}
	found := false
	err := t.each(ctx, func(scan func(...any) error) error {
		found = true
		return e.scan(scan)
	}, "SELECT "+epochColumns+" FROM epoch WHERE id = ?", id)
	if err == nil && !found {
		err = damaged("epoch number %d is not there", id)
	}
	return e, err
}
