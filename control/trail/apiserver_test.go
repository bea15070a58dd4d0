package trail_test

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/control/trail"
	"github.com/attache-dev/attache/test/cluster"
)

var token = strings.Repeat("t", 40) // of tests

func apiServer(t *testing.T) (*trail.APIServer, *trail.Trail, string) {
	t.Helper()
	tr, dir := open(t)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return &trail.APIServer{Trail: tr, TokenFile: file, Log: slog.New(slog.DiscardHandler)}, tr, dir
}

func events(list ...map[string]any) string {
	b, err := json.Marshal(map[string]any{"apiVersion": "audit.k8s.io/v1", "kind": "EventList", "items": list})
	if err != nil {
		panic(err)
	}
	return string(b)
}

func denial(change func(map[string]any)) map[string]any {
	e := map[string]any{
		"auditID": "a1", "stage": "ResponseComplete", "verb": "create", "requestURI": "/api/v1/namespaces/team/pods", "user": map[string]any{"username": "eve"},
		"objectRef":      map[string]any{"resource": "pods", "namespace": "team", "name": "x"},
		"responseStatus": map[string]any{"code": 422, "message": `pods "x" is forbidden: ValidatingAdmissionPolicy 'attache-pods' with binding 'attache-pods' denied request: no`},
	}
	if change != nil {
		change(e)
	}
	return e
}

func TestGuardDenials(t *testing.T) {
	for name, c := range map[string]struct {
		body, auth string
		code, want int
	}{
		"a denial":       {events(denial(nil)), "Bearer " + token, 200, 1},
		"the same again": {events(denial(nil), denial(nil)), "Bearer " + token, 200, 1},
		"a dry run":      {events(denial(func(e map[string]any) { e["requestURI"] = "/x?dryRun=All" })), "Bearer " + token, 200, 0},
		"another stage":  {events(denial(func(e map[string]any) { e["stage"] = "RequestReceived" })), "Bearer " + token, 200, 0},
		"of somebody else": {events(denial(func(e map[string]any) {
			e["responseStatus"] = map[string]any{"code": 422, "message": "ValidatingAdmissionPolicy 'other' with binding 'b' denied request: no"}
		})), "Bearer " + token, 200, 0},
		"that was let through": {events(denial(func(e map[string]any) { e["responseStatus"].(map[string]any)["code"] = 201 })), "Bearer " + token, 200, 0},
		"no token":             {events(denial(nil)), "", 401, 0},
		"another token":        {events(denial(nil)), "Bearer " + strings.Repeat("u", 40), 401, 0},
		"another scheme":       {events(denial(nil)), "Basic " + token, 401, 0},
		"nonsense":             {"{", "Bearer " + token, 400, 0},
		"another kind":         {`{"apiVersion":"v1","kind":"PodList"}`, "Bearer " + token, 400, 0},
	} {
		t.Run(name, func(t *testing.T) {
			a, tr, dir := apiServer(t)
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, trail.PathAPIServer, strings.NewReader(c.body))
			r.Header.Set("Authorization", c.auth)
			w := httptest.NewRecorder()
			a.ServeHTTP(w, r)
			if w.Code != c.code {
				t.Errorf("%d %s", w.Code, w.Body)
			}
			if err := tr.Close(); err != nil {
				t.Fatal(err)
			}
			list := records(t, dir)
			if len(list) != c.want {
				t.Fatalf("%d records", len(list))
			}
			if c.want > 0 {
				if f := list[0].Event.Fields; list[0].Event.Name != audit.EventGuardDenied || f["policy"] != "attache-pods" || f["by"] != "eve" || f["reason"] != "no" || f["resource"] != "pods" {
					t.Errorf("%v", f)
				}
			}
		})
	}
}

func TestWithoutATokenNothingIsTaken(t *testing.T) {
	a, _, _ := apiServer(t)
	for _, text := range []string{"", "short"} {
		if err := os.WriteFile(a.TokenFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, trail.PathAPIServer, strings.NewReader(events(denial(nil))))
		r.Header.Set("Authorization", "Bearer "+text)
		w := httptest.NewRecorder()
		a.ServeHTTP(w, r)
		if w.Code != http.StatusServiceUnavailable {
			t.Errorf("token %q: %d", text, w.Code)
		}
	}
}

const guardPolicy = `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: attache-trial}
spec:
  failurePolicy: Fail
  matchConstraints: {resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]}
  validations: [{expression: "object.metadata.name != 'evil'", message: "metadata.name: is evil; choose another"}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: attache-trial}
spec: {policyName: attache-trial, validationActions: [Deny]}
`

// A real API server, whose audit webhook backend sends what a guard refused.
func TestAPIServerTellsOfDenials(t *testing.T) {
	a, _, dir := apiServer(t)
	mux := http.NewServeMux()
	mux.Handle("POST "+trail.PathAPIServer, a)
	s := httptest.NewTLSServer(mux) // a client of the API server's shows its token over TLS alone
	defer s.Close()
	root := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	files := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(files, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	webhook := write("webhook.yaml", fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: a, user: a}}],
clusters: [{name: a, cluster: {server: "%s%s", certificate-authority-data: %s}}], users: [{name: a, user: {token: %s}}]}`, s.URL, trail.PathAPIServer, root, token))
	policy := write("policy.yaml", "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n")
	env, err := cluster.StartAPI(t.Context(), cluster.Options{Dir: t.TempDir(), NoControllerManager: true, Args: []string{
		"--audit-policy-file=" + policy, "--audit-webhook-config-file=" + webhook, "--audit-webhook-batch-max-wait=100ms",
	}})
	if err != nil {
		if os.Getenv(cluster.Require) == "" {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	defer env.Close()
	eve, err := env.User("eve@example.com", "system:masters")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := env.Kubectl(t.Context(), guardPolicy, "create", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	// The API server takes a while until it evaluates a new policy.
	deadline := time.Now().Add(2 * time.Minute)
	for {
		_, err := env.KubectlAs(t.Context(), eve, "", "create", "configmap", "-n", "default", "evil")
		if err != nil && strings.Contains(err.Error(), "is evil") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the policy denies nothing: %v", err)
		}
		_, _ = env.Kubectl(t.Context(), "", "delete", "configmap", "-n", "default", "evil", "--ignore-not-found")
	}
	for len(records(t, dir)) == 0 {
		if time.Now().After(deadline) {
			t.Fatal("nothing is recorded")
		}
		time.Sleep(20 * time.Millisecond)
	}
	list := records(t, dir)
	f := list[0].Event.Fields
	if len(list) != 1 || f["policy"] != "attache-trial" || f["by"] != "eve@example.com" || f["verb"] != "create" || f["resource"] != "configmaps" || !strings.Contains(f["reason"], "is evil") {
		t.Errorf("%d records, %v", len(list), f)
	}
}

func FuzzAuditEvents(f *testing.F) {
	f.Add([]byte(events(denial(nil))))
	f.Add([]byte(`{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[null,{"objectRef":null}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		a, tr, dir := apiServer(t)
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, trail.PathAPIServer, strings.NewReader(string(body)))
		r.Header.Set("Authorization", "Bearer "+token)
		a.ServeHTTP(httptest.NewRecorder(), r)
		if err := tr.Close(); err != nil {
			t.Fatal(err)
		}
		records(t, dir)
	})
}
