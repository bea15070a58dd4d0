package ui

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

// grantsFor are roles of people, each of whom is the subject of their name.
func grantsFor(grants ...Grant) func(*harness, *Config) {
	return func(h *harness, c *Config) {
		c.OIDC = &OIDC{Issuer: "https://login.example.com", ClientID: "page", URL: h.srv.URL, Grants: grants}
	}
}

func subject(role Role, who string, namespaces ...string) Grant {
	return Grant{Role: role, Namespaces: namespaces, Subjects: []string{who}}
}

// A viewer of the namespace a sees nothing of b: no record, no count, no facet,
// no id, on no page and in no stream.
func TestNamespacesAreApart(t *testing.T) {
	h := world(t, grantsFor(subject(Viewer, "va", "a"), subject(Auditor, "va", "a"), subject(Revoker, "va", "a"), subject(Viewer, "all", AllNamespaces)))
	h.as(Person{Subject: "all"})
	// Each of these marks is on some page of somebody who may see it: the test
	// would notice a mark that is nowhere.
	marks := []string{"payments-b", "person-b@example.com", "team-b@example.com", "spiffe://example.org/ns/b/", "aws-b", "rec_b1", "rec_b3", "s3.b.example.com", "close the books of b", "b/invoices", "pod-b", "no rule of b allows", "reason-b"}
	everything := ""
	for _, path := range everyPage("b") {
		if !strings.HasPrefix(path, "/revoke") {
			everything += h.page200(path)
		}
	}
	for _, m := range marks {
		if !strings.Contains(everything, m) {
			t.Errorf("no page shows %q to who sees all: the check is blind", m)
		}
	}

	h.as(Person{Subject: "va"})
	for _, path := range append(everyPage("a"), "/search?q="+url.QueryEscape("namespace:b"), "/search?q="+url.QueryEscape("type:all namespace:a,b"), "/search?q=payments-b", "/human?id=person-b@example.com&p=30d",
		"/search?q=-namespace:a", "/export?format=csv&q=", "/export?format=json&q=type:all", "/export?format=ocsf&q=-namespace:a") {
		status, body, _ := h.get(path)
		if status != http.StatusOK {
			t.Errorf("%s: %d %s", path, status, textOf(body))
		}
		for _, m := range marks {
			if strings.Contains(body, m) && !strings.Contains(path, url.QueryEscape(m)) && !strings.Contains(path, m) {
				t.Errorf("%s shows %q", path, m)
			}
		}
	}
	if body := textOf(h.page200("/search?q=type:request")); !strings.Contains(body, "4 records 1 denied") || !strings.Contains(body, "Agent a/invoices 4") {
		t.Errorf("counts have more than the namespace's own: %s", body)
	}
	if body := textOf(h.page200("/?p=7d")); !strings.Contains(body, "4 requests 1 denied") || !strings.Contains(body, "1 producer ") {
		t.Errorf("the overview counts more: %s", body)
	}
	// What is asked for by name is not found, as what never was.
	for _, path := range everyPage("b") {
		if !strings.Contains(path, "b1") && !strings.Contains(path, "b3") && !strings.Contains(path, "b9") && !strings.Contains(path, "%2Fb%2F") && !strings.Contains(path, "task-b") && !strings.Contains(path, hexOf("b")) {
			continue
		}
		status, body, _ := h.get(path)
		missing, other, _ := h.get(strings.NewReplacer("rec_b1", "rec_none", "rec_b3", "rec_none", "rec_b9", "rec_none", "%2Fb%2F", "%2Fnone%2F", "task-b", "task-none", hexOf("b"), "00").Replace(path))
		if status != http.StatusNotFound || status != missing || textOf(body) != textOf(other) {
			t.Errorf("%s: %d, %s; what never was: %d, %s", path, status, textOf(body), missing, textOf(other))
		}
	}
	if body := textOf(h.page200("/policy/sha256:b")); strings.Contains(body, "AccessPolicy") {
		t.Errorf("another namespace's policy: %s", body)
	}
}

// A producer of b that takes ids of a, or names lines of a as its own, shows
// nothing of a to who sees b.
func TestIDsOfOthersOpenNothing(t *testing.T) {
	c := newClock()
	db := newDB(t, c)
	at := c.now().Add(-time.Hour)
	fill(t, db, sample("rec_same", "b", at.Add(-time.Minute)))
	fill(t, db, sample("rec_same", "a", at), sample("rec_a2", "a", at))
	heads, err := db.Heads(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, h := range heads {
		if h.Producer.Namespace != "a" {
			continue
		}
		for n := range h.Last {
			r := sample("rec_thief", "b", at)
			r.Epoch, r.Sequence, r.BeginEpoch, r.BeginSequence = "thief"+string(rune('a'+i))+string(rune('a'+n)), 1, h.Epoch, n+1
			r.Schema = audit.SchemaVersion
			l := audit.Line{Epoch: r.Epoch, Sequence: 1, JSON: r.AppendJSON(nil)}
			if _, err := db.Append(t.Context(), store.Producer{ID: "pod-b", Kind: "sidecar", Namespace: "b"}, []audit.Line{l}); err != nil {
				t.Fatal(err)
			}
			h := serve(t, db, c, grantsFor(subject(Viewer, "vb", "b")))
			h.as(Person{Subject: "vb"})
			for _, path := range []string{"/record/rec_same", "/record/rec_thief"} {
				if body := h.page200(path); !strings.Contains(body, "payments-b") || strings.Contains(body, "payments-a") {
					t.Errorf("%s, as if begun by line %d of a, shows what is of a", path, r.BeginSequence)
				}
			}
		}
	}
}

// Every route refuses who has no role, and what a role does not include.
func TestRolesAreApart(t *testing.T) {
	h := world(t, grantsFor(subject(Viewer, "viewer", "a"), subject(Auditor, "auditor", "a"), subject(Revoker, "revoker", "a")))
	handle := "cred_" + hexOf("a")
	routes := append(everyPage("a"), "/export?format=csv", "/live/events")

	h.as(Person{Subject: "nobody"})
	for _, path := range routes {
		if status, body, _ := h.get(path); status != http.StatusForbidden || !strings.Contains(body, "No access") {
			t.Errorf("nobody gets %s: %d", path, status)
		}
	}
	if got := len(h.named(audit.EventAccessRejected)); got != len(routes) {
		t.Errorf("%d refusals are recorded, want %d", got, len(routes))
	}
	h.c = h.browser()
	for _, path := range routes {
		if status, body, _ := h.get(path); status != http.StatusUnauthorized || strings.Contains(body, "payments") {
			t.Errorf("a stranger gets %s: %d", path, status)
		}
	}
	for _, tt := range []struct {
		who            string
		export, revoke int
	}{{"viewer", http.StatusForbidden, http.StatusForbidden}, {"auditor", http.StatusOK, http.StatusForbidden}, {"revoker", http.StatusForbidden, http.StatusOK}} {
		h.as(Person{Subject: tt.who})
		for _, kind := range []string{"csv", "json", "ocsf"} {
			if status, _, _ := h.get("/export?format=" + kind); status != tt.export {
				t.Errorf("%s exports %s: %d, want %d", tt.who, kind, status, tt.export)
			}
		}
		if status, _, _ := h.get("/revoke?credential=" + handle); status != tt.revoke {
			t.Errorf("%s is asked about a revocation: %d, want %d", tt.who, status, tt.revoke)
		}
		front := h.page200("/credential/" + handle)
		if got := strings.Contains(front, "Revoke…"); got != (tt.revoke == http.StatusOK) {
			t.Errorf("%s has a button to revoke: %v", tt.who, got)
		}
		status, _, _ := h.post("/revoke", url.Values{"form_token": {token(t, front)}, "credential": {handle}})
		if status != tt.revoke {
			t.Errorf("%s revokes: %d, want %d", tt.who, status, tt.revoke)
		}
	}
	if len(h.orders) != 1 || h.orders[0].By.Subject != "revoker" {
		t.Errorf("orders: %+v", h.orders)
	}
}

// Who may revoke in a cannot revoke what is of b because something in a says its
// name, be it an origin's answer or a record of its own.
func TestRevokeOfAnothersName(t *testing.T) {
	c := newClock()
	db := newDB(t, c)
	at := c.now().Add(-time.Hour)
	fill(t, db, sample("rec_b1", "b", at))
	said := sample("rec_a1", "a", at)
	said.Result.UpstreamRequestID = "cred_" + hexOf("b")
	taken := sample("rec_a2", "a", at)
	taken.Task.ID = "task-b"
	fill(t, db, said, taken)
	h := serve(t, db, c, grantsFor(subject(Revoker, "r", "a"), subject(Revoker, "all", AllNamespaces)))
	for who, want := range map[string]int{"r": http.StatusNotFound, "all": http.StatusOK} {
		h.as(Person{Subject: who})
		for _, q := range []string{"credential=cred_" + hexOf("b"), "task=task-b"} {
			if status, _, _ := h.get("/revoke?" + q); status != want {
				t.Errorf("%s, %s: %d, want %d", who, q, status, want)
			}
		}
	}
}

func TestRevoke(t *testing.T) {
	h := world(t, grantsFor(subject(Viewer, "r", AllNamespaces), subject(Revoker, "r", "a")))
	h.as(Person{Subject: "r", Email: "r@example.com", Issuer: "https://login.example.com"})
	body := h.page200("/revoke?task=task-a")
	if len(h.orders) != 0 {
		t.Fatal("asking is an order already")
	}
	status, body, _ := h.post("/revoke", url.Values{"form_token": {token(t, body)}, "task": {"task-a"}, "reason": {"it went <wild>"}})
	if status != http.StatusOK || !strings.Contains(body, "revoked at the issuer") {
		t.Errorf("got %d %s", status, textOf(body))
	}
	if len(h.orders) != 1 || h.orders[0].Task != "task-a" || h.orders[0].Namespace != "a" || h.orders[0].Reason != "it went <wild>" || h.orders[0].By.Email != "r@example.com" {
		t.Errorf("orders: %+v", h.orders)
	}
	if l := h.named(audit.EventRevokeOrdered); len(l) != 1 || l[0].Event.Fields["task"] != "task-a" || l[0].Event.Fields["by"] != "r@example.com" {
		t.Errorf("events: %+v", l)
	}
	// May read b, and not revoke there.
	page := h.page200("/credential/cred_" + hexOf("b"))
	if strings.Contains(page, "Revoke…") {
		t.Error("a button for what may not be revoked")
	}
	for _, form := range []url.Values{{"credential": {"cred_" + hexOf("b")}}, {"task": {"task-b"}}, {"task": {"task-a"}, "credential": {"cred_" + hexOf("a")}}, {}, {"task": {"none"}}} {
		form.Set("form_token", token(t, page))
		if status, _, _ := h.post("/revoke", form); status != http.StatusNotFound {
			t.Errorf("%v: got %d", form, status)
		}
	}
	if len(h.orders) != 1 {
		t.Errorf("orders: %+v", h.orders)
	}
}
