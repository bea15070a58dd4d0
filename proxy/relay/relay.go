// Package relay is what a sidecar and a relay of the control plane say to each
// other: an ordinary request, to the origin's own authority and path, on a
// mutually authenticated connection to the relay, and a few fields beside it.
//
// The sidecar has decided, recorded and cleaned the request; the relay believes
// none of that and does it again, puts the credential on, and streams the
// answer back. HTTP/2 carries everything but upgrades, which go by HTTP/1.1.
package relay

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/attache-dev/attache/proxy/destination"
)

// Port is the relay's, on the host of the control plane.
const Port = "8447"

// Fields beside the request, which the relay takes off.
const (
	headerTo     = "Attache-Relay-To"
	headerHandle = "Attache-Relay-Handle"
	headerRecord = "Attache-Relay-Record"
)

// HeaderAddress is the field of an answer that names the origin's address.
const HeaderAddress = "Attache-Relay-Address"

// HeaderError marks an answer as the relay's own. It is taken off origins'.
const HeaderError = "Attache-Error"

// ErrCall is matched by requests that no sidecar of ours sends.
var ErrCall = errors.New("the request names no call")

// Call is what a sidecar says beside a request.
type Call struct {
	To     destination.Destination
	Handle string // of the credential, in the sidecar's records
	Record string // id of the sidecar's record
}

// put writes c on a request's header.
func (c Call) put(h http.Header) {
	h[headerTo] = []string{c.To.Scheme + "://" + c.To.HostPort()}
	h[headerHandle] = []string{c.Handle}
	h[headerRecord] = []string{c.Record}
}

// Take reads a Call and takes its fields off. The request must be for the
// destination that it names.
func Take(r *http.Request) (Call, error) {
	c := Call{Handle: r.Header.Get(headerHandle), Record: r.Header.Get(headerRecord)}
	to := r.Header.Get(headerTo)
	for _, k := range []string{headerTo, headerHandle, headerRecord} {
		if len(r.Header[k]) != 1 {
			return Call{}, fmt.Errorf("%w: %s is not there once", ErrCall, k)
		}
		delete(r.Header, k)
	}
	u, err := url.Parse(to)
	if err != nil || u.Port() == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		return Call{}, fmt.Errorf("%w: %s is not SCHEME://HOST:PORT", ErrCall, headerTo)
	}
	if c.To, err = destination.FromURL(u); err != nil {
		return Call{}, fmt.Errorf("%w: %w", ErrCall, err)
	}
	if c.To.Scheme+"://"+c.To.HostPort() != to {
		return Call{}, fmt.Errorf("%w: %s is not in its one normal spelling", ErrCall, headerTo)
	}
	if !c.To.Is(r.Host) {
		return Call{}, fmt.Errorf("%w: Host and %s name two places", ErrCall, headerTo)
	}
	if !named(c.Handle, "cred_") || !named(c.Record, "rec_") {
		return Call{}, fmt.Errorf("%w: handle or record is no name of ours", ErrCall)
	}
	return c, nil
}

// named reports a prefix and 128 random bits in hexadecimal digits.
func named(s, prefix string) bool {
	s, ok := strings.CutPrefix(s, prefix)
	return ok && len(s) == 32 && strings.Trim(s, "0123456789abcdef") == ""
}
