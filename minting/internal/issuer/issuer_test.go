package issuer_test

import (
	"strings"
	"testing"

	"github.com/attache-dev/attache/minting/internal/issuer"
)

func TestSafe(t *testing.T) {
	const sent = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"
	tests := []struct{ name, in, want string }{
		{"plain", "client not found", "client not found"},
		{"whole", "bad " + sent, "bad …"},
		{"fragment", "bad " + sent[4:14] + " here", "bad … here"},
		{"somebody else's token", "got " + strings.Repeat("Zz9", 12), "got …"},
		{"quoted and bracketed", `token="` + sent[2:20] + `";x`, "token … x"},
		{"control", "a\r\nb\x1b[31mc", "a b 31mc"},
		{"non-ASCII", "a\u202eb", "a b"},
		{"empty", "", ""},
	}
	for _, tc := range tests {
		if got := issuer.Safe(tc.in, "", sent); got != tc.want {
			t.Errorf("%s: Safe = %q, want %q", tc.name, got, tc.want)
		}
	}
	if got := issuer.Safe(strings.Repeat("word ", 1000)); len(got) > 240 {
		t.Errorf("%d bytes of text", len(got))
	}
}

func FuzzSafe(f *testing.F) {
	f.Add("invalid client", "secret-secret")
	f.Fuzz(func(t *testing.T, text, sent string) {
		got := issuer.Safe(text, sent)
		if len(got) > 240 || strings.ContainsAny(got, "\r\n\x00\x1b") {
			t.Fatalf("Safe = %q", got)
		}
		if len(sent) > 32 && !strings.ContainsAny(sent, " ") && strings.Contains(got, sent) {
			t.Fatalf("Safe repeats %q", sent)
		}
	})
}
