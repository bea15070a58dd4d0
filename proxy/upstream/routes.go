package upstream

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/proxy/destination"
)

// Route is how one destination is reached: pins, networks, roots and names as the
// operator wrote them. The zero Route is the public internet.
type Route struct {
	pins       []netip.AddrPort
	networks   []netip.Prefix // in which every address must be; none: any that is public
	roots      *x509.CertPool // nil: the system's
	rootsID    string
	serverName string
	clientSVID bool
	id         string // everything above, for pool keys
}

// Routes finds the [Route] of a destination. It is immutable.
type Routes struct {
	exact map[destination.Destination]*Route
	wild  []wildRoute
}

type wildRoute struct {
	suffix   string // ".example.com"
	oneLabel bool
	scheme   string
	port     int
	route    *Route
}

// NewRoutes compiles destinations; it reads their CA files.
func NewRoutes(ds []v1alpha1.Destination) (*Routes, error) {
	rs := &Routes{exact: make(map[destination.Destination]*Route, len(ds))}
	for i := range ds {
		r, err := newRoute(&ds[i])
		if err != nil {
			return nil, fmt.Errorf("destination %s: %w", ds[i].Host, err)
		}
		scheme, port := ds[i].Scheme, ds[i].Port
		if scheme == "" {
			scheme = "https"
		}
		if port == 0 {
			port = destination.DefaultPort(scheme)
		}
		host := strings.ToLower(ds[i].Host)
		switch {
		case strings.HasPrefix(host, "**."):
			rs.wild = append(rs.wild, wildRoute{suffix: host[2:], scheme: scheme, port: port, route: r})
		case strings.HasPrefix(host, "*."):
			rs.wild = append(rs.wild, wildRoute{suffix: host[1:], oneLabel: true, scheme: scheme, port: port, route: r})
		default:
			rs.exact[destination.Destination{Scheme: scheme, Host: host, Port: port}] = r
		}
	}
	return rs, nil
}

var public = &Route{}

// Find returns the route of d: its exact entry, else the longest wildcard
// that covers it, else the public internet.
func (rs *Routes) Find(d destination.Destination) *Route {
	if rs == nil {
		return public
	}
	if r := rs.exact[d]; r != nil {
		return r
	}
	best, length := public, -1
	for i := range rs.wild {
		w := &rs.wild[i]
		if w.scheme != d.Scheme || w.port != d.Port || !strings.HasSuffix(d.Host, w.suffix) {
			continue
		}
		head := d.Host[:len(d.Host)-len(w.suffix)]
		if head == "" || (w.oneLabel && strings.Contains(head, ".")) {
			continue
		}
		if len(w.suffix) > length || (len(w.suffix) == length && w.oneLabel) {
			best, length = w.route, len(w.suffix)
		}
	}
	return best
}

// Covers reports whether d is one of the destinations.
func (rs *Routes) Covers(d destination.Destination) bool { return rs.Find(d) != public }

func newRoute(d *v1alpha1.Destination) (*Route, error) {
	pins, err := parsePins(d.Addresses)
	if err != nil {
		return nil, err
	}
	r := &Route{pins: pins, serverName: d.ServerName, clientSVID: d.ClientSVID}
	for _, c := range d.CIDRs {
		p, err := netip.ParsePrefix(c)
		if err != nil {
			return nil, fmt.Errorf("cidrs: %q is no network", c)
		}
		r.networks = append(r.networks, p.Masked())
	}
	pem := []byte(d.CABundle)
	if d.CAFile != "" {
		b, err := os.ReadFile(d.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read caFile: %w", err)
		}
		pem = append(append(pem, '\n'), b...)
	}
	if len(pem) > 0 {
		if r.roots, err = pool(pem, d.OnlyCA); err != nil {
			return nil, err
		}
		sum := sha256.Sum256(pem)
		r.rootsID = strconv.FormatBool(d.OnlyCA) + hex.EncodeToString(sum[:])
	}
	var sb strings.Builder
	for _, p := range pins {
		sb.WriteString(p.String())
		sb.WriteByte(',')
	}
	for _, n := range r.networks {
		sb.WriteString(n.String())
		sb.WriteByte(',')
	}
	fmt.Fprintf(&sb, "|%s|%s|%t", r.rootsID, r.serverName, r.clientSVID)
	r.id = sb.String()
	return r, nil
}

// pool returns roots with pem added to the system's, or alone.
func pool(pem []byte, only bool) (*x509.CertPool, error) {
	p := x509.NewCertPool()
	if !only {
		sys, err := x509.SystemCertPool()
		if err != nil {
			return nil, fmt.Errorf("read the system's roots: %w", err)
		}
		p = sys
	}
	if !p.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("no PEM certificate in the CA file or bundle")
	}
	return p, nil
}

// direct says that the operator names where the destination's addresses are:
// no parent proxy, which would look the name up by itself, is in between.
func (r *Route) direct() bool { return len(r.pins) > 0 || len(r.networks) > 0 }
