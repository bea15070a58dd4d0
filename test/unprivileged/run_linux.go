package unprivileged

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// nobody owns nothing.
const nobody = 65534

// Run gives a folder to somebody, and runs check as them. Paths must be relative:
// the way to a test's folder is closed to others.
func Run(t *testing.T, dir string, check func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		check()
		return
	}
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with its user
		if err := unix.Setfsuid(nobody); err != nil {
			t.Error(err)
			return
		}
		check()
	}()
	<-done
}
