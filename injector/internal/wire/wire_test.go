package wire_test

import (
	"net/http"
	"reflect"
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

func TestCookieLines(t *testing.T) {
	lines := []string{"a=1; b=2", "b=3", "c=4", ""}
	const key = "cookie" // HTTP/2's spelling stays as it is
	h := http.Header{key: lines, "Other": {"b=2"}}
	dropB := func(name, value string) (string, bool) { return value, name != "b" }
	wire.CookieLines(h, key, dropB, func(line string) bool { return line == "c=4" })
	if want := (http.Header{key: {"a=1"}, "Other": {"b=2"}}); !reflect.DeepEqual(h, want) {
		t.Errorf("got %v, want %v", h, want)
	}
	if lines[0] != "a=1; b=2" || lines[1] != "b=3" {
		t.Errorf("the caller's lines were changed: %q", lines)
	}
	h = http.Header{key: {"b=3"}}
	wire.CookieLines(h, key, dropB, nil)
	if len(h) > 0 {
		t.Errorf("an empty field is left: %v", h)
	}
}
