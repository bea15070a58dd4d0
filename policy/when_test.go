package policy_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/policy"
)

// TestWhen evaluates conditions over a full request.
func TestWhen(t *testing.T) {
	full := func() *policy.Request {
		r := request(t, "GET https://a.test:443/v1/x%3Ay?q=1&q=2")
		r.Header = http.Header{"X-Many": {"a", "b"}, "Authorization": {"Bearer x"}, "Cookie": {"a=b"}, "X-Api-Key": {"k"}, "Accept": {"*/*"}}
		r.Process = identity.Process{PID: 7, UID: 1000, Exe: "/usr/bin/curl", Digest: "sha256:aa"}
		r.Task = &identity.Task{ID: "t1", Purpose: "triage", OpenedBy: "launcher", Expires: now().Add(time.Hour),
			Human: &identity.Human{Subject: "ana", Issuer: "https://idp", Email: "ana@example.org", Groups: []string{"dev", "ops"}}}
		return r
	}
	bare := func() *policy.Request { return request(t, "GET https://a.test/") }
	tests := []struct {
		when string
		full bool
		bare bool
	}{
		{`request.host == "a.test" && request.port == 443 && request.scheme == "https" && request.method == "GET" && request.protocol == "http"`, true, true},
		{`request.path == "/v1/x:y"`, true, false},
		{`request.path.startsWith("/v1/") && request.path.matches("^/v[0-9]+/.*$")`, true, false},
		{`"q" in request.query && request.query["q"] == ["1", "2"] && request.query.size() == 1`, true, false},
		{`"x-many" in request.headers && request.headers["x-many"] == "a, b"`, true, false},
		{`["authorization", "cookie", "x-api-key"].exists(h, h in request.headers)`, false, false},
		{`"X-Many" in request.headers`, false, false},
		{`workload.id == "spiffe://attache.local/agent/worker" && workload.trustDomain == "attache.local"`, true, true},
		{`workload.namespace == "team" && workload.serviceAccount == "worker" && workload.node == "node-1"`, true, true},
		{`workload.labels["app"] == "crawler" && workload.posture["confined"] == "landlock"`, true, true},
		{`workload.images.exists(i, i.contains("@sha256:")) && workload.owner == "ana@example.org" && workload.runID == "run-1"`, true, true},
		{`process.pid == 7 && process.uid == 1000 && process.exe == "/usr/bin/curl" && process.digest == "sha256:aa"`, true, false},
		{`task.open && task.id == "t1" && task.purpose == "triage" && task.openedBy == "launcher"`, true, false},
		{`has(task.id)`, true, false},
		{`!task.open && task.id == "" && !has(task.purpose)`, false, true},
		{`task.expires > time`, true, false},
		{`human.present && human.subject == "ana" && human.issuer == "https://idp" && human.email.endsWith("@example.org") && "ops" in human.groups`, true, false},
		{`has(human.subject)`, true, false},
		{`!human.present && human.groups.size() == 0`, false, true},
		{`time > timestamp("2026-01-01T00:00:00Z") && time.getHours() == 12 && time.getHours("+02:00") == 14`, true, true},
		{`request == request && task != task`, false, false},
		{`type(request) == type(request)`, true, true},
		// No answer: no match.
		{`request.headers["x-none"] == "a"`, false, false},
		{`int(request.path) == 1`, false, false},
		// Too much work: no answer.
		{`[1,2,3,4,5,6,7,8,9,10].all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, [1,2,3,4,5,6,7,8,9,10].all(d, [1,2,3,4,5,6,7,8,9,10].all(e, true)))))`, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.when, func(t *testing.T) {
			s := compile(t, accessPolicy("p", with(allow("r", "a.test"), when(tt.when))))
			if d := s.Decide(full()); (d.Verdict == policy.Allow) != tt.full {
				t.Errorf("full request: got %v (%s), want match %v", d.Verdict, d.Reason, tt.full)
			}
			if d := s.Decide(bare()); (d.Verdict == policy.Allow) != tt.bare {
				t.Errorf("bare request: got %v (%s), want match %v", d.Verdict, d.Reason, tt.bare)
			}
		})
	}
}

// TestWhenError checks that a condition without an answer closes: it does not
// allow, and it does deny.
func TestWhenError(t *testing.T) {
	for _, expr := range []string{
		`request.headers["x-none"] == "a"`,
		`[1,2,3,4,5,6,7,8,9,10].all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, [1,2,3,4,5,6,7,8,9,10].all(d, [1,2,3,4,5,6,7,8,9,10].all(e, a > 100)))))` +
			` || [1,2,3,4,5,6,7,8,9,10].all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, [1,2,3,4,5,6,7,8,9,10].all(d, [1,2,3,4,5,6,7,8,9,10].all(e, a < 100)))))`,
	} {
		r := request(t, "GET https://a.test/")
		d := compile(t, accessPolicy("p", with(allow("r", "a.test"), when(expr)))).Decide(r)
		if d.Verdict != policy.Deny || !strings.Contains(d.Reason, `"r"`) || !strings.Contains(d.Reason, "could not be evaluated") {
			t.Errorf("allow rule: got %v (%s), want deny that names the rule", d.Verdict, d.Reason)
		}
		d = compile(t, accessPolicy("p", allow("all", "a.test"), with(deny("r", "a.test"), when(expr)))).Decide(r)
		if d.Verdict != policy.Deny || d.Rule != "r" || !strings.Contains(d.Reason, "could not be evaluated") {
			t.Errorf("deny rule: got %v by %q (%s), want deny by r", d.Verdict, d.Rule, d.Reason)
		}
	}
}
