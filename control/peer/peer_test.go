package peer_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/attache-dev/attache/control/peer"
)

const uid = "6d15415a-092f-4aa1-a534-7d62a0cf196c"

func certificate(t *testing.T, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse("spiffe://td.test/ns/a/sa/b")
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: peer.Subject(uid), URIs: []*url.URL{u},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestFromCertificate(t *testing.T) {
	c := certificate(t, nil)
	p, err := peer.FromCertificate(c, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if p.Namespace != "a" || p.ServiceAccount != "b" || p.UID != uid || p.ID.String() != "spiffe://td.test/ns/a/sa/b" || p.Key != peer.KeyID(c.RawSubjectPublicKeyInfo) || !p.Expires.Equal(c.NotAfter) {
		t.Errorf("got %+v", p)
	}
}

func TestFromCertificateRefuses(t *testing.T) {
	uri := func(s string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			u, err := url.Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			c.URIs = []*url.URL{u}
		}
	}
	for name, tt := range map[string]struct {
		change func(*x509.Certificate)
		later  time.Duration
	}{
		"expired":           {nil, time.Hour + time.Second},
		"no pod":            {func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: uid} }, 0},
		"no SPIFFE ID":      {func(c *x509.Certificate) { c.URIs = nil }, 0},
		"two SPIFFE IDs":    {func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }, 0},
		"authority":         {func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }, 0},
		"trust domain":      {uri("spiffe://td.test"), 0},
		"other form":        {uri("spiffe://td.test/agent/a"), 0},
		"more segments":     {uri("spiffe://td.test/ns/a/sa/b/c"), 0},
		"no service accout": {uri("spiffe://td.test/ns/a/sa"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := peer.FromCertificate(certificate(t, tt.change), time.Now().Add(tt.later))
			if !errors.Is(err, peer.ErrNoPod) || status.Code(err) != codes.Unauthenticated {
				t.Errorf("got %v, want a refusal as Unauthenticated", err)
			}
		})
	}
}

func TestPeerPodWithoutConnection(t *testing.T) {
	if _, err := peer.PeerPod(t.Context()); !errors.Is(err, peer.ErrNoPod) {
		t.Errorf("got %v", err)
	}
	if _, err := peer.Address(t.Context()); err == nil {
		t.Error("an address without a connection")
	}
}

func FuzzParseID(f *testing.F) {
	for _, s := range []string{"/ns/a/sa/b", "/ns//sa/b", "/ns/a/sa/b/", "/agent/x", ""} {
		f.Add(s)
	}
	td := spiffeid.RequireTrustDomainFromString("td.test")
	f.Fuzz(func(t *testing.T, path string) {
		id, err := spiffeid.FromPath(td, path)
		if err != nil {
			return
		}
		ns, sa, ok := peer.ParseID(id)
		if !ok {
			return
		}
		again, err := peer.ID(td, ns, sa)
		if err != nil || again != id {
			t.Errorf("%s gave %q %q, which make %s, %v", id, ns, sa, again, err)
		}
	})
}
