package store_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/test/audit/seed"
	"github.com/attache-dev/attache/test/servers"
)

// pg is the PostgreSQL server of all tests, started when the first one asks.
var pg struct {
	sync.Once
	*servers.Postgres
	err error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if pg.Postgres != nil {
		pg.Stop() //nolint:errcheck // the end
	}
	os.Exit(code)
}

func startPostgres(t *testing.T) {
	t.Helper()
	pg.Do(func() {
		pg.Postgres, pg.err = servers.StartPostgres(context.Background(), "", "fsync=off", "max_connections=200")
	})
	if pg.err == nil {
		return
	}
	if _, ok := servers.PostgresPath(); !ok && os.Getenv("ATTACHE_REQUIRE_SERVERS") == "" {
		t.Skip("PostgreSQL is not installed")
	}
	t.Fatal(pg.err)
}

// both runs a test on each kind of store; it gets the URL of an empty one.
func both(t *testing.T, fn func(t *testing.T, url string)) {
	t.Run("sqlite", func(t *testing.T) { fn(t, "sqlite:"+filepath.Join(t.TempDir(), "audit.db")) })
	t.Run("postgres", func(t *testing.T) {
		startPostgres(t)
		fn(t, emptyPostgres(t))
	})
}

// emptyPostgres returns the URL of a schema of its own.
func emptyPostgres(t *testing.T) string {
	t.Helper()
	name := "t" + strings.ToLower(strings.NewReplacer("/", "_", "-", "_", "#", "_").Replace(t.Name())) + fmt.Sprint(time.Now().UnixNano())
	name = name[max(0, len(name)-60):]
	name = "s_" + strings.TrimLeft(name, "_")
	psql(t, "CREATE SCHEMA "+name)
	t.Cleanup(func() { psql(t, "DROP SCHEMA "+name+" CASCADE") })
	return pg.URL + "&search_path=" + name
}

func open(t *testing.T, url string, o store.Options) *store.DB {
	t.Helper()
	d, err := store.Open(t.Context(), url, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// size is how many records a test takes: a quarter of n, a tenth under the race
// detector, all of them where the full form of the audit tests is asked for.
func size(n int) int {
	switch {
	case os.Getenv("AUDIT_FULL") != "":
		return n
	case raced:
		return n / 10
	}
	return n / 4
}

// fill appends a fleet's records and returns them as a reader of spools would:
// begins joined with their ends.
func fill(t *testing.T, d *store.DB, o seed.Options) []audit.Record {
	t.Helper()
	f := seed.New(o)
	var all []audit.Record
	begins := map[string]audit.Record{}
	for b := f.Next(); b != nil; b = f.Next() {
		ack, err := d.Append(t.Context(), b.Producer, b.Lines)
		if err != nil {
			t.Fatal(err)
		}
		if ack.Stored != len(b.Lines) || ack.Duplicates != 0 || len(ack.Gaps) != 0 {
			t.Fatalf("ack %+v of %d lines", ack, len(b.Lines))
		}
		for _, l := range b.Lines {
			r, err := l.Record()
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case r.Type == audit.TypeBegin:
				begins[r.ID] = r
			case r.BeginSequence != 0:
				all = append(all, audit.Join(begins[r.ID], r))
				delete(begins, r.ID)
			default:
				all = append(all, r)
			}
		}
	}
	if len(begins) != 0 {
		t.Fatalf("%d requests have no end", len(begins))
	}
	slices.SortStableFunc(all, func(a, b audit.Record) int { return b.Time.Compare(a.Time) })
	return all
}

func filter(t *testing.T, q string) audit.Filter {
	t.Helper()
	f, err := audit.ParseFilter(q, time.Date(2026, 3, 31, 0, 0, 0, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// all reads every page of a query.
func all(t *testing.T, d *store.DB, q store.Query) []store.Row {
	t.Helper()
	var l []store.Row
	for {
		p, err := d.Search(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		l = append(l, p.Rows...)
		if p.Next == "" {
			return l
		}
		q.After = p.Next
	}
}

func ids(l []audit.Record) []string {
	out := make([]string, len(l))
	for i := range l {
		out[i] = l[i].ID
	}
	slices.Sort(out)
	return out
}

func rowIDs(l []store.Row) []string {
	out := make([]string, len(l))
	for i := range l {
		out[i] = l[i].ID
	}
	slices.Sort(out)
	return out
}

func queries() []string {
	return []string{
		"", "verdict:deny", "-verdict:deny", "owner:ana", "owner:ana dest:*.s3.* verdict:deny since:20d", "agent:invoices", "bucket:payments",
		"status:4xx", "status:404,503", "path:*refund*", "path:*INVOICES*", "-path:*invoices*", "path:/v1/invoices/{id}", "resource:*refunds*", "human:person00*", "host:billing*", "type:epoch",
		"type:all", "event:*", "event:task.opened", "label:tier=batch", "since:2026-03-10 until:2026-03-12", "purpose:*7*", "refund", "outcome:error,canceled", "namespace:ns-03 method:POST",
		"code:policy_denied", "service:s3 operation:PutObject", "protocol:http -owner:ana", "trace:none", "id:rec_00*", "nothing-like-this", "epoch:*", "owner:*", "kind:aws-session -bucket:payments", "run:*", "exe:*node",
		// Texts that the forms leave open, beside what shapes say.
		"path:*7*", "path:*7* verdict:deny", "path:*7* human:person00*", "-path:*7*", "-path:*7* owner:ana", "path:*7* resource:*7*", "path:*7* path:*1*", "path:*7* path:*refund*", "path:*7* type:all since:20d",
	}
}

func TestAnswersAreThoseOfTheRecords(t *testing.T) {
	both(t, func(t *testing.T, url string) {
		d := open(t, url, store.Options{})
		want := fill(t, d, seed.Options{Records: size(2000), Agents: 40, BatchLines: 100})
		ask := func(q string) {
			f := filter(t, q)
			var w []audit.Record
			for i := range want {
				if f.Match(&want[i]) {
					w = append(w, want[i])
				}
			}
			got := all(t, d, store.Query{Filter: f, Limit: 700})
			if !slices.Equal(rowIDs(got), ids(w)) {
				t.Errorf("%q: %d rows, want %d", q, len(got), len(w))
			}
			if !slices.IsSortedFunc(got, func(a, b store.Row) int { return b.Time.Compare(a.Time) }) {
				t.Errorf("%q: rows are not newest first", q)
			}
			old := all(t, d, store.Query{Filter: f, Limit: 700, Oldest: true})
			slices.Reverse(old)
			if !slices.EqualFunc(got, old, func(a, b store.Row) bool { return a.ID == b.ID }) {
				t.Errorf("%q: oldest first gives other rows", q)
			}
			fac, err := d.Facets(t.Context(), store.Query{Filter: f}, nil, 5)
			if err != nil || fac.Total.Count != int64(len(w)) || fac.Partial {
				t.Errorf("%q: facets count %d, want %d, %v", q, fac.Total.Count, len(w), err)
			}
			var denied int64
			for _, r := range w {
				if r.Decision != nil && r.Decision.Verdict == "deny" {
					denied++
				}
			}
			if fac.Total.Denied != denied {
				t.Errorf("%q: %d denied, want %d", q, fac.Total.Denied, denied)
			}
			people(t, d, q, f, w)
			for _, width := range []time.Duration{24 * time.Hour, 6 * time.Hour, 40 * time.Minute, 25*time.Hour + time.Second} {
				bars(t, d, q, f, w, width)
			}
		}
		for _, q := range queries() {
			ask(q)
		}
		if err := d.Settle(t.Context()); err != nil { // larger segments, joined ones
			t.Fatal(err)
		}
		for _, q := range queries() {
			ask(q)
		}
		some := want[len(want)/2]
		for _, r := range want {
			if r.Credential != nil && r.Task != nil {
				some = r
			}
		}
		ask("id:" + some.ID)
		ask("handle:" + some.Credential.Handle)
		ask("-handle:" + some.Credential.Handle)
		ask("task:" + strings.ToUpper(some.Task.ID))
		ask("trace:" + some.Request.TraceID + ",none")
		ask("path:" + some.Request.Path)
		ask("task:" + some.Task.ID + " handle:" + some.Credential.Handle)
	})
}

// bars compares each bar of a histogram with the records that it stands for.
func bars(t *testing.T, d *store.DB, q string, f audit.Filter, want []audit.Record, width time.Duration) {
	t.Helper()
	h, err := d.Histogram(t.Context(), store.Query{Filter: f}, width)
	if err != nil {
		t.Errorf("%q by %v: %v", q, width, err)
		return
	}
	for len(h) > 1 && h[1].Start.Sub(h[0].Start) != width {
		width *= 2 // there were too many bars
	}
	type bar struct{ n, denied, failed int64 }
	m := map[int64]bar{}
	for _, r := range want {
		at := r.Time.UnixMicro() / width.Microseconds() * width.Microseconds()
		b := m[at]
		b.n++
		if r.Decision != nil && r.Decision.Verdict == "deny" {
			b.denied++
		}
		if r.Result != nil && r.Result.Outcome != audit.OutcomeOK && r.Result.Outcome != audit.OutcomeDenied && r.Result.Outcome != audit.OutcomeOpen {
			b.failed++
		}
		m[at] = b
	}
	for _, b := range h {
		if got := (bar{b.Count, b.Denied, b.Failed}); got != m[b.Start.UnixMicro()] {
			t.Errorf("%q by %v: the bar of %v is %+v, want %+v", q, width, b.Start, got, m[b.Start.UnixMicro()])
		}
		delete(m, b.Start.UnixMicro())
	}
	if len(m) > 0 {
		t.Errorf("%q by %v: %d bars are missing", q, width, len(m))
	}
}

// with counts one more record.
func with(c store.Count, r *audit.Record) store.Count {
	if c.Count++; c.Count == 1 || r.Time.Before(c.First) {
		c.First = r.Time
	}
	if r.Time.After(c.Last) {
		c.Last = r.Time
	}
	if r.Result != nil {
		c.Bytes += r.Result.BytesUp + r.Result.BytesDown
	}
	return c
}

// people compares what is counted by person, whom the index keeps apart.
func people(t *testing.T, d *store.DB, q string, f audit.Filter, want []audit.Record) {
	t.Helper()
	m := map[[2]string]store.Count{}
	for _, r := range want {
		if r.Human == nil || r.Workload == nil {
			continue
		}
		k := [2]string{r.Human.Email, r.Workload.Namespace}
		m[k] = with(m[k], &r)
	}
	l, _, err := d.Groups(t.Context(), store.Query{Filter: f}, []string{"human", "namespace"}, 100_000)
	if err != nil {
		t.Errorf("%q by people: %v", q, err)
	}
	for _, g := range l {
		k := [2]string{g.Values[0], g.Values[1]}
		c, ok := m[k]
		if k[0] == "" || k[1] == "" || len(g.Values) != 2 {
			continue
		}
		if !ok || g.Count.Count != c.Count || g.Bytes != c.Bytes || !g.First.Equal(c.First.Truncate(time.Microsecond)) || !g.Last.Equal(c.Last.Truncate(time.Microsecond)) {
			t.Errorf("%q: %v has %+v, want %+v", q, k, g.Count, c)
		}
		delete(m, k)
	}
	if len(m) > 0 {
		t.Errorf("%q: %d people are missing", q, len(m))
	}
	shownPeople(t, d, q, f, want)
}

// shownPeople compares the times of those whom the facets show: they are read of
// few segments only.
func shownPeople(t *testing.T, d *store.DB, q string, f audit.Filter, want []audit.Record) {
	t.Helper()
	m := map[string]store.Count{}
	for _, r := range want {
		if r.Human == nil {
			continue
		}
		m[r.Human.Email] = with(m[r.Human.Email], &r)
	}
	for _, limit := range []int{3, 1000} {
		x, err := d.Facets(t.Context(), store.Query{Filter: f}, []string{"human", "owner"}, limit)
		if err != nil {
			t.Errorf("%q: %v", q, err)
			return
		}
		if shown := len(x.Facets[0].Values); shown != min(limit, len(m)) {
			t.Errorf("%q: %d of %d people are shown", q, shown, len(m))
		}
		for _, v := range x.Facets[0].Values {
			c := m[v.Value]
			if v.Count.Count != c.Count || v.Bytes != c.Bytes || !v.First.Equal(c.First.Truncate(time.Microsecond)) || !v.Last.Equal(c.Last.Truncate(time.Microsecond)) {
				t.Errorf("%q: %s has %+v in the facets, want %+v", q, v.Value, v.Count, c)
			}
		}
	}
}
