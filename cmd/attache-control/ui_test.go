package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/test/cluster"
	"github.com/attache-dev/attache/test/servers"
)

// reviewDocuments: a's own rule, b's, and a guard rail of the cluster with a
// provider that is for a alone.
const reviewDocuments = `
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: invoices, namespace: %[1]s}
spec: {rules: [{name: read-invoices, hosts: [api.example.com], methods: [GET], paths: ["/invoices/**"], action: allow}]}
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: secret-plan, namespace: %[2]s}
spec: {rules: [{name: read-plans, hosts: [api.example.com, plans.example.com], methods: [GET], paths: ["/plans/**"], action: allow}]}
---
apiVersion: attache.dev/v1alpha1
kind: ClusterAccessPolicy
metadata: {name: rail-%[1]s}
spec:
  workloads: [{namespaces: [%[1]s, %[2]s]}]
  rules: [{name: no-admin, hosts: ["*.example.com"], paths: ["/admin/**"], action: deny, reason: admin is closed}]
---
apiVersion: attache.dev/v1alpha1
kind: ClusterCredentialProvider
metadata: {name: reports-%[1]s}
spec:
  allowedNamespaces: {selector: {matchLabels: {team: invoicing}}}
  destinations: [{host: reports.example.com}]
  jwt: {audience: "https://reports.example.com"}
---
apiVersion: attache.dev/v1alpha1
kind: ClusterAccessPolicy
metadata: {name: reports-%[1]s}
spec:
  workloads: [{namespaces: [%[1]s]}]
  rules: [{name: report, hosts: [reports.example.com], action: allow, credential: {provider: reports-%[1]s}}]
`

// reviewRecord is a call of the invoicing agent of a namespace.
func reviewRecord(id, namespace, method, path, verdict string) audit.Record {
	r := audit.Record{
		Type: audit.TypeEnd, ID: id, Time: time.Now().Add(-time.Minute), Steps: &audit.Steps{Decided: 200, Ended: 900},
		Workload: &audit.Workload{ID: "spiffe://cluster.test/ns/" + namespace + "/sa/invoices", Namespace: namespace, ServiceAccount: "invoices"},
		Request:  &audit.Request{Scheme: "https", Host: "api.example.com", Port: 443, Method: method, Path: path, Protocol: "http"},
		Decision: &audit.Decision{Verdict: verdict, Reason: "as it was"}, Result: &audit.Result{Outcome: audit.OutcomeOK, Status: 200},
	}
	if verdict == "deny" {
		r.Decision.Code, r.Result = "denied", &audit.Result{Outcome: audit.OutcomeDenied, Status: 403}
	}
	return r
}

// writeStore makes a store with the records of pods of two namespaces. One pod
// of the first says of a record that it is the second's.
func writeStore(t *testing.T, file, a, b string) {
	t.Helper()
	db, err := store.Open(t.Context(), "sqlite:"+file, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	thief := reviewRecord("rec_thief", a, "GET", "/plans/x", "deny")
	thief.Workload.ID = "spiffe://cluster.test/ns/" + b + "/sa/invoices"
	for ns, records := range map[string][]audit.Record{
		a: {reviewRecord("rec_a1", a, "GET", "/invoices/1", "allow"), reviewRecord("rec_a2", a, "DELETE", "/invoices/1", "deny"), thief},
		b: {reviewRecord("rec_b1", b, "GET", "/plans/1", "allow"), reviewRecord("rec_b2", b, "DELETE", "/plans/1", "deny")},
	} {
		dir := t.TempDir()
		s, err := audit.Open(audit.Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		for i := range records {
			err = errors.Join(err, s.Write(&records[i]))
		}
		if err := errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}
		segments, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
		if err != nil {
			t.Fatal(err)
		}
		var lines []audit.Line
		for _, name := range segments {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for one := range bytes.Lines(text) {
				l, err := audit.ParseLine(one)
				if err != nil {
					t.Fatal(err)
				}
				lines = append(lines, l)
			}
		}
		if _, err := db.Append(t.Context(), store.Producer{ID: "pod-" + ns, Kind: audit.KindSidecar, Namespace: ns}, lines); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

const reviewConfig = `
ui:
  url: %[1]s
  oidc: {issuer: %[2]q, clientID: page, groupsClaim: "", scopes: []} # as the chart writes what is not given
  grants:
    - {role: viewer, namespaces: [%[3]s], groups: [team-a]}
    - {role: viewer, namespaces: ["*"], groups: [security]}
`

// reviewer is a browser before the page of a replica.
type reviewer struct {
	t    *testing.T
	home string
	c    *http.Client
}

func (r *reviewer) do(method, address string, form url.Values) (int, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, address, strings.NewReader(form.Encode()))
	if err != nil {
		r.t.Fatal(err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	res, err := r.c.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 4<<20))
	if err != nil {
		r.t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// shows asks for a page and says what of it is not as it must be.
func (r *reviewer) shows(path string, status int, want, not []string) string {
	r.t.Helper()
	got, body := r.do(http.MethodGet, r.home+path, nil)
	text := strings.Join(strings.Fields(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(body, " ")), " ")
	if got != status {
		r.t.Errorf("%s: %d, want %d: %.800s", path, got, status, text)
	}
	for _, w := range want {
		if !strings.Contains(text, w) {
			r.t.Errorf("%s does not show %q: %.1500s", path, w, text)
		}
	}
	for _, w := range not {
		if strings.Contains(body, w) {
			r.t.Errorf("%s shows %q", path, w)
		}
	}
	return body
}

// logIn clicks on a name at the provider.
func (r *reviewer) logIn(issuer, who string) {
	r.t.Helper()
	status, body := r.do(http.MethodGet, r.home+"/login?go=1", nil)
	m := regexp.MustCompile(`href="(/interaction/[^"?]+)`).FindStringSubmatch(body)
	if m == nil {
		r.t.Fatalf("no log-in: %d %.500s", status, body)
	}
	if status, body = r.do(http.MethodGet, issuer+m[1]+"?as="+who, nil); status != http.StatusOK {
		r.t.Fatalf("log in as %s: %d %.500s", who, status, body)
	}
}

// The page of a real replica, behind a real provider: what an agent may do and
// why it was refused comes from the cluster's documents, and somebody of one
// namespace learns nothing of another's.
func TestReviewPageInCluster(t *testing.T) {
	e := cluster.API(t)
	if err := e.InstallCRDs(t.Context()); err != nil {
		t.Fatal(err)
	}
	ns := e.Namespace(t, nil)
	a, b := e.Namespace(t, map[string]string{"attache.dev/inject": "enabled", "team": "invoicing"}), e.Namespace(t, map[string]string{"attache.dev/inject": "enabled"})
	if out, err := e.Kubectl(t.Context(), fmt.Sprintf(reviewDocuments, a, b), "create", "-f", "-"); err != nil {
		t.Fatal(out, err)
	}
	t.Cleanup(func() {
		_, _ = e.Kubectl(context.WithoutCancel(t.Context()), fmt.Sprintf(reviewDocuments, a, b), "delete", "--ignore-not-found", "-f", "-")
	})
	dir := t.TempDir()
	file := filepath.Join(dir, "records.db")
	writeStore(t, file, a, b)
	port := freePort(t)
	home := "https://localhost:" + port
	op, err := servers.StartOIDC(context.WithoutCancel(t.Context()), servers.OIDCOptions{
		Clients: []map[string]any{{"client_id": "page", "redirect_uris": []string{home + "/login/finish"}, "response_types": []string{"code"},
			"grant_types": []string{"authorization_code"}, "token_endpoint_auth_method": "none"}},
		People: map[string]map[string]any{"vic": {"groups": []string{"team-a"}}, "ada": {"groups": []string{"security"}}},
	})
	if errors.Is(err, servers.ErrMissing) && os.Getenv("ATTACHE_REQUIRE_SERVERS") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(op.Close)
	conf := filepath.Join(dir, "audit.yaml")
	if err := os.WriteFile(conf, fmt.Appendf(nil, reviewConfig, home, op.URL, a), 0o600); err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := e.WriteKubeconfig("review.kubeconfig", e.Config)
	if err != nil {
		t.Fatal(err)
	}
	startReplica(t, kubeconfig, ns, "--roles=issuer,ui", "--trust-domain=cluster.test", "--webhook-names=localhost",
		"--api-listen=127.0.0.1:"+freePort(t), "--discovery-listen=127.0.0.1:"+freePort(t), "--ui-listen=127.0.0.1:"+port,
		"--audit-dir="+filepath.Join(dir, "own"), "--audit-config="+conf, "--store=sqlite:"+file).ready(t)
	roots, err := e.Kubectl(t.Context(), "", "-n", ns, "get", "configmap", "attache-ca", "-o", `jsonpath={.data.roots\.pem}`)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(roots)) {
		t.Fatalf("no roots in %q", roots)
	}
	browser := func() *reviewer {
		jar, err := cookiejar.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		return &reviewer{t: t, home: home, c: &http.Client{Jar: jar, Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}}
	}
	agent := func(ns string) string {
		return "/agent?id=" + url.QueryEscape("spiffe://cluster.test/ns/"+ns+"/sa/invoices")
	}
	ofB := []string{"secret-plan", "read-plans", "plans.example.com"}

	ada := browser() // sees all: what is looked for below is on some page
	ada.logIn(op.URL, "ada")
	eventually(t, "the caches have what was written", func() error {
		if _, body := ada.do(http.MethodGet, home+agent(b), nil); !strings.Contains(body, "secret-plan") {
			return errors.New("no policy of b")
		}
		return nil
	})
	ada.shows(agent(b), http.StatusOK, append([]string{"cluster:rail-" + a + "/no-admin"}, ofB...), []string{"read-invoices", "reports-" + a})

	vic := browser()
	vic.shows("/", http.StatusUnauthorized, []string{"Log in"}, []string{"invoices"})
	vic.logIn(op.URL, "vic")
	// The provider is for a by the labels of its namespace: they were read.
	vic.shows(agent(a), http.StatusOK, []string{a + "/invoices/read-invoices", "cluster:rail-" + a + "/no-admin", "cluster:reports-" + a + "/report", "reports-" + a}, ofB)
	vic.shows("/denied?id=rec_a2", http.StatusOK, []string{"How it is decided", "read-invoices", "To allow just this", "methods: - DELETE"}, ofB)
	// A record of a that says to be b's opens nothing of b.
	vic.shows(agent(b), http.StatusOK, []string{"names no pod of this cluster"}, append(ofB, "cluster:rail"))
	vic.shows("/denied?id=rec_thief", http.StatusOK, []string{"names no pod of this cluster"}, append(ofB, "cluster:rail"))
	for _, path := range []string{"/denied?id=rec_b2", "/record/rec_b1", "/record/rec_b2"} {
		vic.shows(path, http.StatusNotFound, nil, ofB)
	}
	// What is shown follows the cluster.
	if out, err := e.Kubectl(t.Context(), "", "-n", a, "patch", "accesspolicy", "invoices", "--type=json", "-p",
		`[{"op": "replace", "path": "/spec/rules/0/paths", "value": ["/invoices/2026/**"]}]`); err != nil {
		t.Fatal(out, err)
	}
	eventually(t, "the page follows a change", func() error {
		if _, body := vic.do(http.MethodGet, home+agent(a), nil); !strings.Contains(body, "/invoices/2026/**") {
			return errors.New("the old rule is shown")
		}
		return nil
	})
	if out, err := e.Kubectl(t.Context(), "", "label", "namespace", a, "attache.dev/inject-"); err != nil {
		t.Fatal(out, err)
	}
	eventually(t, "nothing is in force where nothing is opted in", func() error {
		if _, body := vic.do(http.MethodGet, home+agent(a), nil); !strings.Contains(body, "not opted in any more") {
			return errors.New("rules are shown")
		}
		return nil
	})
}
