// Package mintingtest is what every provider must pass: how it grants, how it
// fails, and that it never tells a secret.
package mintingtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attache-dev/attache/minting"
)

// Mode is how an issuer behaves.
type Mode string

// The modes. Each is one subtest of [Run].
const (
	Grant        Mode = "grant"
	Deny         Mode = "deny"          // refuses in its own words
	Fail         Mode = "fail"          // 500
	Throttle     Mode = "throttle"      // 429, Retry-After: 7
	Redirect     Mode = "redirect"      // 307 to somebody else
	Empty        Mode = "empty"         // 200 and nothing
	NoCredential Mode = "no-credential" // 200 and {}
	Garbage      Mode = "garbage"       // 200 and no JSON
	Cancelled    Mode = "cancelled"     // never answers; the caller goes away
	Huge         Mode = "huge"          // 200 and 10 MB
	Header       Mode = "header"        // a credential with CR LF in it
)

// Modes lists all of them.
func Modes() []Mode {
	return []Mode{Grant, Deny, Fail, Throttle, Redirect, Empty, NoCredential, Garbage, Cancelled, Huge, Header}
}

// RetryAfter is what Throttle asks for.
const RetryAfter = 7 * time.Second

// hugeBody is what Huge answers.
const hugeBody = 10 << 20

// Fixture is a provider against an issuer in one mode.
type Fixture struct {
	Minter   minting.Minter
	Request  minting.Request
	Evidence minting.Evidence
	// Want is the credential's text when granted.
	Want string
	// Secrets must be in no error: what the provider sends, what it gets.
	Secrets func() []string
	// Revoked reports whether the issuer ended the credential. nil: the issuer
	// cannot revoke, and Revoke must say so.
	Revoked func() bool
}

// Suite runs a provider through the modes.
type Suite struct {
	New func(t *testing.T, m Mode) Fixture
	// NotApplicable says of a mode why it cannot happen to this provider.
	NotApplicable map[Mode]string
}

// Run runs every mode as a subtest.
func Run(t *testing.T, s Suite) {
	t.Helper()
	for _, m := range Modes() {
		if s.NotApplicable[m] != "" {
			continue
		}
		t.Run(string(m), func(t *testing.T) {
			f := s.New(t, m)
			switch m {
			case Grant:
				granted(t, f)
			case Cancelled:
				cancelled(t, f)
			default:
				refused(t, f, m)
			}
		})
	}
}

func granted(t *testing.T, f Fixture) {
	t.Helper()
	c, err := f.Minter.Mint(t.Context(), f.Request, f.Evidence)
	if err != nil {
		t.Fatalf("Mint: %v", err)
	}
	if got := c.Secret.Reveal(); got != f.Want {
		t.Errorf("the credential is not the issuer's (%d bytes, want %d)", len(got), len(f.Want))
	}
	if !strings.HasPrefix(c.Handle, "cred_") || len(c.Handle) != len("cred_")+32 {
		t.Errorf("Handle = %q, want cred_ and 128 bits", c.Handle)
	}
	if c.Provider != f.Request.Provider || c.Kind == "" || c.Issued.IsZero() || c.Cached {
		t.Errorf("incomplete credential: provider %q, kind %q, issued %v, cached %v", c.Provider, c.Kind, c.Issued, c.Cached)
	}
	if c.Kind != minting.KindAPIKey && !c.Expires.After(time.Now()) {
		t.Errorf("Expires = %v, want a time to come", c.Expires)
	}
	if c.Kind == minting.KindAPIKey && c.Derived {
		t.Error("an API key is Derived; it is its own root")
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		if strings.Contains(fmt.Sprintf(verb, c), f.Want) {
			t.Errorf("%s prints the secret", verb)
		}
	}
	again, err := f.Minter.Mint(t.Context(), f.Request, f.Evidence)
	if err != nil {
		t.Fatalf("second Mint: %v", err)
	}
	if again.Handle == c.Handle {
		t.Error("two credentials share a handle")
	}
	err = minting.Revoke(t.Context(), f.Minter, c)
	if f.Revoked == nil {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("Revoke = %v, want ErrUnsupported from an issuer that cannot", err)
		}
		return
	}
	if err != nil {
		t.Fatalf("Revoke: %v", err)
	}
	if !f.Revoked() {
		t.Error("Revoke returned, but the issuer knows nothing of it")
	}
}

func refused(t *testing.T, f Fixture, m Mode) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := f.Minter.Mint(ctx, f.Request, f.Evidence)
	if err == nil {
		t.Fatalf("Mint granted %s, want an error", c.Handle)
	}
	if !c.Secret.IsZero() {
		t.Error("an error came with a credential")
	}
	want, other := minting.ErrUnavailable, minting.ErrDenied
	if m == Deny {
		want, other = other, want
	}
	if !errors.Is(err, want) || errors.Is(err, other) {
		t.Errorf("error %q: want it to match %q and not %q", err, want, other)
	}
	if wait, ok := minting.RetryAfter(err); (m == Throttle) != ok || ok && wait != RetryAfter {
		t.Errorf("RetryAfter = %v, %v", wait, ok)
	}
	tellsNothing(t, f, err)
}

func cancelled(t *testing.T, f Fixture) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	start := time.Now()
	_, err := f.Minter.Mint(ctx, f.Request, f.Evidence)
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("Mint returned %v after its caller left", d)
	}
	if !errors.Is(err, context.Canceled) || !errors.Is(err, minting.ErrUnavailable) {
		t.Errorf("error %v: want context.Canceled and ErrUnavailable", err)
	}
	tellsNothing(t, f, err)
}

// tellsNothing looks for whole secrets and for their parts.
func tellsNothing(t *testing.T, f Fixture, err error) {
	t.Helper()
	if err == nil || f.Secrets == nil {
		return
	}
	for _, s := range f.Secrets() {
		for _, part := range append(strings.Split(s, "."), s) {
			if len(part) >= 8 && strings.Contains(err.Error(), part) {
				t.Errorf("error holds a secret: %v", err)
				return
			}
		}
	}
}

// Issuer serves grant or deny by mode, and what is common to all HTTP issuers
// in the other modes.
func Issuer(t *testing.T, m Mode, grant, deny http.Handler) http.Handler {
	t.Helper()
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	var thief atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { thief.Add(1) }))
	t.Cleanup(func() {
		elsewhere.Close()
		if thief.Load() != 0 {
			t.Error("a redirect was followed")
		}
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch m {
		case Grant, Header:
			grant.ServeHTTP(w, r)
		case Deny:
			deny.ServeHTTP(w, r)
		case Fail:
			body, _ := io.ReadAll(r.Body)
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = w.Write(body) // a debug page that repeats the request
		case Throttle:
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(http.StatusTooManyRequests)
		case Redirect:
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		case Empty:
		case NoCredential:
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, "{}")
		case Garbage:
			_, _ = io.WriteString(w, "<html>all is well</html>")
		case Huge:
			w.Header().Set("Content-Type", "application/json")
			// Good JSON at its start, so that cutting it off is no defence.
			_, _ = io.WriteString(w, `{"access_token":"x","token_type":"Bearer","auth":{"client_token":"x"},"data":{"value":"x"}}`)
			pad := strings.Repeat(" ", 64<<10)
			for range hugeBody / len(pad) {
				if _, err := io.WriteString(w, pad); err != nil {
					return
				}
			}
		case Cancelled:
			_, _ = io.Copy(io.Discard, r.Body) // else the server cannot see the client leave
			select {
			case <-r.Context().Done():
			case <-done:
			}
			// Returning would answer 200, which can overtake the client's leave.
			panic(http.ErrAbortHandler)
		}
	})
}
