package issuer

import (
	"context"
	"crypto"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/attache-dev/attache/identity"
)

// consultTimeout bounds one exchange with a key source.
const consultTimeout = 5 * time.Second

// key is a signing key and its public half.
type key struct {
	signer crypto.Signer
	jwk    jose.JSONWebKey
}

// ring decides which key signs and which are published. Its promise: a key
// set fetched at any time T holds the key of every token signed until
// T+ahead, and of every token signed before T that has not expired.
type ring struct {
	src                 KeySource
	rotate, ahead, keep time.Duration
	now                 func() time.Time
	log                 *slog.Logger
	schedule            func() *Schedule // decides instead of src, if set

	mu      sync.Mutex // guards everything below
	current *key
	since   time.Time // start of current's term
	next    *key      // published, signs from nextAt; nil if none
	nextAt  time.Time
	retired []retiredKey
	held    []heldKey
	busy    bool      // a consultation is running
	check   time.Time // of the next consultation
}

type retiredKey struct {
	jwk  jose.JSONWebKey
	last time.Time // published until then
}

// heldKey is a key that the source may sign with later.
type heldKey struct {
	jwk  jose.JSONWebKey
	seen time.Time // published since
}

func newRing(ctx context.Context, c Config) (*ring, error) {
	r := &ring{
		src: c.Keys, rotate: c.RotateEvery, ahead: c.PublishAhead, keep: c.MaxJWTTTL + Backdate,
		now: c.Now, log: c.Log, schedule: c.Schedule,
	}
	if r.schedule != nil {
		return r, r.follow()
	}
	ctx, cancel := context.WithTimeout(ctx, consultTimeout)
	defer cancel()
	k, err := r.ask(ctx, nil)
	if err != nil {
		return nil, err
	}
	held, err := r.askHeld(ctx)
	if err != nil {
		return nil, err
	}
	now := r.now()
	r.current, r.since, r.check = k, now, now.Add(r.pause())
	for _, j := range held {
		r.held = append(r.held, heldKey{jwk: j, seen: now})
	}
	return r, nil
}

// pause is the time between two consultations of the source: short against
// the time a key is published before it signs.
func (r *ring) pause() time.Duration { return min(time.Minute, r.ahead/4) }

// signer returns the key that signs now.
func (r *ring) signer(ctx context.Context) *key {
	r.advance(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current
}

// published returns the key set as it is to be served now, in a stable order.
func (r *ring) published(ctx context.Context) jose.JSONWebKeySet {
	r.advance(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	var set jose.JSONWebKeySet
	add := func(j jose.JSONWebKey) {
		if len(set.Key(j.KeyID)) == 0 {
			set.Keys = append(set.Keys, j)
		}
	}
	add(r.current.jwk)
	if r.next != nil {
		add(r.next.jwk)
	}
	for _, h := range r.held {
		add(h.jwk)
	}
	for _, o := range r.retired {
		add(o.jwk)
	}
	return set
}

// advance brings the ring to the present. Rotation happens here and not on a
// timer: since a key signs only ahead after it was made, the promise holds
// however late that is.
func (r *ring) advance(ctx context.Context) {
	if r.schedule != nil {
		if err := r.follow(); err != nil {
			r.log.ErrorContext(ctx, "key schedule not followed; the present key goes on", "error", err)
		}
		return
	}
	r.mu.Lock()
	now := r.now()
	r.settle(now)
	due := !r.busy && !now.Before(r.check)
	if due {
		r.busy = true
	}
	r.mu.Unlock()
	if due {
		// The context of one caller must not end what all wait for.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), consultTimeout)
		defer cancel()
		if err := r.consult(ctx, false); err != nil {
			r.log.WarnContext(ctx, "signing key not rotated; the present one goes on", "error", err)
		}
	}
}

// settle promotes the next key and forgets old ones. The caller holds mu.
func (r *ring) settle(now time.Time) {
	if r.next != nil && !now.Before(r.nextAt) {
		r.retired = append(r.retired, retiredKey{jwk: r.current.jwk, last: now.Add(r.keep)})
		r.current, r.since, r.next = r.next, now, nil
		r.check = now.Add(r.pause())
		r.log.Info("signing key rotated", "kid", r.current.jwk.KeyID)
	}
	r.retired = slices.DeleteFunc(r.retired, func(o retiredKey) bool { return now.After(o.last) })
}

// consult asks the source for held keys and, when current's term nears its
// end or force is set, for the next key. The caller has set busy.
func (r *ring) consult(ctx context.Context, force bool) error {
	held, err := r.askHeld(ctx)
	r.mu.Lock()
	now := r.now()
	current := r.current
	due := r.next == nil && (force || !now.Before(r.since.Add(r.rotate-r.ahead)))
	r.mu.Unlock()
	var k *key
	if err == nil && due {
		k, err = r.ask(ctx, current.signer)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.busy = false
	now = r.now() // the source may have taken its time
	r.check = now.Add(r.pause())
	if err != nil {
		return err
	}
	r.hold(held, now)
	if k == nil {
		return nil
	}
	if k.jwk.KeyID == current.jwk.KeyID {
		r.since = now // a new term for the same key
		return nil
	}
	r.next, r.nextAt = k, r.firstUse(k, force, now)
	r.settle(now)
	return nil
}

// hold notes which keys the source holds and since when each is published.
func (r *ring) hold(jwks []jose.JSONWebKey, now time.Time) {
	var out []heldKey
	for _, j := range jwks {
		seen := now
		for _, h := range r.held {
			if h.jwk.KeyID == j.KeyID {
				seen = h.seen
			}
		}
		out = append(out, heldKey{jwk: j, seen: seen})
	}
	r.held = out
}

// firstUse is the earliest time at which every cached key set holds k. It is
// not before the end of current's term, unless current can no longer sign.
func (r *ring) firstUse(k *key, force bool, now time.Time) time.Time {
	published := now
	for _, h := range r.held {
		if h.jwk.KeyID == k.jwk.KeyID {
			published = h.seen
		}
	}
	at := published.Add(r.ahead)
	if end := r.since.Add(r.rotate); !force && at.Before(end) {
		return end
	}
	return at
}

// replace looks for another key after k failed to sign. It reports whether
// one took over.
func (r *ring) replace(ctx context.Context, k *key) bool {
	if r.schedule != nil {
		return false // the schedule's keys are in memory and do not fail
	}
	r.mu.Lock()
	if r.current != k {
		r.mu.Unlock()
		return true
	}
	if r.busy {
		r.mu.Unlock()
		return false
	}
	r.busy = true
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), consultTimeout)
	defer cancel()
	if err := r.consult(ctx, true); err != nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current != k
}

func (r *ring) ask(ctx context.Context, current crypto.Signer) (*key, error) {
	s, err := r.src.Next(ctx, current)
	if err != nil {
		return nil, fmt.Errorf("issuer: next signing key: %w: %w", identity.ErrUnavailable, err)
	}
	j, err := publicJWK(s.Public())
	if err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	return &key{signer: s, jwk: j}, nil
}

func (r *ring) askHeld(ctx context.Context) ([]jose.JSONWebKey, error) {
	pubs, err := r.src.Held(ctx)
	if err != nil {
		return nil, fmt.Errorf("issuer: list signing keys: %w: %w", identity.ErrUnavailable, err)
	}
	var out []jose.JSONWebKey
	for _, p := range pubs {
		j, err := publicJWK(p)
		if err != nil {
			return nil, fmt.Errorf("issuer: %w", err)
		}
		out = append(out, j)
	}
	return out, nil
}
