package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/identity"
)

// Attestor is the [identity.Attestor] of one run.
type Attestor struct {
	workload *identity.Workload
	tree     tree
	diag     *diag
	digests  *digests
	hint     atomic.Pointer[place] // where the last socket was found
}

// place is a descriptor of a process.
type place struct{ pid, fd int }

// New returns an Attestor for the run that o describes; Close it at the end.
func New(o Options) (*Attestor, error) {
	if o.Workload == nil {
		return nil, errors.New("process attestor: no workload given")
	}
	t, err := newTree(o)
	if err != nil {
		return nil, err
	}
	dg, err := newDigests()
	if err != nil {
		return nil, err
	}
	d, err := openDiag()
	if err != nil {
		return nil, err
	}
	return &Attestor{workload: o.Workload, tree: t, diag: d, digests: dg}, nil
}

// Enter makes the Attestor look connections up in the network namespace that
// sock, a socket of NETLINK_SOCK_DIAG, was opened in, instead of its own. The
// Attestor has a copy of its own: sock stays the caller's.
func (a *Attestor) Enter(sock *os.File) error { return a.diag.enter(sock) }

// Close releases the netlink socket; Attest refuses from then on.
func (a *Attestor) Close() error { return a.diag.close() }

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %w", identity.ErrUnattested, fmt.Errorf(format, args...))
}

// Attest implements [identity.Attestor] for TCP connections from this machine
// and for Unix connections, also when wrapped (NetConn).
func (a *Attestor) Attest(ctx context.Context, conn net.Conn) (identity.Caller, error) {
	for {
		w, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = w.NetConn()
	}
	if err := ctx.Err(); err != nil {
		return identity.Caller{}, refuse("look up the peer: %w", err)
	}
	var p identity.Process
	var err error
	switch c := conn.(type) {
	case *net.UnixConn:
		p, err = a.unix(c)
	default:
		p, err = a.tcp(c)
	}
	if err != nil {
		return identity.Caller{}, err
	}
	return identity.Caller{Workload: a.workload, Process: p}, nil
}

// Held implements [identity.Holder] for TCP connections from this machine: a
// socket that is only half-closed keeps its inode, one that was closed has none.
func (a *Attestor) Held(conn net.Conn) bool {
	local, lok := conn.LocalAddr().(*net.TCPAddr)
	remote, rok := conn.RemoteAddr().(*net.TCPAddr)
	if !lok || !rok {
		return false
	}
	_, err := a.diag.lookup(plain(remote.AddrPort()), plain(local.AddrPort()))
	return err == nil
}

// tcp finds the process behind the other end of a TCP connection.
func (a *Attestor) tcp(c net.Conn) (identity.Process, error) {
	local, lok := c.LocalAddr().(*net.TCPAddr)
	remote, rok := c.RemoteAddr().(*net.TCPAddr)
	if !lok || !rok {
		return identity.Process{}, refuse("%T is neither a TCP nor a Unix connection", c)
	}
	s, err := a.diag.lookup(plain(remote.AddrPort()), plain(local.AddrPort()))
	if err != nil {
		return identity.Process{}, refuse("look up %s: %w", remote, err)
	}
	if a.tree.cgroup != "" && s.hasCgroup && !a.tree.ownsCgroup(s.cgroup) {
		return identity.Process{}, refuse("%s belongs to cgroup %d, not to the run", remote, s.cgroup)
	}
	return a.owner(s)
}

// plain drops v4-in-v6 and the zone, as the kernel's answer has neither.
func plain(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// owner finds who in the tree holds s.
func (a *Attestor) owner(s socket) (identity.Process, error) {
	want := "socket:[" + strconv.FormatUint(uint64(s.inode), 10) + "]"
	pids := a.tree.pids()
	at, ok := a.find(pids, want)
	if !ok {
		return identity.Process{}, refuse("no process of the run holds socket %d", s.inode)
	}
	// A fork shares the descriptor under the same number. The lowest pid that
	// has it stands for all.
	pid, shared := at.pid, false
	for _, other := range pids {
		if other != at.pid && holds(other, at.fd, want) {
			pid, shared = min(pid, other), true
		}
	}
	p, err := a.describe(pid, func() bool { return holdsAny(pid, at.fd, want) })
	if err != nil {
		return identity.Process{}, err
	}
	p.UID, p.CgroupID, p.Shared = s.uid, s.cgroup, shared
	a.hint.Store(&at)
	return p, nil
}

// describe reads what is to be known of a process in the tree. It is pinned
// by a pidfd meanwhile: as long as that one lives, the number is its own.
func (a *Attestor) describe(pid int, still func() bool) (identity.Process, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return identity.Process{}, refuse("process %d is gone: %w", pid, err)
	}
	defer func() { _ = unix.Close(pidfd) }()
	if !still() || !a.tree.has(pid) {
		return identity.Process{}, refuse("process %d is gone", pid)
	}
	link := "/proc/" + strconv.Itoa(pid) + "/exe"
	exe, err := os.Readlink(link)
	if err != nil {
		return identity.Process{}, refuse("read the executable of process %d: %w", pid, err)
	}
	digest, err := a.digests.of(link)
	if err != nil {
		return identity.Process{}, refuse("process %d: %w", pid, err)
	}
	if err := unix.PidfdSendSignal(pidfd, 0, nil, 0); err != nil {
		return identity.Process{}, refuse("process %d ended meanwhile: %w", pid, err)
	}
	return identity.Process{PID: pid, Exe: exe, Digest: digest}, nil
}

// find looks for a descriptor that shows want: first around where the last one
// was, then everywhere, then in threads that have descriptors of their own.
func (a *Attestor) find(pids []int, want string) (place, bool) {
	if h := a.hint.Load(); h != nil && slices.Contains(pids, h.pid) {
		for _, fd := range [...]int{h.fd, h.fd + 1, h.fd + 2, h.fd - 1} {
			if fd >= 0 && holds(h.pid, fd, want) {
				return place{h.pid, fd}, true
			}
		}
		if fd, ok := scan("/proc/"+strconv.Itoa(h.pid)+"/fd", want); ok {
			return place{h.pid, fd}, true
		}
	}
	for _, pid := range pids {
		if fd, ok := scan("/proc/"+strconv.Itoa(pid)+"/fd", want); ok {
			return place{pid, fd}, true
		}
	}
	for _, pid := range pids {
		if fd, ok := scanThreads(pid, want); ok {
			return place{pid, fd}, true
		}
	}
	return place{}, false
}

func scanThreads(pid int, want string) (int, bool) {
	dir := "/proc/" + strconv.Itoa(pid) + "/task"
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return 0, false
	}
	for _, t := range tasks {
		if fd, ok := scan(dir+"/"+t.Name()+"/fd", want); ok {
			return fd, true
		}
	}
	return 0, false
}

// scan goes through a folder of descriptors, the newest first.
func scan(dir, want string) (int, bool) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, false
	}
	defer func() { _ = f.Close() }()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return 0, false
	}
	var buf [64]byte
	for _, name := range slices.Backward(names) {
		n, err := unix.Readlinkat(int(f.Fd()), name, buf[:])
		if err == nil && string(buf[:n]) == want {
			fd, err := strconv.Atoi(name)
			return fd, err == nil
		}
	}
	return 0, false
}

// holds reports whether descriptor fd of process pid shows want.
func holds(pid, fd int, want string) bool {
	var buf [64]byte
	n, err := unix.Readlink("/proc/"+strconv.Itoa(pid)+"/fd/"+strconv.Itoa(fd), buf[:])
	return err == nil && string(buf[:n]) == want
}

// holdsAny is holds for the process or any of its threads.
func holdsAny(pid, fd int, want string) bool {
	if holds(pid, fd, want) {
		return true
	}
	_, ok := scanThreads(pid, want)
	return ok
}

// unix reads who connected from the socket itself: SO_PEERCRED, pinned by
// SO_PEERPIDFD (Linux 6.5) against a pid used again.
func (a *Attestor) unix(c *net.UnixConn) (identity.Process, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return identity.Process{}, refuse("read peer credentials: %w", err)
	}
	var cred *unix.Ucred
	pidfd := -1
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if credErr == nil {
			pidfd, credErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
			if errors.Is(credErr, unix.ENOPROTOOPT) {
				pidfd, credErr = unix.PidfdOpen(int(cred.Pid), 0)
			}
		}
	})
	if err = errors.Join(err, credErr); err != nil {
		return identity.Process{}, refuse("read peer credentials: %w", err)
	}
	defer func() { _ = unix.Close(pidfd) }()
	pid := int(cred.Pid)
	p, err := a.describe(pid, func() bool {
		return unix.PidfdSendSignal(pidfd, syscall.Signal(0), nil, 0) == nil
	})
	if err != nil {
		return identity.Process{}, err
	}
	p.UID = cred.Uid
	return p, nil
}
