package spire

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/protobuf/proto"
)

// FuzzAnswer: whatever a server answers, what is taken is an authority of our
// key and trust domain.
func FuzzAnswer(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	u := &url.URL{Scheme: "spiffe", Host: "td.test"}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a"}, URIs: []*url.URL{u}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		f.Fatal(err)
	}
	good, err := proto.Marshal(&svidv1.NewDownstreamX509CAResponse{CaCertChain: [][]byte{der}, X509Authorities: [][]byte{der}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte{})
	a := &Authority{cfg: Config{TrustDomain: spiffeid.RequireTrustDomainFromString("td.test"), Now: time.Now}}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r svidv1.NewDownstreamX509CAResponse
		if proto.Unmarshal(b, &r) != nil {
			return
		}
		i, err := a.read(key, &r)
		if err != nil {
			return
		}
		if !key.PublicKey.Equal(i.Chain[0].PublicKey) || !i.Chain[0].IsCA || i.Chain[0].URIs[0].String() != "spiffe://td.test" || len(i.Roots) == 0 {
			t.Fatalf("took %x", b)
		}
	})
}
