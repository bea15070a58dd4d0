package policy_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/policy"
)

// The reference decides by looking at every rule, straight from the documents
// and docs/policy.md: regular expressions for hosts and paths, no index, no
// CEL. What it and the compiled set disagree about is a bug in one of them.

// conditionTable is what the random rules' conditions mean. The second result
// is whether there is an answer.
func conditionTable() map[string]func(*policy.Request) (bool, bool) {
	return map[string]func(*policy.Request) (bool, bool){
		`request.method == "GET"`:      func(r *policy.Request) (bool, bool) { return r.Method == "GET", true },
		`request.port != 443`:          func(r *policy.Request) (bool, bool) { return r.Port != 443, true },
		`workload.namespace == "team"`: func(r *policy.Request) (bool, bool) { return r.Workload.Namespace == "team", true },
		`task.open`:                    func(r *policy.Request) (bool, bool) { return r.Task != nil, true },
		`request.headers["x-m"] == "1"`: func(r *policy.Request) (bool, bool) {
			return strings.Join(r.Header["X-M"], ", ") == "1", len(r.Header["X-M"]) > 0
		},
		`request.query["q"].exists(v, v == "1")`: func(r *policy.Request) (bool, bool) {
			return slices.Contains(r.Query["q"], "1"), len(r.Query["q"]) > 0
		},
	}
}

type referenceMatch struct {
	policy *v1alpha1.AccessPolicy
	rule   *v1alpha1.Rule
	key    []int
}

func reference(policies []v1alpha1.AccessPolicy, r *policy.Request) (verdict policy.Verdict, would bool, provider string) {
	var all []referenceMatch
	audited := false
	for i := range policies {
		p := &policies[i]
		selection, ok := referenceSelects(p.Spec.Workloads, r.Workload)
		if !ok {
			continue
		}
		for j := range p.Spec.Rules {
			rule := &p.Spec.Rules[j]
			for _, host := range rule.Hosts {
				hostKey, ok := referenceHost(host, r.Host)
				if !ok || !referencePort(rule.Ports, r.Port) {
					continue
				}
				audited = audited || p.Spec.Mode == "audit" && p.Kind != v1alpha1.KindClusterAccessPolicy
				for _, path := range append([]string{""}, rule.Paths...) {
					if (path == "") != (len(rule.Paths) == 0) {
						continue
					}
					if pathKey, ok := referencePath(path, r.Path); ok && referenceRule(rule, r) {
						all = append(all, referenceMatch{p, rule, referenceKey(rule, hostKey, pathKey, selection)})
					}
				}
			}
		}
	}
	// Guard rails in audit mode decide nothing.
	rehearsed := slices.ContainsFunc(all, referenceRehearsed)
	all = slices.DeleteFunc(all, referenceRehearsed)
	v, w, g := referenceLayers(all)
	if v == policy.Deny && w != nil && w.policy.Spec.Mode == "audit" {
		all = slices.DeleteFunc(all, func(m referenceMatch) bool { return m.policy.Spec.Mode == "audit" })
		if v, _, _ := referenceLayers(all); len(all) > 0 && v == policy.Deny {
			return v, false, ""
		}
		return policy.Allow, true, ""
	}
	if len(all) == 0 && audited {
		return policy.Allow, true, ""
	}
	return v, rehearsed && v != policy.Deny, g
}

func referenceRehearsed(m referenceMatch) bool {
	return m.policy.Kind == v1alpha1.KindClusterAccessPolicy && m.policy.Spec.Mode == "audit" && m.rule.Action == v1alpha1.ActionDeny
}

// referenceLayers asks first whether the cluster denies, then the rules of
// namespaces, and the cluster's other rules where none of those matches.
func referenceLayers(all []referenceMatch) (policy.Verdict, *referenceMatch, string) {
	var layers [3][]referenceMatch
	for _, m := range all {
		switch {
		case m.policy.Kind != v1alpha1.KindClusterAccessPolicy:
			layers[1] = append(layers[1], m)
		case m.rule.Action == v1alpha1.ActionDeny:
			layers[0] = append(layers[0], m)
		default:
			layers[2] = append(layers[2], m)
		}
	}
	for _, l := range layers {
		if len(l) > 0 {
			return referenceSettle(l)
		}
	}
	return policy.Deny, nil, ""
}

// referenceSettle chooses among matches; a nil winner means default or
// ambiguity.
func referenceSettle(all []referenceMatch) (policy.Verdict, *referenceMatch, string) {
	var best []referenceMatch
	for _, m := range all {
		c := 1
		if len(best) > 0 {
			c = slices.Compare(m.key, best[0].key)
		}
		if c > 0 {
			best = nil
		}
		if c >= 0 {
			best = append(best, m)
		}
	}
	outcomes := map[string]bool{}
	var denial *referenceMatch
	for i, m := range best {
		if m.rule.Action == v1alpha1.ActionDeny && (denial == nil || m.policy.Spec.Mode != "audit") {
			denial = &best[i]
		}
		provider := ""
		if m.rule.Credential != nil {
			provider = m.rule.Credential.Provider
		}
		outcomes[provider] = true
	}
	switch {
	case len(best) == 0:
		return policy.Deny, nil, ""
	case denial != nil:
		return policy.Deny, denial, ""
	case len(outcomes) > 1:
		return policy.Deny, nil, ""
	case best[0].rule.Credential != nil:
		return policy.Inject, &best[0], best[0].rule.Credential.Provider
	}
	return policy.Allow, &best[0], ""
}

func referenceKey(rule *v1alpha1.Rule, host, path, selection []int) []int {
	few := func(n int) int {
		if n == 0 {
			return -1000
		}
		return -n
	}
	k := slices.Concat(host, path, []int{-1}) // a path that goes on is greater
	for len(k) < 20 {
		k = append(k, -1)
	}
	ports := len(rule.Ports)
	if ports == 0 {
		ports = 2
	}
	k = append(k, few(len(rule.Methods)), -ports)
	for _, list := range [][]v1alpha1.ValueMatch{rule.Headers, rule.Query} {
		exact, prefix := 0, 0
		for _, m := range list {
			if m.Exact != "" || m.Absent {
				exact++
			}
			prefix += len(m.Prefix)
		}
		k = append(k, len(list), exact, prefix)
	}
	k = append(k, few(len(rule.Protocols)))
	k = append(k, selection...)
	if rule.When != "" {
		return append(k, 1)
	}
	return append(k, 0)
}

func referenceSelects(list []v1alpha1.WorkloadSelector, w *identity.Workload) ([]int, bool) {
	if len(list) == 0 {
		return []int{0, 0, 0}, true
	}
	// The random policies have at most one selector: an ID or a namespace.
	s := list[0]
	switch {
	case strings.HasSuffix(s.SPIFFEID, "/*"):
		return []int{1, len(s.SPIFFEID), 0}, strings.HasPrefix(w.ID.String(), s.SPIFFEID[:len(s.SPIFFEID)-1])
	case s.SPIFFEID != "":
		return []int{2, 0, 0}, s.SPIFFEID == w.ID.String()
	}
	return []int{0, 0, 1}, slices.Contains(s.Namespaces, w.Namespace)
}

func referenceHost(pattern, host string) ([]int, bool) {
	re, class := regexp.QuoteMeta(pattern), 3
	switch {
	case pattern == "*":
		return []int{0, 0}, !regexp.MustCompile(`^[0-9.]+$|:`).MatchString(host)
	case strings.HasPrefix(pattern, "**."):
		re, class = `[^.]+(\.[^.]+)*`+regexp.QuoteMeta(pattern[2:]), 1
	case strings.HasPrefix(pattern, "*."):
		re, class = `[^.]+`+regexp.QuoteMeta(pattern[1:]), 2
	}
	labels := len(strings.Split(strings.TrimLeft(pattern, "*."), "."))
	return []int{class, labels}, regexp.MustCompile("^" + re + "$").MatchString(host)
}

func referencePort(list []int, port int) bool {
	if len(list) == 0 {
		list = []int{80, 443}
	}
	return slices.Contains(list, port)
}

func referencePath(template, path string) ([]int, bool) {
	if template == "" {
		return nil, true
	}
	plain, err := url.PathUnescape(strings.ReplaceAll(path, "%2F", "\x00"))
	if err != nil {
		return nil, false
	}
	if plain == "" {
		plain = "/"
	}
	var key []int
	re := "^"
	for part := range strings.SplitSeq(template[1:], "/") {
		switch {
		case part == "**":
			re += "(/.*)?$"
			return append(key, 1), regexp.MustCompile("(?s)" + re).MatchString(plain)
		case strings.HasPrefix(part, "{"):
			re += "/[^/]+"
			key = append(key, 3)
		default:
			re += "/" + regexp.QuoteMeta(part)
			key = append(key, 4)
		}
	}
	return append(key, 2), regexp.MustCompile(re + "$").MatchString(plain)
}

func referenceRule(rule *v1alpha1.Rule, r *policy.Request) bool {
	if len(rule.Methods) > 0 && !slices.Contains(rule.Methods, r.Method) ||
		len(rule.Protocols) > 0 && !slices.Contains(rule.Protocols, r.Protocol) {
		return false
	}
	denies := rule.Action == v1alpha1.ActionDeny
	values := func(m v1alpha1.ValueMatch, got []string) bool {
		if m.Absent || len(got) == 0 {
			return m.Absent && len(got) == 0
		}
		fit := 0
		for _, v := range got {
			if m.Exact == "" && strings.HasPrefix(v, m.Prefix) || m.Exact != "" && v == m.Exact {
				fit++
			}
		}
		return denies && fit > 0 || fit == len(got)
	}
	for _, m := range rule.Headers {
		if !values(m, r.Header.Values(m.Name)) {
			return false
		}
	}
	for _, m := range rule.Query {
		if !values(m, r.Query[m.Name]) {
			return false
		}
	}
	if rule.When == "" {
		return true
	}
	holds, answered := conditionTable()[rule.When](r)
	return answered && holds || !answered && denies
}

// randomPolicies makes policies that collide often, without conflicts.
func randomPolicies(t testing.TB, rnd *rand.Rand, rules int) []v1alpha1.AccessPolicy {
	t.Helper()
	one := func(list ...string) string { return list[rnd.IntN(len(list))] }
	some := func(odds int, list ...string) []string {
		if rnd.IntN(odds) > 0 {
			return nil
		}
		n := 1 + rnd.IntN(2)
		rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		return list[:min(n, len(list))]
	}
	value := func(name string) []v1alpha1.ValueMatch {
		switch rnd.IntN(12) {
		case 0:
			return []v1alpha1.ValueMatch{{Name: name, Exact: one("1", "12")}}
		case 1:
			return []v1alpha1.ValueMatch{{Name: name, Prefix: one("1", "12")}}
		case 2:
			return []v1alpha1.ValueMatch{{Name: name, Absent: true}}
		case 3:
			return []v1alpha1.ValueMatch{{Name: name}}
		}
		return nil
	}
	conditions := []string{}
	for c := range conditionTable() {
		conditions = append(conditions, c)
	}
	slices.Sort(conditions)
	var policies []v1alpha1.AccessPolicy
	for i := range 1 + rnd.IntN(4) {
		p := accessPolicy(fmt.Sprint("p", i))
		p.Spec.Mode = one("", "enforce", "enforce", "audit")
		if rnd.IntN(3) == 0 {
			p.Kind = v1alpha1.KindClusterAccessPolicy
		}
		switch rnd.IntN(6) {
		case 0:
			p.Spec.Workloads = []v1alpha1.WorkloadSelector{{SPIFFEID: one("spiffe://attache.local/agent/worker", "spiffe://attache.local/agent/x")}}
		case 1:
			p.Spec.Workloads = []v1alpha1.WorkloadSelector{{SPIFFEID: one("spiffe://attache.local/*", "spiffe://attache.local/agent/*")}}
		case 2:
			p.Spec.Workloads = []v1alpha1.WorkloadSelector{{Namespaces: []string{one("team", "other")}}}
		}
		for j := range 1 + rnd.IntN(rules) {
			r := v1alpha1.Rule{
				Name: fmt.Sprint("r", j), Action: one(v1alpha1.ActionAllow, v1alpha1.ActionAllow, v1alpha1.ActionDeny),
				Hosts:   []string{one("a.test", "b.a.test", "test", "*.test", "*.a.test", "**.test", "**.a.test", "*")},
				Paths:   some(2, "/", "/a", "/a/b", "/a/{v}", "/{v}/b", "/a/**", "/**", "/{v}", "/a/", "/{v}/{w}/**"),
				Methods: some(4, "GET", "POST", "PUT"), Protocols: some(8, "http", "grpc", "websocket"),
				Headers: value("X-M"), Query: value("q"),
			}
			if extra := one("a.test", "*.test", ""); extra != "" && extra != r.Hosts[0] {
				r.Hosts = append(r.Hosts, extra)
			}
			if rnd.IntN(6) == 0 {
				r.Ports = [][]int{{443}, {80}, {8443}, {443, 8443}}[rnd.IntN(4)]
			}
			if rnd.IntN(4) == 0 {
				r.When = one(conditions...)
			}
			if r.Action == v1alpha1.ActionAllow && rnd.IntN(2) == 0 {
				r.Credential = &v1alpha1.CredentialRef{Provider: one("p1", "p2")}
			}
			p.Spec.Rules = append(p.Spec.Rules, r)
			if r.When != "" && r.Credential != nil {
				twin := r // as specific, but with another condition and credential
				twin.Name += "-twin"
				twin.When = one(conditions...)
				twin.Credential = &v1alpha1.CredentialRef{Provider: one("p1", "p2")}
				p.Spec.Rules = append(p.Spec.Rules, twin)
			}
		}
		policies = append(policies, p)
	}
	return policies
}

// settleConflicts removes the rules that Compile calls conflicting.
func settleConflicts(t testing.TB, policies []v1alpha1.AccessPolicy) *policy.Set {
	t.Helper()
	for {
		s, err := policy.Compile(bundle(policies...))
		if err == nil {
			return s
		}
		var problems policy.Problems
		if !errors.As(err, &problems) || len(problems) == 0 {
			t.Fatal(err)
		}
		for _, p := range problems {
			if !strings.Contains(p.Text, "equal specificity") {
				t.Fatal(p)
			}
			for i := range policies {
				if policies[i].Metadata.Name != p.Ref.Name {
					continue
				}
				var n int
				if _, err := fmt.Sscanf(p.Ref.Field, "spec.rules[%d]", &n); err != nil {
					t.Fatal(err)
				}
				policies[i].Spec.Rules[n].Name = "" // removed below, so that indices stay right
			}
		}
		for i := range policies {
			policies[i].Spec.Rules = slices.DeleteFunc(policies[i].Spec.Rules, func(r v1alpha1.Rule) bool { return r.Name == "" })
		}
	}
}

func randomRequest(rnd *rand.Rand) *policy.Request {
	one := func(list ...string) string { return list[rnd.IntN(len(list))] }
	r := &policy.Request{
		Host: one("a.test", "b.a.test", "c.b.a.test", "test", "x.test", "other", "10.0.0.1"), Port: []int{443, 443, 80, 8443}[rnd.IntN(4)],
		Method: one("GET", "GET", "POST", "PUT", "PATCH"), Path: one("/", "", "/a", "/a/", "/a/b", "/%61/b", "/a%2Fb", "/a/b/c", "/x/b", "/x", "/a//b"),
		Protocol: one("http", "http", "grpc", "websocket"), Header: http.Header{}, Query: url.Values{}, Workload: worker(), Time: now(),
	}
	r.Scheme = "https"
	if r.Port == 80 {
		r.Scheme = "http"
	}
	for range rnd.IntN(3) {
		r.Header.Add("X-M", one("1", "12", "2"))
	}
	for range rnd.IntN(3) {
		r.Query.Add("q", one("1", "12", "2"))
	}
	if rnd.IntN(2) == 0 {
		r.Task = &identity.Task{ID: "t"}
	}
	return r
}

func compareReference(t *testing.T, s *policy.Set, policies []v1alpha1.AccessPolicy, r *policy.Request) {
	t.Helper()
	verdict, would, provider := reference(policies, r)
	d := s.Decide(r)
	if d.Verdict != verdict || d.WouldDeny != would || d.Grant.Provider != provider {
		// A rule may ask for a credential that must not go to this place.
		if d.Verdict == policy.Deny && verdict == policy.Inject && strings.Contains(d.Reason, "may not go to") && !strings.HasSuffix(r.Host, "test") {
			return
		}
		t.Fatalf("got %v, would deny %v, provider %q, reason %q\nwant %v, %v, %q\nrequest %+v\n%s", d.Verdict, d.WouldDeny, d.Grant.Provider,
			d.Reason, verdict, would, provider, r, s.Explain(r))
	}
	if d.Reason == "" {
		t.Fatalf("%v without a reason", d.Verdict)
	}
	if s.Explain(r).Verdict != d.Verdict.String() {
		t.Fatal("explain and decide differ")
	}
}

// TestReference compares the indexed decisions with the reference over random
// sets of rules, and checks that the random requests reach every verdict.
func TestReference(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		policies := randomPolicies(t, rnd, 12)
		s := settleConflicts(t, policies)
		for range 250 {
			r := randomRequest(rnd)
			compareReference(t, s, policies, r)
			d := s.Decide(r)
			seen[d.Verdict.String()]++
			if d.WouldDeny {
				seen["would deny"]++
			}
			if strings.Contains(d.Reason, "equal specificity") {
				seen["ambiguous"]++
			}
			if d.Verdict == policy.Deny && d.Rule != "" {
				seen["explicit"]++
			}
			if strings.HasPrefix(d.Policy, "cluster:") {
				seen["cluster "+d.Verdict.String()]++
			}
			if d.WouldDeny && d.Verdict == policy.Inject {
				seen["rehearsed"]++
			}
		}
	}
	for _, kind := range []string{"deny", "allow", "inject", "would deny", "ambiguous", "explicit", "cluster deny", "cluster allow", "cluster inject", "rehearsed"} {
		if seen[kind] < 5 {
			t.Errorf("only %d decisions were %s: %v", seen[kind], kind, seen)
		}
	}
}

// FuzzDecide sends arbitrary requests to random policies: no panic, and never
// more than the reference opens.
func FuzzDecide(f *testing.F) {
	f.Add(uint64(1), "a.test", 443, "GET", "/a/b", "q=1", "1", "http")
	f.Add(uint64(2), "b.a.test", 80, "POST", "/a%2Fb/", "q=1&q=2", "2", "grpc")
	f.Add(uint64(3), "..", -1, "", "//%zz", "", "", "tls")
	f.Add(uint64(4), "", 0, "GET", "*", "", ",", "websocket")
	f.Fuzz(func(t *testing.T, seed uint64, host string, port int, method, path, rawQuery, header, protocol string) {
		policies := randomPolicies(t, rand.New(rand.NewPCG(seed%64, 1)), 6)
		s := settleConflicts(t, policies)
		q, _ := url.ParseQuery(rawQuery)
		r := &policy.Request{Host: host, Port: port, Scheme: "https", Method: method, Path: path, Query: q,
			Header: http.Header{"X-M": {header}}, Protocol: protocol, Workload: worker(), Time: now()}
		d := s.Decide(r)
		_ = s.Explain(r).String()
		_ = s.DecideConn(r)
		if protocol == "" {
			r.Protocol = policy.HTTP
		}
		verdict, _, _ := reference(policies, r)
		if d.Verdict != policy.Deny && verdict == policy.Deny {
			t.Fatalf("got %v (%s), the reference denies", d.Verdict, d.Reason)
		}
		r.Workload = &identity.Workload{}
		if d := s.Decide(r); d.Verdict != policy.Deny {
			t.Fatalf("nobody got %v", d.Verdict)
		}
	})
}

// FuzzTemplate compiles arbitrary templates and matches arbitrary paths: the
// two matchers agree (the helper panics otherwise), and a template matches the
// path that it spells.
func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"/", "/a/{b}/c", "/a/{rest...}", "/a/**", "/%7e/%2F", "//", "/{a}/{a}", "/a*", "/a%"} {
		f.Add(s, "/a/b/c")
	}
	f.Fuzz(func(t *testing.T, template, path string) {
		c, ok := policy.CanonicalPath(path)
		if ok {
			if again, _ := policy.CanonicalPath(c); again != c {
				t.Fatalf("%q is canonical as %q, then as %q", path, c, again)
			}
			if strings.Count(c, "/") != strings.Count(path, "/") {
				t.Fatalf("%q gained or lost a separator: %q", path, c)
			}
		}
		matches, err := policy.ParseTemplate(template)
		if err != nil {
			return
		}
		if ok {
			matches(c)
		}
		if !strings.ContainsAny(template, "{*") {
			if own, ok := policy.CanonicalPath(template); !ok || !matches(own) {
				t.Fatalf("%q does not match itself", template)
			}
		}
	})
}
