package trail_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/control/broker"
	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/control/relay"
	"github.com/attache-dev/attache/control/trail"
)

// records are the events of a trail, without those of the spool itself.
func records(t *testing.T, dir string) (out []audit.Record) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no segments: %v", err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range strings.SplitAfter(string(text), "\n") {
			if l == "" || l[0] == 0 {
				continue
			}
			line, err := audit.ParseLine([]byte(l))
			if err != nil {
				t.Fatalf("%q: %v", l, err)
			}
			r, err := line.Record()
			if err != nil {
				t.Fatal(err)
			}
			if r.Type == audit.TypeEvent {
				out = append(out, r)
			}
		}
	}
	return out
}

func open(t *testing.T) (*trail.Trail, string) {
	t.Helper()
	dir := t.TempDir()
	tr, err := trail.Open(trail.Options{Dir: dir, Replica: "attache-control-1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tr.Close() })
	return tr, dir
}

// one closes the trail and returns its only record.
func one(t *testing.T, tr *trail.Trail, dir string) audit.Record {
	t.Helper()
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	list := records(t, dir)
	if len(list) != 1 {
		t.Fatalf("%d records: %+v", len(list), list)
	}
	return list[0]
}

const policy = `{"rules":[{"name":"read","methods":["GET"]}],"targetRefs":[{"kind":"ServiceAccount","name":"agent"}]}`

func TestWhoAsksForAChange(t *testing.T) {
	tr, dir := open(t)
	err := tr.Requested(t.Context(), trail.Request{
		ID: "r1", Kind: "AccessPolicy", Namespace: "team", Name: "invoices", Operation: trail.OpUpdate,
		By:     trail.User{Username: "ana@example.com", UID: "7", Groups: []string{"payments"}},
		Before: json.RawMessage(`{"metadata":{"uid":"u","generation":1},"spec":` + policy + `}`),
		After:  json.RawMessage(`{"metadata":{"uid":"u","generation":2},"spec":` + strings.Replace(policy, "GET", "POST", 1) + `}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	r := one(t, tr, dir)
	c := r.Change
	if r.Event.Name != audit.EventChangeRequested || c == nil || c.By.Username != "ana@example.com" || c.By.Groups[0] != "payments" || c.Kind != "AccessPolicy" {
		t.Fatalf("%+v %+v", r.Event, c)
	}
	if !strings.Contains(c.Diff, "-    - GET\n+    - POST\n") && !strings.Contains(c.Diff, "-  - GET\n+  - POST\n") {
		t.Errorf("diff:\n%s", c.Diff)
	}
	if c.VersionBefore == c.VersionAfter || len(c.VersionAfter) != 64 || !strings.Contains(c.Text, "POST") || c.Beneficiary != "" {
		t.Errorf("%+v", c)
	}
	if f := r.Event.Fields; f["generation"] != "2" || f["object_uid"] != "u" || f["request"] != "r1" {
		t.Errorf("fields %v", f)
	}
	// What the reconciler sees then has the same version.
	d, err := trail.NewDocument("AccessPolicy", "team", "invoices", json.RawMessage(strings.Replace(policy, "GET", "POST", 1)))
	if err != nil || d.Digest != c.VersionAfter || d.Text != c.Text {
		t.Errorf("observed as %s, %v", d.Digest, err)
	}
}

func TestWhatChangesNothingIsNotRecorded(t *testing.T) {
	tr, dir := open(t)
	o := json.RawMessage(`{"metadata":{"uid":"u"},"spec":` + policy + `}`)
	for _, kind := range []string{"AccessPolicy", "Revocation", "Namespace"} {
		if err := tr.Requested(t.Context(), trail.Request{ID: "r1", Kind: kind, Name: "x", Operation: trail.OpUpdate, Before: o, After: o}); err != nil {
			t.Fatal(err)
		}
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	if list := records(t, dir); len(list) != 0 {
		t.Errorf("%+v", list)
	}
}

func TestNamespacesAndRevocations(t *testing.T) {
	tr, dir := open(t)
	if err := tr.Requested(t.Context(), trail.Request{
		ID: "r1", Kind: "Namespace", Name: "team", Operation: trail.OpUpdate, By: trail.User{Username: "eve"},
		Before: json.RawMessage(`{"metadata":{"labels":{"attache.dev/inject":"enabled","a":"b"}}}`),
		After:  json.RawMessage(`{"metadata":{"labels":{"a":"b"}}}`),
	}); err != nil {
		t.Fatal(err)
	}
	if err := tr.Requested(t.Context(), trail.Request{
		ID: "r2", Kind: "Revocation", Name: "revoke-1", Operation: trail.OpCreate, By: trail.User{Username: "ana"},
		After: json.RawMessage(`{"spec":{"handle":"cred_1","reason":"stolen"}}`),
	}); err != nil {
		t.Fatal(err)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	list := records(t, dir)
	if len(list) != 2 {
		t.Fatalf("%d records", len(list))
	}
	if c := list[0].Change; list[0].Event.Name != trail.EventNamespaceChanged || c.Diff != "@@ -1,1 +1,0 @@\n-label attache.dev/inject=enabled\n" || c.By.Username != "eve" {
		t.Errorf("%+v", c)
	}
	if r := list[1]; r.Event.Name != audit.EventRevokeOrdered || r.Event.Fields["reason"] != "stolen" || r.Credential.Handle != "cred_1" || r.Change.By.Username != "ana" {
		t.Errorf("%+v", r.Event)
	}
}

func TestBeneficiary(t *testing.T) {
	agent := "system:serviceaccount:team:agent"
	for name, c := range map[string]struct {
		kind, namespace, by, spec string
		want                      bool
	}{
		"the service account that it selects": {"AccessPolicy", "team", agent, policy, true},
		"a person":                            {"AccessPolicy", "team", "ana", policy, false},
		"another of the namespace":            {"AccessPolicy", "team", "system:serviceaccount:team:deploy", policy, false},
		"one of another namespace":            {"AccessPolicy", "other", agent, policy, false},
		"a policy of all of the namespace":    {"AccessPolicy", "team", agent, `{"rules":[]}`, true},
		"by SPIFFE ID":                        {"AccessPolicy", "team", agent, `{"workloads":[{"spiffeID":"spiffe://td/ns/team/sa/agent"}]}`, true},
		"by another SPIFFE ID":                {"AccessPolicy", "team", agent, `{"workloads":[{"spiffeID":"spiffe://td/ns/team/sa/agent2"}]}`, false},
		"by a prefix":                         {"ClusterAccessPolicy", "", agent, `{"workloads":[{"spiffeID":"spiffe://td/ns/team/*"}]}`, true},
		"by another prefix":                   {"ClusterAccessPolicy", "", agent, `{"workloads":[{"spiffeID":"spiffe://td/ns/tea/*"}]}`, false},
		"by labels that it can choose":        {"AccessPolicy", "team", agent, `{"workloads":[{"matchLabels":{"a":"b"}}]}`, true},
		"by other accounts":                   {"ClusterAccessPolicy", "", agent, `{"workloads":[{"serviceAccounts":["x"]}]}`, false},
		"a target that it is in":              {"ClusterAccessPolicy", "", agent, `{"targetRefs":[{"kind":"Namespace","name":"team"}]}`, true},
		"a provider of its namespace":         {"CredentialProvider", "team", agent, `{}`, true},
		"a provider that it may use":          {"ClusterCredentialProvider", "", agent, `{"allowedNamespaces":{"names":["team"]}}`, true},
		"a provider that it may not use":      {"ClusterCredentialProvider", "", agent, `{"allowedNamespaces":{"names":["other"]}}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, operation := range []string{trail.OpCreate, trail.OpDelete} {
				tr, dir := open(t)
				q := trail.Request{ID: "r", Kind: c.kind, Namespace: c.namespace, Name: "x", Operation: operation, By: trail.User{Username: c.by}}
				o := json.RawMessage(`{"spec":` + c.spec + `}`)
				if operation == trail.OpCreate {
					q.After = o
				} else {
					q.Before = o // to lose a guard rail is a gain, too
				}
				if err := tr.Requested(t.Context(), q); err != nil {
					t.Fatal(err)
				}
				r := one(t, tr, dir)
				if got := r.Change.Beneficiary; (got == c.by) != c.want || got != r.Event.Fields["beneficiary"] {
					t.Errorf("%s: beneficiary is %q", operation, got)
				}
			}
		})
	}
}

func TestBundleNamesItsDocuments(t *testing.T) {
	tr, dir := open(t)
	var members []trail.Member
	for i := range 40 {
		members = append(members, trail.Member{Kind: "AccessPolicy", Namespace: "team", Name: fmt.Sprintf("p%02d", i), Generation: int64(i), Spec: json.RawMessage(`{}`)})
	}
	if err := tr.Bundle(t.Context(), "v1", "team", members); err != nil {
		t.Fatal(err)
	}
	f := one(t, tr, dir).Event.Fields
	var all []string
	for i := 1; ; i++ {
		key := "documents"
		if i > 1 {
			key += fmt.Sprintf(".%d", i)
		}
		if f[key] == "" {
			break
		}
		all = append(all, strings.Split(f[key], "\n")...)
	}
	d, _ := trail.NewDocument("AccessPolicy", "team", "p07", json.RawMessage(`{}`))
	if len(all) != 40 || all[7] != "AccessPolicy team/p07 7 "+d.Digest || f["version"] != "v1" || f["count"] != "40" || f["documents.2"] == "" {
		t.Errorf("%d documents, %v", len(all), f)
	}
}

func TestIdentitiesAndMints(t *testing.T) {
	tr, dir := open(t)
	now := time.Now().UTC().Truncate(time.Microsecond)
	issued := issuer.Event{Time: now, Kind: "jwt", Outcome: "issued", ID: "spiffe://td/ns/team/sa/agent", Namespace: "team", Pod: "p", UID: "u", JTI: "j", Audience: "https://api", Expires: now.Add(time.Minute)}
	refused := issuer.Event{Time: now, Kind: "x509", Outcome: "refused", Reason: "template", Namespace: "team", Pod: "p", UID: "u"}
	later := issuer.Event{Time: now, Kind: "x509", Outcome: "later", Reason: "not_reported_yet", UID: "u"}
	for range 3 { // a refusal is recorded once a minute, an issuance each time
		for _, e := range []issuer.Event{issued, refused, later} {
			if err := tr.Identity(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, e := range []broker.Event{
		{Time: now, Result: "minted", PodUID: "u", Workload: "spiffe://td/ns/team/sa/agent", Owner: "ana", Provider: "model", Handle: "cred_1", Record: "rec_1", Expires: now.Add(time.Hour)},
		{Time: now, Result: "denied", PodUID: "u", Workload: "spiffe://td/ns/team/sa/agent", Provider: "model", Reason: "no rule"},
	} {
		if err := tr.Mint(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, r := range records(t, dir) {
		count[r.Event.Name]++
		switch r.Event.Name {
		case audit.EventIdentityDenied: // one for the first, one for how many more
			if n := r.Event.Fields["unrecorded"]; n != []string{"", "2"}[count[r.Event.Name]-1] || r.Event.Fields["pod_uid"] != "u" {
				t.Errorf("%+v", r.Event)
			}
		case audit.EventIdentityIssued:
			if r.Workload.ID != issued.ID || r.Event.Fields["audience"] != "https://api" || r.Event.Fields["jti"] != "j" || !r.Time.Equal(now) {
				t.Errorf("%+v", r)
			}
		case audit.EventCredentialMinted:
			if r.Credential.Handle != "cred_1" || r.Owner != "ana" || r.Event.Fields["record"] != "rec_1" || r.Credential.TTLSeconds != 3600 {
				t.Errorf("%+v", r.Credential)
			}
		}
	}
	if count[audit.EventIdentityIssued] != 3 || count[audit.EventIdentityDenied] != 2 || count[audit.EventCredentialMinted] != 1 || count[trail.EventBrokerDenied] != 1 {
		t.Errorf("%v", count)
	}
}

// A replica without audit records nothing and goes on.
func TestNilTrail(t *testing.T) {
	var tr *trail.Trail
	ctx := t.Context()
	for _, err := range []error{
		tr.Requested(ctx, trail.Request{}), tr.Identity(ctx, issuer.Event{}), tr.Mint(ctx, broker.Event{}), tr.Observed(ctx, trail.Observed{}),
		tr.Bundle(ctx, "", "", nil), tr.Admitted(ctx, trail.Admission{}), tr.Denied(ctx, trail.Guard{}), tr.Revoked(ctx, trail.Revocation{}),
		tr.Write(ctx, nil), tr.Close(),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if tr.Spool() != nil {
		t.Error("has a spool")
	}
}

func FuzzRequested(f *testing.F) {
	f.Add([]byte(`{"spec":{"a":[1,2,3]}}`), []byte(`{"spec":{"a":[1,3]}}`))
	f.Add([]byte(`null`), []byte(`{"spec":"\u0000\n"}`))
	f.Fuzz(func(t *testing.T, before, after []byte) {
		tr, dir := open(t)
		err := tr.Requested(t.Context(), trail.Request{ID: "r", Kind: "AccessPolicy", Namespace: "n", Name: "x", Operation: trail.OpUpdate, Before: before, After: after})
		if err != nil {
			return
		}
		if err := tr.Close(); err != nil {
			t.Fatal(err)
		}
		records(t, dir) // can be read back
	})
}

// What could not be recorded was not: who asks again is not told that it was.
func TestARefusalThatWasNotRecorded(t *testing.T) {
	tr, dir := open(t)
	g := trail.Guard{Policy: "attache-pods", Verb: "create", Resource: "pods", Namespace: "team", Name: "x"}
	g2 := g
	g2.Namespace, g2.Name = "tea", "mx"
	for _, x := range []trail.Guard{g, g, g2} {
		if err := tr.Denied(t.Context(), x); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 3 { // a pod that asks in other words each time
		if err := tr.Relayed(t.Context(), relay.Event{Result: "denied", PodUID: "u", Code: "bad_request", Reason: strconv.Itoa(n)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	list := records(t, dir)
	more := map[string]string{}
	for _, r := range list {
		if n := r.Event.Fields["unrecorded"]; n != "" {
			more[r.Event.Name] = n
		}
	}
	if len(list) != 5 || more["guard.denied"] != "1" || more["relay.denied"] != "2" {
		t.Errorf("%d records, want two of guards and one of the relay, and one more of both for what was counted: %v", len(list), more)
	}
	g.Name = "y"
	for range 2 {
		if err := tr.Denied(t.Context(), g); err == nil {
			t.Error("recorded, in a spool that is closed")
		}
	}
}

// What the relay has counted itself is recorded, whatever else of that pod was
// refused with the same code a moment before.
func TestWhatTheRelayCountsIsRecorded(t *testing.T) {
	tr, dir := open(t)
	busy := relay.Event{Result: "denied", PodUID: "u", Code: "rate_limited", Reason: "too many calls of this pod are under way at the relay"}
	often := relay.Event{Result: "denied", PodUID: "u", Code: "rate_limited", Reason: "this pod makes too many calls through the relay", Counted: true}
	more := often
	more.Unrecorded = 19
	for _, e := range []relay.Event{busy, often, more} {
		if err := tr.Relayed(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	l := records(t, dir)
	if len(l) != 3 || l[1].Event.Fields["reason"] != often.Reason || l[1].Event.Fields["unrecorded"] != "" || l[2].Event.Fields["unrecorded"] != "19" {
		t.Errorf("%d records: %+v", len(l), l)
	}
}
