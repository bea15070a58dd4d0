// Package redirect takes a pod's outbound connections to the sidecar's
// loopback listeners, by nftables rules in the pod's own network namespace,
// and reads back where each was going.
//
// [Apply] installs one table in one transaction, [Remove] takes it away;
// both need CAP_NET_ADMIN in the namespace. A [Prover], which needs no
// privilege, shows from within the sidecar that the rules are in force.
// [OriginalDst] tells the address that a redirected connection was made to.
//
// The rules see first packets only: connections that were open before them
// go on as they were.
//
// Linux only; elsewhere every function returns an error that matches
// [errors.ErrUnsupported].
package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// ErrNotRedirected says that a connection was made to the listener itself:
// no rule has brought it there, and it names no destination.
var ErrNotRedirected = errors.New("connection was not redirected")

// maxExclusions bounds the rules that all exclusions together make: every
// first packet may have to pass them, and the kernel acknowledges each one into
// a receive buffer of bounded size. The default of Linux, 208 KiB, holds about
// 100 of them.
const maxExclusions = 64

// httpsPort is the port that matters most, also over UDP, where HTTP/3 is: a
// [Prover] tries it.
const httpsPort = 443

// Config says what is redirected where. Validate checks it.
type Config struct {
	// Port4 is the port of the sidecar's listener on 127.0.0.1, Port6 of that
	// on [::1]. Both are required. Where nobody listens, connections of that
	// family are refused: a host without IPv6 needs no listener on [::1].
	Port4, Port6 uint16
	// SidecarUID is the user id that the sidecar alone runs as. Its own
	// connections go where they are made to. Zero, root, is refused: root is
	// what agents' containers often run as.
	SidecarUID uint32
	// APIServer lists where the kube-apiserver is: TCP to exactly these goes
	// past the sidecar. What may be done there is the cluster's RBAC.
	APIServer []netip.AddrPort
	// Nameservers lists the resolvers of the pod: DNS to them, over UDP and
	// TCP, goes past the sidecar.
	Nameservers []netip.Addr
	// ExcludedCIDRs, ExcludedPorts (TCP) and ExcludedUIDs go past the sidecar.
	// They are holes: no rule, no record. Only ExcludedUIDs open a way to the
	// metadata addresses.
	ExcludedCIDRs []netip.Prefix
	ExcludedPorts []uint16
	ExcludedUIDs  []uint32
	// Strict rejects every protocol but TCP, ICMP and what is exempt. Without
	// it, UDP to port 443 and all but TCP to the metadata addresses are
	// rejected.
	Strict bool
}

// The test addresses are reserved for documentation (RFC 5737 section 3,
// RFC 3849), so that nobody lives there. The proof's are redirected for the
// sidecar, too; the control's are not, and are reset: [Prover] shows both.
const (
	proof4, control4 = "192.0.2.64", "192.0.2.65"
	proof6, control6 = "2001:db8::64", "2001:db8::65"
)

func proofs() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr(proof4), netip.MustParseAddr(proof6)}
}

func controls() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr(control4), netip.MustParseAddr(control6)}
}

// IsTest tells whether a is one of the addresses that a [Prover] connects
// to. Nothing may be sent there for a workload.
func IsTest(a netip.Addr) bool {
	return slices.Contains(proofs(), a.Unmap()) || slices.Contains(controls(), a.Unmap())
}

// Metadata lists where clouds and nodes hand out credentials and settings
// without asking for any: no exclusion but that of a user id reaches them.
// TCP to them arrives at the listener like all other, and the sidecar
// decides. Resolvers there must be named in Config.Nameservers.
func Metadata() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("169.254.0.0/16"),     // AWS, ECS, EKS, GCP, Azure, OpenStack, OCI
		netip.MustParsePrefix("168.63.129.16/32"),   // Azure's WireServer
		netip.MustParsePrefix("100.100.100.200/32"), // Alibaba Cloud
		netip.MustParsePrefix("fd00:ec2::/32"),      // AWS
		netip.MustParsePrefix("fd20:ce::254/128"),   // GCP
	}
}

// Validate says what is wrong with c, all of it.
func (c Config) Validate() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Port4 == 0 || c.Port6 == 0 {
		wrong("listener ports: are %d and %d; both are required", c.Port4, c.Port6)
	}
	if c.SidecarUID == 0 {
		wrong("sidecar uid: is 0; must be one that nothing else runs as")
	}
	if slices.Contains(c.ExcludedUIDs, 0) {
		wrong("excluded uids: 0 would exempt every container that runs as root")
	}
	if slices.Contains(c.ExcludedPorts, httpsPort) {
		wrong("excluded ports: %d would leave nothing to redirect; exclude a CIDR", httpsPort)
	}
	if slices.Contains(c.ExcludedPorts, 0) {
		wrong("excluded ports: 0 is not a port")
	}
	for _, p := range c.ExcludedCIDRs {
		checkCIDR(p, wrong)
	}
	for _, a := range c.APIServer {
		if !a.IsValid() || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().Zone() != "" || IsTest(a.Addr()) {
			wrong("kube-apiserver: %v is not an address and port of a server", a)
		}
	}
	for _, a := range c.Nameservers {
		if !a.IsValid() || a.IsUnspecified() || a.Zone() != "" || IsTest(a) {
			wrong("nameservers: %v is not an address of a server", a)
		}
	}
	n := len(c.ExcludedCIDRs) + len(c.ExcludedPorts) + len(c.ExcludedUIDs) + len(c.APIServer) + 2*len(c.Nameservers)
	if n > maxExclusions {
		wrong("exclusions: make %d rules, two for each nameserver; at most %d", n, maxExclusions)
	}
	return errors.Join(errs...)
}

func checkCIDR(p netip.Prefix, wrong func(string, ...any)) {
	switch {
	case !p.IsValid():
		wrong("excluded CIDRs: %v is not a CIDR", p)
		return
	case p.Addr().Is4In6():
		wrong("excluded CIDRs: %v is IPv4 in IPv6; write it as IPv4", p)
		return
	case p.Masked() != p:
		wrong("excluded CIDRs: %v has bits beyond its length; is %v meant?", p, p.Masked())
		return
	}
	for _, a := range append(proofs(), controls()...) {
		if p.Contains(a) { // so does all of a family
			wrong("excluded CIDRs: %v contains %v, which proves the redirect", p, a)
			return
		}
	}
}
