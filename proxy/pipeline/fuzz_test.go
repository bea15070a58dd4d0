package pipeline

import (
	"bufio"
	"net/http"
	"strings"
	"testing"

	"github.com/attache-dev/attache/proxy/destination"
)

// FuzzTarget: whatever target a client sends, what goes upstream is what was
// checked, to the host that was checked.
func FuzzTarget(f *testing.F) {
	for _, s := range []string{"/", "*", "/a%2Fb", "//a//b", "/a?b", "/a?", "http://h?x", "http://h", "http://u@h/x", "/a#b", "/a\\b", "/;x", "/%00", "http:///x", "/http://other/", "//other.example/x"} {
		f.Add(s, "GET", "gzip", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	}
	dest, err := destination.Parse("https", "api.test:443", 443)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, target, method, upgrade, trace string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(method + " " + target + " HTTP/1.1\r\nHost: api.test\r\nConnection: upgrade\r\n\r\n")))
		if err != nil {
			return
		}
		r.Header["Upgrade"] = []string{upgrade}
		r.Header["Traceparent"] = []string{trace}
		_, _, _ = protocolOf(r), queryKeys(r.URL.Query()), traceID(trace)
		x := &exchange{req: r, dest: dest, path: rawPath(r)}
		if x.path == "" {
			t.Fatalf("%q has no path", target)
		}
		if destination.CheckPath(x.path) != nil || destination.CheckQuery(r.URL.RawQuery) != nil {
			return
		}
		u := x.outURL()
		if u.Host != "api.test" || u.Scheme != "https" || u.User != nil || u.Fragment != "" {
			t.Fatalf("%q leads to %v", target, u)
		}
		want := x.path
		if r.URL.RawQuery != "" || r.URL.ForceQuery {
			want += "?" + r.URL.RawQuery
		}
		if got := u.RequestURI(); got != want {
			t.Fatalf("%q: checked %q, sent %q", target, want, got)
		}
	})
}

// FuzzGRPCEscape: a refusal's text cannot break out of its field.
func FuzzGRPCEscape(f *testing.F) {
	f.Add("plain")
	f.Add("é%\r\nGrpc-Status: 0")
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range []byte(grpcEscape(s)) {
			if c < 0x20 || c > 0x7e {
				t.Fatalf("%q holds %#x", s, c)
			}
		}
	})
}
