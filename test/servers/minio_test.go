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
	// The server reports what comes once its audit log is open, which may be a
	// while after it serves.
	for end := time.Now().Add(time.Minute); len(lines) == 0; time.Sleep(100 * time.Millisecond) {
		if err := s.MakeBucket(t.Context(), "alpha"); err == nil {
			t.Error("the bucket was made twice")
		}
		if time.Now().After(end) {
			t.Fatal("nothing in the audit log")
		}
	}
	cancel()
	s.Close()
	if c, err := net.DialTimeout("tcp", s.Addr, time.Second); err == nil {
		c.Close()
		t.Error("the server serves after Close")
	}
}
