package minting_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attache-dev/attache/minting"
)

func TestGuardHonoursRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g minting.Guard
		m := &mint{f: func(context.Context, int32, minting.Request) (minting.Credential, error) {
			return minting.Credential{}, minting.WithRetryAfter(minting.ErrUnavailable, time.Hour)
		}}
		w := g.Wrap("p", "https://as.example", m)
		ask := func() time.Duration {
			_, err := w.Mint(t.Context(), minting.Request{}, minting.Evidence{})
			wait, _ := minting.RetryAfter(err)
			return wait
		}
		if wait := ask(); wait != 5*time.Minute {
			t.Errorf("wait %v, want the bound", wait)
		}
		time.Sleep(time.Minute)
		if wait := ask(); wait != 4*time.Minute || m.calls.Load() != 1 {
			t.Errorf("wait %v after %d calls", wait, m.calls.Load())
		}
		time.Sleep(4 * time.Minute)
		if ask(); m.calls.Load() != 2 {
			t.Error("the issuer is never asked again")
		}
	})
}

func TestGuardBacksOffAndTrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g minting.Guard
		answer := minting.ErrUnavailable
		m := &mint{f: func(context.Context, int32, minting.Request) (minting.Credential, error) {
			if answer == nil {
				return minting.Credential{Handle: "h"}, nil
			}
			return minting.Credential{}, answer
		}}
		w := g.Wrap("p", "https://as.example", m)
		other := g.Wrap("q", "https://as.example", m)
		ask := func(w *minting.Guarded) error {
			_, err := w.Mint(t.Context(), minting.Request{}, minting.Evidence{})
			return err
		}
		for range 1000 {
			_ = ask(w)
			time.Sleep(10 * time.Millisecond)
		}
		if n := m.calls.Load(); n < 5 || n > 20 {
			t.Errorf("%d calls in 10 s of failures", n)
		}
		before := m.calls.Load()
		if err := ask(other); !errors.Is(err, minting.ErrUnavailable) || m.calls.Load() != before {
			t.Errorf("the endpoint's breaker does not cover its other provider: %v", err)
		}
		answer = nil
		time.Sleep(2 * time.Minute)
		if err := ask(w); err != nil {
			t.Errorf("after recovery: %v", err)
		}
		// A refusal is an answer: it neither waits nor trips.
		answer = minting.ErrDenied
		before = m.calls.Load()
		for range 20 {
			_ = ask(w)
		}
		if n := m.calls.Load() - before; n != 20 {
			t.Errorf("%d of 20 refusals were asked for", n)
		}
		// Neither does a caller that leaves.
		answer = fmt.Errorf("%w: %w", minting.ErrUnavailable, context.Canceled)
		before = m.calls.Load()
		for range 20 {
			_ = ask(w)
		}
		if n := m.calls.Load() - before; n != 20 {
			t.Errorf("%d of 20 after callers left", n)
		}
	})
}

func TestGuardTriesOnceMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g minting.Guard
		m := &mint{f: func(_ context.Context, n int32, r minting.Request) (minting.Credential, error) {
			if n == 1 {
				return minting.Credential{}, minting.ErrUnavailable
			}
			return token(n, r, time.Hour), nil
		}}
		if _, err := g.Wrap("p", "e", m).Mint(t.Context(), minting.Request{}, minting.Evidence{}); err != nil {
			t.Error(err)
		}
	})
}

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	tests := []struct {
		in   string
		want time.Duration
		ok   bool
	}{
		{"", 0, false},
		{"7", 7 * time.Second, true},
		{" 7 ", 7 * time.Second, true},
		{"0", 0, true},
		{"-1", 0, false},
		{"1.5", 0, false},
		{"soon", 0, false},
		{"99999", 5 * time.Minute, true},
		{"99999999999999999999999", 5 * time.Minute, true},
		{now.Add(9 * time.Second).Format(http.TimeFormat), 9 * time.Second, true},
		{now.Add(-time.Hour).Format(http.TimeFormat), 0, true},
		{now.Add(time.Hour).Format(http.TimeFormat), 5 * time.Minute, true},
	}
	for _, tc := range tests {
		if got, ok := minting.ParseRetryAfter(tc.in, now); got != tc.want || ok != tc.ok {
			t.Errorf("ParseRetryAfter(%q) = %v, %v; want %v, %v", tc.in, got, ok, tc.want, tc.ok)
		}
	}
}

func FuzzParseRetryAfter(f *testing.F) {
	f.Add("7")
	f.Add("Fri, 31 Dec 1999 23:59:59 GMT")
	f.Fuzz(func(t *testing.T, s string) {
		if d, ok := minting.ParseRetryAfter(s, time.Now()); d < 0 || d > 5*time.Minute || !ok && d != 0 {
			t.Fatalf("%q gives %v, %v", s, d, ok)
		}
	})
}

func TestRouter(t *testing.T) {
	a, b := bearer(time.Hour), bearer(time.Hour)
	r := minting.NewRouter(map[string]minting.Minter{"a": a})
	c, err := r.Mint(t.Context(), minting.Request{Provider: "a"}, minting.Evidence{})
	if err != nil || a.calls.Load() != 1 {
		t.Fatal(err)
	}
	if _, err := r.Mint(t.Context(), minting.Request{Provider: "b"}, minting.Evidence{}); !errors.Is(err, minting.ErrDenied) {
		t.Errorf("unknown provider: %v", err)
	}
	undone := false
	c.Undo = func(context.Context) error { undone = true; return nil }
	r.Set(map[string]minting.Minter{"b": b})
	if err := r.Revoke(t.Context(), c); err != nil || !undone {
		t.Errorf("a credential of a provider that is gone cannot be revoked: %v", err)
	}
	var zero minting.Router
	if _, err := zero.Mint(t.Context(), minting.Request{Provider: "b"}, minting.Evidence{}); !errors.Is(err, minting.ErrDenied) {
		t.Errorf("zero Router: %v", err)
	}
}

// While an issuer is left alone, callers still learn why: an identity that is
// not there is not the issuer's fault, and is answered otherwise.
func TestGuardRemembersWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g minting.Guard
		why := errors.New("no identity")
		m := &mint{f: func(context.Context, int32, minting.Request) (minting.Credential, error) {
			return minting.Credential{}, minting.WithRetryAfter(fmt.Errorf("%w: %w", minting.ErrUnavailable, why), time.Minute)
		}}
		w := g.Wrap("p", "https://as.example", m)
		for range 3 {
			if _, err := w.Mint(t.Context(), minting.Request{}, minting.Evidence{}); !errors.Is(err, why) {
				t.Errorf("got %v, want it to match %v", err, why)
			}
		}
		if m.calls.Load() != 1 {
			t.Errorf("asked %d times, want 1", m.calls.Load())
		}
	})
}
