package upstream

import (
	"errors"
	"fmt"
	"net/netip"
)

// ErrAddress is matched by every refusal of an address.
var ErrAddress = errors.New("address refused")

// reserved lists ranges that no name may point at unless the operator pinned
// the address (IANA special-purpose registries, RFC 6890).
var reserved = []struct {
	prefix  netip.Prefix
	what    string
	private bool // reachable with upstream.allowPrivate
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "this-network", false},
	{netip.MustParsePrefix("10.0.0.0/8"), "private", true},
	{netip.MustParsePrefix("100.100.100.200/32"), "metadata", false},
	{netip.MustParsePrefix("100.64.0.0/10"), "carrier-grade NAT", true},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback", false},
	{netip.MustParsePrefix("168.63.129.16/32"), "metadata", false},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local or metadata", false},
	{netip.MustParsePrefix("172.16.0.0/12"), "private", true},
	{netip.MustParsePrefix("192.0.0.0/24"), "protocol assignments", false},
	{netip.MustParsePrefix("192.0.2.0/24"), "documentation", false},
	{netip.MustParsePrefix("192.88.99.0/24"), "6to4 relay", false},
	{netip.MustParsePrefix("192.168.0.0/16"), "private", true},
	{netip.MustParsePrefix("198.18.0.0/15"), "benchmarking", false},
	{netip.MustParsePrefix("198.51.100.0/24"), "documentation", false},
	{netip.MustParsePrefix("203.0.113.0/24"), "documentation", false},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast", false},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved", false},
	{netip.MustParsePrefix("::/128"), "unspecified", false},
	{netip.MustParsePrefix("::1/128"), "loopback", false},
	{netip.MustParsePrefix("100::/64"), "discard-only", false},
	{netip.MustParsePrefix("2001::/23"), "protocol assignments", false},
	{netip.MustParsePrefix("2001:db8::/32"), "documentation", false},
	{netip.MustParsePrefix("3fff::/20"), "documentation", false},
	{netip.MustParsePrefix("5f00::/16"), "segment routing", false},
	{netip.MustParsePrefix("fd00:ec2::/32"), "metadata", false},
	{netip.MustParsePrefix("fd20:ce::254/128"), "metadata", false},
	{netip.MustParsePrefix("fc00::/7"), "private", true},
	{netip.MustParsePrefix("fe80::/10"), "link-local", false},
	{netip.MustParsePrefix("fec0::/10"), "site-local", false},
	{netip.MustParsePrefix("ff00::/8"), "multicast", false},
}

// embedded lists IPv6 ranges that carry an IPv4 address at a byte offset; the
// inner address is checked too, since a translator will dial it.
var embedded = []struct {
	prefix netip.Prefix
	offset int
}{
	{netip.MustParsePrefix("::ffff:0:0/96"), 12},   // v4-mapped, RFC 4291 section 2.5.5.2
	{netip.MustParsePrefix("::ffff:0:0:0/96"), 12}, // v4-translated, RFC 7915
	{netip.MustParsePrefix("::/96"), 12},           // v4-compatible, deprecated
	{netip.MustParsePrefix("64:ff9b::/96"), 12},    // NAT64, RFC 6052
	{netip.MustParsePrefix("2002::/16"), 2},        // 6to4, RFC 3056
}

var localNAT64 = netip.MustParsePrefix("64:ff9b:1::/48") // RFC 8215: layout unknown

// CheckAddress refuses addresses that only the operator may name: loopback,
// link-local, metadata, private and other special ranges, also when they are
// wrapped in an IPv6 transition format. allowPrivate admits RFC 1918, CGNAT and
// ULA ranges. The error matches [ErrAddress].
func CheckAddress(a netip.Addr, allowPrivate bool) error {
	if !a.IsValid() || a.Zone() != "" {
		return fmt.Errorf("%w: %v is no plain address", ErrAddress, a)
	}
	if a.Is6() {
		if localNAT64.Contains(a) {
			return fmt.Errorf("%w: %v is a local NAT64 address", ErrAddress, a)
		}
		for _, e := range embedded {
			if e.prefix.Contains(a) && a != netip.IPv6Unspecified() && a != netip.IPv6Loopback() {
				b := a.As16()
				inner := netip.AddrFrom4([4]byte(b[e.offset : e.offset+4]))
				if err := CheckAddress(inner, allowPrivate); err != nil {
					return fmt.Errorf("%v holds an inner address: %w", a, err)
				}
			}
		}
		if a.Is4In6() {
			return nil
		}
	}
	for _, r := range reserved {
		if r.prefix.Contains(a) {
			if r.private && allowPrivate {
				return nil
			}
			return fmt.Errorf("%w: %v is %s; pin it in spec.destinations[].addresses if it is meant", ErrAddress, a, r.what)
		}
	}
	return nil
}
