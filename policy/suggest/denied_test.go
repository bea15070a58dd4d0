package suggest_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/policy/replay"
	"github.com/attache-dev/attache/policy/suggest"
)

// The patch of a denied record, put beside the policy, opens that call and no
// other.
func TestForDenied(t *testing.T) {
	b := bundle(t, present)
	set := compile(t, b)
	for _, tt := range []struct {
		call  call
		want  []string
		other call // stays denied
	}{
		{call{host: "nowhere.test", method: "POST", path: "/a b*{x}/12"}, []string{"allow-post-nowhere.test", "/a%20b%2A%7Bx%7D/12", "Without a credential"}, call{host: "nowhere.test", method: "GET", path: "/a b*{x}/12"}},
		{call{host: "crm.test", method: "GET", path: "/v2/x"}, []string{"provider: crm", "- /v2/x"}, call{host: "crm.test", method: "GET", path: "/v2/y"}},
		{call{host: "people.test", method: "GET", path: "/x", human: false}, []string{"- /x"}, call{host: "people.test", method: "GET", path: "/y"}},
	} {
		r := tt.call.record(set, 1)
		patch, err := suggest.ForDenied(b, &r)
		if err != nil {
			t.Fatalf("%+v: %v", tt.call, err)
		}
		for _, w := range tt.want {
			if !strings.Contains(string(patch), w) {
				t.Errorf("no %q in\n%s", w, patch)
			}
		}
		p, err := replay.New(bundle(t, present+"---\n"+string(patch)), replay.Options{})
		if err != nil {
			t.Fatalf("%v in\n%s", err, patch)
		}
		if now, _, why := p.Decide(&r); why != "" || !now.Opens() {
			t.Errorf("%+v is still denied: %s %s\n%s", tt.call, now.Reason, why, patch)
		}
		o := tt.other.record(set, 2)
		if now, _, _ := p.Decide(&o); now.Opens() {
			t.Errorf("%+v is opened\n%s", tt.other, patch)
		}
	}
	if patch, err := suggest.ForDenied(nil, new(call{host: "crm.test", method: "GET", path: "/v2/x"}.record(set, 1))); err != nil || strings.Contains(string(patch), "provider:") {
		t.Errorf("%v\n%s", err, patch)
	}
}

// Where no rule helps, the error says why.
func TestForDeniedWhereNoRuleHelps(t *testing.T) {
	set := compile(t, bundle(t, present))
	for name, tt := range map[string]struct {
		change func(*audit.Record)
		want   string
	}{
		"allowed":        {func(r *audit.Record) { r.Decision.Verdict = "allow" }, "not denied"},
		"beside policy":  {func(r *audit.Record) { r.Decision.Code = "mint_denied" }, "mint_denied"},
		"guard rail":     {func(r *audit.Record) { r.Decision.Policy, r.Decision.Rule = "cluster:rail", "no" }, "guard rail"},
		"no request yet": {func(r *audit.Record) { r.Request.Protocol = "tls" }, "before a request was seen"},
		"cut":            {func(r *audit.Record) { r.Request.Path = "/x…" }, "longer than a record"},
	} {
		r := call{host: "nowhere.test", method: "GET", path: "/"}.record(set, 1)
		tt.change(&r)
		if _, err := suggest.ForDenied(nil, &r); !errors.Is(err, suggest.ErrNothing) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

const aws = `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: aws}
spec: {destinations: [{host: "**.amazonaws.com"}], aws: {roleARN: "arn:aws:iam::123456789012:role/r", region: eu-west-1}}
---
`

// Calls to AWS become actions and resources; a policy with conditions stays.
func TestAWS(t *testing.T) {
	use := func(n int, method, key, action string, verdict string) audit.Record {
		r := audit.Record{ID: "rec", Type: audit.TypeEnd, Time: start.Add(time.Duration(n) * time.Minute), Workload: &audit.Workload{ID: agent, Namespace: "local"},
			Request:  &audit.Request{Host: "b.s3.eu-west-1.amazonaws.com", Port: 443, Scheme: "https", Method: method, Path: "/" + key, Protocol: "http"},
			Decision: &audit.Decision{Verdict: verdict, Policy: "p", Rule: "s3"}, Result: &audit.Result{Outcome: audit.OutcomeOK}}
		if verdict == "deny" {
			r.Decision.Code = "denied"
		}
		r.Credential = &audit.Use{Provider: "aws", ScopeSource: "derived", ScopeAsked: []string{action + " arn:aws:s3:::b/" + key}, AWS: &audit.AWSUse{Service: "s3", Scope: "request"}}
		return r
	}
	rule := aws + "apiVersion: attache.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: p}\nspec: {rules: [{name: s3, hosts: [\"*.s3.eu-west-1.amazonaws.com\"], action: allow, credential: {provider: aws, aws: {policy: POLICY}}}]}\n"
	records := []audit.Record{use(1, "GET", "in/1", "s3:GetObject", "inject"), use(2, "GET", "in//2", "s3:GetObject", "inject"), use(3, "PUT", "out/x", "s3:PutObject", "inject")}
	for _, tt := range []struct {
		name, policy string
		records      []audit.Record
		want, not    []string
	}{
		{"plain", `{Version: "2012-10-17", Statement: {Effect: Allow, Action: "s3:*", Resource: "*"}}`, records, []string{"s3:GetObject", "arn:aws:s3:::b/in/1", "arn:aws:s3:::b/out/x"}, []string{"s3:*", "b/*", "in/*"}},
		{"many", `{Version: "2012-10-17", Statement: {Effect: Allow, Action: "s3:*", Resource: "*"}}`,
			[]audit.Record{use(1, "GET", "in/1", "s3:GetObject", "inject"), use(2, "GET", "in/2", "s3:GetObject", "inject"), use(3, "GET", "in/3", "s3:GetObject", "inject"), use(4, "GET", "in/4", "s3:GetObject", "inject")},
			[]string{"arn:aws:s3:::b/in/*"}, []string{"in/3"}},
		{"many, one denied", `{Version: "2012-10-17", Statement: {Effect: Allow, Action: "s3:*", Resource: "*"}}`,
			[]audit.Record{use(1, "GET", "in/1", "s3:GetObject", "inject"), use(2, "GET", "in/2", "s3:GetObject", "inject"), use(3, "GET", "in/3", "s3:GetObject", "inject"), use(4, "GET", "in/4", "s3:GetObject", "inject"), use(5, "GET", "in/5", "s3:GetObject", "deny")},
			[]string{"arn:aws:s3:::b/in/4"}, []string{"in/*", "in/5"}},
		{"conditions", `{Version: "2012-10-17", Statement: {Effect: Allow, Action: "s3:*", Resource: "*", Condition: {Bool: {"aws:SecureTransport": "true"}}}}`, records[:1], []string{"SecureTransport", "s3:*", "- /in/1"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := build(t, bundle(t, strings.Replace(rule, "POLICY", tt.policy, 1)), tt.records)
			if err != nil {
				t.Fatal(err)
			}
			text, err := s.YAML(time.UTC)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range tt.want {
				if !strings.Contains(string(text), w) {
					t.Errorf("no %q in\n%s", w, text)
				}
			}
			for _, w := range tt.not {
				if strings.Contains(string(text), w) {
					t.Errorf("%q in\n%s", w, text)
				}
			}
			p, err := replay.New(bundle(t, aws+string(text)), replay.Options{})
			if err != nil {
				t.Fatal(err)
			}
			for i := range tt.records {
				p.Add(&tt.records[i])
			}
			if r := p.Report(); r.Changed > 0 || r.NotDecided > 0 {
				t.Errorf("%+v %+v\n%s", r.Changes, r.Unsure, text)
			}
		})
	}
}

// FuzzForDenied: whatever the path, a patch loads beside the policy and opens
// the call that was denied.
func FuzzForDenied(f *testing.F) {
	f.Add("/a", "GET")
	f.Add("/a//b/../%2e/{x}*?#", "POST")
	f.Add("/%zz", "get")
	f.Add("/\u00e4 \\\"/", "GET")
	set := compile(f, bundle(f, present))
	f.Fuzz(func(t *testing.T, path, method string) {
		r := call{host: "nowhere.test", method: method, path: path}.record(set, 1)
		patch, err := suggest.ForDenied(nil, &r)
		if err != nil {
			return
		}
		b, err := api.Parse("patch.yaml", patch)
		if err != nil {
			t.Fatalf("%v in\n%s", err, patch)
		}
		p, err := replay.New(b, replay.Options{})
		if err != nil {
			t.Fatalf("%v in\n%s", err, patch)
		}
		if now, _, why := p.Decide(&r); why == "" && !now.Opens() {
			t.Errorf("%q is still denied: %s\n%s", path, now.Reason, patch)
		}
	})
}
