package collector

import (
	"context"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/audit/store"
)

// Stored is what a [Forward] reads: *store.DB.
type Stored interface {
	Batches(ctx context.Context, after int64) iter.Seq2[store.Batch, error]
	State(ctx context.Context, name string) ([]byte, error)
	PutState(ctx context.Context, name string, value []byte) error
}

// forwardEvery is how often the store is asked for more.
const forwardEvery = time.Second

// Forward is a ship.Source of all that the store takes, in the order in which
// it was committed. Its place is kept in the store, under the sink's name, so
// that another replica goes on there. It is used by one goroutine at a time.
type Forward struct {
	Store Stored
	Sink  string        // name
	Every time.Duration // default one second

	loaded bool
	after  int64 // batch that is behind us
	skip   int   // lines of the batch after it
	queue  []store.Batch
	every  time.Duration
}

// maxQueued bounds the batches that are read ahead.
const maxQueued = 64

func (f *Forward) state() string { return "forward/" + f.Sink }

// Next implements ship.Source.
func (f *Forward) Next(ctx context.Context) (ship.Batch, ship.Cursor, error) {
	if !f.loaded {
		if err := f.load(ctx); err != nil {
			return ship.Batch{}, "", err
		}
	}
	for len(f.queue) == 0 {
		if err := f.fill(ctx); err != nil {
			return ship.Batch{}, "", err
		}
		if len(f.queue) > 0 {
			break
		}
		select {
		case <-ctx.Done():
			return ship.Batch{}, "", ctx.Err()
		case <-time.After(f.every):
		}
	}
	b := f.queue[0]
	out := ship.Batch{Producer: b.Producer.ID}
	size := 0
	for _, l := range b.Lines[f.skip:] {
		if len(out.Lines) == ship.MaxLines || len(out.Lines) > 0 && size+len(l.JSON) > ship.MaxBytes {
			break
		}
		size += len(l.JSON)
		out.Lines = append(out.Lines, l)
	}
	f.skip += len(out.Lines)
	if f.skip == len(b.Lines) {
		f.queue, f.after, f.skip = f.queue[1:], b.ID, 0
	}
	if len(out.Lines) == 0 { // retention has been faster
		return f.Next(ctx)
	}
	return out, ship.Cursor(fmt.Sprintf("%d/%d", f.after, f.skip)), nil
}

func (f *Forward) fill(ctx context.Context) error {
	for b, err := range f.Store.Batches(ctx, f.after) {
		if err != nil {
			return fmt.Errorf("read the store: %w", err)
		}
		f.queue = append(f.queue, b)
		if len(f.queue) == maxQueued {
			break
		}
	}
	return nil
}

func (f *Forward) load(ctx context.Context) error {
	if f.every = f.Every; f.every <= 0 {
		f.every = forwardEvery
	}
	text, err := f.Store.State(ctx, f.state())
	if err != nil {
		return fmt.Errorf("read the place in the store: %w", err)
	}
	if len(text) > 0 {
		after, skip, _ := strings.Cut(string(text), "/")
		if f.after, err = strconv.ParseInt(after, 10, 64); err != nil {
			return fmt.Errorf("place in the store is %q: %w", text, err)
		}
		if f.skip, err = strconv.Atoi(skip); err != nil {
			return fmt.Errorf("place in the store is %q: %w", text, err)
		}
	}
	f.loaded = true
	// A batch of which a part was sent may be gone by retention, or shorter.
	if f.skip > 0 {
		if err := f.fill(ctx); err != nil {
			return err
		}
		if len(f.queue) > 0 && f.skip > len(f.queue[0].Lines) {
			f.skip = 0
		}
	}
	return nil
}

// Commit implements ship.Source.
func (f *Forward) Commit(c ship.Cursor) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return f.Store.PutState(ctx, f.state(), []byte(c))
}
