package redirect

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// asNetAdmin does something with CAP_NET_ADMIN effective where the thread may
// have it: a file capability of the program, which also serves where it must not
// have any, only permits it.
func asNetAdmin(do func() error) error {
	runtime.LockOSThread() // capabilities are a thread's
	defer runtime.UnlockOSThread()
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var before [2]unix.CapUserData // 64 bits
	if err := unix.Capget(&h, &before[0]); err != nil {
		return fmt.Errorf("redirect: read capabilities: %w", err)
	}
	const bit = 1 << unix.CAP_NET_ADMIN
	if before[0].Permitted&bit == 0 || before[0].Effective&bit != 0 {
		return do()
	}
	with := before
	with[0].Effective |= bit
	if err := unix.Capset(&h, &with[0]); err != nil {
		return fmt.Errorf("redirect: raise CAP_NET_ADMIN: %w", err)
	}
	err := do()
	if e := unix.Capset(&h, &before[0]); e != nil && err == nil {
		err = fmt.Errorf("redirect: drop CAP_NET_ADMIN: %w", e)
	}
	return err
}
