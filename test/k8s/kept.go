package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

// keptFolder is where the run leaves a copy of its records, for the journeys of
// make ui.
func (r *run) keptFolder() string { return filepath.Join(r.root, ".cache", "e2e", "records") }

// kept copies the record store, as a backup does: while the collector writes.
// The copy is a store of its own with all that the cases before made.
func kept(ctx context.Context, r *run) error {
	if _, err := r.auditReady(ctx); err != nil {
		return err
	}
	next := r.keptFolder() + ".next"
	if err := errors.Join(os.RemoveAll(next), os.MkdirAll(next, 0o755)); err != nil {
		return err
	}
	defer os.RemoveAll(next)
	file := filepath.Join(next, "records.db")
	db, err := sql.Open("sqlite", "file:"+filepath.Join(r.recordsFolder(), "records.db")+"?mode=ro&_pragma=busy_timeout(20000)")
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, "VACUUM INTO ?", file)
	if err := errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("copy the store: %w", err)
	}
	if err := whatJourneysAsk(ctx, file); err != nil {
		return fmt.Errorf("%w; run it with the cases records, denied, author and revocation", err)
	}
	// What the journeys leave beside it when they open it is not the cluster's.
	return errors.Join(os.RemoveAll(r.keptFolder()), os.Rename(next, r.keptFolder()))
}

// whatJourneysAsk says whether the copy has what test/ui looks for.
func whatJourneysAsk(ctx context.Context, file string) (err error) {
	db, err := store.Open(ctx, "sqlite:"+file, store.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	for query, want := range map[string]int{
		"path:/v1/records outcome:ok": 20, "path:/v1/denied verdict:deny method:DELETE": 1, "path:/v1/author verdict:deny": 1,
		"path:/v1/revoked outcome:ok": 1, "event:" + audit.EventRevokeOrdered: 1,
	} {
		f, err := audit.ParseFilter(query, time.Now())
		if err != nil {
			return err
		}
		page, err := db.Search(ctx, store.Query{Filter: f, Limit: want + 1})
		if err != nil {
			return err
		}
		if len(page.Rows) < want {
			return fmt.Errorf("the copy has %d records of %q, not %d", len(page.Rows), query, want)
		}
	}
	return nil
}
