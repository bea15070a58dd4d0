package docs_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"go.yaml.in/yaml/v3"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	sigyaml "sigs.k8s.io/yaml"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/policy"
)

// manifest is a document of examples/kubernetes.
type manifest struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
	Spec     any
	text     []byte
}

func manifests(t *testing.T, glob string) []manifest {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, "examples", "kubernetes", glob))
	if err != nil || len(files) == 0 {
		t.Fatalf("found no %s: %v", glob, err)
	}
	var list []manifest
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for dec := yaml.NewDecoder(bytes.NewReader(data)); ; {
			var n yaml.Node
			if err := dec.Decode(&n); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			var m manifest
			if err := n.Decode(&m); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if m.text, err = yaml.Marshal(&n); err != nil {
				t.Fatal(err)
			}
			list = append(list, m)
		}
	}
	return list
}

// The documents of examples/kubernetes are good in a cluster, and give the
// workloads beside them what their manifests expect.
func TestClusterExample(t *testing.T) {
	o := api.Objects{
		TrustDomain: "cluster.local",
		Namespaces:  map[string]map[string]string{"agents": {"attache.dev/inject": "enabled"}},
		Check:       func(b *api.Bundle) error { _, err := policy.Compile(b); return err },
	}
	for _, m := range manifests(t, "*.yaml") {
		spec, err := json.Marshal(m.Spec)
		if err != nil {
			t.Fatal(err)
		}
		o.List = append(o.List, api.Object{Kind: m.Kind, Namespace: m.Metadata.Namespace, Name: m.Metadata.Name, Spec: spec})
	}
	catalog, err := api.NewCatalog(o)
	if err != nil {
		t.Fatal(err)
	}
	if p := catalog.Problems(); len(p) > 0 {
		t.Errorf("the cluster finds %v", p)
	}
	workloads := 0
	for _, m := range manifests(t, "agent/*.yaml") {
		var template corev1.PodTemplateSpec
		switch m.Kind {
		case "Namespace":
			into(t, m, &corev1.Namespace{})
			continue
		case "ServiceAccount":
			into(t, m, &corev1.ServiceAccount{})
			continue
		case "Deployment":
			var d appsv1.Deployment
			into(t, m, &d)
			template = d.Spec.Template
		case "Job":
			var j batchv1.Job
			into(t, m, &j)
			template = j.Spec.Template
		default:
			t.Fatalf("got kind %s", m.Kind)
		}
		workloads++
		account := template.Spec.ServiceAccountName
		s, err := catalog.ForPod(api.Pod{
			SPIFFEID: "spiffe://cluster.local/ns/" + m.Metadata.Namespace + "/sa/" + account, Namespace: m.Metadata.Namespace,
			ServiceAccount: account, Labels: template.Labels,
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Objects) != len(o.List) || len(s.Problems) > 0 {
			t.Errorf("%s %s gets %v (%v), want all %d documents", m.Kind, m.Metadata.Name, s.Objects, s.Problems, len(o.List))
		}
	}
	if workloads < 2 {
		t.Errorf("found %d workloads, want a Deployment and a Job", workloads)
	}
}

// into decodes a manifest and refuses fields that its kind does not have.
func into(t *testing.T, m manifest, object any) {
	t.Helper()
	if err := sigyaml.UnmarshalStrict(m.text, object); err != nil {
		t.Errorf("%s %s: %v", m.Kind, m.Metadata.Name, err)
	}
}
