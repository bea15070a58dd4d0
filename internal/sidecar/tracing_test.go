package sidecar

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

// What is traced reaches the collector before the sidecar ends.
func TestTraces(t *testing.T) {
	var got atomic.Int64
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/v1/traces" {
			got.Add(1)
		}
	}))
	defer collector.Close()
	r := start(t, nil)
	close(r.attested)
	if err := r.give("apiVersion: attache.dev/v1alpha1\nkind: AttacheConfig\nmetadata: {name: default}\nspec: {tracing: {otlpEndpoint: '" + collector.URL + "/v1/traces', sampleRatio: 1}}\n"); err != nil {
		t.Fatal(err)
	}
	res, err := r.client(<-r.addrs).Get("https://api.example.com/")
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	r.stop()
	if err := <-r.done; err != nil {
		t.Error(err)
	}
	r.done <- nil
	if got.Load() == 0 {
		t.Error("the collector got no spans")
	}
}
