package server

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api/crd"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/webhook/inject"
)

// store is a cache of a few objects; what it lacks is not found.
type store struct {
	cache.Cache
	namespaces map[string]map[string]string
	roots      string
	config     string // spec of the AttacheConfig in JSON; "" for none
	reads      int
}

func (s *store) Get(_ context.Context, key client.ObjectKey, to client.Object, _ ...client.GetOption) error {
	s.reads++
	missing := apierrors.NewNotFound(schema.GroupResource{}, key.Name)
	switch to := to.(type) {
	case *metav1.PartialObjectMetadata:
		labels, ok := s.namespaces[key.Name]
		if !ok {
			return missing
		}
		to.Name, to.Labels = key.Name, labels
	case *corev1.ConfigMap:
		to.Data = map[string]string{RootsKey: s.roots}
	case *unstructured.Unstructured:
		if s.config == "" {
			return missing
		}
		return to.UnmarshalJSON([]byte(`{"apiVersion":"attache.dev/v1alpha1","kind":"AttacheConfig","metadata":{"name":"default"},"spec":` + s.config + `}`))
	}
	return nil
}

func (s *store) List(context.Context, client.ObjectList, ...client.ListOption) error { return nil }

func newTestCluster(live, cached *store) *Cluster {
	return &Cluster{
		ClusterOptions: ClusterOptions{
			Cache: cached, Live: live, Metrics: NewMetrics(), Log: quiet(), Fixed: Fixed{Image: "sidecar", TrustDomain: "cluster.local"},
		},
		entries: map[string]*entry{}, changes: map[string]uint64{},
	}
}

var optedIn = map[string]string{"attache.dev/inject": "enabled"}

// A namespace that the cache does not know as opted in is read from the API,
// and nothing else ever is.
func TestLiveReads(t *testing.T) {
	live := &store{namespaces: map[string]map[string]string{"known": optedIn, "new": optedIn, "late": optedIn, "left": {}}}
	c := newTestCluster(live, &store{roots: "roots", namespaces: map[string]map[string]string{"known": optedIn, "late": {}, "left": {}}})
	for _, tt := range []struct {
		namespace string
		injected  bool
		reads     int
	}{{"known", true, 0}, {"known", true, 0}, {"new", true, 1}, {"late", true, 1}, {"left", false, 1}} {
		live.reads = 0
		s, err := c.Settings(t.Context(), Pod{Namespace: tt.namespace, ServiceAccount: "agent"})
		if err != nil {
			t.Fatal(err)
		}
		labels, _ := s.Namespace["labels"].(map[string]any)
		if got := labels["attache.dev/inject"] == "enabled"; got != tt.injected || live.reads != tt.reads {
			t.Errorf("%s: opted in %v after %d reads", tt.namespace, got, live.reads)
		}
	}
	if _, err := c.Settings(t.Context(), Pod{Namespace: "nowhere"}); !errors.Is(err, ErrNamespace) {
		t.Errorf("a namespace that is not there: %v", err)
	}
}

// Settings are made anew when an object that concerns the namespace changes,
// and not for others.
func TestSettingsFollowChanges(t *testing.T) {
	cached := &store{roots: "roots", namespaces: map[string]map[string]string{"a": optedIn}}
	c := newTestCluster(cached, cached)
	anew := func() bool {
		before := cached.reads
		if _, err := c.Settings(t.Context(), Pod{Namespace: "a", ServiceAccount: "agent"}); err != nil {
			t.Fatal(err)
		}
		return cached.reads > before
	}
	anew()
	policy := func(ns string, generation int64, version string) *unstructured.Unstructured {
		u := &unstructured.Unstructured{Object: map[string]any{}}
		u.SetGroupVersionKind(crd.Kind(v1alpha1.KindAccessPolicy))
		u.SetNamespace(ns)
		u.SetGeneration(generation)
		u.SetResourceVersion(version)
		return u
	}
	configMap := func(name string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "system", Name: name}}
	}
	c.Roots = client.ObjectKey{Namespace: "system", Name: "attache-ca"}
	ns := namespaceMeta()
	ns.Name = "a"
	for name, tt := range map[string]struct {
		change func()
		want   bool
	}{
		"nothing":              {func() {}, false},
		"a policy of it":       {func() { c.changed(policy("a", 1, "1")) }, true},
		"a policy of another":  {func() { c.changed(policy("b", 1, "1")) }, false},
		"a spec":               {func() { c.updated(policy("a", 1, "1"), policy("a", 2, "2")) }, true},
		"a status":             {func() { c.updated(policy("a", 1, "1"), policy("a", 1, "2")) }, false},
		"an object of all":     {func() { c.changed(policy("", 1, "1")) }, true},
		"the namespace":        {func() { c.changed(ns) }, true},
		"the roots":            {func() { c.updated(configMap("attache-ca"), configMapVersion(configMap("attache-ca"), "2")) }, true},
		"a resync":             {func() { c.updated(configMap("attache-ca"), configMap("attache-ca")) }, false},
		"another ConfigMap":    {func() { c.changed(configMap("attache-xds-1")) }, false},
		"something else's end": {func() { c.changed("nonsense") }, false},
	} {
		tt.change()
		if got := anew(); got != tt.want {
			t.Errorf("%s: made anew: %v", name, got)
		}
	}
}

func configMapVersion(m *corev1.ConfigMap, version string) *corev1.ConfigMap {
	m.ResourceVersion = version
	return m
}

// A bad AttacheConfig does not stop pods; the last good one stays in force. Only
// when there never was one, pods are refused.
func TestLastGoodConfig(t *testing.T) {
	cached := &store{roots: "roots", namespaces: map[string]map[string]string{"a": optedIn}}
	c := newTestCluster(cached, cached)
	get := func() (inject.Config, error) {
		c.changed(namespaceCalled("a"))
		s, err := c.Settings(t.Context(), Pod{Namespace: "a", ServiceAccount: "agent"})
		return s.Config, err
	}
	bad := `{"cluster":{"injection":{"mode":"transparent"},"nameservers":["nonsense"]}}`
	cached.config = bad
	if _, err := get(); !errors.Is(err, inject.ErrConfig) || !strings.Contains(err.Error(), "spec.cluster.nameservers[0]") {
		t.Errorf("bad from the start: %v", err)
	}
	cached.config = `{"cluster":{"injection":{"modes":["transparent"]},"nameservers":["10.96.0.10"]}}`
	good, err := get()
	if err != nil || good.Mode != inject.Transparent || len(good.Nameservers) != 1 || good.Nameservers[0] != netip.MustParseAddr("10.96.0.10") {
		t.Fatalf("good: %+v, %v", good, err)
	}
	cached.config = bad
	if kept, err := get(); err != nil || kept.Mode != inject.Transparent || len(kept.Nameservers) != 1 {
		t.Errorf("bad afterwards: %+v, %v", kept, err)
	}
	cached.roots = ""
	if _, err := get(); err == nil || !strings.Contains(err.Error(), RootsKey) {
		t.Errorf("without roots: %v", err)
	}
}

func namespaceCalled(name string) client.Object {
	m := namespaceMeta()
	m.Name = name
	return m
}

// Templates are accepted before a pod has one; if they are not, there is none.
func TestAcceptFirst(t *testing.T) {
	cached := &store{roots: "roots", namespaces: map[string]map[string]string{"a": optedIn}}
	c := newTestCluster(cached, cached)
	var got []inject.Template
	fail := errors.New("no")
	c.Accept = func(_ context.Context, list []inject.Template) error {
		got = list
		return fail
	}
	if _, err := c.Settings(t.Context(), Pod{Namespace: "a"}); !errors.Is(err, fail) || len(got) != 1 || got[0].Image != "sidecar" {
		t.Errorf("%v of %v", err, got)
	}
	fail = nil
	if _, err := c.Settings(t.Context(), Pod{Namespace: "a"}); err != nil {
		t.Error(err)
	}
}

func TestLimitRanges(t *testing.T) {
	list := func(kind corev1.LimitType, max, min string) corev1.LimitRange {
		q := func(s string) corev1.ResourceList {
			return corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(s), corev1.ResourceStorage: resource.MustParse("1")}
		}
		return corev1.LimitRange{Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{Type: kind, Max: q(max), Min: q(min)}}}}
	}
	got := limitRange([]corev1.LimitRange{
		list(corev1.LimitTypeContainer, "1Gi", "16Mi"), list(corev1.LimitTypeContainer, "512Mi", "32Mi"), list(corev1.LimitTypePod, "1Mi", "1Mi"),
	})
	if got != (inject.LimitRange{Memory: inject.Range{Min: "32Mi", Max: "512Mi"}}) {
		t.Errorf("%+v", got)
	}
}

// A variable belongs to the first provider that names it.
func TestProvidersVariables(t *testing.T) {
	provider := func(name string) v1alpha1.CredentialProvider {
		return v1alpha1.CredentialProvider{Metadata: v1alpha1.ObjectMeta{Name: name}, Spec: v1alpha1.CredentialProviderSpec{
			Placeholders: []v1alpha1.Placeholder{{Env: "KEY"}, {Env: name}},
			BaseURLs:     []v1alpha1.BaseURL{{Env: "URL", Host: name + ".example", Port: 443}},
		}}
	}
	c := inject.Config{Image: "x"}
	addProviders(&c, []v1alpha1.CredentialProvider{provider("A"), provider("B")})
	if len(c.Placeholders) != 3 || c.Placeholders[0].Provider != "A" || c.Placeholders[2].Env != "B" || len(c.BaseURLs) != 1 || c.BaseURLs[0].Provider != "A" {
		t.Errorf("%+v", c)
	}
	if err := c.Check(); err != nil {
		t.Error(err)
	}
}

// Labels that differ between pods of one owner do not make settings anew.
func TestPodKeys(t *testing.T) {
	a := podKey("sa", lasting(map[string]string{"app": "x", "statefulset.kubernetes.io/pod-name": "x-0"}))
	if b := podKey("sa", lasting(map[string]string{"app": "x", "statefulset.kubernetes.io/pod-name": "x-1"})); a != b {
		t.Error("two pods of a StatefulSet are of two kinds")
	}
	for _, other := range []string{podKey("other", map[string]string{"app": "x"}), podKey("sa", map[string]string{"app": "y"}), podKey("sa", nil)} {
		if other == a {
			t.Error("two kinds of pods are one")
		}
	}
}

func TestNamespaces(t *testing.T) {
	cached := &store{roots: "roots"}
	c := newTestCluster(cached, cached)
	for name, tt := range map[string]struct {
		ns, want string
		denied   bool
	}{
		"good":          {`{"labels":{"attache.dev/inject":"enabled","attache.dev/mode":"explicit"},"annotations":{"attache.dev/owners":"a@example.com, b@example.com"}}`, "", false},
		"not ours":      {`{"labels":{"app":"x"}}`, "", false},
		"misspelt":      {`{"labels":{"attache.dev/injekt":"enabled"}}`, "metadata.labels[attache.dev/injekt]: is not known", false},
		"another value": {`{"labels":{"attache.dev/inject":"true"}}`, `is "true", so that pods are NOT injected; the value is enabled`, false},
		"opt-out":       {`{"labels":{"attache.dev/inject":"enabled","attache.dev/allow-opt-out":"yes"}}`, `is "yes", which means false`, false},
		"a mode":        {`{"labels":{"attache.dev/inject":"enabled","attache.dev/mode":"transparent"}}`, `is "transparent", which the operator does not allow; choose one of ["explicit"]`, true},
		"owners":        {`{"labels":{"attache.dev/inject":"enabled"},"annotations":{"attache.dev/owners":"a,,b"}}`, "has owners that cannot be read", false},
	} {
		found, err := c.Validate(t.Context(), Object{Kind: "Namespace", Name: "a", Raw: []byte(`{"metadata":` + tt.ns + `}`)})
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case tt.want == "" && len(found) > 0:
			t.Errorf("%s: %v", name, found)
		case tt.want != "" && (len(found) != 1 || !strings.Contains(found[0].Text, tt.want) || found[0].Warning == tt.denied):
			t.Errorf("%s: %v; want %s", name, found, tt.want)
		}
	}
}
