package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/policy/replay"
	"github.com/attache-dev/attache/policy/suggest"
)

const narrowed = `apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: now}
spec: {rules: [{name: read, hosts: [api.test], methods: [GET], action: allow}]}
`

// spoolOf writes records as a run does, and returns its folder.
func spoolOf(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "spool")
	s, err := audit.Open(audit.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][3]string{{"GET", "/orders/1", "allow"}, {"GET", "/orders/2", "allow"}, {"POST", "/orders", "allow"}, {"DELETE", "/orders/1", "deny"}} {
		r := &audit.Record{ID: "rec_" + c[0] + c[1][len(c[1])-1:], Time: time.Now(), Workload: &audit.Workload{ID: "spiffe://attache.local/agent/writer", Namespace: "local"},
			Request:  &audit.Request{Host: "api.test", Port: 443, Scheme: "https", Method: c[0], Path: c[1], Protocol: "http"},
			Decision: &audit.Decision{Verdict: c[2], Policy: "wide", Rule: "all"}, Result: &audit.Result{Outcome: audit.OutcomeOK}}
		if c[2] == "deny" {
			r.Decision.Code = "denied"
		}
		if err := s.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func command(t *testing.T, args ...string) (string, error) {
	t.Helper()
	t.Setenv("ATTACHE_CONFIG", "")
	t.Setenv("ATTACHE_STATE", t.TempDir())
	c, _ := root()
	var out bytes.Buffer
	c.SetOut(&out)
	c.SetErr(&out)
	c.SetArgs(args)
	err := c.ExecuteContext(context.Background())
	return out.String(), err
}

// What new documents would change, from a spool and from a store.
func TestPolicyReplay(t *testing.T) {
	dir, spool := t.TempDir(), spoolOf(t)
	if err := os.WriteFile(filepath.Join(dir, "p.yaml"), []byte(narrowed), 0o600); err != nil {
		t.Fatal(err)
	}
	url := "sqlite:" + filepath.Join(t.TempDir(), "records.db")
	db, err := store.Open(t.Context(), url, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ImportSpool(t.Context(), spool); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for _, from := range [][]string{{"--dir", spool}, {"--store", url}} {
		out, err := command(t, append([]string{"policy", "replay", dir, "-o", "json"}, from...)...)
		if err != nil {
			t.Fatalf("%v: %v %s", from, err, out)
		}
		var r replay.Report
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		if r.Requests != 4 || r.Same != 3 || len(r.Changes) != 1 || r.Changes[0].Kind != replay.NewlyDenied || r.Changes[0].Method != "POST" {
			t.Errorf("%v: %+v", from, r)
		}
		out, err = command(t, append([]string{"policy", "replay", dir, "--fail"}, from...)...)
		if e, ok := err.(exit); !ok || e != 1 || !strings.Contains(out, "newly denied: POST api.test/orders, once at") { //nolint:errorlint // it is returned as it is
			t.Errorf("%v --fail: %v\n%s", from, err, out)
		}
	}
	if out, err := command(t, "policy", "replay", dir, "--fail", "--dir", spool, "method:GET"); err != nil || !strings.Contains(out, "2 requests: 2 decided as before, 0 otherwise") {
		t.Errorf("%v %s", err, out)
	}
	if out, err := command(t, "policy", "replay", dir, "--dir", spool, "--since", "nonsense"); err == nil {
		t.Errorf("a time that is none: %s", out)
	}
	if err := os.WriteFile(filepath.Join(dir, "p.yaml"), []byte(strings.Replace(narrowed, "action: allow", "action: perhaps", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := command(t, "policy", "replay", dir, "--dir", spool); err == nil || !strings.Contains(err.Error(), "perhaps") {
		t.Errorf("documents with a mistake: %v", err)
	}
}

// What is suggested passes check, and replays without a change.
func TestPolicySuggest(t *testing.T) {
	spool, dir := spoolOf(t), t.TempDir()
	out, err := command(t, "policy", "suggest", "--agent", "writer", "--dir", spool)
	if err != nil || !strings.Contains(out, "/orders/{id}") || strings.Contains(out, "DELETE") {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "p.yaml"), []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := command(t, "policy", "check", dir); err != nil {
		t.Errorf("check: %v %s", err, out)
	}
	if out, err := command(t, "policy", "replay", dir, "--fail", "--dir", spool); err != nil || !strings.Contains(out, "4 requests: 4 decided as before") {
		t.Errorf("replay: %v %s", err, out)
	}
	out, err = command(t, "policy", "suggest", "--agent", "spiffe://attache.local/agent/writer", "--dir", spool, "-o", "json", "method:POST")
	var s suggest.Suggestion
	if err != nil || json.Unmarshal([]byte(out), &s) != nil || s.Requests != 1 || len(s.Rules) != 1 {
		t.Errorf("%v %s", err, out)
	}
	if out, err := command(t, "policy", "suggest", "--agent", "nobody", "--dir", spool); err == nil || !strings.Contains(err.Error(), "nothing to suggest") {
		t.Errorf("%v %s", err, out)
	}
	if out, err := command(t, "policy", "suggest", "--dir", spool); err == nil || !strings.Contains(err.Error(), "--agent") {
		t.Errorf("%v %s", err, out)
	}
}
