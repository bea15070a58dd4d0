package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/webhook/inject"
)

// ConfigName is the AttacheConfig of a cluster.
const ConfigName = "default"

// RootsKey is the key of the ConfigMap that holds the roots of the sidecars'
// gRPC port, in PEM.
const RootsKey = "roots.pem"

const (
	labelInject = "attache.dev/inject"
	enabled     = "enabled"
)

// ClusterOptions are the parts of a [Cluster]. All but Select are required.
type ClusterOptions struct {
	Cache cache.Cache   // of the objects
	Live  client.Reader // of the API itself
	Fixed Fixed
	// Roots is the ConfigMap with RootsKey.
	Roots client.ObjectKey
	// Select returns the providers that a pod may use; nil for none.
	Select  func(ctx context.Context, pod Pod, namespace *metav1.ObjectMeta, config *v1alpha1.AttacheConfig) ([]v1alpha1.CredentialProvider, error)
	Watch   []schema.GroupVersionKind // what Select reads
	Metrics *Metrics
	Log     *slog.Logger
}

// Cluster is a [Source] from the caches of a cluster's objects. Settings are
// made once for each namespace and kind of pod, and again when any of the
// objects has changed.
type Cluster struct {
	ClusterOptions
	changes atomic.Uint64 // counts changes of the objects
	synced  []toolscache.InformerSynced
	flights singleflight.Group

	mu      sync.Mutex // guards all below
	entries map[string]*entry
	good    *v1alpha1.AttacheConfig // the last that could be used
	bad     string                  // why the newest cannot
}

// entry is what is known of one namespace.
type entry struct {
	changes uint64
	until   time.Time // of one that was read live; zero for the cache's
	meta    metav1.ObjectMeta
	plain   map[string]any // meta, as inject takes it
	shared  inject.Config  // without providers
	config  *v1alpha1.AttacheConfig

	mu   sync.Mutex // guards pods
	pods map[string]inject.Config
}

// GVK of the cluster's AttacheConfig.
var configGVK = schema.GroupVersionKind{Group: "attache.dev", Version: "v1alpha1", Kind: v1alpha1.KindAttacheConfig}

// NewCluster registers what it watches with the cache, which need not be
// started yet. It is ready when the cache is synced.
func NewCluster(ctx context.Context, o ClusterOptions) (*Cluster, error) {
	c := &Cluster{ClusterOptions: o, entries: map[string]*entry{}}
	objects := []client.Object{namespaceMeta(), &corev1.LimitRange{}, &corev1.ConfigMap{}}
	for _, gvk := range append([]schema.GroupVersionKind{configGVK}, o.Watch...) {
		u := &unstructured.Unstructured{}
		u.SetGroupVersionKind(gvk)
		objects = append(objects, u)
	}
	for _, obj := range objects {
		i, err := o.Cache.GetInformer(ctx, obj, cache.BlockUntilSynced(false))
		if err != nil {
			return nil, fmt.Errorf("watch %T %s: %w", obj, obj.GetObjectKind().GroupVersionKind().Kind, err)
		}
		h, err := i.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { c.changes.Add(1) },
			UpdateFunc: c.updated,
			DeleteFunc: func(any) { c.changes.Add(1) },
		})
		if err != nil {
			return nil, err
		}
		c.synced = append(c.synced, h.HasSynced)
	}
	return c, nil
}

// updated leaves out what a resync repeats.
func (c *Cluster) updated(before, after any) {
	a, okA := before.(metav1.Object)
	b, okB := after.(metav1.Object)
	if !okA || !okB || a.GetResourceVersion() != b.GetResourceVersion() {
		c.changes.Add(1)
	}
}

func namespaceMeta() *metav1.PartialObjectMetadata {
	m := &metav1.PartialObjectMetadata{}
	m.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	return m
}

// Ready says why pods cannot be injected yet.
func (c *Cluster) Ready(ctx context.Context) error {
	for _, synced := range c.synced {
		if !synced() {
			return errors.New("objects are not synced")
		}
	}
	_, _, err := c.common(ctx)
	return err
}

// Settings implements [Source].
func (c *Cluster) Settings(ctx context.Context, pod Pod) (Settings, error) {
	e, err := c.namespace(ctx, pod.Namespace)
	if err != nil {
		return Settings{}, err
	}
	config, err := e.forPod(ctx, c, pod)
	if err != nil {
		return Settings{}, err
	}
	return Settings{e.plain, config}, nil
}

// namespace returns what is known of a namespace. The API server calls only for
// namespaces that its own cache has as opted in: if ours does not, it is late
// or early, and the API decides.
func (c *Cluster) namespace(ctx context.Context, name string) (*entry, error) {
	now := c.changes.Load()
	c.mu.Lock()
	e := c.entries[name]
	c.mu.Unlock()
	if e != nil && e.changes == now && (e.until.IsZero() || time.Now().Before(e.until)) {
		return e, nil
	}
	v, err, _ := c.flights.Do(name, func() (any, error) { return c.read(context.WithoutCancel(ctx), name) })
	if err != nil {
		return nil, err
	}
	return v.(*entry), nil
}

const (
	liveTimeout = 2 * time.Second
	liveFor     = time.Second
	maxEntries  = 10_000 // namespaces; far above any cluster's
)

func (c *Cluster) read(ctx context.Context, name string) (*entry, error) {
	ctx, cancel := context.WithTimeout(ctx, liveTimeout)
	defer cancel()
	e := &entry{changes: c.changes.Load(), pods: map[string]inject.Config{}} // before the reads
	m := namespaceMeta()
	err := c.Cache.Get(ctx, client.ObjectKey{Name: name}, m)
	if err != nil || m.Labels[labelInject] != enabled {
		c.Metrics.live.Inc()
		e.until = time.Now().Add(liveFor)
		if err := c.Live.Get(ctx, client.ObjectKey{Name: name}, m); apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("%w: %q", ErrNamespace, name)
		} else if err != nil {
			return nil, fmt.Errorf("read namespace %q: %w", name, err)
		}
	}
	e.meta = m.ObjectMeta
	if e.plain, err = plainMeta(&m.ObjectMeta); err != nil {
		return nil, err
	}
	shared, config, err := c.common(ctx)
	if err != nil {
		return nil, err
	}
	e.shared, e.config = shared, config
	var ranges corev1.LimitRangeList
	if err := c.Cache.List(ctx, &ranges, client.InNamespace(name)); err != nil {
		return nil, fmt.Errorf("read LimitRanges: %w", err)
	}
	e.shared.LimitRange = limitRange(ranges.Items)
	e.shared.Owners, _ = api.Owners(&config.Spec.Cluster, name, m.Annotations)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) >= maxEntries {
		clear(c.entries)
	}
	c.entries[name] = e
	return e, nil
}

// plainMeta is what inject reads of a namespace.
func plainMeta(m *metav1.ObjectMeta) (map[string]any, error) {
	b, err := json.Marshal(map[string]any{"name": m.Name, "labels": m.Labels, "annotations": m.Annotations})
	if err != nil {
		return nil, err
	}
	return decodeObject(b)
}

// maxPods bounds the kinds of pods of one namespace that are remembered.
const maxPods = 256

func (e *entry) forPod(ctx context.Context, c *Cluster, pod Pod) (inject.Config, error) {
	if c.Select == nil {
		return e.shared, nil
	}
	key := podKey(pod)
	e.mu.Lock()
	config, ok := e.pods[key]
	e.mu.Unlock()
	if ok {
		return config, nil
	}
	providers, err := c.Select(ctx, pod, &e.meta, e.config)
	if err != nil {
		return inject.Config{}, fmt.Errorf("choose providers: %w", err)
	}
	config = e.shared
	addProviders(&config, providers)
	if err := config.Check(); err != nil {
		// A provider's author must not keep a whole namespace from running.
		c.Log.WarnContext(ctx, "providers' variables left out", "namespace", pod.Namespace, "err", err)
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

// podKey leaves out labels that differ between pods of one owner by design.
func podKey(p Pod) string {
	var b strings.Builder
	b.WriteString(p.ServiceAccount)
	for _, k := range slices.Sorted(maps.Keys(p.Labels)) {
		switch k {
		case "controller-uid", "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name", "job-name",
			"batch.kubernetes.io/job-completion-index", "statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index",
			"pod-template-hash", "controller-revision-hash":
			continue
		}
		fmt.Fprintf(&b, "\x00%s\x00%s", k, p.Labels[k])
	}
	return b.String()
}

// common makes the settings that all namespaces share, of the newest
// AttacheConfig that can be used: a bad one does not stop pods.
func (c *Cluster) common(ctx context.Context) (inject.Config, *v1alpha1.AttacheConfig, error) {
	roots := &corev1.ConfigMap{}
	if err := c.Cache.Get(ctx, c.Roots, roots); err != nil || roots.Data[RootsKey] == "" {
		return inject.Config{}, nil, fmt.Errorf("ConfigMap %s has no %s yet, by which sidecars trust the control plane: the issuer role writes it", c.Roots, RootsKey)
	}
	newest, err := c.readConfig(ctx)
	if err == nil {
		var shared inject.Config
		if shared, err = c.Fixed.config(&newest.Spec.Cluster, roots.Data[RootsKey]); err == nil {
			c.inForce(newest, "")
			return shared, newest, nil
		}
	}
	c.mu.Lock()
	good := c.good
	c.mu.Unlock()
	if good == nil {
		return inject.Config{}, nil, err
	}
	c.inForce(good, err.Error())
	shared, err := c.Fixed.config(&good.Spec.Cluster, roots.Data[RootsKey])
	return shared, good, err
}

// inForce remembers the config, and says once that the newest is bad.
func (c *Cluster) inForce(good *v1alpha1.AttacheConfig, bad string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.good = good
	if bad == c.bad {
		return
	}
	c.bad = bad
	if bad == "" {
		c.Metrics.config.Set(1)
		c.Log.Info("the AttacheConfig is in force again")
		return
	}
	c.Metrics.config.Set(0)
	c.Log.Error("the AttacheConfig cannot be used; the one before stays in force", "err", bad)
}

func (c *Cluster) readConfig(ctx context.Context) (*v1alpha1.AttacheConfig, error) {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(configGVK)
	if err := c.Cache.Get(ctx, client.ObjectKey{Name: ConfigName}, u); apierrors.IsNotFound(err) {
		return &v1alpha1.AttacheConfig{}, nil
	} else if err != nil {
		return nil, fmt.Errorf("read AttacheConfig %s: %w", ConfigName, err)
	}
	b, err := u.MarshalJSON()
	if err != nil {
		return nil, err
	}
	config := &v1alpha1.AttacheConfig{}
	if err := json.Unmarshal(b, config); err != nil {
		return nil, fmt.Errorf("%w: AttacheConfig %s: %w", inject.ErrConfig, ConfigName, err)
	}
	return config, nil
}
