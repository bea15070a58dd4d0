package isolate

import (
	"net/netip"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func query(t testing.TB, name string, kind dnsmessage.Type, change func(*dnsmessage.Message)) []byte {
	t.Helper()
	n, err := dnsmessage.NewName(name)
	if err != nil {
		t.Fatal(err)
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: kind, Class: dnsmessage.ClassINET}},
	}
	if change != nil {
		change(&m)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func answer(t *testing.T, r *Resolver, q []byte) dnsmessage.Message {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(r.Answer(q)); err != nil {
		t.Fatal(err)
	}
	if !m.Response || m.ID != 7 {
		t.Errorf("header %+v", m.Header)
	}
	return m
}

// short shows an answer as text.
func short(m dnsmessage.Message) string {
	if len(m.Answers) == 0 {
		return m.RCode.String()
	}
	switch b := m.Answers[0].Body.(type) {
	case *dnsmessage.AResource:
		return netip.AddrFrom4(b.A).String()
	case *dnsmessage.AAAAResource:
		return netip.AddrFrom16(b.AAAA).String()
	case *dnsmessage.PTRResource:
		return b.PTR.String()
	}
	return "?"
}

func TestAnswers(t *testing.T) {
	r := &Resolver{Names: NewNames((&clock{}).now), IPv6: true, Host: "box"}
	const ok, none = "RCodeSuccess", "RCodeNameError"
	for _, c := range []struct {
		name string
		kind dnsmessage.Type
		want string
	}{
		{"api.example.com.", dnsmessage.TypeA, "198.18.1.0"},
		{"API.example.COM.", dnsmessage.TypeAAAA, "fd61:7474:6163::100"},
		{"other.example.com.", dnsmessage.TypeA, "198.18.1.1"},
		{"api.example.com.", dnsmessage.TypeMX, ok},
		{"api.example.com.", dnsmessage.TypeTXT, ok},
		{"api.example.com.", 65, ok}, // HTTPS: would bring ECH keys and HTTP/3
		{"localhost.", dnsmessage.TypeA, "127.0.0.1"},
		{"a.localhost.", dnsmessage.TypeAAAA, "::1"},
		{"Box.", dnsmessage.TypeA, "198.18.0.1"},
		{"box.", dnsmessage.TypeAAAA, "fd61:7474:6163::1"},
		{"box.example.", dnsmessage.TypeA, "198.18.1.2"},
		{"x.invalid.", dnsmessage.TypeA, none},
		{"1.2.3.4.", dnsmessage.TypeA, none},
		{".", dnsmessage.TypeA, none},
		{"0.1.18.198.in-addr.arpa.", dnsmessage.TypePTR, "api.example.com."},
		{"0.1.18.198.in-addr.arpa.", dnsmessage.TypeA, ok},
		{"9.9.18.198.in-addr.arpa.", dnsmessage.TypePTR, none},
		{"4.3.2.1.in-addr.arpa.", dnsmessage.TypePTR, none},
		{"18.198.in-addr.arpa.", dnsmessage.TypePTR, none},
		{"1.0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.6.1.6.4.7.4.7.1.6.d.f.ip6.arpa.", dnsmessage.TypePTR, "other.example.com."},
		{"ff.ip6.arpa.", dnsmessage.TypePTR, none},
	} {
		if got := short(answer(t, r, query(t, c.name, c.kind, nil))); got != c.want {
			t.Errorf("%s %v: %s; want %s", c.name, c.kind, got, c.want)
		}
	}
	r.IPv6 = false
	if got := short(answer(t, r, query(t, "api.example.com.", dnsmessage.TypeAAAA, nil))); got != ok {
		t.Errorf("AAAA without IPv6: %s", got)
	}
	full := &Resolver{Names: NewNames((&clock{}).now)}
	full.Names.max = 1
	answer(t, full, query(t, "a.example.", dnsmessage.TypeA, nil))
	if got := short(answer(t, full, query(t, "b.example.", dnsmessage.TypeA, nil))); got != "RCodeServerFailure" {
		t.Errorf("a full table: %s", got)
	}
}

func TestOddQueries(t *testing.T) {
	r := &Resolver{Names: NewNames((&clock{}).now)}
	for what, c := range map[string]struct {
		change func(*dnsmessage.Message)
		want   string
	}{
		"another class":  {func(m *dnsmessage.Message) { m.Questions[0].Class = dnsmessage.ClassCHAOS }, "RCodeRefused"},
		"an update":      {func(m *dnsmessage.Message) { m.OpCode = 5 }, "RCodeNotImplemented"},
		"two questions":  {func(m *dnsmessage.Message) { m.Questions = append(m.Questions, m.Questions[0]) }, "RCodeFormatError"},
		"no question":    {func(m *dnsmessage.Message) { m.Questions = nil }, "RCodeFormatError"},
		"EDNS":           {func(m *dnsmessage.Message) { withOPT(t, m) }, "198.18.1.0"},
		"what is normal": {nil, "198.18.1.0"},
	} {
		m := answer(t, r, query(t, "api.example.com.", dnsmessage.TypeA, c.change))
		if got := short(m); got != c.want {
			t.Errorf("%s: %s; want %s", what, got, c.want)
		}
		if opt := len(m.Additionals) == 1 && m.Additionals[0].Header.Type == dnsmessage.TypeOPT; opt != (what == "EDNS") {
			t.Errorf("%s: OPT in the answer is %v", what, opt)
		}
	}
	if r.Answer(query(t, "a.", dnsmessage.TypeA, func(m *dnsmessage.Message) { m.Response = true })) != nil {
		t.Error("an answer is answered: two such servers would go on for ever")
	}
	if r.Answer([]byte("short")) != nil {
		t.Error("garbage is answered")
	}
}

func withOPT(t testing.TB, m *dnsmessage.Message) {
	t.Helper()
	var h dnsmessage.ResourceHeader
	if err := h.SetEDNS0(4096, dnsmessage.RCodeSuccess, false); err != nil {
		t.Fatal(err)
	}
	m.Additionals = append(m.Additionals, dnsmessage.Resource{Header: h, Body: &dnsmessage.OPTResource{}})
}

// What an agent sends never breaks the resolver, and what is answered can be
// read and is bounded.
func FuzzAnswer(f *testing.F) {
	f.Add(query(f, "api.example.com.", dnsmessage.TypeA, func(m *dnsmessage.Message) { withOPT(f, m) }))
	f.Add(query(f, "0.1.18.198.in-addr.arpa.", dnsmessage.TypePTR, nil))
	f.Add(query(f, "0.0.1.0.ip6.arpa.", dnsmessage.TypePTR, nil))
	f.Add([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1})
	f.Fuzz(func(t *testing.T, q []byte) {
		r := &Resolver{Names: NewNames((&clock{}).now), IPv6: true}
		out := r.Answer(q)
		if out == nil {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(out); err != nil {
			t.Fatalf("the answer cannot be read: %v", err)
		}
		if len(out) > maxUDP || len(m.Answers) > 1 || r.Names.recent.Len() > 1 {
			t.Errorf("%d bytes, %d answers, %d names", len(out), len(m.Answers), r.Names.recent.Len())
		}
	})
}
