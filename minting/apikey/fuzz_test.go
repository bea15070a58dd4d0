package apikey

import (
	"errors"
	"testing"
	"time"

	"github.com/attache-dev/attache/minting"
)

func FuzzKV(f *testing.F) {
	f.Add([]byte(`{"data":{"data":{"value":"k"},"metadata":{"deletion_time":"2026-01-01T00:00:00Z"}}}`))
	f.Add([]byte(`{"lease_duration":-1,"data":{"value":"k"}}`))
	f.Add([]byte(`{"data":null}`))
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, body []byte) {
		_, end, err := parseKV(body, "value", now)
		if err != nil && !errors.Is(err, minting.ErrUnavailable) {
			t.Fatalf("error of no kind: %v", err)
		}
		if err == nil && !end.IsZero() && !end.After(now) {
			t.Fatalf("a key that ended %v is handed out", end)
		}
	})
}
