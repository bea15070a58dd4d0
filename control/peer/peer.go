// Package peer says which pod is at the other end of a gRPC call: the one that
// its X.509-SVID was issued to.
//
// The pod's uid is the serialNumber of the certificate's subject (X.520
// section 6.2.9, "a device's serial number"). X.509-SVID section 2 leaves the
// subject to the issuer; the name that counts to others is the SPIFFE ID.
package peer

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// ErrNoPod is matched by the refusals of [PeerPod]; as a gRPC status they are
// Unauthenticated.
var ErrNoPod = errors.New("the caller presents no X.509-SVID of a pod")

// Pod is who calls.
type Pod struct {
	ID             spiffeid.ID
	Namespace      string
	ServiceAccount string
	UID            string    // of the pod; unique for all times
	Key            string    // SHA-256 of the public key, hex; see [KeyID]
	Expires        time.Time // of the SVID; streams must not outlive it
}

// PeerPod returns the pod that an mTLS connection belongs to. The server's
// configuration must verify client certificates ([ServerTLS] does); here
// their lifetime is checked again, since connections live longer.
func PeerPod(ctx context.Context) (Pod, error) { return podAt(ctx, time.Now()) }

func podAt(ctx context.Context, now time.Time) (Pod, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Pod{}, refuse("no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return Pod{}, refuse("no verified client certificate")
	}
	return FromCertificate(info.State.VerifiedChains[0][0], now)
}

// FromCertificate reads the pod from a certificate that is verified already.
func FromCertificate(c *x509.Certificate, now time.Time) (Pod, error) {
	id, err := x509svid.IDFromCert(c)
	switch {
	case err != nil:
		return Pod{}, refuse("certificate is no X.509-SVID")
	case c.IsCA:
		return Pod{}, refuse("certificate is an authority's")
	case !now.Before(c.NotAfter):
		return Pod{}, refuse("X.509-SVID expired at " + c.NotAfter.UTC().Format(time.RFC3339))
	case c.Subject.SerialNumber == "":
		return Pod{}, refuse("X.509-SVID names no pod")
	}
	ns, sa, ok := ParseID(id)
	if !ok {
		return Pod{}, refuse("SPIFFE ID is not of the form /ns/NAMESPACE/sa/SERVICEACCOUNT")
	}
	return Pod{
		ID: id, Namespace: ns, ServiceAccount: sa, UID: c.Subject.SerialNumber,
		Key: KeyID(c.RawSubjectPublicKeyInfo), Expires: c.NotAfter,
	}, nil
}

// refusal is an error that matches ErrNoPod and is a gRPC status.
type refusal struct{ why string }

func refuse(why string) error { return refusal{why} }

// Error implements error.
func (r refusal) Error() string { return ErrNoPod.Error() + ": " + r.why }

// Is implements errors.Is.
func (r refusal) Is(target error) bool { return target == ErrNoPod }

// GRPCStatus is what a gRPC server answers with.
func (r refusal) GRPCStatus() *status.Status { return status.New(codes.Unauthenticated, r.Error()) }

// Subject is what marks an X.509-SVID as the pod's.
func Subject(podUID string) pkix.Name {
	return pkix.Name{Organization: []string{"Attaché"}, SerialNumber: podUID}
}

// ID is the SPIFFE ID of a pod: spiffe://TD/ns/NAMESPACE/sa/SERVICEACCOUNT.
func ID(td spiffeid.TrustDomain, namespace, serviceAccount string) (spiffeid.ID, error) {
	return spiffeid.FromSegments(td, "ns", namespace, "sa", serviceAccount)
}

// ParseID is the reverse of [ID].
func ParseID(id spiffeid.ID) (namespace, serviceAccount string, ok bool) {
	s := strings.Split(id.Path(), "/")
	if len(s) != 5 || s[0] != "" || s[1] != "ns" || s[3] != "sa" || s[2] == "" || s[4] == "" {
		return "", "", false
	}
	return s[2], s[4], true
}

// KeyID names a public key, given as SubjectPublicKeyInfo in DER.
func KeyID(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// Address is the network address that the call comes from.
func Address(ctx context.Context) (netip.Addr, error) {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return netip.Addr{}, errors.New("no peer address")
	}
	a, err := netip.ParseAddrPort(p.Addr.String())
	if err != nil {
		return netip.Addr{}, fmt.Errorf("peer address: %w", err)
	}
	return a.Addr().Unmap().WithZone(""), nil
}

// ServerTLS is the configuration of the gRPC port: the server's certificate,
// and client certificates that are optional but verified, by the authorities
// of the trust domain as they are at each handshake.
func ServerTLS(certificate func() (*tls.Certificate, error), authorities func() (*x509.CertPool, error)) *tls.Config {
	base := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		ClientAuth: tls.VerifyClientCertIfGiven,
		// A resumed session would carry the client's certificate of then.
		SessionTicketsDisabled: true,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate() },
	}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		pool, err := authorities()
		if err != nil {
			return nil, err
		}
		c := base.Clone()
		c.ClientCAs = pool
		return c, nil
	}
	return base
}
