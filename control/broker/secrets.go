package broker

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
)

// Secrets reads one key of one Secret. Errors match minting.ErrDenied or
// minting.ErrUnavailable and hold nothing of the Secret.
type Secrets interface {
	Read(ctx context.Context, namespace, name, key string) (secret.Value, error)
}

// Cluster reads Secrets of the cluster: live and by name, so that it needs no
// more than get on those that the operator granted, and a changed root is used
// at once.
type Cluster struct {
	Client typedv1.SecretsGetter
	// Own are the control plane's own Secrets, as NAMESPACE/NAME: keys that
	// sign identities are no roots of providers, whoever names them so.
	Own []string
}

// foreign are types of Secrets that belong to Kubernetes or Helm: no root of a
// provider, whoever names them as one.
var foreign = map[corev1.SecretType]bool{
	corev1.SecretTypeServiceAccountToken: true,
	corev1.SecretTypeBootstrapToken:      true,
	"helm.sh/release.v1":                 true,
}

// Read implements [Secrets].
func (c Cluster) Read(ctx context.Context, namespace, name, key string) (secret.Value, error) {
	if slices.Contains(c.Own, namespace+"/"+name) {
		return secret.Value{}, fmt.Errorf("%w: Secret %s/%s is the control plane's own", minting.ErrDenied, namespace, name)
	}
	s, err := c.Client.Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return secret.Value{}, fmt.Errorf("%w: Secret %s/%s does not exist", minting.ErrDenied, namespace, name)
	case apierrors.IsForbidden(err):
		return secret.Value{}, fmt.Errorf("%w: the broker may not read Secret %s/%s; grant its service account get on it (broker.secrets of the chart)", minting.ErrDenied, namespace, name)
	case err != nil:
		return secret.Value{}, fmt.Errorf("%w: read Secret %s/%s: %s", minting.ErrUnavailable, namespace, name, apierrors.ReasonForError(err))
	case foreign[s.Type]:
		return secret.Value{}, fmt.Errorf("%w: Secret %s/%s is a %s, which is no root of a provider", minting.ErrDenied, namespace, name, s.Type)
	}
	v, ok := s.Data[key]
	if !ok {
		return secret.Value{}, fmt.Errorf("%w: Secret %s/%s has no key %q", minting.ErrDenied, namespace, name, key)
	}
	return secret.New(string(v)), nil
}
