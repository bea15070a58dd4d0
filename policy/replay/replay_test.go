package replay_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/policy/replay"
	"github.com/attache-dev/attache/proxy/destination"
)

const docs = `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: forge}
spec: {destinations: [{host: api.forge.test}], apiKey: {file: /run/key}}
---
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: crm}
spec: {destinations: [{host: crm.test}], oauth2: {tokenEndpoint: "https://as.test/token", grant: clientCredentials, scopes: [read, write]}}
---
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: aws}
spec: {destinations: [{host: "**.amazonaws.com"}], aws: {roleARN: "arn:aws:iam::123456789012:role/r", region: eu-west-1}}
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: p}
spec:
  rules:
  - {name: forge, hosts: [api.forge.test], methods: [GET], paths: ["/repos/{id}"], action: allow, credential: {provider: forge}}
  - {name: crm, hosts: [crm.test], action: allow, credential: {provider: crm, scope: [read]}}
  - {name: mode, hosts: [mode.test], headers: [{name: X-Mode, exact: a}], action: allow}
  - {name: q, hosts: [q.test], query: [{name: v, exact: "1"}], action: allow}
  - {name: absent, hosts: [absent.test], query: [{name: force, absent: true}], action: allow}
  - {name: groups, hosts: [groups.test], action: allow, when: '"ops" in human.groups'}
  - {name: either, hosts: [either.test], methods: [GET], action: allow, when: 'request.headers["x"] == "y"'}
  - {name: either-too, hosts: [either.test], action: allow}
  - {name: people, hosts: [people.test], action: allow, when: human.present}
  - {name: pass, hosts: [pass.test], action: passthrough}
  - name: s3
    hosts: ["*.s3.eu-west-1.amazonaws.com"]
    action: allow
    credential: {provider: aws, aws: {policy: {Version: "2012-10-17", Statement: {Effect: Allow, Action: "s3:GetObject", Resource: "arn:aws:s3:::b/*"}}}}
`

func bundle(t testing.TB) *api.Bundle {
	t.Helper()
	b, err := api.Parse("test.yaml", []byte(docs))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// record reads one in short: METHOD HOST PATH VERDICT [PROVIDER].
func record(t testing.TB, short string, change func(*audit.Record)) *audit.Record {
	t.Helper()
	f := strings.Fields(short)
	r := &audit.Record{ID: "rec_" + f[1], Type: audit.TypeEnd, Time: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC),
		Workload: &audit.Workload{ID: "spiffe://attache.local/agent/a", Namespace: "local"},
		Request:  &audit.Request{Host: f[1], Port: 443, Scheme: "https", Method: f[0], Path: f[2], Protocol: "http"}, Decision: &audit.Decision{Verdict: f[3]}, Result: &audit.Result{}}
	if f[3] == "deny" {
		r.Decision.Code = "denied"
	}
	if len(f) > 4 {
		r.Credential = &audit.Use{Provider: f[4], ScopeSource: "static"}
	}
	if change != nil {
		change(r)
	}
	return r
}

func TestReplay(t *testing.T) {
	aws := func(asked ...string) func(*audit.Record) {
		return func(r *audit.Record) {
			r.Credential.ScopeSource, r.Credential.ScopeAsked = "derived", asked
			r.Credential.AWS = &audit.AWSUse{Service: "s3", Scope: "request"}
		}
	}
	for _, tt := range []struct {
		name, record string
		change       func(*audit.Record)
		want         string // same, a kind, or what cannot be told
	}{
		{"same", "GET api.forge.test /repos/1 inject forge", nil, "same"},
		{"method", "POST api.forge.test /repos/1 inject forge", nil, replay.NewlyDenied},
		{"path", "GET api.forge.test /repos/1/x inject forge", nil, replay.NewlyDenied},
		{"host", "GET other.test / allow", nil, replay.NewlyDenied},
		{"denied still", "GET other.test / deny", nil, "same"},
		{"denied no more", "GET people.test / deny", func(r *audit.Record) { r.Human = &audit.Human{Subject: "ana"}; r.Task = &audit.Task{ID: "t"} }, replay.NewlyAllowed},
		{"nobody behind it", "GET people.test / deny", nil, "same"},
		{"another credential", "GET crm.test / inject forge", nil, replay.Otherwise},
		{"credential now", "GET crm.test / allow", nil, replay.Otherwise},
		{"scope", "GET crm.test / inject crm", func(r *audit.Record) { r.Credential.ScopeAsked = []string{"write"} }, replay.Otherwise},
		{"same scope", "GET crm.test / inject crm", func(r *audit.Record) { r.Credential.ScopeAsked = []string{"read"} }, "same"},
		{"audit mode", "GET either.test / allow", func(r *audit.Record) { r.Decision.WouldDeny = true }, replay.Otherwise},
		{"tunnel", "CONNECT pass.test / passthrough", func(r *audit.Record) { r.Request.Protocol, r.Request.Method, r.Request.Path = "tls", "", "" }, "same"},
		{"tunnel no more", "CONNECT other.test / passthrough", func(r *audit.Record) { r.Request.Protocol, r.Request.Method, r.Request.Path = "tls", "", "" }, replay.NewlyDenied},
		{"path in two ways", "GET either.test /a%2Fb allow", nil, replay.NewlyDenied},

		{"header", "GET mode.test / allow", nil, "header X-Mode"},
		{"header that cannot matter", "GET either.test / allow", nil, "same"},
		{"query value", "GET q.test / allow", func(r *audit.Record) { r.Request.QueryKeys = []string{"v"} }, "query v"},
		{"query not there", "GET q.test / allow", nil, replay.NewlyDenied},
		{"query absent", "GET absent.test / allow", func(r *audit.Record) { r.Request.QueryKeys = []string{"other"} }, "same"},
		{"query there", "GET absent.test / allow", func(r *audit.Record) { r.Request.QueryKeys = []string{"force"} }, replay.NewlyDenied},
		{"more parameters than names", "GET absent.test / allow", func(r *audit.Record) { r.Request.QueryKeys = strings.Fields(strings.Repeat("k ", 32)) }, "query force"},
		{"groups", "GET groups.test / allow", func(r *audit.Record) { r.Human = &audit.Human{Subject: "ana"}; r.Task = &audit.Task{ID: "t"} }, "human.groups"},
		{"beside policy", "GET api.forge.test /repos/1 deny", func(r *audit.Record) { r.Decision.Code = "ambient_use" }, "refused beside policy: ambient_use"},
		{"long path", "GET api.forge.test /repos/… inject forge", nil, "longer than a record holds"},
		{"no workload", "GET api.forge.test /repos/1 inject forge", func(r *audit.Record) { r.Workload = nil }, "no workload"},
		{"no SPIFFE ID", "GET api.forge.test /repos/1 inject forge", func(r *audit.Record) { r.Workload.ID = "me" }, "no SPIFFE ID"},

		{"AWS", "GET b.s3.eu-west-1.amazonaws.com /k inject aws", aws("s3:GetObject arn:aws:s3:::b/k"), "same"},
		{"AWS action", "PUT b.s3.eu-west-1.amazonaws.com /k inject aws", aws("s3:PutObject arn:aws:s3:::b/k"), replay.NewlyDenied},
		{"AWS resource", "GET c.s3.eu-west-1.amazonaws.com /k inject aws", aws("s3:GetObject arn:aws:s3:::c/k"), replay.NewlyDenied},
		{"AWS, more than is recorded", "GET b.s3.eu-west-1.amazonaws.com /k inject aws", aws("s3:GetObject arn:aws:s3:::b/k", "…"), "more of AWS than a record holds"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := replay.New(bundle(t), replay.Options{PathOK: destination.CheckPath})
			if err != nil {
				t.Fatal(err)
			}
			p.Add(record(t, tt.record, tt.change))
			r := p.Report()
			got := "same"
			switch {
			case len(r.Changes) == 1:
				got = r.Changes[0].Kind
			case len(r.Unsure) == 1:
				got = r.Unsure[0].Why
			}
			if !strings.Contains(got, tt.want) || r.Requests != 1 || r.Same+r.Changed+r.NotDecided != 1 {
				t.Errorf("got %q, want %q: %+v", got, tt.want, r)
			}
		})
	}
}

// Equal changes are one, with how often and when.
func TestGroups(t *testing.T) {
	p, err := replay.New(bundle(t), replay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	for i := range 5 {
		p.Add(record(t, "DELETE api.forge.test /repos/"+string(rune('1'+i))+" inject forge", func(r *audit.Record) { r.Time, r.ID = at.Add(time.Duration(i)*time.Hour), "rec_"+string(rune('a'+i)) }))
	}
	p.Add(record(t, "GET other.test / allow", nil))
	p.Add(&audit.Record{Type: audit.TypeEvent, Event: &audit.Event{Name: "task.opened"}})
	r := p.Report()
	if r.Requests != 6 || r.Changed != 6 || len(r.Changes) != 2 {
		t.Fatalf("%+v", r)
	}
	if c := r.Changes[0]; c.Count != 5 || c.Path != "/repos/{id}" || !c.First.Equal(at) || !c.Last.Equal(at.Add(4*time.Hour)) || len(c.Examples) != 3 {
		t.Errorf("%+v", c)
	}
	var b bytes.Buffer
	if err := r.Text(&b, time.UTC); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"newly denied: DELETE api.forge.test/repos/{id}, 5 times from 2026-11-01 12:00:00 to 2026-11-01 16:00:00", "was    inject forge", "now    deny, by default", "6 requests: 0 decided as before, 6 otherwise"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

func TestShape(t *testing.T) {
	for in, want := range map[string]string{
		"/repos/12": "/repos/{id}", "/v1/x": "/v1/x", "/a/0b9f61d2-5a6e-4a7c-9b1d-3f2a9c8e7d60/b": "/a/{id}/b", "/x/deadbeef": "/x/deadbeef", "/x/dead0beef": "/x/{id}",
		"/u/user2": "/u/user2", "/t/xK29fj3kdLs92mfQ1": "/t/{id}", "/2026-11-01": "/{id}", "": "",
	} {
		if got := replay.Shape(in); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}

// FuzzAdd: a record of whatever content is counted once and breaks nothing.
func FuzzAdd(f *testing.F) {
	for _, s := range []string{"GET api.forge.test /repos/1 inject forge", "GET mode.test / allow", "POST b.s3.eu-west-1.amazonaws.com /k inject aws"} {
		b, _ := json.Marshal(record(f, s, nil))
		f.Add(b)
	}
	b := bundle(f)
	f.Fuzz(func(t *testing.T, line []byte) {
		var r audit.Record
		if json.Unmarshal(line, &r) != nil {
			return
		}
		p, err := replay.New(b, replay.Options{PathOK: destination.CheckPath})
		if err != nil {
			t.Fatal(err)
		}
		p.Add(&r)
		rep := p.Report()
		if rep.Requests != rep.Same+rep.Changed+rep.NotDecided || rep.Requests > 1 {
			t.Errorf("%+v", rep)
		}
		if err := rep.Text(&bytes.Buffer{}, time.UTC); err != nil {
			t.Error(err)
		}
	})
}
