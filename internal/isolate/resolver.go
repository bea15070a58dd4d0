package isolate

import (
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// ttl of answers, in seconds.
const ttl = 60

// maxUDP is what we say that we take, and more than any answer has.
const maxUDP = 1232

// Resolver answers the agent's DNS from a table. It asks nobody: whether a
// name exists is found out when the policy allows a connection to it.
type Resolver struct {
	Names *Names
	// IPv6 says that the namespace has it; without, names have no AAAA.
	IPv6 bool
	// Host, in lower case, is the machine's own name: what the agent serves is
	// found by it. Empty: none.
	Host string
}

// Answer is the answer to a query, or nil where there is none to give.
func (r *Resolver) Answer(query []byte) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil || h.Response {
		return nil
	}
	out := dnsmessage.Header{ID: h.ID, Response: true, OpCode: h.OpCode, RecursionDesired: h.RecursionDesired, RecursionAvailable: true}
	if h.OpCode != 0 {
		out.RCode = dnsmessage.RCodeNotImplemented
		return build(out, nil, nil, false)
	}
	qs, err := p.AllQuestions()
	if err != nil || len(qs) != 1 {
		out.RCode = dnsmessage.RCodeFormatError
		return build(out, nil, nil, false)
	}
	edns := hasOPT(&p)
	if qs[0].Class != dnsmessage.ClassINET {
		out.RCode = dnsmessage.RCodeRefused
		return build(out, &qs[0], nil, edns)
	}
	var answer dnsmessage.ResourceBody
	answer, out.RCode = r.lookup(qs[0])
	return build(out, &qs[0], answer, edns)
}

// hasOPT reports whether the query speaks EDNS (RFC 6891).
func hasOPT(p *dnsmessage.Parser) bool {
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return false
	}
	for {
		h, err := p.AdditionalHeader()
		if err != nil {
			return false
		}
		if h.Type == dnsmessage.TypeOPT {
			return true
		}
		if p.SkipAdditional() != nil {
			return false
		}
	}
}

// lookup answers a question. Every name exists; it has addresses and nothing
// else: no HTTPS record, which would bring keys for ECH and offer HTTP/3.
func (r *Resolver) lookup(q dnsmessage.Question) (dnsmessage.ResourceBody, dnsmessage.RCode) {
	text := strings.ToLower(q.Name.String())
	if a, ok := reverse(text); ok {
		return r.pointer(q.Type, a)
	}
	name, ok := canonical(text)
	if !ok || strings.HasSuffix("."+name, ".invalid") { // RFC 6761 section 6.4
		return nil, dnsmessage.RCodeNameError
	}
	if q.Type != dnsmessage.TypeA && (q.Type != dnsmessage.TypeAAAA || !r.IPv6) {
		return nil, dnsmessage.RCodeSuccess
	}
	var four, six netip.Addr
	switch {
	case strings.HasSuffix("."+name, ".localhost"): // RFC 6761 section 6.3
		four, six = netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()
	case name == r.Host:
		four, six = own4(), own6()
	default:
		var err error
		if four, six, err = r.Names.Addresses(name); err != nil {
			return nil, dnsmessage.RCodeServerFailure
		}
	}
	if q.Type == dnsmessage.TypeA {
		return &dnsmessage.AResource{A: four.As4()}, dnsmessage.RCodeSuccess
	}
	return &dnsmessage.AAAAResource{AAAA: six.As16()}, dnsmessage.RCodeSuccess
}

// pointer answers who an address of ours was given to.
func (r *Resolver) pointer(t dnsmessage.Type, a netip.Addr) (dnsmessage.ResourceBody, dnsmessage.RCode) {
	name, _ := r.Names.Name(a)
	n, err := dnsmessage.NewName(name + ".")
	if name == "" || err != nil {
		return nil, dnsmessage.RCodeNameError
	}
	if t != dnsmessage.TypePTR {
		return nil, dnsmessage.RCodeSuccess
	}
	return &dnsmessage.PTRResource{PTR: n}, dnsmessage.RCodeSuccess
}

// reverse reads the names of RFC 1035 section 3.5 and RFC 3596 section 2.5. An
// address that is not whole is reported as one that is nobody's.
func reverse(name string) (netip.Addr, bool) {
	if s, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		parts := strings.Split(s, ".")
		for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
			parts[i], parts[j] = parts[j], parts[i]
		}
		a, _ := netip.ParseAddr(strings.Join(parts, "."))
		return a, true
	}
	s, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := len(s) - 1; i >= 0; i -= 2 {
		if i > 0 && s[i-1] != '.' || s[i] == '.' {
			return netip.Addr{}, true
		}
		b.WriteByte(s[i])
		if b.Len()%5 == 4 && i > 0 {
			b.WriteByte(':')
		}
	}
	a, _ := netip.ParseAddr(b.String())
	return a, true
}

// build packs an answer. Nothing that goes into it can be too long.
func build(h dnsmessage.Header, q *dnsmessage.Question, body dnsmessage.ResourceBody, edns bool) []byte {
	m := dnsmessage.Message{Header: h}
	if q != nil {
		m.Questions = []dnsmessage.Question{*q}
		if body != nil {
			m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: ttl}, Body: body}}
		}
	}
	if edns {
		var rh dnsmessage.ResourceHeader
		if rh.SetEDNS0(maxUDP, h.RCode, false) == nil {
			m.Additionals = []dnsmessage.Resource{{Header: rh, Body: &dnsmessage.OPTResource{}}}
		}
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}
