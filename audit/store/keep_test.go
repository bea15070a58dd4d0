package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/chain"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/test/audit/seed"
)

// clock is a store's clock that a test turns.
type clock struct{ t atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.t.Store(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *clock) now() time.Time         { return time.Unix(0, c.t.Load()).UTC() }
func (c *clock) add(d time.Duration)    { c.t.Add(int64(d)) }
func (c *clock) options() store.Options { return store.Options{Now: c.now} }

func TestRetention(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		c := newClock()
		d := open(t, url, c.options())
		s := newScribe(t, "e1")
		var l []audit.Line
		for day := range 5 {
			id := fmt.Sprintf("rec_%d", day)
			var batch []audit.Line
			if day > 0 { // ends the day after it began
				batch = append(batch, s.end(fmt.Sprintf("rec_%d", day-1), "e1", s.seq, "ok"))
			}
			batch = append(batch, s.begin(id))
			put(t, d, alice, batch...)
			l = append(l, batch...)
			c.add(24 * time.Hour)
		}
		if err := d.PutCheckpoint(t.Context(), store.Checkpoint{Number: 1, Note: []byte("n")}); err != nil {
			t.Fatal(err)
		}
		if got, err := d.Retain(t.Context(), store.Retention{Keep: 30 * 24 * time.Hour, MaxBytes: 1 << 40}); err != nil || len(got) != 0 {
			t.Errorf("removed %+v, %v", got, err)
		}
		got, err := d.Retain(t.Context(), store.Retention{Keep: 3 * 24 * time.Hour})
		if err != nil || len(got) != 2 || got[0].Ref != (store.Ref{Epoch: "e1", Sequence: 1}) || got[0].Last != 1 || got[1].Sequence != 2 || got[1].Last != 3 || got[1].After != l[2].Chain || !strings.Contains(got[1].Reason, "older") {
			t.Fatalf("removed %+v, %v", got, err)
		}
		all2, err := d.Removed(t.Context())
		if err != nil || len(all2) != 2 || all2[1] != got[1] {
			t.Errorf("says it removed %+v, %v", all2, err)
		}
		if left := stored(t, d, "e1"); !sameLines(left, l[3:]) {
			t.Errorf("%d lines left, want %d", len(left), len(l)-3)
		}
		h, err := d.Head(t.Context(), "e1")
		if err != nil || h.Last != 9 || h.Hash != l[8].Chain || h.First != 1 {
			t.Errorf("head %+v, %v", h, err)
		}
		// The end of a request whose begin is gone tells what it can.
		if got := outcomes(t, d, ""); got != "rec_1:end:ok rec_2:end:ok rec_3:end:ok rec_4:begin:open" {
			t.Errorf("left %s", got)
		}
		if ack := put(t, d, alice, l[0]); ack.Duplicates != 1 {
			t.Errorf("what was removed is taken anew: %+v", ack)
		}
		next := s.event("x.y", nil)
		put(t, d, alice, next) // the chain goes on
		if _, err := d.LastCheckpoint(t.Context()); err != nil {
			t.Error(err)
		}
		indexIsWhole(t, d)
		// By size: all but the present day.
		if _, err := d.Retain(t.Context(), store.Retention{MaxBytes: 1}); err != nil {
			t.Fatal(err)
		}
		if left := stored(t, d, "e1"); !sameLines(left, []audit.Line{next}) {
			t.Errorf("%d lines left, want those of today", len(left))
		}
		indexIsWhole(t, d)
	})
}

func TestCheckpoints(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		if _, err := d.LastCheckpoint(t.Context()); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("got %v", err)
		}
		at := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
		put := func(n uint64, note string) error {
			return d.PutCheckpoint(t.Context(), store.Checkpoint{Number: n, Time: at, Note: []byte(note), Heads: []byte("h" + note)})
		}
		for n := range uint64(5) {
			if err := put(n+10, fmt.Sprint(n)); err != nil {
				t.Fatal(err)
			}
		}
		if err := put(12, "2"); err != nil {
			t.Errorf("the same again: %v", err)
		}
		for _, n := range []uint64{9, 12, 14, 16, 1 << 63} {
			if err := put(n, "other"); !errors.Is(err, store.ErrForged) {
				t.Errorf("checkpoint %d: %v", n, err)
			}
		}
		l, err := d.Checkpoints(t.Context(), 13, 0)
		if err != nil || len(l) != 2 || l[0].Number != 13 || string(l[1].Note) != "4" || string(l[1].Heads) != "h4" || !l[0].Time.Equal(at) {
			t.Errorf("got %+v %v", l, err)
		}
		if l, err = d.Checkpoints(t.Context(), 0, 3); err != nil || len(l) != 3 || l[0].Number != 10 {
			t.Errorf("got %+v %v", l, err)
		}
	})
}

func TestState(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		if v, err := d.State(t.Context(), "counters"); v != nil || err != nil {
			t.Errorf("%q %v", v, err)
		}
		for _, v := range []string{"a", "", "\x00\xff"} {
			if err := d.PutState(t.Context(), "counters\x00", []byte(v)); err != nil {
				t.Fatal(err)
			}
			if got, err := d.State(t.Context(), "counters\x00"); err != nil || string(got) != v {
				t.Errorf("%q %v, want %q", got, err, v)
			}
		}
	})
}

func TestDocuments(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		s := newScribe(t, "c1")
		control := store.Producer{ID: "control/a", Kind: "control"}
		change := func(event, before, after, author, text string) audit.Line {
			r := audit.Record{Type: audit.TypeEvent, ID: fmt.Sprint("rec_", s.seq), Event: &audit.Event{Name: event},
				Change: &audit.Change{Kind: "AccessPolicy", Namespace: "one", Name: "p", Operation: "update", VersionBefore: before, VersionAfter: after, Text: text, Diff: "+" + text}}
			if author != "" {
				r.Change.By = &audit.Principal{Username: author, Groups: []string{"g"}}
			}
			return s.line(r)
		}
		put(t, d, control,
			change("change.requested", "", "d1", "ana", "one"), change("policy.changed", "", "d1", "", "one"),
			change("change.requested", "d1", "d2", "bob", "two"), change("policy.changed", "d1", "d2", "", "two"),
			s.line(audit.Record{Type: audit.TypeEvent, ID: "rec_bundle", Event: &audit.Event{Name: audit.EventPolicyBundle, Fields: map[string]string{"version": "v2",
				"documents": "AccessPolicy one/p 3 d2\n", "documents.2": "AttacheConfig x 1 d9"}}}))
		// A sidecar has no say in what policies were.
		m := newScribe(t, "m1")
		m.seq = 0
		put(t, d, alice, m.line(audit.Record{Type: audit.TypeEvent, ID: "rec_forged", Event: &audit.Event{Name: "policy.changed"},
			Change: &audit.Change{Kind: "AccessPolicy", Namespace: "one", Name: "p", Operation: "update", VersionAfter: "d2", Text: "forged"}}))
		l, err := d.Documents(t.Context(), store.DocumentQuery{Kind: "AccessPolicy", Namespace: "one", Name: "p"})
		if err != nil || len(l) != 4 || l[0].Digest != "d2" || l[0].Event != "policy.changed" || l[0].Author != "bob" || l[0].Text != "two" || l[0].Previous != "d1" || l[2].Author != "ana" {
			t.Errorf("got %+v %v", l, err)
		}
		l, err = d.Documents(t.Context(), store.DocumentQuery{Version: "v2"})
		if err != nil || len(l) != 2 || l[0].Text != "two" || l[0].Author != "bob" {
			t.Errorf("of v2: %+v %v", l, err)
		}
		if l, err = d.Documents(t.Context(), store.DocumentQuery{Version: "v3\x00"}); err != nil || len(l) != 0 {
			t.Errorf("of v3: %+v %v", l, err)
		}
		if l, err = d.Documents(t.Context(), store.DocumentQuery{Digest: "d1", Limit: 1}); err != nil || len(l) != 1 {
			t.Errorf("d1: %+v %v", l, err)
		}
	})
}

func TestImportSpool(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		dir := filepath.Join(t.TempDir(), "spool")
		d := open(t, url, store.Options{})
		write := func(n int, prefix string) {
			s, err := audit.Open(audit.Options{Dir: dir, SegmentBytes: 16 << 10, MaxBytes: 64 << 20})
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				r := &audit.Record{ID: fmt.Sprint("rec_", prefix, i), Owner: "ana", Request: &audit.Request{Host: "a.example.com"}}
				ticket, err := s.Begin(t.Context(), r)
				if err != nil {
					t.Fatal(err)
				}
				if i == n-1 {
					break // never ended: the next start says so
				}
				if err := ticket.End(&audit.Result{Outcome: audit.OutcomeOK}, nil, nil, nil); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		write(100, "a")
		first, err := d.ImportSpool(t.Context(), dir)
		if err != nil || first.Lines < 199 || first.Duplicates != 0 || first.Damaged != 0 {
			t.Fatalf("%+v %v", first, err)
		}
		again, err := d.ImportSpool(t.Context(), dir)
		if err != nil || again.Lines != 0 {
			t.Errorf("again: %+v %v", again, err)
		}
		write(50, "b")
		more, err := d.ImportSpool(t.Context(), dir)
		if err != nil || more.Lines < 99 || more.Lines > 110 || more.Duplicates != 0 {
			t.Errorf("more: %+v %v", more, err)
		}
		var want []string
		if err := audit.Read(dir, filter(t, "owner:ana"), func(r audit.Record) bool {
			want = append(want, r.ID+":"+r.Result.Outcome)
			return true
		}); err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		rows := all(t, d, store.Query{Filter: filter(t, "owner:ana"), Limit: 1000})
		for _, r := range rows {
			got[r.ID+":"+r.Result.Outcome] = true
		}
		for _, w := range want {
			if !got[w] {
				t.Errorf("%s is not in the store", w)
			}
		}
		if len(rows) != 150 || len(want) != 150 {
			t.Errorf("%d rows, %d records, want 150", len(rows), len(want))
		}
		if _, err := d.ImportSpool(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("no folder: %v", err)
		}
		indexIsWhole(t, d)
	})
}

// Lines that were altered on disk are left out by name, and the rest comes in.
func TestImportOfAnAlteredSpool(t *testing.T) {
	dir := t.TempDir()
	s := newScribe(t, "e1")
	var text []byte
	for i := range 300 {
		l := s.event("x.y", map[string]string{"n": fmt.Sprint(i)})
		switch i {
		case 50: // damaged
			at := len(text)
			text = l.AppendTo(text)
			text[at+40] ^= 1
			continue
		case 120: // changed by somebody who can compute a checksum
			l.JSON = []byte(strings.Replace(string(l.JSON), `"120"`, `"121"`, 1))
		case 200: // and chain
			l.JSON = []byte(strings.Replace(string(l.JSON), `"200"`, `"201"`, 1))
			l.Chain = chain.Next(chain.First("e1"), l.JSON)
		}
		text = l.AppendTo(text)
	}
	if err := os.WriteFile(filepath.Join(dir, "0000000001.jsonl"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	d := open(t, "sqlite:"+filepath.Join(t.TempDir(), "a.db"), store.Options{})
	x, err := d.ImportSpool(t.Context(), dir)
	if err != nil || x.Lines != 297 || x.Damaged != 3 || len(x.Problems) != 3 || !strings.Contains(strings.Join(x.Problems, "\n"), "line 121 of epoch e1") {
		t.Errorf("%+v %v", x, err)
	}
	h, err := d.Head(t.Context(), "e1")
	if err != nil || len(h.Gaps) != 3 || h.Gaps[0].From != 51 || h.Gaps[1].From != 121 || h.Gaps[2].From != 201 {
		t.Errorf("%+v %v", h, err)
	}
}

func TestManySegmentsAreMerged(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		c := newClock()
		d := open(t, url, c.options())
		f := seed.New(seed.Options{Records: size(5000), Agents: 25, BatchLines: 8})
		n := 0
		for b := f.Next(); b != nil; b = f.Next() {
			if n++; n%400 == 0 {
				c.add(24 * time.Hour)
			}
			put(t, d, b.Producer, b.Lines...)
		}
		if err := d.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		segments, err := d.Segments(t.Context())
		if err != nil || segments > 30 {
			t.Errorf("%d segments of %d batches on %d days: %v", segments, n, n/400+1, err)
		}
		indexIsWhole(t, d)
	})
}

// Long texts that are all different are not merged into one segment.
func TestLongTextsAreNotMerged(t *testing.T) {
	d := open(t, "sqlite:"+filepath.Join(t.TempDir(), "audit.db"), store.Options{QueryTimeout: time.Minute})
	s := newScribe(t, "e1")
	const each = 4100
	for range 10 { // 9.9 MB each: six are merged, a seventh is too much
		var l []audit.Line
		for range each {
			l = append(l, s.line(audit.Record{Type: audit.TypeEnd, ID: fmt.Sprintf("rec_%d", s.seq), Request: &audit.Request{Host: "a.example.com", Method: "GET",
				Path: fmt.Sprintf("/x/%d/%s", s.seq, strings.Repeat("0", 2400))}, Result: &audit.Result{Outcome: audit.OutcomeOK}}))
		}
		put(t, d, alice, l...)
	}
	if err := d.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := d.Segments(t.Context()); err != nil || n < 4 {
		t.Errorf("%d segments, %v", n, err)
	}
	f, err := d.Facets(t.Context(), store.Query{Filter: filter(t, "path:/x/*7/0*")}, []string{"host"}, 1)
	if err != nil || f.Total.Count != 10*each/10 {
		t.Errorf("%d match, %v", f.Total.Count, err)
	}
}

func TestReadOnly(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		if strings.HasPrefix(url, "sqlite:") {
			if _, err := store.Open(t.Context(), url, store.Options{ReadOnly: true}); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("no file: %v", err)
			}
		} else if _, err := store.Open(t.Context(), url, store.Options{ReadOnly: true}); err == nil || !strings.Contains(err.Error(), "version 0") {
			t.Errorf("no tables: %v", err)
		}
		d := open(t, url, store.Options{})
		s := newScribe(t, "e1")
		put(t, d, alice, s.event("x.y", nil))
		r := open(t, url, store.Options{ReadOnly: true})
		next := s.event("x.z", nil)
		_, err1 := r.Append(t.Context(), alice, []audit.Line{next})
		err2 := r.PutState(t.Context(), "a", nil)
		err3 := r.PutCheckpoint(t.Context(), store.Checkpoint{})
		for _, err := range []error{err1, err2, err3} {
			if !errors.Is(err, store.ErrReadOnly) {
				t.Errorf("got %v", err)
			}
		}
		put(t, d, alice, next)
		if got := outcomes(t, r, ""); got != "rec_e1_1:event rec_e1_2:event" {
			t.Errorf("the reader sees %s", got)
		}
	})
}

// A second process writes and reads the same store.
func TestTwoProcesses(t *testing.T) {
	if url := os.Getenv("ATTACHE_TEST_STORE"); url != "" {
		d := open(t, url, store.Options{})
		s := newScribe(t, "child")
		for i := range 100 {
			put(t, d, store.Producer{ID: "child"}, s.event("x.y", map[string]string{"n": fmt.Sprint(i)}))
		}
		return
	}
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		c := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestTwoProcesses$")
		c.Env = append(os.Environ(), "ATTACHE_TEST_STORE="+url)
		done := make(chan error, 1)
		go func() {
			out, err := c.CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			done <- err
		}()
		s := newScribe(t, "parent")
		for range 100 {
			put(t, d, alice, s.event("x.y", nil))
			if _, err := d.Search(t.Context(), store.Query{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := all(t, d, store.Query{}); len(got) != 200 {
			t.Errorf("%d records, want 200", len(got))
		}
		if n := len(stored(t, d, "child")); n != 100 {
			t.Errorf("%d lines of the other process", n)
		}
		indexIsWhole(t, d)
	})
}

func TestBadStores(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte(strings.Repeat("this is no database\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]string{
		"":                                   "must be sqlite:PATH",
		"mysql://u:secret@h/x":               "must be sqlite:PATH",
		"sqlite:":                            "names no file",
		"sqlite:" + text:                     "not a database",
		"sqlite:" + dir:                      "",
		"postgres://u:secret@/x?host=" + dir: "",
		"postgres://u:secret@%zz/":           "",
	} {
		for _, ro := range []bool{false, true} {
			d, err := store.Open(t.Context(), url, store.Options{ReadOnly: ro})
			if err == nil {
				t.Errorf("%s was opened", url)
				d.Close()
				continue
			}
			if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: %v, want %q", url, err, want)
			}
		}
	}
	if _, err := store.Open(t.Context(), "sqlite:"+text, store.Options{}); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("a text file: %v", err)
	}
}

func TestClose(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Append(t.Context(), alice, []audit.Line{newScribe(t, "e1").event("x", nil)}); err == nil {
			t.Error("a closed store takes lines")
		}
		if _, err := d.Search(t.Context(), store.Query{}); err == nil {
			t.Error("a closed store answers")
		}
	})
}

// A question reads large pages: a part is many of them.
func TestSQLiteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	open(t, "sqlite:"+path, store.Options{})
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for pragma, want := range map[string]string{"page_size": "16384", "journal_mode": "wal"} {
		var got string
		if err := db.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %s, want %s: %v", pragma, got, want, err)
		}
	}
}
