package oauth2

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
)

// Keys of a Secret of type kubernetes.io/tls.
const (
	tlsCertificate = "tls.crt"
	tlsKey         = "tls.key"
)

// rooted checks a provider whose client proves itself by a Secret, and has d's
// HTTP client present the certificate of tlsClientAuth.
func rooted(s *v1alpha1.OAuth2, d *minting.Deps) error {
	switch s.ClientAuth {
	case AuthSecretBasic, AuthSecretPost:
		if s.ClientSecretRef == nil {
			return fmt.Errorf("clientSecretRef: is missing; clientAuth %s needs one", s.ClientAuth)
		}
	case AuthTLS:
		if s.ClientCertificateRef == nil {
			return fmt.Errorf("clientCertificateRef: is missing; clientAuth %s needs one", s.ClientAuth)
		}
	default:
		if s.ClientSecretRef != nil || s.ClientCertificateRef != nil {
			return errors.New("clientAuth: say how the Secret is presented: clientSecretBasic, clientSecretPost or tlsClientAuth")
		}
		return nil
	}
	switch {
	case d.Root == nil:
		return errors.New("clientAuth: only the broker of a cluster reads Secrets")
	case s.ClientID == "":
		return fmt.Errorf("clientID: is missing; clientAuth %s is of a registered client", s.ClientAuth)
	case s.DPoP: // the key would have to be the sidecar's, and the token is minted elsewhere
		return fmt.Errorf("dpop: cannot be had with clientAuth %s, whose tokens the broker mints", s.ClientAuth)
	case s.Grant != GrantClientCredentials:
		return fmt.Errorf("grant: is %s; clientAuth %s is for clientCredentials", s.Grant, s.ClientAuth)
	}
	if s.ClientAuth != AuthTLS || d.Client == nil {
		return nil
	}
	made, read, name := d.Client, d.Root, s.ClientCertificateRef.Name
	d.Client = func(addresses []string, caPEM []byte) *http.Client {
		c := made(addresses, caPEM)
		t, ok := c.Transport.(*http.Transport)
		if !ok {
			return &http.Client{Transport: refusing{}}
		}
		t = t.Clone()
		if t.TLSClientConfig == nil {
			t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		// Read anew for each connection: a rotated certificate is used at once.
		t.TLSClientConfig.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return readPair(r.Context(), read, name)
		}
		with := *c
		with.Transport = t
		return &with
	}
	return nil
}

// rootReader is [minting.Deps].Root.
type rootReader = func(ctx context.Context, name, key string) (secret.Value, error)

// readPair reads a kubernetes.io/tls Secret.
func readPair(ctx context.Context, read rootReader, name string) (*tls.Certificate, error) {
	crt, err := read(ctx, name, tlsCertificate)
	if err != nil {
		return nil, fmt.Errorf("read clientCertificateRef: %w", err)
	}
	key, err := read(ctx, name, tlsKey)
	if err != nil {
		return nil, fmt.Errorf("read clientCertificateRef: %w", err)
	}
	pair, err := tls.X509KeyPair([]byte(crt.Reveal()), []byte(key.Reveal()))
	if err != nil { // its text may repeat what it could not read
		return nil, fmt.Errorf("%w: clientCertificateRef: Secret %s holds no certificate with its key", minting.ErrDenied, name)
	}
	return &pair, nil
}

// refusing is a transport that cannot present a certificate.
type refusing struct{}

// RoundTrip implements http.RoundTripper.
func (refusing) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, fmt.Errorf("%w: this HTTP client cannot present a certificate", minting.ErrDenied)
}

// clientSecret reads the secret of the client, anew for each call.
func (m *Minter) clientSecret(ctx context.Context) (string, error) {
	v, err := m.deps.Root(ctx, m.spec.ClientSecretRef.Name, m.spec.ClientSecretRef.Key)
	if err != nil {
		return "", fmt.Errorf("read clientSecretRef: %w", err)
	}
	if err := minting.CheckSecret(v.Reveal()); err != nil {
		return "", fmt.Errorf("clientSecretRef: %w", err)
	}
	return v.Reveal(), nil
}

func (m *Minter) secretPost(ctx context.Context, f fields) (string, error) {
	s, err := m.clientSecret(ctx)
	if err != nil {
		return "", err
	}
	f.set("client_id", m.spec.ClientID)
	f.set("client_secret", s)
	return s, nil
}

// secretBasic: both halves are form-encoded first (RFC 6749 section 2.3.1).
func (m *Minter) secretBasic(req *http.Request, clientSecret string) {
	req.SetBasicAuth(url.QueryEscape(m.spec.ClientID), url.QueryEscape(clientSecret))
}
