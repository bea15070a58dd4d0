package run

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/attache-dev/attache/internal/dataplane"
)

// TestProfilesAreLocal: profiles name what runs and must not be served where
// the peer is not known to be the operator, such as on admin.listen's TCP port.
func TestProfilesAreLocal(t *testing.T) {
	s := httptest.NewServer((&plane{Plane: &dataplane.Plane{}}).adminHandler())
	defer s.Close()
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/profile?seconds=1", "/debug/pprof/heap", "/debug/pprof/trace"} {
		resp, err := http.Get(s.URL + path) //nolint:noctx // a test's own server
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s over TCP: got %d, want 403", path, resp.StatusCode)
		}
	}
}
