package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestEndedWell(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		text string
		want bool
	}{
		"broken off": {"", false}, "lately": {"2026-03-01T11:30:00Z\n", true}, "long ago": {"2026-03-01T10:59:00Z\n", false},
		"to come": {"2026-03-01T12:30:00Z\n", false}, "no time": {"yes", false},
	} {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "state"), 0o700); err != nil {
			t.Fatal(err)
		}
		if c.text != "" {
			if err := os.WriteFile(filepath.Join(dir, "ended"), []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := endedWell(dir, now); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
