package store_test

import (
	"context"
	"database/sql"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

// Who reads for long keeps nobody from opening the store, nor from the first
// commit of a day.
func TestLongReaderStopsNobody(t *testing.T) {
	startPostgres(t)
	url := emptyPostgres(t)
	c := newClock()
	d := open(t, url, c.options())
	s := newScribe(t, "e1")
	put(t, d, alice, s.event("task.opened", nil))
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback() //nolint:errcheck // it only reads
	for _, table := range []string{"block", "part"} {
		var n int
		if err := tx.QueryRowContext(t.Context(), "SELECT count(*) FROM "+table).Scan(&n); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	other, err := store.Open(ctx, url, c.options())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close() //nolint:errcheck // the end
	c.add(24 * time.Hour)
	if _, err := other.Append(ctx, alice, []audit.Line{s.event("task.opened", nil)}); err != nil {
		t.Fatal(err)
	}
	// Retention gives way, and whoever asks something then need not wait either.
	gone, err := other.Retain(ctx, store.Retention{Keep: time.Second})
	if err == nil || len(gone) > 0 || !strings.Contains(err.Error(), "2026-03-01") {
		t.Errorf("retention removed %d, %v", len(gone), err)
	}
	if _, err := other.Append(ctx, alice, []audit.Line{s.event("task.opened", nil)}); err != nil {
		t.Fatal(err)
	}
	if l := all(t, other, store.Query{Filter: filter(t, "event:task.opened")}); len(l) != 3 {
		t.Errorf("%d records are left, want all 3", len(l))
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if gone, err = other.Retain(ctx, store.Retention{Keep: time.Second}); err != nil || len(gone) != 1 {
		t.Errorf("retention removed %d, %v", len(gone), err)
	}
}
