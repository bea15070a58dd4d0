package isolate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

func netlinkOrder() binary.ByteOrder { return binary.NativeEndian }

// A line is one rule with its comment, which `nft list ruleset` shows.
type line struct {
	comment string
	exprs   []expr.Any
}

func rule(comment string, parts ...[]expr.Any) line {
	l := line{comment: comment}
	for _, p := range parts {
		l.exprs = append(l.exprs, p...)
	}
	return l
}

// divertRules see what arrives at lo. A transparent proxy rule hands a packet
// to our listener and changes nothing on it, so that the accepted connection's
// own addresses are those that the agent used. (Address translation would have
// to change the source port of connections that differ in nothing but the
// destination, and the connection's owner could not be found by it.)
func divertRules(six bool) []line {
	var out []line
	for _, p := range own() {
		out = append(out, rule("own "+p.String(), dst(p), accept()))
	}
	out = append(out, rule("DNS over tcp, to any server", l4(unix.IPPROTO_TCP), dport(dnsPort), accept()),
		rule("tcp over IPv4", nfproto(unix.NFPROTO_IPV4), l4(unix.IPPROTO_TCP), divert(unix.NFPROTO_IPV4)))
	if six {
		out = append(out, rule("tcp over IPv6", nfproto(unix.NFPROTO_IPV6), l4(unix.IPPROTO_TCP), divert(unix.NFPROTO_IPV6)))
	}
	return out
}

// refuseRules tell senders of anything else at once: it would go nowhere, but
// a datagram to another address of this namespace would reach the agent's own
// servers.
func refuseRules() []line {
	var out []line
	for _, p := range own() {
		out = append(out, rule("own "+p.String(), dst(p), accept()))
	}
	return append(out,
		rule("tcp", l4(unix.IPPROTO_TCP), accept()),
		rule("DNS over udp, to any server", l4(unix.IPPROTO_UDP), dport(dnsPort), accept()),
		rule("all else", []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}}))
}

// install puts the rules into the namespace, in one transaction.
func install(six bool) error {
	nft, err := nftables.New()
	if err != nil {
		return fmt.Errorf("isolate: open netlink: %w", err)
	}
	t := nft.AddTable(&nftables.Table{Name: "attache", Family: nftables.TableFamilyINet})
	for _, c := range []struct {
		chain nftables.Chain
		rules []line
	}{
		{nftables.Chain{Name: "divert", Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle}, divertRules(six)},
		{nftables.Chain{Name: "refuse", Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter}, refuseRules()},
	} {
		c.chain.Table, c.chain.Type = t, nftables.ChainTypeFilter
		ch := nft.AddChain(&c.chain)
		for _, l := range c.rules {
			nft.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: l.exprs, UserData: userdata.AppendString(nil, userdata.TypeComment, l.comment)})
		}
	}
	err = nft.Flush()
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("isolate: install rules: %w: the kernel lacks nf_tables or one of nft_tproxy, nft_reject_inet; load them (modprobe nft_tproxy nft_reject_inet)", err)
	}
	if err != nil {
		return fmt.Errorf("isolate: install rules: %w", err)
	}
	return nil
}

func cmp(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

func meta(key expr.MetaKey, data []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, cmp(data)}
}

func nfproto(f byte) []expr.Any { return meta(expr.MetaKeyNFPROTO, []byte{f}) }
func l4(proto byte) []expr.Any  { return meta(expr.MetaKeyL4PROTO, []byte{proto}) }
func accept() []expr.Any        { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

// dport must stand behind l4: TCP's and UDP's ports are at the same place.
func dport(p uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		cmp(binary.BigEndian.AppendUint16(nil, p)),
	}
}

// dst matches packets of p's family for p: RFC 791 section 3.1, RFC 8200
// section 3.
func dst(p netip.Prefix) []expr.Any {
	f, off := byte(unix.NFPROTO_IPV4), uint32(16)
	if p.Addr().Is6() {
		f, off = unix.NFPROTO_IPV6, 24
	}
	n := p.Addr().BitLen() / 8
	mask := make([]byte, n)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(nfproto(f),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: uint32(n)}, //nolint:gosec // 4 or 16
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(n), Mask: mask, Xor: make([]byte, n)},
		cmp(p.Masked().Addr().AsSlice()))
}

// divert hands the packet to the transparent listener of its family.
func divert(f byte) []expr.Any {
	a := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if f == unix.NFPROTO_IPV6 {
		a = netip.IPv6Loopback()
	}
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: a.AsSlice()},
		&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, TransparentPort)},
		&expr.TProxy{Family: f, TableFamily: unix.NFPROTO_INET, RegAddr: 1, RegPort: 2},
	}
}
