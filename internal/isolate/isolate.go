// Package isolate makes a network namespace whose only way out is Attaché: it
// has no interface but lo, every address in the world is local to it, and
// whatever connects by TCP, to any address and port, is accepted by our
// listener inside. The data path serves that listener from outside, by a file
// descriptor, and dials outside.
//
// [Build], called in a stage that runs inside with CAP_NET_ADMIN over the
// namespace, sets it up and opens the [Sockets], which [Pass] hands to the
// launcher. The stage gives its capabilities up before it becomes the agent.
// A [Resolver] answers the agent's DNS with addresses of our own, so that the
// name behind a connection is known whatever the protocol, and no name that an
// agent makes up ever reaches a real server.
//
// Linux only; elsewhere every function returns an error that matches
// [errors.ErrUnsupported]. docs/isolation.md says what holds and what does not.
package isolate

import (
	"errors"
	"net/netip"
)

// ErrForbidden is matched by errors that say that this machine does not let us
// make the namespaces. The text names the setting to change.
var ErrForbidden = errors.New("network isolation is impossible here")

// TransparentPort is where everything that is not for the namespace itself
// arrives. [Sockets.Transparent] listen there.
const TransparentPort = 15001

// FirstDoorPort is the first of the ports inside for doors that may have any.
const FirstDoorPort = 15002

// dnsPort is that of RFC 1035 section 4.2.
const dnsPort = 53

// maxDoors bounds Spec.Ports: one message carries at most 253 descriptors.
const maxDoors = 200

// The namespace's own addresses. 198.18.0.0/15 is reserved for tests of
// network devices (RFC 2544), the other is a unique local prefix (RFC 4193):
// neither is anybody's on the Internet, and what is on the machine's own
// network at these addresses cannot be reached from inside in any case.
const (
	ownText4, poolText4 = "198.18.0.1", "198.18.0.0/15"
	ownText6, poolText6 = "fd61:7474:6163::1", "fd61:7474:6163::/48"
)

func own4() netip.Addr { return netip.MustParseAddr(ownText4) }
func own6() netip.Addr { return netip.MustParseAddr(ownText6) }

// own are the networks whose packets stay inside untouched: the agent's own
// servers and our doors.
func own() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("127.0.0.0/8"), netip.PrefixFrom(own4(), 32),
		netip.MustParsePrefix("::1/128"), netip.PrefixFrom(own6(), 128),
	}
}

// ResolvConf is what the agent finds in /etc/resolv.conf: our resolver, and no
// search list, since every name exists in its first form.
const ResolvConf = "# attache run --isolate: names are resolved by the proxy, behind the policy\nnameserver " + ownText4 + "\nsearch .\n"

// Spec says what [Build] opens.
type Spec struct {
	// Ports are those of TCP listeners on 127.0.0.1 beside the transparent
	// ones: the explicit proxy, base URLs.
	Ports []uint16
}
