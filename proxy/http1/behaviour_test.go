package http1_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attache-dev/attache/proxy/http1"
	"github.com/attache-dev/attache/proxy/intercept"
)

func handle(f http.HandlerFunc) *http1.Server { return &http1.Server{Handler: f} }

func TestBodies(t *testing.T) {
	addr := serve(t, &http1.Server{Handler: echo}, nil)
	const h = "Host: a\r\nConnection: close\r\n"
	for _, tt := range []struct{ name, raw, want string }{
		{"none", "GET /p?q HTTP/1.1\r\n" + h + "\r\n", `GET /p?q a ""`},
		{"length", "POST / HTTP/1.1\r\n" + h + "content-length: 3\r\n\r\nabc", `POST / a "abc"`},
		{"length 0", "POST / HTTP/1.1\r\n" + h + "Content-Length: 0\r\n\r\n", `POST / a ""`},
		{"chunked", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", `POST / a "abcde"`},
		{"trailer", "POST / HTTP/1.1\r\n" + h + "Trailer: X-Sum\r\nTransfer-Encoding: Chunked\r\n\r\nA\r\n0123456789\r\n0\r\nX-Sum: 7\r\n\r\n", `POST / a "0123456789" X-Sum=7`},
		{"1.0", "POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi", `POST / a "hi"`},
		{"absolute", "GET http://A/x HTTP/1.1\r\n" + h + "\r\n", `GET http://A/x A ""`},
		{"truncated", "POST / HTTP/1.1\r\n" + h + "Content-Length: 30\r\n\r\nabc", "unexpected EOF"},
		{"size overflow", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nabc\r\n0\r\n\r\n", "malformed"},
		{"negative size", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n", "malformed"},
		{"0x size", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", "malformed"},
		{"space after size", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n", "malformed"},
		{"bare LF in chunk", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n", "malformed"},
		{"no CRLF after chunk", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", "malformed"},
		{"LF after chunk", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\n0\r\n\r\n", "malformed"},
		{"CR in extension", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n3;a\rb\r\nabc\r\n0\r\n\r\n", "malformed"},
		{"long extension", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n3;" + strings.Repeat("x", 400) + "\r\nabc\r\n0\r\n\r\n", "malformed"},
		{"many extensions", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1;"+strings.Repeat("x", 200)+"\r\na\r\n", 100) + "0\r\n\r\n", "malformed"},
		{"framing trailer", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n", "malformed"},
		{"auth trailer", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n0\r\nAuthorization: x\r\n\r\n", "malformed"},
		{"folded trailer", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n0\r\nX: a\r\n b\r\n\r\n", "malformed"},
		{"trailer bare LF", "POST / HTTP/1.1\r\n" + h + "Transfer-Encoding: chunked\r\n\r\n0\r\nX: a\n\r\n", "malformed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := dial(t, addr)
			_, _ = io.WriteString(c, tt.raw)
			_ = c.(*net.TCPConn).CloseWrite()
			b, _ := io.ReadAll(c)
			if !strings.Contains(string(b), tt.want) || strings.Count(string(b), "HTTP/1.1 ") != 1 {
				t.Errorf("got %q, want %s", b, tt.want)
			}
		})
	}
}

func TestPipelineInOrder(t *testing.T) {
	addr := serve(t, &http1.Server{Handler: echo}, nil)
	got := exchange(t, addr, "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nxyGET /2 HTTP/1.1\r\nHost: a\r\n\r\n"+
		"POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nz\r\n0\r\n\r\nGET /4 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	at := 0
	for _, want := range []string{`/1 a "xy"`, `/2 a ""`, `/3 a "z"`, `/4 a ""`} {
		i := strings.Index(got[at:], want)
		if i < 0 {
			t.Fatalf("%s is missing or out of order in %q", want, got)
		}
		at += i
	}
}

// TestUnreadBody: what the handler leaves is read away, or the connection ends;
// it is never taken for the next request.
func TestUnreadBody(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	addr := serve(t, handle(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.URL.Path)
	}), nil)
	inner := "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
	got := exchange(t, addr, fmt.Sprintf("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", len(inner), inner)+
		"GET /b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	if strings.Count(got, "200 OK") != 2 {
		t.Errorf("got %q, want two answers", got)
	}
	// Too much to read away: the answer arrives, then the connection ends.
	got = exchange(t, addr, "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 900000000\r\n\r\n"+inner)
	if strings.Count(got, "200 OK") != 1 {
		t.Errorf("got %q, want one answer", got)
	}
	mu.Lock()
	defer mu.Unlock()
	if fmt.Sprint(seen) != "[/a /b /c]" {
		t.Errorf("handled %v", seen)
	}
}

// TestRefusalReachesABusySender: a client that reads nothing before it has sent
// all, without asking first, gets our answer and not a reset.
func TestRefusalReachesABusySender(t *testing.T) {
	const size = 20 << 20
	addr := serve(t, handle(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, "because")
	}), nil)
	for range 3 {
		c := dial(t, addr)
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(c, "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: "+strconv.Itoa(size)+"\r\n\r\n")
		if n, err := io.CopyN(c, zeros{}, size); err != nil {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		if b, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 403 ") || !strings.HasSuffix(string(b), "because") {
			t.Fatalf("got %q, %v", b, err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestResponses(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 5000)
	addr := serve(t, handle(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		switch r.URL.Path {
		case "/small":
			_, _ = io.WriteString(w, "hello")
		case "/big":
			_, _ = io.WriteString(w, "x")
			_, _ = io.WriteString(w, big)
		case "/declared":
			h.Set("Content-Length", fmt.Sprint(len(big)))
			_, _ = io.WriteString(w, big)
		case "/short":
			h.Set("Content-Length", "10")
			_, _ = io.WriteString(w, "abc")
		case "/long":
			h.Set("Content-Length", "3")
			if _, err := io.WriteString(w, "abcdef"); !errors.Is(err, http.ErrContentLength) {
				t.Errorf("writing too much gave %v", err)
			}
			_, _ = io.WriteString(w, "abc")
		case "/204":
			w.WriteHeader(http.StatusNoContent)
			if _, err := io.WriteString(w, "x"); !errors.Is(err, http.ErrBodyNotAllowed) {
				t.Errorf("a body on 204 gave %v", err)
			}
		case "/split":
			h.Set("X-A", "a\r\nX-B: b")
			h.Set("X C", "c")
		case "/trailers":
			h.Set("Trailer", "X-One")
			_, _ = io.WriteString(w, "t")
			h.Set("X-One", "1")
			h.Set(http.TrailerPrefix+"X-Two", "2")
		case "/hints":
			h.Set("Link", "</s.css>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			h.Del("Link")
			_, _ = io.WriteString(w, "done")
		case "/panic":
			_, _ = io.WriteString(w, big)
			panic(http.ErrAbortHandler)
		}
	}), nil)
	ask := func(method, path, version string) string {
		return exchange(t, addr, method+" "+path+" HTTP/"+version+"\r\nHost: a\r\nConnection: close\r\n\r\n")
	}
	body := func(s string) (*http.Response, string, error) {
		res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(s)), nil)
		if err != nil {
			t.Fatalf("%v in %.200q", err, s)
		}
		b, err := io.ReadAll(res.Body)
		return res, string(b), err
	}
	if s := ask("GET", "/small", "1.1"); !strings.Contains(s, "Content-Length: 5\r\n") || !strings.HasSuffix(s, "\r\n\r\nhello") || !strings.Contains(s, "Date: ") {
		t.Errorf("small: %q", s)
	}
	if res, b, err := body(ask("GET", "/big", "1.1")); err != nil || b != "x"+big || len(res.TransferEncoding) != 1 {
		t.Errorf("big: %d bytes, %v, %v", len(b), res.TransferEncoding, err)
	}
	if res, b, err := body(ask("GET", "/big", "1.0")); err != nil || b != "x"+big || len(res.TransferEncoding) != 0 {
		t.Errorf("big to 1.0: %d bytes, %v, %v", len(b), res.TransferEncoding, err)
	}
	if res, b, err := body(ask("GET", "/declared", "1.1")); err != nil || b != big || res.ContentLength != int64(len(big)) {
		t.Errorf("declared: %d bytes, %v", len(b), err)
	}
	if s := ask("HEAD", "/declared", "1.1"); !strings.Contains(s, fmt.Sprintf("Content-Length: %d\r\n", len(big))) || !strings.HasSuffix(s, "\r\n\r\n") {
		t.Errorf("HEAD: %.300q", s)
	}
	if _, _, err := body(ask("GET", "/short", "1.1")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a body shorter than declared was read with %v", err)
	}
	if _, b, err := body(ask("GET", "/long", "1.1")); err != nil || b != "abc" {
		t.Errorf("long: %q, %v", b, err)
	}
	if s := ask("GET", "/204", "1.1"); strings.Contains(s, "Content-Length") || !strings.HasSuffix(s, "\r\n\r\n") {
		t.Errorf("204: %q", s)
	}
	if res, _, _ := body(ask("GET", "/split", "1.1")); res.Header.Get("X-B") != "" || res.Header.Get("X-A") != "a  X-B: b" || strings.Contains(fmt.Sprint(res.Header), "X C") {
		t.Errorf("a handler split the response: %v", res.Header)
	}
	if res, b, err := body(ask("GET", "/trailers", "1.1")); err != nil || b != "t" || res.Trailer.Get("X-One") != "1" || res.Trailer.Get("X-Two") != "2" || res.Header.Get("X-One") != "" {
		t.Errorf("trailers: %q, %v, %v", b, res.Trailer, err)
	}
	if s := ask("GET", "/hints", "1.1"); !strings.HasPrefix(s, "HTTP/1.1 103 Early Hints\r\nLink: </s.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\n") || strings.Count(s, "Link") != 1 {
		t.Errorf("hints: %q", s)
	}
	if _, _, err := body(ask("GET", "/panic", "1.1")); err == nil {
		t.Error("an aborted answer was read as whole")
	}
}

func TestKeepAliveWith10(t *testing.T) {
	addr := serve(t, &http1.Server{Handler: echo}, nil)
	one := "GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n"
	got := exchange(t, addr, one+"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
	if strings.Count(got, "200 OK") != 2 || strings.Count(got, "Connection: keep-alive") != 1 || strings.Count(got, "Connection: close") != 1 {
		t.Errorf("got %q", got)
	}
}

func TestContinueOnlyWhenTheBodyIsWanted(t *testing.T) {
	addr := serve(t, handle(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		b, _ := io.ReadAll(r.Body)
		_, _ = w.Write(b)
	}), nil)
	c := dial(t, addr)
	_, _ = io.WriteString(c, "POST /yes HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
	br := bufio.NewReader(c)
	if line, _ := br.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("got %q", line)
	}
	_, _ = br.ReadString('\n')
	_, _ = io.WriteString(c, "hi")
	res, err := http.ReadResponse(br, nil)
	if err != nil || res.StatusCode != 200 {
		t.Fatal(res, err)
	}
	got := exchange(t, addr, "POST /no HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 34\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
	if strings.Contains(got, "100 Continue") || strings.Count(got, "HTTP/1.1") != 1 || !strings.Contains(got, "Connection: close") {
		t.Errorf("got %q", got)
	}
}

// TestClientLeaves: the handler's context ends within milliseconds, also under
// TLS, and a context derived from it does too.
func TestClientLeaves(t *testing.T) {
	ca, err := intercept.New(nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.Certificate())
	cfg, err := ca.Config("a.example")
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{"", "hello"} {
		for _, useTLS := range []bool{false, true} {
			t.Run(fmt.Sprintf("body %q tls %v", body, useTLS), func(t *testing.T) {
				started, ended := make(chan struct{}), make(chan time.Time, 1)
				s := handle(func(_ http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body)
					ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
					defer cancel()
					close(started)
					<-ctx.Done()
					if !errors.Is(ctx.Err(), context.Canceled) {
						t.Errorf("ended by %v", ctx.Err())
					}
					ended <- time.Now()
				})
				var with *tls.Config
				if useTLS {
					with = cfg
				}
				c := dial(t, serve(t, s, with))
				if useTLS {
					c = tls.Client(c, &tls.Config{RootCAs: pool, ServerName: "a.example"})
				}
				_, _ = fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
				<-started
				left := time.Now()
				_ = c.Close()
				if d := (<-ended).Sub(left); d > 250*time.Millisecond {
					t.Errorf("the handler learnt of it after %v", d)
				}
			})
		}
	}
}

// TestWatchKeepsWhatItRead: the next request comes while a slow handler runs.
func TestWatchKeepsWhatItRead(t *testing.T) {
	addr := serve(t, handle(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			select {
			case <-r.Context().Done():
				t.Error("a second request ended the first")
			case <-time.After(30 * time.Millisecond):
			}
		}
		_, _ = io.WriteString(w, r.URL.Path)
	}), nil)
	c := dial(t, addr)
	br := bufio.NewReader(c)
	for range 3 {
		_, _ = io.WriteString(c, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
		<-time.After(10 * time.Millisecond)
		_, _ = io.WriteString(c, "GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
		for _, want := range []string{"/slow", "/next"} {
			res, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatal(err)
			}
			if b, _ := io.ReadAll(res.Body); string(b) != want {
				t.Fatalf("got %q, want %s", b, want)
			}
		}
	}
}

func TestFlushAndFullDuplex(t *testing.T) {
	addr := serve(t, handle(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if err := rc.EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		br := bufio.NewReader(r.Body)
		for {
			line, err := br.ReadString('\n')
			if err != nil {
				return
			}
			_, _ = io.WriteString(w, strings.ToUpper(line))
			if err := rc.Flush(); err != nil {
				t.Error(err)
			}
		}
	}), nil)
	pr, pw := io.Pipe()
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr, pr)
	res, err := func() (*http.Response, error) {
		go func() { _, _ = io.WriteString(pw, "one\n") }()
		return http.DefaultClient.Do(req)
	}()
	if err != nil {
		t.Fatal(err)
	}
	br := bufio.NewReader(res.Body)
	for _, word := range []string{"", "two\n", "three\n"} {
		if word != "" {
			_, _ = io.WriteString(pw, word)
		} else {
			word = "one\n"
		}
		if got, err := br.ReadString('\n'); got != strings.ToUpper(word) {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	_ = pw.Close()
	if rest, err := io.ReadAll(br); len(rest) != 0 || err != nil {
		t.Errorf("got %q, %v at the end", rest, err)
	}
}

func TestTimeouts(t *testing.T) {
	s := handle(func(http.ResponseWriter, *http.Request) {})
	s.HeaderTimeout, s.IdleTimeout = 60*time.Millisecond, 60*time.Millisecond
	addr := serve(t, s, nil)
	c := dial(t, addr)
	go func() { // slow-loris: each byte in time, the head never
		for range 50 {
			if _, err := io.WriteString(c, "G"); err != nil {
				return
			}
			<-time.After(20 * time.Millisecond)
		}
	}()
	start := time.Now()
	b, _ := io.ReadAll(c)
	if !strings.HasPrefix(string(b), "HTTP/1.1 408 ") || time.Since(start) > 900*time.Millisecond {
		t.Errorf("slow head: got %q after %v", b, time.Since(start))
	}
	if got := exchange(t, addr, ""); got != "" {
		t.Errorf("idle: got %q", got)
	}
}

func TestHijackKeepsSurplus(t *testing.T) {
	addr := serve(t, handle(func(w http.ResponseWriter, _ *http.Request) {
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = c.Close() }()
		b, _ := io.ReadAll(rw)
		_, _ = c.Write(bytes.ToUpper(b))
		if _, err := w.Write(nil); !errors.Is(err, http.ErrHijacked) {
			t.Errorf("writing after taking over gave %v", err)
		}
	}), nil)
	c := dial(t, addr)
	_, _ = io.WriteString(c, "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nsurplus ")
	_, _ = io.WriteString(c, "and more")
	_ = c.(*net.TCPConn).CloseWrite()
	if b, _ := io.ReadAll(c); string(b) != "SURPLUS AND MORE" {
		t.Errorf("got %q", b)
	}
}

func TestRealClient(t *testing.T) {
	addr := serve(t, &http1.Server{Handler: echo}, nil)
	reused := 0
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		GotConn:        func(i httptrace.GotConnInfo) { reused += map[bool]int{true: 1}[i.Reused] },
		Got1xxResponse: func(int, textproto.MIMEHeader) error { return nil },
	})
	for i := range 20 {
		body := strings.Repeat("x", i*5000)
		req, _ := http.NewRequestWithContext(ctx, http.MethodPut, "http://"+addr+"/p", strings.NewReader(body))
		if i%2 == 0 {
			req.ContentLength = -1
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		if want := fmt.Sprintf("PUT /p %s %q", addr, body); err != nil || string(b) != want {
			t.Fatalf("%d: got %d bytes, want %d, %v", i, len(b), len(want), err)
		}
	}
	if reused < 19 {
		t.Errorf("%d of 20 requests reused the connection, want 19", reused)
	}
}

// TestHalfClose: a TLS client that has sent close_notify still gets its answer.
func TestHalfClose(t *testing.T) {
	ca, err := intercept.New(nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.Certificate())
	cfg, err := ca.Config("a.example")
	if err != nil {
		t.Fatal(err)
	}
	addr := serve(t, handle(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
			t.Error("a half-close ended the request")
		case <-time.After(40 * time.Millisecond):
		}
		_, _ = io.WriteString(w, "late")
	}), cfg)
	c := tls.Client(dial(t, addr), &tls.Config{RootCAs: pool, ServerName: "a.example"})
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || !strings.HasSuffix(string(b), "\r\n\r\nlate") {
		t.Errorf("got %q, %v", b, err)
	}
}

// TestEarlyAnswerWhileTheBodyIsRead is what a proxy's transport does: it still
// reads the upload on its own goroutine when the answer is finished.
func TestEarlyAnswerWhileTheBodyIsRead(t *testing.T) {
	var wg sync.WaitGroup
	s := handle(func(w http.ResponseWriter, r *http.Request) {
		reading := make(chan struct{})
		wg.Go(func() {
			var b [100]byte
			_, _ = io.ReadFull(r.Body, b[:])
			close(reading)
			_, err := io.Copy(io.Discard, r.Body)
			if err == nil {
				t.Error("an upload that was cut was read as whole")
			}
		})
		<-reading
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	})
	addr := serve(t, s, nil)
	for range 20 {
		got := exchange(t, addr, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"+strings.Repeat("x", 50_000))
		if !strings.HasPrefix(got, "HTTP/1.1 413 ") || strings.Count(got, "HTTP/1.1") != 1 {
			t.Fatalf("got %q", got)
		}
	}
	wg.Wait()
}

func TestShutdown(t *testing.T) {
	started, release := make(chan struct{}), make(chan struct{})
	s := handle(func(w http.ResponseWriter, _ *http.Request) {
		close(started)
		<-release
		_, _ = io.WriteString(w, "done")
	})
	addr := serve(t, s, nil)
	busy, idle := dial(t, addr), dial(t, addr)
	_, _ = io.WriteString(busy, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	<-started
	<-time.After(10 * time.Millisecond) // let the idle one wait for its first byte
	s.Shutdown()
	if b, err := io.ReadAll(idle); len(b) != 0 || err != nil {
		t.Errorf("idle: %q, %v", b, err)
	}
	close(release)
	if b, err := io.ReadAll(busy); err != nil || !strings.Contains(string(b), "Connection: close\r\n") || !strings.HasSuffix(string(b), "done") {
		t.Errorf("busy: %q, %v", b, err)
	}
}

// TestHalfCloseWithoutTLS: a client that sends its requests and a FIN, as
// "printf … | nc" does, gets its answers while somebody holds its socket.
func TestHalfCloseWithoutTLS(t *testing.T) {
	slow := func(held func() bool, ended chan<- error) *http1.Server {
		s := handle(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			select {
			case <-r.Context().Done():
			case <-time.After(60 * time.Millisecond):
			}
			ended <- r.Context().Err()
			_, _ = io.WriteString(w, "late "+r.URL.Path)
		})
		if held != nil {
			s.Held = func(net.Conn) bool { return held() }
		}
		return s
	}
	const get, post = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n", "POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"
	for _, tt := range []struct {
		name, raw string
		held      func() bool
		answers   int // to all of them, or the first request is cancelled
	}{
		{"held", get, func() bool { return true }, 1},
		{"held, with a body", post, func() bool { return true }, 1},
		{"held, two requests", get + post, func() bool { return true }, 2},
		{"gone", get, func() bool { return false }, 0},
		{"nobody can tell", get, nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ended := make(chan error, 2)
			c := dial(t, serve(t, slow(tt.held, ended), nil))
			_, _ = io.WriteString(c, tt.raw)
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(c)
			if tt.answers == 0 {
				if err := <-ended; !errors.Is(err, context.Canceled) {
					t.Errorf("the request went on: %v", err)
				}
				return
			}
			if err != nil || strings.Count(string(b), "late /") != tt.answers {
				t.Fatalf("got %q, %v; want %d answers", b, err, tt.answers)
			}
			for range tt.answers {
				if err := <-ended; err != nil {
					t.Errorf("a half-close ended the request: %v", err)
				}
			}
		})
	}
}

// TestHalfClosedClientLeaves: one that goes while it waits is noticed then.
func TestHalfClosedClientLeaves(t *testing.T) {
	var asked atomic.Int32
	ended := make(chan error, 1)
	s := handle(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-time.After(5 * time.Second):
		}
		ended <- r.Context().Err()
	})
	s.Held = func(net.Conn) bool { return asked.Add(1) < 3 }
	c := dial(t, serve(t, s, nil))
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	_ = c.(*net.TCPConn).CloseWrite()
	if err := <-ended; !errors.Is(err, context.Canceled) || asked.Load() != 3 {
		t.Errorf("got %v after %d questions", err, asked.Load())
	}
}
