package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Access rights by what they apply to. Landlock answers EINVAL to a folder's
// right in a rule for a file.
const (
	fileRights = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_READ_FILE |
		unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	readRights = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
)

// landlockABI is the version this kernel speaks, 0 if Landlock is not there or
// not enabled.
func landlockABI() int {
	v, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if e != 0 {
		return 0
	}
	return int(v)
}

// handled returns every file system right that abi knows, up to the last one
// this package was written for (ABI 5).
func handled(abi int) uint64 {
	rights := uint64(1<<13 - 1)
	if abi >= 2 {
		rights |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 3 {
		rights |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= 5 {
		rights |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	return rights
}

type ruleset struct {
	fd     int
	rights uint64
}

// landlock puts the calling thread into a Landlock domain of its own.
func landlock(sp *spec) error {
	rs, err := newRuleset(sp)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(rs.fd) }()
	if sp.MountNS {
		// Paths are covered by mounts; the domain is there for what comes
		// with it: no ptrace, no signals out, no change of mounts.
		err = rs.allow("/", rs.rights)
	} else {
		w := walk{rs: rs, hidden: append(append([]string(nil), sp.Cover...), sp.Private...), readOnly: sp.ReadOnly}
		err = w.dir("/", rs.rights)
	}
	if err != nil {
		return err
	}
	for _, port := range sp.Ports {
		attr := struct{ access, port uint64 }{unix.LANDLOCK_ACCESS_NET_CONNECT_TCP, uint64(port)}
		const ruleNetPort = 2
		if _, _, e := unix.RawSyscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(rs.fd), ruleNetPort, uintptr(unsafe.Pointer(&attr)), 0, 0, 0); e != 0 {
			return fmt.Errorf("allow port %d by landlock: %w", port, e)
		}
	}
	if _, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(rs.fd), 0, 0); e != 0 {
		return fmt.Errorf("enter landlock domain: %w", e)
	}
	return nil
}

func newRuleset(sp *spec) (*ruleset, error) {
	// struct landlock_ruleset_attr; older kernels take a shorter one.
	attr := struct{ fs, net, scoped uint64 }{fs: handled(sp.ABI)}
	size := unsafe.Sizeof(attr.fs)
	if sp.ABI >= 4 {
		size += unsafe.Sizeof(attr.net)
		if len(sp.Ports) > 0 {
			attr.net = unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
		}
	}
	if sp.ABI >= 6 {
		size += unsafe.Sizeof(attr.scoped)
		attr.scoped = unix.LANDLOCK_SCOPE_SIGNAL | unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET
	}
	fd, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if e != 0 {
		return nil, fmt.Errorf("create landlock ruleset: %w", e)
	}
	return &ruleset{fd: int(fd), rights: attr.fs}, nil
}

// allow grants rights on path and all below. A path that is gone or cannot be
// reached is skipped: the child cannot reach it either.
func (r *ruleset) allow(path string, rights uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil //nolint:nilerr // no rule means no access
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	rights &= r.rights
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &= fileRights
	}
	attr := unix.LandlockPathBeneathAttr{Allowed_access: rights, Parent_fd: int32(fd)}
	_, _, e := unix.RawSyscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(r.fd), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&attr)), 0, 0, 0)
	if e != 0 && e != unix.EBADFD { // EBADFD: a file of the kernel's own, never restricted
		return fmt.Errorf("allow %s by landlock: %w", path, e)
	}
	return nil
}

// walk hides paths where they cannot be covered: Landlock only grants, so each
// folder on the way to a hidden or read-only path is split, and its other
// entries are granted one by one. What is created in a split folder later is
// out of reach, and a split folder cannot be listed.
type walk struct {
	rs               *ruleset
	hidden, readOnly []string
}

func (w *walk) dir(dir string, rights uint64) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("list %s for landlock: %w", dir, err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case e.Type()&os.ModeSymlink != 0: // the target has, or has not, a rule of its own
		case contains(w.hidden, path):
		default:
			if err := w.entry(path, rights); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *walk) entry(path string, rights uint64) error {
	switch path {
	case "/dev":
		return w.devices()
	case "/proc", "/sys":
		// Written by root, these reach the whole machine: core_pattern,
		// release_agent, cgroup.procs.
		return w.rs.allow(path, readRights)
	}
	if contains(w.readOnly, path) {
		rights &= readRights
	}
	if leads(w.hidden, path) || rights&^uint64(readRights) != 0 && leads(w.readOnly, path) {
		return w.dir(path, rights)
	}
	return w.rs.allow(path, rights)
}

func (w *walk) devices() error {
	entries, err := os.ReadDir("/dev")
	if err != nil {
		return fmt.Errorf("list /dev for landlock: %w", err)
	}
	for _, e := range entries {
		if harmlessDevice("/dev/" + e.Name()) {
			if err := w.rs.allow("/dev/"+e.Name(), w.rs.rights); err != nil {
				return err
			}
		}
	}
	return nil
}

// contains reports whether list holds path itself.
func contains(list []string, path string) bool {
	for _, p := range list {
		if p == path {
			return true
		}
	}
	return false
}

// leads reports whether path is a folder above an entry of list.
func leads(list []string, path string) bool {
	for _, p := range list {
		if below(p, path) {
			return true
		}
	}
	return false
}

// below reports whether path is inside folder dir.
func below(path, dir string) bool {
	if dir == "/" {
		return path != "/"
	}
	return len(path) > len(dir) && strings.HasPrefix(path, dir) && path[len(dir)] == '/'
}
