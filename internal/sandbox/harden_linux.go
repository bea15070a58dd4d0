package sandbox

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Harden makes this process unreadable for others of the same user: it is not
// dumpable (so /proc/PID/{mem,environ,fd,…} belong to root and ptrace is
// refused) and leaves no core file. Call it before the first secret is read;
// it does not stop root, Landlock does.
func Harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the process undumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core files: %w", err)
	}
	return nil
}
