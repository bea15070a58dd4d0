package policy_test

import (
	"fmt"
	"testing"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/policy"
)

// manyHosts has n rules, each for another host.
func manyHosts(n int) []v1alpha1.AccessPolicy {
	p := accessPolicy("p", with(allow("any", "**.test"), methods("HEAD")))
	for i := range n {
		p.Spec.Rules = append(p.Spec.Rules, with(with(allow(fmt.Sprint("r", i), fmt.Sprintf("h%d.test", i)), paths("/repos/{owner}/{repo}/issues")), credential("p1")))
	}
	return []v1alpha1.AccessPolicy{p}
}

// oneHost has n rules for h0.test, which differ in path and method.
func oneHost(n int) []v1alpha1.AccessPolicy {
	p := accessPolicy("p", with(allow("any", "**.test"), methods("HEAD")))
	for i := range n {
		r := with(with(allow(fmt.Sprint("r", i), "h0.test"), paths(fmt.Sprintf("/repos/{owner}/r%d/issues", i/2))), methods([]string{"GET", "PUT"}[i%2]))
		p.Spec.Rules = append(p.Spec.Rules, with(r, credential("p1")))
	}
	return []v1alpha1.AccessPolicy{p}
}

// manyWorkloads has n policies for one call, each for another workload.
func manyWorkloads(n int) []v1alpha1.AccessPolicy {
	var list []v1alpha1.AccessPolicy
	for i := range n {
		p := accessPolicy(fmt.Sprint("p", i), with(allow("r", "h0.test"), credential([]string{"p1", "p2"}[i%2])))
		p.Spec.Workloads = []v1alpha1.WorkloadSelector{{SPIFFEID: fmt.Sprintf("spiffe://attache.local/agent/w%d", i)}}
		if i == 0 {
			p.Spec.Workloads[0].SPIFFEID = worker().ID.String()
		}
		list = append(list, p)
	}
	return list
}

// railed puts ten guard rails of the cluster around policies.
func railed(build func(int) []v1alpha1.AccessPolicy) func(int) []v1alpha1.AccessPolicy {
	return func(n int) []v1alpha1.AccessPolicy {
		p := accessPolicy("rails", with(allow("default", "**.test"), methods("OPTIONS")))
		p.Kind = v1alpha1.KindClusterAccessPolicy
		for i := range 10 {
			p.Spec.Rules = append(p.Spec.Rules, with(deny(fmt.Sprint("r", i), fmt.Sprintf("h%d.test", i)), paths("/admin/**")))
		}
		return append(build(n), p)
	}
}

// TestCost checks, by counting and not by time, that a decision looks at as
// many rules of ten thousand as of ten.
func TestCost(t *testing.T) {
	for name, build := range map[string]func(int) []v1alpha1.AccessPolicy{"many hosts": manyHosts, "one host": oneHost, "many workloads": manyWorkloads,
		"many hosts and guard rails": railed(manyHosts), "one host and guard rails": railed(oneHost)} {
		t.Run(name, func(t *testing.T) {
			small, large := compile(t, build(10)...), compile(t, build(10_000)...)
			for _, line := range []string{"GET https://h0.test/repos/o/r0/issues", "PUT https://h0.test/repos/o/none/issues", "GET https://unknown.test/", "GET https://unknown/"} {
				r := request(t, line)
				few, many := small.Examined(r), large.Examined(r)
				if many > few || many > 4 {
					t.Errorf("%s: looks at %d of 10,000 rules and %d of 10", line, many, few)
				}
				if small.Decide(r).Verdict != large.Decide(r).Verdict {
					t.Errorf("%s: the decision depends on other rules", line)
				}
			}
			if d := large.Decide(request(t, "GET https://h0.test/repos/o/r0/issues")); d.Verdict != policy.Inject {
				t.Errorf("got %v (%s), want inject", d.Verdict, d.Reason)
			}
		})
	}
}

// TestAllocations bounds what a decision allocates.
func TestAllocations(t *testing.T) {
	s := compile(t, oneHost(100)...)
	r := request(t, "GET https://h0.test/repos/o/r0/issues")
	if n := testing.AllocsPerRun(100, func() { s.Decide(r) }); n > 2 {
		t.Errorf("a decision allocates %v times, want at most 2", n)
	}
}

func BenchmarkDecide(b *testing.B) {
	cel := accessPolicy("p", with(with(allow("r", "h0.test"), credential("p1")),
		when(`request.method == "GET" && request.path.startsWith("/repos/") && workload.namespace == "team" && !task.open`)))
	for _, bench := range []struct {
		name     string
		policies []v1alpha1.AccessPolicy
		line     string
	}{
		{"10 rules", manyHosts(10), "GET https://h0.test/repos/o/r0/issues"},
		{"10k rules", manyHosts(10_000), "GET https://h0.test/repos/o/r0/issues"},
		{"10k rules on one host", oneHost(10_000), "GET https://h0.test/repos/o/r0/issues"},
		{"denied by 10k rules on one host", oneHost(10_000), "GET https://h0.test/x"},
		{"10k rules and guard rails", railed(manyHosts)(10_000), "GET https://h0.test/repos/o/r0/issues"},
		{"condition", []v1alpha1.AccessPolicy{cel}, "GET https://h0.test/repos/o/r0/issues"},
	} {
		b.Run(bench.name, func(b *testing.B) {
			s := compile(b, bench.policies...)
			r := request(b, bench.line)
			b.ReportAllocs()
			for b.Loop() {
				s.Decide(r)
			}
		})
	}
}
