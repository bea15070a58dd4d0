package isolate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Kinds of sockets, as the header of the message that passes them says.
const (
	kindTransparent = "transparent"
	kindDoor        = "door"
	kindPackets     = "dns-udp"
	kindStreams     = "dns-tcp"
	kindDiag        = "sock-diag"
)

// Sockets are what was opened inside. Their owner closes them; the namespace
// ends with the last process in it and the last of them.
type Sockets struct {
	Transparent []net.Listener // one a family; accepted connections have the original destination as LocalAddr
	Doors       []net.Listener // in the order of Spec.Ports
	packets     []*net.UDPConn
	streams     []net.Listener
	// Diag asks sock_diag inside, see [process.Attestor.Enter].
	Diag *os.File
	// IPv6 tells whether the namespace has it.
	IPv6 bool
}

// opened is a socket on its way.
type opened struct {
	kind string
	file *os.File
}

// Build sets up the network namespace of the calling process, which must be new
// and needs CAP_NET_ADMIN and CAP_NET_BIND_SERVICE over it, and opens the
// sockets that s wants.
func Build(s Spec) ([]*os.File, []string, error) {
	if len(s.Ports) > maxDoors {
		return nil, nil, fmt.Errorf("isolate: %d doors; at most %d", len(s.Ports), maxDoors)
	}
	six, err := setUp()
	if err != nil {
		return nil, nil, err
	}
	if err := install(six); err != nil {
		return nil, nil, err
	}
	list, err := openAll(s, six)
	var files []*os.File
	var kinds []string
	for _, o := range list {
		files, kinds = append(files, o.file), append(kinds, o.kind)
	}
	return files, kinds, err
}

func openAll(s Spec, six bool) ([]opened, error) {
	var out []opened
	var failed error
	add := func(kind string, f *os.File, err error) {
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("isolate: open %s socket: %w", kind, err))
			return
		}
		out = append(out, opened{kind, f})
	}
	port := strconv.Itoa(TransparentPort)
	f, err := listen("tcp4", "127.0.0.1:"+port, transparent)
	add(kindTransparent, f, err)
	f, err = listen("tcp4", "0.0.0.0:53", nil)
	add(kindStreams, f, err)
	f, err = listenUDP("udp4", "0.0.0.0:53")
	add(kindPackets, f, err)
	if six {
		f, err = listen("tcp6", "[::1]:"+port, transparent)
		add(kindTransparent, f, err)
		f, err = listen("tcp6", "[::]:53", nil)
		add(kindStreams, f, err)
		f, err = listenUDP("udp6", "[::]:53")
		add(kindPackets, f, err)
	}
	for _, p := range s.Ports {
		f, err = listen("tcp4", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), p).String(), nil)
		add(kindDoor, f, err)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	add(kindDiag, os.NewFile(uintptr(fd), kindDiag), err) //nolint:gosec // a descriptor
	return out, failed
}

// transparent lets a socket take what was sent to other addresses, and answer
// from there.
func transparent(network, _ string, raw syscall.RawConn) error {
	level, option := unix.SOL_IP, unix.IP_TRANSPARENT
	if strings.HasSuffix(network, "6") {
		level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	var opt error
	err := raw.Control(func(fd uintptr) { opt = unix.SetsockoptInt(int(fd), level, option, 1) })
	return errors.Join(err, opt)
}

// listen opens a TCP listener.
func listen(network, addr string, control func(string, string, syscall.RawConn) error) (*os.File, error) {
	lc := net.ListenConfig{Control: control}
	// The owner of a connection is looked up among TCP's sockets.
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(context.Background(), network, addr)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ln.Close() }()
	t, ok := ln.(*net.TCPListener)
	if !ok {
		return nil, fmt.Errorf("%T is no TCP listener", ln)
	}
	return t.File()
}

func listenUDP(network, addr string) (*os.File, error) {
	pc, err := (&net.ListenConfig{Control: transparent}).ListenPacket(context.Background(), network, addr)
	if err != nil {
		return nil, err
	}
	defer func() { _ = pc.Close() }()
	u, ok := pc.(*net.UDPConn)
	if !ok {
		return nil, fmt.Errorf("%T is no UDP socket", pc)
	}
	return u.File()
}

// maxHeader bounds the text beside the descriptors.
const maxHeader = 16 << 10

// Pass sends the sockets by sock, a connected Unix socket.
func Pass(sock int, files []*os.File, kinds []string) error {
	head, err := json.Marshal(kinds)
	if err != nil {
		return err
	}
	fds := make([]int, 0, len(files))
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	if err := unix.Sendmsg(sock, head, unix.UnixRights(fds...), nil, 0); err != nil {
		return fmt.Errorf("isolate: pass the sockets: %w", err)
	}
	return nil
}

// Receive is the other end of [Pass]. io.EOF matches if the stage ended
// before it had passed anything.
func Receive(c *net.UnixConn) (*Sockets, error) {
	head, oob := make([]byte, maxHeader), make([]byte, unix.CmsgSpace(4*253))
	n, oobn, flags, _, err := c.ReadMsgUnix(head, oob)
	if err != nil {
		return nil, fmt.Errorf("isolate: receive the sockets: %w", err)
	}
	fds, err := rights(oob[:oobn])
	if err != nil {
		return nil, err
	}
	files := make([]*os.File, 0, len(fds))
	for _, fd := range fds {
		unix.CloseOnExec(fd)
		files = append(files, os.NewFile(uintptr(fd), "isolated")) //nolint:gosec // a descriptor
	}
	defer func() { // the net package has copies of its own
		for _, f := range files {
			if f != nil {
				_ = f.Close()
			}
		}
	}()
	var kinds []string
	if err := json.Unmarshal(head[:n], &kinds); err != nil || len(kinds) != len(files) || flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0 {
		return nil, errors.New("isolate: receive the sockets: not all came; raise the limit of open files (ulimit -n)")
	}
	s := &Sockets{}
	for i, kind := range kinds {
		if err := s.take(kind, files[i]); err != nil {
			_ = s.Close()
			return nil, fmt.Errorf("isolate: take over %s socket: %w", kind, err)
		}
		if kind == kindDiag {
			files[i] = nil
		}
	}
	s.IPv6 = len(s.Transparent) > 1
	return s, nil
}

func rights(oob []byte) ([]int, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("isolate: receive the sockets: %w", err)
	}
	var out []int
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return nil, fmt.Errorf("isolate: receive the sockets: %w", err)
		}
		out = append(out, fds...)
	}
	return out, nil
}

func (s *Sockets) take(kind string, f *os.File) error {
	switch kind {
	case kindDiag:
		s.Diag = f
		return nil
	case kindPackets:
		pc, err := net.FilePacketConn(f)
		if err != nil {
			return err
		}
		u, ok := pc.(*net.UDPConn)
		if !ok {
			return errors.Join(fmt.Errorf("%T is no UDP socket", pc), pc.Close())
		}
		s.packets = append(s.packets, u)
		return nil
	}
	ln, err := net.FileListener(f)
	if err != nil {
		return err
	}
	switch kind {
	case kindTransparent:
		s.Transparent = append(s.Transparent, ln)
	case kindStreams:
		s.streams = append(s.streams, ln)
	case kindDoor:
		s.Doors = append(s.Doors, ln)
	default:
		return errors.Join(errors.New("unknown kind"), ln.Close())
	}
	return nil
}

// Close closes every socket.
func (s *Sockets) Close() error {
	var errs []error
	for _, l := range [][]net.Listener{s.Transparent, s.Doors, s.streams} {
		for _, ln := range l {
			errs = append(errs, ln.Close())
		}
	}
	for _, p := range s.packets {
		errs = append(errs, p.Close())
	}
	if s.Diag != nil {
		errs = append(errs, s.Diag.Close())
	}
	for i, err := range errs { // whoever served a listener has closed it
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
			errs[i] = nil
		}
	}
	return errors.Join(errs...)
}
