package minting

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/sony/gobreaker/v2"
)

// Bounds of a [Guard].
const (
	backoffFirst  = 250 * time.Millisecond
	backoffMax    = 30 * time.Second
	breakerTrips  = 5                // failures in a row
	breakerOpen   = 15 * time.Second // then nobody asks for this long
	retryInCall   = time.Second      // a wait up to this is spent within the call
	attemptsACall = 2
)

// Guard keeps a failing issuer from being asked more and more. Around each
// provider it waits longer after each failure, or as long as the issuer says;
// around each issuer's endpoint, which several providers may share, a circuit
// breaker opens after five failures in a row. A refusal (ErrDenied) is an
// answer and no failure. The zero Guard is ready; it is safe for concurrent
// use.
type Guard struct {
	mu       sync.Mutex // guards breakers
	breakers map[string]*gobreaker.CircuitBreaker[Credential]
}

// Wrap returns m guarded as the named provider at endpoint.
func (g *Guard) Wrap(provider, endpoint string, m Minter) *Guarded {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.breakers == nil {
		g.breakers = map[string]*gobreaker.CircuitBreaker[Credential]{}
	}
	b, ok := g.breakers[endpoint]
	if !ok {
		b = gobreaker.NewCircuitBreaker[Credential](gobreaker.Settings{
			Name:         endpoint,
			Timeout:      breakerOpen,
			ReadyToTrip:  func(n gobreaker.Counts) bool { return n.ConsecutiveFailures >= breakerTrips },
			IsSuccessful: func(err error) bool { return err == nil || errors.Is(err, ErrDenied) },
			// That we were stopped says nothing of the issuer.
			IsExcluded: func(err error) bool { return errors.Is(err, context.Canceled) },
		})
		g.breakers[endpoint] = b
	}
	e := backoff.NewExponentialBackOff()
	e.InitialInterval, e.MaxInterval = backoffFirst, backoffMax
	return &Guarded{name: provider, endpoint: endpoint, m: m, breaker: b, delays: e}
}

// Guarded is a Minter with back-off and circuit breaker, see [Guard].
type Guarded struct {
	name, endpoint string
	m              Minter
	breaker        *gobreaker.CircuitBreaker[Credential]

	mu     sync.Mutex // guards what follows
	delays *backoff.ExponentialBackOff
	until  time.Time // nobody asks before
	last   error     // the failure that set until
}

// Mint implements [Minter]. While the issuer is left alone it answers at once,
// and [RetryAfter] says for how long. A failure without the issuer's word on
// when to return is tried once more within the call.
func (g *Guarded) Mint(ctx context.Context, r Request, e Evidence) (Credential, error) {
	for attempt := 1; ; attempt++ {
		if wait, last := g.wait(); wait > 0 {
			// The last failure says what to do, and whose it is.
			return Credential{}, WithRetryAfter(fmt.Errorf("%w: provider %s: %s failed lately and is left alone for %s: %w", ErrUnavailable, g.name, g.endpoint, wait.Round(time.Millisecond), last), wait)
		}
		c, err := g.breaker.Execute(func() (Credential, error) { return g.m.Mint(ctx, r, e) })
		if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
			return Credential{}, WithRetryAfter(fmt.Errorf("%w: provider %s: circuit breaker for %s: %w", ErrUnavailable, g.name, g.endpoint, err), time.Second)
		}
		wait, told := g.note(err)
		if wait == 0 || told || wait > retryInCall || attempt == attemptsACall || ctx.Err() != nil {
			return c, err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return c, err
		}
	}
}

// Revoke implements [Revoker]; back-off does not apply: a revocation is never
// put off.
func (g *Guarded) Revoke(ctx context.Context, c Credential) error { return Revoke(ctx, g.m, c) }

func (g *Guarded) wait() (time.Duration, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Until(g.until), g.last
}

// note remembers an outcome and returns how long to wait and whether the
// issuer said so.
func (g *Guarded) note(err error) (wait time.Duration, told bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err == nil || errors.Is(err, ErrDenied) {
		g.delays.Reset()
		g.until, g.last = time.Time{}, nil
		return 0, false
	}
	if errors.Is(err, context.Canceled) {
		return 0, false
	}
	wait, told = RetryAfter(err)
	if !told {
		wait = g.delays.NextBackOff()
	}
	g.until, g.last = time.Now().Add(wait), err
	return wait, told
}
