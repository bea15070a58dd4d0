// Package ship carries the lines of a spool, or of the store, to a sink: an
// OpenTelemetry collector, a file, an object store, a syslog server. A line is
// delivered at least once and known by epoch and sequence, so that a receiver
// can tell a repetition from a forgery.
package ship

import (
	"context"
	"errors"

	"github.com/attache-dev/attache/audit"
)

// ErrRejected is matched by errors of [Sink.Send] that trying again would not
// cure: the receiver refuses these lines for what they are. The batch is set
// aside and the next one sent. Every other error is tried again.
var ErrRejected = errors.New("the receiver rejects these records")

// Bounds of a [Batch]. One line may exceed maxBytes by itself.
const (
	MaxLines = 512
	MaxBytes = 1 << 20 // of JSON
)

// Batch is lines of one epoch of one producer, in ascending order.
type Batch struct {
	// Producer is who wrote the lines: a pod's UID, the id of a laptop's spool,
	// control/POD for the control plane.
	Producer string
	Lines    []audit.Line
}

// Bytes is the size of the lines' JSON.
func (b Batch) Bytes() int64 {
	var n int64
	for _, l := range b.Lines {
		n += int64(len(l.JSON))
	}
	return n
}

// Sink is where lines go. It is used by one goroutine at a time.
type Sink interface {
	// Send delivers b and returns nil once the receiver has answered for it. An
	// error that matches ErrRejected is for good (as [RejectedError], for some of
	// the lines); after any other the same batch is sent again, so that a
	// receiver may get lines twice.
	Send(ctx context.Context, b Batch) error
	// Name is unique among the sinks of a process; it labels metrics and names
	// the file of the durable cursor: letters, digits, - and _.
	Name() string
}

// RejectedError says which lines of a batch the receiver refused for good; it
// took the others. It matches ErrRejected.
type RejectedError struct {
	Lines  []audit.Line // nil: some, but the receiver does not say which
	Count  int          // how many it refused
	Reason string       // the receiver's words
}

// Error says how many and why.
func (e *RejectedError) Error() string {
	return ErrRejected.Error() + ": " + e.Reason
}

// Is makes errors.Is(e, ErrRejected) hold.
func (e *RejectedError) Is(target error) bool { return target == ErrRejected }

// Cursor is a place in a [Source], in the source's own words.
type Cursor string

// Source gives lines in their order. It is used by one goroutine at a time.
type Source interface {
	// Next returns the lines after those that it returned last, and waits until
	// there are some or ctx ends. The first call after a start returns what
	// follows the cursor that was committed last. io.EOF says that there will
	// never be more.
	Next(ctx context.Context) (Batch, Cursor, error)
	// Commit makes durable that everything up to c has been delivered.
	Commit(c Cursor) error
}
