package crd_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/test/cluster"
)

// TestAPIServer installs the CRDs in a real API server: it takes every good
// document with strict validation, shows its columns, and refuses a bad one
// with the field's name.
func TestAPIServer(t *testing.T) {
	e := cluster.API(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := e.InstallCRDs(ctx); err != nil {
		t.Fatal(err)
	}
	ns := e.Namespace(t, nil)
	kubectl := func(stdin string, args ...string) (string, error) {
		return e.Kubectl(ctx, stdin, args...)
	}
	own := strings.NewReplacer(", namespace: team}", ", namespace: "+ns+"}", ", namespace: agents}", ", namespace: "+ns+"}", "name: team}", "name: "+ns+"}")
	files, _ := filepath.Glob("../../examples/*/*.yaml")
	more, _ := filepath.Glob("testdata/good/*.yaml")
	for _, name := range append(files, more...) {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, doc := range strings.Split("\n"+string(data), "\n---\n") {
			// A cluster has one configuration, a folder may call its own as it likes.
			if strings.Contains(doc, "\nkind: AttacheConfig\n") && !strings.Contains(doc, "{name: default}") {
				continue
			}
			doc = own.Replace(doc)
			if out, err := kubectl(doc, "apply", "--server-side", "--validate=strict", "-n", ns, "-f", "-"); err != nil {
				t.Errorf("%s: %v\n%s", name, err, out)
			}
		}
	}
	out, err := kubectl("", "get", "accesspolicies,ccprov,capol,attacheconfigs", "-n", ns)
	for _, want := range []string{"accesspolicy.attache.dev/agents", "PROGRAMMED", "legacy.internal.example", "clusteraccesspolicy.attache.dev/rails", "example.org"} {
		if !strings.Contains(out, want) {
			t.Errorf("got %s (%v), want %s", out, err, want)
		}
	}
	bad := `{apiVersion: attache.dev/v1alpha1, kind: AccessPolicy, metadata: {name: bad}, spec: {rules: [{name: r, hosts: [a.test], action: deny, credential: {provider: p}}]}}`
	if out, err := kubectl(bad, "apply", "-n", ns, "-f", "-"); err == nil || !strings.Contains(out+err.Error(), "spec.rules[0]: Invalid value") || !strings.Contains(out+err.Error(), "credential has no place in a rule that does not allow") {
		t.Errorf("got %s, %v", out, err)
	}
	if out, err := kubectl("", "patch", "attacheconfig", "default", "--type=merge", "-p", `{"spec":{"trustDomain":"other.example"}}`); err == nil || !strings.Contains(out+err.Error(), "spec.trustDomain") {
		t.Errorf("the trust domain was changed: %s, %v", out, err)
	}
	if out, err := kubectl("", "get", "crd", "-l", "gateway.networking.k8s.io/policy=Inherited", "-o", "name"); err != nil || strings.Count(out, "\n") != 2 {
		t.Errorf("got policies %s, %v", out, err)
	}
}
