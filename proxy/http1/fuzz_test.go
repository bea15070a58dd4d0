package http1_test

import (
	"bufio"
	"bytes"
	"io"
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
	f.Fuzz(func(t *testing.T, raw []byte) {
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
				t.Fatalf("request %d was accepted as %+v; net/http says %v", i, got, err)
			}
			want, err := observe(r)
			if err != nil {
				t.Fatalf("request %d was accepted as %+v; net/http's body says %v", i, got, err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Fatalf("request %d differs from net/http's (-want +got):\n%s", i, d)
			}
		}
	})
}
