package export

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/internal/golden"
)

// Each record of each kind is in each format, and says which it is.
func TestFormats(t *testing.T) {
	records := golden.Records()
	for _, format := range Formats() {
		t.Run(format, func(t *testing.T) {
			f, ok := Of(format)
			if !ok || f.MIME == "" || f.Extension == "" {
				t.Errorf("got %+v", f)
			}
			var out bytes.Buffer
			w, err := New(format, &out)
			if err != nil {
				t.Fatal(err)
			}
			for i := range records {
				if err := w.Write(&records[i].Record); err != nil {
					t.Fatalf("%s: %v", records[i].Name, err)
				}
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			if format == CSV {
				rows, err := csv.NewReader(&out).ReadAll()
				if err != nil || len(rows) != len(records)+1 || len(rows[0]) != len(columns()) {
					t.Fatalf("%v: %d rows of %d cells", err, len(rows), len(rows[0]))
				}
				for i, r := range rows[1:] {
					if x := &records[i].Record; r[1] != x.ID || r[0] != x.Time.Format(time.RFC3339Nano) {
						t.Errorf("%s: got %v", records[i].Name, r)
					}
				}
				return
			}
			marks := map[string]string{JSON: "schema", OCSF: "class_uid", ECS: "@timestamp"}
			n := 0
			for line := range strings.Lines(out.String()) {
				n++
				var v map[string]any
				if err := json.Unmarshal([]byte(line), &v); err != nil || v[marks[format]] == nil {
					t.Fatalf("%v: %s", err, line)
				}
			}
			if n < len(records) || format != OCSF && n != len(records) {
				t.Errorf("%d lines of %d records", n, len(records))
			}
		})
	}
	if _, err := New("xml", nil); err == nil || err.Error() != `format is "xml"; must be one of csv, json, ocsf, ecs` {
		t.Errorf("got %v", err)
	}
	if _, ok := Of("xml"); ok {
		t.Error("xml is a format")
	}
}

// The columns that say what was done follow the protocol.
func TestColumns(t *testing.T) {
	at := map[string]int{}
	for i, c := range columns() {
		at[c] = i
	}
	for _, tt := range []struct {
		name string
		r    audit.Record
		want map[string]string
	}{
		{"request", audit.Record{Request: &audit.Request{Method: "GET", Host: "a.example.com", Path: "/x", Protocol: "http"}, Result: &audit.Result{Outcome: "ok", Status: 200}},
			map[string]string{"method": "GET", "host": "a.example.com", "path": "/x", "protocol": "http", "status": "200", "outcome": "ok"}},
		{"AWS", audit.Record{Request: &audit.Request{Method: "GET"}, Credential: &audit.Use{Handle: "cred_1", AWS: &audit.AWSUse{Operation: "GetObject", Resources: []string{"a", "b"}}}},
			map[string]string{"method": "GetObject", "resources": "a b", "credential": "cred_1", "outcome": "open", "status": ""}},
		{"SQL", audit.Record{SQL: &audit.SQL{Operation: "SELECT", Statement: "SELECT ?"}}, map[string]string{"method": "SELECT", "statement": "SELECT ?"}},
		{"SSH", audit.Record{SSH: &audit.SSH{Operation: "exec", Command: "uptime"}}, map[string]string{"method": "exec", "statement": "uptime"}},
		{"event", audit.Record{Event: &audit.Event{Name: "x.y", Fields: map[string]string{"b": "2", "a": "=1", "c": "", "handle": "cred_2"}}},
			map[string]string{"outcome": "event", "event": "x.y", "event_fields": "a==1 b=2 handle=cred_2", "credential": "cred_2"}},
		{"a human without mail", audit.Record{Human: &audit.Human{Subject: "s"}}, map[string]string{"human": "s"}},
	} {
		var out bytes.Buffer
		w, err := New(CSV, &out)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Write(&tt.r); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		rows, err := csv.NewReader(&out).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		for c, want := range tt.want {
			if got := rows[1][at[c]]; got != want {
				t.Errorf("%s: %s is %q, want %q", tt.name, c, got, want)
			}
		}
	}
}

func TestCell(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "a": "a", "a-b": "a-b", "=1+1": "'=1+1", " =1": "' =1", "+1": "'+1", "-1": "'-1", "@x": "'@x", "|x": "'|x", "%x": "'%x", "＝1": "'＝1", "'x": "''x",
		"\t=1": `\u0009=1`, "a\nb": `a\u000ab`, "a;b": "a;b", "a;=1": "a;'=1", `a; "=1";@b`: `a;' "=1";'@b`, ";": ";", "a;": "a;",
	} {
		if got := cell(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

// FuzzCell: no cell is a formula, whichever character separates cells, and none
// has what a terminal would obey.
func FuzzCell(f *testing.F) {
	for _, s := range []string{`=cmd|'/c calc'!A1`, "+1+1", "@SUM(A1)", "-2+3", "\t=1", "a;=1", `x;"=1"`, "x\u202e", "＝1", "\x00", "; ; +1", `"";"";=1`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := cell(s)
		var b bytes.Buffer
		w := csv.NewWriter(&b)
		if err := w.Write([]string{"x", got, "y"}); err != nil {
			t.Fatal(err)
		}
		w.Flush()
		if rows, err := csv.NewReader(bytes.NewReader(b.Bytes())).ReadAll(); err != nil || len(rows) != 1 || rows[0][1] != got {
			t.Fatalf("%q is not one cell: %v %q", s, err, rows)
		}
		for _, part := range append(strings.Split(got, ";"), got) {
			part = strings.TrimLeft(part, ` "`)
			if part != "" && strings.ContainsAny(part[:1], "=+-@\t\r\n|%") {
				t.Errorf("%q becomes %q", s, got)
			}
		}
		for _, r := range got {
			if !unicode.IsPrint(r) {
				t.Errorf("%q has %U", got, r)
			}
		}
	})
}
