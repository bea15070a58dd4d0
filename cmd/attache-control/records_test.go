package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/checkpoint"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/control/trail"
	"github.com/attache-dev/attache/internal/reads"
	"github.com/attache-dev/attache/test/cluster"
)

func TestRecordFlags(t *testing.T) {
	base := []string{"serve", "--namespace=a", "--roles=collector", "--kubeconfig=/nonexistent"}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no store":        {[]string{"--audit-dir=/x"}, "--store or --store-file must be given"},
		"two stores":      {[]string{"--audit-dir=/x", "--store=sqlite:/y", "--store-file=/z"}, "and not both"},
		"no folder":       {[]string{"--store=sqlite:/y"}, "--audit-dir is missing"},
		"no address":      {[]string{"--store=sqlite:/y", "--audit-dir=/x", "--audit-to=host"}, `--audit-to is "host"; must be HOST:PORT`},
		"another default": {[]string{"--store=sqlite:/y", "--audit-dir=/x", "--audit-on-full=forget"}, "must be refuse or overwrite"},
		"no port":         {[]string{"--store=sqlite:/y", "--audit-dir=/x", "--collector-listen=host"}, "--collector-listen"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := execute(t, append(base, c.args...)...)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v; want %q", err, c.want)
			}
		})
	}
}

// What the operator wants out of records is not in what the control plane
// records either: neither in a document nor in its difference.
func TestOwnRedaction(t *testing.T) {
	file := filepath.Join(t.TempDir(), "default.yaml")
	open := func(redact string) (*host, error) {
		t.Helper()
		if err := os.WriteFile(file, []byte("{apiVersion: attache.dev/v1alpha1, kind: AttacheConfig, metadata: {name: default}, spec: {audit: {redact: "+redact+"}}}"), 0o600); err != nil {
			t.Fatal(err)
		}
		h := &host{log: slog.New(slog.DiscardHandler), registry: prometheus.NewRegistry()}
		h.auditDir, h.auditMaxBytes, h.defaults = t.TempDir(), 64<<20, file
		return h, h.openTrail(t.Context())
	}
	for _, redact := range []string{"{patterns: ['(']}", "{patterns: ['x*']}", "{patterns: 1}", "[]"} {
		if h, err := open(redact); err == nil {
			t.Errorf("%s is taken: %v", redact, h.trail.Close())
		}
	}
	h, err := open("{patterns: ['patient-[0-9]+']}")
	if err != nil {
		t.Fatal(err)
	}
	object := func(n string) json.RawMessage { return json.RawMessage(`{"spec":{"note":"of patient-` + n + `"}}`) }
	if err := h.trail.Requested(t.Context(), trail.Request{ID: "r", Kind: "AccessPolicy", Namespace: "team", Name: "x", Operation: trail.OpUpdate, Before: object("17"), After: object("18")}); err != nil {
		t.Fatal(err)
	}
	if err := h.trail.Close(); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	files, err := filepath.Glob(filepath.Join(h.auditDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	if text := all.String(); strings.Contains(text, "patient-1") || strings.Count(text, "of "+audit.Mask) < 3 {
		t.Errorf("recorded: %s", text)
	}
	if _, err := (&options{defaults: file + "-not"}).redaction(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestAuditFile(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"empty":              {"", ""},
		"all":                {"retention: {keep: 24h, maxBytes: 5}\nsinks: [{type: otlp, endpoint: \"a:1\"}]\ncheckpoints: {every: 1m, sinks: [{name: a, type: directory, path: /x}]}", ""},
		"unknown":            {"retain: 1", `unknown field "retain"`},
		"no duration":        {"retention: {keep: long}", "retention.keep"},
		"a negative one":     {"checkpoints: {every: -1m}", "checkpoints.every"},
		"negative size":      {"retention: {maxBytes: -1}", "retention.maxBytes"},
		"two of one name":    {"sinks: [{type: otlp}, {type: otlp}]", "sinks[1].name"},
		"no time to verify":  {"checkpoints: {verify: daily}", "checkpoints.verify"},
		"roots of a folder":  {"checkpoints: {sinks: [{name: a, type: directory, path: /x, caFile: /y}]}", "caFile"},
		"a sink of no place": {"checkpoints: {sinks: [{name: a, type: directory}]}", "checkpoints.sinks[0]"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "audit.yaml")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := readAuditFile(file)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v; want %q", err, c.want)
			}
		})
	}
}

func TestCheckedSinks(t *testing.T) {
	got, err := checkedSinks([]v1alpha1.AuditSink{{Type: "otlp", Endpoint: "collector.example:4317"}})
	if err != nil || len(got) != 1 || got[0].Name != "otlp" {
		t.Errorf("%+v, %v", got, err)
	}
	for _, s := range []v1alpha1.AuditSink{{Type: "file"}, {Type: "otlp"}, {Type: "pigeon", Endpoint: "a:1"}, {Type: "objectstore"}} {
		if _, err := checkedSinks([]v1alpha1.AuditSink{s}); err == nil {
			t.Errorf("%+v was taken", s)
		}
	}
}

// process is a replica of the control plane in this process.
type process struct {
	probes string
	stop   func() error
	log    *syncBuffer
}

func startReplica(t *testing.T, kubeconfig, namespace string, args ...string) *process {
	t.Helper()
	p := &process{probes: "127.0.0.1:" + freePort(t), log: &syncBuffer{}}
	c, _ := root()
	c.SetArgs(append([]string{
		"serve", "--namespace=" + namespace, "--kubeconfig=" + kubeconfig, "--metrics-listen=" + p.probes, "--leader-elect=false",
		"--drain=0s", "--log-level=debug",
	}, args...))
	c.SetErr(p.log)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- c.ExecuteContext(ctx) }()
	var once sync.Once
	p.stop = func() (err error) {
		once.Do(func() { cancel(); err = <-done })
		return err
	}
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			text := p.log.String()
			t.Log(text[max(0, len(text)-5000):])
		}
	})
	return p
}

func (p *process) ready(t *testing.T) {
	t.Helper()
	eventually(t, "ready", func() error {
		res, err := http.Get("http://" + p.probes + "/readyz") //nolint:noctx // ends with the server
		if err != nil {
			return err
		}
		defer func() { _ = res.Body.Close() }()
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("%d", res.StatusCode)
		}
		return nil
	})
}

const recordWebhooks = `
apiVersion: v1
kind: Secret
metadata: {name: attache-webhook-cert, namespace: %[1]s}
---
apiVersion: v1
kind: Secret
metadata: {name: attache-audit-key, namespace: %[1]s}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: attache-records}
webhooks: []
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: attache-records}
webhooks:
  - name: objects.attache.dev
    clientConfig: {url: "https://localhost:%[2]s/validate"}
    rules: [{operations: [CREATE, UPDATE], apiGroups: [attache.dev], apiVersions: [v1alpha1], resources: [accesspolicies, clusteraccesspolicies, credentialproviders], scope: "*"}]
    failurePolicy: Fail
    sideEffects: NoneOnDryRun
    timeoutSeconds: 5
    admissionReviewVersions: [v1]
  - name: records.attache.dev
    clientConfig: {url: "https://localhost:%[2]s/record"}
    rules:
      - {operations: [DELETE], apiGroups: [attache.dev], apiVersions: [v1alpha1], resources: [accesspolicies, clusteraccesspolicies, credentialproviders], scope: "*"}
      - {operations: [CREATE, DELETE], apiGroups: [attache.dev], apiVersions: [v1alpha1], resources: [revocations], scope: "*"}
    failurePolicy: Ignore
    sideEffects: NoneOnDryRun
    timeoutSeconds: 5
    admissionReviewVersions: [v1]
  - name: namespaces.attache.dev
    clientConfig: {url: "https://localhost:%[2]s/validate"}
    rules: [{operations: [CREATE, UPDATE], apiGroups: [""], apiVersions: [v1], resources: [namespaces], scope: Cluster}]
    objectSelector: {matchExpressions: [{key: attache.dev/inject, operator: Exists}]}
    failurePolicy: Ignore
    sideEffects: NoneOnDryRun
    timeoutSeconds: 5
    admissionReviewVersions: [v1]
`

const recordedPolicy = `
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: invoices, namespace: %s}
spec:
  rules:
    - name: read
      hosts: [api.example.com]
      methods: [%s]
      action: allow
`

// What people change is in the store: who, what, and what came of it; through
// an outage of the collector, which runs without the authority's key.
func TestRecordsInCluster(t *testing.T) {
	e := cluster.API(t)
	if err := e.InstallCRDs(t.Context()); err != nil {
		t.Fatal(err)
	}
	ns := e.Namespace(t, nil)
	port, at := freePort(t), "127.0.0.1:"+freePort(t)
	if _, err := e.Kubectl(t.Context(), fmt.Sprintf(recordWebhooks, ns, port), "create", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = e.Kubectl(context.WithoutCancel(t.Context()), "", "delete", "mutatingwebhookconfigurations,validatingwebhookconfigurations", "attache-records")
	})
	kubeconfig, err := e.WriteKubeconfig("records.kubeconfig", e.Config)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	_, audit1, _ := strings.Cut(at, ":")
	control := startReplica(t, kubeconfig, ns, "--roles=webhook,issuer,xds,broker", "--sidecar-image=registry.example/attache-sidecar:v1",
		"--webhook-listen=127.0.0.1:"+port, "--webhook-names=localhost", "--webhook-configuration=attache-records",
		"--api-listen=127.0.0.1:"+freePort(t), "--discovery-listen=127.0.0.1:"+freePort(t),
		"--audit-dir="+filepath.Join(dir, "control"), "--audit-to=localhost:"+audit1, "--audit-cert-secret=attache-audit-cert")
	keep := func() *process {
		p := startReplica(t, kubeconfig, ns, "--roles=collector", "--audit-dir="+filepath.Join(dir, "own"), "--audit-cert-secret=attache-audit-cert",
			"--audit-key-secret=attache-audit-key", "--store=sqlite:"+filepath.Join(dir, "records.db"), "--collector-listen="+at, "--collector-http-listen=127.0.0.1:"+freePort(t))
		p.ready(t)
		return p
	}
	control.ready(t)

	team := e.Namespace(t, map[string]string{"attache.dev/inject": "enabled"})
	ana, err := e.User("ana@example.com", "system:masters", "payments")
	if err != nil {
		t.Fatal(err)
	}
	do := func(input string, args ...string) {
		t.Helper()
		if out, err := e.KubectlAs(t.Context(), ana, input, args...); err != nil {
			t.Fatal(out, err)
		}
	}
	do(fmt.Sprintf(recordedPolicy, team, "GET"), "create", "-f", "-")
	do(fmt.Sprintf(recordedPolicy, team, "POST"), "replace", "--dry-run=server", "-f", "-")
	do(fmt.Sprintf(recordedPolicy, team, "PUT"), "replace", "-f", "-")
	t.Setenv(reads.Env, filepath.Join(dir, "s"))
	first := keep() // the records before it were waiting
	search := func(query string, n int) []store.Row {
		t.Helper()
		var rows []store.Row
		eventually(t, query, func() error {
			db, err := store.Open(t.Context(), "sqlite:"+filepath.Join(dir, "records.db"), store.Options{ReadOnly: true})
			if err != nil {
				return err
			}
			defer func() { _ = db.Close() }()
			f, err := audit.ParseFilter(query, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			page, err := db.Search(t.Context(), store.Query{Filter: f, Oldest: true})
			if err != nil {
				return err
			}
			rows = nil
			for _, r := range page.Rows {
				// Other tests of this binary share the cluster.
				if r.Change == nil || r.Change.Namespace == team || r.Change.Kind != "AccessPolicy" {
					rows = append(rows, r)
				}
			}
			if len(rows) < n {
				return fmt.Errorf("%d rows", len(rows))
			}
			return nil
		})
		return rows
	}
	asked := search("event:"+audit.EventChangeRequested, 2)
	if len(asked) != 2 {
		t.Fatalf("%d changes were asked for: a dry run is none", len(asked))
	}
	c := asked[1].Change
	if c.By == nil || c.By.Username != "ana@example.com" || c.Operation != "update" || !strings.Contains(c.Diff, "- GET") || !strings.Contains(c.Diff, "+") || !strings.Contains(c.Text, "PUT") {
		t.Errorf("change %+v", c)
	}
	came := search("event:"+audit.EventPolicyChanged, 1)
	last := came[len(came)-1].Change
	if last.VersionAfter != c.VersionAfter || last.Text != c.Text {
		t.Errorf("what came is %s, what was asked for %s", last.VersionAfter, c.VersionAfter)
	}
	if rows := search("event:"+audit.EventKeyCreated, 3); !strings.HasPrefix(rows[0].Producer, "control/") {
		t.Errorf("keys: %+v", rows[0])
	}

	// The collector is away; what happens then is there when it is back.
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	do("", "delete", "accesspolicy", "-n", team, "invoices")
	do("", "label", "namespace", team, "attache.dev/inject-")
	do("{apiVersion: attache.dev/v1alpha1, kind: Revocation, metadata: {name: stolen-"+team+"}, spec: {handle: cred_"+strings.Repeat("0", 32)+", reason: stolen}}", "create", "-f", "-")
	keep()
	if rows := search("event:"+audit.EventChangeRequested, 3); rows[2].Change.Operation != "delete" || rows[2].Change.By.Username != "ana@example.com" || rows[2].Change.Text != "" {
		t.Errorf("deletion %+v", rows[2].Change)
	}
	if rows := search("event:"+trail.EventNamespaceChanged+" "+team, 2); !strings.Contains(rows[len(rows)-1].Change.Diff, "-label attache.dev/inject=enabled") {
		t.Errorf("opting out: %+v", rows[len(rows)-1].Change)
	}
	if rows := search("event:"+audit.EventRevokeOrdered, 1); rows[0].Event.Fields["reason"] != "stolen" || rows[0].Change.By.Username != "ana@example.com" {
		t.Errorf("revocation %+v", rows[0].Event)
	}
	// A command in the collector's pod tells what it reads.
	if err := reads.Tell(t.Context(), filepath.Join(dir, "s"), reads.Read{Event: audit.EventAuditQuery, Page: "attache audit search", Query: "owner:ana"}); err != nil {
		t.Fatal(err)
	}
	if rows := search("event:"+audit.EventAuditQuery, 1); rows[0].Event.Fields["query"] != "owner:ana" || !strings.HasPrefix(rows[0].Producer, "control/") {
		t.Errorf("reading %+v", rows[0])
	}
	// The end of the control plane's epoch is signed, and the collector knows by
	// whom.
	if err := control.stop(); err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), "sqlite:"+filepath.Join(dir, "records.db"), store.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	heads, err := db.Heads(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range heads {
		if len(h.Gaps) > 0 || !h.Chained {
			t.Errorf("head %+v", h)
		}
	}
}

// A bucket's prefix is read as attache audit verify reads it, with or without a
// slash at its end.
func TestPrefixOfABucket(t *testing.T) {
	t.Setenv("AWS_REGION", "eu-west-1")
	for prefix, want := range map[string]string{"": "", "cluster-1": "cluster-1/", "a/b/": "a/b/"} {
		out, err := checkpoints{Sinks: []checkpointSink{{Type: "objectLock", Bucket: "evidence", Prefix: prefix}}}.outside(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := out[0].(checkpoint.ObjectLock); got.Bucket != "evidence" || got.Prefix != want {
			t.Errorf("%q: %s %q, want %q", prefix, got.Bucket, got.Prefix, want)
		}
	}
}
