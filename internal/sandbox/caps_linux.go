package sandbox

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// keptCaps are what a child that runs as root keeps. Each was judged by
// whether it leads to Attaché's memory or files: CHOWN, FOWNER and FSETID act
// on files that are covered or read-only in the child's mount namespace,
// SETUID and SETGID only lead to less privileged users, KILL is bounded by the
// Landlock domain (and dropped where Landlock cannot bound it),
// NET_BIND_SERVICE opens low ports. Everything else, known and unknown, goes:
// SYS_PTRACE, DAC_*, SYS_ADMIN, SYS_RAWIO, BPF, PERFMON, SYS_MODULE,
// NET_ADMIN, NET_RAW (it could sniff loopback), MKNOD, SYS_CHROOT, SETPCAP,
// SETFCAP and the rest.
func keptCaps(scoped bool) uint64 {
	keep := uint64(1<<unix.CAP_CHOWN | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID |
		1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_NET_BIND_SERVICE)
	if scoped {
		keep |= 1 << unix.CAP_KILL
	}
	return keep
}

// dropBounding takes every capability but keep from the bounding set of the
// calling thread, so that no exec can bring it back.
func dropBounding(keep uint64) error {
	for c := uintptr(0); c < 64; c++ {
		if keep&(1<<c) != 0 {
			continue
		}
		set, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // beyond the last capability of this kernel
		}
		if err != nil || set == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			if errors.Is(err, unix.EPERM) {
				// Without CAP_SETPCAP the bounding set stays. It only bounds
				// what an exec may gain, and no_new_privs forbids that.
				return nil
			}
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	return nil
}

// limitCaps cuts the calling thread's own sets down to keep.
func limitCaps(keep uint64) error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if _, _, e := unix.RawSyscall(unix.SYS_CAPGET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0); e != 0 {
		return fmt.Errorf("read capabilities: %w", e)
	}
	for i := range data {
		half := uint32(keep >> (32 * i))
		data[i].Permitted &= half
		data[i].Effective = data[i].Permitted
		data[i].Inheritable = 0
	}
	if _, _, e := unix.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0); e != 0 {
		return fmt.Errorf("limit capabilities: %w", e)
	}
	return nil
}

// hasCaps reports whether the calling thread has all of these capabilities.
func hasCaps(want ...uint) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if _, _, e := unix.RawSyscall(unix.SYS_CAPGET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0); e != 0 {
		return false
	}
	for _, c := range want {
		if data[c/32].Effective&(1<<(c%32)) == 0 {
			return false
		}
	}
	return true
}
