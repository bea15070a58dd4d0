package intercept_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/proxy/intercept"
)

func rootOf(dir string) string { return filepath.Join(dir, "interception-root.pem") }

// TestRootIsKept: who starts again in the same folder is trusted by those who
// trusted the one before, and the key is nobody else's to read.
func TestRootIsKept(t *testing.T) {
	dir := t.TempDir()
	first, err := intercept.Open(dir, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	again, err := intercept.Open(dir, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.PEM(), again.PEM()) {
		t.Error("the root has changed")
	}
	if st, err := os.Stat(rootOf(dir)); err != nil || st.Mode() != 0o600 {
		t.Errorf("the root's file: %v, %v", st.Mode(), err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(first.PEM())
	cfg, err := again.Config("api.example.com")
	if err != nil {
		t.Fatal(err)
	}
	if _, cerr, serr := handshake(t, cfg, &tls.Config{RootCAs: roots, ServerName: "api.example.com"}); cerr != nil || serr != nil {
		t.Errorf("a leaf of the second is not trusted: %v, %v", cerr, serr)
	}
	other, err := intercept.Open(t.TempDir(), nil, 0)
	if err != nil || bytes.Equal(first.PEM(), other.PEM()) {
		t.Errorf("two pods share a root: %v", err)
	}
}

// TestRootIsRefused: a root that others could have read or written is not
// used, and not replaced without a word either.
func TestRootIsRefused(t *testing.T) {
	text := func(t *testing.T, dir string) []byte {
		b, err := os.ReadFile(rootOf(dir))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	write := func(t *testing.T, dir string, b []byte) {
		if err := os.WriteFile(rootOf(dir), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name, want string
		spoil      func(t *testing.T, dir string)
	}{
		{"readable by others", "has mode 0644", func(t *testing.T, dir string) { must(t, os.Chmod(rootOf(dir), 0o644)) }},
		{"readable by the group", "has mode 0640", func(t *testing.T, dir string) { must(t, os.Chmod(rootOf(dir), 0o640)) }},
		{"of another user", "belongs to user 12345", func(t *testing.T, dir string) {
			if os.Geteuid() != 0 {
				t.Skip("only root gives files away")
			}
			must(t, os.Chown(rootOf(dir), 12345, -1))
		}},
		{"a link", "too many levels", func(t *testing.T, dir string) {
			must(t, os.Rename(rootOf(dir), filepath.Join(dir, "elsewhere")))
			must(t, os.Symlink("elsewhere", rootOf(dir)))
		}},
		{"a second name", "has other names", func(t *testing.T, dir string) {
			must(t, os.Link(rootOf(dir), filepath.Join(dir, "elsewhere")))
		}},
		{"a folder", "is no regular file", func(t *testing.T, dir string) {
			must(t, os.Remove(rootOf(dir)))
			must(t, os.Mkdir(rootOf(dir), 0o600))
		}},
		{"empty", "is not a certificate and its key", func(t *testing.T, dir string) { write(t, dir, nil) }},
		{"cut", "is not a certificate and its key", func(t *testing.T, dir string) { write(t, dir, text(t, dir)[:400]) }},
		{"without its key", "is not a certificate and its key", func(t *testing.T, dir string) {
			b, _, _ := strings.Cut(string(text(t, dir)), "-----BEGIN PRIVATE")
			write(t, dir, []byte(b))
		}},
		{"with another's key", "do not belong together", func(t *testing.T, dir string) {
			other := t.TempDir()
			if _, err := intercept.Open(other, nil, 0); err != nil {
				t.Fatal(err)
			}
			cert, _, _ := strings.Cut(string(text(t, dir)), "-----BEGIN PRIVATE")
			_, key, _ := strings.Cut(string(text(t, other)), "-----BEGIN PRIVATE")
			write(t, dir, []byte(cert+"-----BEGIN PRIVATE"+key))
		}},
		{"too large", "is larger than", func(t *testing.T, dir string) { write(t, dir, append(text(t, dir), make([]byte, 64<<10)...)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := intercept.Open(dir, nil, 0); err != nil {
				t.Fatal(err)
			}
			key := text(t, dir)
			tt.spoil(t, dir)
			_, err := intercept.Open(dir, nil, 0)
			if !errors.Is(err, intercept.ErrState) || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			for line := range strings.Lines(string(key)) {
				if len(line) > 40 && strings.Contains(err.Error(), line[:20]) {
					t.Errorf("the error shows the file: %v", err)
				}
			}
			if _, err := intercept.Open(dir, nil, 0); !errors.Is(err, intercept.ErrState) {
				t.Errorf("the second start went on: %v", err)
			}
		})
	}
}

func TestRootThatEnded(t *testing.T) {
	dir := t.TempDir()
	then := time.Now().Add(-3 * 365 * 24 * time.Hour)
	if _, err := intercept.Open(dir, func() time.Time { return then }, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := intercept.Open(dir, nil, 0); !errors.Is(err, intercept.ErrState) || !strings.Contains(err.Error(), "it ends at") {
		t.Errorf("got %v", err)
	}
}

// A start that was killed while it wrote has left no root.
func TestHalfWrittenRoot(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(rootOf(dir)+".new", []byte("half"), 0o644))
	if _, err := intercept.Open(dir, nil, 0); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(rootOf(dir)); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
