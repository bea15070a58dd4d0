package policy_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/policy"
)

// problem compiles and returns the only problem there is.
func problem(t *testing.T, policies ...v1alpha1.AccessPolicy) api.Problem {
	t.Helper()
	_, err := policy.Compile(bundle(policies...))
	var problems policy.Problems
	if !errors.As(err, &problems) || len(problems) != 1 {
		t.Fatalf("got %v, want one problem", err)
	}
	var one api.Problem
	if !errors.As(err, &one) || one.Ref != problems[0].Ref {
		t.Fatal("the problem is not found by errors.As")
	}
	return one
}

func TestProblems(t *testing.T) {
	base := allow("r", "a.test")
	tests := []struct {
		name   string
		change func(*v1alpha1.Rule)
		field  string
		text   string
	}{
		{"no name", func(r *v1alpha1.Rule) { r.Name = "" }, ".name", "is empty"},
		{"no host", func(r *v1alpha1.Rule) { r.Hosts = nil }, ".hosts", "is empty"},
		{"host with port", func(r *v1alpha1.Rule) { r.Hosts = []string{"a.test", "a.test:80"} }, ".hosts[1]", "list it in ports"},
		{"host with scheme", func(r *v1alpha1.Rule) { r.Hosts = []string{"https//a"} }, ".hosts[0]", "scheme or path"},
		{"wildcard inside", func(r *v1alpha1.Rule) { r.Hosts = []string{"a.*.test"} }, ".hosts[0]", "cannot stand in a name"},
		{"trailing dot", func(r *v1alpha1.Rule) { r.Hosts = []string{"a.test."} }, ".hosts[0]", "trailing dot"},
		{"U-label", func(r *v1alpha1.Rule) { r.Hosts = []string{"café.test"} }, ".hosts[0]", "A-label"},
		{"wildcard address", func(r *v1alpha1.Rule) { r.Hosts = []string{"*.0.0.1"} }, ".hosts[0]", "ends in a number"},
		{"mapped address", func(r *v1alpha1.Rule) { r.Hosts = []string{"::ffff:10.0.0.1"} }, ".hosts[0]", "10.0.0.1"},
		{"port", func(r *v1alpha1.Rule) { r.Ports = []int{443, 65536} }, ".ports[1]", "1 to 65535"},
		{"method", func(r *v1alpha1.Rule) { r.Methods = []string{"get"} }, ".methods[0]", "capital letters"},
		{"relative path", paths("a"), ".paths[0]", "starts with"},
		{"path with query", paths("/", "/a?b"), ".paths[1]", "query:"},
		{"tail inside", paths("/**/a"), ".paths[0]", "only at the end"},
		{"named tail inside", paths("/{x...}/a"), ".paths[0]", "only at the end"},
		{"star", paths("/a/*"), ".paths[0]", "{name}"},
		{"half variable", paths("/a{b}"), ".paths[0]", "mixes"},
		{"empty segment", paths("/a//b"), ".paths[0]", "empty segment"},
		{"dot segment", paths("/a/%2e%2e/b"), ".paths[0]", "dot segments"},
		{"bad escape", paths("/a%2"), ".paths[0]", "hexadecimal"},
		{"variable twice", paths("/{a}/{a}"), ".paths[0]", "twice"},
		{"variable name", paths("/{1}"), ".paths[0]", "no name"},
		{"header name", header(v1alpha1.ValueMatch{Name: "a b"}), ".headers[0].name", "name of a header"},
		{"contradiction", query(v1alpha1.ValueMatch{Name: "a", Absent: true, Exact: "x"}), ".query[0]", "absence"},
		{"exact and prefix", query(v1alpha1.ValueMatch{Name: "a", Prefix: "x", Exact: "x"}), ".query[0]", "keep one"},
		{"protocol", func(r *v1alpha1.Rule) { r.Protocols = []string{"tls"} }, ".protocols[0]", "grpc"},
		{"action", func(r *v1alpha1.Rule) { r.Action = "Allow" }, ".action", "must be allow, deny or passthrough"},
		{"deny with credential", func(r *v1alpha1.Rule) { r.Action = "deny"; credential("p1")(r) }, ".credential", "deny rule"},
		{"provider", credential("p3"), ".credential.provider", `"p3" is no CredentialProvider`},
		{"details", func(r *v1alpha1.Rule) {
			credential("p1")(r)
			r.Credential.AuthorizationDetails = json.RawMessage(`[{"type":"a","a":1,"a":2}]`)
		}, ".credential.authorizationDetails", "twice"},
		{"agent credential", func(r *v1alpha1.Rule) { r.AgentCredential = "keep" }, ".agentCredential", "strip or pass"},
		{"answers", func(r *v1alpha1.Rule) { r.AnswerCredentials = "keep" }, ".answerCredentials", "seal or pass"},
		{"durability", func(r *v1alpha1.Rule) { r.Durability = "disk" }, ".durability", "process, power or collector"},
		{"max stream", func(r *v1alpha1.Rule) { r.MaxStream = -1 }, ".maxStream", "negative"},
		{"passthrough methods", func(r *v1alpha1.Rule) { r.Action = "passthrough"; r.Methods = []string{"GET"} }, ".methods", "passthrough"},
		{"passthrough paths", func(r *v1alpha1.Rule) { r.Action = "passthrough"; r.Paths = []string{"/"} }, ".paths", "passthrough"},
		{"passthrough credential", func(r *v1alpha1.Rule) { r.Action = "passthrough"; credential("p1")(r) }, ".credential", "passthrough"},
		{"passthrough condition", func(r *v1alpha1.Rule) { r.Action = "passthrough"; r.When = `request.method == "GET"` }, ".when", "never sees"},
		{"syntax", when(`request.method ==`), ".when", "at 1:"},
		{"misspelt field", when(`request.method == "GET" && request.hots == "x"`), ".when", "at 1:35 of the expression: undefined field 'hots'; request has host, port"},
		{"misspelt object", when(`requst.host == "x"`), ".when", "there are request, workload"},
		{"wrong type", when(`request.port == "443"`), ".when", "at 1:14"},
		{"no bool", when(`request.host`), ".when", "gives a string; it must give a bool"},
		{"dynamic", when(`dyn(request.host)`), ".when", "must give a bool"},
		{"zone", when(`time.getHours("Europe/Berlin") > 8`), ".when", "fixed offset"},
		{"computed zone", when(`time.getHours(request.path) > 8`), ".when", "fixed offset"},
		{"too long", when(strings.Repeat(" ", 9000) + "true"), ".when", "longer"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := accessPolicy("p", allow("other", "b.test"), with(base, tt.change))
			p.Metadata.Namespace = "ns"
			got := problem(t, p)
			want := api.Ref{Kind: "AccessPolicy", Namespace: "ns", Name: "p", Field: "spec.rules[1]" + tt.field}
			if got.Ref != want || !strings.Contains(got.Text, tt.text) {
				t.Errorf("got %+v: %s\nwant %+v: …%s…", got.Ref, got.Text, want, tt.text)
			}
		})
	}
}

func TestPolicyProblems(t *testing.T) {
	p := accessPolicy("p", allow("r", "a.test"), allow("r", "b.test"))
	p.Spec.Mode = "off"
	p.Spec.Workloads = []v1alpha1.WorkloadSelector{{}, {SPIFFEID: "spiffe://x/a*"}, {SPIFFEID: "agent"}}
	_, err := policy.Compile(bundle(p, accessPolicy("q", allow("r"))))
	var problems policy.Problems
	if !errors.As(err, &problems) {
		t.Fatal(err)
	}
	var fields []string
	for _, p := range problems {
		fields = append(fields, p.Ref.Name+" "+p.Ref.Field)
	}
	want := []string{"p spec.mode", "p spec.workloads[0]", "p spec.workloads[1].spiffeID", "p spec.workloads[2].spiffeID", "p spec.rules[1].name", "q spec.rules[0].hosts"}
	if d := cmp.Diff(want, fields); d != "" {
		t.Errorf("problems (-want +got):\n%s", d)
	}
	if got := strings.Count(err.Error(), "\n") + 1; got != len(want) {
		t.Errorf("the error has %d lines, want %d", got, len(want))
	}
}

// TestConflicts checks which pairs of rules are refused.
func TestConflicts(t *testing.T) {
	port := func(p ...int) func(*v1alpha1.Rule) { return func(r *v1alpha1.Rule) { r.Ports = p } }
	q := func(m v1alpha1.ValueMatch) func(*v1alpha1.Rule) { m.Name = "q"; return query(m) }
	h := func(m v1alpha1.ValueMatch) func(*v1alpha1.Rule) { m.Name = "X-H"; return header(m) }
	a, d := allow("a", "a.test"), deny("d", "a.test")
	cred := func(p string) v1alpha1.Rule { return with(allow(p, "a.test"), credential(p)) }
	exact := func(v string) v1alpha1.ValueMatch { return v1alpha1.ValueMatch{Exact: v} }
	prefix := func(v string) v1alpha1.ValueMatch { return v1alpha1.ValueMatch{Prefix: v} }
	tests := []struct {
		name   string
		first  v1alpha1.Rule
		second v1alpha1.Rule
		want   bool
	}{
		{"allow and deny", a, d, true},
		{"two credentials", cred("p1"), cred("p2"), true},
		{"credential and none", cred("p1"), a, true},
		{"obligations", a, with(allow("b", "a.test"), func(r *v1alpha1.Rule) { r.AgentCredential = "pass" }), true},
		{"passthrough and allow", passthrough("t", "a.test"), a, true},
		{"same outcome", cred("p1"), with(cred("p1"), func(r *v1alpha1.Rule) { r.Name = "again" }), false},
		{"two denials", d, with(deny("e", "a.test"), func(r *v1alpha1.Rule) { r.Reason = "another" }), false},
		{"one of several hosts", allow("a", "b.test", "*.a.test"), deny("d", "c.test", "*.A.test"), true},
		{"other host", a, deny("d", "b.test"), false},
		{"wildcards of one length", allow("a", "*.a.test"), deny("d", "*.b.test"), false},
		{"same template with other names", with(a, paths("/x/{y}")), with(d, paths("/x/{z}")), true},
		{"other literals", with(a, paths("/x/{y}")), with(d, paths("/y/{z}")), false},
		{"same literals in other spelling", with(a, paths("/%7ex")), with(d, paths("/~x")), true},
		{"shared method", with(a, methods("GET", "PUT")), with(d, methods("PUT", "POST")), true},
		{"other methods", with(a, methods("GET")), with(d, methods("PUT")), false},
		{"shared port", with(a, port(443, 8443)), with(d, port(443, 9443)), true},
		{"other ports", with(a, port(8443)), with(d, port(9443)), false},
		{"default ports", a, with(d, port(443, 80)), true},
		{"query values", with(a, q(exact("1"))), with(d, q(exact("2"))), false},
		{"same query value", with(a, q(exact("1"))), with(d, q(exact("1"))), true},
		{"query prefixes", with(a, q(prefix("ab"))), with(d, q(prefix("cd"))), false},
		{"header values", with(a, h(exact("1"))), with(d, h(exact("2"))), false},
		{"header lists", with(a, h(exact("1, 2"))), with(d, h(exact("2"))), true},
		{"header prefixes may be in one list", with(a, h(prefix("ab"))), with(d, h(prefix("cd"))), true},
		{"absent and present", with(a, q(v1alpha1.ValueMatch{Absent: true})), with(d, q(exact("1"))), false},
		{"conditions", with(a, when("task.open")), with(d, when("!task.open")), false},
		{"same condition", with(a, when("task.open")), with(d, when("task.open")), true},
		{"one condition is more specific", a, with(d, when("task.open")), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := policy.Compile(bundle(accessPolicy("one", tt.first), auditPolicy("two", tt.second)))
			if (err != nil) != tt.want {
				t.Fatalf("got %v, want conflict %v", err, tt.want)
			}
			if !tt.want {
				return
			}
			p := problem(t, accessPolicy("one", tt.first), auditPolicy("two", tt.second))
			if p.Ref.Name != "two" || p.Ref.Field != "spec.rules[0]" {
				t.Errorf("reported at %+v, want the second rule", p.Ref)
			}
			for _, name := range []string{`"one"`, `"two"`, `"` + tt.first.Name + `"`, `"` + tt.second.Name + `"`} {
				if !strings.Contains(p.Text, name) {
					t.Errorf("%q does not name %s", p.Text, name)
				}
			}
		})
	}
}

func TestConflictsByWorkload(t *testing.T) {
	select1 := func(s v1alpha1.WorkloadSelector) v1alpha1.AccessPolicy {
		p := accessPolicy("one", allow("a", "a.test"))
		p.Spec.Workloads = []v1alpha1.WorkloadSelector{s}
		return p
	}
	id := func(s string) v1alpha1.WorkloadSelector {
		return v1alpha1.WorkloadSelector{SPIFFEID: "spiffe://a/" + s}
	}
	labels := func(k, v string) v1alpha1.WorkloadSelector {
		return v1alpha1.WorkloadSelector{MatchLabels: map[string]string{k: v}}
	}
	tests := []struct {
		name string
		a, b v1alpha1.WorkloadSelector
		want bool
	}{
		{"one id", id("x"), id("x"), true},
		{"two ids", id("x"), id("y"), false},
		{"one prefix", id("x/*"), id("x/*"), true},
		{"two prefixes", id("x/*"), id("y/*"), false},
		{"namespaces", v1alpha1.WorkloadSelector{Namespaces: []string{"x"}}, v1alpha1.WorkloadSelector{Namespaces: []string{"y"}}, false},
		{"same namespace", v1alpha1.WorkloadSelector{Namespaces: []string{"x"}}, v1alpha1.WorkloadSelector{Namespaces: []string{"x"}}, true},
		{"labels", labels("k", "1"), labels("k", "2"), false},
		{"unrelated labels", labels("k", "1"), labels("l", "2"), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			second := select1(tt.b)
			second.Metadata.Name, second.Spec.Rules[0] = "two", deny("d", "a.test")
			if _, err := policy.Compile(bundle(select1(tt.a), second)); (err != nil) != tt.want {
				t.Errorf("got %v, want conflict %v", err, tt.want)
			}
		})
	}
}

// TestDecisionFields checks that everything a rule says reaches the decision.
func TestDecisionFields(t *testing.T) {
	r := v1alpha1.Rule{
		Name: "r", Hosts: []string{"a.test"}, Paths: []string{"/x/{id}"}, Action: "allow",
		Credential: &v1alpha1.CredentialRef{
			Provider: "p1", Scope: []string{"read", "write"}, Audience: "aud", Resources: []string{"https://a.test/"}, Role: "role",
			AuthorizationDetails: json.RawMessage("[ {\"type\":\"pay\",\"amount\":1.50e1,\"actions\":[],\"€\":\"\\u20ac<\\u0001\",\"a\":{\"c\":-0,\"b\":null}} ]"),
			TTL:                  v1alpha1.Duration(time.Minute),
		},
		AgentCredential: "pass", AnswerCredentials: "pass", AllowCrossSite: true, EchoRisk: true, RawPaths: true, CredentialCall: true,
		OpenTask: true, MaxStream: v1alpha1.Duration(time.Hour), Durability: "power",
	}
	want := policy.Decision{
		Verdict: policy.Inject, Policy: "ns/p", Rule: "r", Version: "v1", PathTemplate: "/x/{id}",
		Reason: `rule "r" of policy "ns/p" allows the call with a credential of provider "p1"`,
		Grant: policy.Grant{
			Provider: "p1", Scope: []string{"read", "write"}, ScopeSource: "static", Audience: "aud", Resources: []string{"https://a.test/"}, Role: "role",
			AuthorizationDetails: "[{\"a\":{\"b\":null,\"c\":0},\"actions\":[],\"amount\":15,\"type\":\"pay\",\"€\":\"€<\\u0001\"}]", TTL: time.Minute,
		},
		AgentCredentials: "pass", Answers: "pass", CrossSite: true, EchoRisk: true, RawPaths: true, OpenTask: true, CredentialCall: true,
		MaxStream: time.Hour, Durability: "power",
	}
	p := accessPolicy("p", r)
	p.Metadata.Namespace = "ns"
	if d := cmp.Diff(want, compile(t, p).Decide(request(t, "GET https://a.test/x/1"))); d != "" {
		t.Errorf("decision (-want +got):\n%s", d)
	}
	got := compile(t, accessPolicy("p", with(allow("r", "a.test"), credential("p2")))).Decide(request(t, "GET https://a.test/"))
	want = policy.Decision{
		Verdict: policy.Inject, Policy: "p", Rule: "r", Version: "v1", Reason: `rule "r" of policy "p" allows the call with a credential of provider "p2"`,
		Grant:            policy.Grant{Provider: "p2", ScopeSource: "static", TTL: 7 * time.Minute},
		AgentCredentials: "strip", Answers: "seal", Durability: "process",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("defaults (-want +got):\n%s", d)
	}
	b := bundle(accessPolicy("p", allow("r", "a.test")))
	b.Config.Spec.Audit.Durability = v1alpha1.DurabilityPower
	s, err := policy.Compile(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"GET https://a.test/", "GET https://b.test/"} {
		if d := s.Decide(request(t, line)); d.Durability != v1alpha1.DurabilityPower {
			t.Errorf("%s: got durability %q, want the configured default", line, d.Durability)
		}
	}
}

func TestAuthorizationDetails(t *testing.T) {
	for in, text := range map[string]string{
		`{"type":"a"}`: "list", `[]`: "list", `[1]`: "entry 0", `[{"type":"a"},{}]`: "entry 1", `[{"type":"a"}] x`: "", `[{"type"`: "JSON",
		`[{"type":"a","n":9007199254740993}]`: "round", `[{"type":"a","n":1e400}]`: "round",
		`[{"type":"a","n":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}]`: "deeper",
	} {
		r := with(allow("r", "a.test"), credential("p1"))
		r.Credential.AuthorizationDetails = json.RawMessage(in)
		if p := problem(t, accessPolicy("p", r)); !strings.Contains(p.Text, text) {
			t.Errorf("%s: got %q, want …%s…", in, p.Text, text)
		}
	}
}

// TestProvidersScopes checks that a decision names the scope that will be
// asked for, also where only the provider does.
func TestProvidersScopes(t *testing.T) {
	own := func(r *v1alpha1.Rule) {
		r.Credential = &v1alpha1.CredentialRef{Provider: "p1", Scope: []string{"write"}}
	}
	b := bundle(accessPolicy("p", with(allow("default", "a.test"), credential("p1")), with(allow("own", "b.test"), own)))
	b.Providers[0].Spec.OAuth2 = &v1alpha1.OAuth2{Scopes: []string{"read", "list"}}
	s, err := policy.Compile(b)
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string][]string{"GET https://a.test/": {"read", "list"}, "GET https://b.test/": {"write"}} {
		if got := s.Decide(request(t, target)).Grant.Scope; !cmp.Equal(got, want) {
			t.Errorf("%s: got scope %v, want %v", target, got, want)
		}
	}
}
