package http1_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/proxy/http1"
	"github.com/attache-dev/attache/proxy/intercept"
)

var payload = []byte(`{"data":"` + strings.Repeat("x", 1000) + `"}`)

var answer = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h["Content-Type"] = []string{"application/json"}
	h["Content-Length"] = []string{"1011"}
	_, _ = w.Write(payload)
})

// BenchmarkTLS measures requests over one kept-alive TLS connection on
// loopback against net/http's server; the client's part is the same raw loop
// and allocates nothing.
func BenchmarkTLS(b *testing.B) {
	ca, err := intercept.New(nil, 0)
	if err != nil {
		b.Fatal(err)
	}
	cfg, err := ca.Config("a.example")
	if err != nil {
		b.Fatal(err)
	}
	cfg = cfg.Clone()
	cfg.NextProtos = []string{"http/1.1"}
	pool := x509.NewCertPool()
	pool.AddCert(ca.Certificate())
	client := &tls.Config{RootCAs: pool, ServerName: "a.example"}
	b.Run("http1", func(b *testing.B) {
		request(b, serve(b, &http1.Server{Handler: answer}, cfg), client)
	})
	b.Run("nethttp", func(b *testing.B) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		s := &http.Server{Handler: answer} //nolint:gosec // a benchmark
		go func() { _ = s.Serve(tls.NewListener(ln, cfg)) }()
		b.Cleanup(func() { _ = s.Close() })
		request(b, ln.Addr().String(), client)
	})
}

func request(b *testing.B, addr string, cfg *tls.Config) {
	c := tls.Client(dial(b, addr), cfg)
	_ = c.SetDeadline(time.Time{})
	br := bufio.NewReaderSize(c, 4096)
	raw := []byte("POST /v1/messages HTTP/1.1\r\nHost: a.example\r\nuser-agent: bench/1\r\naccept: application/json\r\n" +
		"content-type: application/json\r\nauthorization: Bearer placeholder\r\naccept-encoding: gzip, deflate\r\nContent-Length: 2\r\n\r\n{}")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(raw); err != nil {
			b.Fatal(err)
		}
		for { // the head, then 1011 bytes
			line, err := br.ReadSlice('\n')
			if err != nil {
				b.Fatal(err)
			}
			if len(line) == 2 {
				break
			}
		}
		if _, err := br.Discard(len(payload)); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	_ = c.Close()
	_, _ = io.Copy(io.Discard, br)
}

// BenchmarkChunked measures bodies in 512-byte chunks over plain TCP on
// loopback, each way: 64 chunks an exchange.
func BenchmarkChunked(b *testing.B) {
	body := strings.Repeat("200\r\n"+strings.Repeat("x", 512)+"\r\n", 64) + "0\r\n\r\n"
	head := "Transfer-Encoding: chunked\r\n\r\n"
	b.Run("request", func(b *testing.B) {
		addr := serve(b, handle(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusNoContent)
		}), nil)
		c := dial(b, addr)
		_ = c.SetDeadline(time.Time{})
		br, raw := bufio.NewReader(c), []byte("POST / HTTP/1.1\r\nHost: a\r\n"+head+body)
		b.SetBytes(64 * 512)
		for b.Loop() {
			_, _ = c.Write(raw)
			res, err := http.ReadResponse(br, nil)
			if err != nil || res.StatusCode != http.StatusNoContent {
				b.Fatal(res, err)
			}
		}
	})
	b.Run("answer", func(b *testing.B) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = ln.Close() })
		go func() {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			raw, br := []byte("HTTP/1.1 200 OK\r\n"+head+body), bufio.NewReader(c)
			for {
				if _, err := http.ReadRequest(br); err != nil {
					return
				}
				_, _ = c.Write(raw)
			}
		}()
		t := &http1.Client{MaxIdle: 1, Dial: func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", ln.Addr().String())
		}}
		b.Cleanup(t.Close)
		r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://a/", nil)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(64 * 512)
		buf := make([]byte, 32<<10)
		for b.Loop() {
			res, err := t.RoundTrip(r)
			if err != nil {
				b.Fatal(err)
			}
			if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, res.Body, buf); err != nil || n != 64*512 {
				b.Fatal(n, err)
			}
		}
	})
}
