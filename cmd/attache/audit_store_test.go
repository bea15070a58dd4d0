package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

// attache runs the command and returns what it printed.
func attache(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c, _ := root()
	c.SetOut(&out)
	c.SetErr(&out)
	c.SetArgs(exclusionsLast(args))
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

// The same words answer the same of spools and of a store that imported them.
func TestAuditOfAStore(t *testing.T) {
	t.Setenv("ATTACHE_CONFIG", "")
	base := t.TempDir()
	dir, db := filepath.Join(base, "spool"), "sqlite:"+filepath.Join(base, "audit.db")
	s, err := audit.Open(audit.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for i, host := range []string{"a.example.com", "b.example.com", "a.example.com"} {
		r := &audit.Record{ID: "rec_" + strings.Repeat(string(rune('0'+i)), 8), Owner: "ana", Request: &audit.Request{Host: host, Path: "/v1/x"},
			Decision: &audit.Decision{Verdict: "deny"}, Result: &audit.Result{Outcome: audit.OutcomeDenied}}
		if err := s.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // again: nothing new
		if out, err := attache(t, "audit", "import", "--dir", dir, "--store", db); err != nil {
			t.Fatalf("import: %v\n%s", err, out)
		}
	}
	for _, args := range [][]string{
		{"search", "dest:a.example.com"}, {"search", "-n", "0", "owner:ana"}, {"search", "-n", "1"}, {"search", "-host:a.example.com"}, {"show", "rec_11111111"},
		{"facets", "--by", "host,owner"},
	} {
		args = append([]string{"audit", "-o", "json"}, args...)
		want, err := attache(t, append(args, "--dir", dir)...)
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		got, err := attache(t, append(args, "--store", db)...)
		if err != nil || got != want || want == "" {
			t.Errorf("%v of the store: %v\n%swant\n%s", args, err, got, want)
		}
	}
	if out, err := attache(t, "audit", "-o", "json", "import", "--dir", dir, "--store", db); err != nil || !strings.Contains(out, `"stored": 0`) || !strings.Contains(out, dir) {
		t.Errorf("import: %v\n%s", err, out)
	}
	out, err := attache(t, "audit", "facets", "--by", "host", "--store", db)
	if err != nil || !strings.Contains(out, "3 records, 3 denied") || !strings.Contains(out, "a.example.com") {
		t.Errorf("facets: %v\n%s", err, out)
	}
	var f store.Facets
	if out, err = attache(t, "audit", "-o", "json", "facets", "dest:b*", "--store", db); err != nil || json.Unmarshal([]byte(out), &f) != nil || f.Total.Count != 1 {
		t.Errorf("facets: %v\n%s", err, out)
	}
	for _, bad := range [][]string{{"search", "hots:x", "--store", db}, {"facets", "--by", "path", "--store", db}, {"search", "--store", "mysql://x"}, {"search", "--store", "sqlite:" + base + "/none.db"}, {"import", "--dir", dir}, {"verify", "--store", "sqlite:" + base + "/none.db"}, {"verify", "--dir", base + "/none"}} {
		_, err := attache(t, append([]string{"audit"}, bad...)...)
		var x failure
		if !errors.As(err, &x) || x.status != 2 {
			t.Errorf("%v: %v, want exit code 2", bad, err)
		}
	}
	if _, err := attache(t, "audit", "search", "--store", "sqlite:"+base+"/none.db"); err == nil || !strings.Contains(err.Error(), "attache audit import --store sqlite:") {
		t.Errorf("a store that is not there: %v", err)
	}
	if _, err := attache(t, "audit", "show", "rec_none", "--store", db); !errors.Is(err, audit.ErrNotFound) {
		t.Errorf("show of nothing: %v", err)
	}
}

// A word that is no command, and missing arguments, are mistakes that say what
// to write, not help with success.
func TestMistypedCommands(t *testing.T) {
	for args, want := range map[string]string{
		"audit exprot":  `unknown command "exprot" for "attache audit"; attache audit --help lists them`,
		"policy chekc":  `unknown command "chekc" for "attache policy"`,
		"audit show":    "usage: attache audit show ID",
		"policy replay": "usage: attache policy replay DIR [QUERY]",
		"status x":      "usage: attache status",
	} {
		out, err := attache(t, strings.Fields(args)...)
		if err == nil || !strings.Contains(err.Error(), want) || out != "" {
			t.Errorf("%s: %v %q, want %s", args, err, out, want)
		}
	}
	if out, err := attache(t, "audit"); err != nil || !strings.Contains(out, "Available Commands") {
		t.Errorf("a group alone: %v\n%s", err, out)
	}
	if out, err := attache(t, "status", "-o", "json", "--state", t.TempDir()); err != nil || out != "[]\n" {
		t.Errorf("status of nothing: %v %q", err, out)
	}
}
