package minting_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/mintingtest"
)

// mint is a Minter made of a function; it counts.
type mint struct {
	calls   atomic.Int32
	f       func(ctx context.Context, n int32, r minting.Request) (minting.Credential, error)
	mu      sync.Mutex // guards revoked
	revoked []string
	undoErr error
}

func (m *mint) Mint(ctx context.Context, r minting.Request, _ minting.Evidence) (minting.Credential, error) {
	return m.f(ctx, m.calls.Add(1), r)
}

func (m *mint) Revoke(_ context.Context, c minting.Credential) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.undoErr != nil {
		return m.undoErr
	}
	m.revoked = append(m.revoked, c.Secret.Reveal())
	return nil
}

func (m *mint) revocations() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(slices.Values(m.revoked))
}

// bearer mints tokens "t1", "t2"… that live so long.
func bearer(life time.Duration) *mint {
	return &mint{f: func(_ context.Context, n int32, r minting.Request) (minting.Credential, error) {
		return token(n, r, life), nil
	}}
}

func token(n int32, r minting.Request, life time.Duration) minting.Credential {
	now := time.Now()
	return minting.Credential{
		Handle: minting.NewHandle(), Kind: minting.KindBearer, Provider: r.Provider,
		Secret: secret.New(fmt.Sprint("t", n)), Issued: now, Expires: now.Add(life), Derived: true,
	}
}

func ev() minting.Evidence { return minting.Evidence{Workload: mintingtest.Workload()} }

func get(t *testing.T, c *minting.Cache, r minting.Request) string {
	t.Helper()
	cred, err := c.Mint(t.Context(), r, ev())
	if err != nil {
		t.Fatal(err)
	}
	return cred.Secret.Reveal()
}

func everything(minting.Request, minting.Credential) bool { return true }

func TestCacheHit(t *testing.T) {
	m := bearer(time.Hour)
	c := minting.NewCache(minting.CacheOptions{Minter: m})
	defer c.Close(t.Context())
	r := mintingtest.Request("p", ev())
	a, err := c.Mint(t.Context(), r, ev())
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Mint(t.Context(), r, ev())
	if err != nil {
		t.Fatal(err)
	}
	if a.Cached || !b.Cached || a.Handle != b.Handle || m.calls.Load() != 1 {
		t.Errorf("cached %v %v, handles %s %s, %d mints", a.Cached, b.Cached, a.Handle, b.Handle, m.calls.Load())
	}
	r.Scope = []string{"other"}
	if get(t, c, r) != "t2" {
		t.Error("another scope got the same credential")
	}
}

// Invariant 8: what the evidence proves is what the request says.
func TestCacheRefusesForeignEvidence(t *testing.T) {
	m := bearer(time.Hour)
	c := minting.NewCache(minting.CacheOptions{Minter: m})
	defer c.Close(t.Context())
	e := minting.Evidence{Workload: mintingtest.Workload(), Task: mintingtest.Task("human")}
	for name, change := range map[string]func(*minting.Request){
		"workload": func(r *minting.Request) { r.WorkloadID = "spiffe://example.org/agent/b" },
		"run":      func(r *minting.Request) { r.RunID = "other" },
		"task":     func(r *minting.Request) { r.TaskID = "" },
		"token":    func(r *minting.Request) { r.SubjectToken = "" },
	} {
		r := mintingtest.Request("p", e)
		change(&r)
		if _, err := c.Mint(t.Context(), r, e); !errors.Is(err, minting.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if m.calls.Load() != 0 {
		t.Error("a credential was minted")
	}
}

func TestCacheLifetimes(t *testing.T) {
	tests := []struct {
		name             string
		life, ttl, until time.Duration // until: last use
		task             time.Duration
	}{
		{"issuer's is shorter", time.Minute, time.Hour, 54 * time.Second, 0},
		{"rule's is shorter", time.Hour, time.Minute, 54 * time.Second, 0},
		{"margin is at most 30s", 2 * time.Hour, time.Hour, time.Hour - 30*time.Second, 0},
		{"rule says nothing", time.Hour, 0, 5*time.Minute - 30*time.Second, 0},
		{"task ends first", time.Hour, time.Hour, 9 * time.Second, 10 * time.Second},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := bearer(tc.life)
				inner := m.f
				m.f = func(ctx context.Context, n int32, r minting.Request) (minting.Credential, error) {
					if n > 1 { // no renewal: we look for the end
						return minting.Credential{}, minting.ErrUnavailable
					}
					return inner(ctx, n, r)
				}
				c := minting.NewCache(minting.CacheOptions{Minter: m})
				e := ev()
				if tc.task != 0 {
					e.Task = mintingtest.Task("human")
					e.Task.Expires = time.Now().Add(tc.task)
				}
				r := mintingtest.Request("p", e)
				r.TTL = tc.ttl
				if _, err := c.Mint(t.Context(), r, e); err != nil {
					t.Fatal(err)
				}
				time.Sleep(tc.until - time.Millisecond)
				if _, err := c.Mint(t.Context(), r, e); err != nil {
					t.Errorf("just before %v: %v", tc.until, err)
				}
				time.Sleep(time.Millisecond)
				synctest.Wait()
				if got, err := c.Mint(t.Context(), r, e); err == nil {
					t.Errorf("at %v it is still handed out (cached %v)", tc.until, got.Cached)
				}
				_ = c.Close(t.Context())
			})
		})
	}
}

func TestCacheSingleFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{f: func(ctx context.Context, n int32, r minting.Request) (minting.Credential, error) {
			select {
			case <-time.After(time.Second):
				return token(n, r, time.Hour), nil
			case <-ctx.Done():
				return minting.Credential{}, fmt.Errorf("%w: %w", minting.ErrUnavailable, ctx.Err())
			}
		}}
		c := minting.NewCache(minting.CacheOptions{Minter: m})
		r := mintingtest.Request("p", ev())
		// The first caller starts the mint and leaves: the others still get it.
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan error, 1)
		go func() {
			_, err := c.Mint(ctx, r, ev())
			left <- err
		}()
		synctest.Wait()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if _, err := c.Mint(t.Context(), r, ev()); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		start := time.Now()
		cancel()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("who left got %v", err)
		}
		if time.Since(start) != 0 {
			t.Error("who left had to wait for the mint")
		}
		wg.Wait()
		if n := m.calls.Load(); n != 1 {
			t.Errorf("%d mints, want 1", n)
		}
		_ = c.Close(t.Context())
	})
}

func TestCacheMintHasADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{f: func(ctx context.Context, _ int32, _ minting.Request) (minting.Credential, error) {
			<-ctx.Done()
			return minting.Credential{}, fmt.Errorf("%w: %w", minting.ErrUnavailable, ctx.Err())
		}}
		c := minting.NewCache(minting.CacheOptions{Minter: m, Timeout: 5 * time.Second})
		start := time.Now()
		_, err := c.Mint(t.Context(), mintingtest.Request("p", ev()), ev())
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 5*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestCacheRenewsWhatIsUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := bearer(100 * time.Second)
		c := minting.NewCache(minting.CacheOptions{Minter: m})
		r := mintingtest.Request("p", ev())
		get(t, c, r)
		time.Sleep(60 * time.Second) // usable for 90 s, renewed from 63 to 76.5 s on
		get(t, c, r)
		synctest.Wait()
		if m.calls.Load() != 1 {
			t.Error("renewed too early")
		}
		time.Sleep(20 * time.Second)
		if got := get(t, c, r); got != "t1" {
			t.Errorf("the caller waited for the renewal and got %s", got)
		}
		synctest.Wait()
		if got := get(t, c, r); got != "t2" || m.calls.Load() != 2 {
			t.Errorf("after renewal %s of %d mints", got, m.calls.Load())
		}
		// One that nobody uses is not renewed.
		time.Sleep(time.Hour)
		if m.calls.Load() != 2 {
			t.Errorf("%d mints for nobody", m.calls.Load()-2)
		}
		_ = c.Close(t.Context())
	})
}

func TestCacheKeepsTheOldWhenRenewalFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := bearer(100 * time.Second)
		good := m.f
		m.f = func(ctx context.Context, n int32, r minting.Request) (minting.Credential, error) {
			if n > 1 {
				return minting.Credential{}, minting.ErrUnavailable
			}
			return good(ctx, n, r)
		}
		c := minting.NewCache(minting.CacheOptions{Minter: m})
		r := mintingtest.Request("p", ev())
		get(t, c, r)
		time.Sleep(80 * time.Second)
		for range 20 {
			get(t, c, r)
			synctest.Wait()
		}
		if n := m.calls.Load(); n != 2 {
			t.Errorf("%d renewals at once, want 1 and a pause", n-1)
		}
		_ = c.Close(t.Context())
	})
}

func TestCacheRemembersRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := minting.ErrDenied
		m := &mint{f: func(context.Context, int32, minting.Request) (minting.Credential, error) {
			return minting.Credential{}, answer
		}}
		c := minting.NewCache(minting.CacheOptions{Minter: m, DeniedFor: 3 * time.Second})
		r := mintingtest.Request("p", ev())
		ask := func() {
			if _, err := c.Mint(t.Context(), r, ev()); !errors.Is(err, answer) {
				t.Errorf("got %v", err)
			}
		}
		ask()
		ask()
		if m.calls.Load() != 1 {
			t.Error("a refusal was not remembered")
		}
		time.Sleep(3 * time.Second)
		answer = minting.ErrUnavailable
		ask()
		ask()
		if n := m.calls.Load(); n != 3 {
			t.Errorf("%d calls, want 3: a failure is not remembered here", n)
		}
	})
}

func TestForget(t *testing.T) {
	m := bearer(time.Hour)
	c := minting.NewCache(minting.CacheOptions{Minter: m})
	r := mintingtest.Request("p", ev())
	cred, _ := c.Mint(t.Context(), r, ev())
	c.Forget(cred.Handle)
	if got := get(t, c, r); got != "t2" {
		t.Errorf("after Forget %s", got)
	}
	c.Forget(cred.Handle) // the old handle must not drop the new credential
	if got := get(t, c, r); got != "t2" {
		t.Errorf("a stale Forget dropped its successor: %s", got)
	}
	if n := len(c.Live()); n != 2 {
		t.Errorf("%d live, want 2: forgetting is not revoking", n)
	}
	_ = c.Close(t.Context())
	if got := m.revocations(); !slices.Equal(got, []string{"t1", "t2"}) {
		t.Errorf("Close revoked %v", got)
	}
}

func TestRevokeWhere(t *testing.T) {
	m := bearer(time.Hour)
	var mu sync.Mutex
	var events []string
	c := minting.NewCache(minting.CacheOptions{Minter: m, OnEvent: func(name string, f map[string]string) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, name+" "+f["handle"]+" "+f["result"])
		for _, v := range f {
			if strings.Contains(v, "t1") {
				t.Errorf("%s holds the secret", name)
			}
		}
	}})
	a, b := mintingtest.Request("a", ev()), mintingtest.Request("b", ev())
	cred, _ := c.Mint(t.Context(), a, ev())
	get(t, c, b)
	out := c.RevokeWhere(t.Context(), func(r minting.Request, _ minting.Credential) bool { return r.Provider == "a" })
	if len(out) != 1 || out[0].Result != minting.Revoked || out[0].Handle != cred.Handle {
		t.Errorf("outcome %+v", out)
	}
	if got := get(t, c, a); got != "t3" {
		t.Errorf("a revoked credential was handed out: %s", got)
	}
	if got := get(t, c, b); got != "t2" {
		t.Errorf("another's credential went too: %s", got)
	}
	if got := m.revocations(); !slices.Equal(got, []string{"t1"}) {
		t.Errorf("revoked %v", got)
	}
	mu.Lock()
	defer mu.Unlock()
	if events[0] != "credential.minted "+cred.Handle+" " || !slices.Contains(events, "credential.revoked "+cred.Handle+" revoked") {
		t.Errorf("events %q", events)
	}
}

// The cache is empty before the issuer is told, and a credential that is being
// minted meanwhile is never used.
func TestRevokeWhereCatchesFlights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{f: func(_ context.Context, n int32, r minting.Request) (minting.Credential, error) {
			time.Sleep(time.Second)
			return token(n, r, time.Hour), nil
		}}
		c := minting.NewCache(minting.CacheOptions{Minter: m})
		r, other := mintingtest.Request("a", ev()), mintingtest.Request("b", ev())
		errs := make(chan error, 2)
		for _, q := range []minting.Request{r, other} {
			go func() {
				_, err := c.Mint(t.Context(), q, ev())
				if q.Provider == "b" && err != nil {
					t.Errorf("a bystander: %v", err)
				}
				errs <- err
			}()
		}
		synctest.Wait()
		c.RevokeWhere(t.Context(), func(r minting.Request, _ minting.Credential) bool { return r.Provider == "a" })
		one, two := <-errs, <-errs
		if (one == nil) == (two == nil) {
			t.Errorf("answers %v and %v, want one refusal", one, two)
		}
		synctest.Wait()
		if got := m.revocations(); len(got) != 1 {
			t.Errorf("revoked %v, want the one that was being minted", got)
		}
		if got, err := c.Mint(t.Context(), r, ev()); err != nil || got.Cached {
			t.Errorf("afterwards: cached %v, %v; want a fresh one", got.Cached, err)
		}
		_ = c.Close(t.Context())
	})
}

// The inventory says what an AWS session may do, which no scope does.
func TestInventoryOfSessions(t *testing.T) {
	c := minting.NewCache(minting.CacheOptions{Minter: bearer(time.Hour)})
	t.Cleanup(func() { _ = c.Close(context.WithoutCancel(t.Context())) })
	r := mintingtest.Request("p", ev())
	r.SessionPolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/k"}]}`
	get(t, c, r)
	if l := c.Live(); len(l) != 1 || !slices.Equal(l[0].Scope, []string{"s3:GetObject arn:aws:s3:::b/k"}) {
		t.Errorf("inventory %+v", l)
	}
}

// A credential that its issuer lets live longer than the rule is revoked when
// the rule's time is over.
func TestOutlivingCredentialsAreEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := bearer(time.Hour)
		c := minting.NewCache(minting.CacheOptions{Minter: m})
		r := mintingtest.Request("p", ev())
		r.TTL = time.Minute
		get(t, c, r)
		live := c.Live()
		if len(live) != 1 || live[0].Expires.Sub(live[0].Issued) != time.Minute || live[0].Ends.Sub(live[0].Issued) != time.Hour {
			t.Errorf("inventory %+v", live)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := m.revocations(); !slices.Equal(got, []string{"t1"}) || len(c.Live()) != 0 {
			t.Errorf("revoked %v, live %v", got, c.Live())
		}
	})
}

func TestIssuerThatCannotRevoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := bearer(time.Hour)
		m.undoErr = fmt.Errorf("%w: no endpoint", errors.ErrUnsupported)
		events := 0
		c := minting.NewCache(minting.CacheOptions{Minter: m, OnEvent: func(name string, _ map[string]string) {
			if name == minting.EventRevoked {
				events++
			}
		}})
		r := mintingtest.Request("p", ev())
		r.TTL = time.Minute
		get(t, c, r)
		if out := c.RevokeWhere(t.Context(), everything); out[0].Result != minting.Unsupported || out[0].Ends.Before(time.Now().Add(59*time.Minute)) {
			t.Errorf("outcome %+v", out)
		}
		if c.RevokeWhere(t.Context(), everything); events != 1 {
			t.Errorf("%d events for one credential that nobody can revoke, want 1", events)
		}
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if l := c.Live(); len(l) != 1 || l[0].Result != minting.Unsupported {
			t.Errorf("the issuer still accepts it, but the inventory says %+v", l)
		}
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if len(c.Live()) != 0 {
			t.Error("it ended but stays in the inventory")
		}
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestEvictedCredentialsAreRevoked(t *testing.T) {
	m := bearer(time.Hour)
	c := minting.NewCache(minting.CacheOptions{Minter: m, Size: 1})
	get(t, c, mintingtest.Request("a", ev()))
	get(t, c, mintingtest.Request("b", ev()))
	if len(c.Live()) != 2 {
		t.Fatalf("%d live, want 2", len(c.Live()))
	}
	if err := c.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := m.revocations(); !slices.Equal(got, []string{"t1", "t2"}) {
		t.Errorf("revoked %v", got)
	}
	if _, err := c.Mint(t.Context(), mintingtest.Request("a", ev()), ev()); !errors.Is(err, minting.ErrUnavailable) {
		t.Errorf("a closed cache mints: %v", err)
	}
}

// What lives at issuers is bounded, whatever the cache lets go of: beyond the
// bound nothing is minted, and room comes back with the end of a credential.
func TestLiveCredentialsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := bearer(time.Minute)
		c := minting.NewCache(minting.CacheOptions{Minter: m, Size: 1, MaxLive: 3})
		defer c.Close(t.Context())
		r := mintingtest.Request("p", ev())
		for n := range 3 {
			r.Scope = []string{fmt.Sprint(n)}
			get(t, c, r)
		}
		get(t, c, r) // what is ready is still handed out
		r.Scope = []string{"one more"}
		if _, err := c.Mint(t.Context(), r, ev()); !errors.Is(err, minting.ErrUnavailable) || !strings.Contains(err.Error(), "limit of credentials") {
			t.Errorf("got %v", err)
		}
		if n := m.calls.Load(); n != 3 || len(c.Live()) != 3 {
			t.Errorf("%d minted, %d live; want 3", n, len(c.Live()))
		}
		time.Sleep(2 * time.Minute)
		get(t, c, r)
	})
}

func TestCloseTellsOfFailuresAndTriesAgain(t *testing.T) {
	m := bearer(time.Hour)
	m.undoErr = minting.ErrUnavailable
	c := minting.NewCache(minting.CacheOptions{Minter: m})
	get(t, c, mintingtest.Request("a", ev()))
	if err := c.Close(t.Context()); !errors.Is(err, minting.ErrUnavailable) {
		t.Errorf("Close = %v", err)
	}
	m.mu.Lock()
	m.undoErr = nil
	m.mu.Unlock()
	if err := c.Close(t.Context()); err != nil || len(m.revocations()) != 1 {
		t.Errorf("second Close: %v, revoked %v", err, m.revocations())
	}
}

func TestCloseEndsFlights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mint{f: func(ctx context.Context, n int32, r minting.Request) (minting.Credential, error) {
			<-ctx.Done() // the issuer had granted it by then
			return token(n, r, time.Hour), nil
		}}
		c := minting.NewCache(minting.CacheOptions{Minter: m})
		got := make(chan error, 1)
		go func() {
			_, err := c.Mint(t.Context(), mintingtest.Request("a", ev()), ev())
			got <- err
		}()
		synctest.Wait()
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-got; err == nil {
			t.Error("a closed cache handed out a credential")
		}
		if len(m.revocations()) != 1 {
			t.Error("the last credential was left alive")
		}
	})
}

func TestUselessCredentialsAreRefused(t *testing.T) {
	for name, life := range map[string]time.Duration{"expired": -time.Second, "endless": 0} {
		m := bearer(life)
		if life == 0 {
			m.f = func(_ context.Context, n int32, r minting.Request) (minting.Credential, error) {
				cred := token(n, r, time.Hour)
				cred.Expires = time.Time{}
				return cred, nil
			}
		}
		c := minting.NewCache(minting.CacheOptions{Minter: m})
		if _, err := c.Mint(t.Context(), mintingtest.Request("a", ev()), ev()); !errors.Is(err, minting.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		if len(m.revocations()) != 1 {
			t.Errorf("%s: left alive", name)
		}
	}
}

func TestCacheUnderLoad(t *testing.T) {
	m := bearer(time.Hour)
	c := minting.NewCache(minting.CacheOptions{Minter: m, Size: 4})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 200 {
				r := mintingtest.Request(fmt.Sprint("p", (i+n)%6), ev())
				cred, err := c.Mint(t.Context(), r, ev())
				if err != nil && !errors.Is(err, minting.ErrDenied) {
					t.Error(err)
				}
				if err == nil && cred.Provider != r.Provider {
					t.Errorf("asked %s, got a credential of %s", r.Provider, cred.Provider)
				}
				if n%50 == 0 {
					c.RevokeWhere(t.Context(), func(q minting.Request, _ minting.Credential) bool { return q.Provider == r.Provider })
				}
			}
		})
	}
	wg.Wait()
	if err := c.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := len(m.revocations()), int(m.calls.Load()); got != want {
		t.Errorf("%d minted, %d revoked", want, got)
	}
}

func BenchmarkHit(b *testing.B) {
	c := minting.NewCache(minting.CacheOptions{Minter: bearer(24 * time.Hour)})
	e := minting.Evidence{Workload: mintingtest.Workload(), Source: identity.Source(nil)}
	r := mintingtest.Request("p", e)
	r.TTL = 24 * time.Hour
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Mint(b.Context(), r, e); err != nil {
			b.Fatal(err)
		}
	}
}
