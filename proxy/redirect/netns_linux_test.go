package redirect_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The tests' pod: one address of each family and a default route by an
// interface whose other end nobody answers at.
const (
	podUID    = 1000
	podIface  = "eth0"
	podAddr4  = "10.5.0.2"
	podAddr6  = "fd00:5::2"
	otherEnd  = "eth0-peer"
	inPodEnv  = "ATTACHE_TEST_IN_POD"
	patience  = 10 * time.Second // for what must happen; never waited for in full
	silence   = 2 * time.Second  // for what must not
	outside4  = "203.0.113.9"
	outside6  = "2001:db8:1::9"
	listener4 = "127.0.0.1:0"
	listener6 = "[::1]:0"
)

// inPod runs the calling test in new user and network namespaces, by starting
// the test binary again, and tells whether this is that run: the caller
// returns if not. The user is podUID there, which any user may map, and has
// the capabilities of an init container, of tcpdump and of a web server.
func inPod(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inPodEnv) != "" {
		setUpPod(t)
		return true
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	// The race detector sleeps a second at exit otherwise.
	cmd.Env = []string{inPodEnv + "=1", "PATH=/usr/bin:/bin", "GORACE=atexit_sleep_ms=0"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: podUID, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: podUID, HostID: os.Getegid(), Size: 1}},
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_NET_BIND_SERVICE},
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if cmd.Process == nil {
		forbidden(t, err)
	}
	if strings.Contains(out.String(), "--- SKIP: "+t.Name()+" ") {
		forbidden(t, unix.EPERM) // namespaces without capabilities, as AppArmor gives
	}
	if err != nil || !strings.Contains(out.String(), "--- PASS: "+t.Name()+" ") {
		t.Fatalf("in the pod's namespaces: %v\n%s", err, out.String())
	}
	t.Logf("%s", out.Bytes())
	return false
}

// forbidden skips the test where this kernel gives no user namespaces, and
// fails it where it does.
func forbidden(t *testing.T, err error) {
	t.Helper()
	denied := errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL)
	if !denied || os.Getenv("ATTACHE_REQUIRE_SERVERS") == "1" && allowed() {
		t.Fatalf("start in user and network namespaces: %v", err)
	}
	t.Skipf("SKIPPED, NOTHING OF THE REDIRECT IS TESTED: user namespaces are forbidden here: %v", err)
}

// allowed reads the switches by which administrators forbid them. What the
// seccomp filter of a container forbids cannot be told from what it allows.
func allowed() bool {
	if b, err := os.ReadFile("/proc/self/status"); err != nil || strings.Contains(string(b), "\nSeccomp:\t2\n") {
		return false
	}
	for path, off := range map[string]string{
		"/proc/sys/user/max_user_namespaces":                     "0",
		"/proc/sys/user/max_net_namespaces":                      "0",
		"/proc/sys/kernel/unprivileged_userns_clone":             "0",
		"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1",
	} {
		if b, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(b)) == off {
			return false
		}
	}
	return true
}

// setUpPod gives the network namespace what a pod has.
func setUpPod(t *testing.T) {
	t.Helper()
	const add = netlink.Create | netlink.Excl
	ask(t, "add interface", unix.RTM_NEWLINK, add, vethMessage())
	link(t, "lo", unix.IFF_UP)
	for _, name := range []string{podIface, otherEnd} {
		link(t, name, unix.IFF_UP|unix.IFF_NOARP) // packets leave though nobody answers for addresses
	}
	ifc := iface(t, podIface)
	for _, p := range []string{podAddr4 + "/24", podAddr6 + "/64"} {
		ask(t, "add address "+p, unix.RTM_NEWADDR, add, addrMessage(netip.MustParsePrefix(p), ifc))
	}
	for _, fam := range []byte{unix.AF_INET, unix.AF_INET6} {
		ask(t, "add default route", unix.RTM_NEWROUTE, add, routeMessage(fam, ifc))
	}
}

// link sets the flags up and noarp of an interface.
func link(t *testing.T, name string, flags uint32) {
	t.Helper()
	ask(t, "set "+name, unix.RTM_SETLINK, 0, linkMessage(iface(t, name), flags, unix.IFF_UP|unix.IFF_NOARP))
}

func deleteRoute(t *testing.T, fam byte) {
	t.Helper()
	ask(t, "delete default route", unix.RTM_DELROUTE, 0, routeMessage(fam, iface(t, podIface)))
}

// beHost makes the pod answer for an address, without a rule.
func beHost(t *testing.T, prefix string) {
	t.Helper()
	ask(t, "add address "+prefix, unix.RTM_NEWADDR, netlink.Create|netlink.Excl, addrMessage(netip.MustParsePrefix(prefix), iface(t, "lo")))
}

func deleteAddress(t *testing.T, prefix string) {
	t.Helper()
	ask(t, "delete address", unix.RTM_DELADDR, 0, addrMessage(netip.MustParsePrefix(prefix), iface(t, podIface)))
}

func deleteInterface(t *testing.T) {
	t.Helper()
	ask(t, "delete interface", unix.RTM_DELLINK, 0, linkMessage(iface(t, podIface), 0, 0))
}

func iface(t *testing.T, name string) uint32 {
	t.Helper()
	ifc, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(ifc.Index)
}

// ask sends one rtnetlink(7) request.
func ask(t *testing.T, what string, typ uint16, flags netlink.HeaderFlags, data []byte) {
	t.Helper()
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	h := netlink.Header{Type: netlink.HeaderType(typ), Flags: netlink.Request | netlink.Acknowledge | flags}
	_, err = c.Execute(netlink.Message{Header: h, Data: data})
	if errors.Is(err, unix.EPERM) {
		t.Skipf("%s: %v", what, err) // the outer run decides what that means
	}
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func attrs(as ...netlink.Attribute) []byte {
	b, err := netlink.MarshalAttributes(as)
	if err != nil {
		panic(err)
	}
	return b
}

func cstring(s string) []byte { return append([]byte(s), 0) }

// ifinfomsg of linux/rtnetlink.h: family, pad, type, index, flags, change.
func linkMessage(index, flags, change uint32) []byte {
	b := make([]byte, 4, 16)
	b = binary.NativeEndian.AppendUint32(b, index)
	b = binary.NativeEndian.AppendUint32(b, flags)
	return binary.NativeEndian.AppendUint32(b, change)
}

// vethMessage asks for a pair: dummy interfaces are not in every kernel.
func vethMessage() []byte {
	peer := append(linkMessage(0, 0, 0), attrs(netlink.Attribute{Type: unix.IFLA_IFNAME, Data: cstring(otherEnd)})...)
	const vethInfoPeer = 1 // VETH_INFO_PEER of linux/veth.h
	info := attrs(
		netlink.Attribute{Type: unix.IFLA_INFO_KIND, Data: cstring("veth")},
		netlink.Attribute{Type: unix.NLA_F_NESTED | unix.IFLA_INFO_DATA, Data: attrs(
			netlink.Attribute{Type: unix.NLA_F_NESTED | vethInfoPeer, Data: peer})})
	return append(linkMessage(0, 0, 0), attrs(
		netlink.Attribute{Type: unix.IFLA_IFNAME, Data: cstring(podIface)},
		netlink.Attribute{Type: unix.NLA_F_NESTED | unix.IFLA_LINKINFO, Data: info})...)
}

func addrMessage(p netip.Prefix, index uint32) []byte {
	fam := byte(unix.AF_INET)
	if p.Addr().Is6() {
		fam = unix.AF_INET6
	}
	b := []byte{fam, byte(p.Bits()), unix.IFA_F_NODAD, 0}
	b = binary.NativeEndian.AppendUint32(b, index)
	return append(b, attrs(
		netlink.Attribute{Type: unix.IFA_LOCAL, Data: p.Addr().AsSlice()},
		netlink.Attribute{Type: unix.IFA_ADDRESS, Data: p.Addr().AsSlice()})...)
}

func routeMessage(fam byte, index uint32) []byte {
	b := []byte{fam, 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_LINK, unix.RTN_UNICAST, 0, 0, 0, 0}
	return append(b, attrs(netlink.Attribute{Type: unix.RTA_OIF, Data: binary.NativeEndian.AppendUint32(nil, index)})...)
}

// packet is what left the pod: protocol, destination, and port if it has one.
type packet struct {
	proto byte
	to    netip.AddrPort
}

func (p packet) String() string { return fmt.Sprintf("protocol %d to %v", p.proto, p.to) }

// wire records what leaves by the pod's interface.
type wire struct {
	mu   sync.Mutex
	seen []packet
	news chan struct{} // closed and replaced at each packet

	markers int
}

// sniff records until the test ends.
func sniff(t *testing.T) *wire {
	t.Helper()
	all := network16(unix.ETH_P_ALL)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: int(iface(t, podIface))}); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "wire")
	w := &wire{news: make(chan struct{})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, err := f.Read(buf)
			if err != nil {
				return
			}
			w.add(buf[:n])
		}
	}()
	t.Cleanup(func() { _ = f.Close(); <-done })
	return w
}

func (w *wire) add(b []byte) {
	p, ok := parse(b)
	if !ok {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = append(w.seen, p)
	close(w.news)
	w.news = make(chan struct{})
}

// parse reads an IP packet without options.
func parse(b []byte) (packet, bool) {
	var p packet
	var to netip.Addr
	switch {
	case len(b) >= 24 && b[0] == 0x45:
		p.proto, to, b = b[9], netip.AddrFrom4([4]byte(b[16:20])), b[20:]
	case len(b) >= 44 && b[0]>>4 == 6:
		p.proto, to, b = b[6], netip.AddrFrom16([16]byte(b[24:40])), b[40:]
	default:
		return p, false
	}
	var port uint16
	if p.proto == unix.IPPROTO_TCP || p.proto == unix.IPPROTO_UDP {
		port = binary.BigEndian.Uint16(b[2:4])
	}
	p.to = netip.AddrPortFrom(to, port)
	return p, true
}

// left tells whether p has left so far.
func (w *wire) left(p packet) (bool, chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.seen {
		if s == p {
			return true, nil
		}
	}
	return false, w.news
}

// forget makes as if nothing had left so far.
func (w *wire) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = nil
}

// wait waits until p has left.
func (w *wire) wait(t *testing.T, p packet) {
	t.Helper()
	late := time.After(patience)
	for {
		ok, news := w.left(p)
		if ok {
			return
		}
		select {
		case <-news:
		case <-late:
			t.Fatalf("no packet with %v has left; left have %v", p, w.seen)
		}
	}
}

// flush waits until the wire has shown all that was sent before: a packet put
// on it beneath every rule, and packets keep their order.
func (w *wire) flush(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	w.markers++
	to := netip.AddrFrom4([4]byte{198, 18, byte(w.markers >> 8), byte(w.markers)})
	w.mu.Unlock()
	const experimental = 253 // RFC 3692
	b := make([]byte, 24)
	b[0], b[3], b[8], b[9] = 0x45, byte(len(b)), 1, experimental
	copy(b[16:], to.AsSlice())
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Protocol: network16(unix.ETH_P_IP), Ifindex: int(iface(t, podIface)), Halen: 6}); err != nil {
		t.Fatalf("marker: %v", err)
	}
	w.wait(t, packet{experimental, netip.AddrPortFrom(to, 0)})
}

// network16 is htons.
func network16(v uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v))
}

// datagram sends one, twice: an ICMP error is told at the second.
func datagram(to netip.AddrPort) error {
	c, err := net.Dial("udp", to.String())
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	for range 2 {
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
	}
	return nil
}

// dropNetAdmin takes the capability from the test's thread, and ends the
// thread with the test.
func dropNetAdmin(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capset(&h, &d[0]); err != nil {
		t.Fatal(err)
	}
}
