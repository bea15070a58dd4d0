package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sameSignal is how soon a signal is no second one: timeout(1) and others send
// theirs to the process and to its group.
const sameSignal = 50 * time.Millisecond

// killTime bounds how long the end of killed processes is waited for.
const killTime = 5 * time.Second

// terminal says how the child shares the user's terminal.
type terminal struct {
	fd         int  // the controlling terminal, if foreground
	foreground bool // the child's process group owns the terminal
	shared     bool // the child stays in our group, in which the terminal's keys reach it
}

// findTerminal decides it. With the terminal on both ends the child gets a
// group of its own in the foreground, so that Ctrl-C and Ctrl-Z are its own;
// within a pipe of the shell's it must stay in the group of the pipe; without
// a terminal it gets a group and our signals.
func findTerminal(files []*os.File) terminal {
	if pgrp, err := unix.IoctlGetInt(int(files[0].Fd()), unix.TIOCGPGRP); err == nil && pgrp == unix.Getpgrp() {
		if _, err := unix.IoctlGetInt(int(files[1].Fd()), unix.TIOCGPGRP); err == nil {
			return terminal{fd: int(files[0].Fd()), foreground: true}
		}
	}
	if tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); err == nil {
		_ = tty.Close()
		return terminal{shared: true}
	}
	return terminal{}
}

func (t terminal) prepare(attr *syscall.SysProcAttr) {
	attr.Setpgid = !t.shared
	if t.foreground {
		attr.Foreground, attr.Ctty = true, t.fd
	}
}

// give makes pgrp the terminal's foreground group. A background process that
// does so is stopped by SIGTTOU unless its thread blocks it.
func (t terminal) give(pgrp int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var set, old unix.Sigset_t
	set.Val[0] = 1 << (uint(unix.SIGTTOU) - 1)
	if unix.PthreadSigmask(unix.SIG_BLOCK, &set, &old) != nil {
		return
	}
	_ = unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, pgrp)
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
}

// restore takes the terminal back.
func (t terminal) restore() {
	if t.foreground {
		t.give(unix.Getpgrp())
	}
}

// forwarded lists the signals that a supervisor passes on to the child.
func (t terminal) forwarded() []os.Signal {
	if t.shared {
		// The terminal sends the others to the whole group: us and the child.
		return []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGQUIT}
	}
	return []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGWINCH, unix.SIGQUIT}
}

// Wait passes signals on to the child (a second SIGINT or SIGTERM kills), waits for its
// end, kills what it left running, and returns its exit status: 128+n if
// signal n ended it. When ctx ends, the child is killed.
func (s *Sandbox) Wait(ctx context.Context) (int, error) {
	if s.proc == nil {
		return 0, errors.New("wait for child: it was not started")
	}
	defer signal.Stop(s.sigs)
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	defer signal.Stop(died)

	type end struct {
		status unix.WaitStatus
		err    error
	}
	done := make(chan end, 1)
	go func() {
		ws, err := s.waitChild()
		done <- end{ws, err}
	}()
	last := map[os.Signal]time.Time{}
	stop := ctx.Done()
	for {
		select {
		case sig := <-s.sigs:
			first := last[sig]
			last[sig] = time.Now()
			s.forward(sig, !first.IsZero() && time.Since(first) > sameSignal)
		case <-died:
			s.reap()
		case <-stop:
			stop = nil
			_ = s.proc.Kill()
		case e := <-done:
			s.term.restore()
			err := s.killAll()
			if e.err != nil {
				return 0, fmt.Errorf("wait for child: %w", e.err)
			}
			if e.status.Signaled() {
				return 128 + int(e.status.Signal()), err
			}
			return e.status.ExitStatus(), err
		}
	}
}

func (s *Sandbox) forward(sig os.Signal, again bool) {
	switch {
	case again && (sig == unix.SIGINT || sig == unix.SIGTERM):
		_ = s.proc.Kill()
	case s.term.shared && sig != unix.SIGTERM: // the child has it from the terminal
	default:
		_ = s.proc.Signal(sig)
	}
}

// waitChild waits for the child's end. When the child stops (Ctrl-Z) while it
// owns the terminal, we stop too, so that the shell gets its prompt back, and
// both go on together.
func (s *Sandbox) waitChild() (unix.WaitStatus, error) {
	opts := 0
	if s.term.foreground {
		opts = unix.WUNTRACED
	}
	for {
		var ws unix.WaitStatus
		_, err := unix.Wait4(s.proc.Pid, &ws, opts, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if !ws.Stopped() {
			return ws, nil
		}
		s.term.restore()
		_ = unix.Kill(0, unix.SIGSTOP)
		// The shell continues us in the foreground (fg) or not (bg).
		if pgrp, err := unix.IoctlGetInt(s.term.fd, unix.TIOCGPGRP); err == nil && pgrp == unix.Getpgrp() {
			s.term.give(s.proc.Pid)
		}
		_ = unix.Kill(-s.proc.Pid, unix.SIGCONT)
	}
}

// reap collects descendants that lost their parent and became our children.
// Children that Attaché itself started otherwise are left to their owners
// where the run has a cgroup to tell them apart.
func (s *Sandbox) reap() {
	for _, pid := range children(os.Getpid()) {
		if s.proc != nil && pid == s.proc.Pid || !s.owns(pid) {
			continue
		}
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
	}
}

func (s *Sandbox) owns(pid int) bool {
	if s.cgroup == "" {
		return true
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return false
	}
	name := s.cgroup[strings.LastIndexByte(s.cgroup, '/'):]
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "0::") && strings.Contains(strings.TrimSpace(line)+"/", name+"/") {
			return true
		}
	}
	return false
}

// killAll ends every process of the run and collects them.
func (s *Sandbox) killAll() error {
	for end := time.Now().Add(killTime); ; {
		if !s.killOnce() {
			return nil
		}
		if time.Now().After(end) {
			return errors.New("processes of the run do not end although killed")
		}
		// There is no file descriptor to wait on for "no descendants".
		ts := unix.NsecToTimespec(int64(2 * time.Millisecond))
		_ = unix.Nanosleep(&ts, nil)
	}
}

// killOnce reports whether something was left to kill.
func (s *Sandbox) killOnce() bool {
	if s.cgroup != "" {
		_ = killCgroup(s.cgroup)
		s.reap()
		return populated(s.cgroup)
	}
	if s.proc == nil {
		return false
	}
	list := descendants(os.Getpid())
	for _, pid := range list {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	s.reap()
	return len(descendants(os.Getpid())) > 0
}

// children lists the children of all threads of pid.
func children(pid int) []int {
	dir := "/proc/" + strconv.Itoa(pid) + "/task"
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []int
	for _, t := range tasks {
		b, err := os.ReadFile(dir + "/" + t.Name() + "/children")
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				out = append(out, n)
			}
		}
	}
	return out
}

// descendants lists all processes below pid.
func descendants(pid int) []int {
	var out []int
	for _, c := range children(pid) {
		out = append(append(out, c), descendants(c)...)
	}
	return out
}

// setgroups sets the supplementary groups of the calling thread only.
func setgroups(groups []uint32) error {
	var p unsafe.Pointer
	if len(groups) > 0 {
		p = unsafe.Pointer(&groups[0])
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(p), 0); e != 0 {
		return e
	}
	return nil
}
