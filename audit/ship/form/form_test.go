package form_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ship/form"
	"github.com/attache-dev/attache/audit/ship/internal/sinktest"
)

func begin(t *testing.T, seq uint64, id string) audit.Line {
	return sinktest.Line(t, "e1", seq, audit.Record{Type: audit.TypeBegin, ID: id, Request: &audit.Request{Host: "a.example.com", Method: "GET", Path: "/"}})
}

func end(t *testing.T, seq, of uint64, id string) audit.Line {
	return sinktest.Line(t, "e1", seq, audit.Record{Type: audit.TypeEnd, ID: id, BeginEpoch: "e1", BeginSequence: of, Result: &audit.Result{Outcome: audit.OutcomeOK, Status: 200}})
}

func open(t *testing.T, format, path string) *form.Former {
	t.Helper()
	f, err := form.Open(format, path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func feed(t *testing.T, f *form.Former, lines ...audit.Line) *form.Formed {
	t.Helper()
	x, err := f.Form(lines)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func commit(t *testing.T, x *form.Formed) {
	t.Helper()
	if err := x.Commit(); err != nil {
		t.Fatal(err)
	}
}

func whole(t *testing.T, e form.Event) {
	t.Helper()
	var x struct {
		HTTP struct {
			URL struct{ Hostname string } `json:"url"`
		} `json:"http_request"`
		Response struct{ Code int } `json:"http_response"`
	}
	if err := json.Unmarshal(e.JSON, &x); err != nil || x.HTTP.URL.Hostname != "a.example.com" || x.Response.Code != 200 {
		t.Errorf("not whole: %v %s", err, e.JSON)
	}
}

func TestABeginWaitsForItsEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "begun")
	f := open(t, form.OCSF, path)
	x := feed(t, f, begin(t, 1, "r1"), begin(t, 2, "r2"), end(t, 3, 1, "r1"))
	if len(x.Events) != 1 || x.Events[0].ID != "r1" {
		t.Fatalf("events %+v", x.Events)
	}
	whole(t, x.Events[0])
	commit(t, x)

	f = open(t, form.OCSF, path) // another process
	again := feed(t, f, end(t, 4, 2, "r2"))
	whole(t, again.Events[0])
	// Killed before the commit, the same lines come again and are as whole.
	f = open(t, form.OCSF, path)
	again = feed(t, f, end(t, 4, 2, "r2"))
	whole(t, again.Events[0])
	commit(t, again)
	if b, err := os.ReadFile(path); err != nil || len(b) != 0 {
		t.Errorf("nothing waits any more, and the file has %q (%v)", b, err)
	}
	alone := feed(t, f, end(t, 9, 8, "r9")) // its begin was never seen
	if len(alone.Events) != 1 {
		t.Errorf("an end alone gave %d events", len(alone.Events))
	}
}

// TestABatchThatFailedChangesNothing: what is not committed comes again.
func TestABatchThatFailedChangesNothing(t *testing.T) {
	f := open(t, form.OCSF, filepath.Join(t.TempDir(), "begun"))
	commit(t, feed(t, f, begin(t, 1, "r1")))
	for range 3 {
		x := feed(t, f, end(t, 2, 1, "r1"))
		whole(t, x.Events[0])
	}
}

func TestTooManyBegins(t *testing.T) {
	f := open(t, form.OCSF, "")
	var lines []audit.Line
	for i := range 20_000 {
		lines = append(lines, begin(t, uint64(i+1), fmt.Sprintf("r%d", i)))
	}
	commit(t, feed(t, f, lines...))
	x := feed(t, f, begin(t, 30_000, "r30000"), begin(t, 30_001, "r30001"))
	if len(x.Events) != 2 || x.Events[0].ID != "r0" || x.Events[1].ID != "r1" {
		t.Fatalf("%d events; want the two oldest, as open", len(x.Events))
	}
	commit(t, x)
	if x := feed(t, f, end(t, 30_002, 3, "r2")); len(x.Events) != 1 {
		t.Errorf("%d events", len(x.Events))
	} else {
		whole(t, x.Events[0])
	}
}

// Long begins are told as open before they fill the memory.
func TestBytesOfBegins(t *testing.T) {
	f := open(t, form.OCSF, "")
	told := 0
	for n := range uint64(70) { // no spool of ours writes such a line
		text := fmt.Appendf(nil, `{"schema":%q,"type":"begin","id":"r%d","epoch":"e1","sequence":%d,"time":"2026-03-01T12:00:00Z","request":{"path":%q}}`, audit.SchemaVersion, n, n+1, strings.Repeat("/x", 500_000))
		x := feed(t, f, audit.Line{Epoch: "e1", Sequence: n + 1, JSON: text})
		told += len(x.Events)
		commit(t, x)
	}
	if told < 2 || told > 5 {
		t.Errorf("%d of 70 begins of 1 MB are told as open", told)
	}
}

// Who names another's line as its begin gets nothing of it, and takes nothing
// from the end that is to come.
func TestAnEndOfAnotherRecord(t *testing.T) {
	f := open(t, form.OCSF, "")
	commit(t, feed(t, f, begin(t, 1, "r1")))
	x := feed(t, f, end(t, 2, 1, "thief"))
	if len(x.Events) != 1 || bytes.Contains(x.Events[0].JSON, []byte("a.example.com")) {
		t.Errorf("the thief's event: %s", x.Events[0].JSON)
	}
	commit(t, x)
	if x := feed(t, f, end(t, 3, 1, "r1")); len(x.Events) != 1 {
		t.Errorf("%d events", len(x.Events))
	} else {
		whole(t, x.Events[0])
	}
}

func TestLinesStayAsTheyAre(t *testing.T) {
	l := begin(t, 1, "r1")
	x := feed(t, open(t, form.Lines, ""), l)
	if got := append(bytes.Clone(x.Events[0].JSON), '\n'); !bytes.Equal(got, l.AppendTo(nil)) {
		t.Errorf("%q", got)
	}
	back, err := audit.ParseLine(x.Events[0].JSON)
	if err != nil || !bytes.Equal(back.JSON, l.JSON) {
		t.Errorf("parsed %v, %v", back, err)
	}
}

func TestDamagedLines(t *testing.T) {
	bad := audit.Line{Epoch: "e1", Sequence: 2, JSON: []byte(`{"time":17}`)}
	x := feed(t, open(t, form.ECS, ""), bad, end(t, 3, 1, "r1"))
	if len(x.Damaged) != 1 || x.Damaged[0].Sequence != 2 || len(x.Events) != 1 {
		t.Errorf("damaged %v, events %d", x.Damaged, len(x.Events))
	}
	if _, err := form.Open("yaml", ""); err == nil {
		t.Error("format yaml is taken")
	}
}

// FuzzForm feeds lines and a state file of any content: no panic, and no event
// without JSON.
func FuzzForm(f *testing.F) {
	f.Add([]byte(`{"type":"begin","epoch":"e1","sequence":1}`), []byte("x"), uint64(1))
	f.Add([]byte(`{"type":"end","begin_epoch":"e1","begin_sequence":1}`), []byte("{}\t00000000\n"), uint64(2))
	f.Fuzz(func(t *testing.T, line, state []byte, seq uint64) {
		path := filepath.Join(t.TempDir(), "begun")
		if err := os.WriteFile(path, state, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, format := range []string{form.OCSF, form.ECS, form.Lines} {
			x, err := open(t, format, path).Form([]audit.Line{{Epoch: "e1", Sequence: seq, JSON: line}})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range x.Events {
				if format != form.Lines && !json.Valid(e.JSON) {
					t.Fatalf("%s: %q", format, e.JSON)
				}
			}
			commit(t, x)
		}
	})
}
