package status

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// componentLabel is of the chart's pods; those of the record store are "audit".
const componentLabel = "app.kubernetes.io/component"

// defaultClass marks the StorageClass of claims that name none.
const defaultClass = "storageclass.kubernetes.io/is-default-class"

// readRecords warns of a record store that no node takes: nothing else here
// shows it, and calls are refused only once spools are full.
func (r *Report) readRecords(ctx context.Context, o Options) error {
	pods := &corev1.PodList{}
	if err := o.Reader.List(ctx, pods, client.InNamespace(o.Namespace), client.MatchingLabels{componentLabel: "audit"}); err != nil {
		return err
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		why := unscheduled(p)
		if why == "" {
			continue
		}
		w := fmt.Sprintf("pod %s/%s, which keeps the records, has no node, and records stay in their pods until it has: %s", p.Namespace, p.Name, why)
		if slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return v.PersistentVolumeClaim != nil }) {
			advice, err := classAdvice(ctx, o.Reader)
			if err != nil {
				return err
			}
			w += advice
		}
		r.Warnings = append(r.Warnings, w)
	}
	return nil
}

// unscheduled is why no node takes a pod, in the scheduler's words.
func unscheduled(p *corev1.Pod) string {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable {
			return short(c.Message)
		}
	}
	return ""
}

// classAdvice says what to do for a volume that is not made. The control plane's
// own service account may not read the classes; who asks by hand mostly may.
func classAdvice(ctx context.Context, c client.Reader) (string, error) {
	const what = "set audit.persistence.storageClass, or make a StorageClass the default"
	classes := &storagev1.StorageClassList{}
	switch err := c.List(ctx, classes); {
	case apierrors.IsForbidden(err):
		return "; if that is for its volume, and the cluster has no default StorageClass: " + what, nil
	case err != nil:
		return "", err
	case slices.ContainsFunc(classes.Items, func(s storagev1.StorageClass) bool { return s.Annotations[defaultClass] == "true" }):
		return "", nil
	}
	return "; this cluster has no default StorageClass: " + what, nil
}
