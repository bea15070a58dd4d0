package front_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/process"
	"github.com/attache-dev/attache/proxy/front"
)

// holder attests everybody and knows from the kernel who holds a socket.
type holder struct {
	attestor
	kernel *process.Attestor
}

func (h holder) Held(c net.Conn) bool { return h.kernel.Held(c) }

// TestHalfClosedClients: over plain TCP a client that half-closes gets its
// answer, also when it spoke ahead of a CONNECT's answer, and one that leaves
// is noticed.
func TestHalfClosedClients(t *testing.T) {
	kernel, err := process.New(process.Options{Workload: &identity.Workload{}})
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	ended := make(chan error, 1)
	d := open(t, func(f *front.Front) {
		f.Attestor = holder{attestor(func(net.Conn) (identity.Caller, error) { return identity.Caller{}, nil }), kernel}
		f.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			wait := 60 * time.Millisecond
			if r.URL.Path == "/long" {
				wait = 5 * time.Second
			}
			select {
			case <-r.Context().Done():
			case <-time.After(wait):
			}
			ended <- r.Context().Err()
			_, _ = fmt.Fprint(w, "late")
		})
	})
	request := func(t *testing.T, raw string) *net.TCPConn {
		t.Helper()
		c, err := net.Dial("tcp", d.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(c, raw)
		return c.(*net.TCPConn)
	}
	const inside = "GET /short HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"
	for name, raw := range map[string]string{
		"absolute-form":  "GET http://a.test/short HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n",
		"inside CONNECT": "CONNECT a.test:80 HTTP/1.1\r\nHost: a.test:80\r\n\r\n" + inside,
	} {
		t.Run(name, func(t *testing.T) {
			c := request(t, raw)
			_ = c.CloseWrite()
			if b, err := io.ReadAll(c); err != nil || !strings.HasSuffix(string(b), "\r\n\r\nlate") {
				t.Errorf("got %q, %v", b, err)
			}
			if err := <-ended; err != nil {
				t.Errorf("a half-close ended the request: %v", err)
			}
		})
	}
	t.Run("leaves", func(t *testing.T) {
		c := request(t, "GET http://a.test/long HTTP/1.1\r\nHost: a.test\r\n\r\n")
		_ = c.CloseWrite()
		time.AfterFunc(50*time.Millisecond, func() { _ = c.Close() })
		if err := <-ended; err != context.Canceled { //nolint:errorlint // ours
			t.Errorf("got %v, want the request to be cancelled", err)
		}
	})
}
