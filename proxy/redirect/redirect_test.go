package redirect_test

import (
	"net/netip"
	"testing"

	"github.com/attache-dev/attache/proxy/redirect"
)

func valid() redirect.Config { return redirect.Config{Port4: 15001, Port6: 15001, SidecarUID: 64200} }

func TestValidate(t *testing.T) {
	prefix := func(s string) func(*redirect.Config) {
		return func(c *redirect.Config) { c.ExcludedCIDRs = []netip.Prefix{netip.MustParsePrefix(s)} }
	}
	tests := []struct {
		name string
		edit func(*redirect.Config)
		want string // empty: none
	}{
		{"minimal", func(*redirect.Config) {}, ""},
		{"all", func(c *redirect.Config) {
			c.APIServer = []netip.AddrPort{netip.MustParseAddrPort("10.96.0.1:443")}
			c.Nameservers = []netip.Addr{netip.MustParseAddr("169.254.20.10")}
			c.ExcludedCIDRs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
			c.ExcludedPorts, c.ExcludedUIDs = []uint16{22}, []uint32{1337}
		}, ""},
		{"no port for IPv4", func(c *redirect.Config) { c.Port4 = 0 }, "listener ports: are 0 and 15001; both are required"},
		{"no port for IPv6", func(c *redirect.Config) { c.Port6 = 0 }, "listener ports: are 15001 and 0; both are required"},
		{"root sidecar", func(c *redirect.Config) { c.SidecarUID = 0 }, "sidecar uid: is 0; must be one that nothing else runs as"},
		{"root excluded", func(c *redirect.Config) { c.ExcludedUIDs = []uint32{7, 0} }, "excluded uids: 0 would exempt every container that runs as root"},
		{"HTTPS excluded", func(c *redirect.Config) { c.ExcludedPorts = []uint16{443} }, "excluded ports: 443 would leave nothing to redirect; exclude a CIDR"},
		{"port 0", func(c *redirect.Config) { c.ExcludedPorts = []uint16{0} }, "excluded ports: 0 is not a port"},
		{"no CIDR", func(c *redirect.Config) { c.ExcludedCIDRs = make([]netip.Prefix, 1) }, "excluded CIDRs: invalid Prefix is not a CIDR"},
		{"host bits", prefix("10.1.2.3/8"), "excluded CIDRs: 10.1.2.3/8 has bits beyond its length; is 10.0.0.0/8 meant?"},
		{"mapped", prefix("::ffff:10.0.0.0/104"), "excluded CIDRs: ::ffff:10.0.0.0/104 is IPv4 in IPv6; write it as IPv4"},
		{"all of IPv4", prefix("0.0.0.0/0"), "excluded CIDRs: 0.0.0.0/0 contains 192.0.2.64, which proves the redirect"},
		{"all of IPv6", prefix("::/0"), "excluded CIDRs: ::/0 contains 2001:db8::64, which proves the redirect"},
		{"proof", prefix("192.0.2.64/32"), "excluded CIDRs: 192.0.2.64/32 contains 192.0.2.64, which proves the redirect"},
		{"control", prefix("2001:db8::65/128"), "excluded CIDRs: 2001:db8::65/128 contains 2001:db8::65, which proves the redirect"},
		{"API server without port", func(c *redirect.Config) {
			c.APIServer = []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("10.96.0.1"), 0)}
		}, "kube-apiserver: 10.96.0.1:0 is not an address and port of a server"},
		{"API server nowhere", func(c *redirect.Config) { c.APIServer = make([]netip.AddrPort, 1) }, "kube-apiserver: invalid AddrPort is not an address and port of a server"},
		{"resolver anywhere", func(c *redirect.Config) { c.Nameservers = []netip.Addr{netip.IPv6Unspecified()} }, "nameservers: :: is not an address of a server"},
		{"resolver with a zone", func(c *redirect.Config) { c.Nameservers = []netip.Addr{netip.MustParseAddr("fe80::1%eth0")} }, "nameservers: fe80::1%eth0 is not an address of a server"},
		{"resolver at the proof", func(c *redirect.Config) { c.Nameservers = []netip.Addr{netip.MustParseAddr("192.0.2.64")} }, "nameservers: 192.0.2.64 is not an address of a server"},
		{"too many", func(c *redirect.Config) {
			c.ExcludedUIDs = make([]uint32, 59)
			for i := range c.ExcludedUIDs {
				c.ExcludedUIDs[i] = uint32(i + 1)
			}
			c.ExcludedPorts = []uint16{1, 2, 3, 4, 5}
			c.Nameservers = []netip.Addr{netip.MustParseAddr("10.96.0.10")}
		}, "exclusions: make 66 rules, two for each nameserver; at most 64"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := valid()
			tt.edit(&c)
			got := ""
			if err := c.Validate(); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestIsTest(t *testing.T) {
	for a, want := range map[string]bool{
		"192.0.2.64": true, "192.0.2.65": true, "::ffff:192.0.2.64": true, "2001:db8::64": true, "2001:db8::65": true,
		"192.0.2.63": false, "192.0.2.66": false, "2001:db8::63": false, "::1": false,
	} {
		if got := redirect.IsTest(netip.MustParseAddr(a)); got != want {
			t.Errorf("IsTest(%s) = %v", a, got)
		}
	}
}
