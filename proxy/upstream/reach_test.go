package upstream_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/proxy/upstream"
)

// TestProtocolIsFoundOnce: the first connection finds out what the origin
// speaks and is used; requests that come meanwhile wait for it.
func TestProtocolIsFoundOnce(t *testing.T) {
	for name, h2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2.0": true} {
		t.Run(name, func(t *testing.T) {
			s := tlsServer(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "x") }, h2)
			r := newRig(t, upstream.Config{}, v1alpha1.Destination{Host: "example.com", Addresses: []string{s.Listener.Addr().String()}, CABundle: caPEM(s)})
			got, err := r.get(t, dest("example.com"), upstream.Who{})
			if err != nil || got != name+" x" || r.dials.Load() != 1 {
				t.Fatalf("got %q, %v, with %d dials", got, err, r.dials.Load())
			}
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					if got, err := r.get(t, dest("example.com"), upstream.Who{}); err != nil || got != name+" x" {
						t.Errorf("got %q, %v", got, err)
					}
				})
			}
			wg.Wait()
			if n := r.dials.Load(); h2 && n != 1 {
				t.Errorf("%d connections to an HTTP/2 origin, want 1", n)
			}
		})
	}
}

// TestOriginChangesItsMind: an origin that spoke HTTP/1.1 and now chooses
// HTTP/2, or the reverse, is reached all the same, body and all.
func TestOriginChangesItsMind(t *testing.T) {
	var h1 atomic.Bool
	h1.Store(true)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close") // so that each request dials
		_, _ = io.Copy(w, r.Body)
	}))
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	s.StartTLS()
	t.Cleanup(s.Close)
	base := s.TLS.Clone()
	s.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := base.Clone()
		c.NextProtos = []string{"h2", "http/1.1"}
		if h1.Load() {
			c.NextProtos = []string{"http/1.1"}
		}
		return c, nil
	}
	r := newRig(t, upstream.Config{}, v1alpha1.Destination{Host: "example.com", Addresses: []string{s.Listener.Addr().String()}, CABundle: caPEM(s)})
	for _, want := range []bool{true, false, true, true, false} {
		h1.Store(want)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://example.com/", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := r.pool.Send(req, dest("example.com"), upstream.Who{})
		if err != nil {
			t.Fatalf("HTTP/1.1 %t: %v", want, err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || string(b) != "body" || (resp.ProtoMajor == 1) != want {
			t.Errorf("HTTP/1.1 %t: got %s %q, %v", want, resp.Proto, b, err)
		}
	}
}

// TestUpgradeToOriginWithHTTP2: a WebSocket needs HTTP/1.1, whatever the
// origin prefers.
func TestUpgradeToOriginWithHTTP2(t *testing.T) {
	s := tlsServer(t, func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_, _ = io.WriteString(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nahead ")
		_ = rw.Flush()
		line, _ := rw.ReadString('\n')
		_, _ = io.WriteString(c, line)
	}, true)
	r := newRig(t, upstream.Config{}, v1alpha1.Destination{Host: "example.com", Addresses: []string{s.Listener.Addr().String()}, CABundle: caPEM(s)})
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://example.com/", nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	resp, err := r.pool.Send(req, dest("example.com"), upstream.Who{})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	rw, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
		t.Fatalf("got %s, body %T", resp.Status, resp.Body)
	}
	_, _ = io.WriteString(rw, "ping\n")
	b, _ := io.ReadAll(rw)
	if string(b) != "ahead ping\n" {
		t.Errorf("got %q", b)
	}
}

// TestDeadOriginDoesNotQueue: where the first connection fails, those that
// waited for it fail together, not one handshake timeout after the other.
func TestDeadOriginDoesNotQueue(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() }) // never accepts: the kernel does, and nobody shakes hands
	const handshake = time.Second
	l := limits()
	l.TLSTimeout = v1alpha1.Duration(handshake)
	r := newRig(t, upstream.Config{Limits: l}, v1alpha1.Destination{Host: "example.com", Addresses: []string{ln.Addr().String()}})
	start := time.Now()
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			if got, err := r.get(t, dest("example.com"), upstream.Who{}); err == nil {
				t.Errorf("got %q from an origin that says nothing", got)
			}
		})
	}
	wg.Wait()
	if took := time.Since(start); took > 3*handshake {
		t.Errorf("six requests took %v to fail; one handshake is given up after %v", took, handshake)
	}
}
