package policy_test

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/policy"
)

func clusterPolicy(name string, rules ...v1alpha1.Rule) v1alpha1.AccessPolicy {
	p := accessPolicy(name, rules...)
	p.Kind = v1alpha1.KindClusterAccessPolicy
	return p
}

func audited(p v1alpha1.AccessPolicy) v1alpha1.AccessPolicy {
	p.Spec.Mode = "audit"
	return p
}

func teamPolicy(rules ...v1alpha1.Rule) v1alpha1.AccessPolicy {
	p := accessPolicy("own", rules...)
	p.Metadata.Namespace = "team"
	return p
}

// TestGuardRails checks that a namespace's rules, however specific, open
// nothing that the cluster's deny, and narrow whatever the cluster's open.
func TestGuardRails(t *testing.T) {
	for _, tt := range []struct {
		name     string
		policies []v1alpha1.AccessPolicy
		line     string
		want     policy.Verdict
		by       string
		would    bool
	}{
		{"a wide denial beats the most specific rule", []v1alpha1.AccessPolicy{
			clusterPolicy("rails", deny("no", "*")),
			teamPolicy(with(with(with(allow("yes", "a.test"), paths("/x")), methods("GET")), credential("p1"))),
		}, "GET https://a.test/x", policy.Deny, "cluster:rails", false},
		{"and the cluster's own rules", []v1alpha1.AccessPolicy{
			clusterPolicy("rails", deny("no", "*"), with(with(allow("yes", "a.test"), paths("/x")), credential("p1"))),
		}, "GET https://a.test/x", policy.Deny, "cluster:rails", false},
		{"but only what it matches", []v1alpha1.AccessPolicy{
			clusterPolicy("rails", with(deny("no", "*"), methods("POST"))),
			teamPolicy(allow("yes", "a.test")),
		}, "GET https://a.test/x", policy.Allow, "team/own", false},
		{"a denial whose condition fails counts as true", []v1alpha1.AccessPolicy{
			clusterPolicy("rails", with(deny("no", "*"), when(`request.headers["x-none"] == "1"`))),
			teamPolicy(allow("yes", "a.test")),
		}, "GET https://a.test/x", policy.Deny, "cluster:rails", false},
		{"the cluster's rule is a default", []v1alpha1.AccessPolicy{
			clusterPolicy("base", with(allow("yes", "a.test"), credential("p1"))),
			teamPolicy(allow("other", "b.test")),
		}, "GET https://a.test/x", policy.Inject, "cluster:base", false},
		{"which the widest denial of a namespace narrows", []v1alpha1.AccessPolicy{
			clusterPolicy("base", with(with(allow("yes", "a.test"), paths("/x")), credential("p1"))),
			teamPolicy(deny("no", "*")),
		}, "GET https://a.test/x", policy.Deny, "team/own", false},
		{"and any rule of a namespace replaces", []v1alpha1.AccessPolicy{
			clusterPolicy("base", with(with(allow("yes", "a.test"), paths("/x")), credential("p1"))),
			teamPolicy(with(allow("mine", "**.test"), credential("p2"))),
		}, "GET https://a.test/x", policy.Inject, "team/own", false},
		{"rules of both may contradict", []v1alpha1.AccessPolicy{
			clusterPolicy("base", with(allow("yes", "a.test"), credential("p1"))),
			teamPolicy(with(allow("mine", "a.test"), credential("p2"))),
		}, "GET https://a.test/x", policy.Inject, "team/own", false},
		{"a guard rail on trial changes nothing", []v1alpha1.AccessPolicy{
			audited(clusterPolicy("trial", deny("no", "*"))),
			teamPolicy(with(allow("yes", "a.test"), credential("p1"))),
		}, "GET https://a.test/x", policy.Inject, "team/own", true},
		{"and opens nothing", []v1alpha1.AccessPolicy{
			audited(clusterPolicy("trial", deny("no", "a.test"), allow("yes", "b.test"))),
		}, "GET https://a.test/x", policy.Deny, "", false},
		{"one in force beats one on trial", []v1alpha1.AccessPolicy{
			audited(clusterPolicy("trial", with(deny("no", "a.test"), paths("/x")))), clusterPolicy("rails", deny("no", "*")),
		}, "GET https://a.test/x", policy.Deny, "cluster:rails", false},
		{"a namespace's policy on trial does not hide a guard rail", []v1alpha1.AccessPolicy{
			clusterPolicy("rails", deny("no", "*")), audited(teamPolicy(deny("no", "a.test"))),
		}, "GET https://a.test/x", policy.Deny, "cluster:rails", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := compile(t, tt.policies...)
			d := s.Decide(request(t, tt.line))
			if d.Verdict != tt.want || d.Policy != tt.by || d.WouldDeny != tt.would {
				t.Errorf("got %v by %q (would deny %v): %s\nwant %v by %q (%v)", d.Verdict, d.Policy, d.WouldDeny, d.Reason, tt.want, tt.by, tt.would)
			}
			if tt.would && !strings.Contains(d.Reason, "policy cluster:trial is in audit mode and would deny") {
				t.Errorf("got reason %s", d.Reason)
			}
			if x := s.Explain(request(t, tt.line)); x.Policy != tt.by || tt.by != "" && x.Position == nil {
				t.Errorf("explained as %s", x)
			}
		})
	}
}

// TestGuardRailsAndTunnels checks that no tunnel passes by a guard rail, which
// can only look into requests.
func TestGuardRailsAndTunnels(t *testing.T) {
	tunnel := allow("tunnel", "a.test")
	tunnel.Action = v1alpha1.ActionPassthrough
	for _, tt := range []struct {
		name     string
		policies []v1alpha1.AccessPolicy
		want     policy.Verdict
	}{
		{"none", []v1alpha1.AccessPolicy{teamPolicy(tunnel)}, policy.Passthrough},
		{"wide denial", []v1alpha1.AccessPolicy{teamPolicy(tunnel), clusterPolicy("rails", with(deny("no", "*"), paths("/admin/**")))}, policy.Deny},
		{"denial elsewhere", []v1alpha1.AccessPolicy{teamPolicy(tunnel), clusterPolicy("rails", deny("no", "b.test"))}, policy.Passthrough},
		{"on trial", []v1alpha1.AccessPolicy{teamPolicy(tunnel), audited(clusterPolicy("rails", deny("no", "*")))}, policy.Passthrough},
		{"the cluster's allow", []v1alpha1.AccessPolicy{teamPolicy(tunnel), clusterPolicy("base", with(allow("yes", "a.test"), paths("/x")))}, policy.Passthrough},
		{"the cluster's tunnel", []v1alpha1.AccessPolicy{clusterPolicy("base", tunnel)}, policy.Passthrough},
		{"the cluster's tunnel, a namespace's rule", []v1alpha1.AccessPolicy{clusterPolicy("base", tunnel), teamPolicy(allow("yes", "*"))}, policy.Deny},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := request(t, "GET https://a.test/")
			if d := compile(t, tt.policies...).DecideConn(r); d.Verdict != tt.want {
				t.Errorf("got %v (%s), want %v", d.Verdict, d.Reason, tt.want)
			}
		})
	}
}

// TestGrants checks that a credential of a provider of the cluster is for the
// namespaces that it allows, whatever a policy says.
func TestGrants(t *testing.T) {
	for _, tt := range []struct {
		name  string
		grant *v1alpha1.NamespaceGrant
		want  policy.Verdict
	}{
		{"none", nil, policy.Deny},
		{"another", &v1alpha1.NamespaceGrant{Names: []string{"other"}}, policy.Deny},
		{"named", &v1alpha1.NamespaceGrant{Names: []string{"other", "team"}}, policy.Inject},
		{"all", &v1alpha1.NamespaceGrant{Names: []string{"*"}}, policy.Inject},
		{"selected by name", &v1alpha1.NamespaceGrant{Selector: &v1alpha1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": "team"}}}, policy.Inject},
		{"selected by a label that nobody knows here", &v1alpha1.NamespaceGrant{Selector: &v1alpha1.LabelSelector{MatchLabels: map[string]string{"tier": "gold"}}}, policy.Deny},
		{"not selected", &v1alpha1.NamespaceGrant{Selector: &v1alpha1.LabelSelector{MatchExpressions: []v1alpha1.LabelRequirement{{Key: "kubernetes.io/metadata.name", Operator: "NotIn", Values: []string{"team"}}}}}, policy.Deny},
		{"selected by nothing", &v1alpha1.NamespaceGrant{Selector: &v1alpha1.LabelSelector{}}, policy.Deny},
	} {
		for _, p := range []v1alpha1.AccessPolicy{clusterPolicy("base"), teamPolicy()} {
			t.Run(tt.name+" "+p.Kind, func(t *testing.T) {
				p.Spec.Rules = []v1alpha1.Rule{with(allow("r", "a.test"), credential("p1"))}
				b := bundle(p)
				b.Providers[0].Kind = v1alpha1.KindClusterCredentialProvider
				b.Grants = map[string]*v1alpha1.NamespaceGrant{"p1": tt.grant}
				s, err := policy.Compile(b)
				if err != nil {
					t.Fatal(err)
				}
				d := s.Decide(request(t, "GET https://a.test/"))
				if d.Verdict != tt.want || tt.want == policy.Deny && !strings.Contains(d.Reason, `namespace "team" may not use`) {
					t.Errorf("got %v: %s", d.Verdict, d.Reason)
				}
				if d.Verdict == policy.Deny && d.Grant.Provider != "" {
					t.Error("a denial with a grant")
				}
			})
		}
	}
}

// TestUnresolved checks that a rule whose reference is broken denies what it
// matches, and nothing else.
func TestUnresolved(t *testing.T) {
	b := bundle(teamPolicy(
		with(with(allow("broken", "a.test"), paths("/x")), credential("gone")),
		with(allow("good", "a.test"), credential("p1"))))
	if _, err := policy.Compile(b); err == nil {
		t.Fatal("a provider that is not there was accepted")
	}
	b.Unresolved = api.Problems{{Ref: api.Ref{Kind: v1alpha1.KindAccessPolicy, Namespace: "team", Name: "own", Field: "spec.rules[0].credential.provider"}, Text: "it is gone"}}
	s, err := policy.Compile(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := s.Decide(request(t, "GET https://a.test/x")); d.Verdict != policy.Deny || !strings.Contains(d.Reason, "it is gone") || d.Rule != "broken" {
		t.Errorf("got %v: %s", d.Verdict, d.Reason)
	}
	if d := s.Decide(request(t, "GET https://a.test/y")); d.Verdict != policy.Inject {
		t.Errorf("got %v: %s", d.Verdict, d.Reason)
	}
}

// TestTargetRefs checks what a policy is attached to, here and where package
// api selects the policies of a pod.
func TestTargetRefs(t *testing.T) {
	ns, sa := func(name string) v1alpha1.TargetRef { return v1alpha1.TargetRef{Kind: "Namespace", Name: name} },
		func(name string) v1alpha1.TargetRef { return v1alpha1.TargetRef{Kind: "ServiceAccount", Name: name} }
	for _, tt := range []struct {
		name      string
		refs      []v1alpha1.TargetRef
		workloads []v1alpha1.WorkloadSelector
		want      bool
	}{
		{"namespace", []v1alpha1.TargetRef{ns("team")}, nil, true},
		{"other namespace", []v1alpha1.TargetRef{ns("other")}, nil, false},
		{"service account", []v1alpha1.TargetRef{sa("worker")}, nil, true},
		{"other service account", []v1alpha1.TargetRef{sa("other")}, nil, false},
		{"one of two", []v1alpha1.TargetRef{sa("other"), ns("team")}, nil, true},
		{"and label", []v1alpha1.TargetRef{sa("worker")}, []v1alpha1.WorkloadSelector{{MatchLabels: map[string]string{"app": "crawler"}}}, true},
		{"and other label", []v1alpha1.TargetRef{sa("worker")}, []v1alpha1.WorkloadSelector{{MatchLabels: map[string]string{"app": "x"}}}, false},
		{"and one of two selectors", []v1alpha1.TargetRef{sa("worker")}, []v1alpha1.WorkloadSelector{{ServiceAccounts: []string{"other"}}, {ServiceAccounts: []string{"worker", "x"}}}, true},
		{"and ID", []v1alpha1.TargetRef{ns("team")}, []v1alpha1.WorkloadSelector{{SPIFFEID: "spiffe://attache.local/agent/*"}}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := teamPolicy(allow("r", "a.test"))
			p.Spec.TargetRefs, p.Spec.Workloads = tt.refs, tt.workloads
			want := policy.Deny
			if tt.want {
				want = policy.Allow
			}
			r := request(t, "GET https://a.test/")
			if d := compile(t, p).Decide(r); d.Verdict != want {
				t.Errorf("got %v: %s", d.Verdict, d.Reason)
			}
			r.Workload.Namespace, r.Workload.ID = "elsewhere", spiffeid.RequireFromString("spiffe://attache.local/other/w")
			if d := compile(t, p).Decide(r); d.Verdict != policy.Deny {
				t.Errorf("a service account of another namespace got %v", d.Verdict)
			}
		})
	}
	p := teamPolicy(allow("r", "a.test"))
	p.Spec.TargetRefs, p.Spec.Workloads = []v1alpha1.TargetRef{sa("worker")}, []v1alpha1.WorkloadSelector{{ServiceAccounts: []string{"other"}}}
	if _, err := policy.Compile(bundle(p)); err == nil || !strings.Contains(err.Error(), "name nothing that spec.workloads selects") {
		t.Errorf("got %v", err)
	}
}
