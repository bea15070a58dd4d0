// Package xdstest serves gRPC over mutual TLS on a loopback port, with an
// authority that issues X.509-SVIDs of pods: what tests of the control plane's
// services need around them.
package xdstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/attache-dev/attache/control/peer"
)

// TrustDomain of the authority.
const TrustDomain = "cluster.test"

// Authority issues certificates.
type Authority struct {
	tb   testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	leaf *ecdsa.PrivateKey // one for all, for tests with hundreds of pods
}

// NewAuthority makes an authority of [TrustDomain].
func NewAuthority(tb testing.TB) *Authority {
	tb.Helper()
	a := &Authority{tb: tb, key: newKey(tb), leaf: newKey(tb)}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		URIs: []*url.URL{{Scheme: "spiffe", Host: TrustDomain}},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, a.key.Public(), a.key)
	if err != nil {
		tb.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		tb.Fatal(err)
	}
	return a
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// Pool is the authority as a pool of roots.
func (a *Authority) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// SVID issues the X.509-SVID of a pod that ends at an instant.
func (a *Authority) SVID(namespace, serviceAccount, uid string, end time.Time) tls.Certificate {
	return a.issue(&x509.Certificate{
		Subject: peer.Subject(uid), NotAfter: end, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs: []*url.URL{{Scheme: "spiffe", Host: TrustDomain, Path: "/ns/" + namespace + "/sa/" + serviceAccount}},
	})
}

func (a *Authority) issue(t *x509.Certificate) tls.Certificate {
	a.tb.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		a.tb.Fatal(err)
	}
	t.SerialNumber, t.NotBefore, t.KeyUsage = serial, time.Now().Add(-2*time.Hour), x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, a.leaf.Public(), a.key)
	if err != nil {
		a.tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: a.leaf}
}

// Serving issues the certificate of a server named control.test.
func (a *Authority) Serving() tls.Certificate {
	return a.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "control"}, DNSNames: []string{"control.test"}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

// Client is the TLS configuration of a sidecar; without a certificate it has
// none.
func (a *Authority) Client(svid ...tls.Certificate) *tls.Config {
	return &tls.Config{RootCAs: a.Pool(), ServerName: "control.test", Certificates: svid, MinVersion: tls.VersionTLS13}
}

// Serve starts a gRPC server on addr ("" picks one) and returns its address
// and how to stop it. It stops with the test at the latest.
func (a *Authority) Serve(addr string, register func(grpc.ServiceRegistrar)) (string, func()) {
	a.tb.Helper()
	addr, g, done := a.serve(addr, register)
	stop := func() { g.Stop(); <-done }
	a.tb.Cleanup(stop)
	return addr, stop
}

// ServeGracefully is Serve with a stop that lets calls under way finish.
func (a *Authority) ServeGracefully(addr string, register func(grpc.ServiceRegistrar)) (string, func()) {
	a.tb.Helper()
	addr, g, done := a.serve(addr, register)
	a.tb.Cleanup(g.Stop)
	return addr, func() { g.GracefulStop(); <-done }
}

func (a *Authority) serve(addr string, register func(grpc.ServiceRegistrar)) (string, *grpc.Server, <-chan struct{}) {
	a.tb.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		a.tb.Fatal(err)
	}
	cert := a.Serving()
	g := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(peer.ServerTLS(
			func() (*tls.Certificate, error) { return &cert, nil },
			func() (*x509.CertPool, error) { return a.Pool(), nil },
		))),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	)
	register(g)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.Serve(ln)
	}()
	return ln.Addr().String(), g, done
}

// Pool is PEM certificates as a pool of roots; without any it is the system's.
func Pool(caPEM []byte) *x509.CertPool {
	if len(caPEM) == 0 {
		return nil
	}
	p := x509.NewCertPool()
	p.AppendCertsFromPEM(caPEM)
	return p
}

// PEM is a certificate and its key as files have them.
func PEM(c tls.Certificate) (certificate, key string) {
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		panic("xdstest: " + err.Error()) // an ECDSA key
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}
