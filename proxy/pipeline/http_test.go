package pipeline_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/attache-dev/attache/audit"
)

// combinations runs f for each choice of protocols.
func combinations(t *testing.T, f func(t *testing.T, r *rig, c *http.Client, base string)) {
	t.Helper()
	for _, h2 := range []bool{false, true} {
		for _, host := range []string{"h1.test", "api.test"} {
			t.Run(fmt.Sprintf("client h2=%v origin %s", h2, host), func(t *testing.T) {
				r := newRig(t, settings{})
				f(t, r, r.client(h2), "https://"+host)
			})
		}
	}
}

// Each event passes before the next one is made.
func TestEventsPassFrameByFrame(t *testing.T) {
	combinations(t, func(t *testing.T, r *rig, c *http.Client, base string) {
		next := make(chan struct{})
		r.serve(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			_ = http.NewResponseController(w).Flush() // the head, alone
			for i := range 5 {
				<-next
				_, _ = fmt.Fprintf(w, "data: %d\n\n", i)
				_ = http.NewResponseController(w).Flush()
			}
		})
		resp, err := c.Get(base + "/events")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		br := bufio.NewReader(resp.Body)
		for i := range 5 {
			next <- struct{}{}
			line, err := br.ReadString('\n')
			if err != nil || line != fmt.Sprintf("data: %d\n", i) {
				t.Fatalf("got %q %v", line, err)
			}
			_, _ = br.ReadString('\n')
		}
	})
}

func TestHeadRangesAndEmptyAnswers(t *testing.T) {
	combinations(t, func(t *testing.T, r *rig, c *http.Client, base string) {
		content := strings.Repeat("0123456789", 1000)
		r.serve(func(w http.ResponseWriter, q *http.Request) {
			switch q.URL.Path {
			case "/204":
				w.WriteHeader(http.StatusNoContent)
			case "/304":
				w.Header().Set("Etag", `"x"`)
				w.WriteHeader(http.StatusNotModified)
			default:
				http.ServeContent(w, q, "x.txt", time.Time{}, strings.NewReader(content))
			}
		})
		if got := r.do(c, http.MethodHead, base+"/f", nil); got.StatusCode != 200 || got.ContentLength != 10000 || got.body != "" || got.err != nil {
			t.Errorf("HEAD: %d %d %v", got.StatusCode, got.ContentLength, got.err)
		}
		if got := r.do(c, http.MethodGet, base+"/f", nil, "Range", "bytes=10-14"); got.StatusCode != 206 || got.body != "01234" || got.Header.Get("Content-Range") != "bytes 10-14/10000" {
			t.Errorf("range: %d %q %v", got.StatusCode, got.body, got.Header)
		}
		for path, status := range map[string]int{"/204": 204, "/304": 304} {
			if got := r.do(c, http.MethodGet, base+path, nil); got.StatusCode != status || got.body != "" || got.err != nil {
				t.Errorf("%s: %d %q %v", path, got.StatusCode, got.body, got.err)
			}
		}
		r.records(4)
	})
}

func TestTrailersBothWays(t *testing.T) {
	combinations(t, func(t *testing.T, r *rig, c *http.Client, base string) {
		r.serve(func(w http.ResponseWriter, q *http.Request) {
			_, _ = io.Copy(io.Discard, q.Body)
			if got := q.Trailer.Get("X-Sum"); got != "up" {
				t.Errorf("request trailer: %v", q.Trailer)
			}
			if q.Trailer.Get("X-Odd") != "" {
				t.Errorf("a placeholder passed in a trailer: %v", q.Trailer)
			}
			w.Header().Set("Trailer", "X-Sum")
			_, _ = io.WriteString(w, "body")
			w.Header().Set("X-Sum", "down")
			w.Header().Set(http.TrailerPrefix+"X-Unannounced", "too")
		})
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPut, base, io.MultiReader(strings.NewReader("hello")))
		req.Trailer = http.Header{"X-Sum": {"up"}, "X-Odd": {r.holders.Value("VENDOR_API_KEY")}}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if string(b) != "body" || err != nil || resp.Trailer.Get("X-Sum") != "down" || resp.Trailer.Get("X-Unannounced") != "too" {
			t.Errorf("got %q %v %v", b, err, resp.Trailer)
		}
	})
}

func TestEarlyHintsPass(t *testing.T) {
	combinations(t, func(t *testing.T, r *rig, c *http.Client, base string) {
		seen := make(chan struct{})
		r.serve(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", "</s.css>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			<-seen // the hints arrive before the answer exists
			_, _ = io.WriteString(w, "done")
		})
		var hints signalling
		hints.seen = seen
		if got := r.hinted(c, base, &hints); got.body != "done" || !strings.Contains(hints.String(), "103 map[Link:[</s.css>; rel=preload]]") {
			t.Errorf("got %q %q", got.body, hints.String())
		}
	})
}

type signalling struct {
	bytes.Buffer
	seen chan struct{}
}

func (s *signalling) Write(p []byte) (int, error) {
	if s.Len() == 0 {
		defer close(s.seen)
	}
	return s.Buffer.Write(p)
}

// 100 Continue comes from whoever reads the body: not before the origin asks
// for it, and not at all if it answers first.
func TestContinue(t *testing.T) {
	combinations(t, func(t *testing.T, r *rig, c *http.Client, base string) {
		c.Transport.(*http.Transport).ExpectContinueTimeout = 10 * time.Second
		r.serve(func(w http.ResponseWriter, q *http.Request) {
			if q.URL.Path == "/no" {
				http.Error(w, "too large", http.StatusExpectationFailed)
				return
			}
			b, _ := io.ReadAll(q.Body)
			_, _ = w.Write(b)
		})
		send := func(path string) (status int, body string, continued, sent bool) {
			var cont, read atomic.Bool
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { cont.Store(true) }})
			req, _ := http.NewRequestWithContext(ctx, http.MethodPut, base+path, &watched{Reader: strings.NewReader("hello"), read: &read})
			req.ContentLength = 5
			req.Header.Set("Expect", "100-continue")
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			return resp.StatusCode, string(b), cont.Load(), read.Load()
		}
		if status, body, continued, _ := send("/yes"); status != 200 || body != "hello" || !continued {
			t.Errorf("got %d %q continued=%v", status, body, continued)
		}
		status, _, _, sent := send("/no")
		if status != http.StatusExpectationFailed {
			t.Errorf("got %d", status)
		}
		// x/net/http2 takes Expect off, so an HTTP/2 client is asked at once.
		if sent && !strings.Contains(fmt.Sprint(c.Transport.(*http.Transport).ForceAttemptHTTP2), "true") {
			t.Error("the body was sent though the origin refused it")
		}
	})
}

type watched struct {
	io.Reader
	read *atomic.Bool
}

func (w *watched) Read(p []byte) (int, error) {
	w.read.Store(true)
	return w.Reader.Read(p)
}

// A client that leaves takes its request along, at once.
func TestCancelIsCarriedUpstream(t *testing.T) {
	combinations(t, func(t *testing.T, r *rig, c *http.Client, base string) {
		here, gone := make(chan struct{}), make(chan struct{})
		r.serve(func(w http.ResponseWriter, q *http.Request) {
			if q.URL.Path == "/stream" {
				_ = http.NewResponseController(w).Flush()
			}
			close(here)
			<-q.Context().Done()
			close(gone)
		})
		for i, path := range []string{"/", "/stream"} {
			here, gone = make(chan struct{}), make(chan struct{})
			ctx, cancel := context.WithCancel(t.Context())
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
			done := make(chan error, 1)
			go func() {
				resp, err := c.Do(req)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
				done <- err
			}()
			<-here
			if path == "/stream" {
				<-time.After(20 * time.Millisecond) // the head is on its way
			}
			start := time.Now()
			cancel()
			select {
			case <-gone:
				t.Logf("%s: the origin knew after %v", path, time.Since(start))
			case <-time.After(2 * time.Second):
				t.Fatal("the origin never knew")
			}
			// An HTTP/2 client may read our reset before it sees its own
			// cancellation; that the call failed is all that counts here.
			if err := <-done; err == nil {
				t.Error("a canceled call succeeded")
			}
			if rec := r.records(i + 1)[i]; rec.Result.Outcome != audit.OutcomeCanceled {
				t.Errorf("record %+v", rec.Result)
			}
		}
	})
}

// Bodies of GiB pass in constant memory.
func TestLargeBodiesInConstantMemory(t *testing.T) {
	size := int64(1 << 30)
	if raceEnabled || testing.Short() {
		size = 256 << 20 // the detector is ten times slower
	}
	r := newRig(t, settings{})
	r.serve(func(w http.ResponseWriter, q *http.Request) {
		if q.Method == http.MethodPut {
			n, err := io.Copy(io.Discard, q.Body)
			_, _ = fmt.Fprint(w, n, err)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(size))
		_, _ = io.CopyN(w, zeros{}, size)
	})
	for range 2 { // what other tests left is not of these bodies; pools take two
		runtime.GC()
	}
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	stop, peak := make(chan struct{}), make(chan uint64)
	go func() {
		var m runtime.MemStats
		top := uint64(0)
		for {
			runtime.ReadMemStats(&m)
			top = max(top, m.HeapInuse)
			select {
			case <-stop:
				peak <- top
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	c := r.client(false)
	c.Timeout = 0
	resp, err := c.Get("https://h1.test/")
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	if n != size || err != nil {
		t.Errorf("download: %d of %d, %v", n, size, err)
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://h1.test/", io.LimitReader(zeros{}, size))
	req.ContentLength = size
	if resp, err = c.Do(req); err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if string(b) != fmt.Sprint(size, " <nil>") {
		t.Errorf("upload: %s", b)
	}
	close(stop)
	top := <-peak
	t.Logf("%d MiB each way, heap %d MiB before and at most %d MiB", size>>20, before.HeapInuse>>20, top>>20)
	if top > before.HeapInuse+64<<20 {
		t.Errorf("the heap grew from %d to %d MiB", before.HeapInuse>>20, top>>20)
	}
	recs := r.records(2)
	if recs[0].Result.BytesDown != size || recs[1].Result.BytesUp != size {
		t.Errorf("records %+v %+v", recs[0].Result, recs[1].Result)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// An origin is not read faster than the agent reads.
func TestSlowReaderHoldsTheOriginBack(t *testing.T) {
	combinations(t, func(t *testing.T, r *rig, c *http.Client, base string) {
		var sent atomic.Int64
		r.serve(func(w http.ResponseWriter, _ *http.Request) {
			buf := make([]byte, 64<<10)
			for {
				n, err := w.Write(buf)
				sent.Add(int64(n))
				if err != nil {
					return
				}
			}
		})
		resp, err := c.Get(base)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		before := int64(-1)
		r.eventually("the origin to stop", func() bool {
			<-time.After(200 * time.Millisecond)
			now := sent.Load()
			stopped := now == before
			before = now
			return stopped
		})
		if before > 64<<20 {
			t.Errorf("%d MiB are under way", before>>20)
		}
	})
}

// Alt-Svc would lead the agent round us; Attache-Error is ours alone.
func TestAnswerHeadersAreClean(t *testing.T) {
	combinations(t, func(t *testing.T, r *rig, c *http.Client, base string) {
		r.serve(func(w http.ResponseWriter, q *http.Request) {
			h := w.Header()
			h.Set("Alt-Svc", `h3=":443"`)
			h.Set("Attache-Error", "denied")
			h.Set("Attache-Record", "rec_forged")
			h.Set("Kept", "1")
			if q.ProtoMajor == 1 {
				h.Set("Connection", "Hop")
				h.Set("Hop", "1")
				h.Set("Keep-Alive", "timeout=5")
			}
		})
		got := r.do(c, http.MethodGet, base, nil)
		for _, k := range []string{"Alt-Svc", "Attache-Error", "Hop", "Keep-Alive"} {
			if v := got.Header.Get(k); v != "" {
				t.Errorf("%s: %s", k, v)
			}
		}
		if got.Header.Get("Kept") != "1" || got.Header.Get("Attache-Record") != r.record().ID {
			t.Errorf("got %v", got.Header)
		}
	})
}

// The bytes of the path reach the origin as policy saw them.
func TestPathBytesAreKept(t *testing.T) {
	r := newRig(t, settings{})
	r.serve(func(w http.ResponseWriter, q *http.Request) { _, _ = io.WriteString(w, q.RequestURI) })
	for _, c := range []struct{ host, path string }{
		{"api.test", "/a%41/~b%7E"}, {"api.test", "/a?"}, {"api.test", "/?a=%20b&c"}, {"api.test", "/a:b@c,d=e&f"}, {"api.test", "/%E2%82%AC"}, {"api.test", "/a|b\"c^d"}, {"api.test", "/"},
		{"raw.test", "/a%2Fb/../c"}, {"raw.test", "//a//b"}, {"raw.test", "/a;b/./%2e"}, {"raw.test", "//a%2Fb/.."},
	} {
		for _, proto := range []string{"http/1.1", "h2"} {
			got := r.raw(c.host, proto, "GET", c.path)
			if got != c.path {
				t.Errorf("%s %s: got %q, want %q", c.host, proto, got, c.path)
			}
		}
	}
	if got := r.raw("h1open.test", "http/1.1", "OPTIONS", "*"); got != "*" {
		t.Errorf("OPTIONS *: got %q", got)
	}
	if got := r.raw("open.test", "h2", "OPTIONS", "*"); got != "*" {
		t.Errorf("OPTIONS * over h2: got %q", got)
	}
}

// raw sends a request target as it stands and returns the answer's body.
func (r *rig) raw(host, proto, method, target string) string {
	r.t.Helper()
	c := r.connect(host+":443", proto)
	if proto == "http/1.1" {
		_, _ = fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: %s\r\n\r\n", method, target, host)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			r.t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		return string(b)
	}
	_, _ = io.WriteString(c, http2.ClientPreface)
	f := http2.NewFramer(c, c)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = f.WriteSettings()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, kv := range [][2]string{{":method", method}, {":scheme", "https"}, {":authority", host}, {":path", target}} {
		_ = enc.WriteField(hpack.HeaderField{Name: kv[0], Value: kv[1]})
	}
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
	var body []byte
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			r.t.Fatal(err)
		}
		switch fr := fr.(type) {
		case *http2.SettingsFrame:
			if !fr.IsAck() {
				_ = f.WriteSettingsAck()
			}
		case *http2.DataFrame:
			body = append(body, fr.Data()...)
			if fr.StreamEnded() {
				return string(body)
			}
		case *http2.MetaHeadersFrame:
			if fr.StreamEnded() {
				return fr.PseudoValue("status")
			}
		case *http2.RSTStreamFrame:
			return "reset " + fr.ErrCode.String()
		}
	}
}

func TestOldAndHalfClosedClients(t *testing.T) {
	r := newRig(t, settings{})
	r.serve(func(w http.ResponseWriter, _ *http.Request) {
		_ = http.NewResponseController(w).Flush()
		_, _ = io.WriteString(w, "streamed")
	})
	c := r.connect("open.test:443", "http/1.1")
	_, _ = io.WriteString(c, "GET / HTTP/1.0\r\nHost: open.test\r\n\r\n")
	b, err := io.ReadAll(c)
	if err != nil || !strings.HasSuffix(string(b), "\r\n\r\nstreamed") || strings.Contains(string(b), "chunked") {
		t.Errorf("HTTP/1.0: %q %v", b, err)
	}
	c = r.connect("open.test:443", "http/1.1")
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: open.test\r\n\r\n")
	_ = c.CloseWrite()
	if b, err = io.ReadAll(c); !strings.Contains(string(b), "streamed") {
		t.Errorf("half-closed: %q %v", b, err)
	}
	for _, rec := range r.records(2) {
		if rec.Result.Outcome != audit.OutcomeOK {
			t.Errorf("record %+v", rec.Result)
		}
	}
}

// The base-URL door maps what leads to its destination back to itself.
func TestBaseURLMapsLinks(t *testing.T) {
	r := newRig(t, settings{})
	r.serve(func(w http.ResponseWriter, q *http.Request) {
		h := w.Header()
		h.Set("Location", "https://api.test/next?a=b")
		h.Set("Link", `<https://api.test/2>; rel="next", <https://other.example/>; rel="x"`)
		w.WriteHeader(http.StatusFound)
		if q.Host != "api.test" {
			t.Errorf("host %s", q.Host)
		}
	})
	c := &http.Client{Transport: &http.Transport{}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	got := r.do(c, http.MethodGet, r.base+"/v1", nil)
	if got.Header.Get("Location") != r.base+"/next?a=b" || got.Header.Get("Link") != "<"+r.base+`/2>; rel="next", <https://other.example/>; rel="x"` {
		t.Errorf("got %v", got.Header)
	}
	if got := r.do(c, http.MethodGet, r.base+"/v1", nil, "Origin", "http://"+strings.TrimPrefix(r.base, "http://")); got.StatusCode != 403 {
		t.Errorf("a web page was served: %d", got.StatusCode)
	}
	if rec := r.record(); rec.Request.Door != "base-url" || rec.Request.Host != "api.test" || rec.Result.Status != 302 {
		t.Errorf("record %+v", rec.Request)
	}
}

// Absolute-form requests are served, with an empty path too.
func TestAbsoluteForm(t *testing.T) {
	r := newRig(t, settings{rules: `
  - {name: plain, hosts: ["plain.test"], action: allow}
`})
	r.serve(func(w http.ResponseWriter, q *http.Request) {
		_, _ = fmt.Fprint(w, q.Host, " ", q.RequestURI, " ", q.Header.Get("Authorization"))
	})
	for target, want := range map[string]string{"http://plain.test": "/", "http://plain.test?a=b": "/?a=b", "http://PLAIN.test:80/x?": "/x?"} {
		c, err := net.Dial("tcp", r.proxy)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: plain.test\r\nConnection: close\r\n\r\n", target)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		_ = c.Close()
		if got := string(b); got != "plain.test "+want+" " {
			t.Errorf("%s: got %d %q", target, resp.StatusCode, got)
		}
	}
}
