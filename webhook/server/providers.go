package server

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
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

// objects lists ours of a namespace and of the cluster; of the cluster alone if
// the namespace is "".
func (c *Cluster) objects(ctx context.Context, namespace string) ([]api.Object, error) {
	var all []api.Object
	for _, kind := range crd.PolicyKinds() {
		var opts []client.ListOption
		if kind == v1alpha1.KindCredentialProvider || kind == v1alpha1.KindAccessPolicy {
			if namespace == "" {
				continue
			}
			opts = append(opts, client.InNamespace(namespace))
		}
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(crd.Kind(kind + "List"))
		if err := c.Cache.List(ctx, list, opts...); err != nil {
			return nil, fmt.Errorf("read %s: %w", kind, err)
		}
		for i := range list.Items {
			o, err := asObject(&list.Items[i])
			if err != nil {
				return nil, err
			}
			all = append(all, o)
		}
	}
	return all, nil
}

func asObject(u *unstructured.Unstructured) (api.Object, error) {
	spec, err := json.Marshal(u.Object["spec"])
	if err != nil {
		return api.Object{}, err
	}
	return api.Object{
		Kind: u.GetKind(), Namespace: u.GetNamespace(), Name: u.GetName(),
		Generation: u.GetGeneration(), Created: u.GetCreationTimestamp().Time, Spec: spec,
	}, nil
}

func (c *Cluster) catalog(objects []api.Object, namespace string, labels map[string]string) (*api.Catalog, error) {
	return api.NewCatalog(api.Objects{
		List: objects, Namespaces: map[string]map[string]string{namespace: labels},
		TrustDomain: c.Fixed.TrustDomain, Check: c.Check,
	})
}

// maxPods bounds the kinds of pods of one namespace that are remembered.
const maxPods = 256

// forPod adds the variables of the providers that concern a pod.
func (e *entry) forPod(ctx context.Context, c *Cluster, pod Pod) (inject.Config, error) {
	labels := lasting(pod.Labels)
	key := podKey(pod.ServiceAccount, labels)
	e.mu.Lock()
	config, ok := e.pods[key]
	e.mu.Unlock()
	if ok {
		return config, nil
	}
	s, err := e.catalog.ForPod(api.Pod{
		SPIFFEID:  fmt.Sprintf("spiffe://%s/ns/%s/sa/%s", c.Fixed.TrustDomain, e.name, pod.ServiceAccount),
		Namespace: e.name, ServiceAccount: pod.ServiceAccount, Labels: labels,
	})
	if err != nil {
		return inject.Config{}, fmt.Errorf("choose providers: %w", err)
	}
	config = e.shared
	addProviders(&config, s.Bundle.Providers)
	if err := config.Check(); err != nil {
		// A provider's author must not keep a whole namespace from running.
		c.Log.WarnContext(ctx, "variables of providers left out", "namespace", e.name, "err", err)
		config = e.shared
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.pods) >= maxPods {
		clear(e.pods)
	}
	e.pods[key] = config
	return config, nil
}

// lasting leaves out labels that controllers set to another value in each pod.
func lasting(labels map[string]string) map[string]string {
	l := maps.Clone(labels)
	for _, k := range []string{
		"controller-uid", "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-completion-index",
		"statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index",
	} {
		delete(l, k)
	}
	return l
}

func podKey(serviceAccount string, labels map[string]string) string {
	var b strings.Builder
	b.WriteString(serviceAccount)
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		fmt.Fprintf(&b, "\x00%s\x00%s", k, labels[k])
	}
	return b.String()
}

// plainMeta is what inject reads of a namespace.
func plainMeta(m *metav1.ObjectMeta) (map[string]any, error) {
	b, err := json.Marshal(map[string]any{"name": m.Name, "labels": m.Labels, "annotations": m.Annotations})
	if err != nil {
		return nil, err
	}
	return decodeObject(b)
}
