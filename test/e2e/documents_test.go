package e2e

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

// documents are the events about documents of a kind, in the order of records.
func (w *world) documents(name string) []audit.Record {
	w.t.Helper()
	l := w.events(name)
	for _, r := range l {
		if r.Change == nil || r.Change.Text == "" || r.Change.VersionAfter == "" {
			w.t.Errorf("%s has no text: %+v", r.Event.Name, r.Change)
		}
	}
	return l
}

// The version of a record's policy opens the texts that decided: each run records
// the documents that its spool does not hold yet, also those of an edit.
func TestDocumentsAreRecorded(t *testing.T) {
	t.Parallel()
	w, o := newWorld(t), newOrigin(t)
	w.write("policy.yaml", o.allow(", methods: [GET]"))
	call := []string{"--", "curl", "-sS", "-m", "10", "https://" + apiHost + "/v1/first"}
	for range 2 {
		if r := w.run(call...); r.code != 0 {
			t.Fatalf("status %d: %s", r.code, r.stderr)
		}
	}
	if l := w.documents(audit.EventPolicyChanged); len(l) != 1 || l[0].Change.Operation != "load" || l[0].Change.Name != "agents" || !strings.Contains(l[0].Change.Text, "methods:\n") {
		t.Fatalf("two runs of one policy: %d events, %+v", len(l), l)
	}
	if l := w.documents(audit.EventConfigChanged); len(l) != 1 {
		t.Errorf("%d configurations", len(l))
	}
	if l := w.events(audit.EventPolicyBundle); len(l) != 1 {
		t.Errorf("%d versions", len(l))
	}

	a := w.waiting()
	w.write("policy.yaml", o.allow(", methods: [PUT]")+"---\n{apiVersion: attache.dev/v1alpha1, kind: AccessPolicy, metadata: {name: rails}, spec: {rules: [{name: closed, hosts: [closed.example.com], action: deny}]}}\n")
	eventually(t, "the edit is recorded", func() bool { return len(w.events(audit.EventPolicyBundle)) == 2 })
	if got := w.does(a, "curl -sS -m 10 -o /dev/null -w '%{http_code}' https://"+apiHost+"/v1/edited"); got != "403" {
		t.Fatalf("after the edit: %s", got)
	}
	changed := w.documents(audit.EventPolicyChanged)
	if len(changed) != 3 || len(w.documents(audit.EventConfigChanged)) != 1 {
		t.Fatalf("after an edit of one policy and a new one: %d events: %+v", len(changed), changed)
	}
	for _, r := range changed[1:] {
		if want := map[string]string{"agents": changed[0].Change.VersionAfter, "rails": ""}[r.Change.Name]; r.Change.VersionBefore != want {
			t.Errorf("%s follows %q, not %q", r.Change.Name, r.Change.VersionBefore, want)
		}
	}
	first, edited := w.requests("path:/v1/first")[0].Decision.Version, w.one("path:/v1/edited").Decision.Version

	// As the review page reads it.
	db, err := store.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "records.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	spools, err := filepath.Glob(filepath.Join(w.state, "audit", "*"))
	if err != nil || len(spools) == 0 {
		t.Fatalf("%v, %v", spools, err)
	}
	for _, dir := range spools {
		if _, err := db.ImportSpool(context.WithoutCancel(t.Context()), dir); err != nil {
			t.Fatal(err)
		}
	}
	for version, want := range map[string][]string{first: {"- GET"}, edited: {"- PUT", "closed.example.com"}} {
		l, err := db.Documents(t.Context(), store.DocumentQuery{Version: version})
		if err != nil {
			t.Fatal(err)
		}
		all := ""
		for _, d := range l {
			all += d.Text
		}
		for _, text := range append(want, "kind: AttacheConfig") {
			if !strings.Contains(all, text) {
				t.Errorf("version %s does not hold %q: %s", version, text, all)
			}
		}
		if strings.Contains(all, "- GET") && strings.Contains(all, "- PUT") {
			t.Errorf("version %s holds another's text", version)
		}
	}
}
