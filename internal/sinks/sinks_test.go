package sinks

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/internal/dataplane"
)

// TestLocal: sinks that a configuration names are those that it describes.
func TestLocal(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	id, key, empty := write("id", "AKIDEXAMPLE\n"), write("key", "k3y\n"), write("empty", " \n")
	out := filepath.Join(dir, "out", "records.jsonl")
	c := v1alpha1.AuditConfig{Sinks: []v1alpha1.AuditSink{
		{Type: api.SinkFile, Name: "local", File: v1alpha1.SinkFile{Path: out}},
		{Type: api.SinkObjectStore, Name: "bucket", ObjectStore: v1alpha1.SinkObjectStore{Bucket: "b", Region: "r", AccessKeyFile: id, SecretKeyFile: key}},
		{Type: api.SinkSyslog, Name: "siem", Endpoint: "siem.example.com:6514"},
	}}
	sinks, err := dataplane.OpenSinks(c, nil, nil, "test", Local(nil))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range sinks.List {
		names = append(names, s.Name())
	}
	if got := strings.Join(names, " "); got != "local bucket siem" || sinks.Collector != "" {
		t.Errorf("sinks %q, collector %q", got, sinks.Collector)
	}
	line := audit.Line{Epoch: "e1", Sequence: 1, JSON: (&audit.Record{Type: audit.TypeEvent, Epoch: "e1", Sequence: 1, Event: &audit.Event{Name: "x"}}).AppendJSON(nil)}
	if err := sinks.List[0].Send(t.Context(), ship.Batch{Producer: "p", Lines: []audit.Line{line}}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(out); err != nil || !strings.Contains(string(b), `"class_uid":0`) {
		t.Errorf("%s, %v", b, err)
	}
	if err := sinks.Close(); err != nil {
		t.Error(err)
	}
	c.Sinks[1].ObjectStore.SecretKeyFile = empty
	if _, err := dataplane.OpenSinks(c, nil, nil, "test", Local(nil)); err == nil || !strings.Contains(err.Error(), "must hold one word") || !strings.Contains(err.Error(), "sinks[1]") {
		t.Errorf("an empty key: %v", err)
	}
	// A sidecar has none of them.
	if _, err := dataplane.OpenSinks(v1alpha1.AuditConfig{Sinks: c.Sinks[:1]}, nil, nil, "test"); err == nil {
		t.Error("a sidecar opens a file")
	}
}
