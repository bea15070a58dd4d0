package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/crd"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/webhook/inject"
)

// Validate is a [Validator] for our objects, by the loader and the compiler that
// the control plane and the sidecars use, and for the labels of namespaces.
func (c *Cluster) Validate(ctx context.Context, o Object) ([]Finding, error) {
	switch {
	case o.Group == "" && o.Kind == "Namespace":
		return c.validateNamespace(ctx, o)
	case o.Group == crd.GroupVersion().Group && slices.Contains(crd.PolicyKinds(), o.Kind):
		return c.validateObject(ctx, o)
	}
	return nil, nil
}

// maxFindings bounds what an author has to read at once.
const maxFindings = 20

// validateObject compares what is wrong without the object, or with the one
// before, with what is wrong with it.
func (c *Cluster) validateObject(ctx context.Context, o Object) ([]Finding, error) {
	raw, err := decodeObject(o.Raw)
	if err != nil {
		return []Finding{{Text: "object: " + err.Error()}}, nil
	}
	u := &unstructured.Unstructured{Object: raw}
	if u.GetDeletionTimestamp() != nil {
		return nil, nil // only its finalizers can change
	}
	fresh, err := asObject(u)
	if err != nil {
		return nil, err
	}
	fresh.Kind, fresh.Namespace = o.Kind, o.Namespace // of the request
	if fresh.Name == "" {
		fresh.Name = "generated"
	}
	old, err := c.objects(ctx, o.Namespace)
	if err != nil {
		return nil, err
	}
	labels := c.labels(ctx, o.Namespace)
	before, err := c.catalog(old, o.Namespace, labels)
	if err != nil {
		return nil, err
	}
	same := func(x api.Object) bool { return x.Ref() == fresh.Ref() }
	after, err := c.catalog(append(slices.DeleteFunc(slices.Clone(old), same), fresh), o.Namespace, labels)
	if err != nil {
		return nil, err
	}
	var found []Finding
	for _, p := range after.Problems()[fresh.Ref()] {
		found = append(found, Finding{Text: problemText(p), Warning: p.Reason.Unresolved()})
	}
	if o.Kind == v1alpha1.KindAttacheConfig {
		found = append(found, c.findConfig(fresh)...)
	}
	for _, ref := range sortedRefs(after.Problems()) {
		if ref == fresh.Ref() {
			continue
		}
		for _, p := range after.Problems()[ref] {
			if !slices.Contains(before.Problems()[ref], p) {
				found = append(found, Finding{Text: fmt.Sprintf("makes %s bad: %s", ref, problemText(p)), Warning: true})
			}
		}
	}
	if len(found) > maxFindings {
		found = found[:maxFindings]
	}
	return found, nil
}

func problemText(p api.Problem) string {
	if p.Ref.Field == "" {
		return p.Text
	}
	return p.Ref.Field + ": " + p.Text
}

func sortedRefs(m map[api.Ref]api.Problems) []api.Ref {
	var refs []api.Ref
	for r := range m {
		refs = append(refs, r)
	}
	slices.SortFunc(refs, func(a, b api.Ref) int { return strings.Compare(a.String(), b.String()) })
	return refs
}

// findConfig asks whether pods can be injected by a new AttacheConfig.
func (c *Cluster) findConfig(o api.Object) []Finding {
	config := &v1alpha1.AttacheConfig{}
	if err := json.Unmarshal(o.Spec, &config.Spec); err != nil {
		return []Finding{{Text: "spec: " + err.Error()}}
	}
	if _, err := c.Fixed.config(&config.Spec.Cluster, "roots"); err != nil {
		text := strings.TrimPrefix(err.Error(), inject.ErrConfig.Error()+": ")
		return []Finding{{Text: "spec.cluster: " + text}}
	}
	return nil
}

// labels of a namespace, as far as the cache knows them.
func (c *Cluster) labels(ctx context.Context, namespace string) map[string]string {
	m := namespaceMeta()
	if namespace == "" || c.Cache.Get(ctx, client.ObjectKey{Name: namespace}, m) != nil {
		return nil
	}
	return m.Labels
}

// validateNamespace looks at our labels and annotations of a namespace, of which
// a misspelt one would leave its pods without sidecar, or keep them from being
// made.
func (c *Cluster) validateNamespace(ctx context.Context, o Object) ([]Finding, error) {
	var ns metav1.PartialObjectMetadata
	if err := json.Unmarshal(o.Raw, &ns); err != nil {
		return nil, errors.New("namespace is no object")
	}
	var found []Finding
	warn := func(format string, args ...any) {
		found = append(found, Finding{Text: fmt.Sprintf(format, args...), Warning: true})
	}
	for k := range ns.Labels {
		if strings.HasPrefix(k, crd.GroupVersion().Group+"/") && !slices.Contains([]string{api.InjectLabel, api.ModeLabel, api.OptOutLabel}, k) {
			warn("metadata.labels[%s]: is not known; the labels are %s, %s and %s", k, api.InjectLabel, api.ModeLabel, api.OptOutLabel)
		}
	}
	if v, ok := ns.Labels[api.InjectLabel]; ok && v != api.InjectEnabled {
		warn("metadata.labels[%s]: is %.40q, so that pods are NOT injected; the value is %s", api.InjectLabel, v, api.InjectEnabled)
	}
	if v, ok := ns.Labels[api.OptOutLabel]; ok && v != "true" && v != "false" {
		warn("metadata.labels[%s]: is %.40q, which means false; the values are true and false", api.OptOutLabel, v)
	}
	if ns.Labels[api.InjectLabel] != api.InjectEnabled {
		return found, nil
	}
	config, _, err := c.common(ctx)
	if err != nil {
		warn("pods cannot be injected yet: %v", err)
		return found, nil
	}
	mode := ns.Labels[api.ModeLabel]
	switch allowed := config.AllowedModes(); {
	case mode != "" && !slices.Contains(allowed, inject.Mode(mode)):
		found = append(found, Finding{Text: fmt.Sprintf("metadata.labels[%s]: is %.40q, which the operator does not allow; choose one of %q or remove it", api.ModeLabel, mode, allowed)})
	case mode == "":
		mode = string(config.DefaultMode())
	}
	if level := ns.Labels[enforcePSA]; mode == string(inject.Transparent) && (level == "restricted" || level == "baseline") {
		warn("metadata.labels[%s]: is %s, which refuses the redirect of transparent mode; label the namespace %s=explicit, or exempt it", enforcePSA, level, api.ModeLabel)
	}
	owners, source := api.Owners(&v1alpha1.ClusterConfig{}, ns.Name, ns.Annotations)
	if v := ns.Annotations[api.OwnersAnnotation]; v != "" && (source == "" || len(owners) < strings.Count(v, ",")+1) {
		warn("metadata.annotations[%s]: has owners that cannot be read; write names of at most 128 characters, separated by commas", api.OwnersAnnotation)
	}
	return found, nil
}

const (
	enforcePSA = "pod-security.kubernetes.io/enforce"
)
