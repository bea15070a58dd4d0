package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
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
	"github.com/attache-dev/attache/api/crd"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/webhook/inject"
)

// RootsKey is the key of the ConfigMap that holds the roots of the sidecars'
// gRPC port, in PEM.
const RootsKey = "roots.pem"

// ClusterOptions are the parts of a [Cluster]. All but Check and
// Accept are required.
type ClusterOptions struct {
	Cache cache.Cache   // of the objects
	Live  client.Reader // of the API itself
	Fixed Fixed
	// Roots is the ConfigMap with RootsKey.
	Roots client.ObjectKey
	// Check finds the mistakes that package policy does.
	Check func(*api.Bundle) error
	// Accept is told of the templates that pods get from now on, before the
	// first pod: the issuer must accept their sidecars. It is called again
	// when they change, and often with the same; nil for nobody.
	Accept  func(context.Context, []inject.Template) error
	Metrics *Metrics
	Log     *slog.Logger
}

// Cluster is a [Source] from the caches of a cluster's objects. Settings are
// made once for each namespace and kind of pod, and again when one of the
// objects that concern it has changed.
type Cluster struct {
	ClusterOptions
	synced  []toolscache.InformerSynced
	flights singleflight.Group

	mu      sync.Mutex        // guards all below
	changes map[string]uint64 // counts those of a namespace's objects; "" of the cluster's
	entries map[string]*entry
	good    *v1alpha1.AttacheConfig // the last that could be used
	bad     string                  // why the newest cannot
}

// entry is what is known of one namespace.
type entry struct {
	version [2]uint64 // changes of the cluster and of the namespace
	until   time.Time // of one that was read live; zero for the cache's
	name    string
	plain   map[string]any // metadata, as inject takes it
	shared  inject.Config  // without providers
	catalog *api.Catalog

	mu   sync.Mutex // guards pods
	pods map[string]inject.Config
}

// Kinds lists what the API server must have, for [NewCluster] to watch it.
func Kinds() []schema.GroupVersionKind {
	var list []schema.GroupVersionKind
	for _, k := range crd.PolicyKinds() {
		list = append(list, crd.Kind(k))
	}
	return list
}

// NewCluster registers what it watches with the cache, which need not be
// started yet. It is ready when the cache is synced.
func NewCluster(ctx context.Context, o ClusterOptions) (*Cluster, error) {
	c := &Cluster{ClusterOptions: o, entries: map[string]*entry{}, changes: map[string]uint64{}}
	objects := []client.Object{namespaceMeta(), &corev1.LimitRange{}, &corev1.ConfigMap{}}
	for _, kind := range crd.PolicyKinds() {
		u := &unstructured.Unstructured{}
		u.SetGroupVersionKind(crd.Kind(kind))
		objects = append(objects, u)
	}
	for _, obj := range objects {
		i, err := o.Cache.GetInformer(ctx, obj, cache.BlockUntilSynced(false))
		if err != nil {
			return nil, fmt.Errorf("watch %T %s: %w", obj, obj.GetObjectKind().GroupVersionKind().Kind, err)
		}
		h, err := i.AddEventHandler(toolscache.ResourceEventHandlerFuncs{AddFunc: c.changed, UpdateFunc: c.updated, DeleteFunc: c.changed})
		if err != nil {
			return nil, err
		}
		c.synced = append(c.synced, h.HasSynced)
	}
	return c, nil
}

// changed notes whose settings are to be made anew.
func (c *Cluster) changed(v any) {
	if gone, ok := v.(toolscache.DeletedFinalStateUnknown); ok {
		v = gone.Obj
	}
	obj, ok := v.(client.Object)
	if !ok {
		return
	}
	namespace := obj.GetNamespace()
	switch obj.(type) {
	case *metav1.PartialObjectMetadata: // a namespace
		namespace = obj.GetName()
	case *corev1.ConfigMap:
		if client.ObjectKeyFromObject(obj) != c.Roots {
			return
		}
		namespace = ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes[namespace]++
}

// updated leaves out what changes nothing for us: status, and what a resync
// repeats.
func (c *Cluster) updated(before, after any) {
	a, okA := before.(client.Object)
	b, okB := after.(client.Object)
	if okA && okB && a.GetGeneration() == b.GetGeneration() && maps.Equal(a.GetLabels(), b.GetLabels()) && maps.Equal(a.GetAnnotations(), b.GetAnnotations()) {
		if _, plain := b.(*corev1.ConfigMap); !plain && a.GetGeneration() > 0 || a.GetResourceVersion() == b.GetResourceVersion() {
			return
		}
	}
	c.changed(after)
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

// version tells the states of what concerns a namespace apart.
func (c *Cluster) version(namespace string) [2]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return [2]uint64{c.changes[""], c.changes[namespace]}
}

// namespace returns what is known of a namespace. The API server calls only for
// namespaces that its own cache has as opted in: if ours does not, it is late
// or early, and the API decides.
func (c *Cluster) namespace(ctx context.Context, name string) (*entry, error) {
	c.mu.Lock()
	e, now := c.entries[name], [2]uint64{c.changes[""], c.changes[name]}
	c.mu.Unlock()
	if e != nil && e.version == now && (e.until.IsZero() || time.Now().Before(e.until)) {
		return e, nil
	}
	// Who waits for another's read shares its result, which may be of the
	// state before: as if the pod had come that much earlier.
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
	e := &entry{version: c.version(name), name: name, pods: map[string]inject.Config{}} // before the reads
	m := namespaceMeta()
	err := c.Cache.Get(ctx, client.ObjectKey{Name: name}, m)
	if err != nil || m.Labels[api.InjectLabel] != api.InjectEnabled {
		c.Metrics.live.Inc()
		e.until = time.Now().Add(liveFor)
		if err := c.Live.Get(ctx, client.ObjectKey{Name: name}, m); apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("%w: %q", ErrNamespace, name)
		} else if err != nil {
			return nil, fmt.Errorf("read namespace %q: %w", name, err)
		}
	}
	if e.plain, err = plainMeta(&m.ObjectMeta); err != nil {
		return nil, err
	}
	shared, config, err := c.common(ctx)
	if err != nil {
		return nil, err
	}
	e.shared = shared
	var ranges corev1.LimitRangeList
	if err := c.Cache.List(ctx, &ranges, client.InNamespace(name)); err != nil {
		return nil, fmt.Errorf("read LimitRanges: %w", err)
	}
	e.shared.LimitRange = limitRange(ranges.Items)
	e.shared.Owners, _ = api.Owners(&config.Spec.Cluster, name, m.Annotations)
	objects, err := c.objects(ctx, name)
	if err != nil {
		return nil, err
	}
	if e.catalog, err = c.catalog(objects, name, m.Labels); err != nil {
		return nil, fmt.Errorf("read objects: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) >= maxEntries {
		clear(c.entries)
	}
	c.entries[name] = e
	return e, nil
}

// common makes the settings that all namespaces share, of the newest
// AttacheConfig that can be used: a bad one does not stop pods.
func (c *Cluster) common(ctx context.Context) (inject.Config, *v1alpha1.AttacheConfig, error) {
	roots := &corev1.ConfigMap{}
	if err := c.Cache.Get(ctx, c.Roots, roots); err != nil || roots.Data[RootsKey] == "" {
		return inject.Config{}, nil, fmt.Errorf("ConfigMap %s has no %s yet, by which sidecars trust the control plane: the issuer role writes it", c.Roots, RootsKey)
	}
	config, err := c.readConfig(ctx)
	shared, bad := inject.Config{}, ""
	if err == nil {
		shared, err = c.Fixed.config(&config.Spec.Cluster, roots.Data[RootsKey])
	}
	if err != nil {
		bad = err.Error()
		c.mu.Lock()
		config = c.good
		c.mu.Unlock()
		if config == nil {
			return inject.Config{}, nil, err
		}
		if shared, err = c.Fixed.config(&config.Spec.Cluster, roots.Data[RootsKey]); err != nil {
			return inject.Config{}, nil, err
		}
	}
	c.inForce(config, bad)
	return shared, config, c.accept(ctx, shared)
}

// accept tells of the templates before a pod has one.
func (c *Cluster) accept(ctx context.Context, shared inject.Config) error {
	if c.Accept == nil {
		return nil
	}
	list, err := shared.Templates()
	if err != nil {
		return err
	}
	if err := c.Accept(ctx, list); err != nil {
		return fmt.Errorf("have the sidecars' templates accepted: %w", err)
	}
	return nil
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
	u.SetGroupVersionKind(crd.Kind(v1alpha1.KindAttacheConfig))
	if err := c.Cache.Get(ctx, client.ObjectKey{Name: api.ConfigName}, u); apierrors.IsNotFound(err) {
		return &v1alpha1.AttacheConfig{}, nil
	} else if err != nil {
		return nil, fmt.Errorf("read AttacheConfig %s: %w", api.ConfigName, err)
	}
	b, err := u.MarshalJSON()
	if err != nil {
		return nil, err
	}
	config := &v1alpha1.AttacheConfig{}
	if err := json.Unmarshal(b, config); err != nil {
		return nil, fmt.Errorf("%w: AttacheConfig %s: %w", inject.ErrConfig, api.ConfigName, err)
	}
	return config, nil
}
