package upstream_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/proxy/destination"
	"github.com/attache-dev/attache/proxy/upstream"
)

// A name may point where the operator says, private space included, and
// nowhere else; never at the machine itself or at metadata.
func TestNetworks(t *testing.T) {
	for _, tt := range []struct {
		name, ip string
		cidrs    []string
		refused  string
	}{
		{"outside", "10.7.0.1", []string{"10.5.0.0/24"}, "in none of the destination's cidrs"},
		{"a public address outside", "1.1.1.1", []string{"10.5.0.0/24"}, "in none of the destination's cidrs"},
		{"IPv6 outside", "fd00:6::1", []string{"fd00:5::/64", "10.5.0.0/24"}, "in none of the destination's cidrs"},
		{"loopback inside", "127.0.0.1", []string{"127.0.0.0/8"}, "is loopback"},
		{"metadata inside", "169.254.169.254", []string{"169.254.0.0/16"}, "is link-local or metadata"},
		{"mapped", "::ffff:10.7.0.1", []string{"10.5.0.0/24"}, "in none of the destination's cidrs"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ip := netip.MustParseAddr(tt.ip)
			r := newRig(t, upstream.Config{Resolver: fixed{ip}}, v1alpha1.Destination{Host: "svc.example", Scheme: "http", CIDRs: tt.cidrs})
			d, _ := destination.Parse("http", "svc.example", 0)
			if _, err := r.get(t, d, upstream.Who{}); !errors.Is(err, upstream.ErrAddress) || !strings.Contains(err.Error(), tt.refused) {
				t.Errorf("got %v, want %q", err, tt.refused)
			}
			if n := r.dials.Load(); n != 0 {
				t.Errorf("%d connections", n)
			}
		})
	}
	t.Run("not by a parent proxy", func(t *testing.T) {
		parent := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the parent proxy was asked") }))
		defer parent.Close()
		r := newRig(t, upstream.Config{Resolver: fixed{netip.MustParseAddr("10.7.0.1")}, Upstream: v1alpha1.UpstreamConfig{ParentProxy: parent.URL}},
			v1alpha1.Destination{Host: "svc.example", Scheme: "http", CIDRs: []string{"10.5.0.0/24"}})
		d, _ := destination.Parse("http", "svc.example", 0)
		if _, err := r.get(t, d, upstream.Who{}); !errors.Is(err, upstream.ErrAddress) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("inside", func(t *testing.T) {
		ip := ownAddress(t)
		ln, err := net.Listen("tcp", net.JoinHostPort(ip.String(), "0"))
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("served")) }))
		s.Listener = ln
		s.Start()
		defer s.Close()
		bits := 24
		if ip.Is6() {
			bits = 64
		}
		network := netip.PrefixFrom(ip, bits).Masked().String()
		port := ln.Addr().(*net.TCPAddr).Port
		r := newRig(t, upstream.Config{Resolver: fixed{ip}}, v1alpha1.Destination{Host: "svc.example", Scheme: "http", Port: port, CIDRs: []string{network}})
		d := destination.Destination{Scheme: "http", Host: "svc.example", Port: port}
		if got, err := r.get(t, d, upstream.Who{}); err != nil || !strings.Contains(got, "served") {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

// ownAddress is one of this machine's that is not loopback.
func ownAddress(t *testing.T) netip.Addr {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && upstream.CheckAddress(p.Addr(), true) == nil {
			return p.Addr()
		}
	}
	t.Skip("this machine has no address but loopback")
	return netip.Addr{}
}

// fixed resolves every name to one address.
type fixed struct{ addr netip.Addr }

func (f fixed) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{f.addr}, nil
}
