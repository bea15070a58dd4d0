//go:build clickhouse

// Package clickhouse runs the statements of docs/audit-clickhouse.md in
// ClickHouse, and compares its answers with those of the record store. It is of
// make audit alone, which installs ClickHouse (half a gigabyte).
package clickhouse

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/test/audit/seed"
)

// otelLogs is what the Collector's exporter makes, as far as the page reads it.
const otelLogs = `CREATE TABLE otel.otel_logs (Timestamp DateTime64(9), SeverityText LowCardinality(String), ServiceName LowCardinality(String), Body String,
ResourceAttributes Map(LowCardinality(String), String), LogAttributes Map(LowCardinality(String), String)) ENGINE = MergeTree ORDER BY Timestamp`

const page = "../../../docs/audit-clickhouse.md"

type statement struct {
	SQL    string            `json:"sql"`
	Params map[string]string `json:"params,omitempty"`
}

type answer struct {
	Rows  []map[string]any `json:"rows"`
	Error string           `json:"error"`
}

// question is a row of the page's table.
type question struct{ search, sql string }

// read returns the statements that make tables, and the saved questions.
func read(t *testing.T) (tables []string, questions []question) {
	t.Helper()
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	comment := regexp.MustCompile(`(?m)^\s*--.*$`)
	for _, m := range regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(string(b), -1) {
		for s := range strings.SplitSeq(comment.ReplaceAllString(m[1], ""), ";") {
			if s = strings.TrimSpace(s); s != "" {
				tables = append(tables, s)
			}
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| ([^|]*`.*?|[^|`]+) \\| `(SELECT .*)` \\|$").FindAllStringSubmatch(string(b), -1) {
		questions = append(questions, question{strings.TrimSpace(m[1]), m[2]})
	}
	if len(tables) < 3 || len(questions) < 8 {
		t.Fatalf("the page has %d statements and %d questions", len(tables), len(questions))
	}
	return tables, questions
}

// clickhouse runs statements in a database below dir.
func clickhouse(t *testing.T, dir string, l []statement) []answer {
	t.Helper()
	modules, err := filepath.Abs("../../../.cache/npm/clickhouse")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(modules, "node_modules", "chdb")); err != nil {
		t.Fatal("ClickHouse is not there; test/deps.sh clickhouse installs it")
	}
	in, err := json.Marshal(map[string]any{"dir": dir, "statements": l})
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), "node", "run.mjs", modules) //nolint:gosec // ours
	c.Stdin = bytes.NewReader(in)
	var errs bytes.Buffer
	c.Stderr = &errs
	b, err := c.Output()
	if err != nil {
		t.Fatalf("node: %v\n%s", err, errs.String())
	}
	var out []answer
	if err := json.Unmarshal(b, &out); err != nil || len(out) != len(l) {
		t.Fatalf("%d answers: %v", len(out), err)
	}
	for i, a := range out {
		if a.Error != "" {
			t.Errorf("%s\n%s", l[i].SQL, a.Error)
		}
	}
	return out
}

// fill writes the same records to a store and to a file of log records.
func fill(t *testing.T, dir string, n int) (*store.DB, string, time.Time, string) {
	t.Helper()
	now := time.Date(2026, 3, 31, 0, 0, 0, 0, time.UTC)
	db, err := store.Open(t.Context(), "sqlite:"+filepath.Join(dir, "records.db"), store.Options{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	path := filepath.Join(dir, "logs.jsonl")
	f, err := os.Create(path) //nolint:gosec // scratch
	if err != nil {
		t.Fatal(err)
	}
	e := json.NewEncoder(f)
	handle := ""
	fleet := seed.New(seed.Options{Seed: 4, Records: n, Agents: 300, Start: now.Add(-30 * 24 * time.Hour), Span: 30 * 24 * time.Hour})
	for b := fleet.Next(); b != nil; b = fleet.Next() {
		if _, err := db.Append(t.Context(), b.Producer, b.Lines); err != nil {
			t.Fatal(err)
		}
		for _, l := range b.Lines {
			_, _, at := l.Head()
			row := map[string]any{"Timestamp": at.UnixNano(), "Body": string(l.JSON), "LogAttributes": map[string]string{
				"attache.epoch": l.Epoch, "attache.sequence": strconv.FormatUint(l.Sequence, 10), "attache.chain": l.Chain.String()}}
			if err := e.Encode(row); err != nil {
				t.Fatal(err)
			}
			if r, err := l.Record(); handle == "" && err == nil && r.Credential != nil && r.Credential.Handle != "" {
				handle = r.Credential.Handle
			}
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return db, path, now, handle
}

// TestSavedQuestions: each statement of the page runs, and each saved question
// is answered as the record store answers it, also when every line came twice.
func TestSavedQuestions(t *testing.T) {
	const n = 20_000 // of more there is nothing that was not seen before
	dir := t.TempDir()
	tables, questions := read(t)
	db, path, now, handle := fill(t, dir, n)
	instant := fmt.Sprintf("toDateTime64('%s', 6, 'UTC')", now.Format("2006-01-02 15:04:05.000000"))
	l := []statement{{SQL: "CREATE DATABASE otel"}, {SQL: otelLogs}}
	for _, s := range tables {
		l = append(l, statement{SQL: s})
	}
	for range 2 {
		l = append(l, statement{SQL: "INSERT INTO otel.otel_logs (Timestamp, Body, LogAttributes) SELECT fromUnixTimestamp64Nano(Timestamp), Body, LogAttributes FROM file('" + path +
			"', 'JSONEachRow', 'Timestamp Int64, Body String, LogAttributes Map(String, String)')"})
	}
	first := len(l)
	for _, q := range questions {
		s := statement{SQL: strings.ReplaceAll(q.sql, "now()", instant)}
		if strings.Contains(s.SQL, "{handle:String}") {
			s.Params = map[string]string{"handle": handle}
		}
		l = append(l, s)
	}
	l = append(l, statement{SQL: "SELECT version() AS version"})
	out := clickhouse(t, filepath.Join(dir, "ch"), l)
	if t.Failed() {
		return
	}
	// The page says of which version all this is true.
	said := "ClickHouse " + strings.Join(strings.Split(fmt.Sprint(out[len(l)-1].Rows[0]["version"]), ".")[:2], ".")
	if b, err := os.ReadFile(page); err != nil || !bytes.Contains(b, []byte(said+" ")) {
		t.Errorf("the page does not say %s (%v)", said, err)
	}
	for i, q := range questions {
		rows := out[first+i].Rows
		if len(rows) == 0 {
			t.Errorf("%s: ClickHouse finds nothing", q.search)
			continue
		}
		got, want, err := compare(t, db, now, strings.ReplaceAll(q.search, "cred_…", handle), rows)
		if err != nil {
			t.Errorf("%s: %v", q.search, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: ClickHouse's answer and the store's differ (-store +ClickHouse):\n%s", q.search, diff)
		}
		t.Logf("%-70s %5d rows", q.search, len(rows))
	}
}

// compare makes one form of both answers.
func compare(t *testing.T, db *store.DB, now time.Time, search string, rows []map[string]any) (got, want []string, err error) {
	t.Helper()
	terms := regexp.MustCompile("`(.*?)`").FindStringSubmatch(search)
	query := ""
	if terms != nil {
		query = terms[1]
	}
	ask := func(extra string) store.Query {
		f, err := audit.ParseFilter(strings.TrimSpace(query+" "+extra), now)
		if err != nil {
			t.Fatal(err)
		}
		return store.Query{Filter: f, Limit: 50}
	}
	add := func(l *[]string, v ...any) { *l = append(*l, fmt.Sprint(v...)) }
	switch {
	case strings.HasPrefix(search, "facets"):
		x, e := db.Facets(t.Context(), ask("type:request"), []string{"host"}, 10)
		if e != nil || len(x.Facets) != 1 {
			return nil, nil, errors.Join(e, errors.New("no facet"))
		}
		for _, v := range x.Facets[0].Values {
			add(&want, v.Count.Count)
		}
		for _, r := range rows { // which of those with equal counts come is open
			add(&got, r["n"])
		}
	case strings.HasPrefix(search, "histogram"):
		b, e := db.Histogram(t.Context(), ask("type:request since:30d"), 6*time.Hour)
		if err = e; err != nil {
			return nil, nil, err
		}
		for _, x := range b {
			if x.Count > 0 {
				add(&want, x.Start.UTC().Format(time.DateTime), " ", x.Count, " ", x.Denied)
			}
		}
		for _, r := range rows {
			at, _ := r["t"].(string)
			add(&got, strings.SplitN(at, ".", 2)[0], " ", r["n"], " ", r["denied"])
		}
	case strings.HasPrefix(search, "first seen"):
		g, e := db.FirstSeen(t.Context(), ask("type:request since:7d"), []string{"agent", "host"}, 100_000)
		if err = e; err != nil {
			return nil, nil, err
		}
		for _, x := range g {
			add(&want, strings.Join(x.Values, " "))
		}
		for _, r := range rows {
			add(&got, r["agent"], " ", r["host"])
		}
		slices.Sort(want)
		slices.Sort(got)
	default:
		p, e := db.Search(t.Context(), ask(""))
		if err = e; err != nil {
			return nil, nil, err
		}
		ids := map[string]bool{}
		for _, r := range p.Rows {
			ids[r.ID] = true
		}
		want = slices.Sorted(maps.Keys(ids))
		clear(ids)
		for _, r := range rows {
			id, _ := r["id"].(string)
			ids[id] = true
		}
		got = slices.Sorted(maps.Keys(ids))
	}
	return got, want, nil
}
