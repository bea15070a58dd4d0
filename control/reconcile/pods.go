package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/control/xds"
)

// pod is what is known of a pod with a sidecar.
type pod struct {
	uid, namespace, name string
	version, nsLabels    string // at which workload was made
	workload             *controlpb.Workload
	group                *group
	bundle               *xds.Bundle
}

// group is what pods of one service account and equal labels share.
type group struct {
	selection *api.Selection
	objects   map[xds.Object]int64
}

// pass brings everything up to date with the cache.
func (e *Engine) pass(ctx context.Context) error {
	if err := e.readObjects(ctx); err != nil {
		return err
	}
	namespaces, err := e.readNamespaces(ctx)
	if err != nil {
		return err
	}
	if err := e.readRevocations(ctx); err != nil {
		return err
	}
	if err := e.checkSpaces(namespaces); err != nil {
		return err
	}
	set, gone, err := e.readPods(ctx, namespaces)
	if len(set) > 0 {
		e.Store.Set(set)
	}
	if len(gone) > 0 {
		e.Store.Delete(gone...)
		e.dropGroups()
	}
	e.publish()
	e.observe(ctx)
	return err
}

// checkSpaces makes the catalogs whose objects changed.
func (e *Engine) checkSpaces(namespaces map[string]map[string]string) error {
	bySpace := map[string][]*object{}
	for _, o := range e.objects {
		bySpace[o.Namespace] = append(bySpace[o.Namespace], o)
	}
	print := e.fingerprint(bySpace[""])
	if e.cluster == nil || e.cluster.print != print {
		s, err := e.check("", bySpace[""], nil, nil)
		if err != nil {
			return fmt.Errorf("check the cluster's objects: %w", err)
		}
		s.print = e.fingerprint(bySpace[""])
		e.cluster = s
		e.metrics.compiled.Inc()
	}
	var errs []error
	for ns, labels := range namespaces {
		if len(bySpace[ns]) == 0 && labels[api.InjectLabel] != api.InjectEnabled {
			delete(e.spaces, ns)
			continue
		}
		print := e.fingerprint(bySpace[ns], e.cluster.print, flat(labels))
		if old := e.spaces[ns]; old != nil && old.print == print {
			continue
		}
		s, err := e.check(ns, bySpace[ns], e.cluster.effective, labels)
		if err != nil { // others must not suffer from it
			errs = append(errs, fmt.Errorf("check namespace %s: %w", ns, err))
			continue
		}
		s.print = e.fingerprint(bySpace[ns], e.cluster.print, flat(labels))
		e.spaces[ns] = s
		e.metrics.compiled.Inc()
	}
	for ns := range e.spaces {
		if _, ok := namespaces[ns]; !ok {
			delete(e.spaces, ns)
		}
	}
	return errors.Join(errs...)
}

// readPods makes the bundles of pods that changed, or whose documents did, and
// lists the pods that are gone. Its error is of some pods; the others count.
func (e *Engine) readPods(ctx context.Context, namespaces map[string]map[string]string) (set map[string]*xds.Bundle, gone []string, err error) {
	list := &corev1.PodList{}
	if err := e.Cache.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
		return nil, nil, fmt.Errorf("list pods: %w", err)
	}
	set = map[string]*xds.Bundle{}
	seen := map[string]bool{}
	flats := make(map[string]string, len(namespaces))
	for ns, labels := range namespaces {
		flats[ns] = flat(labels)
	}
	var errs []error
	for i := range list.Items {
		p := &list.Items[i]
		labels, ok := namespaces[p.Namespace]
		if !ok || labels[api.InjectLabel] != api.InjectEnabled || p.Annotations[api.StatusAnnotation] == "" || ended(p) {
			continue
		}
		uid := string(p.UID)
		seen[uid] = true
		known := e.pods[uid]
		if known == nil {
			known = &pod{uid: uid, namespace: p.Namespace, name: p.Name}
		}
		changed, err := e.readPod(ctx, known, p, flats[p.Namespace])
		if err != nil {
			errs = append(errs, fmt.Errorf("pod %s/%s: %w", p.Namespace, p.Name, err))
			if known.bundle == nil {
				continue
			}
		}
		e.pods[uid] = known
		if changed {
			set[uid] = known.bundle
		}
	}
	for uid := range e.pods {
		if !seen[uid] {
			delete(e.pods, uid)
			gone = append(gone, uid)
		}
	}
	if len(errs) > 5 {
		errs = append(errs[:5], fmt.Errorf("and %d pods more", len(errs)-5))
	}
	return set, gone, errors.Join(errs...)
}

// dropGroups forgets what was selected for pods of which none is left. A label
// that differs from Job to Job would otherwise fill the memory.
func (e *Engine) dropGroups() {
	used := make(map[*group]bool)
	for _, p := range e.pods {
		used[p.group] = true
	}
	for _, s := range e.spaces {
		maps.DeleteFunc(s.shared, func(_ string, g *group) bool { return !used[g] })
	}
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// readPod brings k up to date and reports whether its bundle is another.
func (e *Engine) readPod(ctx context.Context, k *pod, p *corev1.Pod, nsLabels string) (bool, error) {
	fresh := false
	if k.workload == nil || k.version != p.ResourceVersion || k.nsLabels != nsLabels {
		w, err := e.Workload(ctx, p.DeepCopy())
		if err != nil {
			return false, err
		}
		k.workload, k.version, k.nsLabels, fresh = w, p.ResourceVersion, nsLabels, true
	}
	s := e.spaces[p.Namespace]
	if s == nil { // its objects could not be checked
		return false, nil
	}
	if s.held || e.cluster.held {
		if k.bundle == nil {
			k.bundle = &xds.Bundle{Held: true, Workload: k.workload}
			return true, nil
		}
		return false, nil
	}
	g, err := s.group(k.workload, e.cluster)
	if err != nil {
		return false, err
	}
	if !fresh && k.group == g && k.bundle != nil {
		return false, nil
	}
	k.group = g
	b := &xds.Bundle{Documents: g.selection.Documents, Audiences: g.selection.Audiences, Workload: k.workload, Objects: g.objects}
	if k.bundle != nil && k.bundle.Same(b) && sameObjects(k.bundle.Objects, b.Objects) {
		return false, nil
	}
	k.bundle = b
	return true, nil
}

// group selects what concerns the pods of a service account with the labels
// that matter.
func (s *space) group(w *controlpb.Workload, cluster *space) (*group, error) {
	var b strings.Builder
	b.WriteString(w.GetServiceAccount())
	for _, k := range s.keys {
		if v, ok := w.GetLabels()[k]; ok {
			fmt.Fprintf(&b, "\x00%s\x00%s", k, v)
		}
	}
	if g := s.shared[b.String()]; g != nil {
		return g, nil
	}
	sel, err := s.catalog.ForPod(api.Pod{SPIFFEID: w.GetSpiffeId(), Namespace: w.GetNamespace(), ServiceAccount: w.GetServiceAccount(), Labels: w.GetLabels()})
	if err != nil {
		return nil, err
	}
	g := &group{selection: sel, objects: map[xds.Object]int64{}}
	for _, r := range sel.Objects {
		o, ok := s.effective[r]
		if !ok {
			o = cluster.effective[r]
		}
		g.objects[xds.Object{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}] = o.Generation
	}
	s.shared[b.String()] = g
	return g, nil
}

func sameObjects(a, b map[xds.Object]int64) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

// Selection is what concerns a pod with a sidecar, for the issuer.
func (e *Engine) Selection(podUID string) (*api.Selection, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s, ok := e.audience[podUID]
	return s, ok
}

// Audiences are those that a pod may have JWT-SVIDs for.
func (e *Engine) Audiences(podUID string) []string {
	if s, ok := e.Selection(podUID); ok {
		return s.Audiences
	}
	return nil
}

// ClientIDs are those of OAuth clients that a pod may sign assertions as,
// beside its own SPIFFE ID.
func (e *Engine) ClientIDs(podUID string) []string {
	if s, ok := e.Selection(podUID); ok {
		return s.ClientIDs
	}
	return nil
}

// Frozen reports whether some policy that can concern pods of a namespace
// selects by a label.
func (e *Engine) Frozen(namespace, label string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.view == nil {
		return true
	}
	keys, ok := e.view.keys[namespace]
	return !ok || slices.Contains(keys, label)
}

// Cluster is the configuration of the cluster, nil until it is known.
func (e *Engine) Cluster() *v1alpha1.ClusterConfig {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.view == nil {
		return nil
	}
	return &e.view.config
}

// publish gives the status loop what it reads.
func (e *Engine) publish() {
	v := &view{pods: make(map[string]viewPod, len(e.pods)), conflicts: map[api.Ref]api.Problems{}, standIns: map[api.Ref]api.Object{}, keys: map[string][]string{}}
	selections := make(map[string]*api.Selection, len(e.pods))
	for uid, p := range e.pods {
		if p.bundle == nil || p.group == nil {
			continue
		}
		v.pods[uid] = viewPod{namespace: p.namespace, name: p.name, owner: p.workload.GetOwner(), bundle: p.bundle, selection: p.group.selection}
		selections[uid] = p.group.selection
	}
	v.config = e.cluster.catalog.Config().Cluster
	for ns, s := range e.spaces {
		v.keys[ns] = s.keys
		for _, g := range s.shared {
			for r, ps := range g.selection.Problems {
				for _, p := range ps {
					if !slices.Contains(v.conflicts[r], p) {
						v.conflicts[r] = append(v.conflicts[r], p)
					}
				}
			}
		}
	}
	for _, o := range e.objects {
		v.objects = append(v.objects, *o)
		if g, ok := e.lastGood.standIn(o); ok {
			v.standIns[o.Ref()] = g
		}
	}
	e.mu.Lock()
	e.view, e.audience = v, selections
	e.mu.Unlock()
	e.metrics.pods.Set(float64(len(v.pods)))
	e.metrics.objects.Set(float64(len(v.objects)))
}
