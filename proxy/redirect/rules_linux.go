package redirect

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// Names of the table and its chains.
const (
	tableName     = "attache"
	redirectChain = "redirect" // nat, output: TCP goes to the listeners
	blockChain    = "block"    // filter, output: what must not leave
	exemptChain   = "exempt"   // asked by both: accepts what goes past the sidecar
)

// dnsPort is that of RFC 1035 section 4.2.
const dnsPort = 53

// A rule is one line of a chain. Its comment is shown by `nft list ruleset`.
type rule struct {
	comment string
	exprs   []expr.Any
}

// match joins conditions and a verdict to one rule.
func match(comment string, parts ...[]expr.Any) rule {
	r := rule{comment: comment}
	for _, p := range parts {
		r.exprs = append(r.exprs, p...)
	}
	return r
}

func (r rule) userData() []byte {
	return userdata.AppendString(nil, userdata.TypeComment, r.comment)
}

// exemptRules accept what goes past the sidecar, in the order that decides:
// the sidecar, loopback, resolvers; then the metadata addresses leave the
// chain, so that no exclusion reaches them; then the exclusions.
func exemptRules(c Config) []rule {
	var out []rule
	for _, a := range proofs() {
		// Each rule is of one family: the two exempt all but the two addresses.
		out = append(out, match("sidecar but "+a.String(), uid(c.SidecarUID), notDst(a), accept()))
	}
	for _, u := range c.ExcludedUIDs {
		out = append(out, match(fmt.Sprintf("excluded uid %d", u), uid(u), accept()))
	}
	out = append(out, match("loopback", loopback(), accept()))
	for _, a := range c.Nameservers {
		out = append(out,
			match("resolver "+a.String()+" over udp", dst(host(a)), l4(unix.IPPROTO_UDP), dport(dnsPort), accept()),
			match("resolver "+a.String()+" over tcp", dst(host(a)), l4(unix.IPPROTO_TCP), dport(dnsPort), accept()))
	}
	for _, p := range Metadata() {
		out = append(out, match("metadata "+p.String()+" is not exempt", dst(p), verdict(expr.VerdictReturn)))
	}
	for _, a := range c.APIServer {
		out = append(out, match("kube-apiserver "+a.String(), dst(host(a.Addr())), l4(unix.IPPROTO_TCP), dport(a.Port()), accept()))
	}
	for _, p := range c.ExcludedCIDRs {
		out = append(out, match("excluded "+p.String(), dst(p), accept()))
	}
	for _, p := range c.ExcludedPorts {
		out = append(out, match(fmt.Sprintf("excluded port %d", p), l4(unix.IPPROTO_TCP), dport(p), accept()))
	}
	return out
}

// redirectRules are of type nat: they see the first packet of a connection.
// The kernel makes the destination 127.0.0.1 or [::1] in the output hook.
func redirectRules(c Config) []rule {
	return []rule{
		match("exempt", jump(exemptChain)),
		match("tcp over IPv4", family(unix.NFPROTO_IPV4), l4(unix.IPPROTO_TCP), redirectTo(c.Port4)),
		match("tcp over IPv6", family(unix.NFPROTO_IPV6), l4(unix.IPPROTO_TCP), redirectTo(c.Port6)),
	}
}

// blockRules see every packet, behind the redirect. Rejecting tells clients
// at once, so that HTTP/3 falls back to TCP.
func blockRules(c Config) []rule {
	var out []rule
	for _, a := range controls() {
		// Before the exemption: only the sidecar's packets still have this
		// address here.
		out = append(out, match("control "+a.String(), dst(host(a)), l4(unix.IPPROTO_TCP), reset()))
	}
	out = append(out,
		match("exempt", jump(exemptChain)),
		// What conntrack does not know is not translated either: it would
		// leave as it is.
		match("invalid", invalid(), verdict(expr.VerdictDrop)))
	if c.Strict {
		return append(out, match("all but tcp and icmp", notL4(unix.IPPROTO_TCP), notL4(unix.IPPROTO_ICMP), notL4(unix.IPPROTO_ICMPV6), reject()))
	}
	out = append(out, match("QUIC", l4(unix.IPPROTO_UDP), dport(httpsPort), reject()))
	for _, p := range Metadata() {
		out = append(out, match("metadata "+p.String()+" over tcp only", dst(p), notL4(unix.IPPROTO_TCP), reject()))
	}
	return out
}

// host is the prefix of a alone.
func host(a netip.Addr) netip.Prefix {
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen())
}

func cmp(op expr.CmpOp, data []byte) expr.Any { return &expr.Cmp{Op: op, Register: 1, Data: data} }

func meta(key expr.MetaKey, op expr.CmpOp, data []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, cmp(op, data)}
}

func uid(u uint32) []expr.Any {
	return meta(expr.MetaKeySKUID, expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(u))
}

func family(f byte) []expr.Any { return meta(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{f}) }
func l4(proto byte) []expr.Any { return meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{proto}) }
func notL4(proto byte) []expr.Any {
	return meta(expr.MetaKeyL4PROTO, expr.CmpOpNeq, []byte{proto})
}

// loopback matches by the interface's name: whatever leaves by it stays in
// the pod, also what is sent to the pod's own address.
func loopback() []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, "lo")
	return meta(expr.MetaKeyOIFNAME, expr.CmpOpEq, name)
}

// dport must stand behind l4: TCP's and UDP's ports are at the same place.
func dport(p uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		cmp(expr.CmpOpEq, binary.BigEndian.AppendUint16(nil, p)),
	}
}

func dst(p netip.Prefix) []expr.Any {
	out := loadDst(p.Addr())
	n := p.Addr().BitLen() / 8
	if p.Bits() != p.Addr().BitLen() {
		mask := make([]byte, n)
		for i := range p.Bits() {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		out = append(out, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(n), Mask: mask, Xor: make([]byte, n)})
	}
	return append(out, cmp(expr.CmpOpEq, p.Masked().Addr().AsSlice()))
}

// notDst matches packets of a's family that are not for a.
func notDst(a netip.Addr) []expr.Any {
	return append(loadDst(a), cmp(expr.CmpOpNeq, a.AsSlice()))
}

// loadDst matches a's family and loads the destination, RFC 791 section 3.1
// and RFC 8200 section 3.
func loadDst(a netip.Addr) []expr.Any {
	f, off := byte(unix.NFPROTO_IPV4), uint32(16)
	if a.Is6() {
		f, off = unix.NFPROTO_IPV6, 24
	}
	return append(family(f), &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: uint32(a.BitLen() / 8)})
}

func invalid() []expr.Any {
	zero := make([]byte, 4)
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitINVALID), Xor: zero},
		cmp(expr.CmpOpNeq, zero),
	}
}

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }
func accept() []expr.Any                    { return verdict(expr.VerdictAccept) }

func jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

func redirectTo(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
		&expr.Redir{RegisterProtoMin: 1, RegisterProtoMax: 1, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED},
	}
}

func reset() []expr.Any { return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}} }

// reject answers with "port unreachable" in either family.
func reject() []expr.Any {
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}}
}

// addRules puts rs into ch, in order.
func addRules(nft *nftables.Conn, ch *nftables.Chain, rs []rule) {
	for _, r := range rs {
		nft.AddRule(&nftables.Rule{Table: ch.Table, Chain: ch, Exprs: r.exprs, UserData: r.userData()})
	}
}
