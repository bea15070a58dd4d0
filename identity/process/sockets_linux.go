package process

import (
	"errors"
	"net/netip"
)

// Sockets tells of the far ends of TCP connections within this process's
// network namespace, also of processes that it cannot see, such as those of a
// pod's other containers. It is safe for concurrent use.
type Sockets struct{ diag *diag }

// OpenSockets returns Sockets; Close them at the end. It fails where the
// kernel or a sandbox has no sock_diag.
func OpenSockets() (*Sockets, error) {
	d, err := openDiag()
	if err != nil {
		return nil, err
	}
	// A kernel without inet_diag, and some sandboxes, give the socket and
	// refuse the question.
	probe := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 1)
	if _, err := d.lookup(probe, probe); err != nil && !errors.Is(err, errGone) {
		_ = d.close()
		return nil, err
	}
	return &Sockets{diag: d}, nil
}

// Owner is who made the socket with the address src that is connected to dst: a
// user id and, since Linux 5.8, the id of a cgroup (version 2; else 0). ok is false
// when no process holds the socket any more, or the kernel did not tell.
func (s *Sockets) Owner(src, dst netip.AddrPort) (uid uint32, cgroup uint64, ok bool) {
	k, err := s.diag.lookup(plain(src), plain(dst))
	return k.uid, k.cgroup, err == nil
}

// Close releases the netlink socket; nobody is found from then on.
func (s *Sockets) Close() error { return s.diag.close() }
