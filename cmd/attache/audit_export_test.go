package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/export"
	"github.com/attache-dev/attache/internal/reads"
	"github.com/attache-dev/attache/internal/storeurl"
)

// separate runs the command and returns what it printed, apart.
func separate(t *testing.T, args ...string) (out, told string, err error) {
	t.Helper()
	var o, e bytes.Buffer
	c, _ := root()
	c.SetOut(&o)
	c.SetErr(&e)
	c.SetArgs(exclusionsLast(args))
	err = c.ExecuteContext(t.Context())
	return o.String(), e.String(), err
}

// written makes a spool below a state folder with n records of each of two
// owners, and a store of it.
func written(t *testing.T, n int) (state, url string) {
	t.Helper()
	t.Setenv("ATTACHE_CONFIG", "")
	base := t.TempDir()
	state, url = filepath.Join(base, "state"), "sqlite:"+filepath.Join(base, "records.db")
	for i, owner := range []string{"ana", "=1+1"} {
		s, err := audit.Open(audit.Options{Dir: filepath.Join(state, "audit", fmt.Sprint(i))})
		if err != nil {
			t.Fatal(err)
		}
		for j := range n {
			r := &audit.Record{ID: fmt.Sprintf("rec_%d_%d", i, j), Time: time.Now(), Owner: owner, Request: &audit.Request{Host: "a.example.com", Method: "GET", Path: "/v1/x"},
				Decision: &audit.Decision{Verdict: "allow"}, Result: &audit.Result{Outcome: audit.OutcomeOK, Status: 200}}
			if err := s.Write(r); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := attache(t, "audit", "import", "--state", state, "--store", url); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	return state, url
}

// The same records come of spools and of a store, in each format, and both are
// recorded before and after.
func TestAuditExport(t *testing.T) {
	state, url := written(t, 3)
	file := filepath.Join(t.TempDir(), "x")
	for _, format := range export.Formats() {
		for _, from := range [][]string{nil, {"--store", url}} {
			_ = os.Remove(file)
			out, told, err := separate(t, append([]string{"audit", "export", "--state", state, "--format", format, "-o", file, "owner:ana"}, from...)...)
			if err != nil || out != "" || !strings.Contains(told, "3 records in "+file) {
				t.Fatalf("%s %v: %v %q %q", format, from, err, out, told)
			}
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if fi, _ := os.Stat(file); fi.Mode().Perm() != 0o600 {
				t.Errorf("mode %v", fi.Mode())
			}
			direct, told, err := separate(t, append([]string{"audit", "export", "--state", state, "--format", format, "owner:ana"}, from...)...)
			if err != nil || direct != string(b) || told != "" {
				t.Errorf("%s %v: to standard output: %v %q", format, from, err, told)
			}
			for _, id := range []string{"rec_0_0", "rec_0_1", "rec_0_2"} {
				if !strings.Contains(direct, id) {
					t.Errorf("%s %v: no %s", format, from, id)
				}
			}
			if strings.Contains(direct, "rec_1_") {
				t.Errorf("%s %v: records of another owner", format, from)
			}
		}
	}
	found, _, err := separate(t, "audit", "search", "--state", state, "-o", "json", "event:audit.export")
	if err != nil {
		t.Fatal(err)
	}
	var states []string
	for line := range strings.Lines(found) {
		var r audit.Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		f := r.Event.Fields
		if f["by"] == "" || f["page"] != "attache audit export" || f["query"] != "owner:ana" || f["format"] == "" {
			t.Errorf("recorded %v", f)
		}
		states = append(states, f["state"]+f["records"])
	}
	slices.Sort(states)
	if len(states) != 32 || states[0] != "" || states[15] != "" || states[16] != "whole3" || states[31] != "whole3" {
		t.Errorf("recorded %q", states)
	}
}

func TestAuditExportTable(t *testing.T) {
	state, url := written(t, 2)
	file := filepath.Join(t.TempDir(), "x.csv") // its ending says the format
	if _, _, err := separate(t, "audit", "export", "--state", state, "--store", url, "-o", file); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil || len(rows) != 5 {
		t.Fatalf("%v: %d rows", err, len(rows))
	}
	at := slices.Index(rows[0], "owner")
	for _, r := range rows[1:] {
		if r[at] != "ana" && r[at] != "'=1+1" {
			t.Errorf("owner is %q", r[at])
		}
	}
}

// What cannot be exported leaves no file, and what was there before stays.
func TestAuditExportFails(t *testing.T) {
	state, url := written(t, 1)
	dir := t.TempDir()
	file := filepath.Join(dir, "x.json")
	if err := os.WriteFile(file, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"a format":               {[]string{"--format", "xml"}, `--format is "xml"; must be one of csv, json, ocsf, ecs`},
		"a format as a file":     {[]string{"-o", "csv"}, "--format csv"},
		"a folder":               {[]string{"-o", dir}, "is a folder"},
		"a folder that is not":   {[]string{"-o", filepath.Join(dir, "none", "x")}, "no such file"},
		"a query":                {[]string{"hots:x"}, "column 1"},
		"a store that is not":    {[]string{"--store", "sqlite:" + dir + "/none.db"}, "attache audit import"},
		"a spool that is not":    {[]string{"--dir", dir + "/none"}, "is no folder with a spool"},
		"two places":             {[]string{"--store", url, "--dir", dir}, "two places"},
		"a flag that is unheard": {[]string{"--log-level", "debug"}, "has no meaning"},
	} {
		out, _, err := separate(t, append([]string{"audit", "export", "--state", state}, tt.args...)...)
		if err == nil || !strings.Contains(err.Error(), tt.want) || out != "" {
			t.Errorf("%s: %v %q", name, err, out)
		}
	}
	// A damaged store ends it in the middle.
	path := strings.TrimPrefix(url, "sqlite:")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+"2", b[:len(b)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := separate(t, "audit", "export", "--state", state, "--store", url+"2", "-o", file); err == nil {
		t.Error("half a store is exported")
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "before" {
		t.Errorf("%v: the file is %q", err, b)
	}
	if l, _ := os.ReadDir(dir); len(l) != 1 {
		t.Errorf("left behind: %v", l)
	}
	// Where it cannot be recorded, nothing is given.
	if err := os.WriteFile(filepath.Join(dir, "state"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _, err := separate(t, "audit", "export", "--state", filepath.Join(dir, "state"), "--store", url); err == nil || !strings.Contains(err.Error(), "cannot be recorded") || out != "" {
		t.Errorf("unrecorded: %v %q", err, out)
	}
}

// An interrupted export leaves no file, and is recorded as broken off.
func TestAuditExportInterrupted(t *testing.T) {
	state, url := written(t, 1)
	dir := t.TempDir()
	for _, from := range []*reading{{p: &places{g: &global{state: state}, store: storeurl.Flag(url)}}, {p: &places{g: &global{state: state}}, dirs: []string{filepath.Join(state, "audit", "0")}}} {
		ctx, cancel := context.WithCancel(t.Context())
		to, err := openOutput(nil, filepath.Join(dir, "x"))
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := from.write(ctx, export.JSON, to); !errors.Is(err, context.Canceled) {
			t.Errorf("it went on: %v", err)
		}
		if err := to.drop(); err != nil {
			t.Error(err)
		}
		c, _ := root()
		if err := from.export(ctx, c, export.JSON, filepath.Join(dir, "x")); err == nil {
			t.Error("it is whole")
		}
	}
	if l, _ := os.ReadDir(dir); len(l) != 0 {
		t.Errorf("left behind: %v", l)
	}
	if out, _, err := separate(t, "audit", "search", "--state", state, "event:audit.export"); err != nil || !strings.Contains(out, "state=broken off") {
		t.Errorf("%v %s", err, out)
	}
}

// Memory does not grow with the number of records.
func TestAuditExportStreams(t *testing.T) {
	peak := func(n int) uint64 {
		state, _ := written(t, n)
		r := &reading{p: &places{g: &global{state: state}}, dirs: []string{filepath.Join(state, "audit", "0"), filepath.Join(state, "audit", "1")}}
		w := &measuring{}
		got, err := r.write(t.Context(), export.OCSF, w)
		if err != nil || got != 2*n {
			t.Fatalf("%d records, %v", got, err)
		}
		return w.peak
	}
	small, large := peak(500), peak(10_000)
	if large > 2*small+8<<20 {
		t.Errorf("the heap is %d KiB with 1,000 records and %d KiB with 20,000", small>>10, large>>10)
	}
}

// measuring looks at what is alive, from time to time.
type measuring struct {
	n    int
	peak uint64
}

func (m *measuring) Write(p []byte) (int, error) {
	if m.n += len(p); m.n > 1<<20 {
		m.n = 0
		var s runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&s)
		m.peak = max(m.peak, s.HeapAlloc)
	}
	return len(p), nil
}

// In a pod of the control plane each command tells what it reads, and shows
// nothing where that cannot be recorded.
func TestReadingsAreTold(t *testing.T) {
	state, url := written(t, 1)
	policies := t.TempDir()
	if err := os.WriteFile(filepath.Join(policies, "p.yaml"), []byte(narrowed), 0o600); err != nil {
		t.Fatal(err)
	}
	short, err := os.MkdirTemp("", "r")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(short) })
	socket := filepath.Join(short, "s")
	t.Setenv(reads.Env, socket)
	commands := [][]string{
		{"audit", "search", "owner:ana"}, {"audit", "show", "rec_0_0"}, {"audit", "facets", "owner:ana"}, {"audit", "tail", "owner:ana"}, {"audit", "export", "owner:ana"},
		{"policy", "replay", policies, "owner:ana"}, {"policy", "suggest", "--agent", "x", "owner:ana"},
	}
	places := [][]string{{"--store", url}, {"--dir", filepath.Join(state, "audit", "0")}}
	for _, args := range commands {
		for _, place := range places {
			out, _, err := separate(t, append(append(slices.Clone(args), "--state", state), place...)...)
			if err == nil || !strings.Contains(err.Error(), "cannot be recorded that you look") || out != "" {
				t.Errorf("%v %v, unrecorded: %v %q", args, place, err, out)
			}
		}
	}
	ln, err := reads.Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan map[string]string, 100)
	s := &http.Server{Handler: reads.Handler("the pod", func(_ context.Context, r *audit.Record) error { //nolint:gosec // a test
		r.Event.Fields["event"] = r.Event.Name
		told <- r.Event.Fields
		return nil
	})}
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(func() { _ = s.Close() })
	for _, args := range commands {
		if args[1] == "tail" {
			continue // does not end
		}
		for _, place := range places {
			_, _, _ = separate(t, append(append(slices.Clone(args), "--state", state), place...)...) // some find nothing
			f := <-told
			want := audit.EventAuditQuery
			if args[1] == "export" {
				want = audit.EventAuditExport
				if end := <-told; end["state"] != "whole" || end["records"] != "1" {
					t.Errorf("%v: %v", args, end)
				}
			}
			if f["event"] != want || f["page"] != "attache "+args[0]+" "+args[1] || f["by"] != "the pod" || args[1] != "show" && !strings.Contains(f["query"], "owner:ana") {
				t.Errorf("%v %v: told %v", args, place, f)
			}
		}
	}
	if len(told) != 0 {
		t.Errorf("%d more", len(told))
	}
	if l, _ := os.ReadDir(filepath.Join(state, "audit")); len(l) != 2 {
		t.Error("it is recorded here, too")
	}
}

// What is printed for nothing says so, and where was looked; a program gets an
// empty answer.
func TestNothingMatches(t *testing.T) {
	state, url := written(t, 1)
	for _, args := range [][]string{{"search"}, {"facets"}, {"export", "-o", filepath.Join(t.TempDir(), "x")}} {
		for _, from := range []struct {
			args []string
			want string
		}{{[]string{"--store", url}, url}, {nil, "2 spools below " + filepath.Join(state, "audit")}, {[]string{"--dir", filepath.Join(state, "audit", "0")}, "the spool "}} {
			args := append(append([]string{"audit"}, args...), append(from.args, "owner:nobody", "since:2026-01-02", "until:2026-01-03", "--state", state)...)
			out, told, err := separate(t, args...)
			_ = os.RemoveAll(filepath.Join(state, "audit", "commands"))
			if err != nil || out != "" || !strings.Contains(told, "no records match owner:nobody") || !strings.Contains(told, from.want) || !strings.Contains(told, "from 2026-01-02 00:00:00 until 2026-01-03") {
				t.Errorf("%v: %v %q %q", args, err, out, told)
			}
		}
	}
	if out, told, err := separate(t, "audit", "search", "owner:nobody", "--state", state, "-o", "json"); err != nil || out != "" || told != "" {
		t.Errorf("as JSON: %v %q %q", err, out, told)
	}
	for at, want := range map[string]string{"postgres://u:secret@h/db?password=secret": "postgres://u:xxxxx@h/db", "postgres://%zz:secret@h": "the store", "sqlite:a.db": "sqlite:a.db"} {
		if got := storeName(at); got != want {
			t.Errorf("%s: got %s", at, got)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "p.yaml"), []byte(narrowed), 0o600); err != nil {
		t.Fatal(err)
	}
	var f failure
	out, told, err := separate(t, "policy", "replay", "--fail", dir, "agent:nobody", "--store", url)
	if !errors.As(err, &f) || f.status != 2 || out != "" || !strings.Contains(told, "no records match agent:nobody") {
		t.Errorf("replay --fail of nothing: %v %q %q", err, out, told)
	}
	if _, told, err := separate(t, "policy", "replay", dir, "agent:nobody", "--store", url); err != nil || !strings.Contains(told, "no records match") {
		t.Errorf("replay of nothing: %v %q", err, told)
	}
}

// The place of a mistake is shown, of a long query, too.
func TestMistakesArePointedAt(t *testing.T) {
	for query, want := range map[string]string{
		"owner:ana hots:x":     "\n  owner:ana hots:x\n            ^",
		"\x1b[2J é status:\"4": "\n  \\u001b[2J é status:\"4\n                     ^",
		strings.Repeat("é", 100) + " hots:x" + strings.Repeat("y", 100): "\n  " + strings.Repeat("é", 24) + " hots:x" + strings.Repeat("y", 19) + "\n  " + strings.Repeat(" ", 25) + "^",
		strings.Repeat("x ", 70):     "^",
		strings.Repeat("x", 5000):    "^",
		strings.Repeat("a,", 200_00): "^",
	} {
		_, err := filterOf([]string{query})
		var f failure
		if !errors.As(err, &f) || f.status != 2 || !strings.HasSuffix(err.Error(), want) || len(err.Error()) > 1500 {
			t.Errorf("%.40q: %v", query, err)
		}
	}
}

// Several spools are one document.
func TestOneDocument(t *testing.T) {
	state, url := written(t, 1)
	for _, args := range [][]string{{"verify"}, {"import", "--store", url}} {
		out, _, err := separate(t, append([]string{"audit", "--state", state, "-o", "json"}, args...)...)
		var l []struct{ Dir string }
		if err != nil || json.Unmarshal([]byte(out), &l) != nil || len(l) != 2 || l[0].Dir == "" || l[0].Dir == l[1].Dir {
			t.Errorf("%v: %v %s", args, err, out)
		}
	}
	for _, args := range [][]string{{"verify"}, {"search"}, {"import", "--store", url}} {
		_, _, err := separate(t, append([]string{"audit", "--state", state, "--dir", filepath.Join(state, "none")}, args...)...)
		var got failure
		if !errors.As(err, &got) || got.status != 2 || !strings.Contains(err.Error(), "is no folder with a spool") {
			t.Errorf("%v of a folder that is not: %v", args, err)
		}
	}
	typo := filepath.Join(t.TempDir(), "typo")
	if _, _, err := separate(t, "audit", "import", "--state", state, "--store", "sqlite:"+typo+"/x.db"); err == nil || !strings.Contains(err.Error(), "there is no folder "+typo) {
		t.Errorf("a folder mistyped: %v", err)
	}
	if _, err := os.Stat(typo); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it was made: %v", err)
	}
}

// A URL with a password is in a file, not in the list of processes.
func TestStoreOfAFile(t *testing.T) {
	state, url := written(t, 1)
	file := filepath.Join(t.TempDir(), "url")
	for text, want := range map[string]string{url + "\n": "", "": "holds no URL", "a\nb": "holds no URL", "mysql://u:secret@h/d": "must be sqlite:PATH"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"audit", "search", "owner:ana"}, {"audit", "verify"}, {"policy", "suggest", "--agent", "x"}} {
			out, _, err := separate(t, append(args, "--state", state, "--store", "@"+file)...)
			if want == "" && args[1] == "search" && (err != nil || !strings.Contains(out, "rec_0_0")) || want != "" && (err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret")) {
				t.Errorf("%v, %q: %v %q", args, text, err, out)
			}
		}
	}
	if _, _, err := separate(t, "audit", "search", "--store", "@"+file+"x"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a file that is not there: %v", err)
	}
}

// Flags that mean nothing for a command are not in its help.
func TestHelpShowsWhatIsUsed(t *testing.T) {
	for command, no := range map[string][]string{
		"witness": {"--store", "--config", "--state", "--output", "--log-level"}, "ui": {"--output"}, "schema": {"--dir", "--store", "--state"}, "search": {"--log-level"},
	} {
		out, _, err := separate(t, "audit", command, "--help")
		if err != nil || !strings.Contains(out, "Usage:") {
			t.Fatal(err)
		}
		for _, f := range no {
			if strings.Contains(out, f+" ") {
				t.Errorf("%s has %s:\n%s", command, f, out)
			}
			if _, _, err := separate(t, "audit", command, f, "json"); err == nil || !strings.Contains(err.Error(), "has no meaning") {
				t.Errorf("%s %s: %v", command, f, err)
			}
		}
	}
	if out, _, err := separate(t, "audit", "search", "--help"); err != nil || !strings.Contains(out, "--store") || !strings.Contains(out, "--output") {
		t.Errorf("%v\n%s", err, out)
	}
}
