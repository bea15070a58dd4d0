package http1_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attache-dev/attache/proxy/http1"
)

// serve starts s on loopback and returns its address.
func serve(t testing.TB, s *http1.Server, cfg *tls.Config) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if cfg != nil {
				c = tls.Server(c, cfg)
			}
			wg.Go(func() { s.ServeConn(ctx, c) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		cancel()
		wg.Wait()
	})
	return ln.Addr().String()
}

func dial(t testing.TB, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// exchange sends raw bytes and returns all that comes back.
func exchange(t testing.TB, addr, raw string) string {
	t.Helper()
	c := dial(t, addr)
	if _, err := io.WriteString(c, raw); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, net.ErrClosed) && len(b) == 0 {
		t.Fatalf("read: %v", err)
	}
	return string(b)
}

// echo answers with what it got.
var echo = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, "%s %s %s %q", r.Method, r.RequestURI, r.Host, b)
	for _, k := range []string{"X-Sum"} {
		if v := r.Trailer.Get(k); v != "" {
			fmt.Fprintf(w, " %s=%s", k, v)
		}
	}
})

func TestRefusals(t *testing.T) {
	var mu sync.Mutex
	var kinds []string
	var handled atomic.Int32
	s := &http1.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			handled.Add(1)
			_, err := io.Copy(io.Discard, r.Body)
			if err != nil {
				http.Error(w, "body", http.StatusBadRequest)
			}
		}),
		MaxHeaderBytes: 8192, MaxHeaders: 50,
		Refused: func(kind string) { mu.Lock(); defer mu.Unlock(); kinds = append(kinds, kind) },
	}
	addr := serve(t, s, nil)
	const h = "Host: a\r\n"
	for _, tt := range []struct {
		name, raw, status, kind string
	}{
		{"CL and TE", "POST / HTTP/1.1\r\n" + h + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400", http1.KindCLTE},
		{"two CL", "POST / HTTP/1.1\r\n" + h + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", "400", http1.KindContentLength},
		{"two CL differ", "POST / HTTP/1.1\r\n" + h + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", "400", http1.KindContentLength},
		{"CL list", "POST / HTTP/1.1\r\n" + h + "Content-Length: 3, 3\r\n\r\nabc", "400", http1.KindContentLength},
		{"CL plus", "POST / HTTP/1.1\r\n" + h + "Content-Length: +3\r\n\r\nabc", "400", http1.KindContentLength},
		{"CL negative", "POST / HTTP/1.1\r\n" + h + "Content-Length: -3\r\n\r\nabc", "400", http1.KindContentLength},
		{"CL hex", "POST / HTTP/1.1\r\n" + h + "Content-Length: 0x3\r\n\r\nabc", "400", http1.KindContentLength},
		{"CL empty", "POST / HTTP/1.1\r\n" + h + "Content-Length: \r\n\r\nabc", "400", http1.KindContentLength},
		{"CL huge", "POST / HTTP/1.1\r\n" + h + "Content-Length: 9999999999999999999\r\n\r\nabc", "400", http1.KindContentLength},
		{"TE identity", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: identity\r\n\r\n", "400", http1.KindTransfer},
		{"TE gzip chunked", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "400", http1.KindTransfer},
		{"TE xchunked", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "400", http1.KindTransfer},
		{"TE vertical tab", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", "400", http1.KindHeaderValue},
		{"TE twice", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400", http1.KindTransfer},
		{"TE in 1.0", "POST / HTTP/1.0\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400", http1.KindTransfer},
		{"bare LF", "GET / HTTP/1.1\nHost: a\n\n", "400", http1.KindBareLF},
		{"one bare LF", "GET / HTTP/1.1\r\nHost: a\r\nX: y\n\r\n", "400", http1.KindBareLF},
		{"bare LF at the end", "GET / HTTP/1.1\r\nHost: a\r\n\n", "400", http1.KindBareLF},
		{"bare CR", "GET / HTTP/1.1\r\n" + h + "X: a\rb\r\n\r\n", "400", http1.KindHeaderValue},
		{"bare CR as line end", "GET / HTTP/1.1\r\n" + h + "X: a\rContent-Length: 5\r\n\r\n", "400", http1.KindHeaderValue},
		{"obs-fold", "GET / HTTP/1.1\r\n" + h + "X: a\r\n b\r\n\r\n", "400", http1.KindObsFold},
		{"leading fold", "GET / HTTP/1.1\r\n " + h + "\r\n", "400", http1.KindObsFold},
		{"space before colon", "GET / HTTP/1.1\r\n" + h + "Content-Length : 3\r\n\r\n", "400", http1.KindHeaderName},
		{"no colon", "GET / HTTP/1.1\r\n" + h + "abc\r\n\r\n", "400", http1.KindHeaderName},
		{"empty name", "GET / HTTP/1.1\r\n" + h + ": x\r\n\r\n", "400", http1.KindHeaderName},
		{"NUL in name", "GET / HTTP/1.1\r\n" + h + "X\x00Y: x\r\n\r\n", "400", http1.KindHeaderName},
		{"NUL in value", "GET / HTTP/1.1\r\n" + h + "X: a\x00b\r\n\r\n", "400", http1.KindHeaderValue},
		{"DEL in value", "GET / HTTP/1.1\r\n" + h + "X: a\x7fb\r\n\r\n", "400", http1.KindHeaderValue},
		{"two hosts", "GET / HTTP/1.1\r\n" + h + h + "\r\n", "400", http1.KindHost},
		{"no host", "GET / HTTP/1.1\r\n\r\n", "400", http1.KindHost},
		{"no host in 1.0", "GET / HTTP/1.0\r\n\r\n", "400", http1.KindHost},
		{"empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", "400", http1.KindHost},
		{"host list", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", "400", http1.KindHost},
		{"host with user", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", "400", http1.KindHost},
		{"host differs", "GET http://b/ HTTP/1.1\r\n" + h + "\r\n", "400", http1.KindHost},
		{"host differs in port", "GET http://a:81/ HTTP/1.1\r\n" + h + "\r\n", "400", http1.KindHost},
		{"user in target", "GET http://u:p@a/ HTTP/1.1\r\n" + h + "\r\n", "400", http1.KindTarget},
		{"bad method", "G(T / HTTP/1.1\r\n" + h + "\r\n", "400", http1.KindMethod},
		{"leading space", " GET / HTTP/1.1\r\n" + h + "\r\n", "400", http1.KindMethod},
		{"leading CRLF", "\r\nGET / HTTP/1.1\r\n" + h + "\r\n", "400", http1.KindMethod},
		{"garbage", "\x16\x03\x01\x02\x00", "400", http1.KindMethod},
		{"two spaces", "GET  / HTTP/1.1\r\n" + h + "\r\n", "400", http1.KindVersion},
		{"tab for space", "GET\t/\tHTTP/1.1\r\n" + h + "\r\n", "400", http1.KindMethod},
		{"space in target", "GET /a b HTTP/1.1\r\n" + h + "\r\n", "400", http1.KindVersion},
		{"raw UTF-8 in target", "GET /ü HTTP/1.1\r\n" + h + "\r\n", "400", http1.KindTarget},
		{"fragment", "GET /a#b HTTP/1.1\r\n" + h + "\r\n", "400", http1.KindTarget},
		{"relative target", "GET a HTTP/1.1\r\n" + h + "\r\n", "400", http1.KindTarget},
		{"broken escape", "GET /%zz HTTP/1.1\r\n" + h + "\r\n", "400", http1.KindTarget},
		{"asterisk with GET", "GET * HTTP/1.1\r\n" + h + "\r\n", "400", http1.KindTarget},
		{"authority with GET", "GET a:443 HTTP/1.1\r\n" + h + "\r\n", "400", http1.KindTarget},
		{"CONNECT path", "CONNECT / HTTP/1.1\r\n" + h + "\r\n", "400", http1.KindTarget},
		{"CONNECT with body", "CONNECT a:443 HTTP/1.1\r\n" + h + "Content-Length: 1\r\n\r\nx", "400", http1.KindContentLength},
		{"HTTP/2.0", "PRI * HTTP/2.0\r\n\r\n", "505", http1.KindVersion},
		{"HTTP/1.2", "GET / HTTP/1.2\r\n" + h + "\r\n", "505", http1.KindVersion},
		{"no version", "GET /\r\n" + h + "\r\n", "400", http1.KindMethod},
		{"lower-case version", "GET / http/1.1\r\n" + h + "\r\n", "400", http1.KindVersion},
		{"odd expectation", "POST / HTTP/1.1\r\n" + h + "Expect: x\r\nContent-Length: 1\r\n\r\nx", "417", http1.KindExpect},
		{"long target", "GET /" + strings.Repeat("a", 9000) + " HTTP/1.1\r\n" + h + "\r\n", "414", http1.KindTargetLength},
		{"large header", "GET / HTTP/1.1\r\n" + h + "X: " + strings.Repeat("a", 9000) + "\r\n\r\n", "431", http1.KindHeaderBytes},
		{"many headers", "GET / HTTP/1.1\r\n" + h + strings.Repeat("X: y\r\n", 60) + "\r\n", "431", http1.KindHeaderCount},
		{"100,000 headers", "GET / HTTP/1.1\r\n" + h + strings.Repeat("X: y\r\n", 100_000) + "\r\n", "431", http1.KindHeaderCount},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := handled.Load()
			mu.Lock()
			kinds = nil
			mu.Unlock()
			got := exchange(t, addr, tt.raw+"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
			if !strings.HasPrefix(got, "HTTP/1.1 "+tt.status+" ") || !strings.Contains(got, "Connection: close") {
				t.Fatalf("got %.200q, want status %s and close", got, tt.status)
			}
			if strings.Count(got, "\r\n\r\n") != 1 || handled.Load() != before {
				t.Errorf("a refused connection went on: %q", got)
			}
			mu.Lock()
			defer mu.Unlock()
			if len(kinds) != 1 || kinds[0] != tt.kind {
				t.Errorf("counted as %v, want %s", kinds, tt.kind)
			}
		})
	}
}
