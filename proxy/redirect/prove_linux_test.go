package redirect_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/attache-dev/attache/proxy/redirect"
)

// everything is a Config of which every field makes rules.
func everything(s *sidecar, uid uint32, strict bool) redirect.Config {
	c := s.config(uid)
	c.APIServer = []netip.AddrPort{ap("10.96.0.1:443")}
	c.Nameservers = []netip.Addr{netip.MustParseAddr("10.96.0.10")}
	c.ExcludedCIDRs = append(redirect.Metadata(), netip.MustParsePrefix("198.51.96.0/20"))
	c.ExcludedPorts = []uint16{5432}
	c.ExcludedUIDs = []uint32{podUID + 1}
	c.Strict = strict
	return c
}

func ourTable() *nftables.Table {
	return &nftables.Table{Name: "attache", Family: nftables.TableFamilyINet}
}

// ruleset is what the kernel holds in our table, in order, one line a rule or
// chain.
func ruleset(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, ch := range chains(t) {
		base := ""
		if ch.Hooknum != nil {
			base = fmt.Sprintf(" type %s hook %d priority %d", ch.Type, *ch.Hooknum, *ch.Priority)
		}
		out = append(out, "chain "+ch.Name+base)
		for _, r := range rulesOf(t, ch) {
			line := ch.Name + ": " + comment(r)
			for _, e := range r.Exprs {
				line += fmt.Sprintf(" %T%+v", e, e)
			}
			out = append(out, line)
		}
	}
	return out
}

func chains(t *testing.T) []*nftables.Chain {
	t.Helper()
	all, err := (&nftables.Conn{}).ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func rulesOf(t *testing.T, ch *nftables.Chain) []*nftables.Rule {
	t.Helper()
	rs, err := (&nftables.Conn{}).GetRules(ch.Table, ch)
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

func comment(r *nftables.Rule) string {
	s, _ := userdata.GetString(r.UserData, userdata.TypeComment)
	return s
}

// names lists the rules as "chain: comment".
func names(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, ch := range chains(t) {
		for _, r := range rulesOf(t, ch) {
			out = append(out, ch.Name+": "+comment(r))
		}
	}
	return out
}

// remove deletes one rule, and fails unless there was just one of that name.
func remove(t *testing.T, name string) {
	t.Helper()
	nft, n := &nftables.Conn{}, 0
	for _, ch := range chains(t) {
		for _, r := range rulesOf(t, ch) {
			if ch.Name+": "+comment(r) != name {
				continue
			}
			n++
			r.Table, r.Chain = ch.Table, ch
			if err := nft.DelRule(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n != 1 {
		t.Fatalf("there are %d rules %q", n, name)
	}
	if err := nft.Flush(); err != nil {
		t.Fatal(err)
	}
}

// goes tells whether a connection arrives at the listener or leaves.
func (s *sidecar) goes(t *testing.T, w *wire, to string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	w.forget()
	go func() {
		if c, err := (&net.Dialer{}).DialContext(ctx, "tcp", to); err == nil {
			_, _ = io.ReadFull(c, make([]byte, 1)) // until the listener has closed it
			_ = c.Close()
		}
	}()
	for {
		ok, news := w.left(tcp(to))
		if ok {
			return "leaves"
		}
		select {
		case got := <-s.accepted:
			if got.dst == ap(to) { // not one of an earlier look
				return "arrives"
			}
		case <-news:
		case <-ctx.Done():
			return "neither arrives nor leaves"
		}
	}
}

func sent(to string) string {
	switch err := datagram(ap(to)); {
	case err == nil:
		return "sent"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ECONNREFUSED):
		return "rejected"
	default:
		return err.Error()
	}
}

// proof is what is wrong by Prove, in short.
func (s *sidecar) proof(t *testing.T, limit time.Duration) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	err := s.prover.Prove(ctx)
	if err == nil {
		return "proved"
	}
	first, _, _ := strings.Cut(err.Error(), "\n") // of the first family
	for _, want := range []string{"does not arrive", "redirected to itself", "is not reset", "is not rejected"} {
		if strings.Contains(first, want) {
			return want
		}
	}
	return err.Error()
}

// metadataHosts has an address of each of redirect.Metadata.
var metadataHosts = map[string]string{
	"169.254.0.0/16":     "169.254.170.23",
	"168.63.129.16/32":   "168.63.129.16",
	"100.100.100.200/32": "100.100.100.200",
	"fd00:ec2::/32":      "[fd00:ec2::23]",
	"fd20:ce::254/128":   "[fd20:ce::254]",
}

// a probe looks at what one rule does: the sidecar's uid under which, and
// what is seen with it and without.
type probe struct {
	uid           uint32
	strict        bool
	look          func(t *testing.T) string
	with, without string
}

func probes(s *sidecar, w *wire, other string) map[string]probe {
	conn := func(to string) func(*testing.T) string {
		return func(t *testing.T) string { return s.goes(t, w, to) }
	}
	udp := func(to string) func(*testing.T) string { return func(*testing.T) string { return sent(to) } }
	prove := func(t *testing.T) string { return s.proof(t, patience) }
	silent := func(t *testing.T) string { return s.proof(t, silence) } // what fails by waiting
	const agent, own = somebodyElse, podUID
	out := map[string]probe{
		"exempt: sidecar but 192.0.2.64":       {own, false, prove, "proved", "redirected to itself"},
		"exempt: sidecar but 2001:db8::64":     {own, false, prove, "proved", "redirected to itself"},
		"exempt: excluded uid 1001":            {}, // TestExcludedUID
		"exempt: loopback":                     {agent, false, func(*testing.T) string { return greeting(other) }, "hello", ""},
		"exempt: resolver 10.96.0.10 over udp": {agent, true, udp("10.96.0.10:53"), "sent", "rejected"},
		"exempt: resolver 10.96.0.10 over tcp": {agent, false, conn("10.96.0.10:53"), "leaves", "arrives"},
		"exempt: kube-apiserver 10.96.0.1:443": {agent, false, conn("10.96.0.1:443"), "leaves", "arrives"},
		"exempt: excluded 198.51.96.0/20":      {agent, false, conn("198.51.100.9:443"), "leaves", "arrives"},
		"exempt: excluded port 5432":           {agent, false, conn(outside4 + ":5432"), "leaves", "arrives"},
		"redirect: exempt":                     {own, false, prove, "proved", "redirected to itself"},
		"redirect: tcp over IPv4":              {own, false, silent, "proved", "does not arrive"},
		"redirect: tcp over IPv6":              {own, false, silent, "proved", "does not arrive"},
		"block: control 192.0.2.65":            {own, false, silent, "proved", "is not reset"},
		"block: control 2001:db8::65":          {own, false, silent, "proved", "is not reset"},
		"block: exempt":                        {own, false, udp(outside4 + ":443"), "sent", "rejected"},
		"block: invalid":                       {agent, false, func(t *testing.T) string { return strayReset(t, w) }, "stays", "leaves"},
		"block: all but tcp and icmp":          {agent, true, udp(outside4 + ":123"), "rejected", "sent"},
		"block: QUIC":                          {own, false, prove, "proved", "is not rejected"},
	}
	for _, p := range redirect.Metadata() {
		h := metadataHosts[p.String()]
		out["exempt: metadata "+p.String()+" is not exempt"] = probe{agent, false, conn(h + ":80"), "arrives", "leaves"}
		out["exempt: excluded "+p.String()] = probe{} // in the way of no rule: metadata is decided before
		out["block: metadata "+p.String()+" over tcp only"] = probe{agent, false, udp(h + ":9"), "rejected", "sent"}
	}
	return out
}

// greeting is what a server in the pod says, which is not the listener.
func greeting(addr string) string {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = c.Close() }()
	b, _ := io.ReadAll(c)
	return string(b)
}

func greeter(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", podAddr4+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("hello"))
			_ = c.Close()
		}
	}()
	return l.Addr().String()
}

// strayReset sends a TCP reset of no connection, which conntrack calls
// invalid.
func strayReset(t *testing.T, w *wire) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b[0:], 4444)
	binary.BigEndian.PutUint16(b[2:], 443)
	b[12], b[13] = 5<<4, 0x04 // five words, RST
	w.forget()
	err = unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: netip.MustParseAddr(outside4).As4()})
	if err != nil && !errors.Is(err, unix.EPERM) {
		t.Fatal(err)
	}
	w.flush(t)
	if ok, _ := w.left(tcp(outside4 + ":443")); ok {
		return "leaves"
	}
	return "stays"
}

// Every rule is there for something: taken away alone, Prove or a look at
// what an agent can do says so.
func TestEachRuleIsNeeded(t *testing.T) {
	if !inPod(t) {
		return
	}
	s, w := startSidecar(t), sniff(t)
	ps := probes(s, w, greeter(t))
	seen := map[string]bool{}
	for _, strict := range []bool{false, true} {
		apply(t, everything(s, somebodyElse, strict))
		for _, name := range names(t) {
			if _, ok := ps[name]; !ok {
				t.Errorf("no probe for rule %q", name)
			}
			seen[name] = true
		}
	}
	for name, p := range ps {
		if !seen[name] {
			t.Errorf("no rule for probe %q", name)
			continue
		}
		if p.look == nil {
			continue
		}
		apply(t, everything(s, p.uid, p.strict))
		// Once, with time to spare, to tell a slow machine from a missing rule.
		if got := s.patientLook(t, p); got != p.with {
			t.Errorf("%s: with it %q, want %q", name, got, p.with)
		}
		remove(t, name)
		if got := p.look(t); got != p.without {
			t.Errorf("%s: without it %q, want %q", name, got, p.without)
		}
	}
}

func (s *sidecar) patientLook(t *testing.T, p probe) string {
	t.Helper()
	if p.with == "proved" {
		return s.proof(t, patience)
	}
	return p.look(t)
}

func TestProveWithoutRules(t *testing.T) {
	if !inPod(t) {
		return
	}
	s := startSidecar(t)
	if got := s.proof(t, silence); got != "does not arrive" {
		t.Errorf("without rules: %q", got)
	}
	apply(t, s.config(podUID))
	if got := s.proof(t, patience); got != "proved" {
		t.Errorf("with rules: %q", got)
	}
	if err := redirect.Remove(); err != nil {
		t.Fatal(err)
	}
	if got := s.proof(t, silence); got != "does not arrive" {
		t.Errorf("after removal: %q", got)
	}
	if got := ruleset(t); len(got) != 0 {
		t.Errorf("after removal: %q", got)
	}
	if err := redirect.Remove(); err != nil {
		t.Errorf("second removal: %v", err)
	}
	apply(t, s.config(somebodyElse))
	if got := s.proof(t, patience); got != "redirected to itself" {
		t.Errorf("as somebody else: %q", got)
	}
}

func TestApplyIsIdempotent(t *testing.T) {
	if !inPod(t) {
		return
	}
	s := startSidecar(t)
	c := everything(s, somebodyElse, false)
	apply(t, c)
	first := ruleset(t)
	if len(first) < 30 {
		t.Fatalf("%d lines only: %q", len(first), first)
	}
	apply(t, c)
	if d := cmp.Diff(first, ruleset(t)); d != "" {
		t.Errorf("second time (-first +second):\n%s", d)
	}
	// What others have put into our table goes, too.
	nft := &nftables.Conn{}
	stray := nft.AddChain(&nftables.Chain{Name: "stray", Table: ourTable()})
	nft.AddRule(&nftables.Rule{Table: stray.Table, Chain: stray})
	if err := nft.Flush(); err != nil {
		t.Fatal(err)
	}
	apply(t, c)
	if d := cmp.Diff(first, ruleset(t)); d != "" {
		t.Errorf("after a stray chain (-first +third):\n%s", d)
	}
	apply(t, s.config(somebodyElse))
	if cmp.Equal(first, ruleset(t)) {
		t.Error("another Config makes the same rules")
	}
}

// A refused Config leaves the rules as they are.
func TestBadConfigChangesNothing(t *testing.T) {
	if !inPod(t) {
		return
	}
	s := startSidecar(t)
	apply(t, s.config(somebodyElse))
	before := ruleset(t)
	if err := redirect.Apply(redirect.Config{}); err == nil {
		t.Fatal("applied an empty Config")
	}
	if d := cmp.Diff(before, ruleset(t)); d != "" {
		t.Error(d)
	}
}

// While rules are replaced again and again, nothing leaves.
func TestReplacementIsAtomic(t *testing.T) {
	if !inPod(t) {
		return
	}
	s, w := startSidecar(t), sniff(t)
	a, b := s.config(somebodyElse), everything(s, somebodyElse, false)
	apply(t, a)
	done := make(chan error, 1)
	go func() {
		var err error
		for range 40 {
			if err = errors.Join(redirect.Apply(b), redirect.Apply(a)); err != nil {
				break
			}
		}
		done <- err
	}()
	const enough = 5000 // of the source ports, each of which stays used for a minute
	for n := 0; ; n++ {
		if n == enough {
			done <- <-done
		}
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			w.flush(t)
			if ok, _ := w.left(tcp(outside4 + ":443")); ok {
				t.Error("packets have left")
			}
			t.Logf("%d connections", n)
			if n == 0 {
				t.Error("no connection was made meanwhile")
			}
			return
		default:
			s.arrives(t, outside4+":443")
		}
	}
}

func (s *sidecar) arrives(t *testing.T, to string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", to, patience)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	_ = c.Close()
	select {
	case got := <-s.accepted:
		if got.err != nil || got.dst != ap(to) {
			t.Fatalf("arrived as %v, %v", got.dst, got.err)
		}
	case <-time.After(patience):
		t.Fatal("the proxy was not given the connection")
	}
}
