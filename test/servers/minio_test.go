package servers_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/attache-dev/attache/test/servers"
)

// TestMinIO: the server serves, reports to the audit log, and ends when told
// to, by Close or by its context.
func TestMinIO(t *testing.T) {
	lines := make(chan struct{}, 64)
	audit := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			select {
			case lines <- struct{}{}:
			default:
			}
		}
	}))
	defer audit.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err := servers.StartMinIO(ctx, servers.MinIOOptions{Audit: audit.URL, Buckets: []string{"alpha"}})
	if errors.Is(err, servers.ErrMissing) && os.Getenv("ATTACHE_REQUIRE_SERVERS") != "1" {
		t.Skipf("needs MinIO: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := s.MakeBucket(t.Context(), "alpha"); err == nil {
		t.Error("the bucket was made twice")
	}
	select {
	case <-lines:
	case <-time.After(20 * time.Second):
		t.Error("nothing in the audit log")
	}
	cancel()
	s.Close()
	if c, err := net.DialTimeout("tcp", s.Addr, time.Second); err == nil {
		c.Close()
		t.Error("the server serves after Close")
	}
}
