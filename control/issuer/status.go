package issuer

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	coordv1 "k8s.io/api/coordination/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Attested is a pod with a live key.
type Attested struct {
	Namespace string    `json:"namespace"`
	Pod       string    `json:"pod"`
	UID       string    `json:"uid"`
	Template  string    `json:"template"`
	Image     string    `json:"image"` // of the sidecar
	Digest    string    `json:"digest"`
	Renewed   time.Time `json:"renewed"`
}

// Has reports whether the sidecar of p is of a.
func (a Accepted) Has(p Attested) bool {
	return a.Template == p.Template && a.matches(Image{Ref: p.Image, Digest: p.Digest})
}

// List returns the pods that hold an X.509-SVID or did lately, by namespace
// and name, from the leases in the control plane's namespace: for whoever
// counts templates before one is retired.
func List(ctx context.Context, c client.Reader, namespace string) ([]Attested, error) {
	list := &coordv1.LeaseList{}
	if err := c.List(ctx, list, client.InNamespace(namespace), client.MatchingLabels{leaseLabel: leaseLabelIs}); err != nil {
		return nil, err
	}
	out := make([]Attested, 0, len(list.Items))
	for i := range list.Items {
		l := &list.Items[i]
		ns, name, _ := strings.Cut(l.Annotations[leasePod], "/")
		a := Attested{Namespace: ns, Pod: name, UID: l.Annotations[leaseUID], Template: l.Annotations[leaseTemplate], Image: l.Annotations[leaseImage], Digest: l.Annotations[leaseDigest]}
		if l.Spec.RenewTime != nil {
			a.Renewed = l.Spec.RenewTime.Time
		}
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b Attested) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.UID, b.UID))
	})
	return out, nil
}
