package status

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// clusterOf has one pod of the record store, and storage classes.
type clusterOf struct {
	client.Reader
	pod     corev1.Pod
	classes []storagev1.StorageClass
	err     error // for classes
}

// List implements client.Reader.
func (c clusterOf) List(_ context.Context, l client.ObjectList, opts ...client.ListOption) error {
	switch l := l.(type) {
	case *corev1.PodList:
		var o client.ListOptions
		o.ApplyOptions(opts)
		if o.Namespace != "attache-system" || o.LabelSelector == nil || o.LabelSelector.String() != "app.kubernetes.io/component=audit" {
			return errors.New("asked for other pods: " + o.Namespace)
		}
		l.Items = []corev1.Pod{c.pod}
	case *storagev1.StorageClassList:
		l.Items = c.classes
		return c.err
	}
	return nil
}

// A cluster that makes no volume for the record store is told of, with what to
// do.
func TestRecordStoreWithoutANode(t *testing.T) {
	pod := func(s corev1.ConditionStatus, reason string, volume corev1.VolumeSource) corev1.Pod {
		return corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "attache-system", Name: "attache-audit-0"},
			Spec:       corev1.PodSpec{Volumes: []corev1.Volume{{Name: "data", VolumeSource: volume}}},
			Status: corev1.PodStatus{Conditions: []corev1.PodCondition{
				{Type: corev1.PodReady, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable},
				{Type: corev1.PodScheduled, Status: s, Reason: reason, Message: "pod has unbound immediate PersistentVolumeClaims"},
			}},
		}
	}
	claim := corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data-attache-audit-0"}}
	waiting := pod(corev1.ConditionFalse, corev1.PodReasonUnschedulable, claim)
	class := func(is string) []storagev1.StorageClass {
		return []storagev1.StorageClass{{ObjectMeta: metav1.ObjectMeta{Name: "disks", Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": is}}}}
	}
	const none, todo = "this cluster has no default StorageClass", "set audit.persistence.storageClass"
	for name, c := range map[string]struct {
		at        clusterOf
		want, not []string
	}{
		"no class":             {clusterOf{pod: waiting}, []string{"attache-system/attache-audit-0", "unbound immediate", none, todo}, nil},
		"none is the default":  {clusterOf{pod: waiting, classes: class("false")}, []string{none, todo}, nil},
		"another reason":       {clusterOf{pod: waiting, classes: class("true")}, []string{"has no node"}, []string{"StorageClass", todo}},
		"who may not see them": {clusterOf{pod: waiting, err: apierrors.NewForbidden(schema.GroupResource{Resource: "storageclasses"}, "", nil)}, []string{"has no node", "if that is for its volume", todo}, []string{none}},
		"no volume":            {clusterOf{pod: pod(corev1.ConditionFalse, corev1.PodReasonUnschedulable, corev1.VolumeSource{})}, []string{"has no node"}, []string{todo}},
		"it has a node":        {clusterOf{pod: pod(corev1.ConditionTrue, "", claim)}, nil, []string{"attache-audit-0"}},
		"held back by a gate":  {clusterOf{pod: pod(corev1.ConditionFalse, corev1.PodReasonSchedulingGated, claim)}, nil, []string{"attache-audit-0"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := &Report{}
			if err := r.readRecords(t.Context(), Options{Reader: c.at, Namespace: "attache-system"}); err != nil {
				t.Fatal(err)
			}
			var text bytes.Buffer
			if err := r.Text(&text, false); err != nil {
				t.Fatal(err)
			}
			wrong := ""
			if err := r.Wrong(); err != nil {
				wrong = err.Error()
			}
			for _, got := range []string{text.String(), wrong} {
				for _, w := range c.want {
					if !strings.Contains(got, w) {
						t.Errorf("no %q in %q", w, got)
					}
				}
				for _, n := range c.not {
					if strings.Contains(got, n) {
						t.Errorf("%q in %q", n, got)
					}
				}
			}
		})
	}
	away := errors.New("away")
	if err := (&Report{}).readRecords(t.Context(), Options{Reader: clusterOf{pod: waiting, err: away}, Namespace: "attache-system"}); !errors.Is(err, away) {
		t.Errorf("an error is kept back: %v", err)
	}
}
