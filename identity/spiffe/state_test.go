package spiffe

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/secret"
)

func TestTokenLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := newState(slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		k := jwtKey{spiffeid.RequireFromString("spiffe://a.test/x"), "aud"}
		s.put(k, identity.JWT{Token: secret.New("t"), Expires: time.Now().Add(10 * time.Minute)}, s.now())
		for _, step := range []struct {
			sleep         time.Duration
			usable, fresh bool
		}{
			{0, true, true},
			{5*time.Minute - time.Second, true, true},
			{2 * time.Second, true, false},                // past half: renew
			{4*time.Minute + 40*time.Second, true, false}, // in an outage still good
			{10 * time.Second, false, false},              // too little left
		} {
			time.Sleep(step.sleep)
			j, fresh := s.get(k)
			if !j.Token.IsZero() != step.usable || fresh != step.fresh {
				t.Errorf("after %v: usable %v fresh %v; want %v %v", step.sleep, !j.Token.IsZero(), fresh, step.usable, step.fresh)
			}
		}
		// A token fetched before a redaction is not kept after it.
		epoch := s.now()
		s.drop()
		s.put(k, identity.JWT{Token: secret.New("old"), Expires: time.Now().Add(time.Hour)}, epoch)
		if j, _ := s.get(k); !j.Token.IsZero() {
			t.Error("kept a token from before the redaction")
		}
	})
}
