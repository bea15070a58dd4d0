package issuer_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/issuer"
)

type fetch struct {
	at  time.Time
	set jose.JSONWebKeySet
}

type token struct {
	at, exp time.Time
	text    string
}

// TestRotationOverlap states the promise of rotation: a key set fetched at T
// and kept for the cache's lifetime verifies every token signed until then,
// and every older token that has not expired. Verifiers' clocks are up to 60 s
// off.
func TestRotationOverlap(t *testing.T) {
	const cache, skew = 15 * time.Minute, issuer.Backdate
	for _, seed := range []uint64{1, 2, 3} {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 7))
			i := start(t, issuer.Config{RotateEvery: 3 * time.Hour, CacheLifetime: cache, PublishAhead: cache})
			var fetches []fetch
			var tokens []token
			kids := map[string]bool{}
			for range 800 {
				// Sometimes nothing happens for long: rotation must not
				// depend on traffic.
				step := time.Duration(rnd.Int64N(int64(12 * time.Minute)))
				if rnd.IntN(40) == 0 {
					step += 7 * time.Hour
				}
				time.Sleep(step)
				if rnd.IntN(2) == 0 {
					fetches = append(fetches, fetch{time.Now(), i.Keys(t.Context())})
				} else {
					ttl := time.Duration(1+rnd.IntN(60)) * time.Minute
					text, j := mint(t, i, identity.JWTRequest{TTL: ttl})
					tokens = append(tokens, token{time.Now(), j.Expires, text})
				}
			}
			checked := 0
			for _, tok := range tokens {
				p, err := jwt.ParseSigned(tok.text, []jose.SignatureAlgorithm{jose.ES256})
				if err != nil {
					t.Fatal(err)
				}
				kids[p.Headers[0].KeyID] = true
				for _, f := range fetches {
					if f.at.Before(tok.at.Add(-cache)) || f.at.After(tok.exp.Add(skew)) {
						continue
					}
					checked++
					var c jwt.Claims
					if err := p.Claims(f.set, &c); err != nil {
						t.Fatalf("seed %d: token of %v, key set of %v (%v): %v", seed, tok.at, f.at, f.at.Sub(tok.at), err)
					}
				}
			}
			if checked < 500 || len(kids) < 10 {
				t.Fatalf("too little happened: %d checks, %d keys", checked, len(kids))
			}
			time.Sleep(24 * time.Hour)
			i.Keys(t.Context())
			time.Sleep(2 * time.Hour)
			if n := len(i.Keys(t.Context()).Keys); n > 2 {
				t.Errorf("%d keys pile up", n)
			}
		})
	}
}

// flaky fails to make keys while broken.
type flaky struct {
	issuer.Memory
	mu     sync.Mutex // guards broken
	broken bool
}

func (f *flaky) set(broken bool) { f.mu.Lock(); f.broken = broken; f.mu.Unlock() }

func (f *flaky) Next(ctx context.Context, k crypto.Signer) (crypto.Signer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken {
		return nil, errors.New("out of order")
	}
	return f.Memory.Next(ctx, k)
}

func (f *flaky) Held(ctx context.Context) ([]*ecdsa.PublicKey, error) { return f.Memory.Held(ctx) }

func TestRotationSurvivesBrokenSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &flaky{}
		i := start(t, issuer.Config{Keys: src})
		first := i.Keys(t.Context()).Keys[0].KeyID
		src.set(true)
		time.Sleep(100 * time.Hour)
		mint(t, i, identity.JWTRequest{})
		if k := i.Keys(t.Context()).Keys; len(k) != 1 || k[0].KeyID != first {
			t.Fatalf("keys %v", k)
		}
		src.set(false)
		time.Sleep(2 * time.Minute)
		if k := i.Keys(t.Context()).Keys; len(k) != 2 {
			t.Fatalf("%d keys; want the next one published", len(k))
		}
		tok, _ := mint(t, i, identity.JWTRequest{})
		if kid(t, tok) != first {
			t.Error("the new key signs at once")
		}
		time.Sleep(issuer.DefaultPublishAhead)
		tok, _ = mint(t, i, identity.JWTRequest{})
		if kid(t, tok) == first {
			t.Error("the new key never signs")
		}
	})
}

func kid(t *testing.T, tok string) string {
	t.Helper()
	p, err := jwt.ParseSigned(tok, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	return p.Headers[0].KeyID
}

func TestBrokenSourceAtStart(t *testing.T) {
	_, err := issuer.New(t.Context(), issuer.Config{TrustDomain: td(), Keys: &flaky{broken: true}})
	if !errors.Is(err, identity.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

func TestConcurrentUse(t *testing.T) {
	i := start(t, issuer.Config{RotateEvery: 4 * time.Millisecond, PublishAhead: 2 * time.Millisecond, CacheLifetime: time.Millisecond})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				if _, err := i.JWT(t.Context(), identity.JWTRequest{Workload: workload("/a"), Audience: "x"}); err != nil {
					t.Error(err)
				}
				i.Keys(t.Context())
				if _, err := i.X509(t.Context(), workload("/b")); err != nil {
					t.Error(err)
				}
				if _, err := i.SPIFFEBundle(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
