package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/control/broker"
	"github.com/attache-dev/attache/control/xds"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/injector"
	"github.com/attache-dev/attache/injector/guard"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/all"
	"github.com/attache-dev/attache/proxy/pipeline"
)

const (
	// rootFor is how long a root is used before its Secret is read again.
	rootFor = time.Minute
	// setIdle is how long documents that no call uses stay compiled.
	setIdle = 10 * time.Minute
	// Sealed values of the pods that share documents.
	maxSealed = 4096
	sealedFor = time.Hour
)

// set is what one set of documents says, ready to decide and to send. Pods of
// one service account share it.
type set struct {
	pipe  *pipeline.Pipeline
	cache *minting.Cache
	roots map[string]string // Secret by provider
	used  time.Time         // guarded by Server.mu
}

// compile returns the compiled form of a bundle's documents: the very bytes
// that the sidecar got.
func (s *Server) compile(b *xds.Bundle) (*set, error) {
	key, now := b.Digest(), s.c.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.sets[key]; ok {
		c.used = now
		return c, nil
	}
	c, err := s.newSet(b.Documents)
	if err != nil {
		return nil, err
	}
	for k, old := range s.sets {
		if now.Sub(old.used) > setIdle && old.pipe.Live() == 0 {
			delete(s.sets, k)
			go s.discard(old)
		}
	}
	c.used = now
	s.sets[key] = c
	return c, nil
}

// discard ends the credentials that a set minted.
func (s *Server) discard(c *set) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := c.cache.Close(ctx); err != nil {
		s.c.Log.Warn("relay: not every credential was revoked; they end by themselves", "cause", err)
	}
}

func (s *Server) newSet(documents []byte) (*set, error) {
	docs, err := api.ParseFor(api.PlacePod, "bundle", documents)
	if err != nil {
		return nil, fmt.Errorf("the pod's policy cannot be read: %w", err)
	}
	c := &set{roots: map[string]string{}}
	minters := map[string]minting.Minter{}
	for i := range docs.Providers {
		p := &docs.Providers[i]
		if !api.ByRelay(&p.Spec) {
			continue
		}
		if !api.NeedsBroker(&p.Spec) { // the loader refuses it
			return nil, fmt.Errorf("provider %s: its root is no Secret", p.Metadata.Name)
		}
		// Placeholders are random for each pod; its sidecar has looked for them.
		p.Spec.Placeholders, p.Spec.Inject.RequirePlaceholder = nil, new(bool)
		if minters[p.Metadata.Name], err = s.minter(docs, *p); err != nil {
			return nil, err
		}
		c.roots[p.Metadata.Name] = s.namespaceOf(p) + "/" + broker.RootName(&p.Spec)
	}
	proofs := injector.NewProofs(s.c.Now)
	state, _, err := pipeline.NewState(docs, proofs)
	if err != nil {
		return nil, err
	}
	c.cache = minting.NewCache(minting.CacheOptions{Minter: minting.NewRouter(minters), Logger: s.c.Log, Now: s.c.Now})
	c.pipe = pipeline.New(pipeline.Config{
		Tasks: noTasks{}, Minter: c.cache, Upstream: s.c.Upstream, Vault: guard.NewVault(maxSealed, sealedFor, s.c.Now), Placeholders: noPlaceholders{},
		Proofs: proofs, Keep: s.keep, Limits: s.c.Limits, Log: s.c.Log, Metrics: s.c.Metrics.pipeline, Now: s.c.Now,
		Revoke: func(handle string) { // an origin repeated a token
			c.cache.RevokeWhere(context.Background(), func(_ minting.Request, m minting.Credential) bool { return m.Handle == handle })
		},
	})
	c.pipe.SetState(state)
	return c, nil
}

// namespaceOf is where a provider's Secret is.
func (s *Server) namespaceOf(p *v1alpha1.CredentialProvider) string {
	if p.Metadata.Namespace == "" {
		return s.c.Namespace
	}
	return p.Metadata.Namespace
}

func (s *Server) minter(docs *api.Bundle, p v1alpha1.CredentialProvider) (minting.Minter, error) {
	namespace := s.namespaceOf(&p)
	m, err := all.Guarded(p, minting.Deps{
		Client: broker.ClientFor(s.c.Client, p.Metadata.Namespace), Logger: s.c.Log, Now: s.c.Now,
		Root: func(ctx context.Context, name, key string) (secret.Value, error) {
			return s.c.Secrets.Read(ctx, namespace, name, key)
		},
	}, &s.guard)
	if err != nil {
		return nil, err
	}
	return minting.OfGeneration(docs.Generations[p.Metadata.Name], fresh{m, s.c.Now}), nil
}

// fresh bounds how long a static root is used: a changed Secret, and one that
// the broker may read no more, count within [rootFor].
type fresh struct {
	minting.Minter
	now func() time.Time
}

// Mint implements [minting.Minter].
func (f fresh) Mint(ctx context.Context, r minting.Request, e minting.Evidence) (minting.Credential, error) {
	c, err := f.Minter.Mint(ctx, r, e)
	if err == nil && c.Kind == minting.KindAPIKey && (c.Expires.IsZero() || c.Expires.After(f.now().Add(rootFor))) {
		c.Expires = f.now().Add(rootFor)
	}
	return c, err
}

// noTasks stands for the tasks, which are the pod's.
type noTasks struct{}

// Lookup implements pipeline.Tasks.
func (noTasks) Lookup(string, *identity.Workload) (*identity.Task, error) {
	return nil, errors.New("a relay knows no tasks")
}

// Current implements pipeline.Tasks.
func (noTasks) Current(*identity.Workload) *identity.Task { return nil }

// noPlaceholders stands for those of a pod, which its sidecar has taken off.
type noPlaceholders struct{}

// Contains implements injector.Placeholders.
func (noPlaceholders) Contains(string) (string, bool) { return "", false }
