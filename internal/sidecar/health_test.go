package sidecar

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// The network reads that the pod waits, and for what; only the pod reads why.
func TestHealthTellsTheNetworkLittle(t *testing.T) {
	h := newHealth()
	ask := func(path, peer string) (int, string) {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.RemoteAddr = peer
		w := httptest.NewRecorder()
		h.handler().ServeHTTP(w, r)
		return w.Code, strings.TrimSpace(w.Body.String())
	}
	const why = "dial tcp 10.9.8.7:443: refused"
	h.begin(stepPolicy)
	h.trouble(errors.New(why))
	for _, path := range []string{"/started", "/ready"} {
		for peer, want := range map[string]string{
			"10.0.0.1:99": "waiting for: first policy", "[2001:db8::1]:99": "waiting for: first policy",
			"127.0.0.1:99": "waiting for: first policy: " + why, "[::1]:99": "waiting for: first policy: " + why,
		} {
			if code, body := ask(path, peer); code != http.StatusServiceUnavailable || body != want {
				t.Errorf("%s for %s: %d %q, want %q", path, peer, code, body, want)
			}
		}
	}
	h.begin("")
	h.serving(func() error { return errors.New(why) }, prometheus.NewRegistry())
	if code, body := ask("/ready", "10.0.0.1:99"); code != http.StatusServiceUnavailable || strings.Contains(body, "10.9.8.7") {
		t.Errorf("not ready: %d %q", code, body)
	}
	if code, body := ask("/ready", "127.0.0.1:99"); code != http.StatusServiceUnavailable || !strings.Contains(body, why) {
		t.Errorf("not ready, asked within the pod: %d %q", code, body)
	}
	if code, body := ask("/started", "10.0.0.1:99"); code != http.StatusOK || body != "ok" {
		t.Errorf("started: %d %q", code, body)
	}
}
