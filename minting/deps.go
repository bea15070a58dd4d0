package minting

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/internal/secret"
)

// Deps is what providers need of the program around them.
type Deps struct {
	// Client makes the HTTP client for an issuer: it dials the pinned
	// addresses only (none: the name's public ones), trusts the system's roots
	// and those of caPEM, keeps no cookies and follows no redirect. Providers
	// check the last two again. Required by providers that speak HTTP.
	Client func(addresses []string, caPEM []byte) *http.Client
	// Logger gets warnings; nil discards them.
	Logger *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Env returns a variable of Attaché's own environment that was taken from
	// it (see apikey.Environment). nil reads and wipes at construction.
	Env func(name string) (secret.Value, bool)
	// Root reads a key of the Secret that a provider names. Only the broker can
	// (its Secrets are those of one provider's namespace); nil elsewhere.
	Root func(ctx context.Context, name, key string) (secret.Value, error)
	// Broker mints for providers whose root is out of our reach; nil where there
	// is no broker.
	Broker func(p v1alpha1.CredentialProvider) (Minter, error)
}

// WithDefaults fills in what may be left out.
func (d Deps) WithDefaults() Deps {
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	return d
}

// NewHandle returns a fresh handle: "cred_" and 128 random bits.
func NewHandle() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return "cred_" + hex.EncodeToString(b[:])
}

// Revoke ends c at its issuer through c.Undo, or else through m. The error
// matches [errors.ErrUnsupported] where the issuer cannot revoke.
func Revoke(ctx context.Context, m Minter, c Credential) error {
	if c.Undo != nil {
		return c.Undo(ctx)
	}
	if r, ok := m.(Revoker); ok {
		return r.Revoke(ctx, c)
	}
	return fmt.Errorf("provider %s: %w: the credential ends by itself", c.Provider, errors.ErrUnsupported)
}

// Router sends a request to the Minter of its provider. The zero Router knows
// none. [Router.Set] may be called while others mint.
type Router struct {
	table atomic.Pointer[map[string]Minter]
}

// NewRouter returns a Router over m, by provider name.
func NewRouter(m map[string]Minter) *Router {
	var r Router
	r.Set(m)
	return &r
}

// Set replaces the providers. Credentials minted by earlier ones stay valid
// and revocable: they carry their own [Credential.Undo].
func (r *Router) Set(m map[string]Minter) {
	m = maps.Clone(m)
	r.table.Store(&m)
}

func (r *Router) find(provider string) (Minter, bool) {
	t := r.table.Load()
	if t == nil {
		return nil, false
	}
	m, ok := (*t)[provider]
	return m, ok
}

// Mint implements [Minter].
func (r *Router) Mint(ctx context.Context, q Request, e Evidence) (Credential, error) {
	m, ok := r.find(q.Provider)
	if !ok {
		return Credential{}, fmt.Errorf("%w: no credential provider %q is configured; check the rule's credential.provider", ErrDenied, q.Provider)
	}
	return m.Mint(ctx, q, e)
}

// Revoke implements [Revoker].
func (r *Router) Revoke(ctx context.Context, c Credential) error {
	m, _ := r.find(c.Provider)
	return Revoke(ctx, m, c)
}

// OfGeneration returns m for requests of one generation of its provider. A
// request that was decided by another one may be for a destination that m's
// does not list: it gets nothing, and may be made again.
func OfGeneration(generation string, m Minter) Minter { return &ofGeneration{generation, m} }

type ofGeneration struct {
	generation string
	m          Minter
}

// Mint implements [Minter].
func (o *ofGeneration) Mint(ctx context.Context, q Request, e Evidence) (Credential, error) {
	if q.Generation != o.generation {
		return Credential{}, WithRetryAfter(fmt.Errorf("%w: provider %s was changed while the call was under way", ErrUnavailable, q.Provider), time.Second)
	}
	return o.m.Mint(ctx, q, e)
}

// Revoke implements [Revoker].
func (o *ofGeneration) Revoke(ctx context.Context, c Credential) error { return Revoke(ctx, o.m, c) }
