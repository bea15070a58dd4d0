package policy_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/policy"
)

// TestReason checks that a default denial says what is missing, and tells
// nobody of rules for others.
func TestReason(t *testing.T) {
	others := accessPolicy("secret-policy", allow("secret-rule", "a.test"))
	others.Spec.Workloads = []v1alpha1.WorkloadSelector{{Namespaces: []string{"elsewhere"}}}
	get := with(with(allow("read", "a.test"), methods("GET", "HEAD")), paths("/repos/**"))
	tests := []struct {
		name   string
		policy v1alpha1.AccessPolicy
		line   string
		want   []string
		never  string
	}{
		{"unknown host", accessPolicy("p", get), "GET https://b.test/", []string{"host b.test port 443", "spiffe://attache.local/agent/worker", "AccessPolicy"}, "read"},
		{"method", accessPolicy("p", get), "POST https://a.test/repos/x", []string{"POST", `rule "read" of policy "p"`, "allows GET, HEAD only", "to get access"}, ""},
		{"path", accessPolicy("p", get), "GET https://a.test/x", []string{`"read"`, "covers path /repos/** only"}, ""},
		{"port", accessPolicy("p", get), "GET https://a.test:8443/repos/x", []string{"port 8443", "covers port 443, 80 only"}, ""},
		{"header", accessPolicy("p", with(allow("r", "a.test"), header(v1alpha1.ValueMatch{Name: "x-a", Exact: "1"}))), "GET https://a.test/", []string{"X-A: 1"}, ""},
		{"condition", accessPolicy("p", with(allow("r", "a.test"), when("task.open"))), "GET https://a.test/", []string{"condition that does not hold"}, ""},
		{"rules for others", others, "GET https://a.test/", []string{"no rule for host a.test"}, "secret"},
		{"reason of a deny rule", accessPolicy("p", with(deny("no", "a.test"), func(r *v1alpha1.Rule) { r.Reason = "ask #sec" })), "GET https://a.test/", []string{`rule "no"`, "ask #sec"}, ""},
		{"odd method", accessPolicy("p", get), "G\"T https://a.test/repos/", []string{"this call"}, "G\"T"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := compile(t, tt.policy).Decide(request(t, tt.line))
			for _, w := range tt.want {
				if !strings.Contains(d.Reason, w) {
					t.Errorf("reason %q lacks %q", d.Reason, w)
				}
			}
			if tt.never != "" && strings.Contains(d.Reason, tt.never) {
				t.Errorf("reason %q tells %q", d.Reason, tt.never)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	issue := with(allow("issues", "api.a.test"), paths("/repos/{owner}/{repo}/issues"))
	issue.Credential = &v1alpha1.CredentialRef{Provider: "p1", Scope: []string{"issues:write"}, AuthorizationDetails: json.RawMessage(`[{"type":"x"}]`)}
	s := compile(t,
		accessPolicy("github", issue, with(allow("read", "api.a.test"), methods("GET")), with(deny("night", "*.a.test"), when("time.getHours() < 6"))),
		auditPolicy("trial", deny("rest", "**.test")),
	)
	x := s.Explain(request(t, "POST https://api.a.test/repos/o/r/issues"))
	var rules []string
	for _, c := range x.Candidates {
		rules = append(rules, c.Rule+": "+c.Mismatch)
	}
	want := []string{"issues: ", "read: allows GET only", "night: has a condition that does not hold", "rest: "}
	if d := cmp.Diff(want, rules); d != "" {
		t.Errorf("candidates (-want +got):\n%s", d)
	}
	if !x.Candidates[0].Winner || x.Candidates[3].Winner || !x.Candidates[3].Matched || !x.Candidates[3].Audit {
		t.Errorf("got candidates %+v", x.Candidates)
	}
	const text = `INJECT by rule "issues" of policy "github"
  why         rule "issues" of policy "github" allows the call with a credential of provider "p1"
  path        /repos/{owner}/{repo}/issues
  credential  provider p1, ttl 7m0s
  scope       issues:write (static)
  details     [{"type":"x"}]
  rules for this host, most specific first
    * github/issues: allow api.a.test/repos/{owner}/{repo}/issues: decides
    - github/read: allow api.a.test: allows GET only
    - github/night: deny *.a.test: has a condition that does not hold
    + trial/rest: deny **.test [audit]: matches, but does not decide
`
	if d := cmp.Diff(text, x.String()); d != "" {
		t.Errorf("text (-want +got):\n%s", d)
	}
	raw, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	var back policy.Explanation
	if err := json.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	back.Decision = x.Decision
	if d := cmp.Diff(x, back); d != "" {
		t.Errorf("JSON loses (-want +got):\n%s", d)
	}
	if got := s.Explain(request(t, "GET https://other/")).String(); !strings.Contains(got, "none names this host") {
		t.Errorf("got %q", got)
	}
}
