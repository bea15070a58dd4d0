package policy_test

import (
	"strings"
	"testing"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/policy"
)

// A relay decides again without the pod's processes, tasks and humans: a rule
// that asks for them would deny every call, so it is refused as written.
func TestRelayRulesAskForWhatItKnows(t *testing.T) {
	const docs = `
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: model, namespace: team}
spec: {destinations: [{host: api.example.com}], apiKey: {secretRef: {name: k, key: key}}, inject: {by: BY}}
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: p, namespace: team}
spec:
  rules:
  - {name: chat, hosts: [api.example.com], action: allow, when: 'WHEN', credential: {provider: model}}
`
	for _, tt := range []struct{ by, when, want string }{
		{"relay", `human.present`, "looks at human, which only the pod knows"},
		{"relay", `request.method == "GET" && task.open`, "looks at task"},
		{"relay", `process.uid == 7`, "looks at process"},
		{"relay", `workload.owner == "ana" && request.headers["x-mode"] == "a"`, ""},
		{"sidecar", `human.present`, ""},
	} {
		b, err := api.ParseFor(api.PlacePod, "x", []byte(strings.NewReplacer("BY", tt.by, "WHEN", tt.when).Replace(docs)))
		if err != nil {
			t.Fatal(err)
		}
		_, err = policy.Compile(b)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("by %s, when %s: %v; want %q", tt.by, tt.when, err, tt.want)
		}
	}
}
