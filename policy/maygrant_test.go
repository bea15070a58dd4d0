package policy_test

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/policy"
)

// What a broker may take for granted of a request that it has not seen.
func TestMayGrant(t *testing.T) {
	b, err := api.Parse("test", []byte(`
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: model}
spec:
  destinations: [{host: api.example}, {host: other.example}]
  apiKey: {file: /nonexistent}
---
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: second}
spec:
  destinations: [{host: api.example}]
  apiKey: {file: /nonexistent}
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: agents}
spec:
  workloads: [{namespaces: [team]}]
  rules:
  - {name: chat, hosts: [api.example], paths: ["/chat"], methods: [POST], action: allow, credential: {provider: model, scope: [chat]}}
  - {name: when, hosts: [api.example], paths: ["/when"], when: "task.purpose == 'x'", action: allow, credential: {provider: model}}
  - {name: header, hosts: [api.example], paths: ["/header"], headers: [{name: X-A, exact: b}], action: allow, credential: {provider: model}}
  - {name: some, hosts: [api.example], paths: ["/some/**"], action: allow, credential: {provider: model}}
  - {name: not-there, hosts: [api.example], paths: ["/some/secret"], action: deny}
  - {name: not-if, hosts: [api.example], paths: ["/some/doubt"], headers: [{name: X-A}], action: deny}
  - {name: plain, hosts: [other.example], action: allow}
`))
	if err != nil {
		t.Fatal(err)
	}
	set, err := policy.Compile(b)
	if err != nil {
		t.Fatal(err)
	}
	w := func(ns string) *identity.Workload {
		return &identity.Workload{ID: spiffeid.RequireFromString("spiffe://x.test/ns/" + ns + "/sa/a"), Namespace: ns, ServiceAccount: "a"}
	}
	for _, c := range []struct {
		name, ns, method, host, path, provider string
		port                                   int
		rule                                   string // empty: refused
	}{
		{"as the rule says", "team", "POST", "api.example", "/chat", "model", 443, "agents/chat"},
		{"another method", "team", "GET", "api.example", "/chat", "model", 443, ""},
		{"another path", "team", "POST", "api.example", "/else", "model", 443, ""},
		{"another port", "team", "POST", "api.example", "/chat", "model", 8443, ""},
		{"another provider", "team", "POST", "api.example", "/chat", "second", 443, ""},
		{"no provider", "team", "POST", "api.example", "/chat", "third", 443, ""},
		{"another workload", "others", "POST", "api.example", "/chat", "model", 443, ""},
		{"another host", "team", "POST", "evil.example", "/chat", "model", 443, ""},
		{"a rule without credential", "team", "GET", "other.example", "/", "model", 443, ""},
		{"an unseen condition", "team", "GET", "api.example", "/when", "model", 443, "agents/when"},
		{"an unseen header", "team", "GET", "api.example", "/header", "model", 443, "agents/header"},
		{"below", "team", "GET", "api.example", "/some/thing", "model", 443, "agents/some"},
		{"a denial that is more specific", "team", "GET", "api.example", "/some/secret", "model", 443, ""},
		{"a denial that may not apply", "team", "GET", "api.example", "/some/doubt", "model", 443, "agents/some"},
		{"a method that origins read in two ways", "team", "Post", "api.example", "/chat", "model", 443, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, rule, reason := set.MayGrant(&policy.Request{Scheme: "https", Host: c.host, Port: c.port, Method: c.method, Path: c.path, Protocol: policy.HTTP, Workload: w(c.ns)}, c.provider)
			if rule != c.rule || (rule == "") == (reason == "") {
				t.Fatalf("rule %q (%s), want %q", rule, reason, c.rule)
			}
			if rule == "agents/chat" && strings.Join(g.Scope, " ") != "chat" {
				t.Errorf("grant is %+v", g)
			}
		})
	}
	var none *policy.Set
	if _, _, reason := none.MayGrant(&policy.Request{Workload: w("team")}, "model"); reason == "" {
		t.Error("no policy grants")
	}
	if _, _, reason := set.MayGrant(&policy.Request{Scheme: "https", Host: "api.example", Port: 443, Method: "POST", Path: "/chat"}, "model"); reason == "" {
		t.Error("nobody is granted something")
	}
}
