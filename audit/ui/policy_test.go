package ui

import (
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
)

// changed are the records of a change of a policy: admission knows who asked,
// the control plane what came into force.
func changed(id, namespace, before, after, diff string, at time.Time) []audit.Record {
	change := audit.Change{Kind: "AccessPolicy", Namespace: namespace, Name: "invoices", Operation: "update", VersionBefore: before, VersionAfter: after, Diff: diff, Text: "text of " + after + "\n"}
	asked := change
	asked.By = &audit.Principal{Username: "dora-" + namespace + "@example.com"}
	return []audit.Record{
		{Type: audit.TypeEvent, ID: id + "1", Time: at, Event: &audit.Event{Name: audit.EventChangeRequested}, Change: &asked},
		{Type: audit.TypeEvent, ID: id + "2", Time: at.Add(time.Second), Event: &audit.Event{Name: audit.EventPolicyChanged}, Change: &change},
		{Type: audit.TypeEvent, ID: id + "3", Time: at.Add(2 * time.Second), Event: &audit.Event{Name: audit.EventPolicyBundle, Fields: map[string]string{"version": "sha256:" + namespace, "documents": "AccessPolicy " + namespace + "/invoices 1 " + after}}},
	}
}

// "Who let it?" has an answer on the record, on the agent's page, and on the
// policy's own, with the text as it stood.
func TestWhoLetIt(t *testing.T) {
	h := world(t, grantsFor(subject(Viewer, "va", "a"), subject(Viewer, "all", AllNamespaces)))
	for _, ns := range []string{"a", "b"} {
		fillAs(t, h.db, controlPlane(), changed("rec_c"+ns, ns, "digest-0", "digest-"+ns, "@@ -1 +1 @@\n-methods: [GET]\n+methods: [GET, PUT]\n", h.clock.t.Add(-2*time.Hour))...)
	}
	for _, who := range []string{"va", "all"} {
		h.as(Person{Subject: who})
		if text := textOf(h.page200("/record/rec_a1")); !strings.Contains(text, "let by a/invoices/read-a , written by dora-a@example.com") || strings.Contains(text, "dora-b") {
			t.Errorf("%s, the record: %s", who, text)
		}
		if text := textOf(h.page200("/agent?id=spiffe%3A%2F%2Fexample.org%2Fns%2Fa%2Fsa%2Finvoices")); !strings.Contains(text, "inject a/invoices/read-a dora-a@example.com") {
			t.Errorf("%s, the agent: %s", who, text)
		}
		body := h.page200("/policy/sha256:a")
		if text := textOf(body); !strings.Contains(text, "text of digest-a") || strings.Count(text, "dora-a@example.com") != 1 || !strings.Contains(body, `<span class="add">&#43;methods: [GET, PUT]</span>`) {
			t.Errorf("%s, the version: %s", who, body)
		}
	}
	if text := textOf(h.page200("/document?kind=AccessPolicy&namespace=b&name=invoices")); !strings.Contains(text, "dora-b@example.com") {
		t.Errorf("who sees all, the history of b: %s", text)
	}
	h.as(Person{Subject: "va"})
	for _, path := range []string{"/document?kind=AccessPolicy&namespace=b&name=invoices", "/document?kind=AccessPolicy&name=invoices", "/policy/sha256:b", "/search?q=type:event", "/search?q=event:policy.changed", "/search?q=dora"} {
		if text := textOf(h.page200(path)); strings.Contains(text, "dora-b") || strings.Contains(text, "digest-b") {
			t.Errorf("%s shows the policy of b: %s", path, text)
		}
	}
}

// Of a policy that is gone the pages say who wrote it, and once who removed it.
func TestWhoRemovedIt(t *testing.T) {
	h := world(t, grantsFor(subject(Viewer, "all", AllNamespaces)))
	at := h.clock.t.Add(-2 * time.Hour)
	records := changed("rec_c", "a", "", "digest-a", "@@ -0,0 +1 @@\n+rules\n", at)
	gone := audit.Change{Kind: "AccessPolicy", Namespace: "a", Name: "invoices", Operation: "delete", VersionBefore: "digest-a", Diff: "@@ -1 +0,0 @@\n-rules\n"}
	asked := gone
	asked.By = &audit.Principal{Username: "erik@example.com"}
	fillAs(t, h.db, controlPlane(), append(records,
		audit.Record{Type: audit.TypeEvent, ID: "rec_c4", Time: at.Add(time.Minute), Event: &audit.Event{Name: audit.EventChangeRequested}, Change: &asked},
		audit.Record{Type: audit.TypeEvent, ID: "rec_c5", Time: at.Add(time.Minute + time.Second), Event: &audit.Event{Name: audit.EventPolicyChanged}, Change: &gone})...)
	h.as(Person{Subject: "all"})
	if text := textOf(h.page200("/agent?id=spiffe%3A%2F%2Fexample.org%2Fns%2Fa%2Fsa%2Finvoices")); !strings.Contains(text, "inject a/invoices/read-a dora-a@example.com") {
		t.Errorf("the agent: %s", text)
	}
	text := textOf(h.page200("/document?kind=AccessPolicy&namespace=a&name=invoices"))
	if strings.Count(text, "delete by") != 1 || strings.Count(text, "delete") != 1 || !strings.Contains(text, "delete by erik@example.com") || !strings.Contains(text, "dora-a@example.com") {
		t.Errorf("its history: %s", text)
	}
}

// The policies of one machine have no namespace.
func TestPolicyURL(t *testing.T) {
	for name, want := range map[string]string{
		"":             "",
		"quickstart":   "/document?kind=AccessPolicy&name=quickstart&namespace=",
		"a/invoices":   "/document?kind=AccessPolicy&name=invoices&namespace=a",
		"cluster:rail": "/document?kind=ClusterAccessPolicy&name=rail",
	} {
		if got := policyURL(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	h := world(t, grantsFor(subject(Viewer, "all", AllNamespaces)))
	h.as(Person{Subject: "all"})
	if body := h.page200(policyURL("quickstart")); !strings.Contains(body, "policy%3Aquickstart") {
		t.Errorf("what it decided is not asked by its name: %s", body)
	}
}
