package issuer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/control/peer"
	"github.com/attache-dev/attache/identity/issuer"
)

// ClientsKey is the member of a handed out Secret with the roots that verify
// the X.509-SVIDs of who connects, in PEM; tls.crt and tls.key are beside it.
const ClientsKey = "clients.pem"

// Handout keeps a Secret of the control plane's namespace with what a workload
// needs to serve by a certificate of ours without holding the authority's key.
// Every replica runs it; who comes first writes.
type Handout struct {
	Keys   *Keys
	Secret string
	Hosts  []string
}

// handoutEvery is well below half of a certificate's life.
const handoutEvery = time.Minute

// NeedLeaderElection implements manager.LeaderElectionRunnable: no.
func (h *Handout) NeedLeaderElection() bool { return false }

// Start keeps the Secret up to date until ctx ends.
func (h *Handout) Start(ctx context.Context) error {
	for {
		if err := h.Sync(ctx); err != nil && ctx.Err() == nil {
			h.Keys.cfg.Log.ErrorContext(ctx, "serving certificate not handed out", "secret", h.Secret, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(handoutEvery):
		}
	}
}

// Sync writes the Secret if its certificate is in the second half of its life,
// or the roots are others. [Handout.Start] calls it.
func (h *Handout) Sync(ctx context.Context) error {
	k := h.Keys
	sec := &corev1.Secret{}
	err := k.cfg.Client.Get(ctx, types.NamespacedName{Namespace: k.cfg.Namespace, Name: h.Secret}, sec)
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return fmt.Errorf("read secret %s: %w", h.Secret, err)
	}
	clients := issuer.EncodePEM(k.clientRoots()...)
	if string(sec.Data[ClientsKey]) == string(clients) && h.fresh(sec) {
		return nil
	}
	c, err := k.issuer.ServingCertificate(h.Hosts...)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		return fmt.Errorf("encode the serving key: %w", err)
	}
	var chain []*x509.Certificate
	for _, raw := range c.Certificate {
		cert, err := x509.ParseCertificate(raw)
		if err != nil {
			return err
		}
		chain = append(chain, cert)
	}
	sec.Data = map[string][]byte{
		corev1.TLSCertKey:       issuer.EncodePEM(chain...),
		corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		ClientsKey:              clients,
	}
	if missing {
		sec.ObjectMeta = metav1.ObjectMeta{Namespace: k.cfg.Namespace, Name: h.Secret, Labels: map[string]string{"app.kubernetes.io/part-of": "attache"}}
		err = k.cfg.Client.Create(ctx, sec)
	} else {
		err = k.cfg.Client.Update(ctx, sec)
	}
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		return nil // another replica has done it
	}
	return err
}

// fresh reports whether the certificate is for our hosts, by a root that
// sidecars know, and in the first half of its life.
func (h *Handout) fresh(sec *corev1.Secret) bool {
	b, _ := pem.Decode(sec.Data[corev1.TLSCertKey])
	if b == nil {
		return false
	}
	c, err := x509.ParseCertificate(b.Bytes)
	if err != nil || len(sec.Data[corev1.TLSPrivateKeyKey]) == 0 {
		return false
	}
	for _, host := range h.Hosts {
		if c.VerifyHostname(host) != nil {
			return false
		}
	}
	return h.Keys.cfg.Now().Before(c.NotAfter.Add(-h.Keys.cfg.X509TTL / 2))
}

// clientRoots are the authorities of pods' X.509-SVIDs.
func (k *Keys) clientRoots() []*x509.Certificate {
	roots := k.schedule.Load().Authorities()
	if k.cfg.Upstream != nil {
		if i := k.cfg.Upstream.Intermediate(); i != nil {
			roots = append(roots, i.Roots...)
		}
	}
	return roots
}

// Self is this replica of the control plane as a client of another workload of
// its own: an X.509-SVID whose subject is ID, where pods have their uid. It is
// safe for concurrent use.
type Self struct {
	Keys           *Keys
	ServiceAccount string
	ID             string // control/POD

	mu   sync.Mutex // guards cert
	cert *tls.Certificate
}

// Certificate is the replica's, renewed at half of its life.
func (s *Self) Certificate() (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.Keys
	if s.cert != nil && k.cfg.Now().Before(s.cert.Leaf.NotAfter.Add(-k.cfg.X509TTL/2)) {
		return s.cert, nil
	}
	id, err := peer.ID(k.cfg.TrustDomain, k.cfg.Namespace, s.ServiceAccount)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	chain, err := k.issuer.SignX509(id, &key.PublicKey, peer.Subject(s.ID))
	if err != nil {
		return nil, err
	}
	s.cert = &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		s.cert.Certificate = append(s.cert.Certificate, c.Raw)
	}
	return s.cert, nil
}

// TLS is how the replica connects to a workload that serves by a [Handout].
func (s *Self) TLS(host string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: host,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return s.Certificate() },
		// Roots change while the program runs, so they are looked up at each
		// handshake.
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection verifies
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return errors.New("no certificate")
			}
			roots, between := x509.NewCertPool(), x509.NewCertPool()
			for _, c := range s.Keys.schedule.Load().ServingRoots() {
				roots.AddCert(c)
			}
			for _, c := range state.PeerCertificates[1:] {
				between.AddCert(c)
			}
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: between, CurrentTime: s.Keys.cfg.Now()})
			return err
		},
	}
}

// Sign signs the end of the replica's spool. It fits audit.Options.Signer.
func (s *Self) Sign(text []byte) (audit.Signature, error) {
	c, err := s.Certificate()
	if err != nil {
		return audit.Signature{}, err
	}
	key, ok := c.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return audit.Signature{}, errors.New("the key is not ECDSA")
	}
	var chain strings.Builder
	for _, raw := range c.Certificate {
		chain.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}))
	}
	return audit.Signer(key, chain.String())(text)
}
