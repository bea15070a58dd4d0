package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
)

// plain takes off what no text column takes: NUL and invalid UTF-8.
func plain(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", "\ufffd")
}

// Checkpoints returns the checkpoints from a number on, ascending, at most
// limit (0: all).
func (d *DB) Checkpoints(ctx context.Context, from uint64, limit int) ([]Checkpoint, error) {
	if limit <= 0 {
		limit = math.MaxInt32
	}
	return d.checkpoints(ctx, "WHERE number >= ? ORDER BY number LIMIT ?", int64(min(from, math.MaxInt64)), limit) //nolint:gosec // bounded
}

// LastCheckpoint returns the newest checkpoint; ErrNotFound if there is none.
func (d *DB) LastCheckpoint(ctx context.Context) (Checkpoint, error) {
	l, err := d.checkpoints(ctx, "ORDER BY number DESC LIMIT 1")
	if err == nil && len(l) == 0 {
		err = fmt.Errorf("checkpoint: %w", ErrNotFound)
	}
	if err != nil {
		return Checkpoint{}, err
	}
	return l[0], nil
}

func (d *DB) checkpoints(ctx context.Context, where string, args ...any) ([]Checkpoint, error) {
	var l []Checkpoint
	err := d.reading(ctx, func(ctx context.Context, t *tx) error {
		return t.each(ctx, func(scan func(...any) error) error {
			var c Checkpoint
			var at int64
			err := scan(&c.Number, &at, &c.Note, &c.Heads)
			c.Time = micro(at)
			l = append(l, c)
			return err
		}, "SELECT number, time, note, heads FROM checkpoint "+where, args...)
	})
	return l, err
}

// PutCheckpoint adds the next checkpoint. Its number must be one above the
// newest, or anything if there is none; it matches ErrForged otherwise, also if
// that number is taken by another note. The same note again is no error.
func (d *DB) PutCheckpoint(ctx context.Context, c Checkpoint) error {
	if c.Number > math.MaxInt64 {
		return fmt.Errorf("%w: checkpoint %d cannot be", ErrForged, c.Number)
	}
	if c.Heads == nil {
		c.Heads = []byte{}
	}
	return d.engine.writing(ctx, func(t *tx) error {
		var last int64
		var note []byte
		there, err := t.one(ctx, "SELECT number, note FROM checkpoint ORDER BY number DESC LIMIT 1", nil, &last, &note)
		if err != nil {
			return err
		}
		if there && int64(c.Number) != last+1 { //nolint:gosec // checked above
			if _, err := t.one(ctx, "SELECT note FROM checkpoint WHERE number = ?", []any{int64(c.Number)}, &note); err != nil { //nolint:gosec // checked above
				return err
			}
			if int64(c.Number) <= last && string(note) == string(c.Note) { //nolint:gosec // checked above
				return nil
			}
			return fmt.Errorf("%w: checkpoint %d cannot follow checkpoint %d", ErrForged, c.Number, last)
		}
		_, err = t.exec(ctx, "INSERT INTO checkpoint (number, time, note, heads) VALUES (?,?,?,?)", int64(c.Number), c.Time.UnixMicro(), c.Note, c.Heads) //nolint:gosec // checked above
		return err
	})
}

// stateName keeps the names of callers apart from our own.
func stateName(name string) string { return "state/" + plain(name) }

// State returns a value that a caller kept under a name (a cursor of a
// forwarder); nil if there is none.
func (d *DB) State(ctx context.Context, name string) ([]byte, error) {
	var v []byte
	err := d.reading(ctx, func(ctx context.Context, t *tx) error {
		_, err := t.one(ctx, "SELECT value FROM state WHERE name = ?", []any{stateName(name)}, &v)
		return err
	})
	return v, err
}

// PutState keeps a value under a name.
func (d *DB) PutState(ctx context.Context, name string, value []byte) error {
	if name == "" {
		return errors.New("audit store: a state needs a name")
	}
	if value == nil {
		value = []byte{}
	}
	return d.engine.writing(ctx, func(t *tx) error { return t.putState(ctx, stateName(name), value) })
}
