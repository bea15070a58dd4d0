package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/control/collector"
)

// podsThere are the cluster's pods, as far as this process has seen them.
type podsThere struct {
	cache  client.Reader
	synced func() bool
	own    string // the control plane's namespace
}

// uidField is the name of the pods' index.
const uidField = "metadata.uid"

// watchPods sees the cluster's pods from when c is started.
func watchPods(ctx context.Context, c cache.Cache, own string) (*podsThere, error) {
	if err := c.IndexField(ctx, &corev1.Pod{}, uidField, func(o client.Object) []string { return []string{string(o.GetUID())} }); err != nil {
		return nil, fmt.Errorf("watch pods: %w", err)
	}
	i, err := c.GetInformer(ctx, &corev1.Pod{}, cache.BlockUntilSynced(false))
	if err != nil {
		return nil, fmt.Errorf("watch pods: %w", err)
	}
	return &podsThere{cache: c, synced: i.HasSynced, own: own}, nil
}

// list is collector.Lost.Pods.
func (p *podsThere) list(ctx context.Context) (map[string]bool, error) {
	if !p.synced() {
		return nil, errors.New("the pods are not known yet")
	}
	list := &corev1.PodList{}
	if err := p.cache.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
		return nil, err
	}
	out := make(map[string]bool, len(list.Items))
	for i := range list.Items {
		x := &list.Items[i]
		if x.Status.Phase == corev1.PodSucceeded || x.Status.Phase == corev1.PodFailed {
			continue
		}
		out[string(x.UID)] = true
		if x.Namespace == p.own {
			out[collector.ControlPrefix+x.Name] = true
		}
	}
	return out, nil
}

// name is collector.Config.PodName.
func (p *podsThere) name(ctx context.Context, namespace, uid string) string {
	if !p.synced() {
		return "" // the cache would wait
	}
	list := &corev1.PodList{}
	err := p.cache.List(ctx, list, client.InNamespace(namespace), client.MatchingFields{uidField: uid}, client.UnsafeDisableDeepCopy)
	if err != nil || len(list.Items) != 1 {
		return ""
	}
	return list.Items[0].Name
}

// attested asks the store which pods were given an identity lately.
func attested(db *store.DB) func(context.Context, time.Time) ([]store.Producer, error) {
	return func(ctx context.Context, since time.Time) ([]store.Producer, error) {
		filter, err := audit.ParseFilter("event:"+audit.EventIdentityIssued+" since:"+since.UTC().Format(time.RFC3339), time.Now())
		if err != nil {
			return nil, err
		}
		seen := map[string]bool{}
		var out []store.Producer
		pages := 0
		for page, err := range db.Pages(ctx, store.Query{Filter: filter}) {
			if err != nil {
				return nil, err
			}
			for i := range page.Rows {
				e := page.Rows[i].Event
				if e == nil || e.Fields["kind"] != "x509" || e.Fields["pod_uid"] == "" || seen[e.Fields["pod_uid"]] {
					continue
				}
				seen[e.Fields["pod_uid"]] = true
				out = append(out, store.Producer{ID: e.Fields["pod_uid"], Kind: audit.KindSidecar, Namespace: e.Fields["namespace"], Pod: e.Fields["pod"]})
			}
			if pages++; pages == 100 { // a hundred thousand documents
				break
			}
		}
		return out, nil
	}
}
