package suggest_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/policy/replay"
	"github.com/attache-dev/attache/policy/suggest"
	"github.com/attache-dev/attache/proxy/destination"
)

const agent = "spiffe://attache.local/agent/writer"

const providers = `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: forge}
spec: {destinations: [{host: api.forge.test}, {host: "*.pages.test"}], apiKey: {file: /run/key}}
---
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: crm}
spec: {destinations: [{host: crm.test}, {host: crm.test, port: 8443}], oauth2: {tokenEndpoint: "https://as.test/token", grant: clientCredentials, scopes: [read, write]}}
---
`

const present = providers + `apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: wide}
spec:
  destinations: [{host: people.test, addresses: [10.0.0.7]}, {host: unused.test, addresses: [10.0.0.8]}]
  rules:
  - {name: forge, hosts: [api.forge.test], action: allow, credential: {provider: forge}, maxStream: 1h}
  - {name: forge-admin, hosts: [api.forge.test], paths: ["/admin/**"], action: deny}
  - {name: forge-one, hosts: [api.forge.test], paths: ["/repos/13"], methods: [DELETE], action: deny}
  - {name: raw, hosts: [api.forge.test], paths: ["/raw/**"], action: allow, rawPaths: true}
  - {name: pages, hosts: ["*.pages.test"], methods: [GET, PUT], action: allow, credential: {provider: forge}}
  - {name: crm, hosts: [crm.test], ports: [443, 8443], paths: ["/v1/**", "/never/**"], action: allow, credential: {provider: crm, scope: [read]}}
  - {name: token, hosts: [crm.test], paths: ["/oauth/token"], methods: [POST], action: allow, credentialCall: true}
  - {name: modes, hosts: [modes.test], headers: [{name: X-Mode, exact: a}], action: allow}
  - {name: people, hosts: [people.test], action: allow, when: human.present}
  - {name: unused, hosts: [unused.test], action: allow}
  - {name: pass, hosts: [pass.test], action: passthrough}
`

func bundle(t testing.TB, text string) *api.Bundle {
	t.Helper()
	b, err := api.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return b
}

func compile(t testing.TB, b *api.Bundle) *policy.Set {
	t.Helper()
	s, err := policy.Compile(b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var start = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// call is a request that is decided, and recorded as the data path does.
type call struct {
	host, method, path, header string
	port                       int
	human                      bool
	protocol                   string
}

func (c call) record(set *policy.Set, n int) audit.Record {
	id := spiffeid.RequireFromString(agent)
	w := &identity.Workload{ID: id, Namespace: "local", ServiceAccount: "writer"}
	q := &policy.Request{Host: c.host, Port: max(c.port, 443), Scheme: "https", Method: c.method, Path: c.path, Protocol: c.protocol, Workload: w, Time: start.Add(time.Duration(n) * time.Second), Header: map[string][]string{}}
	if q.Protocol == "" {
		q.Protocol = policy.HTTP
	}
	if c.header != "" {
		q.Header["X-Mode"] = []string{c.header}
	}
	r := audit.Record{
		ID: fmt.Sprintf("rec_%d", n), Type: audit.TypeEnd, Time: q.Time, Workload: &audit.Workload{ID: agent, Namespace: "local", ServiceAccount: "writer"},
		Request:  &audit.Request{Host: c.host, Port: q.Port, Scheme: "https", Method: c.method, Path: c.path, Protocol: q.Protocol},
		Decision: &audit.Decision{}, Result: &audit.Result{Outcome: audit.OutcomeOK},
	}
	if c.human {
		q.Task = &identity.Task{ID: "t", Human: &identity.Human{Subject: "ana"}}
		r.Task, r.Human = &audit.Task{ID: "t"}, &audit.Human{Subject: "ana"}
	}
	d := set.Decide(q)
	*r.Decision = audit.Decision{Verdict: d.Verdict.String(), Policy: d.Policy, Rule: d.Rule, WouldDeny: d.WouldDeny}
	r.Request.PathTemplate = d.PathTemplate
	switch d.Verdict {
	case policy.Deny:
		r.Decision.Code = "denied"
	case policy.Inject:
		r.Credential = &audit.Use{Provider: d.Grant.Provider, ScopeAsked: d.Grant.Scope, ScopeSource: d.Grant.ScopeSource}
	}
	if d.Verdict != policy.Deny && !d.RawPaths && q.Protocol != policy.TLS && destination.CheckPath(c.path) != nil {
		r.Decision.Verdict, r.Decision.Code, r.Credential = "deny", "bad_path", nil
	}
	return r
}

func build(t testing.TB, b *api.Bundle, records []audit.Record) (*suggest.Suggestion, error) {
	t.Helper()
	s := suggest.New("writer", suggest.Options{Bundle: b, PathOK: destination.CheckPath})
	for i := range records {
		if err := s.Add(&records[i]); err != nil {
			t.Fatal(err)
		}
	}
	return s.Suggest()
}

// inForce loads what was written, beside the providers, and replays.
func inForce(t testing.TB, s *suggest.Suggestion, records []audit.Record) (replay.Report, []byte) {
	t.Helper()
	text, err := s.YAML(time.UTC)
	if err != nil {
		t.Fatal(err)
	}
	p, err := replay.New(bundle(t, providers+string(text)), replay.Options{PathOK: destination.CheckPath})
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	for i := range records {
		p.Add(&records[i])
	}
	return p.Report(), text
}

// random makes a call that some rule of the present policy may speak of.
func random(r *rand.Rand) call {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	c := call{host: pick("api.forge.test", "a.pages.test", "b.pages.test", "crm.test", "modes.test", "people.test", "nowhere.test"), method: pick("GET", "POST", "PUT", "DELETE"), human: r.IntN(3) == 0}
	if c.host == "crm.test" && r.IntN(3) == 0 {
		c.port = 8443
	}
	if c.host == "modes.test" && r.IntN(2) == 0 {
		c.header = pick("a", "b")
	}
	if r.IntN(20) == 0 {
		return call{host: "pass.test", protocol: policy.TLS}
	}
	id := func() string {
		return pick("12", "13", "14", "7f3a9c2e11", "0b9f61d2-5a6e-4a7c-9b1d-3f2a9c8e7d60", "readme", "main")
	}
	switch r.IntN(8) {
	case 0:
		c.path = "/repos/" + id()
	case 1:
		c.path = "/repos/" + id() + "/issues/" + id()
	case 2:
		c.path = "/v1/" + pick("a", "b", "c%20d", "e*f", "g{h}", "i;j", "%2Fx") + "/" + id()
	case 3:
		c.path = "/admin/" + id()
	case 4:
		c.path = pick("/", "/v1/", "/oauth/token", "/never/x", "/v1//x", "/raw/a%2Fb", "/raw//c", "/raw/../d")
	case 5:
		c.path = "/v1/" + strings.Repeat("x/", r.IntN(30)) + "end"
	case 6:
		c.path = fmt.Sprintf("/v1/names/n%c%c/x", 'a'+r.IntN(26), 'a'+r.IntN(26))
	default:
		c.path = "/repos/" + fmt.Sprint(r.IntN(50))
	}
	return c
}

// Whatever was used: the suggestion loads, replaying the same records under it
// denies nothing that was allowed, and opens nothing that was denied.
func TestNothingUsedIsDenied(t *testing.T) {
	b := bundle(t, present)
	set := compile(t, b)
	some := 0
	for seed := range uint64(120) {
		r := rand.New(rand.NewPCG(seed, 7))
		var records []audit.Record
		for n := range 1 + r.IntN(120) {
			records = append(records, random(r).record(set, n))
		}
		s, err := build(t, b, records)
		if errors.Is(err, suggest.ErrNothing) {
			if slices.ContainsFunc(records, func(r audit.Record) bool { return r.Decision.Verdict != "deny" }) && !strings.Contains(err.Error(), "without opening") {
				t.Errorf("seed %d: %v", seed, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		some++
		rep, text := inForce(t, s, records)
		left := 0
		for _, l := range s.Left {
			left += l.Count
		}
		denied := 0
		for _, c := range rep.Changes {
			switch c.Kind {
			case replay.NewlyDenied:
				denied += c.Count
			case replay.NewlyAllowed:
				t.Errorf("seed %d opens %s %s%s, which was denied\n%s", seed, c.Method, c.Host, c.Path, text)
			default:
				t.Errorf("seed %d: %+v\n%s", seed, c, text)
			}
		}
		if denied > left {
			t.Errorf("seed %d: %d calls are newly denied, %d were said to be left out\n%+v\n%s", seed, denied, left, rep.Changes, text)
		}
		if left > 0 && seed < 40 {
			t.Logf("seed %d leaves out %+v", seed, s.Left)
		}
	}
	if some < 80 {
		t.Errorf("only %d of 120 sets of records gave a suggestion", some)
	}
}

// What a person would write by hand.
func TestNarrow(t *testing.T) {
	b := bundle(t, present)
	set := compile(t, b)
	var records []audit.Record
	for i, c := range []call{
		{host: "api.forge.test", method: "GET", path: "/repos/12/issues/1"}, {host: "api.forge.test", method: "GET", path: "/repos/14/issues/2"},
		{host: "api.forge.test", method: "POST", path: "/repos/12/issues"}, {host: "api.forge.test", method: "GET", path: "/user"},
		{host: "api.forge.test", method: "GET", path: "/admin/x"},
		{host: "crm.test", port: 8443, method: "POST", path: "/v1/contacts"}, {host: "crm.test", method: "POST", path: "/oauth/token"},
		{host: "people.test", method: "GET", path: "/me", human: true}, {host: "people.test", method: "GET", path: "/me"},
		{host: "pass.test", protocol: policy.TLS},
	} {
		records = append(records, c.record(set, i))
	}
	s, err := build(t, b, records)
	if err != nil {
		t.Fatal(err)
	}
	rep, text := inForce(t, s, records)
	if rep.Changed != 0 || len(s.Left) != 0 {
		t.Errorf("changes %+v, left %+v", rep.Changes, s.Left)
	}
	for _, want := range []string{
		"- /repos/{id}/issues/{id2}", "- /repos/{id}/issues\n", "- /user\n", "provider: forge", "maxStream: 1h0m0s", "- 8443", "credentialCall: true", "when: human.present",
		"action: passthrough", "spiffeID: " + agent, "10.0.0.7", "never used: rule unused of policy wide", "never used: rule crm of policy wide; its path /never/**", "never used: rule pages of policy wide",
	} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for _, wrong := range []string{"admin", "unused.test", "/**", "10.0.0.8"} {
		if bytes.Contains(bytes.ReplaceAll(text, []byte("#"), nil), []byte("- "+wrong)) {
			t.Errorf("%q in\n%s", wrong, text)
		}
	}
	if s.Requests != 8 {
		t.Errorf("%d requests", s.Requests)
	}
}

// Ids that would open what a rule denied stay written out.
func TestDeniedStaysDenied(t *testing.T) {
	b := bundle(t, present)
	set := compile(t, b)
	var records []audit.Record
	for i, id := range []string{"11", "12", "13", "14", "15"} { // 13 is denied
		records = append(records, call{host: "api.forge.test", method: "DELETE", path: "/repos/" + id}.record(set, i))
	}
	s, err := build(t, b, records)
	if err != nil {
		t.Fatal(err)
	}
	if rep, text := inForce(t, s, records); rep.Changed != 0 || bytes.Contains(text, []byte("{id}")) {
		t.Errorf("%+v\n%s", rep.Changes, text)
	}
	// Without the denial in the records they become one template.
	if s, err = build(t, b, slices.Delete(slices.Clone(records), 2, 3)); err != nil {
		t.Fatal(err)
	}
	if _, text := inForce(t, s, nil); !bytes.Contains(text, []byte("/repos/{id}")) {
		t.Errorf("no template in\n%s", text)
	}
}

// Without the documents in force, rules are made of the records alone.
func TestRecordsAlone(t *testing.T) {
	set := compile(t, bundle(t, present))
	records := []audit.Record{call{host: "crm.test", method: "POST", path: "/v1/contacts"}.record(set, 1), call{host: "people.test", method: "GET", path: "/me", human: true}.record(set, 2),
		call{host: "crm.test", method: "POST", path: "/oauth/token"}.record(set, 3), call{host: "api.forge.test", method: "GET", path: "/raw/a%2Fb"}.record(set, 4)}
	s, err := build(t, nil, records)
	if err != nil {
		t.Fatal(err)
	}
	rep, text := inForce(t, s, records)
	if rep.Changed != 0 || !bytes.Contains(text, []byte("scope:")) || !bytes.Contains(text, []byte("when: human.present")) ||
		!bytes.Contains(text, []byte("credentialCall: true")) || !bytes.Contains(text, []byte("rawPaths: true")) || len(s.Left) > 0 {
		t.Errorf("%+v\n%s", rep.Changes, text)
	}
}

// Names that several agents answer to, and agents that were allowed nothing.
func TestWhichAgent(t *testing.T) {
	set := compile(t, bundle(t, present))
	r := call{host: "crm.test", method: "POST", path: "/v1/contacts"}.record(set, 1)
	other := r
	w := *r.Workload
	w.ID = "spiffe://attache.local/other/writer"
	other.Workload = &w
	if _, err := build(t, nil, []audit.Record{r, other}); err == nil || !strings.Contains(err.Error(), "several agents") {
		t.Errorf("got %v", err)
	}
	denied := call{host: "nowhere.test", method: "GET", path: "/"}.record(set, 2)
	if _, err := build(t, nil, []audit.Record{denied}); !errors.Is(err, suggest.ErrNothing) {
		t.Errorf("got %v", err)
	}
}
