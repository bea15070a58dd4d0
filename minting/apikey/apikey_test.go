package apikey_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/apikey"
)

const key = "sk-live-0123456789abcdef"

func put(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestFile(t *testing.T) {
	p := put(t, " "+key+"\r\n")
	var log bytes.Buffer
	m, err := apikey.New("p", v1alpha1.APIKey{File: p}, minting.Deps{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	read := func() string {
		t.Helper()
		c, err := m.Mint(t.Context(), minting.Request{}, minting.Evidence{})
		if err != nil {
			t.Fatal(err)
		}
		if c.Kind != minting.KindAPIKey || c.Derived || !c.Expires.IsZero() || c.Provider != "p" {
			t.Errorf("credential %+v", c)
		}
		return c.Secret.Reveal()
	}
	if got := read(); got != key {
		t.Errorf("key of %d bytes, want it trimmed", len(got))
	}
	if log.Len() != 0 {
		t.Errorf("a private file was warned of: %s", &log)
	}
	if err := os.WriteFile(p, []byte("rotated"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := read(); got != "rotated" {
		t.Errorf("after rotation %q", got)
	}
	if err := os.Chmod(p, 0o644); err != nil {
		t.Fatal(err)
	}
	read()
	read()
	if n := strings.Count(log.String(), "chmod 600"); n != 1 || strings.Contains(log.String(), "rotated") {
		t.Errorf("warned %d times, want once: %s", n, &log)
	}
}

func TestBadFiles(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"missing":       filepath.Join(t.TempDir(), "none"),
		"directory":     t.TempDir(),
		"pipe":          pipe,
		"empty":         put(t, " \n"),
		"two lines":     put(t, key+"\r\nX-Admin: yes"),
		"inner space":   put(t, "sk live"),
		"control":       put(t, "sk\x00live"),
		"non-ASCII":     put(t, "schlüssel-geheim"),
		"beyond header": put(t, strings.Repeat("k", 40<<10)),
		"huge":          put(t, strings.Repeat("k", 70<<10)),
	} {
		t.Run(name, func(t *testing.T) {
			m, err := apikey.New("p", v1alpha1.APIKey{File: path}, minting.Deps{})
			if err != nil {
				t.Fatal(err)
			}
			c, err := m.Mint(t.Context(), minting.Request{}, minting.Evidence{})
			if !errors.Is(err, minting.ErrUnavailable) || !c.Secret.IsZero() {
				t.Fatalf("error %v", err)
			}
			for _, s := range []string{"sk-live", "X-Admin", "schl", "kkkk"} {
				if strings.Contains(err.Error(), s) {
					t.Errorf("the error holds the key: %v", err)
				}
			}
		})
	}
}

func TestEnvironmentIsWiped(t *testing.T) {
	t.Setenv("ATTACHE_TEST_KEY", key)
	env := apikey.TakeEnv("ATTACHE_TEST_KEY", "ATTACHE_TEST_NONE")
	if v, ok := os.LookupEnv("ATTACHE_TEST_KEY"); ok {
		t.Errorf("the variable is still set (%d bytes)", len(v))
	}
	for range 2 { // a reload makes the provider anew
		m, err := apikey.New("p", v1alpha1.APIKey{Env: "ATTACHE_TEST_KEY"}, minting.Deps{Env: env.Take})
		if err != nil {
			t.Fatal(err)
		}
		c, err := m.Mint(t.Context(), minting.Request{}, minting.Evidence{})
		if err != nil || c.Secret.Reveal() != key {
			t.Fatal(err)
		}
	}
	if _, err := apikey.New("p", v1alpha1.APIKey{Env: "ATTACHE_TEST_NONE"}, minting.Deps{Env: env.Take}); err == nil {
		t.Error("an unset variable was accepted")
	}
	t.Setenv("ATTACHE_TEST_KEY2", key)
	if _, err := apikey.New("p", v1alpha1.APIKey{Env: "ATTACHE_TEST_KEY2"}, minting.Deps{}); err != nil {
		t.Fatal(err)
	}
	if _, ok := os.LookupEnv("ATTACHE_TEST_KEY2"); ok {
		t.Error("New without Deps.Env left the variable set")
	}
}

func TestExactlyOnePlace(t *testing.T) {
	for _, s := range []v1alpha1.APIKey{{}, {File: "f", Vault: &v1alpha1.VaultKV{Address: "https://v", Role: "r", Path: "p"}}} {
		if _, err := apikey.New("p", s, minting.Deps{}); err == nil {
			t.Errorf("%+v was accepted", s)
		}
	}
}
