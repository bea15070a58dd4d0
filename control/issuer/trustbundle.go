package issuer

import (
	"context"
	"strings"

	certsv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// DefaultSigner names the signer of the control plane's certificate, for
// [KeysConfig.TrustBundle].
const DefaultSigner = "attache.dev/control"

// publishBundle writes the control plane's roots as a ClusterTrustBundle,
// which pods can mount and only who may attest for the signer can change
// (KEP-3257).
func (k *Keys) publishBundle(ctx context.Context) error {
	signer := k.cfg.TrustBundle
	if signer == "" {
		return nil
	}
	// The API demands that the name begins with the signer's.
	name := strings.ReplaceAll(signer, "/", ":") + ":roots"
	roots := string(k.ControlRoots())
	b := &certsv1.ClusterTrustBundle{}
	err := k.cfg.Client.Get(ctx, types.NamespacedName{Name: name}, b)
	switch {
	case apierrors.IsNotFound(err):
		b = &certsv1.ClusterTrustBundle{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app.kubernetes.io/part-of": "attache"}},
			Spec:       certsv1.ClusterTrustBundleSpec{SignerName: signer, TrustBundle: roots},
		}
		err = k.cfg.Client.Create(ctx, b)
	case err == nil && b.Spec.TrustBundle != roots:
		b.Spec.TrustBundle = roots
		err = k.cfg.Client.Update(ctx, b)
	}
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		return nil // another replica does it
	}
	return err
}
