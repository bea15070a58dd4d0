package ui

import (
	"context"
	"html"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
)

// world has records of the namespaces a and b: uses of a credential, a denial,
// and the credential's life.
func world(t *testing.T, change func(*harness, *Config)) *harness {
	t.Helper()
	c := newClock()
	db := newDB(t, c)
	for _, ns := range []string{"a", "b"} {
		at := c.t.Add(-time.Hour)
		other := sample("rec_"+ns+"2", ns, at.Add(time.Minute))
		other.Credential.Cached = true
		other.Credential.AWS.Operation, other.Credential.AWS.Resources = "PutObject", []string{"arn:aws:s3:::payments-" + ns + "/june.csv"}
		yesterday := sample("rec_"+ns+"0", ns, at.Add(-24*time.Hour))
		yesterday.Credential.AWS.Operation = "ListBucket"
		gone := happened("rec_"+ns+"4", audit.EventCredentialRevoked, ns, at.Add(10*time.Minute))
		gone.Event.Fields["handle"] = "cred_" + hexOf("gone-"+ns)
		fill(t, db, yesterday, happened("rec_"+ns+"9", audit.EventCredentialMinted, ns, at), sample("rec_"+ns+"1", ns, at.Add(time.Second)), other, refused("rec_"+ns+"3", ns, at.Add(2*time.Minute)), gone)
	}
	return serve(t, db, c, change)
}

// everyPage are the addresses of all pages about namespace ns.
func everyPage(ns string) []string {
	agent := url.QueryEscape("spiffe://example.org/ns/" + ns + "/sa/invoices")
	return []string{
		"/", "/?p=yesterday", "/search?q=type:request", "/search?q=type:all", "/search?q=invoices", "/live", "/denied", "/producers",
		"/record/rec_" + ns + "1", "/record/rec_" + ns + "3", "/record/rec_" + ns + "9", "/agent?id=" + agent, "/agent?p=7d&id=" + agent,
		"/credential/cred_" + hexOf(ns), "/task/task-" + ns, "/human?id=person-" + ns + "@example.com", "/denied?id=rec_" + ns + "3",
		"/policy/sha256:" + ns, "/document?kind=AccessPolicy&namespace=" + ns + "&name=invoices", "/revoke?credential=cred_" + hexOf(ns), "/revoke?task=task-" + ns,
	}
}

func TestEveryPage(t *testing.T) {
	h := world(t, nil)
	h.login()
	before := len(h.named(audit.EventAuditQuery))
	for _, path := range everyPage("a") {
		status, body, header := h.get(path)
		if status != http.StatusOK || !strings.HasSuffix(strings.TrimSpace(body), "</html>") {
			t.Errorf("%s: %d %s", path, status, textOf(body))
		}
		if got := header.Get("Content-Security-Policy"); got != contentPolicy {
			t.Errorf("%s: content policy %q", path, got)
		}
		for _, bad := range []string{"<script>", " style=", " onclick=", "ZgotmplZ", "<no value>", "%!"} {
			if strings.Contains(body, bad) {
				t.Errorf("%s: the page has %q", path, bad)
			}
		}
	}
	// Whoever looks is recorded, once a page.
	if got, want := len(h.named(audit.EventAuditQuery))-before, len(everyPage("a"))-2; got != want { // asking before a revocation is not: its order is
		t.Errorf("%d queries are recorded, want %d", got, want)
	}
}

// Two clicks from the front page say what the agent did with the bucket
// yesterday, for whom, and who let it.
func TestTwoClicks(t *testing.T) {
	h := world(t, nil)
	h.login()
	front := h.page200("/")
	agent := linkTo(t, front, "/agent?id=spiffe")
	body := h.page200(linkTo(t, h.page200(agent), "&amp;p=yesterday"))
	text := textOf(body)
	for _, want := range []string{"payments-", "ListBucket 1", "person-", "@example.com", "/invoices/read-", "What it did"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q: %s", want, text)
		}
	}
	if strings.Contains(text, "PutObject") {
		t.Errorf("the page has what was done today: %s", text)
	}
}

// linkTo is the first link of a page with part in its address.
func linkTo(t *testing.T, body, part string) string {
	t.Helper()
	for _, l := range strings.Split(body, `href="`)[1:] {
		if l, _, _ = strings.Cut(l, `"`); strings.Contains(l, part) {
			return html.UnescapeString(l)
		}
	}
	t.Fatalf("no link has %q", part)
	return ""
}

func TestStory(t *testing.T) {
	h := world(t, nil)
	h.login()
	text := textOf(h.page200("/record/rec_a1"))
	at := 0
	for _, want := range []string{
		"11:00:01.000000 asked GetObject arn:aws:s3:::payments-a/may.csv", "attested spiffe://example.org/ns/a/sa/invoices · process 42, /usr/bin/python3, in 180 µs",
		"11:00:01.000240 decided inject by a/invoices/read-a", "11:00:01.000310 minted aws-session of aws-a", "11:00:01.000320 used", "11:00:01.024100 answered status 200", "11:00:01.025300 ended ok", "expires",
		"team-a@example.com", "person-a@example.com", "close the books of a", "claimed, not verified", "hash holds", "attache/rec_a1", "up-a",
	} {
		i := strings.Index(text[at:], want)
		if i < 0 {
			t.Fatalf("the story lacks %q, or not in this order: %s", want, text[at:])
		}
		if want != "expires" {
			at += i
		}
	}
	if cached := textOf(h.page200("/record/rec_a2")); !strings.Contains(cached, "11:00:00.000000 minted") || !strings.Contains(cached, "for an earlier request") {
		t.Errorf("a cached credential was minted at the time of its event: %s", cached)
	}
	if denied := textOf(h.page200("/record/rec_a3")); !strings.Contains(denied, "decided deny") || strings.Contains(denied, "minted") || strings.Contains(denied, "CloudTrail") {
		t.Errorf("a denial: %s", denied)
	}
}

// A revocation is told on the record of each use.
func TestStoryOfARevokedCredential(t *testing.T) {
	h := world(t, nil)
	fill(t, h.db, happened("rec_a8", audit.EventCredentialRevoked, "a", h.clock.t.Add(-time.Minute)))
	h.login()
	if text := textOf(h.page200("/record/rec_a1")); !strings.Contains(text, "11:59:00.000000 revoked") || strings.Contains(text, "no revocation is recorded") {
		t.Errorf("got %s", text)
	}
	if body := h.page200("/credential/cred_" + hexOf("a")); strings.Contains(body, "Revoke…") {
		t.Error("what is revoked has a button to revoke it")
	}
}

func TestSearchPointsAtTheMistake(t *testing.T) {
	h := world(t, nil)
	h.login()
	status, body, _ := h.get("/search?q=" + url.QueryEscape("type:request colour:red"))
	if status != http.StatusBadRequest || !strings.Contains(body, "column 14") || !strings.Contains(body, "\n"+strings.Repeat(" ", 13)+"^") {
		t.Errorf("got %d %s", status, body)
	}
	if !strings.Contains(body, `value="type:request colour:red"`) {
		t.Error("the query is lost")
	}
}

func TestSearchNarrows(t *testing.T) {
	h := world(t, nil)
	h.login()
	body := h.page200("/search?q=type:request")
	if !strings.Contains(body, "8 records") || !strings.Contains(body, `<svg class="hist"`) || !strings.Contains(body, "As a table") {
		t.Errorf("got %s", textOf(body))
	}
	body = h.page200(linkTo(t, body, "verdict%3Adeny"))
	if !strings.Contains(body, "2 records") || strings.Contains(body, "GetObject") {
		t.Errorf("narrowed to denials: %s", textOf(body))
	}
}

func TestPaging(t *testing.T) {
	c := newClock()
	db := newDB(t, c)
	var l []audit.Record
	for i := range 250 {
		l = append(l, sample("rec_"+hexOf(string(rune('a'+i%26)))+hexOf(string(rune('a'+i/26))), "a", c.t.Add(-time.Duration(i)*time.Second)))
	}
	fill(t, db, l...)
	h := serve(t, db, c, nil)
	h.login()
	seen := map[string]bool{}
	path := "/search?q=type:request"
	for n := 0; ; n++ {
		body := h.page200(path)
		for _, x := range strings.Split(body, `href="/record/`)[1:] {
			id, _, _ := strings.Cut(x, `"`)
			if seen[id] {
				t.Fatalf("%s is on two pages", id)
			}
			seen[id] = true
		}
		if !strings.Contains(body, `rel="next"`) {
			break
		}
		path = linkTo(t, body, "after=")
		if n > 5 {
			t.Fatal("no end")
		}
	}
	if len(seen) != len(l) {
		t.Errorf("%d records, want %d", len(seen), len(l))
	}
}

func TestDeniedExplains(t *testing.T) {
	var asked *audit.Record
	h := world(t, func(_ *harness, c *Config) {
		c.Policies = Policies{
			Explain: func(_ context.Context, r *audit.Record) (string, error) {
				asked = r
				return "no rule fits <b>DELETE</b>", nil
			},
			Patch: func(context.Context, *audit.Record) (string, error) { return "kind: AccessPolicy\n", nil },
			Reach: func(_ context.Context, w *audit.Workload) ([]Reach, error) {
				return []Reach{{Policy: w.Namespace + "/invoices", Rule: "read-" + w.Namespace, Action: "allow"}, {Policy: w.Namespace + "/invoices", Rule: "mail", Action: "allow"}}, nil
			},
		}
	})
	h.login()
	list := h.page200("/denied")
	body := h.page200(linkTo(t, list, "/denied?id=rec_a3"))
	if asked == nil || asked.ID != "rec_a3" || !strings.Contains(body, "no rule fits &lt;b&gt;DELETE") || !strings.Contains(body, "kind: AccessPolicy") {
		t.Errorf("got %s", body)
	}
	agent := textOf(h.page200("/agent?id=" + url.QueryEscape("spiffe://example.org/ns/a/sa/invoices")))
	if !strings.Contains(agent, "a/invoices/mail allow never") || !strings.Contains(agent, "a/invoices/read-a allow 2 times") {
		t.Errorf("the reach of an agent: %s", agent)
	}
}

func TestNotFound(t *testing.T) {
	h := world(t, nil)
	h.login()
	for _, path := range []string{"/x", "/record/rec_zz", "/record/", "/credential/cred_00", "/task/none", "/agent?id=spiffe://x/y", "/agent", "/human", "/document", "/revoke", "/export?format=xml", "/static/x.css", "/denied?id=rec_zz"} {
		if status, body, _ := h.get(path); status != http.StatusNotFound {
			t.Errorf("%s: %d %s", path, status, textOf(body))
		}
	}
}
