package reconcile

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// TestRevocationCoversItsSecond: creation times have no fractions, so what was
// minted a moment before the object was made, in the same second, must be
// older than what the sidecars compare with.
func TestRevocationCoversItsSecond(t *testing.T) {
	created := time.Date(2026, 3, 1, 12, 0, 7, 0, time.UTC)
	u := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"provider": "reports"}}}
	u.SetCreationTimestamp(metav1.NewTime(created))
	r, err := revocation(u)
	if err != nil {
		t.Fatal(err)
	}
	if minted := created.Add(999 * time.Millisecond); !minted.Before(r.GetNotBefore().AsTime()) {
		t.Errorf("minted at %v outlives a revocation of %v", minted, r.GetNotBefore().AsTime())
	}
	u.Object["spec"] = map[string]any{"provider": "reports", "notBefore": "2026-03-01T11:00:00Z"}
	if r, err = revocation(u); err != nil || !r.GetNotBefore().AsTime().Equal(created.Add(-time.Hour-7*time.Second)) {
		t.Errorf("spec.notBefore is not taken as it is: %v, %v", r.GetNotBefore().AsTime(), err)
	}
}
