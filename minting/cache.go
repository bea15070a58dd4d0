package minting

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Defaults and bounds of a [Cache].
const (
	defaultCacheSize   = 4096
	defaultTTL         = 5 * time.Minute // CredentialProviderSpec.TTL
	defaultMintTimeout = 30 * time.Second
	defaultDeniedFor   = 3 * time.Second
	deniedCacheSize    = 1024
	// maxLive bounds the credentials of one run that issuers still accept: each
	// is remembered until its end, so that it can be revoked.
	maxLive    = 16384
	maxSkew    = 30 * time.Second
	renewRetry = 5 * time.Second // after a renewal that failed
)

// errClosed is the answer of a closed cache.
var errClosed = fmt.Errorf("%w: the credential cache is closed", ErrUnavailable)

// errFull is the answer while as many credentials live as can be remembered.
var errFull = fmt.Errorf("%w: the limit of credentials that live at once is reached; wait until some end, revoke some, or give rules scopes that more calls share", ErrUnavailable)

// errRevoked is the answer to callers whose credential was revoked while it
// was being minted.
var errRevoked = fmt.Errorf("%w: the credential was revoked while it was being minted", ErrDenied)

// CacheOptions configure a [Cache]. Only Minter is required.
type CacheOptions struct {
	Minter Minter
	// Size is how many credentials are ready for use. Default 4096.
	Size int
	// MaxLive is how many credentials may live at their issuers at once; beyond
	// it none is minted, for none may live that could not be revoked. Default
	// 16384, or twice Size.
	MaxLive int
	// Timeout of one mint, which outlives the callers that wait for it.
	// Default 30s.
	Timeout time.Duration
	// DeniedFor is how long a refusal is repeated without asking. Default 3s.
	DeniedFor time.Duration
	// OnEvent is told of credential.minted and credential.revoked, before the
	// credential's first use and after its revocation. Fields hold no secret.
	// It is called without locks held and may be called concurrently.
	OnEvent func(name string, fields map[string]string)
	Logger  *slog.Logger
	Now     func() time.Time
}

// Cache keeps credentials for as long as they may be used. It asks for each
// only once at a time, renews those in use before they end, and remembers all
// that live, so that they can be revoked. It is safe for concurrent use.
//
// A credential is used for the shortest of the issuer's lifetime, the
// request's TTL and the task's end, less a margin of a tenth (at most 30 s)
// for clocks and travel.
type Cache struct {
	o    CacheOptions
	keys keyMemo

	// mu guards all below. It is never held during a call to the Minter.
	mu      sync.Mutex
	ready   *simplelru.LRU[string, *entry]
	denied  *simplelru.LRU[string, refusal]
	flights map[string]*flight
	live    map[string]*live
	closed  bool
	idle    sync.WaitGroup // flights and revocations at expiry
}

// entry is a credential ready for use.
type entry struct {
	cred     Credential
	until    time.Time // last moment to hand it out
	renewAt  time.Time // a use from here on starts a renewal
	renewing bool
}

// refusal is a remembered ErrDenied.
type refusal struct {
	err   error
	until time.Time
}

// flight is a mint under way.
type flight struct {
	request Request
	cancel  context.CancelFunc
	done    chan struct{} // closed when cred and err are set
	cred    Credential
	err     error
	// revoked are the conditions of revocations that came during the flight.
	revoked []func(Request, Credential) bool
}

// NewCache returns a Cache around o.Minter. Close it to revoke what it minted.
func NewCache(o CacheOptions) *Cache {
	if o.Minter == nil {
		panic("minting: NewCache without a Minter")
	}
	if o.Size <= 0 {
		o.Size = defaultCacheSize
	}
	if o.MaxLive <= 0 {
		o.MaxLive = max(maxLive, 2*o.Size) // each may be renewed before it ends
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultMintTimeout
	}
	if o.DeniedFor <= 0 {
		o.DeniedFor = defaultDeniedFor
	}
	if o.OnEvent == nil {
		o.OnEvent = func(string, map[string]string) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	c := &Cache{o: o, flights: map[string]*flight{}, live: map[string]*live{}}
	c.ready, _ = simplelru.NewLRU[string, *entry](o.Size, nil) // fails for sizes < 1 only
	c.denied, _ = simplelru.NewLRU[string, refusal](deniedCacheSize, nil)
	return c
}

// Mint implements [Minter]: from the cache, from a mint under way, or by a new
// one. It returns when ctx ends; a mint it started goes on for the others.
func (c *Cache) Mint(ctx context.Context, r Request, e Evidence) (Credential, error) {
	if err := ctx.Err(); err != nil {
		return Credential{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	key := c.keys.of(&r)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return Credential{}, errClosed
	}
	if cred, ok := c.hit(ctx, key, r, e); ok {
		c.mu.Unlock()
		return cred, nil
	}
	if no, ok := c.denied.Get(key); ok {
		if c.o.Now().Before(no.until) {
			c.mu.Unlock()
			return Credential{}, no.err
		}
		c.denied.Remove(key)
	}
	f, err := c.start(ctx, key, r, e)
	c.mu.Unlock()
	if err != nil {
		return Credential{}, err
	}
	select {
	case <-f.done:
		if f.err != nil {
			return Credential{}, f.err
		}
		cred := f.cred
		cred.Scope = slices.Clone(cred.Scope)
		return cred, nil
	case <-ctx.Done():
		return Credential{}, fmt.Errorf("%w: waiting for provider %s: %w", ErrUnavailable, r.Provider, ctx.Err())
	}
}

// hit looks key up and starts a renewal where one is due. mu is held.
func (c *Cache) hit(ctx context.Context, key string, r Request, e Evidence) (Credential, bool) {
	en, ok := c.ready.Get(key)
	if !ok {
		return Credential{}, false
	}
	now := c.o.Now()
	if !now.Before(en.until) {
		c.ready.Remove(key)
		return Credential{}, false
	}
	if !en.renewing && !now.Before(en.renewAt) {
		// Evidence may have gone stale where the request's did not; then the
		// renewal waits for a caller whose evidence fits.
		_, err := c.start(ctx, key, r, e)
		en.renewing = err == nil
	}
	cred := en.cred
	cred.Cached = true
	cred.Scope = slices.Clone(cred.Scope)
	return cred, true
}

// start joins the flight for key or begins one. mu is held.
func (c *Cache) start(ctx context.Context, key string, r Request, e Evidence) (*flight, error) {
	if f, ok := c.flights[key]; ok {
		return f, nil
	}
	if err := matches(r, e); err != nil {
		return nil, err
	}
	if len(c.live)+len(c.flights) >= c.o.MaxLive { // each flight becomes one
		return nil, errFull
	}
	// The mint serves every caller that waits for it, so it must not end with
	// the first.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.o.Timeout)
	f := &flight{request: r, cancel: cancel, done: make(chan struct{})}
	c.flights[key] = f
	c.idle.Add(1)
	go func() {
		defer c.idle.Done()
		defer cancel()
		c.fly(ctx, key, f, e)
	}()
	return f, nil
}

// matches refuses evidence that proves something else than the request says:
// the key would then name another credential than the one minted.
func matches(r Request, e Evidence) error {
	var id, run, task, subject string
	if e.Workload != nil {
		id, run = e.Workload.ID.String(), e.Workload.RunID
	}
	if e.Task != nil {
		task, subject = e.Task.ID, e.Task.SubjectToken.Fingerprint()
	}
	for _, f := range []struct{ name, request, evidence string }{
		{"workload", r.WorkloadID, id},
		{"run", r.RunID, run},
		{"task", r.TaskID, task},
		{"subject token", r.SubjectToken, subject},
	} {
		if f.request != f.evidence {
			return fmt.Errorf("%w: the request's %s %q is not the one that the evidence proves (%q)", ErrDenied, f.name, f.request, f.evidence)
		}
	}
	return nil
}

// fly mints, stores and reports, in this order: a credential is in the live
// table and in the record before anyone can use it.
func (c *Cache) fly(ctx context.Context, key string, f *flight, e Evidence) {
	cred, err := c.o.Minter.Mint(ctx, f.request, e)
	now := c.o.Now()
	if err == nil {
		err = settle(&cred, f.request, e, now)
		if err != nil { // minted, but of no use: it must not stay behind
			c.undo(context.WithoutCancel(ctx), &live{LiveCredential: describe(f.request, cred), request: f.request, cred: cred})
		}
	}
	if err != nil {
		c.land(key, f, Credential{}, err)
		return
	}
	l := c.admit(f.request, cred)
	c.o.OnEvent(EventMinted, l.fields())
	if c.land(key, f, cred, nil) {
		return
	}
	if c.claim(l) { // revoked, or closed, while it was being minted
		c.undo(context.WithoutCancel(ctx), l)
	}
}

// settle bounds the lifetime of a fresh credential.
func settle(cred *Credential, r Request, e Evidence, now time.Time) error {
	ttl := r.TTL
	if ttl <= 0 {
		ttl = defaultTTL
	}
	end := now.Add(ttl)
	if e.Task != nil && !e.Task.Expires.IsZero() && e.Task.Expires.Before(end) {
		end = e.Task.Expires
	}
	issuer := cred.Expires
	if issuer.IsZero() && cred.Kind != KindAPIKey {
		return fmt.Errorf("%w: provider %s: the credential has no end", ErrUnavailable, r.Provider)
	}
	if cred.Outlives.After(issuer) {
		issuer = cred.Outlives
	}
	if cred.Expires.IsZero() || end.Before(cred.Expires) {
		cred.Expires = end
	}
	cred.Outlives = time.Time{}
	if issuer.After(cred.Expires) {
		cred.Outlives = issuer
	}
	if !cred.Expires.After(now) {
		return fmt.Errorf("%w: provider %s: the credential had already expired when it arrived; check the clocks and the task's end", ErrUnavailable, r.Provider)
	}
	if cred.Issued.IsZero() {
		cred.Issued = now
	}
	return nil
}

// land ends a flight and wakes its waiters. It reports false if the
// credential was revoked meanwhile and must be ended by the caller.
func (c *Cache) land(key string, f *flight, cred Credential, err error) bool {
	now := c.o.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	defer close(f.done)
	delete(c.flights, key)
	if err == nil {
		for _, where := range f.revoked {
			if where(f.request, cred) {
				err = errRevoked
				break
			}
		}
		if c.closed {
			err = errClosed
		}
	}
	if err != nil {
		f.err = err
		if errors.Is(err, ErrDenied) && !errors.Is(err, errRevoked) {
			c.denied.Add(key, refusal{err: err, until: now.Add(c.o.DeniedFor)})
		}
		if en, ok := c.ready.Peek(key); ok && cred.Handle == "" {
			// The old one is good for a while; ask again a little later.
			en.renewing, en.renewAt = false, now.Add(renewRetry)
		}
		return cred.Handle == ""
	}
	f.cred = cred
	c.ready.Add(key, newEntry(cred, now))
	return true
}

// newEntry works out when cred is renewed and last used.
func newEntry(cred Credential, now time.Time) *entry {
	life := cred.Expires.Sub(now)
	usable := life - min(life/10, maxSkew)
	// Between 70 and 85 % of the usable time, so that a fleet that started
	// together does not renew together.
	renew := time.Duration(float64(usable) * (0.7 + 0.15*rand.Float64())) //nolint:gosec // jitter
	return &entry{cred: cred, until: now.Add(usable), renewAt: now.Add(renew)}
}

// Forget drops the credential with this handle from the cache, so that the
// next request mints a fresh one. It does not revoke.
func (c *Cache) Forget(handle string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l, ok := c.live[handle]
	if !ok {
		return
	}
	c.dropReady(l)
}

// dropReady removes l's credential from the ready ones, if it still is the
// one for its request. mu is held.
func (c *Cache) dropReady(l *live) {
	key := l.request.Key()
	if en, ok := c.ready.Peek(key); ok && en.cred.Handle == l.cred.Handle {
		c.ready.Remove(key)
	}
}
