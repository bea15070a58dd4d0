package wire_test

import (
	"strings"
	"testing"

	"github.com/attache-dev/attache/injector/internal/wire"
)

func FuzzEdit(f *testing.F) {
	for _, s := range []string{"", "a=1&b=2", "&&a;b=;=c&", "%zz=%2f&a+b=c%", "a; b=1;  c=2"} {
		f.Add(s)
	}
	keep := func(_, v string) (string, bool) { return v, true }
	f.Fuzz(func(t *testing.T, s string) {
		if got := wire.Params(s, keep); got != s {
			t.Fatalf("Params altered %q: %q", s, got)
		}
		if got := wire.Cookies(s, keep); got != s {
			t.Fatalf("Cookies altered %q: %q", s, got)
		}
		if got := wire.Drop(s, func(p string) bool { return strings.Contains(p, "a") }); strings.Contains(got, "a") {
			t.Fatalf("Drop left %q of %q", got, s)
		}
	})
}

func TestDrop(t *testing.T) {
	bad := func(p string) bool { return strings.HasPrefix(p, "x") }
	for in, want := range map[string]string{
		"x=1": "", "x&a": "a", "a&x": "a", "a=%2f&x;b": "a=%2f;b", "a;b": "a;b", "x&x;x": "", "a&&b": "a&&b",
	} {
		if got := wire.Drop(in, bad); got != want {
			t.Errorf("Drop(%q) = %q, want %q", in, got, want)
		}
	}
}
