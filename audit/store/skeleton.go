package store

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/chain"
)

// Hash is a value of an epoch's chain.
type Hash = chain.Hash

var errTodo = errors.New("audit store: not built yet")

// DB is an audit store. It is safe for concurrent use.
type DB struct{ o Options }

// Open opens the store at url, sqlite:PATH or postgres://…, and makes or
// migrates its tables unless Options.ReadOnly.
func Open(ctx context.Context, url string, o Options) (*DB, error) { return nil, errTodo }

// Close waits for appends that were begun and closes the store.
func (d *DB) Close() error { return nil }

// Append stores lines of one producer, ascending. It returns when they are
// durable. It is idempotent by epoch and sequence.
func (d *DB) Append(ctx context.Context, p Producer, lines []audit.Line) (Ack, error) {
	return Ack{}, errTodo
}

// Search returns a page of the records that q matches.
func (d *DB) Search(ctx context.Context, q Query) (Page, error) { return Page{}, errTodo }

// Tail returns the records that q matches and that were finished after a place
// (Row.Cursor of Tail, or End), in the order in which they arrived. Page.Next
// is never empty: call again with it.
func (d *DB) Tail(ctx context.Context, q Query, after Cursor) (Page, error) { return Page{}, errTodo }

// End is where Tail continues with what comes from now on.
func (d *DB) End(ctx context.Context) (Cursor, error) { return "", errTodo }

// Facets counts what q matches, by the values of each key; keys nil means
// DefaultFacets. At most limit values a key; 0 means 10.
func (d *DB) Facets(ctx context.Context, q Query, keys []string, limit int) (Facets, error) {
	return Facets{}, errTodo
}

// Histogram counts what q matches in buckets of the given width, aligned to
// UTC, oldest first, empty ones included. Without since: in the filter it
// begins with the oldest record. At most 2000 buckets: width grows if need be.
func (d *DB) Histogram(ctx context.Context, q Query, width time.Duration) ([]Bucket, error) {
	return nil, errTodo
}

// Groups counts what q matches by combinations of the values of keys, most
// frequent first. At most limit groups; 0 means 1000.
func (d *DB) Groups(ctx context.Context, q Query, keys []string, limit int) ([]Group, error) {
	return nil, errTodo
}

// FirstSeen is Groups ordered by when a combination was first seen, newest
// first, over all of the store: the filter's since: chooses combinations that
// were never seen before it.
func (d *DB) FirstSeen(ctx context.Context, q Query, keys []string, limit int) ([]Group, error) {
	return nil, errTodo
}

// Get returns one record by its id, joined, and the lines that it was made of.
func (d *DB) Get(ctx context.Context, id string) (Row, []Ref, error) { return Row{}, nil, errTodo }

// Related returns what goes by a name: a record id, a credential handle, a task
// id, a run id, a trace id or a person (subject or email), oldest first.
func (d *DB) Related(ctx context.Context, name string, q Query) (Page, error) {
	return Page{}, errTodo
}

// Heads returns the state of every epoch, in the order of their names.
func (d *DB) Heads(ctx context.Context) ([]Head, error) { return nil, errTodo }

// Producers returns the newest epoch of each producer.
func (d *DB) Producers(ctx context.Context) ([]Head, error) { return nil, errTodo }

// Lines yields the lines of an epoch from a sequence on, ascending, as they
// were written. A missing line is left out: sequences show it.
func (d *DB) Lines(ctx context.Context, epoch string, from uint64) iter.Seq2[audit.Line, error] {
	return func(yield func(audit.Line, error) bool) { yield(audit.Line{}, errTodo) }
}

// Batches yields what was stored after the batch with that id, in the order of
// commits; it ends with the newest.
func (d *DB) Batches(ctx context.Context, after int64) iter.Seq2[Batch, error] {
	return func(yield func(Batch, error) bool) { yield(Batch{}, errTodo) }
}

// Checkpoints returns the checkpoints from a number on, ascending, at most
// limit (0: all).
func (d *DB) Checkpoints(ctx context.Context, from uint64, limit int) ([]Checkpoint, error) {
	return nil, errTodo
}

// LastCheckpoint returns the newest checkpoint; ErrNotFound if there is none.
func (d *DB) LastCheckpoint(ctx context.Context) (Checkpoint, error) { return Checkpoint{}, errTodo }

// PutCheckpoint adds the next checkpoint. Its number must be one above the
// newest; ErrForged if that number is taken by another note.
func (d *DB) PutCheckpoint(ctx context.Context, c Checkpoint) error { return errTodo }

// Documents returns document versions, newest first.
func (d *DB) Documents(ctx context.Context, q DocumentQuery) ([]DocumentVersion, error) {
	return nil, errTodo
}

// Retain removes what r does not keep, whole days at a time, and returns what
// it took. Checkpoints, heads and documents stay.
func (d *DB) Retain(ctx context.Context, r Retention) ([]Removal, error) { return nil, errTodo }

// Removed returns everything that retention ever took.
func (d *DB) Removed(ctx context.Context) ([]Removal, error) { return nil, errTodo }

// State returns a value that a caller kept under a name (a cursor of a
// forwarder); nil if there is none.
func (d *DB) State(ctx context.Context, name string) ([]byte, error) { return nil, errTodo }

// PutState keeps a value under a name.
func (d *DB) PutState(ctx context.Context, name string, value []byte) error { return errTodo }

// ImportSpool stores what is new in a spool's folder since the last import.
func (d *DB) ImportSpool(ctx context.Context, dir string) (Imported, error) {
	return Imported{}, errTodo
}
