package http1_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/attache-dev/attache/proxy/http1"
)

// answered is what a parser made of a response.
type answered struct {
	Status, Proto, Body string
	Code                int
	Length              int64
	Close               bool
	Header, Trailer     http.Header
	Coding              []string
}

func observeAnswer(r *http.Response) (answered, error) {
	b, err := io.ReadAll(r.Body)
	h := r.Header.Clone()
	if h.Get("Pragma") == "no-cache" {
		delete(h, "Cache-Control") // net/http adds one
	}
	if r.Close {
		delete(h, "Connection") // net/http forgets what else it names; we strip that too
	}
	a := answered{Status: r.Status, Proto: r.Proto, Body: string(b), Code: r.StatusCode, Length: r.ContentLength, Close: r.Close, Header: h, Coding: r.TransferEncoding}
	for k, v := range r.Trailer {
		if v != nil { // announced, but never sent
			if a.Trailer == nil {
				a.Trailer = http.Header{}
			}
			a.Trailer[k] = v
		}
	}
	return a, err
}

// compareAnswer holds that what is accepted here, net/http accepts with the
// same meaning, and that a connection is kept only where nothing follows.
func compareAnswer(t *testing.T, method string, raw []byte) bool {
	t.Helper()
	var c closeCounter
	cl := &http1.Client{MaxIdle: 1, Dial: func(context.Context) (net.Conn, error) { return &c.conn(raw).script2, nil }}
	defer cl.Close()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://a/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := cl.RoundTrip(req)
	if err != nil {
		return false
	}
	got, err := observeAnswer(resp)
	_ = resp.Body.Close()
	if err != nil {
		return false
	}
	rest := bytes.NewReader(raw)
	br := bufio.NewReader(rest)
	var want answered
	for {
		r, err := http.ReadResponse(br, req)
		if err != nil {
			t.Fatalf("%s: %q was accepted as %+v; net/http says %v", method, raw, got, err)
		}
		if want, err = observeAnswer(r); err != nil {
			t.Fatalf("%s: %q was accepted as %+v; net/http's body says %v", method, raw, got, err)
		}
		if r.StatusCode >= 200 || r.StatusCode == 101 {
			break
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("%s: %q differs from net/http's (-want +got):\n%s", method, raw, d)
	}
	if left := br.Buffered() + rest.Len(); left > 0 && !c.closed.Load() {
		t.Fatalf("%s: %q has %d surplus bytes and its connection was kept", method, raw, left)
	}
	return true
}

// closeCounter makes scripted connections and notices their end.
type closeCounter struct{ closed atomic.Bool }

type counted struct{ script2 }

type script2 struct {
	script
	c *closeCounter
}

func (c *closeCounter) conn(raw []byte) *counted {
	return &counted{script2{script{bytes.NewReader(raw)}, c}}
}

func (s *script2) Close() error { s.c.closed.Store(true); return nil }

var answerSeeds = []string{
	"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
	"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\n\r\n",
	"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-S\r\n\r\n3;a=b\r\nabc\r\n0\r\nX-S: 1\r\n\r\n",
	"HTTP/1.0 200 OK\r\nx-y: z\r\n\r\nuntil the end",
	"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\nEtag: \"x\"\r\n\r\n",
	"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
	"HTTP/1.1 200 OK\r\nPragma: no-cache\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
}

func FuzzAnswerAgainstNetHTTP(f *testing.F) {
	for _, s := range answerSeeds {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, raw []byte, head bool) {
		method := http.MethodGet
		if head {
			method = http.MethodHead
		}
		compareAnswer(t, method, raw)
	})
}

// TestAnswerGrammarAgainstNetHTTP is the same over answers made of pieces that
// parsers are known to disagree on.
func TestAnswerGrammarAgainstNetHTTP(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4)) //nolint:gosec // repeatable on purpose
	pick := func(s ...string) string { return s[rng.IntN(len(s))] }
	accepted := 0
	for range 30_000 {
		var b bytes.Buffer
		eol := func() string {
			if rng.IntN(100) == 0 {
				return pick("\n", "\r", "\r\r\n", "\n\r")
			}
			return "\r\n"
		}
		for range rng.IntN(2) {
			b.WriteString(pick("HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 E\r\nLink: x\r\n\r\n", "HTTP/1.1 102 P\r\nContent-Length: 3\r\n\r\n", "HTTP/1.1 101 S\r\n\r\n"))
		}
		b.WriteString(pick("HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "http/1.1", "HTTP/01.1") + pick(" ", " ", " ", " ", "  ", "\t"))
		b.WriteString(pick("200", "200", "200", "200", "204", "304", "404", "500", "99", "0200", "+20", "600", "2x0") + pick("", " ", " OK", " OK", " OK", " O\x80K", " \x01", "OK") + eol())
		for range rng.IntN(4) {
			b.WriteString(pick("Content-Length: 3", "content-length: 3", "Content-Length: 03", "Content-Length: +3", "Content-Length: 3, 3", "Content-Length : 3", "Content-Length:", "Content-Length: 0",
				"Transfer-Encoding: chunked", "transfer-encoding: Chunked", "Transfer-Encoding: gzip", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding:\x0bchunked", "Transfer-Encoding: identity",
				"X: y", "x: y\x80", "X: \ty ", " folded", "X:", "Host: h", "Connection: close", "Connection: keep-alive", "Connection: x, close", "Trailer: x-s", "Trailer: Content-Length", "Pragma: no-cache", "\x00: a", "X: a\rb", "Set-Cookie: a=b") + eol())
		}
		if rng.IntN(2) == 0 {
			b.WriteString(pick("Content-Length: 3", "Transfer-Encoding: chunked") + "\r\n")
		}
		b.WriteString(eol())
		for range rng.IntN(3) {
			b.WriteString(pick("abc", "3\r\nabc\r\n", "3;x=y\r\nabc\r\n", "3 \r\nabc\r\n", "03\r\nabc\r\n", "3\nabc\r\n", "0x3\r\nabc\r\n", "3\r\nabcd\r\n", "+3\r\nabc\r\n"))
		}
		b.WriteString(pick("", "", "0\r\n\r\n", "0\r\n\r\n", "0\r\nX-S: 1\r\n\r\n", "0\r\n\n", "00;a\r\nX : 1\r\n\r\n"))
		if compareAnswer(t, pick(http.MethodGet, http.MethodGet, http.MethodHead), b.Bytes()) {
			accepted++
		}
	}
	if accepted < 1000 {
		t.Errorf("only %d answers were accepted: the grammar proves little", accepted)
	}
}

// TestRefusedAnswers are those that net/http would take, or repair.
func TestRefusedAnswers(t *testing.T) {
	for name, raw := range map[string]string{
		"length and coding":  "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"two lengths":        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
		"bare LF":            "HTTP/1.1 200 OK\nContent-Length: 3\r\n\r\nabc",
		"folded line":        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 3\r\n\r\nabc",
		"coding in 1.0":      "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"other coding":       "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"unasked 101":        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
		"interim with body":  "HTTP/1.1 103 Early\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"204 with a coding":  "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"control in a value": "HTTP/1.1 200 OK\r\nX: a\x01b\r\nContent-Length: 3\r\n\r\nabc",
		"not HTTP":           "SSH-2.0-OpenSSH_9.0\r\n\r\n",
	} {
		var c closeCounter
		cl := &http1.Client{MaxIdle: 1, Dial: func(context.Context) (net.Conn, error) { return &c.conn([]byte(raw)).script2, nil }}
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a/", nil)
		resp, err := cl.RoundTrip(req)
		if !errors.Is(err, http1.ErrResponse) {
			t.Errorf("%s: got %v, %v; want ErrResponse", name, resp, err)
		}
		if !c.closed.Load() {
			t.Errorf("%s: the connection was kept", name)
		}
	}
}

// TestSwitchWithBody: a 101 has no body (RFC 9110 section 8.6), nor may the
// request's still be coming: both would be read as the other protocol.
func TestSwitchWithBody(t *testing.T) {
	const head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
	stuck, end := io.Pipe()
	defer end.Close()
	for name, c := range map[string]struct {
		raw  string
		body io.Reader
	}{
		"length":         {head + "Content-Length: 3\r\n\r\nabc", nil},
		"coding":         {head + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", nil},
		"body under way": {head + "\r\n", stuck},
	} {
		var cc closeCounter
		cl := &http1.Client{Dial: func(context.Context) (net.Conn, error) { return &cc.conn([]byte(c.raw)).script2, nil }}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a/", c.body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "websocket")
		if resp, err := cl.RoundTrip(req); !errors.Is(err, http1.ErrResponse) || !cc.closed.Load() {
			t.Errorf("%s: got %v, %v, closed %t; want ErrResponse", name, resp, err, cc.closed.Load())
		}
	}
}

// origin is a real server whose handler sees raw connections.
func origin(t *testing.T, serve func(n int, c net.Conn, br *bufio.Reader)) (*http1.Client, *atomic.Int64) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for n := 0; ; n++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(n, c, bufio.NewReader(c))
			}()
		}
	}()
	var dials atomic.Int64
	cl := &http1.Client{MaxIdle: 4, ResponseTimeout: 5 * time.Second, Dial: func(ctx context.Context) (net.Conn, error) {
		dials.Add(1)
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", ln.Addr().String())
		if err != nil {
			return nil, err
		}
		return http1.Probed(c), nil
	}}
	t.Cleanup(cl.Close)
	return cl, &dials
}

// ask makes one request and reads its whole answer.
func ask(t *testing.T, cl *http1.Client, method string, body io.Reader) (string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://origin/", body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := cl.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

const plainOK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

func TestClientKeepsConnections(t *testing.T) {
	cl, dials := origin(t, func(_ int, c net.Conn, br *bufio.Reader) {
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(c, plainOK)
		}
	})
	for range 20 {
		if got, err := ask(t, cl, http.MethodPost, strings.NewReader("body")); err != nil || got != "ok" {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("20 requests in a row made %d connections, want 1", n)
	}
}

// TestSurplusIsNeverAnAnswer: bytes that the origin sends unasked, at once or
// later, must not answer the next request.
func TestSurplusIsNeverAnAnswer(t *testing.T) {
	for name, wait := range map[string]time.Duration{"at once": 0, "later": 20 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			cl, dials := origin(t, func(n int, c net.Conn, br *bufio.Reader) {
				if _, err := http.ReadRequest(br); err != nil {
					return
				}
				surplus := "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"
				if n > 0 {
					surplus = ""
				}
				if wait == 0 {
					_, _ = io.WriteString(c, plainOK+surplus)
				} else {
					_, _ = io.WriteString(c, plainOK)
					<-time.After(wait)
					_, _ = io.WriteString(c, surplus)
				}
				_, _ = br.ReadByte()
			})
			for range 2 {
				if got, err := ask(t, cl, http.MethodGet, nil); err != nil || got != "ok" {
					t.Fatalf("got %q, %v", got, err)
				}
				<-time.After(5 * wait)
			}
			if n := dials.Load(); n != 2 {
				t.Errorf("%d connections, want 2", n)
			}
		})
	}
}

func TestStaleConnection(t *testing.T) {
	var requests atomic.Int64
	cl, dials := origin(t, func(n int, c net.Conn, br *bufio.Reader) {
		if _, err := http.ReadRequest(br); err != nil {
			return
		}
		requests.Add(1)
		_, _ = io.WriteString(c, plainOK)
		if n == 0 { // reads the next request, and dies with it
			_, _ = http.ReadRequest(br)
			requests.Add(1)
		}
	})
	for range 2 {
		if got, err := ask(t, cl, http.MethodGet, nil); err != nil || got != "ok" {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	if dials.Load() != 2 || requests.Load() != 3 {
		t.Errorf("%d dials and %d requests, want 2 and 3: a GET is sent again", dials.Load(), requests.Load())
	}
}

func TestPostIsNotSentTwice(t *testing.T) {
	var requests atomic.Int64
	cl, _ := origin(t, func(n int, c net.Conn, br *bufio.Reader) {
		for i := range 2 {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			requests.Add(1)
			if n == 0 && i == 1 {
				return
			}
			_, _ = io.WriteString(c, plainOK)
		}
	})
	if _, err := ask(t, cl, http.MethodPost, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := ask(t, cl, http.MethodPost, nil); err == nil {
		t.Errorf("got %q, want an error: the origin may have done the work", got)
	}
	if n := requests.Load(); n != 2 {
		t.Errorf("the origin saw %d requests, want 2", n)
	}
}

func TestCancelReachesTheOrigin(t *testing.T) {
	gone := make(chan struct{})
	cl, _ := origin(t, func(_ int, _ net.Conn, br *bufio.Reader) {
		_, _ = http.ReadRequest(br)
		_, _ = br.ReadByte()
		close(gone)
	})
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://origin/", nil)
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := cl.RoundTrip(req); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	select {
	case <-gone:
	case <-time.After(2 * time.Second):
		t.Error("the origin still waits")
	}
}

func TestResponseTimeout(t *testing.T) {
	cl, _ := origin(t, func(_ int, _ net.Conn, br *bufio.Reader) {
		_, _ = io.Copy(io.Discard, br)
	})
	cl.ResponseTimeout = 50 * time.Millisecond
	for _, body := range []io.Reader{nil, strings.NewReader("x")} {
		var ne net.Error
		if _, err := ask(t, cl, http.MethodPost, body); !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("got %v, want a timeout", err)
		}
	}
}

// TestSlowBodyHasNoHeadTimeout: the bound is for the head alone.
func TestSlowBodyHasNoHeadTimeout(t *testing.T) {
	cl, _ := origin(t, func(_ int, c net.Conn, br *bufio.Reader) {
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
			<-time.After(150 * time.Millisecond)
			_, _ = io.WriteString(c, "ok")
		}
	})
	cl.ResponseTimeout = 50 * time.Millisecond
	for _, body := range []io.Reader{nil, strings.NewReader("x")} {
		if got, err := ask(t, cl, http.MethodPost, body); err != nil || got != "ok" {
			t.Errorf("got %q, %v", got, err)
		}
	}
}

// TestEarlyAnswer: the answer to an unread body arrives, and the connection is
// not used again.
func TestEarlyAnswer(t *testing.T) {
	cl, dials := origin(t, func(_ int, c net.Conn, br *bufio.Reader) {
		if _, err := http.ReadRequest(br); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
		_, _ = io.CopyN(io.Discard, br, 1<<10)
	})
	pr, pw := io.Pipe()
	go func() { _, _ = pw.Write([]byte("first")) }()
	got, err := ask(t, cl, http.MethodPut, pr)
	if err != nil || got != "no" {
		t.Fatalf("got %q, %v", got, err)
	}
	_ = pw.Close()
	if _, err := ask(t, cl, http.MethodPut, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	if dials.Load() != 2 {
		t.Errorf("%d connections, want 2", dials.Load())
	}
}

func TestExpectContinue(t *testing.T) {
	for name, agreed := range map[string]bool{"agreed": true, "refused": false} {
		t.Run(name, func(t *testing.T) {
			cl, dials := origin(t, func(_ int, c net.Conn, br *bufio.Reader) {
				for {
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					if !agreed {
						_, _ = io.WriteString(c, "HTTP/1.1 417 No\r\nContent-Length: 2\r\n\r\nno")
						continue
					}
					_, _ = io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
					b, _ := io.ReadAll(r.Body)
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: "+strconv.Itoa(len(b))+"\r\n\r\n"+string(b))
				}
			})
			for range 2 {
				var touched atomic.Bool
				req, _ := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://origin/", readerFunc(strings.NewReader("body"), &touched))
				req.ContentLength = 4
				req.Header.Set("Expect", "100-continue")
				resp, err := cl.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				b, _ := io.ReadAll(resp.Body)
				if want := map[bool]string{true: "body", false: "no"}[agreed]; string(b) != want || touched.Load() != agreed {
					t.Errorf("got %q, body read %t; want %q, %t", b, touched.Load(), want, agreed)
				}
			}
			if want := map[bool]int64{true: 1, false: 2}[agreed]; dials.Load() != want {
				t.Errorf("%d connections, want %d", dials.Load(), want)
			}
		})
	}
}

func readerFunc(r io.Reader, touched *atomic.Bool) io.Reader {
	return readFunc(func(p []byte) (int, error) { touched.Store(true); return r.Read(p) })
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// TestClientAgainstNetHTTPServer covers methods, codings, trailers, interim
// answers and big bodies both ways with a real server.
func TestClientAgainstNetHTTPServer(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("Trailer", "X-Sum")
		w.Header().Set("Link", "</early>")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("X-Seen", r.Method+" "+r.RequestURI+" "+r.Host+" "+strconv.FormatInt(r.ContentLength, 10)+" "+r.Header.Get("X-A"))
		n, _ := io.Copy(w, r.Body)
		w.Header().Set("X-Sum", strconv.FormatInt(n, 10)+r.Trailer.Get("X-T"))
	}))
	defer s.Close()
	cl := &http1.Client{MaxIdle: 4, Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", s.Listener.Addr().String())
	}}
	defer cl.Close()
	big := strings.Repeat("0123456789", 300_000)
	for _, tt := range []struct {
		name, method string
		body         io.Reader
		length       int64
		seen, sum    string
	}{
		{"get", http.MethodGet, nil, 0, "GET //p/;%2f?q=1 example.test 0 v", "0"},
		{"put", http.MethodPut, strings.NewReader(big), int64(len(big)), "PUT //p/;%2f?q=1 example.test 3000000 v", "3000000"},
		{"chunked with trailer", http.MethodPost, strings.NewReader(big), -1, "POST //p/;%2f?q=1 example.test -1 v", "3000000late"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var hints atomic.Int64
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				if code == http.StatusEarlyHints && h.Get("Link") == "</early>" {
					hints.Add(1)
				}
				return nil
			}})
			req, err := http.NewRequestWithContext(ctx, tt.method, "http://example.test/", tt.body)
			if err != nil {
				t.Fatal(err)
			}
			req.URL = &url.URL{Scheme: "http", Host: "example.test", Path: "//p/;/", RawPath: "//p/;%2f", RawQuery: "q=1"}
			req.ContentLength = tt.length
			req.Header.Set("X-A", "v")
			if tt.length < 0 {
				req.Trailer = http.Header{"X-T": nil}
				req.Body = &trailing{ReadCloser: req.Body, end: func() { req.Trailer["X-T"] = []string{"late"} }}
			}
			resp, err := cl.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			if err != nil || (tt.length != 0) != (string(b) == big) {
				t.Errorf("body of %d bytes, %v", len(b), err)
			}
			if got := resp.Header.Get("X-Seen"); got != tt.seen {
				t.Errorf("the origin saw %q, want %q", got, tt.seen)
			}
			if got := resp.Trailer.Get("X-Sum"); got != tt.sum {
				t.Errorf("trailer %q, want %q", got, tt.sum)
			}
			if hints.Load() != 1 {
				t.Errorf("%d early hints, want 1", hints.Load())
			}
		})
	}
}

type trailing struct {
	io.ReadCloser
	end func()
}

func (t *trailing) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	if err == io.EOF {
		t.end()
	}
	return n, err
}

// TestShortBodyIsNotWhole: a body that ends before its length must not look
// complete to the origin.
func TestShortBodyIsNotWhole(t *testing.T) {
	whole := make(chan bool, 2)
	cl, _ := origin(t, func(_ int, _ net.Conn, br *bufio.Reader) {
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		_, err = io.ReadAll(r.Body)
		whole <- err == nil
	})
	for _, length := range []int64{10, -1} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://origin/", io.MultiReader(strings.NewReader("four"), failing{}))
		req.ContentLength = length
		if _, err := cl.RoundTrip(req); err == nil {
			t.Error("want an error")
		}
		if <-whole {
			t.Errorf("length %d: the origin took a cut body for a whole one", length)
		}
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the agent is gone") }

// TestCutAnswer: an answer that ends early is an error, in every framing.
func TestCutAnswer(t *testing.T) {
	for _, raw := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nshort",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n0\r\n",
		"HTTP/1.1 200 OK\r\nContent-",
	} {
		cl, _ := origin(t, func(_ int, c net.Conn, br *bufio.Reader) {
			_, _ = http.ReadRequest(br)
			_, _ = io.WriteString(c, raw)
		})
		if got, err := ask(t, cl, http.MethodGet, nil); err == nil {
			t.Errorf("%q: got %q as a whole answer", raw, got)
		}
	}
}

// TestUnsafeRequestsAreNotWritten: nothing passes that would be another field
// or another request.
func TestUnsafeRequestsAreNotWritten(t *testing.T) {
	for name, change := range map[string]func(*http.Request){
		"method":       func(r *http.Request) { r.Method = "GET / HTTP/1.1\r\nX:" },
		"connect":      func(r *http.Request) { r.Method = http.MethodConnect },
		"target":       func(r *http.Request) { r.URL.Opaque = "/a b" },
		"target CRLF":  func(r *http.Request) { r.URL.Opaque = "/a\r\nX: y" },
		"query":        func(r *http.Request) { r.URL.RawQuery = "a\r\nX: y" },
		"host":         func(r *http.Request) { r.Host = "a\r\nX: y" },
		"header name":  func(r *http.Request) { r.Header["X\r\nY"] = []string{"v"} },
		"header value": func(r *http.Request) { r.Header["X"] = []string{"a\r\nY: b"} },
		"trailer name": func(r *http.Request) {
			r.Trailer = http.Header{"X\r\nY": nil}
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader("x")), -1
		},
		"length header": func(r *http.Request) {
			r.Trailer = http.Header{"Content-Length": nil}
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader("x")), -1
		},
	} {
		var c closeCounter
		cl := &http1.Client{MaxIdle: 1, Dial: func(context.Context) (net.Conn, error) { return &c.conn([]byte(plainOK)).script2, nil }}
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a/", nil)
		change(req)
		if _, err := cl.RoundTrip(req); err == nil {
			t.Errorf("%s: was sent", name)
		}
	}
}

func TestIdleConnectionsExpire(t *testing.T) {
	closed := make(chan struct{})
	cl, _ := origin(t, func(_ int, c net.Conn, br *bufio.Reader) {
		_, _ = http.ReadRequest(br)
		_, _ = io.WriteString(c, plainOK)
		_, _ = br.ReadByte()
		close(closed)
	})
	cl.IdleTimeout = 50 * time.Millisecond
	if _, err := ask(t, cl, http.MethodGet, nil); err != nil {
		t.Fatal(err)
	}
	select {
	case <-closed:
	case <-time.After(2 * time.Second):
		t.Error("an idle connection outlives IdleTimeout")
	}
}

func TestClientConcurrently(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
	defer s.Close()
	cl := &http1.Client{MaxIdle: 8, ResponseTimeout: 10 * time.Second, Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", s.Listener.Addr().String())
	}}
	defer cl.Close()
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 50 {
				want := strconv.Itoa(i) + "/" + strconv.Itoa(j)
				if got, err := ask(t, cl, http.MethodPost, strings.NewReader(want)); err != nil || got != want {
					t.Errorf("got %q, %v; want %q", got, err, want)
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestAnswersWithoutBodyConcurrently: such an answer gives the connection to
// the next request before roundTrip returns.
func TestAnswersWithoutBodyConcurrently(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusNoContent)
	}))
	defer s.Close()
	cl := &http1.Client{MaxIdle: 2, ResponseTimeout: 10 * time.Second, Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", s.Listener.Addr().String())
	}}
	defer cl.Close()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 50 {
				if got, err := ask(t, cl, http.MethodPost, strings.NewReader("body")); err != nil || got != "" {
					t.Errorf("got %q, %v; want an empty answer", got, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
