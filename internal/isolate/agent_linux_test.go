package isolate_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// agentVar makes the test binary an agent: its arguments are attempts, each
// followed by what it is aimed at. It prints a line for each.
const agentVar = "ISOLATE_TEST_AGENT"

// attempts return what came back, or the error.
var attempts = map[string]func(string) (string, error){ //nolint:gochecknoglobals // a table
	"tcp":      tcp,
	"udp":      udp,
	"sendto":   sendto,
	"unix":     unixSocket,
	"family":   family,
	"raw":      raw,
	"setns":    setns,
	"caps":     caps,
	"nested":   nested,
	"meddle":   meddle,
	"resolve":  resolve,
	"many":     many,
	"ownlocal": ownLocal,
	"netns":    func(string) (string, error) { return os.Readlink("/proc/self/ns/net") },
	"resolv":   func(string) (string, error) { b, err := os.ReadFile("/etc/resolv.conf"); return string(b), err },
}

func agent() {
	for args := os.Args[1:]; len(args) > 1; args = args[2:] {
		f, ok := attempts[args[0]]
		if !ok {
			fmt.Println("unknown attempt", args[0])
			os.Exit(3)
		}
		result := "reached: "
		out, err := f(args[1])
		if err != nil {
			result, out = "failed: ", err.Error()
		}
		fmt.Println(result + strings.ReplaceAll(strings.TrimSpace(out), "\n", "|"))
	}
}

// shortly bounds what must be refused at once.
const shortly = 10 * time.Second

func tcp(addr string) (string, error) {
	c, err := net.DialTimeout("tcp", addr, shortly)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(shortly))
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return strings.TrimSpace(string(b)), err
}

// udp sends unconnected, then connected, and waits for an answer or an error.
func udp(addr string) (string, error) {
	to, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return "", err
	}
	pc, err := net.ListenUDP("udp", nil)
	if err != nil {
		return "", err
	}
	defer pc.Close()
	if _, err := pc.WriteTo([]byte("hello"), to); err != nil {
		return "", err
	}
	c, err := net.DialUDP("udp", nil, to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(shortly))
	if _, err := c.Write([]byte("hello")); err != nil {
		return "", err
	}
	b := make([]byte, 64)
	n, err := c.Read(b)
	return string(b[:n]), err
}

func sendto(addr string) (string, error) {
	to, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return "", err
	}
	pc, err := net.ListenUDP("udp", nil)
	if err != nil {
		return "", err
	}
	defer pc.Close()
	_, err = pc.WriteTo([]byte("hello"), to)
	return "sent", err
}

func unixSocket(path string) (string, error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return "", err
	}
	defer c.Close()
	b := make([]byte, 64)
	n, err := c.Read(b)
	return string(b[:n]), err
}

func family(number string) (string, error) {
	n, err := strconv.Atoi(number)
	if err != nil {
		return "", err
	}
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_SEQPACKET, unix.SOCK_RAW} {
		fd, err := unix.Socket(n, kind, 0)
		if err == nil {
			_ = unix.Close(fd)
			return "a socket of type " + strconv.Itoa(kind), nil
		}
		if !errors.Is(err, unix.EAFNOSUPPORT) {
			return "", fmt.Errorf("type %d: %w", kind, err)
		}
	}
	return "", unix.EAFNOSUPPORT
}

func raw(string) (string, error) {
	for _, f := range []int{unix.AF_INET, unix.AF_INET6} {
		if fd, err := unix.Socket(f, unix.SOCK_RAW, unix.IPPROTO_ICMP); err == nil {
			_ = unix.Close(fd)
			return "a raw socket", nil
		}
	}
	return "", unix.EPERM
}

// setns tries to enter another process's network.
func setns(pid string) (string, error) {
	fd, err := unix.Open("/proc/"+pid+"/ns/net", unix.O_RDONLY, 0)
	if err == nil {
		defer unix.Close(fd)
		err = unix.Setns(fd, unix.CLONE_NEWNET)
	}
	if err == nil {
		return "the network of " + pid, nil
	}
	n, aerr := strconv.Atoi(pid)
	if aerr != nil {
		return "", aerr
	}
	pfd, perr := unix.PidfdOpen(n, 0)
	if perr != nil {
		return "", errors.Join(err, perr)
	}
	defer unix.Close(pfd)
	if perr := unix.Setns(pfd, unix.CLONE_NEWNET); perr != nil {
		return "", errors.Join(err, perr)
	}
	return "the network of " + pid + " by pidfd", nil
}

func caps(string) (string, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return "", err
	}
	for l := range strings.Lines(string(b)) {
		if hex, ok := strings.CutPrefix(l, "CapEff:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			if err != nil {
				return "", err
			}
			if bad := n & (1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_SYS_PTRACE); bad != 0 {
				return fmt.Sprintf("capabilities %x", bad), nil
			}
			return "", errors.New("no capability over a network")
		}
	}
	return "", errors.New("no CapEff")
}

// nested meddles from a user namespace below: there the agent has every
// capability, but none over the network namespace it is still in.
func nested(string) (string, error) {
	cmd := exec.Command("/proc/self/exe", "meddle", "")
	cmd.Env = os.Environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_SYS_ADMIN}}
	out, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return "", fmt.Errorf("%w %s", err, text)
	}
	if s, ok := strings.CutPrefix(text, "reached: "); ok {
		return s, nil
	}
	return "", errors.New(text)
}

// meddle tries everything that would change the namespace's network.
func meddle(string) (string, error) {
	var done []string
	try := func(what string, err error) {
		if err == nil {
			done = append(done, what)
		}
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	try("transparent socket", unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1))
	try("mark", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 1))
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return "", err
	}
	defer c.Close()
	down := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(down[4:], 1)
	binary.NativeEndian.PutUint32(down[12:], unix.IFF_UP)
	_, err = c.Execute(netlink.Message{Header: netlink.Header{Type: unix.RTM_NEWLINK, Flags: netlink.Request | netlink.Acknowledge}, Data: down})
	try("set lo down", err)
	route := make([]byte, unix.SizeofRtMsg)
	route[0], route[4], route[7] = unix.AF_INET, unix.RT_TABLE_LOCAL, unix.RTN_LOCAL
	_, err = c.Execute(netlink.Message{Header: netlink.Header{Type: unix.RTM_DELROUTE, Flags: netlink.Request | netlink.Acknowledge}, Data: route})
	try("delete the route", err)
	nft, err := nftables.New()
	if err == nil {
		nft.FlushRuleset()
		err = nft.Flush()
	}
	try("flush the rules", err)
	for _, f := range []string{"/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/net/ipv4/ip_forward"} {
		try("write "+f, os.WriteFile(f, []byte("1"), 0))
	}
	if len(done) > 0 {
		return strings.Join(done, ", "), nil
	}
	return "", errors.New("everything is refused")
}

// resolve asks a server, given as network!address!name, in Go.
func resolve(what string) (string, error) {
	f := strings.Split(what, "!")
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, f[0], f[1])
	}}
	ctx, cancel := context.WithTimeout(context.Background(), shortly)
	defer cancel()
	addrs, err := r.LookupNetIP(ctx, "ip", f[2])
	if err != nil {
		return "", err
	}
	names, err := r.LookupAddr(ctx, addrs[0].String())
	return fmt.Sprint(addrs, names), err
}

// many makes n connections at one time, each to another address, and counts
// those that came to where they were meant to and were told apart.
func many(n string) (string, error) {
	count, err := strconv.Atoi(n)
	if err != nil {
		return "", err
	}
	conns := make([]net.Conn, count)
	want := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), 443)
	}
	// All from one port: whoever translated addresses would have to change it
	// for all but the first.
	d := net.Dialer{Timeout: shortly, LocalAddr: &net.TCPAddr{IP: net.IPv4(198, 18, 0, 1), Port: 40000}, Control: func(_, _ string, c syscall.RawConn) error {
		var opt error
		err := c.Control(func(fd uintptr) { opt = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		return errors.Join(err, opt)
	}}
	for i := range conns {
		if conns[i], err = d.Dial("tcp", want(i).String()); err != nil {
			return "", err
		}
		defer conns[i].Close()
	}
	var good sync.Map
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() {
			_ = c.SetDeadline(time.Now().Add(patience))
			_, _ = io.WriteString(c, "hello\n")
			b, _ := io.ReadAll(c)
			if s := string(b); strings.Contains(s, "orig="+want(i).String()+" ") && strings.Contains(s, "attest=<nil>") {
				good.Store(i, true)
			}
		})
	}
	wg.Wait()
	sum := 0
	good.Range(func(any, any) bool { sum++; return true })
	return strconv.Itoa(sum), nil
}

// ownLocal serves on every address inside and connects to itself, as agents'
// tools do.
func ownLocal(string) (string, error) {
	ln, err := net.Listen("tcp", ":18080")
	if err != nil {
		return "", err
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "mine")
			_ = c.Close()
		}
	}()
	var out []string
	for _, a := range []string{"127.0.0.1:18080", "127.0.0.2:18080", "198.18.0.1:18080", "[::1]:18080"} {
		c, err := net.DialTimeout("tcp", a, shortly)
		if err != nil {
			return "", err
		}
		b, err := io.ReadAll(c)
		_ = c.Close()
		if err != nil {
			return "", err
		}
		out = append(out, string(b))
	}
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	if _, err := pc.WriteTo([]byte("mine"), pc.LocalAddr()); err != nil {
		return "", err
	}
	b := make([]byte, 16)
	_ = pc.SetDeadline(time.Now().Add(shortly))
	n, _, err := pc.ReadFrom(b)
	return strings.Join(append(out, string(b[:n])), " "), err
}
