//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernelAttempts go around files and processes: devices, mounts, namespaces,
// privileges, other interfaces of the kernel.
func kernelAttempts() []attempt {
	newNS := &unix.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	within := func(name string) func(t *targets) error {
		return func(t *targets) error { return runInner(newNS, name, t.State, t.Key, t.Scratch) }
	}
	return []attempt{
		{"read a disk", readDisks},
		{"open /dev/mem", func(*targets) error { _, err := readSome("/dev/mem"); return err }},
		{"make a disk's node", func(t *targets) error {
			node := filepath.Join(t.Scratch, "disk")
			defer func() { _ = unix.Unlink(node) }()
			return unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(254, 0)))
		}},
		{"unmount the cover", func(t *targets) error { return uncover(t.State, t.Key) }},
		{"mount", func(t *targets) error { return mountOver(t.Scratch) }},
		{"clone the root mount", func(t *targets) error { return cloneTree(t.Key) }},
		{"make policy writable again", func(t *targets) error {
			return unix.Mount("", filepath.Dir(t.Policy), "", unix.MS_REMOUNT|unix.MS_BIND, "")
		}},
		{"chroot", func(t *targets) error { return runInner(nil, "chroot", t.Scratch) }},
		{"unmount the cover in a new namespace", within("uncover")},
		{"mount in a new namespace", within("mount")},
		{"clone the root mount in a new namespace", within("clonetree")},
		{"overlay the cover in a new namespace", within("overlay")},
		{"open by handle in a new namespace", within("handle")},
		{"open_by_handle_at", openHandle},
		{"io_uring", ioUring},
		{"bpf", bpf},
		{"perf on the parent", func(t *targets) error { return perf(t.Parent) }},
		{"perf on everything", func(*targets) error { return perf(-1) }},
		{"keyrings", func(*targets) error { _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_USER_KEYRING, true); return err }},
		{"raw packets", func(*targets) error { return socket(unix.AF_PACKET, unix.SOCK_RAW) }},
		{"type into the terminal", typeAhead},
		{"gain privileges from a set-user-id program", func(t *targets) error { return runSuid(t.Suid) }},
		{"hold dangerous capabilities", func(*targets) error { return capabilities() }},
		{"set core_pattern", func(*targets) error { return openWriteAny("/proc/sys/kernel/core_pattern") }},
		{"press sysrq", func(*targets) error { return openWriteAny("/proc/sysrq-trigger") }},
		{"write to /sys", func(*targets) error { return openWriteAny("/sys/kernel/mm/transparent_hugepage/enabled") }},
		{"plant a cron job", func(*targets) error { return create("/etc/cron.d/attache-hostile") }},
	}
}

func readDisks(*targets) error {
	entries, err := os.ReadDir("/dev")
	if err != nil {
		return err
	}
	err = errNothing
	for _, e := range entries {
		if path := "/dev/" + e.Name(); isBlock(path) {
			if _, err = readSome(path); err == nil {
				return nil
			}
		}
	}
	return err
}

func uncover(dir, key string) error {
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return errors.Join(err, readCanary(key))
	}
	return readCanary(key)
}

func mountOver(dir string) error {
	if err := unix.Mount("hostile", dir, "tmpfs", 0, ""); err != nil {
		return err
	}
	return unix.Unmount(dir, unix.MNT_DETACH)
}

// cloneTree opens the file system without what is mounted on it.
func cloneTree(key string) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	f, err := unix.Openat(fd, strings.TrimPrefix(key, "/"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return readCanary("/proc/self/fd/" + strconv.Itoa(f))
}

// overlay stacks the state folder's parent, whose covers it does not take
// along, without mounting the result anywhere.
func overlay(state, scratch string) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	lower := filepath.Dir(state)
	for _, kv := range [][2]string{{"lowerdir", lower + ":" + scratch}, {"source", "hostile"}} {
		if err := unix.FsconfigSetString(fs, kv[0], kv[1]); err != nil {
			return err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return err
	}
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return readCanary(fmt.Sprintf("/proc/self/fd/%d/%s/issuer.key", m, filepath.Base(state)))
}

func openHandle(t *targets) error {
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, t.Scratch, 0)
	if err != nil {
		return err
	}
	root, err := unix.Open(t.Scratch, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	fd, err := unix.OpenByHandleAt(root, h, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func ioUring(*targets) error {
	var params [120]byte // struct io_uring_params
	fd, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&params[0])), 0)
	if e != 0 {
		return e
	}
	return unix.Close(int(fd))
}

func bpf(*targets) error {
	// BPF_MAP_CREATE of an array.
	attr := struct{ kind, key, value, entries uint32 }{2, 4, 4, 1}
	fd, _, e := unix.Syscall(unix.SYS_BPF, 0, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if e != 0 {
		return e
	}
	return unix.Close(int(fd))
}

func socket(family, kind int) error {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// typeAhead types into a terminal of its own, as it would into the user's.
func typeAhead(*targets) error {
	m, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(m) }()
	if err := unix.IoctlSetPointerInt(m, unix.TIOCSPTLCK, 0); err != nil {
		return err
	}
	n, err := unix.IoctlGetInt(m, unix.TIOCGPTN)
	if err != nil {
		return err
	}
	tty, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = tty.Close() }()
	cmd := exec.Command("/proc/self/exe", "inner", "tiocsti") //nolint:noctx // ends by itself
	cmd.Stdin = tty
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	out, err := cmd.CombinedOutput()
	return innerResult(out, err)
}

func runSuid(path string) error {
	out, err := exec.Command(path, "inner", "euid", strconv.Itoa(os.Geteuid())).CombinedOutput() //nolint:noctx // ends by itself
	return innerResult(out, err)
}

// capabilities succeeds if one is effective, or can become so, that leads to
// other processes, files or the kernel.
func capabilities() error {
	dangerous := uint64(0)
	for _, c := range []int{
		unix.CAP_SYS_PTRACE, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, unix.CAP_SYS_ADMIN, unix.CAP_SYS_RAWIO, unix.CAP_BPF,
		unix.CAP_PERFMON, unix.CAP_SYS_MODULE, unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_MKNOD, unix.CAP_SYS_CHROOT, unix.CAP_SETPCAP,
		unix.CAP_SETFCAP, unix.CAP_SYS_RESOURCE, unix.CAP_CHECKPOINT_RESTORE, unix.CAP_SYS_BOOT, unix.CAP_SYS_TTY_CONFIG, unix.CAP_SYSLOG,
	} {
		dangerous |= 1 << c
	}
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		if name == "CapEff" || name == "CapPrm" || name == "CapInh" || name == "CapAmb" {
			if n, err := strconv.ParseUint(value, 16, 64); err == nil && n&dangerous != 0 {
				return nil
			}
		}
	}
	return errNothing
}

func openWriteAny(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// runInner starts this program again for an attempt that needs a process of
// its own.
func runInner(attr *unix.SysProcAttr, args ...string) error {
	cmd := exec.Command("/proc/self/exe", append([]string{"inner"}, args...)...) //nolint:noctx // ends by itself
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	return innerResult(out, err)
}

func innerResult(out []byte, err error) error {
	if err == nil {
		return nil
	}
	if text := strings.TrimSpace(string(out)); text != "" {
		return errors.New(text)
	}
	return err
}

// inner is the other side of runInner.
func inner(name string, args []string) {
	runtime.LockOSThread()
	var err error
	switch name {
	case "uncover":
		err = uncover(args[0], args[1])
	case "mount":
		err = mountOver(args[2])
	case "clonetree":
		err = cloneTree(args[1])
	case "overlay":
		err = overlay(args[0], args[2])
	case "handle":
		err = openHandle(&targets{Scratch: args[2]})
	case "chroot":
		err = unix.Chroot(args[0])
	case "cgroup":
		// Orphaned by its parent's exit, in a session of its own.
		err = moveCgroup(&targets{Cgroup: args[0]})
	case "setns":
		err = enter(args[0], args[1])
	case "tiocsti":
		c := byte('x')
		_, _, e := unix.Syscall(unix.SYS_IOCTL, 0, unix.TIOCSTI, uintptr(unsafe.Pointer(&c)))
		if e != 0 {
			err = e
		}
	case "euid":
		if strconv.Itoa(os.Geteuid()) == args[0] {
			err = errors.New("same user as before")
		}
	default:
		err = fmt.Errorf("unknown attempt %q", name)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func enter(pid, key string) error {
	f, err := os.Open("/proc/" + pid + "/ns/mnt")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNS); err != nil {
		return err
	}
	return readCanary(key)
}
