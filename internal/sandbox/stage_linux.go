package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/internal/isolate"
)

// stageArg is the hidden first argument by which a program that calls
// [MaybeStage] recognises that it was started as the stage.
const stageArg = "__sandbox"

// Descriptors the stage inherits beside 0, 1 and 2.
const (
	specFD   = 3 // memfd with the spec
	statusFD = 4 // pipe; closed by exec, or carries the error
	joinFD   = 5 // with a network of its own: socket to the launcher, see join
)

// exitStage is the exit code of a stage that failed.
const exitStage = 125

// maxSpec bounds the spec.
const maxSpec = 4 << 20

// spec is what the stage does. It holds no secret.
type spec struct {
	Probe    bool // apply everything, then exit instead of exec
	Dir      string
	Path     string
	Args     []string
	ABI      int
	MountNS  bool
	NoUnix   bool
	KeepCaps uint64
	Pin      []string
	ReadOnly []string
	Cover    []string
	Private  []string // covered by an empty, writable folder
	Ports    []uint16
	User     *User
	Net      *isolate.Spec // of the network namespace that the stage is in; nil: there is none
	Resolv   string        // file that takes the place of ResolvAt
	ResolvAt string
}

func (sp *spec) uid() int {
	if sp.User != nil {
		return int(sp.User.UID)
	}
	return os.Geteuid()
}

func (sp *spec) gid() int {
	if sp.User != nil {
		return int(sp.User.GID)
	}
	return os.Getegid()
}

// MaybeStage must be the first call of main in every program that uses [New]
// (and of TestMain in its tests). It returns at once, unless this process was
// started by [Sandbox.Start] to confine itself and become the child; then it
// never returns.
func MaybeStage() {
	if len(os.Args) != 2 || os.Args[1] != stageArg {
		return
	}
	// Everything below acts on the calling thread alone, which is the one
	// that execs; the runtime's other threads die in exec.
	runtime.LockOSThread()
	unix.CloseOnExec(statusFD)
	err := stage()
	if err == nil {
		unix.Exit(0) // a probe
	}
	_, _ = unix.Write(statusFD, []byte(err.Error()))
	unix.Exit(exitStage)
}

func readSpec() (*spec, error) {
	f := os.NewFile(specFD, "spec")
	defer func() { _ = f.Close() }()
	var sp spec
	if err := json.NewDecoder(io.LimitReader(f, maxSpec)).Decode(&sp); err != nil {
		return nil, fmt.Errorf("read the stage's spec (the stage is not started by hand): %w", err)
	}
	return &sp, nil
}

func stage() error {
	sp, err := readSpec()
	if err != nil {
		return err
	}
	if err := checkStdio(); err != nil {
		return err
	}
	if sp.Net != nil {
		if err := network(sp); err != nil {
			return err
		}
	}
	if sp.MountNS {
		if err := mountAll(sp); err != nil {
			return err
		}
	}
	if err := confine(sp); err != nil {
		return err
	}
	// The working directory that clone inherited is below the mounts made
	// here: enter it again from the root.
	if err := unix.Chdir(sp.Dir); err != nil {
		return fmt.Errorf("enter %s: %w", sp.Dir, err)
	}
	if err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close inherited descriptors: %w", err)
	}
	if sp.Probe {
		return nil
	}
	return fmt.Errorf("exec %s: %w", sp.Path, unix.Exec(sp.Path, sp.Args, os.Environ()))
}

// checkStdio refuses folders as standard streams: through one opened outside,
// openat reaches what is covered in here.
func checkStdio() error {
	for fd := 0; fd <= 2; fd++ {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return fmt.Errorf("look at descriptor %d: %w", fd, err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return fmt.Errorf("descriptor %d is a folder; redirect it from a file", fd)
		}
	}
	return nil
}

// confine takes privileges from the calling thread, widest last: each step
// still needs what the next one takes.
func confine(sp *spec) error {
	// A session keyring of its own; the filter forbids the calls that could
	// reach others. ENOSYS: a kernel without keyrings.
	if _, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0); err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("leave the session keyring: %w", err)
	}
	if err := dropBounding(sp.KeepCaps); err != nil {
		return err
	}
	if sp.User != nil {
		if err := become(sp.User); err != nil {
			return err
		}
	}
	if err := limitCaps(sp.KeepCaps); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if sp.ABI > 0 {
		if err := landlock(sp); err != nil {
			return err
		}
	}
	return installFilter(sp.NoUnix, sp.Net != nil)
}

// become changes the calling thread's user, by raw calls: those of package
// syscall change all threads and would wait for them.
func become(u *User) error {
	groups := append([]uint32{}, u.Groups...)
	if err := setgroups(groups); err != nil {
		return fmt.Errorf("set groups: %w", err)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(u.GID), uintptr(u.GID), uintptr(u.GID)); e != 0 {
		return fmt.Errorf("set group %d: %w", u.GID, e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(u.UID), uintptr(u.UID), uintptr(u.UID)); e != 0 {
		return fmt.Errorf("set user %d: %w", u.UID, e)
	}
	return nil
}
