package run

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// An agent that repeats a failing call writes one line in ten seconds, and the
// next says how many it stands for.
func TestRepeatedWarningsAreSparse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		log := slog.New(newSparse(slog.NewTextHandler(&b, nil))).With("run", "r")
		refuse := func(code, host string) { log.Warn("call refused", "record", "rec", "code", code, "host", host) }
		for range 100 {
			refuse("denied", "a")
		}
		refuse("denied", "b")
		refuse("loop", "a")
		log.Info("life cycle")
		log.Info("life cycle")
		if n := strings.Count(b.String(), "\n"); n != 5 {
			t.Errorf("%d lines, want 5:\n%s", n, &b)
		}
		time.Sleep(logPause)
		b.Reset()
		refuse("denied", "a")
		if !strings.Contains(b.String(), "suppressed=99") {
			t.Errorf("got %s", &b)
		}
		b.Reset()
		for n := range 10000 {
			refuse("denied", fmt.Sprint("made-up-", n))
		}
		if n := strings.Count(b.String(), "\n"); n > logSubjects+1 {
			t.Errorf("%d lines of made-up hosts", n)
		}
	})
}

func TestOpenLog(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "log")
	if err := os.WriteFile(name, []byte("before\n"), 0o644); err != nil { //nolint:gosec // what it mends
		t.Fatal(err)
	}
	f, err := OpenLog(name)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.WriteString("after\n")
	_ = f.Close()
	if b, _ := os.ReadFile(name); string(b) != "before\nafter\n" {
		t.Errorf("got %q", b)
	}
	if fi, _ := os.Stat(name); fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", fi.Mode())
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(name, link); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{link, dir, os.DevNull} {
		if f, err := OpenLog(bad); err == nil {
			_ = f.Close()
			t.Errorf("%s was opened", bad)
		}
	}
	if got := (&Options{State: "/state", LogFile: name}).hidden(bundle(t, provider+"  jwt: {}\n")); !strings.Contains(fmt.Sprint(got), name) {
		t.Errorf("the log is not hidden: %v", got)
	}
}
