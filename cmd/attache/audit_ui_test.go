package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/policy"
)

func deniedRecord() *audit.Record {
	return &audit.Record{
		Time: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), Workload: &audit.Workload{ID: "spiffe://attache.local/agent/bot", Namespace: "local", ServiceAccount: "bot"},
		Request:  &audit.Request{Host: "api.example.com", Port: 8443, Scheme: "https", Method: "POST", Path: "/v1/notes", Protocol: "http"},
		Decision: &audit.Decision{Verdict: "deny"}, Human: &audit.Human{Subject: "ada", Issuer: "https://login.example.com"}, Task: &audit.Task{ID: "t1"},
	}
}

// The patch of the review page allows what was denied, and nothing beside it.
func TestPatchForAllowsJustThat(t *testing.T) {
	text, err := patchFor(deniedRecord())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := "apiVersion: attache.dev/v1alpha1\nkind: AttacheConfig\nmetadata: {name: a}\nspec: {}\n"
	for name, s := range map[string]string{"config.yaml": config, "patch.yaml": text} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, set, err := loadPolicies(dir, api.PlaceRun)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	for _, tt := range []struct {
		name   string
		change func(*audit.Record)
		want   policy.Verdict
	}{
		{"itself", func(*audit.Record) {}, policy.Allow},
		{"another method", func(r *audit.Record) { r.Request.Method = "DELETE" }, policy.Deny},
		{"another path", func(r *audit.Record) { r.Request.Path = "/v1/notes/1" }, policy.Deny},
		{"another host", func(r *audit.Record) { r.Request.Host = "www.example.com" }, policy.Deny},
		{"another port", func(r *audit.Record) { r.Request.Port = 443 }, policy.Deny},
		{"another agent", func(r *audit.Record) { r.Workload.ID = "spiffe://attache.local/agent/other" }, policy.Deny},
		{"no person", func(r *audit.Record) { r.Human = nil }, policy.Deny},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := deniedRecord()
			tt.change(r)
			q, err := requestOf(r)
			if err != nil {
				t.Fatal(err)
			}
			if got := set.Decide(q); got.Verdict != tt.want {
				t.Errorf("got %v: %s, want %v\n%s", got.Verdict, got.Reason, tt.want, text)
			}
		})
	}
}

// No rule is offered where it would allow more than was asked.
func TestPatchForRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*audit.Record)
		want   string
	}{
		{"a tunnel", func(r *audit.Record) { r.Request.Method = "" }, "all of the host"},
		{"a path with a wildcard", func(r *audit.Record) { r.Request.Path = "/v1/**" }, "mean something else"},
		{"a template", func(r *audit.Record) { r.Request.Path = "/v1/{id}" }, "mean something else"},
		{"a path that was cut", func(r *audit.Record) { r.Request.Path = "/v1/abc…" }, "mean something else"},
		{"no workload", func(r *audit.Record) { r.Workload = nil }, "no workload"},
		{"no request", func(r *audit.Record) { r.Request = nil }, "no workload or no destination"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := deniedRecord()
			tt.change(r)
			if text, err := patchFor(r); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %q, %v", text, err)
			}
		})
	}
}

// A record's text cannot end the document and begin another.
func TestPatchForQuotes(t *testing.T) {
	r := deniedRecord()
	r.Request.Path = "/x\"\n---\nkind: AccessPolicy # '"
	text, err := patchFor(r)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text, "\n---") {
		t.Errorf("got a second document:\n%s", text)
	}
}
