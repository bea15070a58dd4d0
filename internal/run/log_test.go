package run

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

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
