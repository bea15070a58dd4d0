package process

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Sizes and numbers of linux/inet_diag.h and linux/tcp_states.h.
const (
	sizeNlHeader = 16
	sizeRequest  = 56 // struct inet_diag_req_v2
	sizeMessage  = 72 // struct inet_diag_msg
	sizeID       = 48 // struct inet_diag_sockid

	attrCgroupID = 21 // INET_DIAG_CGROUP_ID

	stateTimeWait   = 6
	stateListen     = 10
	stateNewSynRecv = 12
)

// errGone says that the peer's socket was closed before it was looked up.
var errGone = errors.New("the socket is gone")

// socket is what sock_diag tells of one end of a connection.
type socket struct {
	src, dst  netip.AddrPort
	state     uint8
	uid       uint32
	inode     uint32
	cgroup    uint64
	hasCgroup bool
}

// diag is a netlink socket for sock_diag. The kernel answers within the send,
// so one at a time is no loss.
type diag struct {
	mu  sync.Mutex // guards the rest
	fd  int
	seq uint32
	buf [4096]byte
}

func openDiag() (*diag, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("open sock_diag: %w", err)
	}
	if err := connectDiag(fd); err != nil {
		return nil, err
	}
	return &diag{fd: fd}, nil
}

// connectDiag readies fd, and closes it where it cannot.
func connectDiag(fd int) error {
	// Never reached by a kernel that works; a hang would hold every accept.
	err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2})
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	if err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("connect sock_diag: %w", err)
	}
	return nil
}

// enter asks on a copy of sock from now on.
func (d *diag) enter(sock *os.File) error {
	raw, err := sock.SyscallConn()
	if err != nil {
		return fmt.Errorf("enter a network namespace: %w", err)
	}
	fd := -1
	var dupErr error
	if err := raw.Control(func(s uintptr) { fd, dupErr = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return fmt.Errorf("enter a network namespace: %w", err)
	}
	if dupErr != nil {
		return fmt.Errorf("enter a network namespace: %w", dupErr)
	}
	if proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || proto != unix.NETLINK_SOCK_DIAG {
		_ = unix.Close(fd)
		return errors.Join(errors.New("enter a network namespace: not a socket of sock_diag"), err)
	}
	if err := connectDiag(fd); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fd < 0 {
		_ = unix.Close(fd)
		return os.ErrClosed
	}
	_ = unix.Close(d.fd)
	d.fd = fd
	return nil
}

func (d *diag) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fd < 0 {
		return nil
	}
	err := unix.Close(d.fd)
	d.fd = -1
	return err
}

// lookup finds the TCP socket whose own address is src and whose peer is dst.
// Errors match errGone if there is none.
func (d *diag) lookup(src, dst netip.AddrPort) (socket, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fd < 0 {
		return socket{}, os.ErrClosed
	}
	d.seq++
	req := request(src, dst, d.seq)
	if _, err := unix.Write(d.fd, req); err != nil {
		return socket{}, fmt.Errorf("ask sock_diag: %w", err)
	}
	for {
		n, err := unix.Read(d.fd, d.buf[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return socket{}, fmt.Errorf("read sock_diag: %w", err)
		}
		s, seq, err := parse(d.buf[:n])
		if seq != d.seq { // the late answer to a question that timed out
			continue
		}
		if err != nil {
			return socket{}, err
		}
		return s, s.is(src, dst)
	}
}

// is checks that s is a connection from src to dst that a process still holds.
// Where the connection is gone the kernel answers with whatever listens on its
// port, and after close it keeps sockets without an inode for a while.
func (s socket) is(src, dst netip.AddrPort) error {
	switch {
	case s.state == stateListen || s.state == stateTimeWait || s.state == stateNewSynRecv || s.inode == 0:
		return errGone
	case s.src != src || s.dst != dst:
		return errGone
	}
	return nil
}

// request builds an exact look-up: no NLM_F_DUMP.
func request(src, dst netip.AddrPort, seq uint32) []byte {
	b := make([]byte, sizeNlHeader+sizeRequest)
	ne := binary.NativeEndian
	ne.PutUint32(b[0:], uint32(len(b)))
	ne.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
	ne.PutUint16(b[6:], unix.NLM_F_REQUEST)
	ne.PutUint32(b[8:], seq)
	r := b[sizeNlHeader:]
	r[0] = unix.AF_INET
	if src.Addr().Is6() {
		r[0] = unix.AF_INET6
	}
	r[1] = unix.IPPROTO_TCP
	ne.PutUint32(r[4:], ^uint32(0)) // any state
	id := r[8:]
	binary.BigEndian.PutUint16(id[0:], src.Port())
	binary.BigEndian.PutUint16(id[2:], dst.Port())
	copy(id[4:20], src.Addr().AsSlice())
	copy(id[20:36], dst.Addr().AsSlice())
	ne.PutUint64(id[40:], ^uint64(0)) // INET_DIAG_NOCOOKIE
	return b
}

// parse reads one netlink answer and its sequence number.
func parse(b []byte) (socket, uint32, error) {
	if len(b) < sizeNlHeader {
		return socket{}, 0, errors.New("sock_diag: short message")
	}
	ne := binary.NativeEndian
	size, kind, seq := ne.Uint32(b), ne.Uint16(b[4:]), ne.Uint32(b[8:])
	if size < sizeNlHeader || uint64(size) > uint64(len(b)) {
		return socket{}, seq, errors.New("sock_diag: wrong message length")
	}
	b = b[sizeNlHeader:size]
	switch kind {
	case unix.NLMSG_ERROR:
		if len(b) < 4 {
			return socket{}, seq, errors.New("sock_diag: short error")
		}
		if e := unix.Errno(-int32(ne.Uint32(b))); e == unix.ENOENT || e == unix.ESTALE {
			return socket{}, seq, errGone
		} else {
			return socket{}, seq, fmt.Errorf("sock_diag: %w", e)
		}
	case unix.SOCK_DIAG_BY_FAMILY:
		s, err := parseMessage(b)
		return s, seq, err
	default:
		return socket{}, seq, fmt.Errorf("sock_diag: message of type %d", kind)
	}
}

func parseMessage(b []byte) (socket, error) {
	if len(b) < sizeMessage {
		return socket{}, errors.New("sock_diag: short answer")
	}
	ne := binary.NativeEndian
	id, rest := b[4:4+sizeID], b[4+sizeID:]
	addr := func(a []byte) netip.Addr {
		if b[0] == unix.AF_INET {
			return netip.AddrFrom4([4]byte(a[:4]))
		}
		return netip.AddrFrom16([16]byte(a[:16])).Unmap()
	}
	s := socket{
		state: b[1],
		src:   netip.AddrPortFrom(addr(id[4:20]), binary.BigEndian.Uint16(id[0:])),
		dst:   netip.AddrPortFrom(addr(id[20:36]), binary.BigEndian.Uint16(id[2:])),
		uid:   ne.Uint32(rest[12:]),
		inode: ne.Uint32(rest[16:]),
	}
	for a := b[sizeMessage:]; len(a) >= 4; {
		n, kind := int(ne.Uint16(a)), ne.Uint16(a[2:])
		if n < 4 || n > len(a) {
			return socket{}, errors.New("sock_diag: wrong attribute length")
		}
		if kind == attrCgroupID && n == 12 {
			s.cgroup, s.hasCgroup = ne.Uint64(a[4:]), true
		}
		a = a[min((n+3)&^3, len(a)):]
	}
	return s, nil
}
