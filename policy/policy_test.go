package policy_test

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/policy"
)

// now is the time of every test request.
func now() time.Time { return time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC) }

// worker is the workload of test requests.
func worker() *identity.Workload {
	return &identity.Workload{
		ID:             spiffeid.RequireFromString("spiffe://attache.local/agent/worker"),
		Namespace:      "team",
		ServiceAccount: "worker",
		Labels:         map[string]string{"app": "crawler", "tier": "1"},
		Images:         []string{"registry.example/worker@sha256:00"},
		Node:           "node-1",
		Posture:        map[string]string{"confined": "landlock"},
		Owner:          "ana@example.org",
		RunID:          "run-1",
	}
}

// request builds a request from "METHOD URL".
func request(t testing.TB, line string) *policy.Request {
	t.Helper()
	method, rawURL, _ := strings.Cut(line, " ")
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	r := &policy.Request{
		Host: u.Hostname(), Port: 443, Scheme: u.Scheme, Method: method, Path: u.EscapedPath(), Query: u.Query(),
		Header: http.Header{}, Protocol: policy.HTTP, Workload: worker(), Time: now(),
	}
	if u.Scheme == "http" {
		r.Port = 80
	}
	if u.Port() != "" {
		if r.Port, err = strconv.Atoi(u.Port()); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func accessPolicy(name string, rules ...v1alpha1.Rule) v1alpha1.AccessPolicy {
	return v1alpha1.AccessPolicy{
		TypeMeta: v1alpha1.TypeMeta{APIVersion: v1alpha1.APIVersion, Kind: v1alpha1.KindAccessPolicy},
		Metadata: v1alpha1.ObjectMeta{Name: name},
		Spec:     v1alpha1.AccessPolicySpec{Rules: rules},
	}
}

func auditPolicy(name string, rules ...v1alpha1.Rule) v1alpha1.AccessPolicy {
	p := accessPolicy(name, rules...)
	p.Spec.Mode = "audit"
	return p
}

// bundle has two providers whose credentials may go anywhere below "test" and
// to port 80 and 443.
func bundle(policies ...v1alpha1.AccessPolicy) *api.Bundle {
	var places []v1alpha1.Destination
	for _, host := range []string{"**.test", "test"} {
		places = append(places, v1alpha1.Destination{Host: host}, v1alpha1.Destination{Host: host, Scheme: "http"},
			v1alpha1.Destination{Host: host, Port: 8443})
	}
	b := &api.Bundle{Version: "v1", Policies: policies}
	for _, name := range []string{"p1", "p2"} {
		b.Providers = append(b.Providers, v1alpha1.CredentialProvider{
			Metadata: v1alpha1.ObjectMeta{Name: name},
			Spec:     v1alpha1.CredentialProviderSpec{Destinations: places, TTL: v1alpha1.Duration(7 * time.Minute)},
		})
	}
	return b
}

func compile(t testing.TB, policies ...v1alpha1.AccessPolicy) *policy.Set {
	t.Helper()
	s, err := policy.Compile(bundle(policies...))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func allow(name string, hosts ...string) v1alpha1.Rule {
	return v1alpha1.Rule{Name: name, Hosts: hosts, Action: v1alpha1.ActionAllow}
}

func deny(name string, hosts ...string) v1alpha1.Rule {
	return v1alpha1.Rule{Name: name, Hosts: hosts, Action: v1alpha1.ActionDeny}
}

func passthrough(name string, hosts ...string) v1alpha1.Rule {
	return v1alpha1.Rule{Name: name, Hosts: hosts, Action: v1alpha1.ActionPassthrough}
}

// with changes a rule.
func with(r v1alpha1.Rule, change func(*v1alpha1.Rule)) v1alpha1.Rule {
	change(&r)
	return r
}

func credential(provider string) func(*v1alpha1.Rule) {
	return func(r *v1alpha1.Rule) { r.Credential = &v1alpha1.CredentialRef{Provider: provider} }
}

func paths(p ...string) func(*v1alpha1.Rule)   { return func(r *v1alpha1.Rule) { r.Paths = p } }
func methods(m ...string) func(*v1alpha1.Rule) { return func(r *v1alpha1.Rule) { r.Methods = m } }
func when(w string) func(*v1alpha1.Rule)       { return func(r *v1alpha1.Rule) { r.When = w } }

func header(m ...v1alpha1.ValueMatch) func(*v1alpha1.Rule) {
	return func(r *v1alpha1.Rule) { r.Headers = m }
}

func query(m ...v1alpha1.ValueMatch) func(*v1alpha1.Rule) {
	return func(r *v1alpha1.Rule) { r.Query = m }
}

// TestMatch checks one allow rule against requests that it matches and that it
// does not match.
func TestMatch(t *testing.T) {
	tests := []struct {
		name     string
		rule     v1alpha1.Rule
		yes, not []string
	}{
		{
			"exact host", allow("r", "API.a.test"),
			[]string{"GET https://api.a.test/", "GET http://api.a.test/x"},
			[]string{"GET https://x.api.a.test/", "GET https://a.test/", "GET https://api.a.test:8443/", "GET https://api.a.test.evil/"},
		},
		{
			"one label", allow("r", "*.a.test"),
			[]string{"GET https://x.a.test/"},
			[]string{"GET https://a.test/", "GET https://y.x.a.test/", "GET https://xa.test/"},
		},
		{
			"suffix", allow("r", "**.a.test"),
			[]string{"GET https://x.a.test/", "GET https://y.x.a.test/"},
			[]string{"GET https://a.test/", "GET https://xa.test/"},
		},
		{
			"any name but no address", allow("r", "*"),
			[]string{"GET https://x/", "GET https://y.x.a.test/"},
			[]string{"GET https://10.0.0.1/", "GET https://[2001:db8::1]/"},
		},
		{
			"address", allow("r", "10.0.0.1", "2001:db8::1"),
			[]string{"GET https://10.0.0.1/", "GET https://[2001:db8::1]/"},
			[]string{"GET https://10.0.0.2/"},
		},
		{
			"ports", with(allow("r", "a.test"), func(r *v1alpha1.Rule) { r.Ports = []int{8443} }),
			[]string{"GET https://a.test:8443/"},
			[]string{"GET https://a.test/", "GET http://a.test/"},
		},
		{
			"methods", with(allow("r", "a.test"), methods("GET", "HEAD")),
			[]string{"GET https://a.test/", "HEAD https://a.test/"},
			[]string{"POST https://a.test/", "get https://a.test/"},
		},
		{
			"template", with(allow("r", "a.test"), paths("/repos/{owner}/{repo}/issues")),
			[]string{"GET https://a.test/repos/o/r/issues", "GET https://a.test/%72epos/o/r%2Fx/issues"},
			[]string{"GET https://a.test/repos/o/r/issues/", "GET https://a.test/repos/o/issues", "GET https://a.test/repos//r/issues",
				"GET https://a.test/repos/o%2Fr/issues", "GET https://a.test/repos/o/r/issues/1", "GET https://a.test/Repos/o/r/issues"},
		},
		{
			"tail", with(allow("r", "a.test"), paths("/a/**", "/b/{x}/{rest...}")),
			[]string{"GET https://a.test/a", "GET https://a.test/a/", "GET https://a.test/a/b/c", "GET https://a.test/b/1", "GET https://a.test/b/1/2/3"},
			[]string{"GET https://a.test/ab", "GET https://a.test/b", "GET https://a.test/b/", "GET https://a.test/"},
		},
		{
			"percent-encoding", with(allow("r", "a.test"), paths("/v1/a:b/%7Euser", "/caf%c3%a9")),
			[]string{"GET https://a.test/v1/a:b/~user", "GET https://a.test/v1/a%3Ab/%7euser", "GET https://a.test/caf%C3%A9"},
			[]string{"GET https://a.test/v1/a%253Ab/~user", "GET https://a.test/cafe"},
		},
		{
			"encoded semicolon", with(allow("r", "a.test"), paths("/a%3bb")),
			[]string{"GET https://a.test/a%3Bb"},
			[]string{"GET https://a.test/a;b"},
		},
		{
			"root", with(allow("r", "a.test"), paths("/")),
			[]string{"GET https://a.test/", "GET https://a.test"},
			[]string{"GET https://a.test/x"},
		},
		{
			"query", with(allow("r", "a.test"), query(v1alpha1.ValueMatch{Name: "q", Exact: "1"}, v1alpha1.ValueMatch{Name: "p", Prefix: "ab"},
				v1alpha1.ValueMatch{Name: "has"}, v1alpha1.ValueMatch{Name: "not", Absent: true})),
			[]string{"GET https://a.test/?q=1&p=abc&has=", "GET https://a.test/?q=1&q=1&p=ab&p=abd&has=1"},
			[]string{"GET https://a.test/?q=1&q=2&p=abc&has=", "GET https://a.test/?p=abc&has=1", "GET https://a.test/?q=1&p=abc&p=x&has=1",
				"GET https://a.test/?q=1&p=ab", "GET https://a.test/?q=1&p=ab&has&not=", "GET https://a.test/?Q=1&p=ab&has"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := compile(t, accessPolicy("p", tt.rule))
			for _, line := range tt.yes {
				if d := s.Decide(request(t, line)); d.Verdict != policy.Allow || d.Rule != "r" || d.Policy != "p" || d.Version != "v1" {
					t.Errorf("%s: got %v by %q (%s), want allow by the rule", line, d.Verdict, d.Rule, d.Reason)
				}
			}
			for _, line := range tt.not {
				if d := s.Decide(request(t, line)); d.Verdict != policy.Deny || d.Rule != "" || d.Version != "v1" {
					t.Errorf("%s: got %v by %q, want the default denial", line, d.Verdict, d.Rule)
				}
			}
		})
	}
}

// TestValues checks conditions on headers with several values: an allow rule
// needs all of them, a deny rule one.
func TestValues(t *testing.T) {
	exact := v1alpha1.ValueMatch{Name: "x-mode", Exact: "safe"}
	prefix := v1alpha1.ValueMatch{Name: "X-Mode", Prefix: "sa"}
	absent := v1alpha1.ValueMatch{Name: "x-mode", Absent: true}
	present := v1alpha1.ValueMatch{Name: "x-mode"}
	tests := []struct {
		match       v1alpha1.ValueMatch
		values      []string
		allow, deny bool
	}{
		{exact, nil, false, false},
		{exact, []string{"safe"}, true, true},
		{exact, []string{"other"}, false, false},
		{exact, []string{"safe", "other"}, false, true},
		{exact, []string{"other", "safe"}, false, true},
		{exact, []string{"other, safe"}, false, true},
		{exact, []string{"safe, safe"}, false, true},
		{prefix, []string{"safe"}, true, true},
		{prefix, []string{"safe", "other"}, false, true},
		{prefix, []string{"x,same"}, false, true},
		{prefix, []string{"x"}, false, false},
		{absent, nil, true, true},
		{absent, []string{""}, false, false},
		{present, nil, false, false},
		{present, []string{""}, true, true},
	}
	for _, tt := range tests {
		r := request(t, "GET https://a.test/")
		if tt.values != nil {
			r.Header["X-Mode"] = tt.values
		}
		s := compile(t, accessPolicy("p", with(allow("r", "a.test"), header(tt.match))))
		if got := s.Decide(r).Verdict == policy.Allow; got != tt.allow {
			t.Errorf("allow rule with %+v and %q: got match %v, want %v", tt.match, tt.values, got, tt.allow)
		}
		s = compile(t, accessPolicy("p", allow("all", "a.test"), with(deny("r", "a.test"), header(tt.match))))
		if got := s.Decide(r).Verdict == policy.Deny; got != tt.deny {
			t.Errorf("deny rule with %+v and %q: got match %v, want %v", tt.match, tt.values, got, tt.deny)
		}
	}
}

// TestUnderscore checks that X_Mode, which CGI and WSGI programs cannot tell
// from X-Mode, neither stands beside a condition nor evades one.
func TestUnderscore(t *testing.T) {
	safe := v1alpha1.ValueMatch{Name: "X-Mode", Exact: "safe"}
	absent := v1alpha1.ValueMatch{Name: "X-Mode", Absent: true}
	tests := []struct {
		name   string
		rules  []v1alpha1.Rule
		header http.Header
		want   policy.Verdict
	}{
		{"agrees", []v1alpha1.Rule{with(allow("r", "a.test"), header(safe))}, http.Header{"X-Mode": {"safe"}, "X_mode": {"safe"}}, policy.Allow},
		{"differs", []v1alpha1.Rule{with(allow("r", "a.test"), header(safe))}, http.Header{"X-Mode": {"safe"}, "X_mode": {"other"}}, policy.Deny},
		{"not absent", []v1alpha1.Rule{with(allow("r", "a.test"), header(absent))}, http.Header{"X_mode": {"other"}}, policy.Deny},
		{"denied", []v1alpha1.Rule{allow("all", "a.test"), with(deny("r", "a.test"), header(safe))}, http.Header{"X_Mode": {"safe"}}, policy.Deny},
		{"condition", []v1alpha1.Rule{with(allow("r", "a.test"), when(`request.headers["x-mode"] == "safe"`))}, http.Header{"X-Mode": {"safe"}, "X_mode": {"other"}}, policy.Deny},
		{"condition holds", []v1alpha1.Rule{with(allow("r", "a.test"), when(`request.headers["x-mode"] == "safe"`))}, http.Header{"X-Mode": {"safe"}}, policy.Allow},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := request(t, "GET https://a.test/")
			r.Header = tt.header
			if d := compile(t, accessPolicy("p", tt.rules...)).Decide(r); d.Verdict != tt.want {
				t.Errorf("got %v because %q, want %v", d.Verdict, d.Reason, tt.want)
			}
		})
	}
}

// TestQueryDeny checks that repeating a parameter does not evade a deny rule.
func TestQueryDeny(t *testing.T) {
	s := compile(t, accessPolicy("p", allow("all", "a.test"), with(deny("r", "a.test"), query(v1alpha1.ValueMatch{Name: "acl", Exact: "public"}))))
	for line, want := range map[string]policy.Verdict{
		"GET https://a.test/?acl=private":            policy.Allow,
		"GET https://a.test/?acl=private&acl=public": policy.Deny,
		"GET https://a.test/?acl=public&acl=private": policy.Deny,
	} {
		if d := s.Decide(request(t, line)); d.Verdict != want {
			t.Errorf("%s: got %v, want %v", line, d.Verdict, want)
		}
	}
}

func TestProtocols(t *testing.T) {
	s := compile(t, accessPolicy("p", with(allow("r", "a.test"), func(r *v1alpha1.Rule) { r.Protocols = []string{"grpc", "http"} })))
	for protocol, want := range map[string]policy.Verdict{"http": policy.Allow, "": policy.Allow, "grpc": policy.Allow, "websocket": policy.Deny} {
		r := request(t, "GET https://a.test/")
		r.Protocol = protocol
		if d := s.Decide(r); d.Verdict != want {
			t.Errorf("protocol %q: got %v, want %v", protocol, d.Verdict, want)
		}
	}
}

func TestWorkloads(t *testing.T) {
	tests := []struct {
		name string
		sel  v1alpha1.WorkloadSelector
		want bool
	}{
		{"exact", v1alpha1.WorkloadSelector{SPIFFEID: "spiffe://attache.local/agent/worker"}, true},
		{"other", v1alpha1.WorkloadSelector{SPIFFEID: "spiffe://attache.local/agent/work"}, false},
		{"prefix", v1alpha1.WorkloadSelector{SPIFFEID: "spiffe://attache.local/agent/*"}, true},
		{"trust domain", v1alpha1.WorkloadSelector{SPIFFEID: "spiffe://attache.local/*"}, true},
		{"prefix is no own child", v1alpha1.WorkloadSelector{SPIFFEID: "spiffe://attache.local/agent/worker/*"}, false},
		{"prefix of a segment", v1alpha1.WorkloadSelector{SPIFFEID: "spiffe://attache.local/age/*"}, false},
		{"namespace", v1alpha1.WorkloadSelector{Namespaces: []string{"x", "team"}}, true},
		{"other namespace", v1alpha1.WorkloadSelector{Namespaces: []string{"x"}}, false},
		{"service account", v1alpha1.WorkloadSelector{ServiceAccounts: []string{"worker"}}, true},
		{"other service account", v1alpha1.WorkloadSelector{Namespaces: []string{"team"}, ServiceAccounts: []string{"x"}}, false},
		{"labels", v1alpha1.WorkloadSelector{MatchLabels: map[string]string{"app": "crawler", "tier": "1"}}, true},
		{"missing label", v1alpha1.WorkloadSelector{MatchLabels: map[string]string{"app": "crawler", "x": ""}}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := accessPolicy("p", allow("r", "a.test"))
			p.Spec.Workloads = []v1alpha1.WorkloadSelector{tt.sel}
			s := compile(t, p)
			r := request(t, "GET https://a.test/")
			if got := s.Decide(r).Verdict == policy.Allow; got != tt.want {
				t.Errorf("got allowed %v, want %v", got, tt.want)
			}
			if got := s.Knows("a.test", 443, r.Workload); got != tt.want {
				t.Errorf("got known %v, want %v", got, tt.want)
			}
		})
	}
}

// TestFailClosed checks what denies whatever the rules say.
func TestFailClosed(t *testing.T) {
	open := compile(t, auditPolicy("p", allow("r", "*"), passthrough("t", "t.test")))
	var none *policy.Set
	tests := []struct {
		name   string
		set    *policy.Set
		change func(*policy.Request)
		reason string
	}{
		{"no set", none, func(*policy.Request) {}, "no policy"},
		{"no workload", open, func(r *policy.Request) { r.Workload = nil }, "identity"},
		{"zero id", open, func(r *policy.Request) { r.Workload = &identity.Workload{} }, "identity"},
		{"bad escape", open, func(r *policy.Request) { r.Path = "/a%2" }, "hexadecimal"},
		{"relative path", open, func(r *policy.Request) { r.Path = "a" }, "path"},
		{"lower-case method", open, func(r *policy.Request) { r.Method = "delete" }, "upper case"},
		{"mixed-case method", open, func(r *policy.Request) { r.Method = "Delete" }, "upper case"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := request(t, "GET https://t.test/")
			tt.change(r)
			d := tt.set.Decide(r)
			if d.Verdict != policy.Deny || !strings.Contains(d.Reason, tt.reason) {
				t.Errorf("got %v because %q, want deny with %q", d.Verdict, d.Reason, tt.reason)
			}
			if tt.set.Explain(r).Verdict != "deny" {
				t.Error("explain does not deny")
			}
			if r.Workload == nil || r.Workload.ID.IsZero() || tt.set == nil {
				if d := tt.set.DecideConn(r); d.Verdict != policy.Deny {
					t.Errorf("connection: got %v, want deny", d.Verdict)
				}
				if tt.set.Knows("t.test", 443, r.Workload) {
					t.Error("an unknown caller is told of rules")
				}
			}
		})
	}
	if d := (policy.Decision{}); d.Verdict != policy.Deny {
		t.Error("the zero decision does not deny")
	}
}

// TestPrecedence checks who wins where several rules match.
func TestPrecedence(t *testing.T) {
	cred := func(n string, c ...func(*v1alpha1.Rule)) v1alpha1.Rule {
		r := with(allow(n, "api.a.test"), credential("p1"))
		for _, f := range c {
			f(&r)
		}
		return r
	}
	tests := []struct {
		name  string
		rules []v1alpha1.Rule
		line  string
		rule  string
		want  policy.Verdict
	}{
		{"exact host over wildcard", []v1alpha1.Rule{deny("low", "*.a.test"), cred("high")}, "GET https://api.a.test/", "high", policy.Inject},
		{"label over suffix", []v1alpha1.Rule{deny("low", "**.a.test"), allow("high", "*.a.test")}, "GET https://api.a.test/", "high", policy.Allow},
		{"longer suffix", []v1alpha1.Rule{allow("low", "**.test"), deny("high", "**.a.test")}, "GET https://api.a.test/", "high", policy.Deny},
		{"suffix over any", []v1alpha1.Rule{allow("low", "*"), deny("high", "**.test")}, "GET https://api.a.test/", "high", policy.Deny},
		{"host before path", []v1alpha1.Rule{with(deny("low", "*.a.test"), paths("/x/y")), cred("high")}, "GET https://api.a.test/x/y", "high", policy.Inject},
		{"literal over variable", []v1alpha1.Rule{cred("low", paths("/x/{y}")), with(deny("high", "api.a.test"), paths("/x/y"))}, "GET https://api.a.test/x/y", "high", policy.Deny},
		{"variable over tail", []v1alpha1.Rule{cred("low", paths("/x/**")), with(deny("high", "api.a.test"), paths("/x/{y}"))}, "GET https://api.a.test/x/y", "high", policy.Deny},
		{"end over tail", []v1alpha1.Rule{cred("low", paths("/x/**")), with(deny("high", "api.a.test"), paths("/x"))}, "GET https://api.a.test/x", "high", policy.Deny},
		{"path over methods", []v1alpha1.Rule{cred("low", methods("GET")), with(deny("high", "api.a.test"), paths("/**"))}, "GET https://api.a.test/x", "high", policy.Deny},
		{"fewer methods", []v1alpha1.Rule{cred("low", methods("GET", "PUT")), with(deny("high", "api.a.test"), methods("GET"))}, "GET https://api.a.test/x", "high", policy.Deny},
		{"ports", []v1alpha1.Rule{cred("low"), with(deny("high", "api.a.test"), func(r *v1alpha1.Rule) { r.Ports = []int{443} })}, "GET https://api.a.test/x", "high", policy.Deny},
		{"header", []v1alpha1.Rule{cred("low"), with(deny("high", "api.a.test"), header(v1alpha1.ValueMatch{Name: "X", Absent: true}))}, "GET https://api.a.test/x", "high", policy.Deny},
		{"query", []v1alpha1.Rule{cred("low", query(v1alpha1.ValueMatch{Name: "q"})), with(deny("high", "api.a.test"), query(v1alpha1.ValueMatch{Name: "q", Exact: "1"}))}, "GET https://api.a.test/x?q=1", "high", policy.Deny},
		{"protocol", []v1alpha1.Rule{cred("low"), with(deny("high", "api.a.test"), func(r *v1alpha1.Rule) { r.Protocols = []string{"http"} })}, "GET https://api.a.test/x", "high", policy.Deny},
		{"when", []v1alpha1.Rule{cred("low"), with(deny("high", "api.a.test"), when("true"))}, "GET https://api.a.test/x", "high", policy.Deny},
		{"deny over allow", []v1alpha1.Rule{cred("a", when("true")), with(deny("d", "api.a.test"), when("1 == 1"))}, "GET https://api.a.test/x", "d", policy.Deny},
		{"deny over allow, other order", []v1alpha1.Rule{with(deny("d", "api.a.test"), when("1 == 1")), cred("a", when("true"))}, "GET https://api.a.test/x", "d", policy.Deny},
		{"same outcome twice", []v1alpha1.Rule{cred("a"), cred("b")}, "GET https://api.a.test/x", "a", policy.Inject},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := compile(t, accessPolicy("p", tt.rules...)).Decide(request(t, tt.line))
			if d.Verdict != tt.want || d.Rule != tt.rule {
				t.Errorf("got %v by %q (%s), want %v by %q", d.Verdict, d.Rule, d.Reason, tt.want, tt.rule)
			}
		})
	}
}

func TestSelectorPrecedence(t *testing.T) {
	all := accessPolicy("all", allow("r", "a.test"))
	prefix := accessPolicy("prefix", deny("r", "a.test"))
	prefix.Spec.Workloads = []v1alpha1.WorkloadSelector{{SPIFFEID: "spiffe://attache.local/*"}}
	exact := accessPolicy("exact", with(allow("r", "a.test"), credential("p1")))
	exact.Spec.Workloads = []v1alpha1.WorkloadSelector{{SPIFFEID: "spiffe://attache.local/agent/worker"}}
	r := request(t, "GET https://a.test/")
	if d := compile(t, all, prefix).Decide(r); d.Policy != "prefix" || d.Verdict != policy.Deny {
		t.Errorf("got %v by %q, want deny by prefix", d.Verdict, d.Policy)
	}
	if d := compile(t, all, exact, prefix).Decide(r); d.Policy != "exact" || d.Verdict != policy.Inject {
		t.Errorf("got %v by %q, want inject by exact", d.Verdict, d.Policy)
	}
}

// TestAmbiguous checks that two conditions that hold together do not choose a
// credential by chance.
func TestAmbiguous(t *testing.T) {
	a := with(with(allow("a", "a.test"), credential("p1")), when(`request.method == "GET"`))
	b := with(with(allow("b", "a.test"), credential("p2")), when(`request.path == "/x"`))
	s := compile(t, accessPolicy("p", a, b))
	for line, want := range map[string]string{"GET https://a.test/": "p1", "PUT https://a.test/x": "p2", "GET https://a.test/x": ""} {
		d := s.Decide(request(t, line))
		if d.Grant.Provider != want || (d.Verdict == policy.Deny) != (want == "") {
			t.Errorf("%s: got %v with %q, want provider %q", line, d.Verdict, d.Grant.Provider, want)
		}
		if want == "" && (!strings.Contains(d.Reason, `"a"`) || !strings.Contains(d.Reason, `"b"`)) {
			t.Errorf("reason %q does not name both rules", d.Reason)
		}
	}
}

// TestProviderHosts checks the host patterns of a provider's destinations.
func TestProviderHosts(t *testing.T) {
	for pattern, want := range map[string]string{"a.test": "a.test", "*.a.test": "x.a.test", "**.a.test": "x.a.test y.x.a.test"} {
		b := bundle(accessPolicy("p", with(allow("r", "*"), credential("p1"))))
		b.Providers[0].Spec.Destinations = []v1alpha1.Destination{{Host: pattern}}
		s, err := policy.Compile(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, host := range []string{"a.test", "xa.test", "x.a.test", "y.x.a.test", "a.test.evil"} {
			d := s.Decide(request(t, "GET https://"+host+"/"))
			if got := d.Verdict == policy.Inject; got != strings.Contains(" "+want+" ", " "+host+" ") {
				t.Errorf("destination %s and host %s: got %v", pattern, host, d.Verdict)
			}
		}
	}
}

// TestProviderPlaces checks that a rule cannot send a credential where its
// provider does not let it go.
func TestProviderPlaces(t *testing.T) {
	s := compile(t, accessPolicy("p", with(with(allow("r", "a.test", "a.other"), credential("p1")), func(r *v1alpha1.Rule) { r.Ports = []int{443, 8443, 9000} })))
	for line, want := range map[string]policy.Verdict{
		"GET https://a.test/": policy.Inject, "GET https://a.test:8443/": policy.Inject, "GET http://a.test:8443/": policy.Deny,
		"GET https://a.test:9000/": policy.Deny, "GET https://a.other/": policy.Deny,
	} {
		d := s.Decide(request(t, line))
		if d.Verdict != want || want == policy.Deny && (d.Grant.Provider != "" || !strings.Contains(d.Reason, `provider "p1"`)) {
			t.Errorf("%s: got %v (%s), want %v", line, d.Verdict, d.Reason, want)
		}
	}
}
