package reconcile

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/crd"
)

// Reasons beside those of packages api and crd.
const (
	reasonNoSidecars = "NoSidecars"
	reasonNotInForce = "NotInForce"
	maxConditionText = 2048 // an API server takes 32 KiB
)

// statusLoop reports, and writes status while this replica leads. What it
// writes is compared first: nothing is written twice.
func (e *Engine) statusLoop(ctx context.Context) {
	leads := e.Elected == nil
	elected := e.Elected
	again := time.NewTicker(reportEvery)
	defer again.Stop()
	var reported string
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-elected:
			leads, elected = true, nil
		case <-e.wakeStatus:
		case <-e.Store.Changed():
		case <-again.C:
		}
		if !sleep(ctx, statusEvery) {
			return
		}
		v := e.snapshot()
		if v == nil {
			continue
		}
		own := e.ownReport()
		if print := fmt.Sprint(own.Sets, own.Pods); print != reported || e.Now().Sub(last) > reportEvery-statusEvery {
			if err := e.writeReport(ctx, own); err != nil {
				e.failed(ctx, err)
			} else {
				reported, last = print, e.Now()
			}
		}
		if leads {
			if err := e.writeAll(ctx, v, own); err != nil {
				e.failed(ctx, err)
			}
		}
	}
}

func (e *Engine) failed(ctx context.Context, err error) {
	if ctx.Err() == nil {
		e.metrics.errors.Inc()
		e.Log.WarnContext(ctx, "status not written, tried again", "cause", err)
	}
	time.AfterFunc(retryAfter, func() { poke(e.wakeStatus) })
}

// writeAll brings the status of every object up to date.
func (e *Engine) writeAll(ctx context.Context, v *view, own report) error {
	said, err := e.heard(ctx, own)
	if err != nil {
		return err
	}
	roots := e.checkRoots(ctx, v)
	rejected := 0
	var first error
	for i := range v.objects {
		o := &v.objects[i]
		if o.inForce != o.Generation {
			rejected++
		}
		if err := e.writeStatus(ctx, v, o, said, roots[o.Ref()].text); err != nil && first == nil {
			first = err
		}
	}
	e.metrics.rejected.Set(float64(rejected))
	if err := e.writeRevocations(ctx, v, said); err != nil && first == nil {
		first = err
	}
	return first
}

// status is what there is to say of an object.
func (v *view) status(o *object, said map[string]heard, unreadable string) crd.Status {
	accepted := metav1.Condition{Type: crd.ConditionAccepted, Status: metav1.ConditionTrue, Reason: crd.ReasonAccepted, Message: "in force"}
	refs := metav1.Condition{Type: crd.ConditionResolvedRefs, Status: metav1.ConditionTrue, Reason: crd.ReasonResolvedRefs, Message: "all references lead somewhere"}
	var bad, unresolved []string
	for _, p := range slices.Concat(o.problems, v.conflicts[o.Ref()]) {
		reason := cmp.Or(p.Reason, api.ReasonInvalid)
		c, list := &accepted, &bad
		if reason.Unresolved() {
			c, list = &refs, &unresolved
		}
		if len(*list) == 0 {
			c.Status, c.Reason = metav1.ConditionFalse, string(reason)
		}
		*list = append(*list, p.Text)
	}
	if len(bad) > 0 {
		accepted.Message = joined(append(bad, inForceText(o)))
	}
	if unreadable != "" && len(unresolved) == 0 {
		refs.Status, refs.Reason, refs.Message = metav1.ConditionFalse, ReasonSecretNotReadable, joined([]string{unreadable, "calls that need it are denied"})
	}
	if len(unresolved) > 0 {
		refs.Message = joined(append(unresolved, "such rules deny what they match"))
	}
	n, programmed := v.programmed(o, said)
	s := crd.Status{Conditions: []metav1.Condition{accepted, refs, programmed}, Sidecars: n}
	for i := range s.Conditions {
		s.Conditions[i].ObservedGeneration = o.Generation
	}
	if o.lost > 0 { // forgotten, it would be lost for good
		s.InForce = &crd.InForce{Generation: o.lost}
	}
	if o.inForce > 0 {
		s.InForce = &crd.InForce{Generation: o.inForce}
		if g, ok := v.standIns[o.Ref()]; ok && g.Generation == o.inForce {
			s.InForce.Spec = &runtime.RawExtension{Raw: g.Spec}
		}
	}
	return s
}

func inForceText(o *object) string {
	if o.lost > 0 {
		return fmt.Sprintf("generation %d was in force, and what it said is not known any more, so sidecars keep what they have and new ones get nothing; correct it, or delete it", o.lost)
	}
	switch o.inForce {
	case o.Generation:
		return "left out in those pods"
	case 0:
		return "nothing of it is in force"
	}
	return fmt.Sprintf("generation %d stays in force", o.inForce)
}

// programmed says how many sidecars have what is in force.
func (v *view) programmed(o *object, said map[string]heard) (*crd.Sidecars, metav1.Condition) {
	n, why := v.count(o, said)
	c := metav1.Condition{Type: crd.ConditionProgrammed, Status: metav1.ConditionFalse}
	c.Message = fmt.Sprintf("%d of %d sidecars have generation %d", n.Programmed, n.Total, o.inForce)
	switch {
	case o.inForce == 0:
		c.Reason, c.Message = reasonNotInForce, inForceText(o)
	case n.Rejected > 0:
		c.Reason = crd.ReasonRejected
		c.Message = joined([]string{fmt.Sprintf("%s; %d refused what they were sent: %s", c.Message, n.Rejected, why)})
	case o.inForce != o.Generation:
		c.Reason = reasonNotInForce
	case n.Total == 0:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, reasonNoSidecars, "no running sidecar is concerned"
	case n.Programmed < n.Total:
		c.Reason = crd.ReasonPending
	default:
		c.Status, c.Reason = metav1.ConditionTrue, crd.ReasonProgrammed
	}
	return &n, c
}

func joined(list []string) string {
	s := strings.Join(list, "; ")
	if len(s) > maxConditionText {
		s = strings.ToValidUTF8(s[:maxConditionText], "") + "…"
	}
	return s
}

// writeStatus applies the status of an object, if it says something new.
func (e *Engine) writeStatus(ctx context.Context, v *view, o *object, said map[string]heard, unreadable string) error {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(crd.Kind(o.Kind))
	if err := e.Cache.Get(ctx, client.ObjectKey{Namespace: o.Namespace, Name: o.Name}, u); err != nil {
		return client.IgnoreNotFound(err) // it is gone: the next view knows
	}
	if u.GetGeneration() != o.Generation {
		return nil // the next view is of the newer one
	}
	want := v.status(o, said, unreadable)
	var now crd.Status
	if err := statusOf(u, &now); err != nil {
		return err
	}
	before := now.Conditions
	want.Conditions = timed(now.Conditions, want.Conditions)
	changed, err := e.applyNew(ctx, u, now, want)
	if err != nil || !changed {
		return err
	}
	e.announce(u, before, want.Conditions)
	return nil
}

// timed gives conditions the time at which they became what they are.
func timed(now, want []metav1.Condition) []metav1.Condition {
	now = slices.Clone(now)
	out := make([]metav1.Condition, 0, len(want))
	for _, c := range want {
		meta.SetStatusCondition(&now, c)
		out = append(out, *meta.FindStatusCondition(now, c.Type))
	}
	return out
}

// statusOf reads the status of a custom resource.
func statusOf(u *unstructured.Unstructured, into any) error {
	data, err := json.Marshal(u.Object["status"])
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		return fmt.Errorf("%s %s: status: %w", u.GetKind(), u.GetName(), err)
	}
	return nil
}

// toMap is a status as JSON has it.
func toMap(status any) (map[string]any, error) {
	data, err := json.Marshal(status)
	if err != nil {
		return nil, err
	}
	var m map[string]any
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, err
	}
	dropNull(m)
	return m, nil
}

// dropNull takes empty times out, which a schema of times does not allow.
func dropNull(v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, f := range v {
			if f == nil {
				delete(v, k)
			}
			dropNull(f)
		}
	case []any:
		for _, f := range v {
			dropNull(f)
		}
	}
}

// applyNew applies a status that differs from what is, and reports whether it
// did.
func (e *Engine) applyNew(ctx context.Context, u *unstructured.Unstructured, is, want any) (bool, error) {
	before, err := toMap(is)
	if err != nil {
		return false, err
	}
	after, err := toMap(want)
	if err != nil || equality.Semantic.DeepEqual(before, after) {
		return false, err
	}
	return true, e.apply(ctx, u, after)
}

// apply writes the status by server-side apply.
func (e *Engine) apply(ctx context.Context, of *unstructured.Unstructured, status map[string]any) error {
	u := &unstructured.Unstructured{Object: map[string]any{"status": status}}
	u.SetGroupVersionKind(of.GroupVersionKind())
	u.SetNamespace(of.GetNamespace())
	u.SetName(of.GetName())
	u.SetUID(of.GetUID()) // not of another one by this name
	e.metrics.writes.WithLabelValues("status").Inc()
	err := e.Client.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.ForceOwnership, client.FieldOwner(FieldOwner))
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("write status of %s %s: %w", of.GetKind(), of.GetName(), err)
	}
	return nil
}

// announce tells of an object that is rejected, or accepted again, once.
func (e *Engine) announce(u *unstructured.Unstructured, before, after []metav1.Condition) {
	if e.Recorder == nil {
		return
	}
	for _, c := range after {
		if c.Type != crd.ConditionAccepted && c.Type != crd.ConditionResolvedRefs {
			continue
		}
		old := meta.FindStatusCondition(before, c.Type)
		was := old == nil || old.Status == metav1.ConditionTrue
		switch is := c.Status == metav1.ConditionTrue; {
		case !is && (was || old.Message != c.Message):
			e.metrics.writes.WithLabelValues("event").Inc()
			e.Recorder.Eventf(u, nil, corev1.EventTypeWarning, c.Reason, "Check", "%s", bounded(c.Message))
		case is && !was:
			e.metrics.writes.WithLabelValues("event").Inc()
			e.Recorder.Eventf(u, nil, corev1.EventTypeNormal, c.Reason, "Check", "%s", bounded(c.Message))
		}
	}
}

// bounded cuts text to what an Event's note may hold.
func bounded(s string) string {
	const most = 1000
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
