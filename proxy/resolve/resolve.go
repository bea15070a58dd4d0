// Package resolve finds the addresses of names by asking given servers, and by
// nothing else: no hosts file, no search list, no variable. In a pod all of
// those are its author's.
package resolve

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// tryTimeout is what one server may take; the context's deadline ends all.
	tryTimeout = 2 * time.Second
	rounds     = 2 // over all servers
	maxUDP     = 1232
	maxAnswer  = 65535
	// maxChain bounds the aliases that one answer follows.
	maxChain = 16
	// maxAddresses are kept of one answer.
	maxAddresses = 64
)

// Resolver asks its servers in order, each for IPv4 and IPv6 at once. It is
// safe for concurrent use.
type Resolver struct {
	servers atomic.Pointer[[]netip.AddrPort]
}

// New returns a resolver. Servers without a port are asked at 53.
func New(servers []netip.AddrPort) *Resolver {
	r := &Resolver{}
	r.Set(servers)
	return r
}

// Set replaces the servers.
func (r *Resolver) Set(servers []netip.AddrPort) {
	own := slices.Clone(servers)
	for i, s := range own {
		if s.Port() == 0 {
			own[i] = netip.AddrPortFrom(s.Addr(), 53)
		}
	}
	r.servers.Store(&own)
}

// LookupNetIP returns the addresses of host, which is taken as it is: a full
// name, with or without the dot at its end. network is ip, ip4 or ip6. Errors
// are *net.DNSError.
func (r *Resolver) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	name, err := dnsmessage.NewName(strings.TrimSuffix(host, ".") + ".")
	if err != nil {
		return nil, &net.DNSError{Err: "not a name", Name: host, IsNotFound: true}
	}
	kinds := map[string][]dnsmessage.Type{
		"ip": {dnsmessage.TypeA, dnsmessage.TypeAAAA}, "ip4": {dnsmessage.TypeA}, "ip6": {dnsmessage.TypeAAAA},
	}[network]
	if kinds == nil {
		return nil, net.UnknownNetworkError(network)
	}
	type result struct {
		addrs []netip.Addr
		err   error
	}
	results := make([]chan result, len(kinds))
	for i, kind := range kinds {
		results[i] = make(chan result, 1)
		go func() {
			addrs, err := r.ask(ctx, host, name, kind)
			results[i] <- result{addrs, err}
		}()
	}
	var all []netip.Addr
	var failed *net.DNSError
	for _, ch := range results {
		res := <-ch // each ends with ctx or its tries
		all = append(all, res.addrs...)
		var e *net.DNSError
		if errors.As(res.err, &e) && (failed == nil || failed.IsNotFound) { // trouble tells more than absence
			failed = e
		}
	}
	if len(all) == 0 {
		if failed == nil {
			failed = &net.DNSError{Err: "no address", Name: host, IsNotFound: true}
		}
		return nil, failed
	}
	return all, nil
}

// ask asks the servers until one answers.
func (r *Resolver) ask(ctx context.Context, host string, name dnsmessage.Name, kind dnsmessage.Type) ([]netip.Addr, error) {
	servers := *r.servers.Load()
	last := &net.DNSError{Err: "no nameserver is configured", Name: host}
	for range rounds {
		for _, s := range servers {
			addrs, found, err := r.exchange(ctx, s, name, kind)
			switch {
			case ctx.Err() != nil:
				return nil, &net.DNSError{Err: ctx.Err().Error(), Name: host, Server: s.String(), IsTimeout: errors.Is(ctx.Err(), context.DeadlineExceeded)}
			case err == nil && found:
				return addrs, nil
			case err == nil:
				return nil, &net.DNSError{Err: "no such host", Name: host, Server: s.String(), IsNotFound: true}
			}
			var ne net.Error
			last = &net.DNSError{Err: err.Error(), Name: host, Server: s.String(), IsTemporary: true, IsTimeout: errors.As(err, &ne) && ne.Timeout()}
		}
	}
	return nil, last
}

// exchange asks one server by UDP, and by TCP for an answer that is too long.
// found is false where the name does not exist.
func (r *Resolver) exchange(ctx context.Context, server netip.AddrPort, name dnsmessage.Name, kind dnsmessage.Type) (addrs []netip.Addr, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	question := dnsmessage.Question{Name: name, Type: kind, Class: dnsmessage.ClassINET}
	id, query, err := pack(question)
	if err != nil {
		return nil, false, err
	}
	for _, network := range []string{"udp", "tcp"} {
		c, err := (&net.Dialer{}).DialContext(ctx, network, server.String())
		if err != nil {
			return nil, false, err
		}
		stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
		addrs, found, err = roundTrip(c, network == "tcp", query, id, question)
		stop()
		_ = c.Close()
		if !errors.Is(err, errTruncated) {
			return addrs, found, err
		}
	}
	return nil, false, errTruncated
}

var errTruncated = errors.New("the answer is truncated")

func pack(q dnsmessage.Question) (id uint16, query []byte, err error) {
	var b [2]byte
	_, _ = rand.Read(b[:]) // never fails
	id = binary.BigEndian.Uint16(b[:])
	m := dnsmessage.NewBuilder(make([]byte, 2, 514), dnsmessage.Header{ID: id, RecursionDesired: true})
	m.EnableCompression()
	if err := errors.Join(m.StartQuestions(), m.Question(q), m.StartAdditionals()); err != nil {
		return 0, nil, err
	}
	var opt dnsmessage.ResourceHeader
	if err := opt.SetEDNS0(maxUDP, dnsmessage.RCodeSuccess, false); err != nil {
		return 0, nil, err
	}
	if err := m.OPTResource(opt, dnsmessage.OPTResource{}); err != nil {
		return 0, nil, err
	}
	query, err = m.Finish()
	if err != nil {
		return 0, nil, err
	}
	binary.BigEndian.PutUint16(query, uint16(len(query)-2)) //nolint:gosec // a query is short
	return id, query, nil
}

// roundTrip sends a query, which has TCP's length in front (RFC 1035 section
// 4.2.2), and waits for its answer. Others' datagrams are passed over.
func roundTrip(c net.Conn, stream bool, query []byte, id uint16, q dnsmessage.Question) ([]netip.Addr, bool, error) {
	if !stream {
		query = query[2:]
	}
	if _, err := c.Write(query); err != nil {
		return nil, false, err
	}
	buf := make([]byte, maxUDP)
	for {
		n := 0
		var err error
		if stream {
			var size [2]byte
			if _, err = io.ReadFull(c, size[:]); err == nil {
				buf = make([]byte, min(int(binary.BigEndian.Uint16(size[:])), maxAnswer))
				n, err = io.ReadFull(c, buf)
			}
		} else {
			n, err = c.Read(buf)
		}
		if err != nil {
			return nil, false, err
		}
		addrs, found, err := parse(buf[:n], id, q)
		if errors.Is(err, errOther) && !stream {
			continue
		}
		return addrs, found, err
	}
}

// errOther is matched by what answers no question of ours.
var errOther = errors.New("the answer is to another question")

// parse reads an answer: the addresses of the name that was asked for, or of
// what that is an alias of.
func parse(b []byte, id uint16, q dnsmessage.Question) (addrs []netip.Addr, found bool, err error) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || h.ID != id || !h.Response {
		return nil, false, errOther
	}
	asked, err := p.Question()
	if err != nil || asked.Type != q.Type || asked.Class != q.Class || !equal(asked.Name, q.Name) {
		return nil, false, errOther
	}
	if err := p.SkipAllQuestions(); err != nil {
		return nil, false, errOther
	}
	switch {
	case h.Truncated:
		return nil, false, errTruncated
	case h.RCode == dnsmessage.RCodeNameError:
		return nil, false, nil
	case h.RCode != dnsmessage.RCodeSuccess:
		return nil, false, fmt.Errorf("the server answers %v", h.RCode)
	}
	byName, alias, err := answers(&p, q.Type)
	if err != nil {
		return nil, false, err
	}
	at := strings.ToLower(q.Name.String())
	for range maxChain {
		if a := byName[at]; len(a) > 0 {
			return a, true, nil
		}
		next, ok := alias[at]
		if !ok {
			return nil, true, nil
		}
		at = next
	}
	return nil, false, errors.New("the answer's aliases have no end")
}

func answers(p *dnsmessage.Parser, kind dnsmessage.Type) (byName map[string][]netip.Addr, alias map[string]string, err error) {
	byName, alias = map[string][]netip.Addr{}, map[string]string{}
	for n := 0; ; {
		h, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return byName, alias, nil
		}
		if err != nil {
			return nil, nil, fmt.Errorf("the answer cannot be read: %w", err)
		}
		name := strings.ToLower(h.Name.String())
		var a netip.Addr
		switch {
		case h.Class == dnsmessage.ClassINET && h.Type == dnsmessage.TypeCNAME:
			r, rerr := p.CNAMEResource()
			if err = rerr; err == nil {
				alias[name] = strings.ToLower(r.CNAME.String())
			}
		case h.Class == dnsmessage.ClassINET && h.Type == kind && kind == dnsmessage.TypeA:
			r, rerr := p.AResource()
			a, err = netip.AddrFrom4(r.A), rerr
		case h.Class == dnsmessage.ClassINET && h.Type == kind && kind == dnsmessage.TypeAAAA:
			r, rerr := p.AAAAResource()
			a, err = netip.AddrFrom16(r.AAAA), rerr
		default:
			err = p.SkipAnswer()
		}
		if err != nil {
			return nil, nil, fmt.Errorf("the answer cannot be read: %w", err)
		}
		if a.IsValid() && n < maxAddresses {
			n++
			byName[name] = append(byName[name], a)
		}
	}
}

// equal compares names without regard to case (RFC 4343).
func equal(a, b dnsmessage.Name) bool { return strings.EqualFold(a.String(), b.String()) }
