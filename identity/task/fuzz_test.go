package task

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzClaims: whatever parses is bounded and means the same to encoding/json.
func FuzzClaims(f *testing.F) {
	f.Add([]byte(`{"iss":"https://a","sub":"b","aud":["c"],"exp":1.5,"iat":1,"jti":"x","may_act":{"sub":"s"},"email":"e","email_verified":true}`))
	f.Add([]byte(`{"sub":"a","SUB":"b"}`))
	f.Add([]byte(`{"sub":"a","sub":"b"}`))
	f.Add([]byte(`{"exp":1e400}`))
	f.Add([]byte(`{"x":1e400}`))
	f.Add([]byte(`{"groups":[null],"aud":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseClaims(b)
		if err != nil {
			return
		}
		// A number that no float64 holds (1e400) is JSON: numbers stay text here.
		var m map[string]any
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.UseNumber()
		if err := dec.Decode(&m); err != nil {
			t.Fatalf("no JSON: %v", err)
		}
		if s, _ := m["sub"].(string); s != c.Subject || len(s) > maxName || hasControl(s) {
			t.Errorf("sub %q became %q", s, c.Subject)
		}
		if len(c.Groups) > maxGroups || len(c.Audience) > maxAudList {
			t.Error("unbounded lists")
		}
		if e, ok := m["exp"]; ok != !c.Expires.IsZero() {
			t.Errorf("exp %v became %v", e, c.Expires)
		}
		if c.Email != "" && m["email_verified"] != true && m["email_verified"] != "true" {
			t.Error("unverified email")
		}
	})
}

// FuzzToken: no input panics, and no error repeats it.
func FuzzToken(f *testing.F) {
	f.Add("eyJhbGciOiJSUzI1NiJ9.e30.c2ln")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, s string) {
		jws, err := parseToken(s)
		if err != nil {
			if len(s) > 24 && strings.Contains(err.Error(), s) {
				t.Errorf("the error repeats the token")
			}
			return
		}
		if len(jws.Signatures) != 1 {
			t.Errorf("%d signatures", len(jws.Signatures))
		}
		_, _ = parseClaims(jws.UnsafePayloadWithoutVerification())
	})
}

// FuzzOpenBody: strict JSON of known members, all texts.
func FuzzOpenBody(f *testing.F) {
	f.Add([]byte(`{"purpose":"x","workload":"spiffe://a/b","run":"r","human_token":"t","ttl":"5m"}`))
	f.Add([]byte(`{"purpose":"x","purpose":"y"}`))
	f.Add([]byte(`{"ttl":"9999999h"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := parseOpen(b)
		if err != nil {
			return
		}
		var m map[string]string
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatalf("not a map of texts: %v", err)
		}
		if m["purpose"] != o.purpose || o.ttl < 0 || strings.TrimSpace(m["human_token"]) != o.token.Reveal() {
			t.Errorf("%q became %+v", b, o)
		}
	})
}

// FuzzClean: bounded, printable, valid.
func FuzzClean(f *testing.F) {
	f.Add("a\n\u202e\xff")
	f.Fuzz(func(t *testing.T, s string) {
		out := clean(s, maxPurpose)
		if len(out) > maxPurpose || !utf8.ValidString(out) || hasControl(out) {
			t.Errorf("%q became %q", s, out)
		}
	})
}
