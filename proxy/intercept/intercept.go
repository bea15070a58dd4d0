// Package intercept is the certificate authority by which Attaché answers TLS
// in an origin's place. Its key never leaves memory: that of the process, or
// ([Open]) a folder in memory that only the sidecar of a pod has.
package intercept

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"
)

const (
	// backdate forgives clients whose clock is behind.
	backdate = time.Hour
	// rootLife outlives the program, and a pod; the key dies with it.
	rootLife = 2 * 365 * 24 * time.Hour
	// leafLife bounds a leaf; it is renewed in its last quarter.
	leafLife = 24 * time.Hour
	renew    = leafLife / 4

	defaultCacheSize = 1024
)

// ErrName is matched when a client's SNI is not the name that it asked for
// with CONNECT.
var ErrName = errors.New("SNI differs from the CONNECT name")

// CA issues leaf certificates. It is safe for concurrent use.
type CA struct {
	now  func() time.Time
	cert *x509.Certificate
	der  []byte
	key  *ecdsa.PrivateKey
	// leafKey is shared by all leaves: it lives in the same memory as the
	// root's key, so one key for each host would protect nothing more.
	leafKey *ecdsa.PrivateKey
	hosts   *lru.Cache[string, *host]
	flight  singleflight.Group
	issued  atomic.Uint64
}

// host is what is kept for one name. Its tls.Config is one object for the
// life of the entry, because session tickets are keyed by it.
type host struct {
	ca     *CA
	name   string
	config *tls.Config

	mu   sync.Mutex // guards leaf
	leaf *tls.Certificate
}

// New makes a CA with a fresh key. now is the clock; nil means [time.Now].
// cacheSize bounds the hosts kept; 0 means 1024.
func New(now func() time.Time, cacheSize int) (*CA, error) {
	if now == nil {
		now = time.Now
	}
	cert, key, err := newRoot(now())
	if err != nil {
		return nil, err
	}
	return newCA(now, cacheSize, cert, key)
}

func newCA(now func() time.Time, cacheSize int, cert *x509.Certificate, key *ecdsa.PrivateKey) (*CA, error) {
	if cacheSize <= 0 {
		cacheSize = defaultCacheSize
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the leaf key: %w", err)
	}
	hosts, err := lru.New[string, *host](cacheSize)
	if err != nil {
		return nil, fmt.Errorf("make the leaf cache: %w", err)
	}
	return &CA{now: now, cert: cert, der: cert.Raw, key: key, leafKey: leafKey, hosts: hosts}, nil
}

// newRoot makes a root and its key.
func newRoot(now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make the interception root's key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		// The name differs from root to root: verifiers that find two of one name
		// may try the wrong one only.
		Subject: pkix.Name{
			Organization: []string{"Attache"},
			CommonName:   "Attache interception " + hex.EncodeToString(serial.Bytes()[:4]),
		},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(rootLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("sign the interception root: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("read the interception root: %w", err)
	}
	return cert, key, nil
}

// PEM returns the root certificate, for clients to trust.
func (ca *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.der})
}

// Certificate returns the root certificate.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// Issued returns how many leaves have been signed.
func (ca *CA) Issued() uint64 { return ca.issued.Load() }

// Config returns the server side of TLS for one canonical host (a name or an
// IP address). The same object is returned while the host is cached, so that
// clients can resume sessions; callers must not change it. A handshake whose
// SNI is another name fails with [ErrName]; without SNI it goes on.
func (ca *CA) Config(name string) (*tls.Config, error) {
	if h, ok := ca.hosts.Get(name); ok {
		return h.config, nil
	}
	v, err, _ := ca.flight.Do(name, func() (any, error) {
		if h, ok := ca.hosts.Get(name); ok {
			return h, nil
		}
		h := &host{ca: ca, name: name}
		if _, err := h.certificate(nil); err != nil {
			return nil, err
		}
		h.config = &tls.Config{
			MinVersion:         tls.VersionTLS12,
			NextProtos:         []string{"h2", "http/1.1"},
			GetCertificate:     h.certificate,
			GetConfigForClient: h.checkSNI,
			// The peer is on this machine: small first records buy nothing.
			DynamicRecordSizingDisabled: true,
		}
		ca.hosts.Add(name, h)
		return h, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*host).config, nil
}

// checkSNI returns no other config, which makes crypto/tls go on with the
// host's own and its ticket keys.
func (h *host) checkSNI(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if sni := hello.ServerName; sni != "" && !strings.EqualFold(sni, h.name) {
		return nil, fmt.Errorf("%w: %.80q is not %q", ErrName, sni, h.name)
	}
	return nil, nil
}

// certificate returns the current leaf, renewed when its last quarter begins.
func (h *host) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.leaf != nil && h.ca.now().Add(renew).Before(h.leaf.Leaf.NotAfter) {
		return h.leaf, nil
	}
	leaf, err := h.ca.issue(h.name)
	if err != nil {
		return nil, err
	}
	h.leaf = leaf
	return leaf, nil
}

// issue signs a leaf that carries exactly name, and no common name beside it.
func (ca *CA) issue(name string) (*tls.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := ca.now()
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"Attache"}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(leafLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if ip := net.ParseIP(name); ip != nil {
		tmpl.IPAddresses = []net.IP{ip}
	} else {
		tmpl.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, ca.leafKey.Public(), ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign a leaf for %q: %w", name, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read the leaf for %q: %w", name, err)
	}
	ca.issued.Add(1)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: ca.leafKey, Leaf: leaf}, nil
}

// newSerial returns 127 random bits, never short: a positive serial of at
// most 20 octets (RFC 5280 section 4.1.2.2).
func newSerial() (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("read random serial: %w", err)
	}
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b), nil
}
