package resolve

import (
	"bufio"
	"io"
	"net/netip"
	"strings"
)

// Nameservers reads those of a resolv.conf, at most three as the C library
// does (resolv.conf(5)). It is for hosts on which nobody names better ones.
func Nameservers(r io.Reader) []netip.AddrPort {
	const most = 3
	var out []netip.AddrPort
	for s := bufio.NewScanner(r); s.Scan() && len(out) < most; {
		f := strings.Fields(s.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			out = append(out, netip.AddrPortFrom(a, 53))
		}
	}
	return out
}
