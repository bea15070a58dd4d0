package sniff_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/proxy/sniff"
)

func TestRecognise(t *testing.T) {
	for _, tt := range []struct {
		name, bytes string
		want        sniff.Protocol
		more        bool
	}{
		{"nothing", "", sniff.Unknown, true},
		{"a record's first byte", "\x16", sniff.Unknown, true},
		{"TLS", "\x16\x03", sniff.TLS, false},
		{"SSL 2 hello", "\x80\x2e\x01\x03\x01", sniff.Unknown, false},
		{"TLS record of another version", "\x16\x02", sniff.Unknown, false},
		{"part of a method", "GE", sniff.Unknown, true},
		{"HTTP/1.1", "GET /", sniff.HTTP1, false},
		{"method with a hyphen", "M-SEARCH * HTTP/1.1", sniff.HTTP1, false},
		{"lower case", "get / HTTP/1.1", sniff.HTTP1, false},
		{"part of the preface", "PRI * HTTP/2", sniff.Unknown, true},
		{"h2c", "PRI * HTTP/2.0\r\n", sniff.HTTP2, false},
		{"a method that begins like the preface", "PRINT /", sniff.HTTP1, false},
		{"SSH", "SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", sniff.Unknown, false},
		{"a space first", " GET /", sniff.Unknown, false},
		{"a word without end", strings.Repeat("A", 33), sniff.Unknown, false},
		{"PostgreSQL's SSLRequest", "\x00\x00\x00\x08\x04\xd2\x16\x2f", sniff.Unknown, false},
		{"Redis", "*1\r\n$4\r\nPING\r\n", sniff.Unknown, false},
		{"Redis inline", "PING\r\n", sniff.Unknown, false},
		{"MongoDB", "\x3f\x00\x00\x00", sniff.Unknown, false},
		{"AMQP", "AMQP\x00\x00\x09\x01", sniff.Unknown, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, more := sniff.Recognise([]byte(tt.bytes)); got != tt.want || more != tt.more {
				t.Errorf("got %v, more %v; want %v, %v", got, more, tt.want, tt.more)
			}
		})
	}
}

// However the bytes come, the answer is the same, and none is given early that
// more bytes would change.
func TestRecogniseByteByByte(t *testing.T) {
	for _, s := range []string{"GET / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x16\x03\x01\x00\xa5\x01", "SSH-2.0-x y\r\n", "PRIX /", "OPTIONS * HTTP/1.1"} {
		want, _ := sniff.Recognise([]byte(s))
		for i := range len(s) {
			if got, more := sniff.Recognise([]byte(s[:i])); !more && got != want {
				t.Errorf("%q: got %v, later %v", s[:i], got, want)
			}
		}
	}
}

// captured is what a client sends first.
func captured(t *testing.T, client func(addr string)) []byte {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	go client(ln.Addr().String())
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	var b []byte
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		b = append(b, buf[:n]...)
		if _, more, herr := sniff.ReadHello(b); !more || herr != nil || err != nil {
			return b
		}
	}
}

func goHello(cfg *tls.Config) func(string) {
	return func(addr string) {
		if c, err := net.DialTimeout("tcp", addr, 10*time.Second); err == nil {
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			_ = tls.Client(c, cfg).Handshake()
			_ = c.Close()
		}
	}
}

func program(ctx context.Context, name string, args ...string) func(string) {
	return func(addr string) {
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "ADDR", addr)
		}
		c := exec.CommandContext(ctx, name, args...)
		c.Stdin = strings.NewReader("")
		_ = c.Run() // the server hangs up on it
	}
}

// echConfig is a valid ECHConfigList (one config, X25519), made for this test;
// its key is thrown away, since nobody opens what is sealed with it.
func echConfig(t *testing.T) []byte {
	t.Helper()
	key := bytes.Repeat([]byte{9}, 32)
	name := "public.example"
	c := []byte{7, 0, 0x20, 0, 32}       // config id, DHKEM(X25519, HKDF-SHA256), public key
	c = append(c, key...)                //
	c = append(c, 0, 4, 0, 1, 0, 1)      // HKDF-SHA256, AES-128-GCM
	c = append(c, 32, byte(len(name)))   // maximum name length
	c = append(append(c, name...), 0, 0) // no extensions
	c = append([]byte{0xfe, 0x0d, 0, byte(len(c))}, c...)
	return append([]byte{0, byte(len(c))}, c...)
}

// Hellos of real clients are read whole, and not before, wherever they are cut.
func TestHellosOfRealClients(t *testing.T) {
	for _, tt := range []struct {
		name   string
		client func(string)
		need   string
		want   sniff.Hello
	}{
		{"crypto/tls", goHello(&tls.Config{ServerName: "api.example.com", NextProtos: []string{"h2", "http/1.1"}}), "", sniff.Hello{SNI: "api.example.com", ALPN: []string{"h2", "http/1.1"}}},
		{"crypto/tls 1.2", goHello(&tls.Config{ServerName: "api.example.com", MaxVersion: tls.VersionTLS12}), "", sniff.Hello{SNI: "api.example.com"}}, //nolint:gosec // what old clients send
		{"crypto/tls without a name", goHello(&tls.Config{InsecureSkipVerify: true}), "", sniff.Hello{}},                                               //nolint:gosec // as above
		{"crypto/tls with ECH", goHello(&tls.Config{ServerName: "secret.example", EncryptedClientHelloConfigList: echConfig(t)}), "", sniff.Hello{SNI: "public.example", ECH: true}},
		{"OpenSSL", program(t.Context(), "openssl", "s_client", "-connect", "ADDR", "-servername", "api.example.com", "-alpn", "h2,http/1.1"), "openssl", sniff.Hello{SNI: "api.example.com", ALPN: []string{"h2", "http/1.1"}}},
		{"OpenSSL without a name", program(t.Context(), "openssl", "s_client", "-connect", "ADDR", "-noservername"), "openssl", sniff.Hello{}},
		{"curl", program(t.Context(), "curl", "-s", "--http1.1", "-m", "10", "--connect-to", "api.example.com:443:ADDR", "https://api.example.com/"), "curl", sniff.Hello{SNI: "api.example.com", ALPN: []string{"http/1.1"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.need != "" {
				if _, err := exec.LookPath(tt.need); err != nil {
					t.Skipf("%s is not installed", tt.need)
				}
			}
			b := captured(t, tt.client)
			h, more, err := sniff.ReadHello(b)
			if err != nil || more || h.SNI != tt.want.SNI || h.ECH != tt.want.ECH || !slices.Equal(h.ALPN, tt.want.ALPN) {
				t.Fatalf("got %+v, more %v, %v; want %+v of %d bytes", h, more, err, tt.want, len(b))
			}
			for i := range len(b) {
				if h, more, err := sniff.ReadHello(b[:i]); !more || err != nil || h.SNI != "" {
					t.Fatalf("cut at %d of %d: got %+v, more %v, %v", i, len(b), h, more, err)
				}
			}
			if got, more := sniff.Recognise(b); got != sniff.TLS || more {
				t.Errorf("recognised as %v", got)
			}
			// In records of one byte each, as no client sends it and any may.
			if got, more, err := sniff.ReadHello(shattered(b)); err != nil || more || got.SNI != tt.want.SNI {
				t.Errorf("in small records: %+v, more %v, %v", got, more, err)
			}
		})
	}
}

// shattered puts each byte of the first record into one of its own.
func shattered(b []byte) []byte {
	var out []byte
	for _, c := range b[5:] {
		out = append(out, 22, 3, 1, 0, 1, c)
	}
	return out
}

func TestNoHello(t *testing.T) {
	for name, b := range map[string][]byte{
		"another message":  {22, 3, 1, 0, 4, 2, 0, 0, 0},
		"an empty record":  {22, 3, 1, 0, 0},
		"an alert":         {21, 3, 1, 0, 2, 1, 0},
		"a huge record":    {22, 3, 1, 0xff, 0xff},
		"a huge message":   {22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff},
		"an empty message": {22, 3, 1, 0, 4, 1, 0, 0, 0},
		"nonsense inside":  {22, 3, 1, 0, 6, 1, 0, 0, 2, 9, 9},
	} {
		if h, more, err := sniff.ReadHello(b); !errors.Is(err, sniff.ErrHello) || more {
			t.Errorf("%s: got %+v, more %v, %v", name, h, more, err)
		}
	}
}

func TestServerFirst(t *testing.T) {
	for port, want := range map[uint16]string{22: "ssh", 25: "smtp", 587: "smtp", 3306: "mysql", 443: "", 5432: "", 80: "", 6379: ""} {
		if got := sniff.ServerFirst(port); got != want {
			t.Errorf("%d: got %q, want %q", port, got, want)
		}
	}
}

// FuzzHello: whatever comes, what is read is what crypto/tls reads in a
// handshake, and a prefix never says more than the whole.
func FuzzHello(f *testing.F) {
	f.Add([]byte{22, 3, 1, 0, 4, 1, 0, 0, 0})
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add(hello(f, "api.example.com"))
	f.Add(shattered(hello(f, "api.example.com")))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, more, err := sniff.ReadHello(b)
		if more && (err != nil || h.SNI != "") {
			t.Errorf("more is needed, and yet %+v, %v", h, err)
		}
		if !more && err == nil {
			var sni string
			_ = tls.Server(&once{r: bytes.NewReader(b)}, &tls.Config{GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) { //nolint:gosec // nothing is negotiated
				sni = i.ServerName
				return nil, io.EOF
			}}).Handshake()
			if sni != h.SNI {
				t.Errorf("SNI %q, a handshake reads %q", h.SNI, sni)
			}
			if _, more, err := sniff.ReadHello(append(slices.Clone(b), 'x')); more || err != nil {
				t.Errorf("what follows the hello changes it: more %v, %v", more, err)
			}
		}
		p, more := sniff.Recognise(b)
		if more && (p != sniff.Unknown || len(b) >= 64) {
			t.Errorf("%d bytes are not enough to tell", len(b))
		}
		if !more {
			if q, again := sniff.Recognise(append(slices.Clone(b), 'x')); q != p || again {
				t.Errorf("%v becomes %v", p, q)
			}
		}
	})
}

func hello(tb testing.TB, name string) []byte {
	tb.Helper()
	a, b := net.Pipe()
	go func() { _ = tls.Client(a, &tls.Config{ServerName: name}).Handshake() }() //nolint:gosec // only its first message
	buf := make([]byte, 8192)
	n, err := b.Read(buf)
	if err != nil {
		tb.Fatal(err)
	}
	_, _ = a.Close(), b.Close()
	return buf[:n]
}

type once struct {
	net.Conn
	r *bytes.Reader
}

func (o *once) Read(p []byte) (int, error)       { return o.r.Read(p) }
func (o *once) Write(p []byte) (int, error)      { return len(p), nil }
func (o *once) Close() error                     { return nil }
func (o *once) SetDeadline(time.Time) error      { return nil }
func (o *once) SetWriteDeadline(time.Time) error { return nil }
func (o *once) SetReadDeadline(time.Time) error  { return nil }
