package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// mount makes a small file system. Only root may; everyone else's part of the
// test ends here and says so.
func mount(t *testing.T, dir, name, options string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.Mkdir(p, 0o755); err != nil {
		t.Fatal(err)
	}
	flags := uintptr(0)
	if len(options) > 3 && options[len(options)-3:] == ",ro" {
		flags, options = unix.MS_RDONLY, options[:len(options)-3]
	}
	err := unix.Mount("tmpfs", p, "tmpfs", flags, options)
	if errors.Is(err, unix.EPERM) {
		t.Skip("needs root: a file system of a test's own cannot be mounted")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(p, unix.MNT_DETACH) })
	return p
}
