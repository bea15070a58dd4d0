package isolate

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"
)

// clock is a time that tests move.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func table(limit int) (*Names, *clock) {
	c := &clock{time.Unix(1, 0)}
	n := NewNames(c.now)
	n.max = limit
	return n, c
}

func TestNames(t *testing.T) {
	n, _ := table(10)
	four, six, err := n.Addresses("api.example.com")
	if err != nil {
		t.Fatal(err)
	}
	again, _, err := n.Addresses("api.example.com")
	if err != nil || again != four {
		t.Errorf("the second time %v, %v; want %v", again, err, four)
	}
	if other, _, _ := n.Addresses("other.example.com"); other == four {
		t.Error("two names have one address")
	}
	for _, a := range []netip.Addr{four, six, netip.AddrFrom16(four.As16())} {
		if name, reserved := n.Name(a); name != "api.example.com" || !reserved {
			t.Errorf("%v is %q, %v", a, name, reserved)
		}
	}
	for text, reserved := range map[string]bool{
		"198.18.0.1": true, "198.19.255.255": true, "198.20.0.0": false, "198.17.255.255": false, "8.8.8.8": false,
		"fd61:7474:6163::1": true, "fd61:7474:6163:0:1::100": true, "fd61:7474:6164::100": false, "2001:db8::1": false,
	} {
		if name, r := n.Name(netip.MustParseAddr(text)); name != "" || r != reserved {
			t.Errorf("%s: %q, %v; want no name, %v", text, name, r, reserved)
		}
	}
}

// An address that somebody may still remember never gets another name.
func TestNamesAreBoundedAndNotReusedSoon(t *testing.T) {
	const limit = 4
	n, c := table(limit)
	var first [limit]netip.Addr
	for i := range first {
		a, _, err := n.Addresses("n" + strconv.Itoa(i))
		if err != nil {
			t.Fatal(err)
		}
		first[i] = a
		c.t = c.t.Add(time.Second)
	}
	if _, _, err := n.Addresses("more"); !errors.Is(err, errFull) {
		t.Fatalf("a full table: %v", err)
	}
	c.t = c.t.Add(minAge - limit*time.Second)
	n.Name(first[0]) // a connection keeps it
	c.t = c.t.Add(2 * time.Second)
	a, _, err := n.Addresses("more")
	if err != nil || a != first[1] {
		t.Fatalf("after an hour: %v, %v; want that of the longest unused, %v", a, err, first[1])
	}
	if name, _ := n.Name(first[0]); name != "n0" {
		t.Errorf("the one in use is now %q", name)
	}
	if name, _ := n.Name(a); name != "more" {
		t.Errorf("the one used again is %q", name)
	}
	if len(n.byName) != limit || len(n.bySlot) != limit || n.recent.Len() != limit {
		t.Errorf("%d, %d, %d entries; want %d", len(n.byName), len(n.bySlot), n.recent.Len(), limit)
	}
}

func TestCanonical(t *testing.T) {
	for in, want := range map[string]string{"Api.Example.COM.": "api.example.com", "xn--bcher-kva.example": "xn--bcher-kva.example", "single": "single"} {
		if got, ok := canonical(in); !ok || got != want {
			t.Errorf("%q: %q, %v", in, got, ok)
		}
	}
	for _, in := range []string{"", ".", "1.2.3.4", "0x7f.1", "127.1", "a b", "a..b", "[::1]", "::1", strings.Repeat("a", 64), "a/b", "a:80"} {
		if got, ok := canonical(in); ok {
			t.Errorf("%q is taken for %q", in, got)
		}
	}
}
