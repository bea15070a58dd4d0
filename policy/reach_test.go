package policy_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/policy"
)

func TestReach(t *testing.T) {
	mine := accessPolicy("mine",
		v1alpha1.Rule{Name: "read", Hosts: []string{"b.test", "a.test", "*.c.test"}, Methods: []string{"GET"}, Paths: []string{"/v1/**", "/health"}, Action: v1alpha1.ActionAllow, Credential: &v1alpha1.CredentialRef{Provider: "p1"}},
		deny("never", "**.test"))
	mine.Spec.Workloads = []v1alpha1.WorkloadSelector{{SPIFFEID: "spiffe://attache.local/agent/me"}}
	theirs := accessPolicy("theirs", allow("other", "a.test"))
	theirs.Spec.Workloads = []v1alpha1.WorkloadSelector{{SPIFFEID: "spiffe://attache.local/agent/other"}}
	set := compile(t, mine, auditPolicy("all", allow("any", "d.test")), theirs)
	w := &identity.Workload{ID: spiffeid.RequireFromString("spiffe://attache.local/agent/me"), Namespace: "local"}
	var got []policy.ReachRule
	for _, r := range set.Reach(w) {
		r.Policy, r.Position = r.Policy[len(r.Policy)-3:], set.Reach(w)[0].Position
		got = append(got, r)
	}
	at := set.Reach(w)[0].Position
	want := []policy.ReachRule{
		{Policy: "ine", Rule: "read", Position: at, Action: "allow", Hosts: []string{"*.c.test", "a.test", "b.test"}, Methods: []string{"GET"}, Paths: []string{"/health", "/v1/**"}, Provider: "p1"},
		{Policy: "ine", Rule: "never", Position: at, Action: "deny", Hosts: []string{"**.test"}},
		{Policy: "all", Rule: "any", Position: at, Audit: true, Action: "allow", Hosts: []string{"d.test"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if (*policy.Set)(nil).Reach(w) != nil || set.Reach(nil) != nil || set.Reach(&identity.Workload{}) != nil {
		t.Error("nobody can do something")
	}
}
