package server

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// change is a review of one of our objects.
func change(kind, operation string, more func(object)) []byte {
	return reviewOf(`{"metadata":{"name":"p"},"spec":{"a":2}}`, func(r object) {
		q := r["request"].(object)
		q["kind"] = object{"group": "attache.dev", "version": "v1alpha1", "kind": kind}
		q["resource"] = object{"group": "attache.dev", "version": "v1alpha1", "resource": "x"}
		q["operation"], q["name"] = operation, "p"
		q["userInfo"] = object{"username": "ana", "uid": "u", "groups": []string{"g"}, "extra": object{"k": []string{"v"}}}
		q["oldObject"] = json.RawMessage(`{"spec":{"a":1}}`)
		if more != nil {
			more(q)
		}
	})
}

func TestChangesAreTold(t *testing.T) {
	var told []Change
	s := newTestServer(t, Options{
		Changed: func(_ context.Context, c Change) error { told = append(told, c); return nil },
		Validate: func(_ context.Context, o Object) ([]Finding, error) {
			if o.Name == "bad" {
				return []Finding{{Text: "is bad"}}, nil
			}
			return nil, nil
		},
	})
	for name, c := range map[string]struct {
		path string
		body []byte
		want int
	}{
		"an update":                 {PathValidate, change("AccessPolicy", "UPDATE", nil), 1},
		"a deletion":                {PathRecord, change("ClusterAccessPolicy", "DELETE", func(q object) { q["object"] = nil }), 1},
		"a revocation":              {PathRecord, change("Revocation", "CREATE", nil), 1},
		"a namespace":               {PathValidate, change("Namespace", "UPDATE", func(q object) { q["kind"].(object)["group"] = "" }), 1},
		"a dry run":                 {PathValidate, change("AccessPolicy", "UPDATE", func(q object) { q["dryRun"] = true }), 0},
		"a dry run of a deletion":   {PathRecord, change("AccessPolicy", "DELETE", func(q object) { q["dryRun"] = true }), 0},
		"status":                    {PathValidate, change("AccessPolicy", "UPDATE", func(q object) { q["subResource"] = "status" }), 0},
		"what is refused":           {PathValidate, change("AccessPolicy", "UPDATE", func(q object) { q["name"] = "bad" }), 0},
		"a kind of somebody else's": {PathRecord, change("AccessPolicy", "DELETE", func(q object) { q["kind"].(object)["group"] = "other.dev" }), 0},
	} {
		t.Run(name, func(t *testing.T) {
			told = nil
			answerTo(t, s.Handler(), c.path, c.body)
			if len(told) != c.want {
				t.Fatalf("told %v", told)
			}
			if c.want == 1 && (told[0].By.Username != "ana" || told[0].By.Groups[0] != "g" || told[0].ID != "r-1" || told[0].Name != "p" || string(told[0].Before) == "") {
				t.Errorf("told %+v", told[0])
			}
		})
	}
}

// No record, no change: but a revocation is carried out.
func TestChangeThatCannotBeRecorded(t *testing.T) {
	s := newTestServer(t, Options{Changed: func(context.Context, Change) error { return errors.New("the spool is full") }})
	for kind, allowed := range map[string]bool{"AccessPolicy": false, "CredentialProvider": false, "Revocation": true} {
		a := answerTo(t, s.Handler(), PathRecord, change(kind, "DELETE", nil))
		if a.Allowed != allowed || allowed && len(a.Warnings) != 1 {
			t.Errorf("%s: %+v", kind, a)
		}
	}
	if a := answerTo(t, s.Handler(), PathValidate, change("AccessPolicy", "CREATE", nil)); a.Allowed || a.Status.Code != 500 {
		t.Errorf("%+v", a)
	}
}

func TestAdmissionsAreTold(t *testing.T) {
	var told []Admission
	o := Options{Admitted: func(_ context.Context, a Admission) { told = append(told, a) }}
	s := newTestServer(t, o)
	bob := func(r object) { r["request"].(object)["userInfo"] = object{"username": "bob"} }
	answerTo(t, s.Handler(), PathMutate, reviewOf(deploymentPod, bob))
	if len(told) != 1 || told[0].Result != Injected || told[0].By.Username != "bob" || told[0].Account != "agent" || told[0].Owner != "ReplicaSet/agent-1" || told[0].Name != "agent-" || told[0].Mode != "explicit" {
		t.Fatalf("told %+v", told)
	}
	told = nil
	answerTo(t, s.Handler(), PathMutate, reviewOf(deploymentPod, func(r object) { r["request"].(object)["dryRun"] = true }))
	if len(told) != 0 {
		t.Errorf("a dry run: %+v", told)
	}
	answerTo(t, s.Handler(), PathMutate, reviewOf(`{"metadata":{"name":"x"},"spec":{"hostNetwork":true,"containers":[{"name":"a","image":"a"}]}}`, bob))
	if len(told) != 1 || told[0].Result != Denied || told[0].Reason == "" || told[0].Name != "x" {
		t.Errorf("a refusal: %+v", told)
	}
	off := settings()
	off.Namespace["labels"] = object{}
	told = nil
	o.Source = static{Settings: off}.get()
	answerTo(t, newTestServer(t, o).Handler(), PathMutate, reviewOf(deploymentPod, bob))
	if len(told) != 1 || told[0].Result != Skipped {
		t.Errorf("skipped: %+v", told)
	}
	off.Namespace["labels"] = object{"attache.dev/inject": "enabled", "attache.dev/allow-opt-out": "true"}
	told = nil
	o.Source = static{Settings: off}.get()
	answerTo(t, newTestServer(t, o).Handler(), PathMutate, reviewOf(strings.Replace(deploymentPod, `"app":"agent"`, `"attache.dev/inject":"false"`, 1), bob))
	if len(told) != 1 || told[0].Result != OptedOut {
		t.Errorf("opted out: %+v", told)
	}
}
