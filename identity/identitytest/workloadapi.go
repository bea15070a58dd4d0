// Package identitytest holds real servers for tests of identity: a SPIFFE
// Workload API and an OpenID provider.
package identitytest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/attache-dev/attache/internal/peercred"
)

// WorkloadAPI is a SPIFFE Workload API server on a Unix socket. It demands the
// security header, attests callers by their peer credentials, pushes each
// rotation, and answers PermissionDenied to whom it knows no identity.
type WorkloadAPI struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	id   spiffeid.ID
	addr string

	mu      sync.Mutex // guards everything below
	caKey   *ecdsa.PrivateKey
	ca      *x509.Certificate
	jwtKey  *ecdsa.PrivateKey
	keyID   string
	subs    map[chan struct{}]struct{}
	ttl     time.Duration
	entitle func(pid int, uid uint32) bool
	fetches int
	srv     *grpc.Server
}

// NewWorkloadAPI starts a server that gives id to processes of this user. It
// stops with the test.
func NewWorkloadAPI(t testing.TB, id spiffeid.ID) *WorkloadAPI {
	t.Helper()
	dir, err := os.MkdirTemp("", "wl") // short: socket paths hold about 100 bytes
	if err != nil {
		t.Fatal(err)
	}
	uid := uint32(os.Getuid()) //nolint:gosec // a uid is 32 bits
	s := &WorkloadAPI{
		id: id, addr: "unix://" + filepath.Join(dir, "api.sock"), ttl: time.Hour,
		subs:    map[chan struct{}]struct{}{},
		entitle: func(_ int, u uint32) bool { return u == uid },
	}
	if err := s.newKeys(); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Stop(); _ = os.RemoveAll(dir) })
	return s
}

// Addr is the socket's address, unix:///….
func (s *WorkloadAPI) Addr() string { return s.addr }

// Start listens again after Stop.
func (s *WorkloadAPI) Start() error {
	ln, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", s.addr[len("unix://"):])
	if err != nil {
		return err
	}
	g := grpc.NewServer(grpc.Creds(peerCreds{}))
	workload.RegisterSpiffeWorkloadAPIServer(g, s)
	s.mu.Lock()
	s.srv = g
	s.mu.Unlock()
	go func() { _ = g.Serve(ln) }()
	return nil
}

// Stop cuts all connections.
func (s *WorkloadAPI) Stop() {
	s.mu.Lock()
	g := s.srv
	s.mu.Unlock()
	g.Stop()
}

// Rotate makes new authorities and pushes new documents to every stream.
func (s *WorkloadAPI) Rotate() error {
	if err := s.newKeys(); err != nil {
		return err
	}
	s.push()
	return nil
}

// Entitle replaces the attestation of callers and applies it to open streams
// too; a caller refused there is redacted.
func (s *WorkloadAPI) Entitle(f func(pid int, uid uint32) bool) {
	s.mu.Lock()
	s.entitle = f
	s.mu.Unlock()
	s.push()
}

// SetTTL sets the lifetime of documents issued from now on.
func (s *WorkloadAPI) SetTTL(d time.Duration) { s.mu.Lock(); s.ttl = d; s.mu.Unlock() }

// JWTFetches counts the JWT-SVIDs handed out.
func (s *WorkloadAPI) JWTFetches() int { s.mu.Lock(); defer s.mu.Unlock(); return s.fetches }

// JWTBundle returns the authorities of JWT-SVIDs.
func (s *WorkloadAPI) JWTBundle() *jwtbundle.Bundle {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := jwtbundle.New(s.id.TrustDomain())
	_ = b.AddJWTAuthority(s.keyID, s.jwtKey.Public()) // fails on an empty id only
	return b
}

func (s *WorkloadAPI) push() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.subs {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func (s *WorkloadAPI) newKeys() error {
	ck, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	jk, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t := &x509.Certificate{
		SerialNumber: number(), Subject: pkix.Name{CommonName: "test authority"},
		URIs:      []*url.URL{s.id.TrustDomain().ID().URL()},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, ck.Public(), ck)
	if err != nil {
		return err
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.caKey, s.ca, s.jwtKey, s.keyID = ck, ca, jk, number().Text(36)
	return nil
}

func number() *big.Int {
	b := make([]byte, 15)
	_, _ = rand.Read(b)
	b[0] |= 1
	return new(big.Int).SetBytes(b)
}

// check applies SPIFFE Workload API sections 3 and 4: the security header and
// the caller's entitlement.
func (s *WorkloadAPI) check(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("workload.spiffe.io"); len(v) != 1 || v[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	s.mu.Lock()
	entitle := s.entitle
	s.mu.Unlock()
	p, _ := peer.FromContext(ctx)
	info, ok := p.AuthInfo.(peerInfo)
	if !ok || !entitle(info.PID, info.UID) {
		return status.Error(codes.PermissionDenied, "no identity issued")
	}
	return nil
}

func (s *WorkloadAPI) x509SVID() (*workload.X509SVIDResponse, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &x509.Certificate{
		SerialNumber: number(), URIs: []*url.URL{s.id.URL()},
		NotBefore: time.Now().Add(-10 * time.Second), NotAfter: time.Now().Add(s.ttl),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, s.ca, k.Public(), s.caKey)
	if err != nil {
		return nil, err
	}
	kd, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, err
	}
	return &workload.X509SVIDResponse{Svids: []*workload.X509SVID{
		{SpiffeId: s.id.String(), X509Svid: der, X509SvidKey: kd, Bundle: s.ca.Raw},
	}}, nil
}

// stream sends the full state now and after each push.
func (s *WorkloadAPI) stream(ctx context.Context, send func() error) error {
	ch := make(chan struct{}, 1)
	s.mu.Lock()
	s.subs[ch] = struct{}{}
	s.mu.Unlock()
	defer func() { s.mu.Lock(); delete(s.subs, ch); s.mu.Unlock() }()
	for {
		if err := s.check(ctx); err != nil {
			return err
		}
		if err := send(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ch:
		}
	}
}

// FetchX509SVID implements the Workload API.
func (s *WorkloadAPI) FetchX509SVID(_ *workload.X509SVIDRequest, st workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	return s.stream(st.Context(), func() error {
		r, err := s.x509SVID()
		if err != nil {
			return err
		}
		return st.Send(r)
	})
}

// FetchX509Bundles implements the Workload API.
func (s *WorkloadAPI) FetchX509Bundles(_ *workload.X509BundlesRequest, st workload.SpiffeWorkloadAPI_FetchX509BundlesServer) error {
	return s.stream(st.Context(), func() error {
		s.mu.Lock()
		raw := s.ca.Raw
		s.mu.Unlock()
		return st.Send(&workload.X509BundlesResponse{Bundles: map[string][]byte{s.id.TrustDomain().IDString(): raw}})
	})
}

// FetchJWTBundles implements the Workload API.
func (s *WorkloadAPI) FetchJWTBundles(_ *workload.JWTBundlesRequest, st workload.SpiffeWorkloadAPI_FetchJWTBundlesServer) error {
	return s.stream(st.Context(), func() error {
		raw, err := s.JWTBundle().Marshal()
		if err != nil {
			return err
		}
		return st.Send(&workload.JWTBundlesResponse{Bundles: map[string][]byte{s.id.TrustDomain().IDString(): raw}})
	})
}

// FetchJWTSVID implements the Workload API: sub, aud and exp, and no more than
// JWT-SVID section 3 asks for but iat.
func (s *WorkloadAPI) FetchJWTSVID(ctx context.Context, r *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	if len(r.GetAudience()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "audience must be specified")
	}
	if r.GetSpiffeId() != "" && r.GetSpiffeId() != s.id.String() {
		return nil, status.Error(codes.PermissionDenied, "no identity issued")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sg, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: s.jwtKey, KeyID: s.keyID}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	tok, err := jwt.Signed(sg).Claims(jwt.Claims{
		Subject: s.id.String(), Audience: r.GetAudience(),
		Expiry: jwt.NewNumericDate(now.Add(min(s.ttl, 5*time.Minute))), IssuedAt: jwt.NewNumericDate(now),
	}).Claims(map[string]any{"n": s.fetches}).Serialize()
	if err != nil {
		return nil, err
	}
	s.fetches++
	return &workload.JWTSVIDResponse{Svids: []*workload.JWTSVID{{SpiffeId: s.id.String(), Svid: tok}}}, nil
}

// ValidateJWTSVID implements the Workload API.
func (s *WorkloadAPI) ValidateJWTSVID(ctx context.Context, r *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	v, err := jwtsvid.ParseAndValidate(r.GetSvid(), s.JWTBundle(), []string{r.GetAudience()})
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	c, err := structpb.NewStruct(v.Claims)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: v.ID.String(), Claims: c}, nil
}

// peerInfo is the attested peer of a connection.
type peerInfo struct {
	credentials.CommonAuthInfo
	peercred.Peer
}

// AuthType implements credentials.AuthInfo.
func (peerInfo) AuthType() string { return "peercred" }

// peerCreds takes peer credentials where TLS would shake hands.
type peerCreds struct{}

// ClientHandshake implements credentials.TransportCredentials.
func (peerCreds) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("identitytest: server side only")
}

// ServerHandshake implements credentials.TransportCredentials.
func (peerCreds) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	p, err := peercred.Of(c)
	if err != nil {
		return nil, nil, fmt.Errorf("identitytest: %w", err)
	}
	return c, peerInfo{Peer: p}, nil
}

// Info implements credentials.TransportCredentials.
func (peerCreds) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

// Clone implements credentials.TransportCredentials.
func (peerCreds) Clone() credentials.TransportCredentials { return peerCreds{} }

// OverrideServerName implements credentials.TransportCredentials.
func (peerCreds) OverrideServerName(string) error { return nil }

// Authority is the X.509 authority of now, for servers of the same trust
// domain in tests.
func (s *WorkloadAPI) Authority() (*x509.Certificate, *ecdsa.PrivateKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ca, s.caKey
}
