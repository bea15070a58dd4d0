package front_test

//lint:file-ignore SA1019 x/net/http2 serves a connection that we accepted and attested ourselves; net/http only serves its own listeners.

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/proxy"
	"github.com/attache-dev/attache/proxy/destination"
	"github.com/attache-dev/attache/proxy/front"
	"github.com/attache-dev/attache/proxy/http1"
	"github.com/attache-dev/attache/proxy/intercept"
)

type attestor func(net.Conn) (identity.Caller, error)

func (a attestor) Attest(_ context.Context, c net.Conn) (identity.Caller, error) { return a(c) }

// door is a front with one proxy listener.
type door struct {
	*front.Front
	addr  string
	roots *x509.CertPool
	pem   []byte

	mu    sync.Mutex
	kinds []string
	hints []string
}

func (d *door) counted(kind string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, k := range d.kinds {
		if k == kind {
			n++
		}
	}
	return n
}

// eventually waits for what another goroutine is about to do.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		if ok() {
			return
		}
		<-time.After(2 * time.Millisecond)
	}
	t.Errorf("never saw: %s", what)
}

// show answers with what the handler was given.
var show = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	c := proxy.ConnFrom(r.Context())
	body, _ := io.ReadAll(r.Body)
	if c.Refusal != nil {
		w.WriteHeader(http.StatusForbidden)
	}
	_, _ = fmt.Fprintf(w, "%s|%s|%s|%s|%s|%s|%v|%q|%v", c.Door, r.Method, r.URL, r.Host, r.RequestURI, c.Dest, c.Refusal, body, r.Header["Proxy-Authorization"])
})

func open(t *testing.T, change func(*front.Front)) *door {
	t.Helper()
	ca, err := intercept.New(nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	d := &door{roots: x509.NewCertPool(), pem: ca.PEM()}
	d.roots.AppendCertsFromPEM(d.pem)
	d.Front = &front.Front{
		Attestor: attestor(func(net.Conn) (identity.Caller, error) { return identity.Caller{}, nil }),
		CA:       ca,
		Handler:  show,
		Log:      slog.New(slog.DiscardHandler),
		Refused:  func(k string) { d.mu.Lock(); defer d.mu.Unlock(); d.kinds = append(d.kinds, k) },
		TLSFailed: func(_ *proxy.Conn, _ error, hint string) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.hints = append(d.hints, hint)
		},
	}
	if change != nil {
		change(d.Front)
	}
	ln := listen(t)
	d.addr = ln.Addr().String()
	served := make(chan error, 1)
	go func() { served <- d.ServeProxy(context.Background(), ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = d.Shutdown(ctx)
		if err := <-served; !errors.Is(err, front.ErrClosed) {
			t.Errorf("ServeProxy ended with %v", err)
		}
	})
	return d
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func (d *door) client(t *testing.T, h2 bool) *http.Client {
	t.Helper()
	tr := &http.Transport{
		Proxy:             http.ProxyURL(&url.URL{Scheme: "http", Host: d.addr, User: url.UserPassword("u", "p")}),
		TLSClientConfig:   &tls.Config{RootCAs: d.roots},
		ForceAttemptHTTP2: h2,
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 5 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func get(t *testing.T, c *http.Client, u string) (int, string) {
	t.Helper()
	res, err := c.Post(u, "text/plain", strings.NewReader("hi"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func (d *door) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", d.addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// tunnel sends a CONNECT and returns the connection behind its 200.
func (d *door) tunnel(t *testing.T, authority string) net.Conn {
	t.Helper()
	c := d.dial(t)
	_, _ = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", authority, authority)
	want := "HTTP/1.1 200 Connection established\r\n\r\n"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("CONNECT %s: got %q, %v", authority, got, err)
	}
	return c
}

func (d *door) tlsTunnel(t *testing.T, authority, sni string, protos ...string) *tls.Conn {
	t.Helper()
	c := tls.Client(d.tunnel(t, authority), &tls.Config{RootCAs: d.roots, ServerName: sni, NextProtos: protos})
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

func ask(t *testing.T, c io.ReadWriter, raw string) (int, string) {
	t.Helper()
	if _, err := io.WriteString(c, raw); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(b)
}

func TestCanonicalRequest(t *testing.T) {
	d := open(t, nil)
	for _, tt := range []struct {
		name, url, want string
		h2              bool
	}{
		{"connect h1", "https://API.example.com/a%20b?c=d", `connect|POST|https://api.example.com/a%20b?c=d|api.example.com|/a%20b?c=d|https://api.example.com|<nil>|"hi"|[]`, false},
		{"connect h2", "https://api.example.com/a?b", `connect|POST|https://api.example.com/a?b|api.example.com|/a?b|https://api.example.com|<nil>|"hi"|[]`, true},
		{"connect port", "https://api.example.com:8443/", `connect|POST|https://api.example.com:8443/|api.example.com:8443|/|https://api.example.com:8443|<nil>|"hi"|[]`, true},
		{"absolute", "http://api.example.com/x%2Fy", `absolute|POST|http://api.example.com/x%2Fy|api.example.com|http://api.example.com/x%2Fy|http://api.example.com|<nil>|"hi"|[]`, false},
		{"absolute without path", "http://api.example.com:81", `absolute|POST|http://api.example.com:81/|api.example.com:81|http://api.example.com:81/|http://api.example.com:81|<nil>|"hi"|[]`, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if status, got := get(t, d.client(t, tt.h2), tt.url); status != 200 || got != tt.want {
				t.Errorf("got %d %s\nwant 200 %s", status, got, tt.want)
			}
		})
	}
}

func TestUnattestedIsAnsweredInside(t *testing.T) {
	d := open(t, func(f *front.Front) {
		f.Attestor = attestor(func(net.Conn) (identity.Caller, error) { return identity.Caller{}, identity.ErrUnattested })
		f.Passthrough = func(context.Context, *proxy.Conn) bool { return true }
		f.Tunnel = func(context.Context, *proxy.Conn, net.Conn) error {
			t.Error("an unattested caller was tunnelled")
			return nil
		}
	})
	for _, u := range []string{"https://api.example.com/", "http://api.example.com/"} {
		if status, got := get(t, d.client(t, false), u); status != http.StatusForbidden || !strings.Contains(got, "caller is not attested") {
			t.Errorf("%s: got %d %s", u, status, got)
		}
	}
}

// TestPanicEndsOneConnection: the code behind CONNECT runs on no handler's
// frames, so nobody else would catch its panic.
func TestPanicEndsOneConnection(t *testing.T) {
	d := open(t, func(f *front.Front) {
		f.Passthrough = func(_ context.Context, c *proxy.Conn) bool { return c.Dest.Host == "broken.example.com" }
		f.Tunnel = func(context.Context, *proxy.Conn, net.Conn) error { panic("broken") }
	})
	c := tls.Client(d.tunnel(t, "broken.example.com:443"), &tls.Config{RootCAs: d.roots, ServerName: "broken.example.com"})
	if err := c.HandshakeContext(t.Context()); err == nil {
		t.Error("a broken tunnel shook hands")
	}
	if status, got := get(t, d.client(t, false), "https://api.example.com/"); status != http.StatusOK {
		t.Errorf("afterwards: got %d %s", status, got)
	}
}

func TestHostMustBeTheConnectionsOwn(t *testing.T) {
	d := open(t, nil)
	for _, tt := range []struct {
		raw    string
		status int
	}{
		{"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n", 200},
		{"GET / HTTP/1.1\r\nHost: API.example.com.:443\r\n\r\n", 200},
		{"GET https://api.example.com/ HTTP/1.1\r\nHost: api.example.com\r\n\r\n", 200},
		{"OPTIONS * HTTP/1.1\r\nHost: api.example.com\r\n\r\n", 200},
		{"GET / HTTP/1.1\r\nHost: other.example.com\r\n\r\n", 421},
		{"GET / HTTP/1.1\r\nHost: api.example.com:444\r\n\r\n", 421},
		{"GET https://other.example.com/ HTTP/1.1\r\nHost: other.example.com\r\n\r\n", 421},
		{"GET http://api.example.com:443/ HTTP/1.1\r\nHost: api.example.com:443\r\n\r\n", 421},
		{"GET / HTTP/1.1\r\nHost: 127.1\r\n\r\n", 421},
		{"CONNECT api.example.com:443 HTTP/1.1\r\nHost: api.example.com:443\r\n\r\n", 501},
		{"GET / HTTP/1.1\r\nHost: api.example.com\r\nHost: other\r\n\r\n", 400},
	} {
		c := d.tlsTunnel(t, "api.example.com:443", "api.example.com")
		if status, body := ask(t, c, tt.raw); status != tt.status {
			t.Errorf("%q: got %d %s, want %d", tt.raw, status, body, tt.status)
		}
	}
}

func TestAuthorityOnEachStream(t *testing.T) {
	d := open(t, nil)
	c := d.tlsTunnel(t, "api.example.com:443", "api.example.com", "h2")
	tr := &http2.Transport{}
	cc, err := tr.NewClientConn(c)
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]int{"api.example.com": 200, "other.example.com": 421, "api.example.com:444": 421, "API.example.com:443": 200} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+host+"/", nil)
		res, err := cc.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: got %d, want %d", host, res.StatusCode, want)
		}
	}
}

// h2raw speaks HTTP/2 frame by frame.
type h2raw struct {
	c   net.Conn
	fr  *http2.Framer
	buf bytes.Buffer
	enc *hpack.Encoder
	id  uint32
}

func rawH2(t *testing.T, c net.Conn) *h2raw {
	t.Helper()
	h := &h2raw{c: c, fr: http2.NewFramer(c, c), id: 1}
	h.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	h.enc = hpack.NewEncoder(&h.buf)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := h.fr.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *h2raw) headers(fields ...string) (uint32, error) {
	h.buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = h.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	id := h.id
	h.id += 2
	return id, h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h.buf.Bytes(), EndHeaders: true, EndStream: true})
}

// answer returns the status of the next response, or "reset" or "goaway".
func (h *h2raw) answer() string {
	for {
		f, err := h.fr.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			return f.PseudoValue("status")
		case *http2.RSTStreamFrame:
			return "reset"
		case *http2.GoAwayFrame:
			return "goaway " + f.ErrCode.String()
		}
	}
}

func TestHTTP2Oddities(t *testing.T) {
	d := open(t, func(f *front.Front) { f.Limits.MaxHeaders = 20 })
	std := []string{":method", "GET", ":scheme", "https", ":authority", "api.example.com", ":path", "/"}
	with := func(more ...string) []string { return append(append([]string(nil), std...), more...) }
	many := std
	for range 30 {
		many = append(many, "x", "y")
	}
	for _, tt := range []struct {
		name   string
		fields []string
		want   string // "200" is the only success
	}{
		{"plain", std, "200"},
		{"te trailers", with("te", "trailers"), "200"},
		{"same host", with("host", "api.example.com"), "200"},
		{"other host", with("host", "other.example.com"), "refused"},
		{"other authority", []string{":method", "GET", ":scheme", "https", ":authority", "x.example", ":path", "/"}, "421"},
		{"host for authority", []string{":method", "GET", ":scheme", "https", ":path", "/", "host", "x.example"}, "421"},
		{"no authority", []string{":method", "GET", ":scheme", "https", ":path", "/"}, "421"},
		{"user in authority", []string{":method", "GET", ":scheme", "https", ":authority", "u@api.example.com", ":path", "/"}, "refused"},
		{"path with space", []string{":method", "GET", ":scheme", "https", ":authority", "api.example.com", ":path", "/a b"}, "refused"},
		{"path with CRLF", []string{":method", "GET", ":scheme", "https", ":authority", "api.example.com", ":path", "/\r\nx: y"}, "refused"},
		{"path with request line", []string{":method", "GET", ":scheme", "https", ":authority", "api.example.com", ":path", "/ HTTP/1.1"}, "refused"},
		{"empty path", []string{":method", "GET", ":scheme", "https", ":authority", "api.example.com", ":path", ""}, "refused"},
		{"relative path", []string{":method", "GET", ":scheme", "https", ":authority", "api.example.com", ":path", "a"}, "refused"},
		{"absolute path", []string{":method", "GET", ":scheme", "https", ":authority", "api.example.com", ":path", "https://x.example/"}, "refused"},
		{"asterisk with GET", []string{":method", "GET", ":scheme", "https", ":authority", "api.example.com", ":path", "*"}, "refused"},
		{"method with space", []string{":method", "GET / HTTP/1.1", ":scheme", "https", ":authority", "api.example.com", ":path", "/"}, "refused"},
		{"CR in value", with("x", "a\rb"), "refused"},
		{"LF in value", with("x", "a\nb"), "refused"},
		{"NUL in value", with("x", "a\x00b"), "refused"},
		{"LF in name", with("x\ny", "a"), "refused"},
		{"capital name", with("X", "a"), "refused"},
		{"colon in name", with("x:y", "a"), "refused"},
		{"transfer-encoding", with("transfer-encoding", "chunked"), "refused"},
		{"connection", with("connection", "close"), "refused"},
		{"upgrade", with("upgrade", "h2c"), "refused"},
		{"te other", with("te", "gzip"), "refused"},
		{"path twice", with(":path", "/b"), "refused"},
		{"pseudo after field", append([]string{":method", "GET", ":scheme", "https", ":path", "/", "x", "y"}, ":authority", "api.example.com"), "refused"},
		{"unknown pseudo", with(":protocol", "websocket"), "refused"},
		{"connect", []string{":method", "CONNECT", ":authority", "api.example.com:443"}, "501"},
		{"many fields", many, "431"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := rawH2(t, d.tlsTunnel(t, "api.example.com:443", "api.example.com", "h2"))
			if _, err := h.headers(tt.fields...); err != nil {
				t.Fatal(err)
			}
			got := h.answer()
			if tt.want == "refused" && got != "200" || got == tt.want {
				return
			}
			t.Errorf("got %s, want %s", got, tt.want)
		})
	}
}

func TestResetFloodEndsTheConnection(t *testing.T) {
	release := make(chan struct{})
	var mu sync.Mutex
	running, most := 0, 0
	d := open(t, func(f *front.Front) {
		f.Limits.MaxStreams = 10
		f.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			mu.Lock()
			running++
			most = max(most, running)
			mu.Unlock()
			<-release
			mu.Lock()
			running--
			mu.Unlock()
		})
	})
	defer close(release)
	h := rawH2(t, d.tlsTunnel(t, "api.example.com:443", "api.example.com", "h2"))
	go func() { // CVE-2023-44487: open and reset as fast as the wire carries it
		for range 5000 {
			id, err := h.headers(":method", "GET", ":scheme", "https", ":authority", "api.example.com", ":path", "/")
			if err != nil || h.fr.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
				return
			}
		}
	}()
	if got := h.answer(); got != "goaway ENHANCE_YOUR_CALM" {
		t.Errorf("got %s, want the connection ended by ENHANCE_YOUR_CALM", got)
	}
	mu.Lock()
	defer mu.Unlock()
	if most > 10 {
		t.Errorf("%d handlers ran at once, want at most 10", most)
	}
}

func TestProxyPortRefusals(t *testing.T) {
	d := open(t, nil)
	for _, tt := range []struct{ raw, text, kind string }{
		{"GET / HTTP/1.1\r\nHost: " + d.addr + "\r\n\r\n", "HTTP_PROXY", front.KindNotProxy},
		{"GET https://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", "use CONNECT", front.KindNotProxy},
		{"CONNECT a.example:0 HTTP/1.1\r\nHost: a.example:0\r\n\r\n", "port", front.KindAuthority},
		{"CONNECT 127.1:443 HTTP/1.1\r\nHost: 127.1:443\r\n\r\n", "IPv4", front.KindAuthority},
		{"CONNECT a..b:443 HTTP/1.1\r\nHost: a..b:443\r\n\r\n", "label", front.KindAuthority},
		{"CONNECT a.example:443 HTTP/1.1\r\nHost: b.example:443\r\n\r\n", "differs", http1.KindHost},
		{"GET http://0x7f.1/ HTTP/1.1\r\nHost: 0x7f.1\r\n\r\n", "IPv4", front.KindAuthority},
		{"GET http://[::ffff:1.2.3.4]/ HTTP/1.1\r\nHost: [::ffff:1.2.3.4]\r\n\r\n", "v4-mapped", front.KindAuthority},
	} {
		before := d.counted(tt.kind)
		if status, body := ask(t, d.dial(t), tt.raw); status != 400 || !strings.Contains(body, tt.text) {
			t.Errorf("%q: got %d %s, want 400 and %q", tt.raw, status, body, tt.text)
		}
		if d.counted(tt.kind) != before+1 {
			t.Errorf("%q: not counted as %s", tt.raw, tt.kind)
		}
	}
}

func TestInsideConnect(t *testing.T) {
	d := open(t, func(f *front.Front) { f.Limits.TLSTimeout = v1alpha1.Duration(300 * time.Millisecond) })
	t.Run("plain HTTP", func(t *testing.T) {
		status, got := ask(t, d.tunnel(t, "api.example.com:80"), "GET /x HTTP/1.1\r\nHost: api.example.com\r\n\r\n")
		if status != 200 || !strings.HasPrefix(got, "connect|GET|http://api.example.com/x|api.example.com|/x|http://api.example.com|") {
			t.Errorf("got %d %s", status, got)
		}
	})
	t.Run("plain HTTP/2", func(t *testing.T) {
		h := rawH2(t, d.tunnel(t, "api.example.com:80"))
		_, _ = h.headers(":method", "GET", ":scheme", "http", ":authority", "api.example.com", ":path", "/")
		if got := h.answer(); got != "200" {
			t.Errorf("got %s", got)
		}
	})
	t.Run("sent ahead of the 200", func(t *testing.T) {
		c := d.dial(t)
		_, _ = io.WriteString(c, "CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80\r\n\r\nGET /ahead HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
		b, _ := io.ReadAll(c)
		if !bytes.Contains(b, []byte("|http://a.example/ahead|")) {
			t.Errorf("got %q", b)
		}
	})
	for name, send := range map[string]string{"garbage": "\x00\x01\x02", "silence": "", "SOCKS": "\x05\x01\x00"} {
		t.Run(name, func(t *testing.T) {
			before := d.counted(front.KindProtocol)
			c := d.tunnel(t, "api.example.com:443")
			_, _ = io.WriteString(c, send)
			if b, _ := io.ReadAll(c); len(b) != 0 {
				t.Errorf("got %q, want the connection closed", b)
			}
			eventually(t, "the refusal counted", func() bool { return d.counted(front.KindProtocol) == before+1 })
		})
	}
}

func TestSNI(t *testing.T) {
	d := open(t, nil)
	t.Run("other than CONNECT", func(t *testing.T) {
		c := tls.Client(d.tunnel(t, "api.example.com:443"), &tls.Config{RootCAs: d.roots, ServerName: "other.example.com"})
		if err := c.HandshakeContext(t.Context()); err == nil {
			t.Error("the handshake went through")
		}
		eventually(t, "the refusal counted", func() bool { return d.counted(front.KindSNI) == 1 })
	})
	t.Run("names an address", func(t *testing.T) {
		c := d.tlsTunnel(t, "192.0.2.1:8443", "api.example.com")
		status, got := ask(t, c, "GET / HTTP/1.1\r\nHost: api.example.com:8443\r\n\r\n")
		if status != 200 || !strings.Contains(got, "|https://api.example.com:8443|") {
			t.Errorf("got %d %s", status, got)
		}
		if status, _ := ask(t, c, "GET / HTTP/1.1\r\nHost: 192.0.2.1:8443\r\n\r\n"); status != 421 {
			t.Errorf("the address as Host got %d, want 421", status)
		}
	})
	t.Run("absent for an address", func(t *testing.T) {
		c := tls.Client(d.tunnel(t, "192.0.2.1:443"), &tls.Config{RootCAs: d.roots, ServerName: "192.0.2.1"})
		status, got := ask(t, c, "GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n")
		if status != 200 || !strings.Contains(got, "|https://192.0.2.1|") {
			t.Errorf("got %d %s", status, got)
		}
	})
}

func TestClientThatDoesNotTrustUs(t *testing.T) {
	d := open(t, nil)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		c := tls.Client(d.tunnel(t, "api.example.com:443"), &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "api.example.com", MaxVersion: version})
		if err := c.HandshakeContext(t.Context()); err == nil {
			t.Error("the client trusted an unknown CA")
		}
	}
	eventually(t, "two hints", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return len(d.hints) == 2 && strings.Contains(d.hints[0], "CA") && strings.Contains(d.hints[1], "CA")
	})
}

func TestPassthrough(t *testing.T) {
	var mu sync.Mutex
	var dests []string
	d := open(t, func(f *front.Front) {
		f.Passthrough = func(_ context.Context, c *proxy.Conn) bool { return strings.HasPrefix(c.Dest.Host, "pass.") }
		f.Tunnel = func(_ context.Context, c *proxy.Conn, client net.Conn) error {
			mu.Lock()
			dests = append(dests, c.Dest.String())
			mu.Unlock()
			b := make([]byte, 5)
			_, err := io.ReadFull(client, b)
			if err == nil && b[0] == 0x16 {
				_, err = io.WriteString(client, "raw")
			}
			return err
		}
	})
	for _, tt := range []struct {
		authority, sni string
		raw            bool
	}{{"pass.example:443", "pass.example", true}, {"192.0.2.1:443", "pass.example", true}, {"pass.example:443", "other.example", false}} {
		c := d.tunnel(t, tt.authority)
		go func() {
			_ = tls.Client(c, &tls.Config{ServerName: tt.sni, InsecureSkipVerify: true}).HandshakeContext(t.Context())
		}() //nolint:gosec // only the hello is of interest
		eventually(t, tt.authority+" "+tt.sni, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(dests) > 0 || d.counted(front.KindSNI) > 0
		})
		mu.Lock()
		if tt.raw != (len(dests) == 1 && dests[0] == "https://pass.example") {
			t.Errorf("%s with SNI %s: tunnelled to %v", tt.authority, tt.sni, dests)
		}
		dests = nil
		mu.Unlock()
	}
	if status, got := get(t, d.client(t, false), "https://api.example.com/"); status != 200 || !strings.HasPrefix(got, "connect|") {
		t.Errorf("a host without passthrough got %d %s", status, got)
	}
}

func TestBaseURL(t *testing.T) {
	dest, err := destination.Parse("https", "api.example.com", 0)
	if err != nil {
		t.Fatal(err)
	}
	d := open(t, func(f *front.Front) {
		f.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/links" {
				w.Header().Set("Location", "https://API.example.com:443/next?a=%2f")
				w.Header().Add("Link", `<https://api.example.com/2>; rel="next", <https://other.example/3>; rel="x", </4>`)
				w.Header().Set("Content-Location", "https://api.example.com")
				w.WriteHeader(http.StatusFound)
				return
			}
			if r.URL.Path == "/away" {
				w.Header().Set("Location", "https://api.example.com.evil.example/")
				w.WriteHeader(http.StatusFound)
				return
			}
			show(w, r)
		})
	})
	cfg, err := d.CA.Config("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	for _, useTLS := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls %v", useTLS), func(t *testing.T) {
			ln := listen(t)
			base := front.LocalURL(ln, useTLS)
			var with *tls.Config
			if useTLS {
				with = cfg
			}
			go func() { _ = d.ServeBaseURL(context.Background(), ln, dest, with) }()
			tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: d.roots}, ForceAttemptHTTP2: true}
			defer tr.CloseIdleConnections()
			c := &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
			if status, got := get(t, c, base+"/v1/x?y"); status != 200 || !strings.HasPrefix(got, "base-url|POST|https://api.example.com/v1/x?y|api.example.com|/v1/x?y|https://api.example.com|") {
				t.Errorf("got %d %s", status, got)
			}
			send := func(change func(*http.Request)) *http.Response {
				req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/links", nil)
				change(req)
				res, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				_ = res.Body.Close()
				return res
			}
			res := send(func(*http.Request) {})
			if got, want := res.Header.Get("Location"), base+"/next?a=%2f"; got != want {
				t.Errorf("Location %s, want %s", got, want)
			}
			if got, want := res.Header.Get("Link"), "<"+base+`/2>; rel="next", <https://other.example/3>; rel="x", </4>`; got != want {
				t.Errorf("Link %s, want %s", got, want)
			}
			if got := res.Header.Get("Content-Location"); got != base {
				t.Errorf("Content-Location %s, want %s", got, base)
			}
			if got := send(func(r *http.Request) { r.URL.Path = "/away" }).Header.Get("Location"); got != "https://api.example.com.evil.example/" {
				t.Errorf("a link elsewhere became %s", got)
			}
			_, port, _ := net.SplitHostPort(ln.Addr().String())
			for _, tt := range []struct {
				change func(*http.Request)
				want   int
			}{
				{func(r *http.Request) { r.Host = "localhost:" + port }, 302},
				{func(r *http.Request) { r.Host = "evil.example:" + port }, 421},
				{func(r *http.Request) { r.Host = "api.example.com" }, 421},
				{func(r *http.Request) { r.Host = "127.0.0.1" }, 421},
				{func(r *http.Request) { r.Header.Set("Origin", base) }, 403},
				{func(r *http.Request) { r.Header.Set("Origin", "null") }, 403},
				{func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-origin") }, 403},
			} {
				if res := send(tt.change); res.StatusCode != tt.want {
					t.Errorf("got %d, want %d", res.StatusCode, tt.want)
				}
			}
		})
	}
}

func TestConnectionLimit(t *testing.T) {
	d := open(t, func(f *front.Front) { f.Limits.MaxConnections = 1 })
	first := d.dial(t)
	if status, _ := ask(t, first, "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n"); status != 200 {
		t.Fatalf("got %d", status)
	}
	if status, body := ask(t, d.dial(t), "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n"); status != 503 || !strings.Contains(body, "maxConnections") {
		t.Errorf("got %d %s, want 503", status, body)
	}
	_ = first.Close()
	eventually(t, "room again", func() bool { return d.Active() == 0 })
	if status, _ := ask(t, d.dial(t), "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n"); status != 200 {
		t.Errorf("got %d once there was room", status)
	}
}

func TestShutdownLetsRequestsFinish(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("h2 %v", h2), func(t *testing.T) {
			started, release := make(chan struct{}), make(chan struct{})
			d := open(t, func(f *front.Front) {
				f.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					close(started)
					<-release
					show(w, r)
				})
			})
			answer := make(chan int, 1)
			c := d.client(t, h2)
			go func() { status, _ := get(t, c, "https://api.example.com/"); answer <- status }()
			<-started
			idle := d.dial(t) // says nothing; must not hold the shutdown up
			done := make(chan error, 1)
			go func() { done <- d.Shutdown(t.Context()) }()
			if b, _ := io.ReadAll(idle); len(b) != 0 {
				t.Errorf("idle connection got %q", b)
			}
			close(release)
			if status := <-answer; status != 200 {
				t.Errorf("the request in flight got %d", status)
			}
			if err := <-done; err != nil {
				t.Errorf("shutdown: %v", err)
			}
			if err := d.ServeProxy(t.Context(), listen(t)); !errors.Is(err, front.ErrClosed) {
				t.Errorf("serving after shutdown gave %v", err)
			}
		})
	}
}

func TestShutdownCutsAtTheDeadline(t *testing.T) {
	started := make(chan struct{})
	d := open(t, func(f *front.Front) {
		f.Handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { close(started); <-r.Context().Done() })
	})
	c := d.tlsTunnel(t, "a.example:443", "a.example")
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
	<-started
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := d.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestWebSocketUpgrade(t *testing.T) {
	d := open(t, func(f *front.Front) {
		f.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Upgrade", "websocket")
			w.WriteHeader(http.StatusSwitchingProtocols)
			c, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = c.Close() }()
			b := make([]byte, 4)
			_, _ = io.ReadFull(rw, b)
			_, _ = c.Write(bytes.ToUpper(b))
		})
	})
	c := d.tlsTunnel(t, "a.example:443", "a.example", "http/1.1")
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\npi")
	_, _ = io.WriteString(c, "ng")
	b, _ := io.ReadAll(c)
	if s := string(b); !strings.HasPrefix(s, "HTTP/1.1 101 ") || !strings.HasSuffix(s, "\r\n\r\nPING") || !strings.Contains(s, "Upgrade: websocket\r\n") || !strings.Contains(s, "Connection: Upgrade\r\n") {
		t.Errorf("got %q", s)
	}
}

func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	d := open(t, nil)
	bundle := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(bundle, d.pem, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"--http1.1", "--http2"} {
		cmd := exec.CommandContext(t.Context(), curl, "-sS", version, "--max-time", "5", "--cacert", bundle, "-x", "http://u:p@"+d.addr, "-d", "hi", "https://api.example.com/p?q")
		cmd.Env = []string{}
		out, err := cmd.CombinedOutput()
		if want := `connect|POST|https://api.example.com/p?q|api.example.com|/p?q|https://api.example.com|<nil>|"hi"|[]`; err != nil || string(out) != want {
			t.Errorf("%s: got %s, %v", version, out, err)
		}
	}
}

func TestRequiredFields(t *testing.T) {
	ln := listen(t)
	defer func() { _ = ln.Close() }()
	if err := (&front.Front{}).ServeProxy(t.Context(), ln); err == nil || errors.Is(err, front.ErrClosed) {
		t.Errorf("got %v, want what is missing", err)
	}
}

// The AWS door's port is as closed to web pages as a base URL's, and a caller
// who is not attested comes with its refusal.
func TestAWSDoor(t *testing.T) {
	for _, stranger := range []bool{false, true} {
		d := open(t, func(f *front.Front) {
			if stranger {
				f.Attestor = attestor(func(net.Conn) (identity.Caller, error) { return identity.Caller{}, identity.ErrUnattested })
			}
			f.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				c := proxy.ConnFrom(r.Context())
				_, _ = fmt.Fprintf(w, "%s %s %s %v", c.Door, r.Host, r.URL.Path, c.Refusal != nil)
			})
		})
		ln := listen(t)
		local := ln.Addr().String()
		go func() { _ = d.ServeAWS(context.Background(), ln) }()
		for _, tt := range []struct {
			head string
			want int
		}{
			{"Host: " + local, 200},
			{"Host: evil.example", 421},
			{"Host: 169.254.169.254", 421},
			{"Host: " + local + "\r\nOrigin: null", 403},
			{"Host: " + local + "\r\nSec-Fetch-Site: cross-site", 403},
		} {
			c, err := net.Dial("tcp", local)
			if err != nil {
				t.Fatal(err)
			}
			status, body := ask(t, c, "GET /v1/credentials HTTP/1.1\r\n"+tt.head+"\r\nConnection: close\r\n\r\n")
			if status != tt.want {
				t.Errorf("%q: got %d, want %d", tt.head, status, tt.want)
			}
			if want := fmt.Sprintf("aws %s /v1/credentials %v", local, stranger); status == 200 && body != want {
				t.Errorf("got %q, want %q", body, want)
			}
			_ = c.Close()
		}
	}
}
