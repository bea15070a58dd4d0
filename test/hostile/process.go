//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// processAttempts go for the memory, the files and the life of the parent.
func processAttempts() []attempt {
	return []attempt{
		{"read /proc/PID/environ", func(t *targets) error { return readCanary(t.proc("environ")) }},
		{"read /proc/PID/mem", readMem},
		{"read /proc/TID/mem of a thread", readThreadMem},
		{"read /proc/PID/maps", func(t *targets) error { _, err := readSome(t.proc("maps")); return err }},
		{"read /proc/PID/auxv", func(t *targets) error { _, err := readSome(t.proc("auxv")); return err }},
		{"read the links of /proc/PID/fd", func(t *targets) error {
			_, err := os.Readlink(t.proc("fd/" + strconv.Itoa(t.FD)))
			return err
		}},
		{"open /proc/PID/fd/N", func(t *targets) error { return readCanary(t.proc("fd/" + strconv.Itoa(t.FD))) }},
		{"read the key through /proc/PID/root", func(t *targets) error { return readCanary(t.proc("root") + t.Key) }},
		{"read the key through /proc/PID/cwd", func(t *targets) error {
			rel, err := filepath.Rel("/", t.Key)
			if err != nil {
				return err
			}
			return readCanary(t.proc("cwd") + "/../../../../../../../../../" + rel)
		}},
		{"ptrace seize", func(t *targets) error { return seize(t.Parent) }},
		{"ptrace attach", func(t *targets) error {
			if err := unix.PtraceAttach(t.Parent); err != nil {
				return err
			}
			_, _ = unix.Wait4(t.Parent, nil, unix.WALL, nil)
			return unix.PtraceDetach(t.Parent)
		}},
		{"process_vm_readv", readVM},
		{"pidfd_getfd", getFD},
		{"signal", func(t *targets) error { return unix.Kill(t.Parent, unix.SIGCONT) }},
		{"signal a thread", func(t *targets) error { return unix.Tgkill(t.Parent, t.Parent, unix.SIGCONT) }},
		{"signal by pidfd", func(t *targets) error {
			fd, err := unix.PidfdOpen(t.Parent, 0)
			if err != nil {
				return err
			}
			defer func() { _ = unix.Close(fd) }()
			return unix.PidfdSendSignal(fd, unix.SIGCONT, nil, 0)
		}},
		{"prlimit", func(t *targets) error {
			inf := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
			return unix.Prlimit(t.Parent, unix.RLIMIT_CPU, &inf, nil)
		}},
		{"enter the mount namespace", func(t *targets) error { return runInner(nil, "setns", strconv.Itoa(t.Parent), t.Key) }},
		{"move to another cgroup", moveCgroup},
		{"double fork into another cgroup", func(t *targets) error {
			return runInner(&unix.SysProcAttr{Setsid: true}, "cgroup", t.Cgroup)
		}},
	}
}

func (t *targets) proc(name string) string {
	return "/proc/" + strconv.Itoa(t.Parent) + "/" + name
}

// readSome reads the beginning of a file and wants something in it.
func readSome(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, 512)
	n, err := f.Read(b)
	if n == 0 {
		return nil, errors.Join(errNothing, err)
	}
	return b[:n], nil
}

func readAt(path string, t *targets) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, t.Size)
	if _, err := f.ReadAt(b, int64(t.Address)); err != nil {
		return err
	}
	return findCanary(b)
}

func readMem(t *targets) error { return readAt(t.proc("mem"), t) }

func readThreadMem(t *targets) error {
	tids, err := os.ReadDir(t.proc("task"))
	if err != nil {
		return err
	}
	err = errNothing
	for _, e := range tids {
		if err = readAt("/proc/"+e.Name()+"/mem", t); err == nil {
			return nil
		}
	}
	return err
}

func seize(pid int) error {
	if _, _, e := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, 0, 0, 0); e != 0 {
		return e
	}
	// Detaching takes a stop; the end of this tracer detaches as well, but
	// the next attempt wants to attach itself.
	_, _, _ = unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_INTERRUPT, uintptr(pid), 0, 0, 0, 0)
	_, _ = unix.Wait4(pid, nil, unix.WALL, nil)
	return unix.PtraceDetach(pid)
}

func readVM(t *targets) error {
	b := make([]byte, t.Size)
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	remote := []unix.RemoteIovec{{Base: t.Address, Len: len(b)}}
	if _, err := unix.ProcessVMReadv(t.Parent, local, remote, 0); err != nil {
		return err
	}
	return findCanary(b)
}

func getFD(t *targets) error {
	pidfd, err := unix.PidfdOpen(t.Parent, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(pidfd) }()
	fd, err := unix.PidfdGetfd(pidfd, t.FD, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	b := make([]byte, 256)
	n, err := unix.Pread(fd, b, 0)
	if err != nil {
		return err
	}
	return findCanary(b[:n])
}

func moveCgroup(t *targets) error {
	err := errNothing
	for _, dir := range append([]string{t.Cgroup}, t.Cgroups...) {
		if dir == "" {
			continue
		}
		if err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err == nil {
			return nil
		}
	}
	return err
}

// perf asks for samples of pid, or of everything with pid -1.
func perf(pid int) error {
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CPU_CLOCK, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}
	cpu := -1
	if pid == -1 {
		cpu = 0
	}
	fd, err := unix.PerfEventOpen(&attr, pid, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("perf: %w", err)
	}
	return unix.Close(fd)
}
