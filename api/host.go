package api

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// checkHost says what is wrong with an exact host; "" if nothing. Only one
// spelling of each host is accepted, so that two documents that mean one host
// always write it alike.
func checkHost(s string) string {
	switch {
	case strings.Contains(s, "://") || strings.ContainsAny(s, "/?#@"):
		return "must be a host name alone, without scheme, user, port or path"
	case strings.HasPrefix(s, "["):
		return "must be an address without brackets"
	}
	if a, err := netip.ParseAddr(s); err == nil {
		switch {
		case a.Zone() != "":
			return "must be an address without zone"
		case a.Is4In6():
			return fmt.Sprintf("write it as %q", a.Unmap())
		case a.String() != s:
			return fmt.Sprintf("write it as %q", a)
		}
		return ""
	}
	if strings.Contains(s, ":") {
		return "must be a host name without port (the port is a field of its own)"
	}
	return checkName(s)
}

func checkName(s string) string {
	if strings.HasSuffix(s, ".") && s != "." {
		return fmt.Sprintf("write it as %q, without the final dot", strings.TrimRight(s, "."))
	}
	for _, r := range s {
		if r >= 0x80 {
			if a, err := idna.Lookup.ToASCII(s); err == nil {
				return fmt.Sprintf("write it as %q", a)
			}
			return "must be a host name in its ASCII form (xn--…)"
		}
	}
	if lower := strings.ToLower(s); lower != s {
		return fmt.Sprintf("write it as %s", quote(lower))
	}
	labels := strings.Split(s, ".")
	for _, l := range labels {
		if !isLabel(l) {
			return "must be a host name such as api.example.com"
		}
	}
	// WHATWG URL section 3.5: a name whose last label is a number is an
	// address in an alternative spelling (127.1, 0x7f000001).
	last := labels[len(labels)-1]
	if strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") {
		return "is an unusual spelling of an address; must be a host name or an address such as 192.0.2.1"
	}
	if len(s) > 253 {
		return "must be at most 253 characters long"
	}
	return ""
}

func isLabel(l string) bool {
	if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
		return false
	}
	for _, c := range []byte(l) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// checkPattern says what is wrong with a host pattern.
func checkPattern(s string) string {
	rest, wild := wildcard(s)
	if strings.Contains(rest, "*") {
		return `a wildcard is the whole first label: "*.example.com" (one label) or "**.example.com" (one or more)`
	}
	if !wild {
		return checkHost(s)
	}
	if _, err := netip.ParseAddr(rest); err == nil {
		return "an address has no wildcard"
	}
	return checkHost(rest)
}

// wildcard cuts "*." or "**." off a pattern.
func wildcard(s string) (rest string, wild bool) {
	if rest, ok := strings.CutPrefix(s, "**."); ok {
		return rest, true
	}
	return strings.CutPrefix(s, "*.")
}

// tooWide reports whether strangers can register names that match the
// pattern: a wildcard right below a public suffix (*.com, *.github.io).
func tooWide(pattern string) bool {
	rest, wild := wildcard(pattern)
	if !wild {
		return false
	}
	suffix, icann := publicsuffix.PublicSuffix(rest)
	// An unlisted single label (internal, local) is a private network's own.
	return suffix == rest && (icann || strings.Contains(suffix, "."))
}

// covers reports whether every host of pattern inner is one of pattern outer.
func covers(outer, inner string) bool {
	if outer == inner || outer == "*" {
		return true
	}
	suffix, wild := wildcard(outer)
	if !wild {
		return false
	}
	many := strings.HasPrefix(outer, "**.")
	rest, innerWild := wildcard(inner)
	switch {
	case !innerWild:
		head, ok := strings.CutSuffix(inner, "."+suffix)
		return ok && head != "" && (many || !strings.Contains(head, "."))
	case rest == suffix:
		return many // "*.x" within "**.x"; the equal case is above
	default:
		return many && strings.HasSuffix(rest, "."+suffix)
	}
}

// covered reports whether a destination for the host pattern and port exists;
// port 0 is any.
func covered(ds []v1alpha1.Destination, pattern string, port int) bool {
	for _, d := range ds {
		if covers(d.Host, pattern) && (port == 0 || d.Port == port) {
			return true
		}
	}
	return false
}

// loopbackHost reports whether a host can only be this machine.
func loopbackHost(host string) bool {
	a, err := netip.ParseAddr(host) // a name, localhost included, could resolve elsewhere
	return err == nil && a.Unmap().IsLoopback()
}

// pinnedToLoopback reports whether the addresses pin a name to this machine.
func pinnedToLoopback(addresses []string) bool {
	for _, s := range addresses {
		a, err := parseAddress(s)
		if err != nil || !a.Unmap().IsLoopback() {
			return false
		}
	}
	return len(addresses) > 0
}

// parseAddress reads "IP" or "IP:port" ("[::1]:8443").
func parseAddress(s string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return a, nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err == nil && ap.Port() == 0 {
		err = fmt.Errorf("port 0")
	}
	return ap.Addr(), err
}
