package http1_test

import (
	"bufio"
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
