package store_test

import (
	"database/sql"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/test/audit/seed"
)

// Who changes only the index, to hide a record from searches, is found.
func TestIndexIsComparedWithLines(t *testing.T) {
	for name, x := range map[string]struct {
		change []string
		want   string
		least  int
	}{
		"a segment is gone":        {[]string{"DELETE FROM segment", "DELETE FROM part"}, "the index does not have it", 390},
		"an open request is gone":  {[]string{"DELETE FROM half"}, "the index does not have it", 1},
		"an open request's text":   {[]string{"UPDATE half SET json = replace(CAST(json AS TEXT), 'ana', 'bob')"}, "another text", 1},
		"a part is of another one": {[]string{"UPDATE part SET data = (SELECT data FROM part ORDER BY segment DESC LIMIT 1)"}, "", 2},
		"a part is damaged":        {[]string{"UPDATE part SET data = x'00112233445566'"}, "checksum", 1},
		"a segment's time":         {[]string{"UPDATE segment SET high = high + 1"}, "covers other records", 1},
		"a block is damaged":       {[]string{"UPDATE block SET data = substr(data, 1, 20)"}, "block", 1},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a.db")
			d := open(t, "sqlite:"+path, store.Options{})
			fill(t, d, seed.Options{Records: 200, Agents: 4, BatchLines: 300})
			put(t, d, alice, newScribe(t, "e1").begin("rec_open"))
			indexIsWhole(t, d)
			db, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(20000)")
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			for _, q := range x.change {
				if _, err := db.ExecContext(t.Context(), q); err != nil {
					t.Fatal(err)
				}
			}
			n := 0
			if err := d.VerifyIndex(t.Context(), func(_ store.Ref, text string) bool {
				if strings.Contains(text, x.want) {
					n++
				}
				return true
			}); err != nil {
				t.Fatal(err)
			}
			if n < x.least/2 || n == 0 {
				t.Errorf("%d are told, want %d", n, x.least)
			}
			stopped := 0
			if err := d.VerifyIndex(t.Context(), func(store.Ref, string) bool { stopped++; return false }); err != nil || stopped != 1 {
				t.Errorf("told %d times after it was stopped: %v", stopped, err)
			}
		})
	}
}

// A damaged store says so and does not answer wrongly.
func TestDamageIsSaid(t *testing.T) {
	for _, change := range []string{"UPDATE part SET data = substr(data, 1, length(data)/2)", "UPDATE block SET data = x'00'", "DELETE FROM block", "UPDATE epoch SET head = x'00'"} {
		path := filepath.Join(t.TempDir(), "a.db")
		d := open(t, "sqlite:"+path, store.Options{})
		fill(t, d, seed.Options{Records: 50, Agents: 2})
		db, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(20000)")
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.ExecContext(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		_, err1 := d.Search(t.Context(), store.Query{})
		_, err2 := d.Heads(t.Context())
		if !errors.Is(errors.Join(err1, err2), store.ErrCorrupt) {
			t.Errorf("%s: %v, %v", change, err1, err2)
		}
		var damage *store.DamageError
		for _, err := range d.Lines(t.Context(), seed.New(seed.Options{Records: 50, Agents: 2}).Next().Lines[0].Epoch, 1) {
			if errors.As(err, &damage) && damage.From == 0 {
				t.Errorf("%s: damage without a place: %v", change, err)
			}
		}
	}
}
