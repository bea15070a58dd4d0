package broker

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/control/xds"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/all"
	"github.com/attache-dev/attache/policy"
)

// compiledSets is how many sets of documents are kept compiled. Pods of one
// namespace and service account share one.
const compiledSets = 256

// compiled is what one set of documents says, ready to decide and to mint.
type compiled struct {
	policy    *policy.Set
	providers map[string]provider // by NAMESPACE/NAME, or NAME of a cluster's
}

type provider struct {
	name   string         // as rules name it
	root   string         // the Secret
	minter minting.Minter // nil: a relay puts its credentials on
}

// compile returns the compiled form of a bundle's documents: the very bytes
// that the sidecar got.
func (s *Server) compile(b *xds.Bundle) (*compiled, error) {
	key := b.Digest()
	if c, ok := s.compiled.Get(key); ok {
		return c, nil
	}
	docs, err := api.ParseFor(api.PlacePod, "bundle", b.Documents)
	if err != nil {
		return nil, fmt.Errorf("%w: the pod's policy cannot be read: %w", minting.ErrUnavailable, err)
	}
	set, err := policy.Compile(docs)
	if err != nil {
		return nil, fmt.Errorf("%w: the pod's policy cannot be compiled: %w", minting.ErrUnavailable, err)
	}
	c := &compiled{policy: set, providers: map[string]provider{}}
	for _, p := range docs.Providers {
		if !api.NeedsBroker(&p.Spec) {
			continue
		}
		namespace, ref := s.c.Namespace, p.Metadata.Name
		if p.Metadata.Namespace != "" {
			namespace, ref = p.Metadata.Namespace, p.Metadata.Namespace+"/"+p.Metadata.Name
		}
		if api.ByRelay(&p.Spec) { // it never leaves the control plane
			c.providers[ref] = provider{name: p.Metadata.Name, root: namespace + "/" + RootName(&p.Spec)}
			continue
		}
		m, err := all.New(p, minting.Deps{
			Client: ClientFor(s.c.Client, p.Metadata.Namespace), Logger: s.c.Log, Now: s.c.Now,
			Root: func(ctx context.Context, name, key string) (secret.Value, error) {
				return s.c.Secrets.Read(ctx, namespace, name, key)
			},
		})
		if err != nil {
			return nil, fmt.Errorf("%w: %w", minting.ErrDenied, err)
		}
		c.providers[ref] = provider{name: p.Metadata.Name, root: namespace + "/" + RootName(&p.Spec), minter: m}
	}
	s.compiled.Add(key, c)
	return c, nil
}

// RootName is the Secret of a provider that api.NeedsBroker.
func RootName(s *v1alpha1.CredentialProviderSpec) string {
	switch {
	case s.APIKey != nil && s.APIKey.SecretRef != nil:
		return s.APIKey.SecretRef.Name
	case s.OAuth2.ClientSecretRef != nil:
		return s.OAuth2.ClientSecretRef.Name
	}
	return s.OAuth2.ClientCertificateRef.Name
}

// ClientFor is how the authorization servers of a provider of a namespace are
// reached. The control plane stands where tenants do not: what they write must
// not steer its connections into private networks, which pinned addresses can.
func ClientFor(client func([]string, []byte) *http.Client, namespace string) func([]string, []byte) *http.Client {
	return func(addresses []string, caPEM []byte) *http.Client {
		if namespace != "" && len(addresses) > 0 {
			return &http.Client{Transport: pinned{}}
		}
		return client(addresses, caPEM)
	}
}

// pinned refuses to connect.
type pinned struct{}

// RoundTrip implements http.RoundTripper.
func (pinned) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("the broker goes to pinned addresses for the cluster's providers only; share this one as a ClusterCredentialProvider")
}
