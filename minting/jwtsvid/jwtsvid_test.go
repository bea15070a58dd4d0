package jwtsvid_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/jwtsvid"
	"github.com/attache-dev/attache/minting/mintingtest"
)

const noHTTP = "no issuer is called over HTTP"

func TestConformance(t *testing.T) {
	mintingtest.Run(t, mintingtest.Suite{
		NotApplicable: map[mintingtest.Mode]string{
			mintingtest.Grant:    "a JWT is another in each call: TestMint",
			mintingtest.Throttle: noHTTP, mintingtest.Redirect: noHTTP, mintingtest.Empty: noHTTP,
			mintingtest.NoCredential: noHTTP, mintingtest.Garbage: noHTTP, mintingtest.Cancelled: "signing is local",
			mintingtest.Huge: noHTTP, mintingtest.Header: noHTTP,
		},
		New: func(t *testing.T, m mintingtest.Mode) mintingtest.Fixture {
			t.Helper()
			src := mintingtest.NewSource(t)
			switch m {
			case mintingtest.Deny:
				src.FailWith(errors.New("not registered"))
			case mintingtest.Fail:
				src.FailWith(fmt.Errorf("%w: agent is away", identity.ErrUnavailable))
			default:
			}
			p, err := jwtsvid.New("p", v1alpha1.JWT{}, minting.Deps{})
			if err != nil {
				t.Fatal(err)
			}
			e := minting.Evidence{Workload: mintingtest.Workload(), Source: src}
			return mintingtest.Fixture{Minter: p, Request: mintingtest.Request("p", e), Evidence: e}
		},
	})
}

func TestMint(t *testing.T) {
	tests := []struct{ name, rule, provider, dest, want string }{
		{"destination", "", "", "https://api.example.com:443", "https://api.example.com"},
		{"odd port", "", "", "https://api.example.com:8443", "https://api.example.com"},
		{"IPv6", "", "", "https://[2001:db8::1]:443", "https://[2001:db8::1]"},
		{"provider", "", "vault", "https://api.example.com:443", "vault"},
		{"rule before provider", "r", "vault", "https://api.example.com:443", "r"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			src := mintingtest.NewSource(t)
			p, err := jwtsvid.New("p", v1alpha1.JWT{Audience: tc.provider}, minting.Deps{})
			if err != nil {
				t.Fatal(err)
			}
			e := minting.Evidence{Workload: mintingtest.Workload(), Source: src}
			r := mintingtest.Request("p", e)
			r.Audience, r.Destination, r.TTL = tc.rule, tc.dest, time.Minute
			c, err := p.Mint(t.Context(), r, e)
			if err != nil {
				t.Fatal(err)
			}
			tok, err := jwt.ParseSigned(c.Secret.Reveal(), []jose.SignatureAlgorithm{jose.ES256})
			if err != nil {
				t.Fatal(err)
			}
			var claims jwt.Claims
			if err := tok.Claims(src.Key.Public(), &claims); err != nil {
				t.Fatal(err)
			}
			if len(claims.Audience) != 1 || claims.Audience[0] != tc.want || claims.Subject != r.WorkloadID {
				t.Errorf("claims %+v, want audience %s", claims, tc.want)
			}
			if c.Kind != minting.KindJWT || !c.Derived || c.RevokeID != claims.ID || time.Until(c.Expires) > time.Minute {
				t.Errorf("credential %+v", c)
			}
			if err := minting.Revoke(t.Context(), p, c); !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("Revoke: %v", err)
			}
		})
	}
}

func TestNoHost(t *testing.T) {
	p, _ := jwtsvid.New("p", v1alpha1.JWT{}, minting.Deps{})
	e := minting.Evidence{Workload: mintingtest.Workload(), Source: mintingtest.NewSource(t)}
	if _, err := p.Mint(t.Context(), minting.Request{Destination: "nowhere"}, e); !errors.Is(err, minting.ErrDenied) {
		t.Errorf("no host: %v", err)
	}
	if _, err := p.Mint(t.Context(), mintingtest.Request("p", e), minting.Evidence{}); !errors.Is(err, minting.ErrDenied) {
		t.Errorf("nobody: %v", err)
	}
}
