package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/attache-dev/attache/audit/chain"
)

// Retain removes what r does not keep, whole days of arrival at a time, oldest
// first, and returns what it took. The present day stays always; checkpoints,
// heads and document versions stay too.
func (d *DB) Retain(ctx context.Context, r Retention) ([]Removal, error) {
	var all []Removal
	for {
		day, reason, err := d.expired(ctx, r)
		if err != nil || reason == "" {
			return all, err
		}
		l, err := d.drop(ctx, day, reason)
		all = append(all, l...)
		if err != nil {
			return all, err
		}
	}
}

// expired returns the oldest day if it has to go, and why.
func (d *DB) expired(ctx context.Context, r Retention) (day int64, reason string, err error) {
	err = d.reading(ctx, func(ctx context.Context, t *tx) error {
		var oldest *int64
		if _, err := t.one(ctx, "SELECT min(id) FROM block", nil, &oldest); err != nil || oldest == nil {
			return err
		}
		day = dayOf(*oldest)
		now := d.o.Now().UnixMicro()
		end := (day + 1) * microsPerDay
		if end > now {
			return nil
		}
		if r.Keep > 0 && end <= now-r.Keep.Microseconds() {
			reason = fmt.Sprintf("older than %v", r.Keep)
			return nil
		}
		if r.MaxBytes <= 0 {
			return nil
		}
		size, err := t.size(ctx)
		if err == nil && size > r.MaxBytes {
			reason = fmt.Sprintf("the store had %d bytes, more than %d", size, r.MaxBytes)
		}
		return err
	})
	return day, reason, err
}

// size returns the bytes that the store takes, free pages of SQLite not
// counted.
func (t *tx) size(ctx context.Context) (int64, error) {
	var n int64
	q := "SELECT (SELECT page_count FROM pragma_page_count()) * (SELECT page_size FROM pragma_page_size()) - (SELECT freelist_count FROM pragma_freelist_count()) * (SELECT page_size FROM pragma_page_size())"
	if t.e.postgres {
		q = "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace WHERE s.nspname = current_schema() AND c.relkind = 'r'"
	}
	_, err := t.one(ctx, q, nil, &n)
	return n, err
}

// Size returns the bytes that the store takes on disk, without what SQLite will
// use again.
func (d *DB) Size(ctx context.Context) (int64, error) {
	var n int64
	err := d.reading(ctx, func(ctx context.Context, t *tx) error {
		var err error
		n, err = t.size(ctx)
		return err
	})
	return n, err
}

// drop removes a day.
func (d *DB) drop(ctx context.Context, day int64, reason string) ([]Removal, error) {
	var l []Removal
	err := d.engine.writing(ctx, func(t *tx) error {
		var err error
		if l, err = d.removals(ctx, t, day, reason); err != nil {
			return err
		}
		c, err := t.counters(ctx)
		if err != nil {
			return err
		}
		for _, r := range l {
			c.Removal++
			if _, err := t.exec(ctx, "INSERT INTO removal (number, epoch, first, last, chain, tail, time, reason) VALUES (?,?,?,?,?,?,?,?)",
				c.Removal, r.Epoch, int64(r.Sequence), int64(r.Last), r.Before[:], r.After[:], r.Time.UnixMicro(), r.Reason); err != nil { //nolint:gosec // at most 2^62
				return err
			}
		}
		if err := t.saveCounters(ctx, c); err != nil {
			return err
		}
		low, high := day<<dayBits, (day+1)<<dayBits
		for _, q := range []string{"DELETE FROM segment WHERE id >= ? AND id < ?", "DELETE FROM half WHERE block >= ? AND block < ?"} {
			if _, err := t.exec(ctx, q, low, high); err != nil {
				return err
			}
		}
		if err := t.waitBriefly(ctx); err != nil {
			return err
		}
		for table, column := range partitioned() {
			q, args := "DELETE FROM "+table+" WHERE "+column+" >= ? AND "+column+" < ?", []any{low, high}
			if t.e.postgres {
				q, args = "DROP TABLE IF EXISTS "+dayTable(table, day), nil
			}
			if _, err := t.exec(ctx, q, args...); err != nil {
				return inUse(err, day)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err // nothing was removed
	}
	return l, nil
}

// waitBriefly bounds how long PostgreSQL may wait for whoever reads a table that
// is to go: all who come later wait behind.
func (t *tx) waitBriefly(ctx context.Context) error {
	if !t.e.postgres {
		return nil
	}
	_, err := t.exec(ctx, "SET LOCAL lock_timeout = '2s'")
	return err
}

// inUse says what to do when a day could not be removed because it is read.
func inUse(err error, day int64) error {
	const lockNotAvailable = "55P03"
	if e := (*pgconn.PgError)(nil); errors.As(err, &e) && e.Code == lockNotAvailable {
		return fmt.Errorf("audit store: %s is still there: somebody reads it for long, such as a dump or a session left in a transaction (pg_stat_activity names them); it is tried again within %v: %w",
			micro(day*microsPerDay).UTC().Format(time.DateOnly), RetainEvery, err)
	}
	return err
}

// removals says which lines a day has: runs of each epoch.
func (d *DB) removals(ctx context.Context, t *tx, day int64, reason string) ([]Removal, error) {
	now := micro(d.o.Now().UnixMicro())
	var l []Removal
	err := t.each(ctx, func(scan func(...any) error) error {
		var epoch string
		var first, last uint64
		var head, tail []byte
		if err := scan(&epoch, &first, &last, &head, &tail); err != nil {
			return err
		}
		var x Removal
		if copy(x.Before[:], head) != len(x.Before) || copy(x.After[:], tail) != len(x.After) {
			return damaged("the chain of epoch %s", epoch)
		}
		if n := len(l) - 1; n >= 0 && l[n].Epoch == epoch && l[n].Last+1 == first {
			l[n].Last, l[n].After = last, x.After
			return nil
		}
		x.Ref, x.Last, x.Time, x.Reason = Ref{epoch, first}, last, now, reason
		l = append(l, x)
		return nil
	}, "SELECT e.name, b.first, b.last, b.chain, b.tail FROM block b JOIN epoch e ON e.id = b.epoch WHERE b.id >= ? AND b.id < ? ORDER BY e.name, b.first", day<<dayBits, (day+1)<<dayBits)
	return l, err
}

// Removed returns everything that retention ever took, oldest first.
func (d *DB) Removed(ctx context.Context) (l []Removal, err error) {
	err = d.reading(ctx, func(ctx context.Context, t *tx) error {
		l, err = t.removed(ctx)
		return err
	})
	return l, err
}

func (t *tx) removed(ctx context.Context) ([]Removal, error) {
	var l []Removal
	err := t.each(ctx, func(scan func(...any) error) error {
		var r Removal
		var head, tail []byte
		var at int64
		if err := scan(&r.Epoch, &r.Sequence, &r.Last, &head, &tail, &at, &r.Reason); err != nil {
			return err
		}
		r.Before, r.After, r.Time = hashOf(head), hashOf(tail), micro(at)
		l = append(l, r)
		return nil
	}, "SELECT epoch, first, last, chain, tail, time, reason FROM removal ORDER BY number")
	return l, err
}

func hashOf(b []byte) (h chain.Hash) {
	copy(h[:], b)
	return h
}

// RetainEvery is how often a process that keeps a store should call Retain.
const RetainEvery = time.Hour
