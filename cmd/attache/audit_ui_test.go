package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
)

func deniedRecord() *audit.Record {
	return &audit.Record{
		Type: audit.TypeEnd, Time: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), Workload: &audit.Workload{ID: "spiffe://attache.local/agent/bot", Namespace: "local", ServiceAccount: "bot"},
		Request:  &audit.Request{Host: "api.example.com", Port: 443, Scheme: "https", Method: "POST", Path: "/v1/notes", Protocol: "http"},
		Decision: &audit.Decision{Verdict: "deny", Code: "denied"}, Result: &audit.Result{Outcome: audit.OutcomeDenied},
	}
}

// The pages read the documents of --config, or say that none are known; and
// once the patch is among them, the call would be allowed.
func TestReviewPolicies(t *testing.T) {
	t.Setenv("ATTACHE_CONFIG", "")
	g := &global{state: t.TempDir()}
	if _, err := g.reviewPolicies(&places{}).Explain(t.Context(), deniedRecord()); err == nil || !strings.Contains(err.Error(), "--config") {
		t.Errorf("without documents: %v", err)
	}
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("config.yaml", "apiVersion: attache.dev/v1alpha1\nkind: AttacheConfig\nmetadata: {name: a}\nspec: {}\n")
	write("policy.yaml", "apiVersion: attache.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: bot}\nspec: {rules: [{name: read, hosts: [api.example.com], methods: [GET], action: allow}]}\n")
	p := g.reviewPolicies(&places{config: dir})
	text, err := p.Explain(t.Context(), deniedRecord())
	if err != nil || !strings.HasPrefix(text, "DENY") || !strings.Contains(text, "bot/read") {
		t.Errorf("explained: %q, %v", text, err)
	}
	patch, err := p.Patch(t.Context(), deniedRecord())
	if err != nil || !strings.Contains(patch, "/v1/notes") {
		t.Fatalf("patch: %q, %v", patch, err)
	}
	write("patch.yaml", patch)
	if text, err := p.Explain(t.Context(), deniedRecord()); err != nil || !strings.HasPrefix(text, "ALLOW") {
		t.Errorf("with the patch: %q, %v", text, err)
	}
	reach, err := p.Reach(t.Context(), deniedRecord().Workload)
	if err != nil || len(reach) != 2 || reach[0].Hosts[0] != "api.example.com" {
		t.Errorf("reach: %+v, %v", reach, err)
	}
	for name, r := range map[string]*audit.Record{"no workload": {Request: &audit.Request{Host: "x"}}, "no request": {Workload: deniedRecord().Workload}, "a workload that is none": {Workload: &audit.Workload{ID: "x"}, Request: &audit.Request{Host: "x"}}} {
		if _, err := p.Explain(t.Context(), r); err == nil {
			t.Errorf("%s: explained", name)
		}
	}
}
