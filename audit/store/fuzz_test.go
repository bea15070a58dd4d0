package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/chain"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/test/audit/seed"
)

// FuzzQuery: any text is a mistake with a place, or gets the same answer from
// the store as from the filter itself.
func FuzzQuery(f *testing.F) {
	for _, q := range queries() {
		f.Add(q)
	}
	for _, q := range []string{`path:"*' OR 1=1 --*"`, `owner:"a\"`, "-:", "a:b", "since:", "host:%_", "status:xxx", "id:\x00", "label:*=*,-", "*:*", "path:**", "\xff:\xfe", "owner:ANA,*", "namespace:*-0*"} {
		f.Add(q)
	}
	var d *store.DB
	var want []audit.Record
	var once sync.Once
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, q string) {
		once.Do(func() {
			var err error
			if d, err = store.Open(context.Background(), "sqlite:"+filepath.Join(dir, "a.db"), store.Options{}); err != nil {
				t.Fatal(err)
			}
			want = fill(t, d, seed.Options{Records: 400, Agents: 8, BatchLines: 50})
		})
		x, err := audit.ParseFilter(q, time.Date(2026, 3, 31, 0, 0, 0, 0, time.UTC))
		if err != nil {
			var at *audit.QueryError
			if !errors.As(err, &at) || at.Offset < 0 || at.Offset > len(q) {
				t.Fatalf("%q: %v has no place", q, err)
			}
			return
		}
		agrees(t, d, q, x, want)
	})
}

// FuzzAppend: any line is refused or kept byte for byte, and found again; the
// index stays that of the lines.
func FuzzAppend(f *testing.F) {
	for _, s := range []string{
		`{"schema":"attache.audit/v1","type":"end","id":"rec_a","epoch":"e1","sequence":1,"time":"2026-03-01T00:00:00Z"}`,
		`{"schema":"attache.audit/v1","type":"begin","id":"rec_a","epoch":"e1","sequence":1,"time":"0001-01-01T00:00:00Z","request":{"path":"\u0000"}}`,
		`{"schema":"attache.audit/v1","type":"end","id":"","epoch":"e1","sequence":1,"begin_epoch":"e1","begin_sequence":1,"time":"9999-12-31T23:59:59.999999999Z"}`,
		`{"schema":"attache.audit/v2","type":"x","id":"rec_a","epoch":"e1","sequence":1,"request":7}`,
		`{"epoch":"e1","sequence":1,"change":{"kind":"\u0000","version_after":"d\u0000","by":{"username":"\ud800"}},"event":{"name":"policy.bundle","fields":{"version":"\u0000","documents":"a b\u0000 c"}}}`,
		`{"epoch":"e1","sequence":1,"workload":{"id":"a","labels":{"":"","a":"\u0000"}},"result":{"bytes_up":9223372036854775807,"bytes_down":9223372036854775807}}`,
		`{"epoch":"e1","sequence":1} `, `[]`, `{`, "",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		d := open(t, "sqlite:"+filepath.Join(t.TempDir(), "a.db"), store.Options{})
		l := audit.Line{Epoch: "e1", Sequence: 1, JSON: text, Chain: chain.Next(chain.First("e1"), text), Chained: true}
		_, err := d.Append(t.Context(), store.Producer{ID: "control", Kind: "control"}, []audit.Line{l})
		if err != nil {
			if !errors.Is(err, store.ErrBadLine) && !errors.Is(err, store.ErrForged) {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if got := stored(t, d, "e1"); !sameLines(got, []audit.Line{l}) {
			t.Errorf("%q came back as %v", text, got)
		}
		indexIsWhole(t, d)
		var r audit.Record
		if json.Unmarshal(text, &r) == nil && r.ID != "" && utf8.ValidString(r.ID) && len(r.ID) < 200 {
			p, err := d.Search(t.Context(), store.Query{Filter: filter(t, "type:all")})
			if err != nil || len(p.Rows) != 1 {
				t.Errorf("%q: %d rows, %v", text, len(p.Rows), err)
			}
		}
		if _, err := d.Facets(t.Context(), store.Query{Filter: filter(t, "type:all")}, nil, 0); err != nil {
			t.Error(err)
		}
		if _, err := d.Histogram(t.Context(), store.Query{Filter: filter(t, "type:all")}, time.Hour); err != nil {
			t.Error(err)
		}
	})
}

// FuzzImport: a segment of any bytes is imported without an error, and again
// without a new line.
func FuzzImport(f *testing.F) {
	s := newScribe(nil, "e1")
	var text []byte
	for range 4 {
		text = s.event("x.y", nil).AppendTo(text)
	}
	f.Add(text)
	f.Add(text[:len(text)/2])
	f.Add(append([]byte("garbage\n\n\t\n"), text...))
	f.Add(append(text[300:], text...))
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "0000000001.jsonl"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		d := open(t, "sqlite:"+filepath.Join(t.TempDir(), "a.db"), store.Options{})
		if _, err := d.ImportSpool(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		x, err := d.ImportSpool(t.Context(), dir)
		if err != nil || x.Lines != 0 {
			t.Errorf("again: %+v %v", x, err)
		}
		indexIsWhole(t, d)
	})
}

// FuzzCursor: a cursor from outside is taken or refused.
func FuzzCursor(f *testing.F) {
	for _, s := range []string{"", "AQAA", "AQAAAA", "AgAAAA", "!", "AQ"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, c string) {
		d := open(t, "sqlite:"+filepath.Join(t.TempDir(), "a.db"), store.Options{})
		put(t, d, alice, newScribe(t, "e1").event("x", nil))
		for _, oldest := range []bool{false, true} {
			if _, err := d.Search(t.Context(), store.Query{After: store.Cursor(c), Oldest: oldest}); err != nil && !errors.Is(err, store.ErrCursor) {
				t.Errorf("%q: %v", c, err)
			}
		}
		if _, err := d.Tail(t.Context(), store.Query{}, store.Cursor(c)); err != nil && !errors.Is(err, store.ErrCursor) {
			t.Errorf("%q: %v", c, err)
		}
	})
}
