package reconcile

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/api/crd"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/internal/awsrole"
)

// Bounds of what is still held somewhere after a revocation.
const (
	defaultTTL     = 5 * time.Minute
	maxOutstanding = 100

	reasonAcknowledged = "Acknowledged"
)

// readRevocations hands the cluster's Revocations to the xDS server.
func (e *Engine) readRevocations(ctx context.Context) error {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(crd.Kind(v1alpha1.KindRevocation + "List"))
	if err := e.Cache.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list %s: %w", v1alpha1.KindRevocation, err)
	}
	var out []*controlpb.Revocation
	for i := range list.Items {
		r, err := revocation(&list.Items[i])
		if err != nil { // one bad one must not keep the others back
			e.Log.ErrorContext(ctx, "Revocation not carried out", "name", list.Items[i].GetName(), "cause", err)
			continue
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *controlpb.Revocation) int { return cmp.Compare(a.GetId(), b.GetId()) })
	return e.Store.SetRevocations(out)
}

// revocation is what a Revocation says, as sidecars get it.
func revocation(u *unstructured.Unstructured) (*controlpb.Revocation, error) {
	data, err := json.Marshal(u.Object["spec"])
	if err != nil {
		return nil, err
	}
	var s v1alpha1.RevocationSpec
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("spec: %w", err)
	}
	// The API server writes whole seconds: the one that the object was made in
	// counts whole, or what was minted earlier in it would live on.
	at := u.GetCreationTimestamp().Add(time.Second)
	if s.NotBefore != "" {
		if at, err = time.Parse(time.RFC3339, s.NotBefore); err != nil {
			return nil, fmt.Errorf("spec.notBefore: %w", err)
		}
	}
	if s.Provider == "" && s.Handle == "" && s.Task == "" && s.Owner == "" && s.PodUID == "" {
		return nil, fmt.Errorf("spec: names nothing")
	}
	return &controlpb.Revocation{
		Id: u.GetName(), Provider: s.Provider, Handle: s.Handle, Task: s.Task, Owner: s.Owner, PodUid: s.PodUID,
		NotBefore: timestamppb.New(at), Reason: s.Reason,
	}, nil
}

// outstanding is a sidecar that did not acknowledge a revocation.
type outstanding struct {
	uid          string
	pod          viewPod
	lastHeard    time.Time // zero: never
	latestExpiry time.Time // of anything that it may hold
}

// unacknowledged lists the sidecars that a revocation concerns and that did
// not acknowledge it, and counts those that did.
func (v *view) unacknowledged(r *controlpb.Revocation, said map[string]heard, created, now time.Time) (list []outstanding, have int) {
	for uid, p := range v.pods {
		if r.GetPodUid() != "" && r.GetPodUid() != uid || r.GetOwner() != "" && r.GetOwner() != p.owner {
			continue
		}
		h := said[uid]
		if h.Revocations[r.GetId()] {
			have++
			continue
		}
		o := outstanding{uid: uid, pod: p, lastHeard: h.At}
		// It goes on minting until its policy is too old, and what it mints then
		// lives for the longest lifetime of its providers. One that was not heard
		// since the revocation was heard before it at the latest: whoever comes
		// back is told before anything else.
		last := created
		if t := h.At.Add(time.Minute); !h.At.IsZero() && t.After(last) { // reported by the minute
			last = t
		}
		if last.After(now) {
			last = now
		}
		if o.latestExpiry = last.Add(api.PolicyLifetime + longest(p.selection)); o.latestExpiry.Before(now) {
			have++ // nothing is left of what it held
			continue
		}
		list = append(list, o)
	}
	slices.SortFunc(list, func(a, b outstanding) int {
		return cmp.Or(b.latestExpiry.Compare(a.latestExpiry), cmp.Compare(a.pod.namespace, b.pod.namespace), cmp.Compare(a.pod.name, b.pod.name))
	})
	return list, have
}

// longest is the longest lifetime of a credential of a pod.
func longest(s *api.Selection) time.Duration {
	most := defaultTTL
	for i := range s.Bundle.Providers {
		p := &s.Bundle.Providers[i].Spec
		most = max(most, p.TTL.D())
		if p.AWS != nil {
			most = max(most, awsrole.LeastSession, p.AWS.Duration.D())
		}
	}
	for i := range s.Bundle.Policies {
		for j := range s.Bundle.Policies[i].Spec.Rules {
			if c := s.Bundle.Policies[i].Spec.Rules[j].Credential; c != nil {
				most = max(most, c.TTL.D())
			}
		}
	}
	return most
}

// writeRevocations brings the status of Revocations up to date.
func (e *Engine) writeRevocations(ctx context.Context, v *view, said map[string]heard) error {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(crd.Kind(v1alpha1.KindRevocation + "List"))
	if err := e.Cache.List(ctx, list); err != nil {
		return fmt.Errorf("list %s: %w", v1alpha1.KindRevocation, err)
	}
	var first error
	for i := range list.Items {
		if err := e.writeRevocation(ctx, v, &list.Items[i], said); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (e *Engine) writeRevocation(ctx context.Context, v *view, u *unstructured.Unstructured, said map[string]heard) error {
	c := metav1.Condition{Type: crd.ConditionComplete, Status: metav1.ConditionFalse, ObservedGeneration: u.GetGeneration()}
	want := crd.RevocationStatus{}
	r, err := revocation(u)
	if err != nil {
		c.Reason, c.Message = string(api.ReasonInvalid), joined([]string{err.Error()})
	} else {
		open, have := v.unacknowledged(r, said, u.GetCreationTimestamp().Time, e.Now())
		want.Acknowledged, want.Total = int32(have), int32(have+len(open)) //nolint:gosec // pods of a cluster
		c.Reason, c.Message = crd.ReasonPending, fmt.Sprintf("%d of %d sidecars acknowledged", have, have+len(open))
		if len(open) == 0 {
			c.Status, c.Reason = metav1.ConditionTrue, reasonAcknowledged
		}
		e.observeRevocation(ctx, r.GetId(), r.GetReason(), have, have+len(open))
		for _, o := range open[:min(len(open), maxOutstanding)] {
			want.Outstanding = append(want.Outstanding, crd.OutstandingPod{
				Namespace: o.pod.namespace, Pod: o.pod.name, UID: o.uid,
				LastHeard: metav1.NewTime(o.lastHeard), LatestExpiry: metav1.NewTime(o.latestExpiry.Truncate(time.Minute).Add(time.Minute)),
			})
		}
	}
	var now crd.RevocationStatus
	if err := statusOf(u, &now); err != nil {
		return err
	}
	want.Conditions = timed(now.Conditions, []metav1.Condition{c})
	_, err = e.applyNew(ctx, u, now, want)
	return err
}
