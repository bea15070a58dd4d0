package sandbox_test

import (
	"encoding/binary"
	"runtime"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/internal/sandbox"
)

// call is struct seccomp_data of seccomp(2), as far as the filter looks.
type call struct {
	arch, nr   uint32
	arg0, arg1 uint64
}

// packet lays c out for the bpf package, which loads words big-endian, while
// the kernel loads them as the machine does: low word of an argument first.
func (c call) packet() []byte {
	b := make([]byte, 64)
	for at, word := range map[int]uint32{0: c.nr, 4: c.arch, 16: uint32(c.arg0), 20: uint32(c.arg0 >> 32), 24: uint32(c.arg1), 28: uint32(c.arg1 >> 32)} {
		binary.BigEndian.PutUint32(b[at:], word)
	}
	return b
}

// TestFilter runs the filter itself: most of what it denies is stopped by
// capabilities too, so that attempts alone would not miss it.
func TestFilter(t *testing.T) {
	arch, foreign := uint32(unix.AUDIT_ARCH_X86_64), uint32(unix.AUDIT_ARCH_I386)
	if runtime.GOARCH == "arm64" {
		arch, foreign = unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_ARM
	}
	const (
		allow  = unix.SECCOMP_RET_ALLOW
		eperm  = unix.SECCOMP_RET_ERRNO | int(unix.EPERM)
		enosys = unix.SECCOMP_RET_ERRNO | int(unix.ENOSYS)
		high   = 1 << 40 // the kernel ignores it where an argument is an int
	)
	type test struct {
		name   string
		call   call
		want   int // with socket files covered
		noUnix int // without
	}
	tests := []test{
		{"read", call{nr: unix.SYS_READ}, allow, allow},
		{"another calling convention", call{arch: foreign, nr: unix.SYS_READ}, enosys, enosys},
		{"own limits", call{nr: unix.SYS_PRLIMIT64}, allow, allow},
		{"another's limits", call{nr: unix.SYS_PRLIMIT64, arg0: 1}, eperm, eperm},
		{"Unix socket", call{nr: unix.SYS_SOCKET, arg0: unix.AF_UNIX}, allow, eperm},
		{"Unix socket, dressed up", call{nr: unix.SYS_SOCKET, arg0: unix.AF_UNIX | high}, allow, eperm},
		{"Internet socket", call{nr: unix.SYS_SOCKET, arg0: unix.AF_INET}, allow, allow},
		{"socketpair", call{nr: unix.SYS_SOCKETPAIR, arg0: unix.AF_UNIX}, allow, allow},
		{"ioctl", call{nr: unix.SYS_IOCTL, arg1: unix.TIOCGWINSZ}, allow, allow},
		{"TIOCSTI", call{nr: unix.SYS_IOCTL, arg1: unix.TIOCSTI}, eperm, eperm},
		{"TIOCSTI, dressed up", call{nr: unix.SYS_IOCTL, arg1: unix.TIOCSTI | high}, eperm, eperm},
		{"TIOCLINUX", call{nr: unix.SYS_IOCTL, arg1: unix.TIOCLINUX}, eperm, eperm},
	}
	for name, nr := range map[string]uint32{
		"keyctl": unix.SYS_KEYCTL, "add_key": unix.SYS_ADD_KEY, "request_key": unix.SYS_REQUEST_KEY, "bpf": unix.SYS_BPF,
		"perf_event_open": unix.SYS_PERF_EVENT_OPEN, "open_by_handle_at": unix.SYS_OPEN_BY_HANDLE_AT, "io_uring_setup": unix.SYS_IO_URING_SETUP,
		"io_uring_enter": unix.SYS_IO_URING_ENTER, "io_uring_register": unix.SYS_IO_URING_REGISTER, "kexec_load": unix.SYS_KEXEC_LOAD,
		"init_module": unix.SYS_INIT_MODULE, "finit_module": unix.SYS_FINIT_MODULE, "delete_module": unix.SYS_DELETE_MODULE,
	} {
		tests = append(tests, test{name, call{nr: nr}, eperm, eperm})
	}
	if runtime.GOARCH == "amd64" {
		tests = append(tests, test{"x32", call{nr: 0x40000000 | unix.SYS_READ}, enosys, enosys}, test{"keyctl by x32", call{nr: 0x40000000 | unix.SYS_KEYCTL}, enosys, enosys})
	}
	plain, noUnix := machine(t, false), machine(t, true)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.call.arch == 0 {
				tt.call.arch = arch
			}
			for vm, want := range map[*bpf.VM]int{plain: tt.want, noUnix: tt.noUnix} {
				if got, err := vm.Run(tt.call.packet()); err != nil || got != want {
					t.Errorf("without Unix sockets %v: got %#x, want %#x (%v)", vm == noUnix, got, want, err)
				}
			}
		})
	}
}

// machine runs the filter as the kernel would.
func machine(t *testing.T, noUnix bool) *bpf.VM {
	t.Helper()
	code, whole := bpf.Disassemble(sandbox.Filter(noUnix))
	if !whole {
		t.Fatal("the filter holds instructions that are none")
	}
	vm, err := bpf.NewVM(code)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}
