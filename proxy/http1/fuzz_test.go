package http1_test

import (
	"bufio"
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/attache-dev/attache/proxy/http1"
)

// script is a connection whose peer has sent everything and left.
type script struct{ r *bytes.Reader }

func (s script) Read(p []byte) (int, error)     { return s.r.Read(p) }
func (script) Write(p []byte) (int, error)      { return len(p), nil }
func (script) Close() error                     { return nil }
func (script) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (script) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (script) SetDeadline(time.Time) error      { return nil }
func (script) SetReadDeadline(time.Time) error  { return nil }
func (script) SetWriteDeadline(time.Time) error { return nil }

// seen is what a parser made of a request.
type seen struct {
	Method, Target, Host, URL, Path, Body string
	Header, Trailer                       http.Header
	Length                                int64
}

func observe(r *http.Request) (seen, error) {
	b, err := io.ReadAll(r.Body)
	h := r.Header.Clone()
	delete(h, "Trailer") // net/http keeps it where it means nothing
	if h.Get("Pragma") == "no-cache" {
		delete(h, "Cache-Control") // net/http adds one
	}
	s := seen{r.Method, r.RequestURI, r.Host, r.URL.String(), r.URL.Path, string(b), h, nil, r.ContentLength}
	for k, v := range r.Trailer {
		if v != nil { // announced, but never sent
			if s.Trailer == nil {
				s.Trailer = http.Header{}
			}
			s.Trailer[k] = v
		}
	}
	return s, err
}

// FuzzAgainstNetHTTP: what is accepted here, net/http accepts with the same
// meaning, and finds the next request at the same byte.
func FuzzAgainstNetHTTP(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /a?b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nx-y: z\r\nX-Y: w\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST http://a/%41 HTTP/1.1\r\nhost: A\r\ntransfer-encoding: chunked\r\ntrailer: x-s\r\n\r\n1;a=b\r\nx\r\n0\r\nX-S: 1\r\n\r\nGET /2 HTTP/1.0\r\nHost: a\r\n\r\n",
		"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\nExpect: 100-continue\r\n\r\n",
		"GET //x/..;/%2e HTTP/1.1\r\nHost: a\r\nPragma: no-cache\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) { compare(t, raw) })
}

// compare returns how many requests were accepted.
func compare(t *testing.T, raw []byte) int {
	t.Helper()
	var ours []seen
	s := &http1.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		o, err := observe(r)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		ours = append(ours, o)
	})}
	s.ServeConn(t.Context(), script{bytes.NewReader(raw)})
	br := bufio.NewReader(bytes.NewReader(raw))
	for i, got := range ours {
		r, err := http.ReadRequest(br)
		if err != nil {
			t.Fatalf("request %d of %q was accepted as %+v; net/http says %v", i, raw, got, err)
		}
		want, err := observe(r)
		if err != nil {
			t.Fatalf("request %d of %q was accepted as %+v; net/http's body says %v", i, raw, got, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("request %d of %q differs from net/http's (-want +got):\n%s", i, raw, d)
		}
	}
	return len(ours)
}

// TestGrammarAgainstNetHTTP states the same over requests made of pieces that
// parsers are known to disagree on; bytes changed at random seldom get there.
func TestGrammarAgainstNetHTTP(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // repeatable on purpose
	pick := func(s ...string) string { return s[rng.IntN(len(s))] }
	accepted := 0
	for range 12_000 {
		var b bytes.Buffer
		for range 1 + rng.IntN(3) {
			eol := func() string {
				if rng.IntN(100) == 0 {
					return pick("\n", "\r", "\r\r\n", "\n\r")
				}
				return "\r\n"
			}
			b.WriteString(pick("GET", "GET", "GET", "POST", "POST", "POST", "POST", "HEAD", "OPTIONS", "CONNECT", "get", "M-X", "G@T") + pick(" ", " ", " ", " ", "  ", "\t"))
			b.WriteString(pick("/", "/", "/", "/", "/", "/", "/a?b", "/a?b", "/%41;x", "//h/p", "/../a", "*", "a:80", "http://a/x", "http://a", "HTTP://a:80/?", "http://u@a/", "/\x80", "/a%", "?q", "/#f", "/!'()*\\"))
			b.WriteString(pick(" ", " ", " ", " ", " ", " ", " ", "  ") + pick("HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "HTTP/01.1") + eol())
			for range rng.IntN(3) {
				b.WriteString(pick("Host: a", "host: a", "Host:a:80", "Host: b", "Host: ", "Content-Length: 3", "content-length: 3", "Content-Length: 03", "Content-Length: +3", "Content-Length: 3, 3", "Content-Length : 3", "Content_Length: 9",
					"Transfer-Encoding: chunked", "transfer-encoding: Chunked", "Transfer-Encoding: gzip", "Transfer-Encoding:\x0bchunked", "Transfer-Encoding: chunked ", "Transfer-Encoding: identity", "TE: trailers",
					"X: y", "x: y\x80", "X: \ty ", " folded", "X:", "X-y-Z: 1", "Connection: close", "Connection: keep-alive", "Expect: 100-continue", "Trailer: x-s", "Trailer: Content-Length", "Pragma: no-cache", "\x00: a", "X: a\rb") + eol())
			}
			if rng.IntN(8) > 0 {
				b.WriteString("Host: a\r\n")
			}
			if rng.IntN(3) == 0 {
				b.WriteString(pick("Content-Length: 3", "Transfer-Encoding: chunked") + "\r\n")
			}
			b.WriteString(eol())
			for range rng.IntN(3) {
				b.WriteString(pick("abc", "3\r\nabc\r\n", "3;x=y\r\nabc\r\n", "3 \r\nabc\r\n", "03\r\nabc\r\n", "3\nabc\r\n", "0x3\r\nabc\r\n", "3\r\nabcd\r\n", "+3\r\nabc\r\n"))
			}
			b.WriteString(pick("", "", "0\r\n\r\n", "0\r\n\r\n", "0\r\nX-S: 1\r\n\r\n", "0\r\n\n", "00;a\r\nX : 1\r\n\r\n"))
		}
		accepted += compare(t, b.Bytes())
	}
	if accepted < 1000 {
		t.Errorf("only %d requests were accepted: the grammar proves little", accepted)
	}
}
