// Package reconcile makes the bundle of each pod from the custom resources of
// the cluster, hands it to control/xds, and tells in the resources' status
// what came of them.
//
// # Shape
//
// Nothing is computed for a pod alone. Objects are checked once a namespace
// (api.Catalog), documents are selected and rendered once for each service
// account and each set of labels that some policy selects by, and pods share
// them. A change of a namespace's objects costs that namespace; a change of
// the cluster's costs all. Changes are gathered for a moment, and what comes
// out equal is not sent.
//
// # Last good
//
// An object whose newest generation has mistakes stays in force as it was
// when it had none. The leader keeps that generation's spec in status.inForce
// for as long as the newer one is bad, so that replicas agree and a restart
// forgets nothing.
//
// All state comes from the API server: two replicas make equal bundles, with
// equal versions.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/api/crd"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/control/xds"
)

// Names that the cluster sees.
const (
	FieldOwner       = "attache-control"
	reportPrefix     = "attache-xds-"
	reportLabel      = "attache.dev/report"
	reportLabelValue = "xds"
)

// Times of the loop.
const (
	DefaultSettle = 100 * time.Millisecond // changes are gathered for so long
	retryAfter    = 2 * time.Second
	statusEvery   = 500 * time.Millisecond
	reportEvery   = time.Minute
	reportOld     = 3 * time.Minute // a report older than this counts no more
)

// Config of an [Engine]. Cache, Client, Store, Workload, Ping, Namespace and
// Replica are required.
type Config struct {
	Cache  cache.Cache   // has pods, namespaces and our resources
	Client client.Client // writes status and reports
	// Recorder tells of rejected objects; nil tells nobody.
	Recorder events.EventRecorder
	Store    *xds.Server
	// Workload is what is known of a pod (control/issuer).
	Workload func(context.Context, *corev1.Pod) (*controlpb.Workload, error)
	// Check finds mistakes of policies (policy.Compile).
	Check       func(*api.Bundle) error
	TrustDomain string
	// Nameservers of pods where the AttacheConfig names none.
	Nameservers []netip.Addr
	// Ping asks the API server for anything, not a cache.
	Ping func(context.Context) error
	// Root reads a key of a Secret as the broker would, and keeps nothing of it;
	// an error that matches minting.ErrDenied goes into the provider's status.
	// nil: Secrets are not looked at.
	Root func(ctx context.Context, namespace, name, key string) error
	// Namespace of the control plane, Replica the name of this pod.
	Namespace, Replica string
	// Elected is closed when this replica becomes the leader, which alone
	// writes status. nil: at once.
	Elected <-chan struct{}
	// Observer is told of what came into being. The zero Observer is nobody.
	Observer Observer
	Settle   time.Duration
	Registry prometheus.Registerer
	Log      *slog.Logger
	Now      func() time.Time
}

// Engine keeps bundles, revocations and status up to date.
type Engine struct {
	Config
	wake, wakeStatus chan struct{}
	metrics          *metrics
	synced           atomic.Bool
	current          atomic.Pointer[time.Time] // when the API server last answered

	// What the loop alone uses.
	objects  map[api.Ref]*object
	spaces   map[string]*space
	cluster  *space // objects without a namespace
	pods     map[string]*pod
	lastGood *lastGood
	observed observed

	revoked map[string]bool // Revocations told of, and whether complete; what the status loop alone uses

	roots map[api.Ref]root // what the status loop alone uses

	mu       sync.Mutex // guards all below
	view     *view
	audience map[string]*api.Selection // by pod uid
}

// RevocationKind is what the engine reads beside the kinds of policies.
func RevocationKind() schema.GroupVersionKind { return crd.Kind(v1alpha1.KindRevocation) }

// New checks c.
func New(c Config) (*Engine, error) {
	if c.Cache == nil || c.Client == nil || c.Store == nil || c.Workload == nil || c.Ping == nil || c.Namespace == "" || c.Replica == "" {
		return nil, errors.New("reconcile: Cache, Client, Store, Workload, Ping, Namespace and Replica are required")
	}
	if c.Settle <= 0 {
		c.Settle = DefaultSettle
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Engine{
		Config: c, wake: make(chan struct{}, 1), wakeStatus: make(chan struct{}, 1), metrics: newMetrics(c.Registry),
		objects: map[api.Ref]*object{}, spaces: map[string]*space{}, pods: map[string]*pod{}, audience: map[string]*api.Selection{},
		lastGood: newLastGood(),
	}, nil
}

// Watch asks the cache for what the engine reads, and to be told of changes.
// Call it before the cache starts, or its first sync does not cover them.
func (e *Engine) Watch(ctx context.Context) error {
	watched := []client.Object{&corev1.Pod{}, &corev1.Namespace{}, &corev1.ConfigMap{}}
	for _, k := range append([]string{v1alpha1.KindRevocation}, crd.PolicyKinds()...) {
		u := &unstructured.Unstructured{}
		u.SetGroupVersionKind(crd.Kind(k))
		watched = append(watched, u)
	}
	for _, o := range watched {
		i, err := e.Cache.GetInformer(ctx, o, cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("watch %T: %w", o, err)
		}
		if _, err := i.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { poke(e.wake) },
			UpdateFunc: e.updated,
			DeleteFunc: func(any) { poke(e.wake) },
		}); err != nil {
			return fmt.Errorf("watch %T: %w", o, err)
		}
	}
	return nil
}

// updated ignores what we wrote ourselves: status, and reports of replicas.
func (e *Engine) updated(before, after any) {
	a, ok1 := before.(metav1.Object)
	b, ok2 := after.(metav1.Object)
	if !ok1 || !ok2 {
		poke(e.wake)
		return
	}
	if a.GetResourceVersion() == b.GetResourceVersion() {
		return
	}
	if y, ok := after.(*unstructured.Unstructured); ok && a.GetGeneration() == b.GetGeneration() && a.GetDeletionTimestamp().IsZero() == b.GetDeletionTimestamp().IsZero() {
		if x, ok := before.(*unstructured.Unstructured); !ok || !inForceChanged(x, y) {
			return
		}
	}
	if c, ok := after.(*corev1.ConfigMap); ok {
		if c.Labels[reportLabel] == reportLabelValue {
			poke(e.wakeStatus)
		}
		return
	}
	poke(e.wake)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Strip takes out of a cached pod what nobody here reads, and nearly all of
// one that has no sidecar. It is a cache.ByObject.Transform for pods.
func Strip(o any) (any, error) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	p.ManagedFields = nil
	if p.Annotations[api.StatusAnnotation] == "" {
		p.Annotations, p.Spec, p.Status = nil, corev1.PodSpec{}, corev1.PodStatus{Phase: p.Status.Phase}
		return p, nil
	}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			c := &list[i]
			c.Command, c.Args, c.Env, c.EnvFrom, c.Ports = nil, nil, nil, nil, nil
			c.LivenessProbe, c.ReadinessProbe, c.StartupProbe, c.Lifecycle = nil, nil, nil, nil
		}
	}
	p.Spec.Affinity, p.Spec.Tolerations, p.Spec.TopologySpreadConstraints = nil, nil, nil
	return p, nil
}

// Ready says why bundles are not served yet, nil once they are.
func (e *Engine) Ready() error {
	if !e.synced.Load() {
		return errors.New("policies are not compiled yet")
	}
	return nil
}

// Current reports whether bundles can be trusted: the API server answered
// within the last minutes. It fits xds.Config.Current.
func (e *Engine) Current() bool {
	t := e.current.Load()
	return e.synced.Load() && t != nil && e.Now().Sub(*t) < reportOld
}

// NeedLeaderElection implements manager.LeaderElectionRunnable: every replica
// serves.
func (e *Engine) NeedLeaderElection() bool { return false }

// Start runs the engine until ctx ends, once the cache has synced.
func (e *Engine) Start(ctx context.Context) error {
	if !e.Cache.WaitForCacheSync(ctx) {
		return ctx.Err()
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { e.statusLoop(ctx) })
	wg.Go(func() { e.probe(ctx) })

	poke(e.wake)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.wake:
		}
		if !sleep(ctx, e.Settle) {
			return nil
		}
		started := e.Now()
		err := e.pass(ctx)
		e.metrics.passes.Observe(e.Now().Sub(started).Seconds())
		if err != nil {
			e.metrics.errors.Inc()
			e.Log.ErrorContext(ctx, "policies not brought up to date, the last ones stay", "again_in", retryAfter, "cause", err)
			if !sleep(ctx, retryAfter) {
				return nil
			}
			poke(e.wake)
			continue
		}
		if !e.synced.Swap(true) {
			e.Log.InfoContext(ctx, "policies compiled", "pods", len(e.pods), "objects", len(e.objects), "in", e.Now().Sub(started).String())
		}
		poke(e.wakeStatus)
	}
}

// sleep waits and reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// probe notes that the API server answers. A watch that broke without a word
// leaves a cache that looks fine.
func (e *Engine) probe(ctx context.Context) {
	for {
		ask, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := e.Ping(ask)
		cancel()
		if err == nil {
			now := e.Now()
			e.current.Store(&now)
		} else if ctx.Err() == nil {
			e.Log.WarnContext(ctx, "API server does not answer", "cause", err)
		}
		if !sleep(ctx, reportOld/6) {
			return
		}
	}
}
