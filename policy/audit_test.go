package policy_test

import (
	"strings"
	"testing"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/policy"
)

// TestAudit checks when a denial passes, and that it never passes with a
// credential.
func TestAudit(t *testing.T) {
	others := auditPolicy("others", allow("r", "a.test"))
	others.Spec.Workloads = []v1alpha1.WorkloadSelector{{Namespaces: []string{"elsewhere"}}}
	get := with(with(allow("get", "a.test"), methods("GET")), credential("p1"))
	tests := []struct {
		name     string
		policies []v1alpha1.AccessPolicy
		line     string
		want     policy.Verdict
		would    bool
	}{
		{"its own default denial", []v1alpha1.AccessPolicy{auditPolicy("a", get)}, "PUT https://a.test/", policy.Allow, true},
		{"its allow rules inject", []v1alpha1.AccessPolicy{auditPolicy("a", get)}, "GET https://a.test/", policy.Inject, false},
		{"another host", []v1alpha1.AccessPolicy{auditPolicy("a", get)}, "PUT https://b.test/", policy.Deny, false},
		{"another port", []v1alpha1.AccessPolicy{auditPolicy("a", get)}, "PUT https://a.test:8443/", policy.Deny, false},
		{"another workload", []v1alpha1.AccessPolicy{others}, "GET https://a.test/", policy.Deny, false},
		{"its deny rule", []v1alpha1.AccessPolicy{auditPolicy("a", deny("d", "a.test"))}, "GET https://a.test/", policy.Allow, true},
		{
			"its deny rule over an enforced allow",
			[]v1alpha1.AccessPolicy{accessPolicy("e", get), auditPolicy("a", with(with(deny("d", "a.test"), methods("GET")), paths("/x")))},
			"GET https://a.test/x", policy.Allow, true,
		},
		{
			"its deny rule over an enforced denial",
			[]v1alpha1.AccessPolicy{accessPolicy("e", deny("e", "*.test")), auditPolicy("a", deny("d", "a.test"))},
			"GET https://a.test/x", policy.Deny, false,
		},
		{
			"its deny rule beside an enforced denial",
			[]v1alpha1.AccessPolicy{auditPolicy("a", deny("d", "a.test")), accessPolicy("e", deny("e", "a.test"))},
			"GET https://a.test/x", policy.Deny, false,
		},
		{
			"its deny rule over an enforced ambiguity",
			[]v1alpha1.AccessPolicy{
				accessPolicy("e", with(with(allow("x", "a.test"), credential("p1")), when("true")), with(with(allow("y", "a.test"), credential("p2")), when("1 == 1"))),
				auditPolicy("a", with(deny("d", "a.test"), paths("/x"))),
			},
			"GET https://a.test/x", policy.Deny, false,
		},
		{
			"enforced denial elsewhere in the set",
			[]v1alpha1.AccessPolicy{accessPolicy("e", deny("e", "a.test")), auditPolicy("a", get)},
			"PUT https://a.test/", policy.Deny, false,
		},
		{
			"default denial of an enforcing policy too",
			[]v1alpha1.AccessPolicy{accessPolicy("e", get), auditPolicy("a", allow("x", "b.test"))},
			"PUT https://a.test/", policy.Deny, false,
		},
		{"credentials are never handed out", []v1alpha1.AccessPolicy{auditPolicy("a", get)}, "POST https://a.test/oauth/token", policy.Deny, false},
		{"nor by a deny rule", []v1alpha1.AccessPolicy{auditPolicy("a", deny("d", "a.test"))}, "POST https://a.test/oauth/token", policy.Deny, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := compile(t, tt.policies...).Decide(request(t, tt.line))
			if d.Verdict != tt.want || d.WouldDeny != tt.would {
				t.Errorf("got %v, would deny %v (%s); want %v, %v", d.Verdict, d.WouldDeny, d.Reason, tt.want, tt.would)
			}
			if d.WouldDeny && (d.Grant.Provider != "" || d.AgentCredentials != v1alpha1.AgentCredentialsStrip || d.Answers != v1alpha1.AnswersSeal) {
				t.Errorf("a call that would be denied passes with %+v", d)
			}
			if d.WouldDeny && (d.Policy != "a" || !strings.Contains(d.Reason, "would deny")) {
				t.Errorf("got policy %q, reason %q", d.Policy, d.Reason)
			}
		})
	}
}

// TestPassthrough checks decisions before a request is seen.
func TestPassthrough(t *testing.T) {
	tests := []struct {
		name  string
		rules []v1alpha1.Rule
		want  policy.Verdict
	}{
		{"alone", []v1alpha1.Rule{passthrough("t", "a.test")}, policy.Passthrough},
		{"over less specific rules", []v1alpha1.Rule{passthrough("t", "a.test"), with(deny("d", "*.test"), paths("/x")), allow("a", "*")}, policy.Passthrough},
		{"other port", []v1alpha1.Rule{with(passthrough("t", "a.test"), func(r *v1alpha1.Rule) { r.Ports = []int{22} })}, policy.Deny},
		{"other host", []v1alpha1.Rule{passthrough("t", "b.test")}, policy.Deny},
		{"no rule", nil, policy.Deny},
		{"a path asks for interception", []v1alpha1.Rule{passthrough("t", "a.test"), with(allow("a", "a.test"), paths("/x"))}, policy.Deny},
		{"a more specific host", []v1alpha1.Rule{passthrough("t", "*.test"), allow("a", "a.test")}, policy.Deny},
		{"rules for other ports do not count", []v1alpha1.Rule{passthrough("t", "a.test"), with(allow("a", "a.test"), func(r *v1alpha1.Rule) { r.Ports = []int{8443}; r.Paths = []string{"/x"} })}, policy.Passthrough},
		{"condition holds", []v1alpha1.Rule{with(passthrough("t", "a.test"), when(`workload.namespace == "team" && request.host == "a.test"`))}, policy.Passthrough},
		{"condition fails", []v1alpha1.Rule{with(passthrough("t", "a.test"), when(`workload.namespace == "x"`))}, policy.Deny},
		{"condition errs", []v1alpha1.Rule{with(passthrough("t", "a.test"), when(`workload.labels["x"] == ""`))}, policy.Deny},
		{"denied by a condition", []v1alpha1.Rule{passthrough("t", "a.test"), with(deny("d", "a.test"), when(`process.uid == 0`))}, policy.Deny},
		{"not denied by a condition", []v1alpha1.Rule{passthrough("t", "a.test"), with(deny("d", "a.test"), when(`process.uid == 1`))}, policy.Passthrough},
		{"a condition about the request asks for interception", []v1alpha1.Rule{passthrough("t", "a.test"), with(deny("d", "a.test"), when(`request.method == "PUT"`))}, policy.Deny},
		{"deny wins a tie", []v1alpha1.Rule{with(passthrough("t", "a.test"), when("true")), with(deny("d", "a.test"), when("1 == 1"))}, policy.Deny},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := compile(t, accessPolicy("p", tt.rules...))
			r := request(t, "GET https://a.test/")
			r.Protocol = policy.TLS
			d := s.Decide(r)
			if d.Verdict != tt.want {
				t.Errorf("got %v (%s), want %v", d.Verdict, d.Reason, tt.want)
			}
			if d.Verdict == policy.Passthrough && d.Rule != "t" {
				t.Errorf("got rule %q, want t", d.Rule)
			}
		})
	}
}

// TestPassthroughIntercepted checks the request that arrives although a rule
// would pass its connection through: it gets no credential.
func TestPassthroughIntercepted(t *testing.T) {
	s := compile(t, accessPolicy("p", passthrough("t", "a.test"), with(with(allow("a", "a.test"), paths("/x")), credential("p1"))))
	if d := s.Decide(request(t, "GET https://a.test/y")); d.Verdict != policy.Allow || d.Rule != "t" || d.Grant.Provider != "" {
		t.Errorf("got %v by %q, want a bare allow by t", d.Verdict, d.Rule)
	}
	if d := s.Decide(request(t, "POST https://a.test/oauth/token")); d.Verdict != policy.Deny {
		t.Errorf("got %v for a token call, want deny", d.Verdict)
	}
}
