package task_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity/identitytest"
	"github.com/attache-dev/attache/identity/task"
	"github.com/attache-dev/attache/internal/secret"
)

// A token that opened a task in one run opens none in another.
func TestTokenWorksInOneProcess(t *testing.T) {
	p := identitytest.NewProvider(t)
	file := filepath.Join(t.TempDir(), "used")
	another := func() *task.Verifier {
		return verifier(t, task.VerifierConfig{Issuers: []v1alpha1.HumanIssuer{humans(p)}, Replays: task.NewFileReplays(file, 0)})
	}
	claims := grant(p, map[string]any{"jti": "one-time-id"})
	tok := secret.New(p.Sign(t, "", claims))
	if _, err := another().Verify(t.Context(), tok, agent()); err != nil {
		t.Fatal(err)
	}
	if _, err := another().Verify(t.Context(), tok, agent()); task.CodeOf(err) != task.CodeReplayed {
		t.Errorf("in another process: got %v, want %s", err, task.CodeReplayed)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "one-time-id") || strings.Contains(string(b), p.URL) {
		t.Error("the file holds more than hashes")
	}
	for _, name := range []string{file, file + ".lock"} {
		if fi, err := os.Stat(name); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want 0600", name, fi.Mode(), err)
		}
	}
}

func key(n int) task.TokenKey { return sha256.Sum256(fmt.Append(nil, n)) }

// Of many that use one token at once exactly one gets it, and nothing is lost
// of what the others write.
func TestFileReplaysConcurrent(t *testing.T) {
	file := filepath.Join(t.TempDir(), "used")
	now := time.Now()
	var won, failed atomic.Int32
	var wg sync.WaitGroup
	for n := range 16 {
		wg.Go(func() {
			f := task.NewFileReplays(file, 0) // as in a process of its own
			switch err := f.Use(t.Context(), key(0), now, now.Add(time.Minute)); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, task.ErrReplayed):
				failed.Add(1)
			}
			if f.Use(t.Context(), key(n+1), now, now.Add(time.Minute)) != nil {
				failed.Add(1)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 || failed.Load() != 0 {
		t.Errorf("%d got the token, %d failed", won.Load(), failed.Load())
	}
	for n := range 17 {
		if err := task.NewFileReplays(file, 0).Use(t.Context(), key(n), now, now.Add(time.Minute)); !errors.Is(err, task.ErrReplayed) {
			t.Errorf("token %d: got %v", n, err)
		}
	}
}

func TestFileReplaysBound(t *testing.T) {
	file := filepath.Join(t.TempDir(), "used")
	f, now := task.NewFileReplays(file, 2), time.Now()
	for n, want := range []error{nil, nil, task.ErrReplaysFull} {
		if err := f.Use(t.Context(), key(n), now, now.Add(time.Minute)); !errors.Is(err, want) {
			t.Errorf("token %d: got %v, want %v", n, err, want)
		}
	}
	if err := f.Use(t.Context(), key(2), now.Add(2*time.Minute), now.Add(3*time.Minute)); err != nil {
		t.Errorf("room was not made: %v", err)
	}
	if fi, err := os.Stat(file); err != nil || fi.Size() != 40 {
		t.Errorf("what expired is still in the file: %v, %v", fi, err)
	}
}

// What cannot be remembered is not used.
func TestFileReplaysFailClosed(t *testing.T) {
	p := identitytest.NewProvider(t)
	dir := t.TempDir()
	damaged, folder := filepath.Join(dir, "damaged"), filepath.Join(dir, "folder")
	if err := errors.Join(os.WriteFile(damaged, make([]byte, 41), 0o600), os.Mkdir(folder, 0o700)); err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string]string{
		"no folder": filepath.Join(dir, "missing", "used"), "damaged": damaged, "no file": folder,
	} {
		v := verifier(t, task.VerifierConfig{Issuers: []v1alpha1.HumanIssuer{humans(p)}, Replays: task.NewFileReplays(file, 0)})
		_, err := v.Verify(t.Context(), secret.New(p.Sign(t, "", grant(p, nil))), agent())
		if task.CodeOf(err) != task.CodeState || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: got %v, want %s and the file's name", name, err, task.CodeState)
		}
	}
}

// A lock that nobody gives back ends with the caller's patience.
func TestFileReplaysLocked(t *testing.T) {
	f, now := task.NewFileReplays(filepath.Join(t.TempDir(), "used"), 0), time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f.Hold(t, func() {
		if err := f.Use(ctx, key(1), now, now.Add(time.Minute)); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	if err := f.Use(t.Context(), key(1), now, now.Add(time.Minute)); err != nil {
		t.Error(err)
	}
}

// A token counts as used when the folder's entry is durable too, not before.
func TestFileReplaysSyncTheFolder(t *testing.T) {
	dir := t.TempDir()
	f, now := task.NewFileReplays(filepath.Join(dir, "used"), 0), time.Now()
	lost := errors.New("input/output error")
	f.SyncWith(func(got string) error {
		if _, err := os.Stat(filepath.Join(dir, "used")); got != dir || err != nil {
			t.Errorf("%s was made durable: %v", got, err)
		}
		return lost
	})
	if err := f.Use(t.Context(), key(1), now, now.Add(time.Minute)); !errors.Is(err, lost) {
		t.Errorf("got %v, want the folder's error", err)
	}
}
