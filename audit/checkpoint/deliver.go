package checkpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"

	"github.com/attache-dev/attache/audit/chain"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/internal/replace"
)

// delivery is what one sink has had.
type delivery struct {
	sink Sink
	next uint64 // the number to deliver; 0: not read yet
	last atomic.Uint64
}

func (d *delivery) key() string { return "checkpoint.sink." + d.sink.Name() }

// deliver sends what the sink has not had, oldest first. Where it stopped is
// kept in the store: a sink that was away for a day gets every checkpoint.
func (d *delivery) deliver(ctx context.Context, db *store.DB) error {
	if d.next == 0 {
		b, err := db.State(ctx, d.key())
		if err != nil {
			return fmt.Errorf("read what the sink has had: %w", err)
		}
		n, err := strconv.ParseUint(string(b), 10, 64)
		if err != nil && len(b) > 0 {
			return fmt.Errorf("what the sink has had: %w", err)
		}
		d.next = n + 1
		d.last.Store(n)
	}
	had := d.next
	err := eachCheckpoint(ctx, db, d.next, func(c store.Checkpoint) error {
		p, err := chain.ParseUnverified(c.Note)
		if err != nil {
			return err
		}
		if err := d.sink.Put(ctx, Published{p.Origin, c.Number, c.Time, c.Note, c.Heads}); err != nil {
			return fmt.Errorf("give it to %s: %w", d.sink.Name(), err)
		}
		d.next = c.Number + 1
		d.last.Store(c.Number)
		return nil
	})
	if d.next != had {
		if e := db.PutState(ctx, d.key(), []byte(strconv.FormatUint(d.next-1, 10))); e != nil {
			err = errors.Join(err, fmt.Errorf("keep what the sink has had: %w", e))
		}
	}
	return err
}

// Directory is a Sink of files: NUMBER.checkpoint, NUMBER.leaves, and latest,
// a copy of the newest. It protects only where the folder is out of the control
// plane's reach afterwards, such as a write-once mount.
type Directory struct{ Path string }

// Name implements Sink.
func (d Directory) Name() string { return "directory:" + d.Path }

// Put implements Sink. A file that is there with another content is an error:
// a number has one checkpoint.
func (d Directory) Put(_ context.Context, p Published) error {
	name := fmt.Sprintf("%012d", p.Number)
	if err := once(filepath.Join(d.Path, name+".leaves"), p.Leaves); err != nil {
		return err
	}
	if err := once(filepath.Join(d.Path, name+".checkpoint"), p.Note); err != nil {
		return err
	}
	return keep(filepath.Join(d.Path, "latest"), p.Note)
}

// once writes a file that must not exist, or exist with that content. What could
// not be written and synced is removed: a second sync of the same pages may
// succeed without having written them.
func once(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444) //nolint:gosec // public
	if errors.Is(err, os.ErrExist) {
		had, err := os.ReadFile(path) //nolint:gosec // the operator's folder
		if err != nil {
			return fmt.Errorf("read checkpoint: %w", err)
		}
		if bytes.Equal(had, content) {
			return last(path)
		}
		if len(had) < len(content) && bytes.HasPrefix(content, had) { // cut short by a crash
			return keep(path, content)
		}
		return fmt.Errorf("%s is there with another content: a checkpoint was made twice, or the store was rolled back", path)
	}
	if err != nil {
		return fmt.Errorf("write checkpoint: %w", err)
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write checkpoint: %w", errors.Join(err, os.Remove(path)))
	}
	return nil
}

// last makes a file durable that may be there by a program that was killed before
// it did.
func last(path string) error {
	f, err := os.Open(path) //nolint:gosec // the operator's folder
	if err != nil {
		return fmt.Errorf("sync checkpoint: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close(), replace.Folder(filepath.Dir(path))); err != nil {
		return fmt.Errorf("sync checkpoint: %w", err)
	}
	return nil
}

// keep replaces a file that everybody may read. What it says has been given away
// once it returns: a power failure must not bring the old one back.
func keep(path string, content []byte) error {
	if err := replace.File(path, content, replace.How{Mode: 0o444}); err != nil {
		return fmt.Errorf("write checkpoint: %w", err)
	}
	return nil
}
