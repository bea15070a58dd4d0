package resolve_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/attache-dev/attache/proxy/resolve"
)

// server is a DNS server over UDP and TCP at one address. answer fills in the
// reply to a question; nil sends nothing.
type server struct {
	at    netip.AddrPort
	asked atomic.Int32
	udp   func(q dnsmessage.Question, m *dnsmessage.Message) [][]byte // datagrams to send instead; nil: m
}

func serve(t *testing.T, answer func(q dnsmessage.Question, m *dnsmessage.Message) bool) *server {
	t.Helper()
	return serveUDP(t, answer, nil)
}

func serveUDP(t *testing.T, answer func(q dnsmessage.Question, m *dnsmessage.Message) bool, udp func(dnsmessage.Question, *dnsmessage.Message) [][]byte) *server {
	t.Helper()
	s := &server{udp: udp}
	var pc net.PacketConn
	var ln net.Listener
	for { // one port for both
		var err error
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if pc, err = net.ListenPacket("udp", ln.Addr().String()); err == nil {
			break
		}
		_ = ln.Close()
	}
	s.at = ln.Addr().(*net.TCPAddr).AddrPort()
	t.Cleanup(func() { _, _ = pc.Close(), ln.Close() })
	reply := func(b []byte, stream bool) [][]byte {
		var p dnsmessage.Parser
		h, err := p.Start(b)
		if err != nil {
			return nil
		}
		q, err := p.Question()
		if err != nil {
			return nil
		}
		s.asked.Add(1)
		m := &dnsmessage.Message{Header: dnsmessage.Header{ID: h.ID, Response: true, RecursionAvailable: true}, Questions: []dnsmessage.Question{q}}
		if !answer(q, m) {
			return nil
		}
		if s.udp != nil && !stream {
			if out := s.udp(q, m); out != nil {
				return out
			}
		}
		out, err := m.Pack()
		if err != nil {
			t.Error(err)
		}
		return [][]byte{out}
	}
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			for _, out := range reply(buf[:n], false) {
				_, _ = pc.WriteTo(out, from)
			}
		}
	}()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				var size [2]byte
				if _, err := io.ReadFull(c, size[:]); err != nil {
					return
				}
				b := make([]byte, binary.BigEndian.Uint16(size[:]))
				if _, err := io.ReadFull(c, b); err != nil {
					return
				}
				for _, out := range reply(b, true) {
					_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...))
				}
			}()
		}
	}()
	return s
}

func a(name dnsmessage.Name, ip string) dnsmessage.Resource {
	addr := netip.MustParseAddr(ip)
	head := dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: 1}
	if addr.Is4() {
		return dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: addr.As4()}}
	}
	return dnsmessage.Resource{Header: head, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}}
}

func cname(name, to string) dnsmessage.Resource {
	return dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET, TTL: 1}, Body: &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(to)}}
}

// zone answers for a few names.
func zone(q dnsmessage.Question, m *dnsmessage.Message) bool {
	v4 := q.Type == dnsmessage.TypeA
	switch strings.ToLower(q.Name.String()) {
	case "both.example.":
		if v4 {
			m.Answers = append(m.Answers, a(q.Name, "203.0.113.1"))
		} else {
			m.Answers = append(m.Answers, a(q.Name, "2001:db8::1"))
		}
	case "four.example.":
		if v4 {
			m.Answers = append(m.Answers, a(q.Name, "203.0.113.1"), a(q.Name, "203.0.113.2"))
		}
	case "alias.example.":
		if v4 {
			m.Answers = append(m.Answers, cname("alias.example.", "Four.Example."), cname("unrelated.example.", "x.example."), a(dnsmessage.MustNewName("four.example."), "203.0.113.1"))
		}
	case "foreign.example.": // an address of a name that was not asked for
		m.Answers = append(m.Answers, a(dnsmessage.MustNewName("other.example."), "203.0.113.66"))
	case "loop.example.":
		m.Answers = append(m.Answers, cname("loop.example.", "pool.example."), cname("pool.example.", "loop.example."))
	case "broken.example.":
		m.RCode = dnsmessage.RCodeServerFailure
	case "silent.example.":
		return false
	default:
		m.RCode = dnsmessage.RCodeNameError
	}
	return true
}

func TestLookup(t *testing.T) {
	s := serve(t, zone)
	r := resolve.New([]netip.AddrPort{s.at})
	for _, tt := range []struct{ host, network, want, err string }{
		{"both.example", "ip", "203.0.113.1 2001:db8::1", ""},
		{"both.example.", "ip4", "203.0.113.1", ""},
		{"both.example", "ip6", "2001:db8::1", ""},
		{"four.example", "ip", "203.0.113.1 203.0.113.2", ""},
		{"alias.example", "ip", "203.0.113.1", ""},
		{"203.0.113.7", "ip", "203.0.113.7", ""},
		{"foreign.example", "ip", "", "no address"},
		{"loop.example", "ip", "", "no end"},
		{"broken.example", "ip", "", "RCodeServerFailure"},
		{"nowhere.example", "ip", "", "no such host"},
		{strings.Repeat("x", 300), "ip", "", "not a name"},
		// The pod's own hosts file and search list are nothing to us.
		{"localhost", "ip", "", "no such host"},
	} {
		got, err := r.LookupNetIP(t.Context(), tt.network, tt.host)
		var text []string
		for _, a := range got {
			text = append(text, a.String())
		}
		var dns *net.DNSError
		if strings.Join(text, " ") != tt.want || (err != nil) != (tt.err != "") || err != nil && (!errors.As(err, &dns) || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%.20s: got %v, %v; want %q, %q", tt.host, got, err, tt.want, tt.err)
		}
	}
}

func TestNextServer(t *testing.T) {
	dead := serve(t, func(q dnsmessage.Question, m *dnsmessage.Message) bool {
		m.RCode = dnsmessage.RCodeRefused
		return true
	})
	good := serve(t, zone)
	r := resolve.New([]netip.AddrPort{dead.at, good.at})
	if got, err := r.LookupNetIP(t.Context(), "ip", "both.example"); err != nil || len(got) != 2 || dead.asked.Load() != 2 {
		t.Errorf("got %v, %v after %d questions to the first", got, err, dead.asked.Load())
	}
	r.Set([]netip.AddrPort{good.at})
	if _, err := r.LookupNetIP(t.Context(), "ip4", "both.example"); err != nil || dead.asked.Load() != 2 {
		t.Errorf("after Set: %v", err)
	}
	if _, err := resolve.New(nil).LookupNetIP(t.Context(), "ip", "both.example"); err == nil || !strings.Contains(err.Error(), "no nameserver") {
		t.Errorf("without servers: %v", err)
	}
}

func TestContextEnds(t *testing.T) {
	s := serve(t, zone)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := resolve.New([]netip.AddrPort{s.at}).LookupNetIP(ctx, "ip", "silent.example")
	var dns *net.DNSError
	if !errors.As(err, &dns) || !dns.IsTimeout || time.Since(start) > 5*time.Second {
		t.Errorf("got %v after %v", err, time.Since(start))
	}
}

// Datagrams of others are passed over, and a truncated answer is asked for
// again by TCP.
func TestSpoofedAndTruncated(t *testing.T) {
	s := serveUDP(t, zone, func(q dnsmessage.Question, m *dnsmessage.Message) [][]byte {
		bad := func(change func(*dnsmessage.Message)) []byte {
			c := *m
			c.Questions = slices.Clone(m.Questions)
			c.Answers = []dnsmessage.Resource{a(q.Name, "203.0.113.66")}
			change(&c)
			b, _ := c.Pack()
			return b
		}
		good, _ := m.Pack()
		if q.Name.String() == "four.example." {
			m.Truncated = true
			cut, _ := m.Pack()
			m.Truncated = false
			return [][]byte{cut}
		}
		return [][]byte{
			{1, 2, 3},
			bad(func(c *dnsmessage.Message) { c.ID ^= 1 }),
			bad(func(c *dnsmessage.Message) { c.Response = false }),
			bad(func(c *dnsmessage.Message) { c.Questions[0].Name = dnsmessage.MustNewName("evil.example.") }),
			bad(func(c *dnsmessage.Message) { c.Questions = nil }),
			good,
		}
	})
	r := resolve.New([]netip.AddrPort{s.at})
	for host, want := range map[string]string{"both.example": "203.0.113.1", "four.example": "203.0.113.1"} {
		if got, err := r.LookupNetIP(t.Context(), "ip4", host); err != nil || got[0].String() != want {
			t.Errorf("%s: got %v, %v", host, got, err)
		}
	}
}

func TestNameservers(t *testing.T) {
	got := resolve.Nameservers(strings.NewReader("# c\nsearch x.example\nnameserver 10.96.0.10\nnameserver fd00::10\nnameserver bad\noptions ndots:5\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n"))
	want := []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53"), netip.MustParseAddrPort("[fd00::10]:53"), netip.MustParseAddrPort("10.0.0.1:53")}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
