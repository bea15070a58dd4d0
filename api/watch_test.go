package api_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attache-dev/attache/api"
)

// watched runs a Watcher and reports what it applied and rejected.
type watched struct {
	applied  chan *api.Bundle
	rejected chan error
	log      lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func watch(t *testing.T, dir string, apply func(*api.Bundle) error) *watched {
	t.Helper()
	w := &watched{applied: make(chan *api.Bundle, 16), rejected: make(chan error, 16)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- (&api.Watcher{
			Dir: dir, Log: slog.New(slog.NewTextHandler(&w.log, nil)),
			Apply: func(b *api.Bundle) error {
				if err := apply(b); err != nil {
					return err
				}
				w.applied <- b
				return nil
			},
			Rejected: func(err error) { w.rejected <- err },
		}).Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return w
}

func accept(*api.Bundle) error { return nil }

func next[T any](t *testing.T, c chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(5 * time.Second):
		t.Fatalf("no %s within 5 s", what)
		panic("unreachable")
	}
}

func TestWatchKeepsTheLastGood(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "p.yaml")
	writeFile(t, file, policy("one"))
	w := watch(t, dir, accept)
	if b := next(t, w.applied, "first bundle"); b.Policies[0].Metadata.Name != "one" {
		t.Fatalf("got %+v", b.Policies)
	}
	writeFile(t, file, policy("Bad_Name"))
	err := next(t, w.rejected, "rejection")
	problems, ok := errors.AsType[api.Problems](err)
	if !ok || !strings.HasPrefix(problems.Error(), file+":4:18: ") {
		t.Errorf("got %v, want problems with their place", err)
	}
	// An editor's save: write another file, rename it over the old one.
	writeFile(t, filepath.Join(dir, ".p.yaml.swp"), policy("two"))
	if err := os.Rename(filepath.Join(dir, ".p.yaml.swp"), file); err != nil {
		t.Fatal(err)
	}
	if b := next(t, w.applied, "second bundle"); b.Policies[0].Metadata.Name != "two" {
		t.Errorf("got %+v", b.Policies)
	}
	if err := next(t, w.rejected, "all-clear"); err != nil {
		t.Errorf("got %v, want nil once the documents are good", err)
	}
	if log := w.log.String(); !strings.Contains(log, "the last good one stays") {
		t.Errorf("got log %s", log)
	}
}

func TestWatchRejectedByApply(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "p.yaml")
	writeFile(t, file, policy("one"))
	w := watch(t, dir, func(b *api.Bundle) error {
		if name := b.Policies[0].Metadata.Name; name != "one" {
			return api.Problems{{Ref: api.Ref{Kind: "AccessPolicy", Name: name, Field: "spec.rules"}, Text: "no"}}
		}
		return nil
	})
	next(t, w.applied, "first bundle")
	writeFile(t, file, policy("two"))
	if err := next(t, w.rejected, "rejection"); err.Error() != file+":5:8: no" && err.Error() != file+":5:7: no" {
		t.Errorf("got %v, want the place filled in", err)
	}
	writeFile(t, file, policy("one"))
	if err := next(t, w.rejected, "all-clear"); err != nil {
		t.Errorf("got %v, want nil", err)
	}
	if len(w.applied) != 0 {
		t.Error("the bundle in force was applied again")
	}
}

// Kubelet publishes a ConfigMap by swapping the symlink ..data.
func TestWatchFollowsASymlinkSwap(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "..v1", "p.yaml"), policy("one"))
	for link, target := range map[string]string{"..data": "..v1", "p.yaml": "..data/p.yaml"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	w := watch(t, dir, accept)
	next(t, w.applied, "first bundle")
	writeFile(t, filepath.Join(dir, "..v2", "p.yaml"), policy("two"))
	if err := os.Symlink("..v2", filepath.Join(dir, "..tmp")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	if b := next(t, w.applied, "second bundle"); b.Policies[0].Metadata.Name != "two" {
		t.Errorf("got %+v", b.Policies)
	}
}

// A folder that is replaced as a whole is a new folder to watch.
func TestWatchFollowsAReplacedFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "config")
	writeFile(t, filepath.Join(dir, "p.yaml"), policy("one"))
	w := watch(t, dir, accept)
	next(t, w.applied, "first bundle")
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	if err := next(t, w.rejected, "rejection"); !errors.Is(err, api.ErrNoDocuments) {
		t.Errorf("got %v, want ErrNoDocuments", err)
	}
	writeFile(t, filepath.Join(dir, "p.yaml"), policy("two"))
	next(t, w.applied, "second bundle")
	writeFile(t, filepath.Join(dir, "p.yaml"), policy("three"))
	if b := next(t, w.applied, "third bundle"); b.Policies[0].Metadata.Name != "three" {
		t.Errorf("got %+v", b.Policies)
	}
}

func TestWatchReadsChangedCAFiles(t *testing.T) {
	dir, ca := t.TempDir(), filepath.Join(t.TempDir(), "ca.pem")
	writeFile(t, ca, certA)
	writeFile(t, filepath.Join(dir, "p.yaml"), string(docs("kind: CredentialProvider\nmetadata: {name: p}\nspec: {destinations: [{host: a.example.com, caFile: "+ca+"}], jwt: {}}")))
	w := watch(t, dir, accept)
	before := next(t, w.applied, "first bundle").Generations["p"]
	writeFile(t, ca, certA+certA)
	if next(t, w.applied, "second bundle").Generations["p"] == before {
		t.Error("the generation is unchanged")
	}
}
