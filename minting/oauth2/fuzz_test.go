package oauth2

import (
	"errors"
	"strings"
	"testing"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/minting"
)

func FuzzTokenAnswer(f *testing.F) {
	for _, s := range []string{
		`{"access_token":"a","token_type":"Bearer","expires_in":3600,"scope":"r w"}`,
		`{"access_token":"a","token_type":"DPoP","expires_in":"-1"}`,
		`{"access_token":"a\n","token_type":"N_A","issued_token_type":"x","expires_in":1e400}`,
		`{"access_token":"a","token_type":"bearer","expires_in":NaN}`,
		`[]`, `null`, `{"access_token":`, "access_token=a",
	} {
		f.Add([]byte(s), false, true)
		f.Add([]byte(s), true, false)
	}
	f.Fuzz(func(t *testing.T, body []byte, dpop, exchange bool) {
		tok, err := parseToken(body, expected{dpop: dpop, exchange: exchange})
		if err != nil {
			if !errors.Is(err, minting.ErrUnavailable) && !errors.Is(err, minting.ErrDenied) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		if tok.lifetime <= 0 || tok.lifetime > maxLifetime {
			t.Fatalf("lifetime %v", tok.lifetime)
		}
		if s := tok.access.Reveal(); s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			t.Fatalf("token %q reaches a header", s)
		}
	})
}

func FuzzMetadata(f *testing.F) {
	f.Add([]byte(`{"issuer":"https://as.example","token_endpoint":"https://as.example/t"}`))
	f.Add([]byte(`{"issuer":"https://as.example","token_endpoint":"http://169.254.169.254/t"}`))
	f.Add([]byte(`{"issuer":"https://as.example","token_endpoint":"https://u@as.example/t","revocation_endpoint":"file:///etc/passwd"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		s := v1alpha1.OAuth2{Issuer: "https://as.example"}
		e, err := parseMetadata(body, s)
		if err != nil {
			return
		}
		for _, u := range []string{e.token, e.revocation} {
			if u != "" && !strings.HasPrefix(strings.ToLower(u), "https:") {
				t.Fatalf("endpoint %q", u)
			}
		}
	})
}
