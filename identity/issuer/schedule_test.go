package issuer_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/issuer"
)

// shared is an issuer that follows a schedule by a clock.
type shared struct {
	now      time.Time
	schedule *issuer.Schedule
	cfg      issuer.Config
	*issuer.Issuer
}

func newShared(t *testing.T) *shared {
	t.Helper()
	s := &shared{now: time.Now()}
	s.cfg = issuer.Config{
		TrustDomain: td(), RotateEvery: 30 * 24 * time.Hour, PublishAhead: 24 * time.Hour, MaxJWTTTL: 5 * time.Minute,
		Now: func() time.Time { return s.now }, Schedule: func() *issuer.Schedule { return s.schedule },
	}
	s.advance(t)
	s.Issuer = start(t, s.cfg)
	return s
}

func (s *shared) advance(t *testing.T) bool {
	t.Helper()
	next, changed, err := s.schedule.Advance(s.cfg, s.now)
	if err != nil {
		t.Fatal(err)
	}
	s.schedule = next
	return changed
}

// reread goes through the text, as another replica does.
func (s *shared) reread(t *testing.T) {
	t.Helper()
	b, err := s.schedule.MarshalSecret()
	if err != nil {
		t.Fatal(err)
	}
	if s.schedule, err = issuer.ParseSchedule(b); err != nil {
		t.Fatal(err)
	}
}

// TestScheduleKeepsItsPromise: through months, whoever fetches keys or
// authorities verifies everything signed until a day later, and everything
// signed before that has not expired; also after the clock jumped.
func TestScheduleKeepsItsPromise(t *testing.T) {
	s := newShared(t)
	type signed struct {
		kid string
		end time.Time
	}
	var tokens []signed
	type fetched struct {
		kids map[string]bool
		cas  []*x509.Certificate
		at   time.Time
	}
	var sets []fetched
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := spiffeid.RequireFromPath(td(), "/ns/a/sa/b")
	end := s.now.Add(150 * 24 * time.Hour)
	for i := 0; s.now.Before(end); i++ {
		s.advance(t)
		if i%7 == 0 {
			s.reread(t)
		}
		now := fetched{kids: map[string]bool{}, cas: s.schedule.Authorities(), at: s.now}
		for _, j := range s.Keys(t.Context()).Keys {
			now.kids[j.KeyID] = true
		}
		for _, tk := range tokens {
			if s.now.Before(tk.end) && !now.kids[tk.kid] {
				t.Fatalf("a token is not expired, and its key %s is not published", tk.kid)
			}
		}
		_, j := mint(t, s.Issuer, identity.JWTRequest{})
		kid := keyID(t, j.Token.Reveal())
		cert, err := s.SignX509(id, k.Public(), pkix.Name{})
		if err != nil {
			t.Fatal(err)
		}
		for n, f := range append(sets, now) {
			if (i > 3 || n > 0) && s.now.Sub(f.at) <= 24*time.Hour {
				if !f.kids[kid] {
					t.Fatalf("key %s signs %v after a fetch that has it not", kid, s.now.Sub(f.at))
				}
				if _, _, err := x509svid.Verify(cert, x509bundle.FromX509Authorities(td(), f.cas), x509svid.WithTime(s.now)); err != nil {
					t.Fatalf("an SVID by a bundle that is %v old: %v", s.now.Sub(f.at), err)
				}
			}
		}
		tokens = append(tokens, signed{kid, j.Expires})
		sets = append(sets, now)
		sets, tokens = sets[max(0, len(sets)-5):], tokens[max(0, len(tokens)-3):]
		s.now = s.now.Add(11 * time.Hour)
		if i == 100 { // nobody was there for three weeks
			s.now = s.now.Add(21 * 24 * time.Hour)
			sets = nil
		}
	}
	if n := len(s.Keys(t.Context()).Keys); n > 3 {
		t.Errorf("%d keys are published: old ones stay", n)
	}
}

func keyID(t *testing.T, token string) string {
	t.Helper()
	tok, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	return tok.Headers[0].KeyID
}

func TestScheduleSteadiness(t *testing.T) {
	s := newShared(t)
	if s.advance(t) {
		t.Error("changed without need")
	}
	a, err := s.schedule.MarshalSecret()
	if err != nil {
		t.Fatal(err)
	}
	s.reread(t)
	b, err := s.schedule.MarshalSecret()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("another text after reading it back")
	}
	if s.advance(t) {
		t.Error("changed without need after reading it back")
	}
	if !s.schedule.Due(s.now).IsZero() {
		t.Error("something is due")
	}
}

func TestSignX509Refuses(t *testing.T) {
	s := newShared(t)
	k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := spiffeid.RequireFromPath(td(), "/ns/a/sa/b")
	if _, err := s.SignX509(id, k.Public(), pkix.Name{}); err == nil {
		t.Error("signed for P-384")
	}
	if _, err := s.SignX509(td().ID(), good.Public(), pkix.Name{}); err == nil {
		t.Error("signed for the trust domain itself")
	}
	if _, err := s.SignX509(spiffeid.RequireFromString("spiffe://other.test/a"), good.Public(), pkix.Name{}); err == nil {
		t.Error("signed for another trust domain")
	}
	if _, err := start(t, issuer.Config{}).ServingCertificate("a"); err == nil {
		t.Error("a serving certificate without a schedule")
	}
}

// FuzzParseSchedule: what is read can be written, and no error repeats a key.
func FuzzParseSchedule(f *testing.F) {
	var none *issuer.Schedule
	s, _, err := none.Advance(issuer.Config{TrustDomain: td()}, time.Now())
	if err != nil {
		f.Fatal(err)
	}
	b, err := s.MarshalSecret()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)/2])
	f.Add([]byte(`{"version":1,"jwt":[],"ca":[],"serving":[]}`))
	f.Add([]byte(strings.Replace(string(b), "CERTIFICATE", "PRIVATE KEY", 2)))
	f.Fuzz(func(t *testing.T, in []byte) {
		s, err := issuer.ParseSchedule(in)
		if err != nil {
			if strings.Contains(err.Error(), "-----") {
				t.Errorf("the error repeats what it read: %v", err)
			}
			return
		}
		if _, err := s.MarshalSecret(); err != nil {
			t.Error(err)
		}
	})
}
