package ecs_test

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ecs"
	"github.com/attache-dev/attache/audit/internal/golden"
)

// fields of ECS 8.17 and 9.0 that the mapping uses, with their types there.
var fields = map[string]string{
	"ecs.version": "keyword", "event.id": "keyword", "event.module": "keyword", "event.dataset": "keyword", "event.provider": "keyword", "event.sequence": "long",
	"event.kind": "keyword", "event.category": "keywords", "event.type": "keywords", "event.action": "keyword", "event.outcome": "keyword",
	"event.reason": "keyword", "event.code": "keyword", "event.duration": "long",
	"user.id": "keyword", "user.name": "keyword", "user.email": "keyword", "user.domain": "keyword", "user.roles": "keywords",
	"related.user": "keywords", "related.hosts": "keywords", "related.ip": "keywords",
	"orchestrator.namespace": "keyword", "orchestrator.resource.name": "keyword", "host.name": "keyword",
	"process.pid": "long", "process.executable": "keyword", "process.name": "keyword", "process.hash.sha256": "keyword", "process.user.id": "keyword",
	"url.scheme": "keyword", "url.domain": "keyword", "url.port": "long", "url.path": "keyword",
	"http.request.method": "keyword", "http.version": "keyword", "http.response.status_code": "long", "http.request.body.bytes": "long", "http.response.body.bytes": "long",
	"user_agent.original": "keyword", "trace.id": "keyword", "network.transport": "keyword", "network.protocol": "keyword",
	"destination.domain": "keyword", "destination.address": "keyword", "destination.ip": "ip", "destination.port": "long",
	"rule.name": "keyword", "rule.ruleset": "keyword", "rule.version": "keyword", "error.type": "keyword", "error.message": "keyword",
	"cloud.provider": "keyword", "cloud.account.id": "keyword", "cloud.region": "keyword", "cloud.service.name": "keyword",
}

// allowed values of the categorisation fields.
var allowed = map[string][]string{
	"event.kind":    {"alert", "event", "state"},
	"event.outcome": {"failure", "success", "unknown"},
	"event.category": {"api", "authentication", "configuration", "database", "driver", "email", "file", "host", "iam", "intrusion_detection", "library",
		"malware", "network", "package", "process", "registry", "session", "threat", "vulnerability", "web"},
	"event.type": {"access", "admin", "allowed", "change", "connection", "creation", "deletion", "denied", "end", "error", "group", "indicator",
		"info", "installation", "protocol", "start", "user"},
}

// TestGolden maps the same records as package ocsf, and holds them to the fields
// of ECS. UPDATE=1 rewrites the file.
func TestGolden(t *testing.T) {
	var got bytes.Buffer
	e := json.NewEncoder(&got)
	e.SetEscapeHTML(false)
	for _, n := range golden.Records() {
		seen := map[string]bool{}
		for _, a := range ecs.Attributes(&n.Record) {
			if seen[a.Key] {
				t.Errorf("%s: %s is there twice", n.Name, a.Key)
			}
			seen[a.Key] = true
			check(t, n.Name, a)
		}
		for _, key := range []string{"event.kind", "event.category", "event.type", "event.outcome", "event.id", "ecs.version"} {
			if !seen[key] {
				t.Errorf("%s: no %s", n.Name, key)
			}
		}
		if err := e.Encode(map[string]any{n.Name: ecs.Document(&n.Record)}); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join("testdata", "golden.jsonl")
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, got.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; UPDATE=1 writes it", err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")); diff != "" {
		t.Error(diff)
	}
}

func check(t *testing.T, name string, a ecs.Attribute) {
	t.Helper()
	typ, known := fields[a.Key]
	if label, ok := strings.CutPrefix(a.Key, "labels."); ok {
		typ, known = "keyword", !strings.Contains(label, ".")
	}
	if !known {
		t.Errorf("%s: ECS has no field %s", name, a.Key)
	}
	var texts []string
	switch v := a.Value.(type) {
	case string:
		texts = []string{v}
		if typ != "keyword" && typ != "ip" || v == "" || typ == "ip" && net.ParseIP(v) == nil {
			t.Errorf("%s: %s is %q, want %s", name, a.Key, v, typ)
		}
	case int64:
		if typ != "long" {
			t.Errorf("%s: %s is a number, want %s", name, a.Key, typ)
		}
	case []string:
		texts = v
		if typ != "keywords" || len(v) == 0 {
			t.Errorf("%s: %s is %v, want %s", name, a.Key, v, typ)
		}
	default:
		t.Errorf("%s: %s is %T", name, a.Key, v)
	}
	for _, s := range texts {
		if l := allowed[a.Key]; l != nil && !slices.Contains(l, s) {
			t.Errorf("%s: %s may not be %s", name, a.Key, s)
		}
	}
}

// TestNothingTwice: a section and the fields of an event may say the same.
func TestNothingTwice(t *testing.T) {
	r := audit.Record{
		Event:      &audit.Event{Name: audit.EventCredentialMinted, Fields: map[string]string{"handle": "cred_1", "provider": "p", "workload": "w", "run": "r", "task": "t", "scope": "s", "by": "b"}},
		Credential: &audit.Use{Handle: "cred_1", Provider: "p", ScopeGranted: []string{"s"}}, Workload: &audit.Workload{ID: "w", RunID: "r"}, Task: &audit.Task{ID: "t"},
		Change: &audit.Change{By: &audit.Principal{Username: "b"}},
	}
	seen := map[string]bool{}
	for _, a := range ecs.Attributes(&r) {
		if seen[a.Key] {
			t.Errorf("%s is there twice", a.Key)
		}
		seen[a.Key] = true
	}
	if !seen["labels.credential"] || !seen["user.name"] {
		t.Errorf("missing: %v", seen)
	}
}

// TestOutcome holds words of ours to those of ECS.
func TestOutcome(t *testing.T) {
	for outcome, want := range map[string]string{
		audit.OutcomeOK: "success", audit.OutcomeDenied: "failure", audit.OutcomeError: "failure", audit.OutcomeCanceled: "failure",
		audit.OutcomeRevoked: "failure", audit.OutcomeLeak: "failure", audit.OutcomeUnknown: "unknown", "": "failure",
	} {
		r := audit.Record{Request: &audit.Request{}, Result: &audit.Result{Outcome: outcome}}
		i := slices.IndexFunc(ecs.Attributes(&r), func(a ecs.Attribute) bool { return a.Key == "event.outcome" })
		if got := ecs.Attributes(&r)[i].Value; got != want {
			t.Errorf("%s: %v, want %s", outcome, got, want)
		}
	}
}
