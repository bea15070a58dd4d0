package store_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/test/audit/seed"
)

func TestTail(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		s := newScribe(t, "e1")
		put(t, d, alice, s.begin("rec_a"), s.begin("rec_b"))
		end, err := d.End(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		put(t, d, alice, s.end("rec_b", "e1", 2, "ok"), s.event("task.opened", nil), s.end("rec_a", "e1", 1, "error"))
		follow := func(q string, limit int, from store.Cursor) (string, store.Cursor) {
			p, err := d.Tail(t.Context(), store.Query{Filter: filter(t, q), Limit: limit}, from)
			if err != nil || p.Next == "" {
				t.Fatalf("%+v %v", p, err)
			}
			return strings.Join(func() (l []string) {
				for _, r := range p.Rows {
					l = append(l, r.ID)
				}
				return l
			}(), " "), p.Next
		}
		// In the order in which they were finished, each once.
		got, next := follow("", 2, end)
		if got != "rec_b rec_e1_4" {
			t.Errorf("first %q", got)
		}
		if got, next = follow("", 2, next); got != "rec_a" {
			t.Errorf("then %q", got)
		}
		if got, next = follow("", 2, next); got != "" {
			t.Errorf("then %q", got)
		}
		if got, _ := follow("outcome:error", 2, end); got != "rec_a" {
			t.Errorf("errors %q", got)
		}
		if got, _ := follow("", 50, ""); got != "rec_b rec_e1_4 rec_a" {
			t.Errorf("from the beginning %q", got)
		}
		put(t, d, alice, s.event("task.closed", nil))
		if got, _ = follow("", 2, next); got != "rec_e1_6" {
			t.Errorf("what is new %q", got)
		}
	})
}

func TestGetAndRelated(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		want := fill(t, d, seed.Options{Records: size(3000), Agents: 20, BatchLines: 64})
		var some audit.Record
		for _, r := range want {
			if r.Credential != nil && r.Human != nil && r.Workload != nil {
				some = r
			}
		}
		row, refs, err := d.Get(t.Context(), some.ID)
		if err != nil || row.ID != some.ID || len(refs) != 2 || refs[1].Sequence != some.Sequence || string(row.AppendJSON(nil)) != string(some.AppendJSON(nil)) {
			t.Errorf("got %+v %v %v", row.Record, refs, err)
		}
		for _, none := range []string{"rec_none", "", "*", "rec_*", strings.Repeat("x", 5000), some.ID[:20], "\x00"} {
			if _, _, err := d.Get(t.Context(), none); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%.20q: %v", none, err)
			}
		}
		for name, is := range map[string]func(*audit.Record) bool{
			some.ID: func(r *audit.Record) bool { return r.ID == some.ID },
			some.Credential.Handle: func(r *audit.Record) bool {
				return r.Credential != nil && r.Credential.Handle == some.Credential.Handle || r.Event != nil && r.Event.Fields["handle"] == some.Credential.Handle
			},
			some.Task.ID: func(r *audit.Record) bool {
				return r.Task != nil && r.Task.ID == some.Task.ID || r.Event != nil && r.Event.Fields["task"] == some.Task.ID
			},
			some.Workload.RunID:       func(r *audit.Record) bool { return r.Workload != nil && r.Workload.RunID == some.Workload.RunID },
			some.Human.Email:          func(r *audit.Record) bool { return r.Human != nil && r.Human.Email == some.Human.Email },
			some.Human.Subject:        func(r *audit.Record) bool { return r.Human != nil && r.Human.Email == some.Human.Email },
			some.Request.TraceID:      func(r *audit.Record) bool { return r.ID == some.ID },
			"nobody@example.com":      func(*audit.Record) bool { return false },
			"inject":                  func(*audit.Record) bool { return false },
			strings.Repeat("x", 5000): func(*audit.Record) bool { return false },
		} {
			var w []audit.Record
			for _, r := range want {
				if r.Type != audit.TypeEpochOpen && is(&r) {
					w = append(w, r)
				}
			}
			q := store.Query{Limit: 7}
			var got []store.Row
			for {
				p, err := d.Related(t.Context(), name, q)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, p.Rows...)
				if p.Next == "" {
					break
				}
				q.After = p.Next
			}
			if !slices.Equal(rowIDs(got), ids(w)) {
				t.Errorf("%.30q: %d records, want %d", name, len(got), len(w))
			}
		}
	})
}

// What a reader may see does not depend on how it is asked for.
func TestNamespaces(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		s := newScribe(t, "e1")
		in := func(ns string, r audit.Record) audit.Line {
			r.Type, r.Workload = audit.TypeEnd, &audit.Workload{ID: "spiffe://x/" + ns, Namespace: ns}
			r.Human = &audit.Human{Subject: "person", Issuer: "i"}
			return s.line(r)
		}
		put(t, d, alice, in("one", audit.Record{ID: "rec_one"}), in("two", audit.Record{ID: "rec_two"}), in("", audit.Record{ID: "rec_none"}),
			s.line(audit.Record{Type: audit.TypeEvent, ID: "rec_change", Event: &audit.Event{Name: "policy.changed"}, Change: &audit.Change{Kind: "AccessPolicy", Namespace: "two", Name: "p", Operation: "update"}}))
		for _, x := range []struct {
			may  []string
			want string
		}{
			{nil, "rec_change rec_none rec_one rec_two"}, {[]string{}, ""}, {[]string{""}, ""}, {[]string{"one"}, "rec_one"}, {[]string{"TWO"}, "rec_change rec_two"}, {[]string{"*"}, ""},
		} {
			q := store.Query{Namespaces: x.may}
			if got := strings.Join(rowIDs(all(t, d, q)), " "); got != x.want {
				t.Errorf("%q: search gives %s, want %s", x.may, got, x.want)
			}
			p, err := d.Tail(t.Context(), q, "")
			if got := strings.Join(rowIDs(p.Rows), " "); got != x.want || err != nil {
				t.Errorf("%q: tail gives %s, want %s", x.may, got, x.want)
			}
			n := int64(len(strings.Fields(x.want)))
			h, err := d.Histogram(t.Context(), q, time.Second)
			var bars int64
			for _, b := range h {
				bars += b.Count
			}
			if err != nil || bars != n || len(h) > 0 && (h[0].Count == 0 || h[len(h)-1].Count == 0) || n == 0 && h != nil {
				t.Errorf("%q: the histogram counts %d in %d bars, want %d and no time of what may not be seen: %v", x.may, bars, len(h), n, err)
			}
			f, err := d.Facets(t.Context(), q, nil, 0)
			if err != nil || f.Total.Count != n {
				t.Errorf("%q: facets count %d, want %d", x.may, f.Total.Count, n)
			}
			p, err = d.Related(t.Context(), "person", q)
			if err != nil || len(p.Rows) != strings.Count(x.want, "rec_")-strings.Count(x.want, "change") {
				t.Errorf("%q: %d related", x.may, len(p.Rows))
			}
			for _, r := range all(t, d, store.Query{}) {
				if store.Visible(&r.Record, x.may) != strings.Contains(" "+x.want+" ", " "+r.ID+" ") {
					t.Errorf("%q: Visible of %s is wrong", x.may, r.ID)
				}
			}
		}
	})
}

// Pages neither lose nor repeat a row when others come in between.
func TestPagesAreStable(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		f := seed.New(seed.Options{Records: size(2000), Agents: 30, BatchLines: 40})
		half := 0
		var batches []*seed.Batch
		for b := f.Next(); b != nil; b = f.Next() {
			batches = append(batches, b)
		}
		for half = range len(batches) / 2 {
			put(t, d, batches[half].Producer, batches[half].Lines...)
		}
		q := store.Query{Filter: filter(t, "verdict:inject outcome:ok"), Limit: 50}
		before := all(t, d, q)
		rest := batches[half+1:]
		var got []store.Row
		for {
			p, err := d.Search(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, p.Rows...)
			if p.Next == "" {
				break
			}
			q.After = p.Next
			for range min(3, len(rest)) {
				put(t, d, rest[0].Producer, rest[0].Lines...)
				rest = rest[1:]
			}
		}
		seen := map[string]int{}
		for _, r := range got {
			seen[r.ID]++
			if seen[r.ID] > 1 {
				t.Errorf("%s comes %d times", r.ID, seen[r.ID])
			}
		}
		for _, r := range before {
			if seen[r.ID] == 0 {
				t.Errorf("%s is lost", r.ID)
			}
		}
	})
}

func TestCursors(t *testing.T) {
	d := open(t, "sqlite:"+t.TempDir()+"/a.db", store.Options{})
	end, err := d.End(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []store.Cursor{"x", "AAAA", "====", end, end + "AA", store.Cursor(strings.Repeat("A", 10000))} {
		if _, err := d.Search(t.Context(), store.Query{After: c}); !errors.Is(err, store.ErrCursor) {
			t.Errorf("%.20q: %v", c, err)
		}
	}
	if _, err := d.Tail(t.Context(), store.Query{}, "AQAA"); !errors.Is(err, store.ErrCursor) {
		t.Errorf("a cursor of Search in Tail: %v", err)
	}
	for _, n := range []int{-1, store.MaxLimit + 1} {
		if _, err := d.Search(t.Context(), store.Query{Limit: n}); err == nil {
			t.Errorf("limit %d was taken", n)
		}
	}
}

func TestCounts(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		want := fill(t, d, seed.Options{Records: size(5000), Agents: 40, BatchLines: 128})
		type count struct {
			n, denied, bytes int64
			first, last      time.Time
		}
		by := map[[2]string]*count{}
		for _, r := range want {
			if r.Request == nil || r.Decision.Verdict != "inject" && r.Decision.Verdict != "deny" {
				continue
			}
			k := [2]string{r.Workload.ServiceAccount, r.Request.Host}
			c := by[k]
			if c == nil {
				c = &count{first: r.Time, last: r.Time}
				by[k] = c
			}
			c.n++
			if r.Decision.Verdict == "deny" {
				c.denied++
			}
			c.bytes += r.Result.BytesUp + r.Result.BytesDown
			if r.Time.Before(c.first) {
				c.first = r.Time
			}
			if r.Time.After(c.last) {
				c.last = r.Time
			}
		}
		q := store.Query{Filter: filter(t, "type:request")}
		groups, _, err := d.Groups(t.Context(), q, []string{"agent", "host"}, 10_000)
		if err != nil || len(groups) != len(by) {
			t.Fatalf("%d groups, want %d: %v", len(groups), len(by), err)
		}
		for _, g := range groups {
			c := by[[2]string{g.Values[0], g.Values[1]}]
			if c == nil || g.Count.Count != c.n || g.Denied != c.denied || g.Bytes != c.bytes || !g.First.Equal(c.first.Truncate(time.Microsecond)) || !g.Last.Equal(c.last.Truncate(time.Microsecond)) {
				t.Errorf("group %+v, want %+v", g, c)
			}
		}
		first, err := d.FirstSeen(t.Context(), store.Query{Filter: filter(t, "type:request since:15d")}, []string{"agent", "host"}, 10_000)
		if err != nil {
			t.Fatal(err)
		}
		since := filter(t, "since:15d")
		n := 0
		for _, c := range by {
			if !c.first.Before(since.Since()) {
				n++
			}
		}
		if len(first) != n || n == 0 || !slices.IsSortedFunc(first, func(a, b store.Group) int { return b.First.Compare(a.First) }) {
			t.Errorf("%d first seen, want %d", len(first), n)
		}
		f, err := d.Facets(t.Context(), q, []string{"host"}, 3)
		if err != nil || len(f.Facets) != 1 || len(f.Facets[0].Values) != 3 {
			t.Fatalf("%+v %v", f, err)
		}
		rest := f.Facets[0].Others
		for _, v := range f.Facets[0].Values {
			rest += v.Count.Count
		}
		if rest != f.Total.Count || f.Facets[0].More == 0 {
			t.Errorf("values add up to %d, want %d", rest, f.Total.Count)
		}
		for _, keys := range [][]string{{"path"}, {"since"}, {"none"}, {}, {"host", "host", "host", "host", "host", "host", "host", "host", "host"}} {
			if _, _, err := d.Groups(t.Context(), q, keys, 0); err == nil {
				t.Errorf("groups by %v were counted", keys)
			}
		}
		if _, err := d.Histogram(t.Context(), q, time.Millisecond); err == nil {
			t.Error("a histogram of milliseconds was made")
		}
		h, err := d.Histogram(t.Context(), q, time.Second)
		if err != nil || len(h) > 2000 {
			t.Errorf("%d buckets: %v", len(h), err)
		}
	})
}

// Generated queries: the store's answer is that of audit.Filter.Match.
func TestGeneratedQueries(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		want := fill(t, d, seed.Options{Records: size(1500), Agents: 15, BatchLines: 50, Seed: 3})
		rnd := rand.New(rand.NewPCG(7, 7))
		for range size(80) {
			q := generate(rnd, want)
			f, err := audit.ParseFilter(q, time.Date(2026, 3, 31, 0, 0, 0, 0, time.UTC))
			if err != nil {
				t.Fatalf("%q: %v", q, err)
			}
			agrees(t, d, q, f, want)
		}
	})
}

// agrees compares the store's answers with those of the filter itself.
func agrees(t *testing.T, d *store.DB, q string, f audit.Filter, want []audit.Record) {
	t.Helper()
	var w []audit.Record
	for i := range want {
		if f.Match(&want[i]) {
			w = append(w, want[i])
		}
	}
	if got := all(t, d, store.Query{Filter: f, Limit: 500}); !slices.Equal(rowIDs(got), ids(w)) {
		t.Errorf("%q: %d rows, want %d", q, len(got), len(w))
	}
	x, err := d.Facets(t.Context(), store.Query{Filter: f}, []string{"verdict"}, 0)
	if err != nil || x.Total.Count != int64(len(w)) {
		t.Errorf("%q: counts %d, want %d: %v", q, x.Total.Count, len(w), err)
	}
}

// generate makes a query of what the records hold.
func generate(rnd *rand.Rand, l []audit.Record) string {
	keys := audit.Keys()
	var terms []string
	for range 1 + rnd.IntN(3) {
		r := &l[rnd.IntN(len(l))]
		k := keys[rnd.IntN(len(keys))]
		not := []string{"", "", "-"}[rnd.IntN(3)]
		switch {
		case k.Name == "since" || k.Name == "until":
			terms = append(terms, k.Name+":"+r.Time.Format(time.RFC3339Nano))
			continue
		case rnd.IntN(12) == 0:
			terms = append(terms, not+r.ID[4:8])
			continue
		}
		values := k.Values(r)
		if len(values) == 0 || values[0] == "" {
			terms = append(terms, not+k.Name+":*")
			continue
		}
		v := values[rnd.IntN(len(values))]
		if v == "" {
			v = "*"
		}
		switch n := len(v); rnd.IntN(5) {
		case 0:
			v = v[:n/2] + "*"
		case 1:
			v = "*" + v[n/2:]
		case 2:
			v = "*" + v[n/3:n/3+(n+2)/3] + "*"
		case 3:
			v = strings.ToUpper(v)
		}
		terms = append(terms, not+audit.QueryTerm(k.Name, v))
	}
	return strings.Join(terms, " ")
}

// What no index answers is bounded: the answer is partial, says up to when it
// looked, and goes on from there; a question that takes too long ends.
func TestRuinousQueries(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		fill(t, d, seed.Options{Records: 3000, Agents: 20, BatchLines: 200})
		slow := open(t, url, store.Options{ReadOnly: true, QueryTimeout: time.Nanosecond})
		var deadline error
		if _, err := slow.Search(t.Context(), store.Query{}); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "ask for less time") {
			t.Errorf("got %v", err)
		} else {
			deadline = err
		}
		if _, err := slow.Facets(t.Context(), store.Query{}, nil, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want %v", err, deadline)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := d.Search(ctx, store.Query{Filter: filter(t, "purpose:*x*")}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		bad := strings.Repeat("path:"+strings.Repeat("*a", 20)+" ", 60)
		if p, err := d.Search(t.Context(), store.Query{Filter: filter(t, bad)}); err != nil || len(p.Rows) != 0 {
			t.Errorf("%d rows, %v", len(p.Rows), err)
		}
		d = open(t, url, store.Options{ReadOnly: true, MaxReads: 500})
		q := store.Query{Filter: filter(t, "nothing-like-this")}
		pages := 0
		for {
			p, err := d.Search(t.Context(), q)
			if err != nil || len(p.Rows) != 0 || p.Partial == p.Until.IsZero() {
				t.Fatalf("%+v %v", p, err)
			}
			pages++
			if p.Next == "" {
				break
			}
			q.After = p.Next
		}
		if pages < 5 || pages > 10 {
			t.Errorf("%d pages", pages)
		}
		f, err := d.Facets(t.Context(), q, nil, 0)
		if err != nil || !f.Partial {
			t.Errorf("facets %+v %v", f, err)
		}
	})
}
