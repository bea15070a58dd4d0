package spire_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/attache-dev/attache/identity/identitytest"
)

// server is the part of a SPIRE server that we call, by the definitions of
// spire-api-sdk v1.9.0 and as SPIRE v1.9.0 implements them
// (pkg/server/api/svid/v1 and bundle/v1): mutual TLS, the server is
// spiffe://TD/spire/server, only a downstream workload is served, of the
// certificate request only the key counts and its signature must be right, and
// the CA lives as long as the entry says. TestRealSPIRE holds a real one to the same.
type server struct {
	svidv1.UnimplementedSVIDServer
	bundlev1.UnimplementedBundleServer
	api  *identitytest.WorkloadAPI
	addr string
	id   string // its SPIFFE ID; set before it is called

	mu         sync.Mutex // guards everything below
	downstream map[spiffeid.ID]bool
	before     time.Duration // how long ago a CA began
	after      time.Duration // how long it lives
	change     func(pub any, r *svidv1.NewDownstreamX509CAResponse)
	fail       error
	issued     int
	keys       []*types.JWTKey
}

func startServer(t *testing.T, api *identitytest.WorkloadAPI, downstream spiffeid.ID) *server {
	t.Helper()
	s := &server{api: api, downstream: map[spiffeid.ID]bool{downstream: true}, after: 24 * time.Hour, id: "spiffe://td.test/spire/server"}
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			ca, key := api.Authority()
			pool := x509.NewCertPool()
			pool.AddCert(ca)
			leafKey := newKey(t)
			cert := sign(t, ca, key, &leafKey.PublicKey, s.id, time.Minute, time.Hour, false)
			return &tls.Config{
				MinVersion: tls.VersionTLS12, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, NextProtos: []string{"h2"},
				Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: leafKey}},
			}, nil
		},
	})))
	svidv1.RegisterSVIDServer(g, s)
	bundlev1.RegisterBundleServer(g, s)
	go func() { _ = g.Serve(ln) }()
	t.Cleanup(g.Stop)
	return s
}

func (s *server) caller(ctx context.Context) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return status.Error(codes.Internal, "no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return status.Error(codes.Internal, "no TLS")
	}
	id, err := x509svid.IDFromCert(info.State.PeerCertificates[0])
	if err != nil || !s.downstream[id] {
		return status.Error(codes.PermissionDenied, "caller is not a downstream workload")
	}
	return s.fail
}

// NewDownstreamX509CA implements svidv1.SVIDServer.
func (s *server) NewDownstreamX509CA(ctx context.Context, r *svidv1.NewDownstreamX509CARequest) (*svidv1.NewDownstreamX509CAResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.caller(ctx); err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(r.GetCsr())
	if err != nil || csr.CheckSignature() != nil {
		return nil, status.Error(codes.InvalidArgument, "malformed CSR")
	}
	ca, key := s.api.Authority()
	cert, err := certify(ca, key, csr.PublicKey, "spiffe://td.test", s.before, s.after, true)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	s.issued++
	out := &svidv1.NewDownstreamX509CAResponse{CaCertChain: [][]byte{cert.Raw}, X509Authorities: [][]byte{ca.Raw}}
	if s.change != nil {
		s.change(csr.PublicKey, out)
	}
	return out, nil
}

// PublishJWTAuthority implements bundlev1.BundleServer.
func (s *server) PublishJWTAuthority(ctx context.Context, r *bundlev1.PublishJWTAuthorityRequest) (*bundlev1.PublishJWTAuthorityResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.caller(ctx); err != nil {
		return nil, err
	}
	k := r.GetJwtAuthority()
	if _, err := x509.ParsePKIXPublicKey(k.GetPublicKey()); err != nil || k.GetKeyId() == "" {
		return nil, status.Error(codes.InvalidArgument, "invalid JWT authority")
	}
	have := false
	for _, old := range s.keys {
		have = have || old.GetKeyId() == k.GetKeyId() && old.GetExpiresAt() == k.GetExpiresAt()
	}
	if !have {
		s.keys = append(s.keys, k)
	}
	return &bundlev1.PublishJWTAuthorityResponse{JwtAuthorities: s.keys}, nil
}

func (s *server) set(f func()) { s.mu.Lock(); defer s.mu.Unlock(); f() }

func (s *server) count() int { s.mu.Lock(); defer s.mu.Unlock(); return s.issued }

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Error(err)
	}
	return k
}

func sign(t *testing.T, ca *x509.Certificate, key *ecdsa.PrivateKey, pub any, id string, before, after time.Duration, isCA bool) *x509.Certificate {
	t.Helper()
	c, err := certify(ca, key, pub, id, before, after, isCA)
	if err != nil {
		t.Error(err)
	}
	return c
}

func certify(ca *x509.Certificate, key *ecdsa.PrivateKey, pub any, id string, before, after time.Duration, isCA bool) (*x509.Certificate, error) {
	u, err := url.Parse(id)
	if err != nil {
		return nil, err
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{Country: []string{"US"}, Organization: []string{"SPIFFE"}},
		URIs: []*url.URL{u}, NotBefore: time.Now().Add(-before), NotAfter: time.Now().Add(after), BasicConstraintsValid: true, IsCA: isCA,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if isCA {
		c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageCertSign|x509.KeyUsageCRLSign, nil
	}
	raw, err := x509.CreateCertificate(rand.Reader, c, ca, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(raw)
}
