package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/minting"
)

// rootsEvery is how often Secrets are looked at again: the author of a
// provider may make its Secret later, and nobody watches Secrets.
const rootsEvery = time.Minute

// ReasonSecretNotReadable is that of ResolvedRefs where the Secret of a
// provider does not exist, lacks the key, or is not granted to the broker.
const ReasonSecretNotReadable = "SecretNotReadable"

// root is what was found of a provider's Secret.
type root struct {
	generation int64
	at         time.Time
	text       string // why it cannot be read; empty: it can
}

// checkRoots looks at the Secrets of providers, as the broker would. The
// status loop alone calls it.
func (e *Engine) checkRoots(ctx context.Context, v *view) map[api.Ref]root {
	if e.Root == nil {
		return nil
	}
	now := e.Now()
	next := map[api.Ref]root{}
	for i := range v.objects {
		o := &v.objects[i]
		namespace := o.Namespace
		switch o.Kind {
		case v1alpha1.KindCredentialProvider:
		case v1alpha1.KindClusterCredentialProvider:
			namespace = e.Namespace
		default:
			continue
		}
		old, ok := e.roots[o.Ref()]
		if ok && old.generation == o.Generation && now.Sub(old.at) < rootsEvery {
			next[o.Ref()] = old
			continue
		}
		name, key := rootOf(o.Spec)
		if name == "" {
			continue
		}
		found := root{generation: o.Generation, at: now}
		ask, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := e.Root(ask, namespace, name, key)
		cancel()
		switch {
		case errors.Is(err, minting.ErrDenied):
			found.text = err.Error()
		case err != nil: // nothing is known of it now
			found.text = old.text
		}
		next[o.Ref()] = found
	}
	e.roots = next
	return next
}

// rootOf is the Secret of a provider, empty if it has none.
func rootOf(spec json.RawMessage) (name, key string) {
	var s v1alpha1.CredentialProviderSpec
	if json.Unmarshal(spec, &s) != nil {
		return "", ""
	}
	switch {
	case s.APIKey != nil && s.APIKey.SecretRef != nil:
		return s.APIKey.SecretRef.Name, s.APIKey.SecretRef.Key
	case s.OAuth2 != nil && s.OAuth2.ClientSecretRef != nil:
		return s.OAuth2.ClientSecretRef.Name, s.OAuth2.ClientSecretRef.Key
	case s.OAuth2 != nil && s.OAuth2.ClientCertificateRef != nil:
		return s.OAuth2.ClientCertificateRef.Name, "tls.key"
	}
	return "", ""
}
