// Package destination turns what clients write (CONNECT authority, SNI, Host)
// into one canonical value, and refuses every other spelling.
//
// The value is what policy, dialler, certificate check and upstream Host all
// use, so two spellings of one place must never make two values, and one
// spelling must never be read as two places. Where a spelling is read
// differently by different programs (0x7f.1, a zone, a v4-mapped address) it
// is refused.
package destination

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// ErrInvalid is matched by every error of this package.
var ErrInvalid = errors.New("invalid destination")

// Limits of DNS names: RFC 1035 section 2.3.4.
const (
	maxName  = 253
	maxLabel = 63
	// maxAuthority bounds what is looked at before anything is parsed; a name
	// in Unicode can be longer than its A-label form.
	maxAuthority = 1024
)

// PortRequired as defaultPort makes [Parse] refuse an authority without port,
// as CONNECT must (RFC 9110 section 9.3.6).
const PortRequired = -1

// Destination is a canonical scheme, host and port. Host is lower case, an
// A-label name without trailing dot or an IP address in its one normal
// spelling. Values are made by Parse and comparable.
type Destination struct {
	Scheme string // https or http
	Host   string
	Port   int
}

// IsZero reports whether d names nothing.
func (d Destination) IsZero() bool { return d == Destination{} }

// HostPort returns host:port, for dialling.
func (d Destination) HostPort() string { return net.JoinHostPort(d.Host, strconv.Itoa(d.Port)) }

// Authority returns what stands in Host and :authority: the host (an IPv6
// address in brackets), and the port unless it is the scheme's default.
func (d Destination) Authority() string {
	host := d.Host
	if strings.IndexByte(host, ':') >= 0 {
		host = "[" + host + "]"
	}
	if d.Port == DefaultPort(d.Scheme) {
		return host
	}
	return host + ":" + strconv.Itoa(d.Port)
}

// String returns scheme://authority.
func (d Destination) String() string { return d.Scheme + "://" + d.Authority() }

// IsIP reports whether the host is an address rather than a name.
func (d Destination) IsIP() bool {
	_, err := netip.ParseAddr(d.Host)
	return err == nil
}

// Is reports whether authority, as written by a client, names d. The canonical
// spelling costs no allocation.
func (d Destination) Is(authority string) bool {
	if authority == d.Host && d.Port == DefaultPort(d.Scheme) && strings.IndexByte(authority, ':') < 0 {
		return true
	}
	o, err := Parse(d.Scheme, authority, 0)
	return err == nil && o == d
}

// WithHost returns d with another host (an SNI name), in canonical form.
func (d Destination) WithHost(host string) (Destination, error) {
	h, err := ParseHost(host)
	if err != nil {
		return Destination{}, err
	}
	d.Host = h
	return d, nil
}

// DefaultPort is the port that scheme implies, or 0.
func DefaultPort(scheme string) int {
	switch scheme {
	case "https":
		return 443
	case "http":
		return 80
	}
	return 0
}

// Parse reads an authority (host, host:port, [v6], [v6]:port). Without a port
// it takes defaultPort, or the scheme's where that is 0; with [PortRequired]
// it refuses. Errors match [ErrInvalid].
func Parse(scheme, authority string, defaultPort int) (Destination, error) {
	if DefaultPort(scheme) == 0 {
		return Destination{}, invalid(scheme, "the scheme must be https or http")
	}
	if len(authority) > maxAuthority {
		return Destination{}, fmt.Errorf("%w: authority is longer than %d bytes", ErrInvalid, maxAuthority)
	}
	host, port, err := split(authority)
	if err != nil {
		return Destination{}, err
	}
	d := Destination{Scheme: scheme, Port: defaultPort}
	switch {
	case port != "":
		if d.Port, err = parsePort(port); err != nil {
			return Destination{}, err
		}
	case defaultPort == PortRequired:
		return Destination{}, invalid(authority, "it must be host:port")
	case defaultPort == 0:
		d.Port = DefaultPort(scheme)
	}
	if d.Port < 1 || d.Port > 65535 {
		return Destination{}, invalid(authority, "the port must be 1 to 65535")
	}
	if d.Host, err = parseHost(host); err != nil {
		return Destination{}, err
	}
	return d, nil
}

// FromURL returns the destination of an absolute http or https URL without
// userinfo.
func FromURL(u *url.URL) (Destination, error) {
	if u.User != nil {
		return Destination{}, fmt.Errorf("%w: the URL carries a user name; leave it out", ErrInvalid)
	}
	if u.Opaque != "" {
		return Destination{}, fmt.Errorf("%w: the URL must be scheme://host/path", ErrInvalid)
	}
	return Parse(strings.ToLower(u.Scheme), u.Host, 0)
}

// ParseHost returns the canonical form of a host without port: a name, an
// IPv4 address or an IPv6 address with or without brackets.
func ParseHost(host string) (string, error) {
	if len(host) > maxAuthority {
		return "", fmt.Errorf("%w: host is longer than %d bytes", ErrInvalid, maxAuthority)
	}
	if strings.IndexByte(host, ':') >= 0 && !strings.HasPrefix(host, "[") {
		host = "[" + host + "]"
	}
	return parseHost(host)
}

// split cuts the port off. An empty port ("host:") is a second spelling of no
// port and refused.
func split(authority string) (host, port string, err error) {
	i := strings.LastIndexByte(authority, ':')
	if strings.HasPrefix(authority, "[") {
		end := strings.IndexByte(authority, ']')
		if end < 0 {
			return "", "", invalid(authority, "the bracket is not closed")
		}
		if end == len(authority)-1 {
			return authority, "", nil
		}
		if i != end+1 {
			return "", "", invalid(authority, "only :port may follow the bracket")
		}
	}
	if i < 0 {
		return authority, "", nil
	}
	if i == len(authority)-1 {
		return "", "", invalid(authority, "the port after the colon is missing")
	}
	return authority[:i], authority[i+1:], nil
}

func parsePort(s string) (int, error) {
	if len(s) > 5 || s[0] == '0' {
		return 0, invalid(s, "the port must be 1 to 65535 without leading zero")
	}
	n := 0
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, invalid(s, "the port must be 1 to 65535")
		}
		n = n*10 + int(s[i]-'0')
	}
	if n > 65535 {
		return 0, invalid(s, "the port must be 1 to 65535")
	}
	return n, nil
}

// parseHost takes a name, an IPv4 address, or an IPv6 address in brackets.
func parseHost(host string) (string, error) {
	if strings.HasPrefix(host, "[") {
		return parseIPv6(host)
	}
	name := strings.TrimSuffix(host, ".")
	name, err := lookupForm(name)
	if err != nil {
		return "", invalid(host, "the name is not valid for look-up (RFC 5891)")
	}
	if err := checkName(host, name); err != nil {
		return "", err
	}
	// A name whose last label is a number is an address to inet_aton, and
	// to whoever follows the URL standard: only dotted decimal may pass.
	if endsInNumber(name) {
		a, err := netip.ParseAddr(name)
		if err != nil || a.String() != host {
			return "", invalid(host, "an IPv4 address must be four decimal numbers without leading zeros")
		}
	}
	return name, nil
}

// parseIPv6 takes one spelling, RFC 5952 section 4, whatever the letters' case.
func parseIPv6(host string) (string, error) {
	inner, ok := strings.CutSuffix(host[1:], "]")
	if !ok {
		return "", invalid(host, "the bracket is not closed")
	}
	a, err := netip.ParseAddr(inner)
	switch {
	case err != nil || !a.Is6():
		return "", invalid(host, "there is no IPv6 address in the brackets")
	case a.Zone() != "":
		return "", invalid(host, "an address must not carry a zone")
	case a.Is4In6():
		return "", invalid(host, "write a v4-mapped address as IPv4")
	case a.String() != strings.ToLower(inner):
		return "", invalid(host, "the address must be written as "+a.String())
	}
	return a.String(), nil
}

// lookupForm lowers ASCII and turns Unicode and A-labels into the one A-label
// form. Plain ASCII names do not pass through IDNA, which refuses names in
// use ("r3---sn.example").
func lookupForm(name string) (string, error) {
	plain := true
	for i := range len(name) {
		if name[i] >= 0x80 {
			plain = false
			break
		}
	}
	if plain {
		name = strings.ToLower(name)
		if !strings.HasPrefix(name, "xn--") && !strings.Contains(name, ".xn--") {
			return name, nil
		}
	}
	out, err := idna.Lookup.ToASCII(name)
	if err != nil {
		return "", err
	}
	// A label may claim to be an A-label and decode to plain ASCII: a second
	// spelling of an ordinary name.
	for label := range strings.SplitSeq(out, ".") {
		if !strings.HasPrefix(label, "xn--") {
			continue
		}
		u, err := idna.Punycode.ToUnicode(label)
		if err != nil || isASCII(u) {
			return "", ErrInvalid
		}
	}
	if again, err := idna.Lookup.ToASCII(out); err != nil || again != out {
		return "", ErrInvalid
	}
	return out, nil
}

// checkName allows letters, digits, hyphens inside a label, and underscores:
// those are no host names by RFC 952, but resolve, and are in use.
func checkName(written, name string) error {
	if name == "" {
		return invalid(written, "the host is missing")
	}
	if len(name) > maxName {
		return fmt.Errorf("%w: the name is longer than %d bytes", ErrInvalid, maxName)
	}
	for label := range strings.SplitSeq(name, ".") {
		switch {
		case label == "":
			return invalid(written, "a label is empty")
		case len(label) > maxLabel:
			return fmt.Errorf("%w: a label is longer than %d bytes", ErrInvalid, maxLabel)
		case label[0] == '-' || label[len(label)-1] == '-':
			return invalid(written, "a label begins or ends with a hyphen")
		}
		for i := range len(label) {
			c := label[i]
			if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return invalid(written, "a host holds letters, digits, hyphens and dots")
			}
		}
	}
	return nil
}

// endsInNumber is the "ends in a number checker" of the URL standard.
func endsInNumber(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// invalid quotes at most a bounded, escaped part of what the client wrote.
func invalid(s, why string) error {
	const show = 80
	if len(s) > show {
		s = s[:show] + "…"
	}
	return fmt.Errorf("%w: %q: %s", ErrInvalid, s, why)
}
