package checkpoint_test

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/attache-dev/attache/audit/checkpoint"
	"github.com/attache-dev/attache/audit/store"
)

// answers digests every line of a store, and what searches find in it.
func answers(t *testing.T, db *store.DB) (string, error) {
	t.Helper()
	h := sha256.New()
	heads, err := db.Heads(t.Context())
	if err != nil {
		return "", err
	}
	for _, e := range heads {
		for l, err := range db.Lines(t.Context(), e.Epoch, 0) {
			if err != nil {
				return "", err
			}
			h.Write(l.AppendTo(nil))
		}
	}
	q := store.Query{Limit: store.MaxLimit}
	for {
		p, err := db.Search(t.Context(), q)
		if err != nil {
			return "", err
		}
		for _, r := range p.Rows {
			fmt.Fprintln(h, r.ID, r.Time, r.Workload, r.Event)
		}
		if q.After = p.Next; q.After == "" {
			break
		}
	}
	f, err := db.Facets(t.Context(), store.Query{}, []string{"namespace", "workload", "event"}, 100)
	fmt.Fprintf(h, "%+v", f)
	return string(h.Sum(nil)), err
}

// A byte of the database's file is changed: verify finds it, or it changed no
// line and no answer.
func TestRandomBytesOfTheFile(t *testing.T) {
	w := newWorld(t)
	for range 3 {
		w.lines("a", 40)
		w.lines("b", 150)
		w.lines("c", 5)
		w.checkpoint()
	}
	want, err := answers(t, w.db)
	w.must(err)
	path := strings.TrimPrefix(w.url, "sqlite:")
	w.must(w.db.Close())            // its log goes into the file
	whole, err := os.ReadFile(path) //nolint:gosec // our own
	w.must(err)
	notes, err := checkpoint.ReadFiles(w.outside)
	w.must(err)

	turns := 60
	if os.Getenv("AUDIT_FULL") != "" {
		turns = 3000
	}
	random := rand.New(rand.NewPCG(3, 4)) //nolint:gosec // a repeatable choice
	found := 0
	for turn := range turns {
		changed := append([]byte(nil), whole...)
		at := random.IntN(len(changed))
		for turn%4 > 0 && changed[at] == 0 { // much of a small file is empty
			at = random.IntN(len(changed))
		}
		changed[at] ^= byte(1 + random.IntN(255)) //nolint:gosec // a byte
		file := filepath.Join(t.TempDir(), "audit.db")
		w.must(os.WriteFile(file, changed, 0o600))
		ok, err := func() (bool, error) {
			db, err := store.Open(t.Context(), "sqlite:"+file, store.Options{ReadOnly: true})
			if err != nil {
				return false, err
			}
			defer db.Close() //nolint:errcheck // read only
			r, err := checkpoint.Verify(t.Context(), db, checkpoint.Options{Keys: []note.Verifier{w.key}, Outside: notes, Index: db.VerifyIndex})
			if err != nil || !r.OK() {
				return false, err
			}
			got, err := answers(t, db)
			if err == nil && got != want {
				t.Errorf("turn %d: byte %d was changed, the store answers otherwise, and verify says that it is whole", turn, at)
			}
			return true, err
		}()
		if !ok || err != nil {
			found++
		}
	}
	if found < turns/4 { // freed pages are no answer's
		t.Errorf("%d of %d changes were found", found, turns)
	}
	t.Logf("%d of %d changes were found; the others changed nothing", found, turns)
}

func TestWholeStoreWithIndex(t *testing.T) {
	w := newWorld(t)
	w.lines("a", 300)
	w.checkpoint()
	notes, err := checkpoint.ReadFiles(w.outside)
	w.must(err)
	r, err := checkpoint.Verify(t.Context(), w.db, checkpoint.Options{Keys: []note.Verifier{w.key}, Outside: notes, Index: w.db.VerifyIndex})
	w.must(err)
	if !r.OK() || len(r.NotCovered) > 0 || r.Covered != 300 || r.Lines != 300 {
		t.Errorf("%s%+v", r.Text(time.Now()), r)
	}
}

// What is not covered is told of a checkpoint that there is.
func TestTextNamesTheCheckpoint(t *testing.T) {
	for want, r := range map[string]checkpoint.Report{
		"not covered: 2 lines came after that checkpoint\nnot covered: 1 epochs began after it\n":                   {Outside: 3, Newest: 3, Uncovered: 2, EpochsUncovered: 1},
		"not covered: 2 lines came after the store's own newest checkpoint\nnot covered: 1 epochs began after it\n": {Newest: 3, Uncovered: 2, EpochsUncovered: 1},
		"not covered: 2 lines are in no checkpoint\nnot covered: 1 epochs are in none\n":                            {Uncovered: 2, EpochsUncovered: 1},
	} {
		if text := r.Text(time.Now()); !strings.Contains(text, want) {
			t.Errorf("%s\nwant\n%s", text, want)
		}
	}
}
