package sandbox

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// deniedCalls answer EPERM. Capabilities and Landlock stop most of what they
// could do; they are denied since they reach around paths (open_by_handle_at),
// around this filter (io_uring makes sockets without a system call), into
// kernel keyrings of the user, or into other processes' registers and stacks
// where the machine's settings are lax (bpf, perf_event_open).
var deniedCalls = [...]uint32{
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_OPEN_BY_HANDLE_AT,
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_KEXEC_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE,
}

// Offsets in struct seccomp_data; arguments are 64 bits, little endian here.
const (
	offNr   = 0
	offArch = 4
	offArg0 = 16
	offArg1 = 24
)

type program []unix.SockFilter

func (p *program) load(off uint32) {
	*p = append(*p, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off})
}

func (p *program) ret(k uint32) {
	*p = append(*p, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k})
}

// jump appends a comparison that goes jt or jf instructions on.
func (p *program) jump(op uint16, k uint32, jt, jf uint8) {
	*p = append(*p, unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jt: jt, Jf: jf})
}

// filter builds the seccomp program. noUnix also denies new Unix sockets, for
// the case where socket files cannot be covered; socketpair still works.
// isolated allows sockets only of families that belong to a network namespace
// (unix(7), ip(7), netlink(7)): vsock(7) of most kernels and some rarer ones
// reach the host from any.
func filter(noUnix, isolated bool) program {
	const (
		allow  = unix.SECCOMP_RET_ALLOW
		eperm  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
		enosys = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
		noFam  = unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)
	)
	arch := uint32(unix.AUDIT_ARCH_X86_64)
	if runtime.GOARCH == "arm64" {
		arch = unix.AUDIT_ARCH_AARCH64
	}
	var p program
	// Another calling convention has other numbers: refused whole.
	p.load(offArch)
	p.jump(unix.BPF_JEQ, arch, 1, 0)
	p.ret(enosys)
	p.load(offNr)
	if runtime.GOARCH == "amd64" {
		p.jump(unix.BPF_JGE, 0x40000000, 0, 1) // x32
		p.ret(enosys)
	}
	for _, nr := range deniedCalls {
		p.jump(unix.BPF_JEQ, nr, 0, 1)
		p.ret(eperm)
	}
	// Landlock does not guard prlimit: another's RLIMIT_CPU kills it.
	p.jump(unix.BPF_JEQ, unix.SYS_PRLIMIT64, 0, 4)
	p.load(offArg0)
	p.jump(unix.BPF_JEQ, 0, 0, 1)
	p.ret(allow)
	p.ret(eperm)
	if isolated {
		p.jump(unix.BPF_JEQ, unix.SYS_SOCKET, 0, 7)
		p.load(offArg0) // an int: the kernel looks at the low 32 bits only
		p.jump(unix.BPF_JEQ, unix.AF_UNIX, 4, 0)
		p.jump(unix.BPF_JEQ, unix.AF_INET, 3, 0)
		p.jump(unix.BPF_JEQ, unix.AF_INET6, 2, 0)
		p.jump(unix.BPF_JEQ, unix.AF_NETLINK, 1, 0)
		p.ret(noFam)
		p.ret(allow)
	}
	if noUnix {
		p.jump(unix.BPF_JEQ, unix.SYS_SOCKET, 0, 4)
		p.load(offArg0)
		p.jump(unix.BPF_JEQ, unix.AF_UNIX, 0, 1)
		p.ret(eperm)
		p.ret(allow)
	}
	// Typing into the user's terminal would run commands in the user's shell.
	// The kernel looks at the low 32 bits only, and so do we.
	p.jump(unix.BPF_JEQ, unix.SYS_IOCTL, 0, 4)
	p.load(offArg1)
	p.jump(unix.BPF_JEQ, unix.TIOCSTI, 1, 0)
	p.jump(unix.BPF_JEQ, unix.TIOCLINUX, 0, 1)
	p.ret(eperm)
	p.ret(allow)
	return p
}

// installFilter puts the filter on the calling thread.
func installFilter(noUnix, isolated bool) error {
	p := filter(noUnix, isolated)
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
	runtime.KeepAlive(p)
	if err != nil {
		return fmt.Errorf("install seccomp filter: %w", err)
	}
	return nil
}
