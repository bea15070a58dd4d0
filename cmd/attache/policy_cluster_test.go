package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const clusterDocuments = `
apiVersion: attache.dev/v1alpha1
kind: ClusterCredentialProvider
metadata: {name: shared}
spec:
  destinations: [{host: api.example.com}]
  apiKey: {secretRef: {name: shared, key: key}}
  allowedNamespaces: {names: [team]}
---
apiVersion: attache.dev/v1alpha1
kind: ClusterAccessPolicy
metadata: {name: rails}
spec:
  rules:
  - {name: shared, hosts: [api.example.com], action: allow, credential: {provider: shared}}
  - {name: no-admin, hosts: ["*"], paths: ["/admin/**"], action: deny, reason: ask the platform team}
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: own, namespace: team}
spec:
  rules:
  - {name: all, hosts: ["other.example.com"], action: allow}
`

// Documents of a cluster are tried out on a laptop, but not run there.
func TestClusterDocuments(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cluster.yaml"), []byte(clusterDocuments), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		var out bytes.Buffer
		c, _ := root()
		c.SetOut(&out)
		c.SetErr(&out)
		c.SetArgs(args)
		if err := c.ExecuteContext(t.Context()); err != nil {
			out.WriteString(err.Error())
		}
		return out.String()
	}
	explain := func(namespace, url string) string {
		return run("policy", "explain", dir, "--as", "spiffe://example.org/ns/"+namespace+"/sa/a", "--namespace", namespace, "GET", url)
	}
	for _, tt := range []struct{ name, got, want string }{
		{"check", run("policy", "check", dir), "1 provider"},
		{"check warns", run("policy", "check", dir), "spec.apiKey.secretRef: is a Secret of a cluster; attache run refuses it"},
		{"granted", explain("team", "https://api.example.com/x"), `INJECT by rule "shared" of policy "cluster:rails"`},
		{"not granted", explain("other", "https://api.example.com/x"), `namespace "other" may not use`},
		{"guard rail", explain("team", "https://other.example.com/admin/x"), `DENY by rule "no-admin" of policy "cluster:rails"`},
		{"own rule", explain("team", "https://other.example.com/x"), `ALLOW by rule "all" of policy "team/own"`},
		{"another namespace's rule", explain("other", "https://other.example.com/x"), "is for other workloads"},
		{"run", run("run", "--config", dir, "--", "true"), "spec.apiKey.secretRef: is a Secret, which only the broker of a cluster reads; attache run takes keys from file, env or vault"},
	} {
		if !strings.Contains(tt.got, tt.want) {
			t.Errorf("%s: got %s\nwant %s", tt.name, tt.got, tt.want)
		}
	}
}
