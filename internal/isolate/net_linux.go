package isolate

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// setUp brings lo up and makes every address local to it ("AnyIP"): what is
// sent to any of them arrives here, and where nobody listens it is refused at
// once instead of timing out. six tells whether the kernel has IPv6.
func setUp() (six bool, err error) {
	lo, err := newLo()
	if err != nil {
		return false, err
	}
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return false, fmt.Errorf("isolate: open netlink: %w", err)
	}
	defer func() { _ = c.Close() }()
	if err := ask(c, "set lo up", unix.RTM_NEWLINK, 0, linkUp(lo.Index)); err != nil {
		return false, err
	}
	// A source address that is not loopback: resolvers and clients take a
	// machine that has only loopback for one without a network (RFC 3493's
	// AI_ADDRCONFIG).
	if err := local(c, lo.Index, own4()); err != nil {
		return false, err
	}
	if err := local(c, lo.Index, own6()); err != nil {
		if !noIPv6(err) {
			return false, err
		}
		return false, nil
	}
	return true, nil
}

// newLo is the lo of a namespace in which nothing was ever done. In any other,
// that of the machine above all, what comes next would cut all connections.
func newLo() (*net.Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("isolate: list interfaces: %w", err)
	}
	var lo *net.Interface
	for i := range all {
		if all[i].Flags&net.FlagUp != 0 {
			return nil, fmt.Errorf("isolate: interface %s is up: this is no new network namespace", all[i].Name)
		}
		if all[i].Name == "lo" {
			lo = &all[i]
		}
	}
	if lo == nil {
		return nil, errors.New("isolate: there is no interface lo")
	}
	return lo, nil
}

// noIPv6 says that the kernel was built or started without IPv6, or that it is
// switched off for new interfaces. Nothing leaves by it then.
func noIPv6(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPROTONOSUPPORT)
}

// local adds the address and the route of its whole family.
func local(c *netlink.Conn, index int, a netip.Addr) error {
	if err := ask(c, "add address "+a.String(), unix.RTM_NEWADDR, netlink.Create|netlink.Excl, addressOf(index, a)); err != nil {
		return err
	}
	return ask(c, "make all addresses local", unix.RTM_NEWROUTE, netlink.Create|netlink.Excl, routeTo(index, a))
}

func ask(c *netlink.Conn, doing string, kind netlink.HeaderType, flags netlink.HeaderFlags, data []byte) error {
	_, err := c.Execute(netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request | netlink.Acknowledge | flags}, Data: data})
	if err != nil {
		return fmt.Errorf("isolate: %s: %w", doing, err)
	}
	return nil
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// linkUp is a struct ifinfomsg of linux/rtnetlink.h.
func linkUp(index int) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	ne := netlinkOrder()
	ne.PutUint32(b[4:], uint32(index)) //nolint:gosec // an interface's index
	ne.PutUint32(b[8:], unix.IFF_UP)
	ne.PutUint32(b[12:], unix.IFF_UP)
	return b
}

// addressOf is a struct ifaddrmsg of linux/if_addr.h with its attributes.
func addressOf(index int, a netip.Addr) []byte {
	b := make([]byte, unix.SizeofIfAddrmsg)
	b[0], b[1], b[2], b[3] = family(a), byte(a.BitLen()), unix.IFA_F_NODAD, unix.RT_SCOPE_UNIVERSE
	netlinkOrder().PutUint32(b[4:], uint32(index)) //nolint:gosec // as above
	return append(b, attributes(func(e *netlink.AttributeEncoder) {
		e.Bytes(unix.IFA_LOCAL, a.AsSlice())
		e.Bytes(unix.IFA_ADDRESS, a.AsSlice())
	})...)
}

// routeTo is a struct rtmsg of linux/rtnetlink.h: "local default dev lo src a".
func routeTo(index int, a netip.Addr) []byte {
	b := make([]byte, unix.SizeofRtMsg)
	b[0], b[4], b[5], b[6], b[7] = family(a), unix.RT_TABLE_LOCAL, unix.RTPROT_STATIC, unix.RT_SCOPE_HOST, unix.RTN_LOCAL
	return append(b, attributes(func(e *netlink.AttributeEncoder) {
		e.Uint32(unix.RTA_OIF, uint32(index)) //nolint:gosec // as above
		e.Bytes(unix.RTA_PREFSRC, a.AsSlice())
	})...)
}

// attributes encodes what cannot be too long.
func attributes(f func(*netlink.AttributeEncoder)) []byte {
	e := netlink.NewAttributeEncoder()
	f(e)
	b, _ := e.Encode()
	return b
}
