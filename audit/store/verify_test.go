package store_test

import (
	"database/sql"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
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
		"a segment is gone":            {[]string{"DELETE FROM segment", "DELETE FROM part"}, "the index does not have it", 390},
		"an open request is gone":      {[]string{"DELETE FROM half"}, "the index does not have it", 1},
		"an open request's text":       {[]string{"UPDATE half SET json = replace(CAST(json AS TEXT), 'ana', 'bob')"}, "another text", 1},
		"a part is of another one":     {[]string{"UPDATE part SET data = (SELECT data FROM part ORDER BY segment DESC LIMIT 1)"}, "", 2},
		"a part is damaged":            {[]string{"UPDATE part SET data = x'00112233445566'"}, "checksum", 1},
		"a segment's time":             {[]string{"UPDATE segment SET high = high + 1"}, "covers other records", 1},
		"an open request's time":       {[]string{"UPDATE half SET time = 9223372036854775807"}, "another time", 1},
		"an open request's owner":      {[]string{"UPDATE half SET producer = 'another'"}, "another producer", 1},
		"an open request's namespace":  {[]string{"UPDATE half SET namespaces = ' other '"}, "another namespace", 1},
		"an open request's place":      {[]string{"UPDATE half SET sequence = sequence + 7"}, "another place", 1},
		"a document's author":          {[]string{"UPDATE document SET body = CAST(replace(CAST(body AS TEXT), 'mallory', 'alice') AS BLOB)"}, "something else", 1},
		"a document is gone":           {[]string{"DELETE FROM document"}, "something else", 1},
		"a document that nobody wrote": {[]string{"INSERT INTO document SELECT number + 1, digest, kind, namespace, name, time, 'rec_x', body FROM document"}, "does not tell of it", 1},
		"a policy set's list":          {[]string{"DELETE FROM bundle"}, "lacks one", 1},
		"an impossible segment":        {[]string{"UPDATE segment SET shapes = -1"}, "", 0},
		"a block is damaged":           {[]string{"UPDATE block SET data = substr(data, 1, 20)"}, "block", 1},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a.db")
			d := open(t, "sqlite:"+path, store.Options{})
			fill(t, d, seed.Options{Records: 200, Agents: 4, BatchLines: 300})
			put(t, d, alice, newScribe(t, "e1").begin("rec_open"))
			c := newScribe(t, "e2")
			put(t, d, store.Producer{ID: "control", Kind: "control"}, c.line(audit.Record{Type: audit.TypeEvent, ID: "rec_change", Event: &audit.Event{Name: audit.EventPolicyChanged},
				Change: &audit.Change{Kind: "AccessPolicy", Namespace: "pay", Name: "p", Operation: "update", VersionAfter: "sha256:1", Text: "text", By: &audit.Principal{Username: "mallory"}}}),
				c.line(audit.Record{Type: audit.TypeEvent, ID: "rec_bundle", Event: &audit.Event{Name: audit.EventPolicyBundle, Fields: map[string]string{"version": "v1", "documents": "AccessPolicy pay/p 1 sha256:1"}}}))
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
			if x.least == 0 { // refused before it is looked at
				if err := d.VerifyIndex(t.Context(), func(store.Ref, string) bool { return true }); !errors.Is(err, store.ErrCorrupt) {
					t.Errorf("got %v", err)
				}
				return
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

// Who hides one record by the index alone, though every line is there and every
// part matches its checksum, is found.
func TestHiddenRecordIsFound(t *testing.T) {
	for how, want := range map[string]string{
		"ghost": "a begin that is not there", "nowhere": "ends nowhere", "order": "not in the order of time", "names": "", "texts": "another path",
	} {
		d := open(t, "sqlite:"+filepath.Join(t.TempDir(), "a.db"), store.Options{})
		s := newScribe(t, "e1")
		var l []audit.Line
		for range 100 {
			l = append(l, s.event("credential.minted", map[string]string{"handle": "cred_0123456789"}))
		}
		s.now = s.now.Add(24 * time.Hour)
		last := s.line(audit.Record{Type: audit.TypeEnd, ID: "rec_hidden", Request: &audit.Request{Host: "a.example.com", Method: "GET", Path: "/hidden"},
			Credential: &audit.Use{Handle: "cred_0123456789"}, Result: &audit.Result{Outcome: audit.OutcomeOK}})
		put(t, d, alice, append(l, last)...)
		indexIsWhole(t, d)
		_, id, _ := last.Head()
		if err := store.Tamper(t.Context(), d, id, how); err != nil {
			t.Fatal(err)
		}
		told := ""
		if err := d.VerifyIndex(t.Context(), func(_ store.Ref, text string) bool { told += text + "; "; return true }); err != nil {
			t.Fatal(err)
		}
		if told == "" || !strings.Contains(told, want) {
			t.Errorf("%s: told %q, want %q", how, told, want)
		}
	}
}
