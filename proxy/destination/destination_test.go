package destination_test

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/attache-dev/attache/proxy/destination"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct{ scheme, in, want, hostport string }{
		{"https", "api.example.com", "https://api.example.com", "api.example.com:443"},
		{"https", "API.Example.COM.:443", "https://api.example.com", "api.example.com:443"},
		{"http", "api.example.com:443", "http://api.example.com:443", "api.example.com:443"},
		{"http", "a_b.example", "http://a_b.example", "a_b.example:80"},
		{"https", "r3---sn-x.example", "https://r3---sn-x.example", "r3---sn-x.example:443"},
		{"https", "bücher.example:8443", "https://xn--bcher-kva.example:8443", "xn--bcher-kva.example:8443"},
		{"https", "XN--BCHER-KVA.example", "https://xn--bcher-kva.example", "xn--bcher-kva.example:443"},
		{"https", "127.0.0.1", "https://127.0.0.1", "127.0.0.1:443"},
		{"https", "[2001:DB8::1]:8443", "https://[2001:db8::1]:8443", "[2001:db8::1]:8443"},
		{"http", "[::1]", "http://[::1]", "[::1]:80"},
		{"https", "1e100.net", "https://1e100.net", "1e100.net:443"},
		{"https", "example.0x7g", "https://example.0x7g", "example.0x7g:443"},
	} {
		t.Run(tt.in, func(t *testing.T) {
			d, err := destination.Parse(tt.scheme, tt.in, 0)
			if err != nil {
				t.Fatal(err)
			}
			if d.String() != tt.want || d.HostPort() != tt.hostport {
				t.Errorf("got %s and %s, want %s and %s", d, d.HostPort(), tt.want, tt.hostport)
			}
			if !d.Is(tt.in) {
				t.Errorf("%s is not %q", d, tt.in)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, in := range []string{
		"", ".", ":443", "host:", "host:0", "host:65536", "host:0443", "host:+443", "host:4 43", "host:443:443",
		"user@host", "user:pw@host:443", "a..b", ".a", "a..", "a b", "a/b", "a?b", "a#b", "a%41", "a\x00b", "a\r\nb",
		"-a.example", "a-.example", "a,b", "host,host", "*.example",
		strings.Repeat("a", 64) + ".example", strings.Repeat("a.", 127) + "aa", strings.Repeat("a", 2000),
		"0x7f.1", "0x7f000001", "127.1", "127.0.1", "2130706433", "0177.0.0.1", "127.0.0.01", "127.0.0.1.", "256.0.0.1",
		"1.2.3.4.5", "0x", "foo.0x7f", "foo.1", "１２７.0.0.1", "127。0。0。1",
		"[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[fe80::1%eth0]", "[fe80::1%25eth0]", "[0:0:0:0:0:0:0:1]", "[::0001]",
		"[::1", "::1", "[::1]x", "[::1]:", "[127.0.0.1]", "[]", "[::1]]", "[::127.0.0.1]",
		"xn--a", "xn--abc-", "xn--zzzzzzzzz99999999", "a\u200db.example", "\xff.example", "example\u2024com\u2044x",
	} {
		t.Run(in, func(t *testing.T) {
			if d, err := destination.Parse("https", in, 0); err == nil {
				t.Errorf("%q gave %v, want an error", in, d)
			} else if !errors.Is(err, destination.ErrInvalid) {
				t.Errorf("%v does not match ErrInvalid", err)
			}
		})
	}
	if _, err := destination.Parse("ftp", "host", 21); err == nil {
		t.Error("scheme ftp passed")
	}
	if _, err := destination.Parse("https", "host", destination.PortRequired); err == nil {
		t.Error("an authority without port passed where one is required")
	}
}

func TestIs(t *testing.T) {
	d, err := destination.Parse("https", "api.example.com", 0)
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]bool{
		"api.example.com": true, "api.example.com:443": true, "API.example.com.": true,
		"api.example.com:80": false, "api.example.co": false, "evil.example": false, "": false, "api.example.com@evil": false,
	} {
		if got := d.Is(in); got != want {
			t.Errorf("Is(%q) = %v, want %v", in, got, want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { d.Is("api.example.com") }); n > 0 {
		t.Errorf("the canonical spelling costs %v allocations, want 0", n)
	}
}

func TestFromURL(t *testing.T) {
	u, _ := url.Parse("HTTPS://API.example.com:443/x?y")
	if d, err := destination.FromURL(u); err != nil || d.String() != "https://api.example.com" {
		t.Errorf("got %v, %v", d, err)
	}
	for _, in := range []string{"https://u:p@h/", "mailto:x", "/path", "https:opaque"} {
		u, _ := url.Parse(in)
		if d, err := destination.FromURL(u); err == nil {
			t.Errorf("%s gave %v, want an error", in, d)
		}
	}
}

func TestCheckPath(t *testing.T) {
	for _, ok := range []string{
		"/", "*", "/a", "/a/", "/a/b.c", "/.well-known/x", "/a..b", "/...", "/a%20b", "/%C3%BC", "/100%25", "/a%2eb",
		"/v1/models:generate", "/a,b", "/a+b=c&d@e!", "/%25zz", "/a%3Fb", "/a%23b", "/(x)'*",
	} {
		if err := destination.CheckPath(ok); err != nil {
			t.Errorf("%q: %v, want it to pass", ok, err)
		}
	}
	for _, bad := range []string{
		"", "a", "/a%2fb", "/a%2Fb", "/a%5cb", "/a\\b", "/.", "/..", "/a/../b", "/a/./b", "/a/%2e%2e/b", "/a/.%2E/b", "/%2e",
		"//", "/a//b", "//evil/x", "/a;b", "/a;/b", "/a%3bb", "/a%00b", "/a\x00", "/a%0d%0ab", "/a%7f", "/a\x7f", "/a b", "/a\tb",
		"/ü", "/%ff", "/%c0%ae%c0%ae/x", "/a%252fb", "/a%252Fb", "/a%255cb", "/%252e%252e/x", "/a%25252fb", "/a%2500", "/%25%32%66x",
		"/%", "/%2", "/%zz", "/a?b", "/a#b", "/..%20/x", "/%2525252525252561",
	} {
		if err := destination.CheckPath(bad); !errors.Is(err, destination.ErrPath) {
			t.Errorf("%q: %v, want it denied", bad, err)
		}
	}
}

func TestCheckQuery(t *testing.T) {
	for _, ok := range []string{"", "a=b&c=d", "a=%ff%0a", "q=/../x", "a=%3B", "a=b\\c", "x=(y)"} {
		if err := destination.CheckQuery(ok); err != nil {
			t.Errorf("%q: %v, want it to pass", ok, err)
		}
	}
	for _, bad := range []string{"a b", "a=\x00", "a=%00", "a;b", "a=%", "a=%2", "a=%zz", "a#b", "ü=1", "a\r\nb", "a\x7f"} {
		if err := destination.CheckQuery(bad); !errors.Is(err, destination.ErrPath) {
			t.Errorf("%q: %v, want it denied", bad, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"api.example.com:443", "[::1]:80", "bücher.example", "0x7f.1", "xn--bcher-kva.example.", "a_b", "127.0.0.1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := destination.Parse("https", s, 0)
		if err != nil {
			return
		}
		again, err := destination.Parse("https", d.Authority(), 0)
		if err != nil || again != d {
			t.Fatalf("%q gave %+v; its own text %q gave %+v, %v", s, d, d.Authority(), again, err)
		}
		hp, err := destination.Parse("https", d.HostPort(), destination.PortRequired)
		if err != nil || hp != d {
			t.Fatalf("%q gave %+v; its host and port %q gave %+v, %v", s, d, d.HostPort(), hp, err)
		}
		if u, err := url.Parse(d.String()); err != nil || u.Host != d.Authority() || u.User != nil {
			t.Fatalf("%q gave %s, which is another URL: %v", s, d, err)
		}
	})
}

// FuzzCheckPath states that what passes has one meaning: decoding it any
// number of times never makes a new separator or dot segment.
func FuzzCheckPath(f *testing.F) {
	for _, s := range []string{"/a/b", "/a%2eb", "/%25", "/100%25", "/%252e/", "/a%20b", "/%C3%BC"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, p string) {
		if destination.CheckPath(p) != nil || p == "*" {
			return
		}
		slashes := strings.Count(p, "/")
		for range 8 {
			if strings.Count(p, "/") != slashes || strings.ContainsAny(p, "\\;\x00\r\n") {
				t.Fatalf("a decoded form is %q", p)
			}
			for seg := range strings.SplitSeq(p, "/") {
				if seg == "." || seg == ".." {
					t.Fatalf("a decoded form is %q", p)
				}
			}
			next, err := url.PathUnescape(p)
			if err != nil {
				return
			}
			p = next
		}
	})
}
