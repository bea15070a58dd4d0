package policy

import (
	"fmt"
	"net/netip"
	"strings"
)

// hostClass orders host patterns by how little they match.
type hostClass int

const (
	hostAny    hostClass = iota // "*": every name, no address
	hostSuffix                  // "**.x": one or more labels before x
	hostLabel                   // "*.x": one label before x
	hostExact
)

// hostPattern is a compiled host of a rule.
type hostPattern struct {
	source string
	class  hostClass
	name   string // the exact name, or x
	labels int    // of name
}

// parseHost compiles a host pattern of a rule.
func parseHost(s string) (hostPattern, error) {
	p := hostPattern{source: s, class: hostExact, name: strings.ToLower(s)}
	switch {
	case s == "*":
		return hostPattern{source: s, class: hostAny}, nil
	case strings.HasPrefix(s, "**."):
		p.class, p.name = hostSuffix, p.name[len("**."):]
	case strings.HasPrefix(s, "*."):
		p.class, p.name = hostLabel, p.name[len("*."):]
	}
	if addr, err := netip.ParseAddr(p.name); err == nil {
		if p.class != hostExact {
			return p, fmt.Errorf("is %q; an address has no wildcard", s)
		}
		if addr.Zone() != "" || addr.Is4In6() {
			return p, fmt.Errorf("is %q; write the plain address %s", s, addr.Unmap().WithZone(""))
		}
		p.name, p.labels = addr.String(), 1
		return p, nil
	}
	if err := checkName(p.name); err != nil {
		return p, fmt.Errorf("is %q: %w", s, err)
	}
	p.labels = strings.Count(p.name, ".") + 1
	return p, nil
}

// checkName accepts host names as [Request].Host spells them.
func checkName(s string) error {
	const form = "write a name such as api.example.com, \"*.example.com\", \"**.example.com\" or \"*\""
	if s == "" || len(s) > 253 {
		return fmt.Errorf("it is empty or too long; %s", form)
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 {
			return fmt.Errorf("it has an empty or too long label; %s, without a trailing dot", form)
		}
		for i := range len(label) {
			c := label[i]
			switch {
			case c == ':':
				return fmt.Errorf("a port does not belong here; list it in ports")
			case c == '/':
				return fmt.Errorf("a scheme or path does not belong here; %s", form)
			case c >= 0x80:
				return fmt.Errorf("write the A-label (xn--…) of an international name")
			case !isAlpha(c) && !isDigit(c) && c != '-' && c != '_':
				return fmt.Errorf("%q cannot stand in a name; %s", c, form)
			}
		}
	}
	if isNumeric(s[strings.LastIndexByte(s, '.')+1:]) {
		return fmt.Errorf("it ends in a number but is no address")
	}
	return nil
}

func isNumeric(s string) bool {
	for i := range len(s) {
		if !isDigit(s[i]) {
			return false
		}
	}
	return s != ""
}

// isAddress reports whether a canonical host is an IP address: no name ends in
// an all-numeric label (RFC 3696 section 2), and no name contains a colon.
func isAddress(host string) bool {
	return strings.IndexByte(host, ':') >= 0 || isNumeric(host[strings.LastIndexByte(host, '.')+1:])
}

// matches reports whether the pattern matches a canonical host. The index
// decides requests; this is for providers' few destinations.
func (p hostPattern) matches(host string) bool {
	switch p.class {
	case hostExact:
		return host == p.name
	case hostAny:
		return !isAddress(host)
	default:
		rest, ok := strings.CutSuffix(host, p.name)
		return ok && len(rest) > 1 && strings.HasSuffix(rest, ".") &&
			(p.class == hostSuffix || strings.IndexByte(rest, '.') == len(rest)-1)
	}
}
