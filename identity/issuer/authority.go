package issuer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"slices"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// An X.509 authority signs for caTerm and is valid for twice that. Authorities
// are pushed to verifiers or reread from the bundle document, so their overlap
// follows PublishAhead like that of JWT keys.
const (
	caTerm    = 7 * 24 * time.Hour
	svidCache = 1024 // workloads whose current SVID is kept
)

// authority is the X.509 certificate authority of the trust domain.
type authority struct {
	td         spiffeid.TrustDomain
	ttl, ahead time.Duration
	now        func() time.Time
	schedule   func() *Schedule     // decides which key signs, if set
	upstream   func() *Intermediate // goes before schedule, if set

	mu      sync.Mutex // guards everything below
	current *caKey
	next    *caKey
	nextAt  time.Time
	retired []*caKey
	roots   []*x509.Certificate // of upstream's trust domain
	svids   *lru.Cache[spiffeid.ID, *x509svid.SVID]
}

type caKey struct {
	key   *ecdsa.PrivateKey
	cert  *x509.Certificate
	chain []*x509.Certificate // of an intermediate: cert first, the root left out
	since time.Time
	last  time.Time // once retired: published until then
}

func newAuthority(c Config) (*authority, error) {
	svids, err := lru.New[spiffeid.ID, *x509svid.SVID](svidCache)
	if err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	a := &authority{td: c.TrustDomain, ttl: c.X509TTL, ahead: c.PublishAhead, now: c.Now, svids: svids, schedule: c.Schedule, upstream: c.Upstream}
	if a.schedule != nil || a.upstream != nil {
		return a, nil
	}
	a.current, err = a.newCA(c.Now())
	return a, err
}

// newCA makes a self-signed signing certificate: X.509-SVID sections 2 to 4
// ask for the trust domain as URI SAN, keyCertSign and CA.
func (a *authority) newCA(now time.Time) (*caKey, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("issuer: make authority key: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{Organization: []string{"Attaché"}, CommonName: a.td.Name()},
		URIs:                  []*url.URL{a.td.ID().URL()},
		NotBefore:             now.Add(-Backdate),
		NotAfter:              now.Add(2*caTerm + a.ttl),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	cert, err := selfSign(t, k)
	if err != nil {
		return nil, err
	}
	return &caKey{key: k, cert: cert, since: now}, nil
}

func selfSign(t *x509.Certificate, k *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, t, k.Public(), k)
	if err != nil {
		return nil, fmt.Errorf("issuer: sign authority: %w", err)
	}
	return x509.ParseCertificate(der)
}

// advance brings the authority to the present. The caller holds mu.
func (a *authority) advance(now time.Time) error {
	if a.upstream != nil {
		return a.followUpstream(now)
	}
	if a.schedule != nil {
		a.follow(now)
		return nil
	}
	if a.next == nil && !now.Before(a.current.since.Add(caTerm-a.ahead)) {
		k, err := a.newCA(now)
		if err != nil {
			return err
		}
		a.next, a.nextAt = k, later(now.Add(a.ahead), a.current.since.Add(caTerm))
	}
	// An authority about to expire gives way at once: it cannot sign for a
	// whole lifetime, and nothing that it signed is still valid then.
	if a.next != nil && (!now.Before(a.nextAt) || now.Add(a.ttl).After(a.current.cert.NotAfter)) {
		a.current.last = now.Add(a.ttl + Backdate)
		a.retired = append(a.retired, a.current)
		a.current, a.next = a.next, nil
		a.current.since = now
	}
	a.retired = slices.DeleteFunc(a.retired, func(k *caKey) bool { return now.After(k.last) })
	return nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// authorities returns the certificates that verifiers should trust now.
func (a *authority) authorities() ([]*x509.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.advance(a.now()); err != nil {
		return nil, err
	}
	if a.upstream != nil {
		return a.roots, nil
	}
	out := []*x509.Certificate{a.current.cert}
	if a.next != nil {
		out = append(out, a.next.cert)
	}
	for _, k := range a.retired {
		out = append(out, k.cert)
	}
	return out, nil
}

// svid returns the current X.509-SVID of id, a new one from half of the old
// one's life on.
func (a *authority) svid(id spiffeid.ID) (*x509svid.SVID, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if s, ok := a.svids.Get(id); ok && now.Add(a.ttl/2).Before(s.Certificates[0].NotAfter) {
		return s, nil
	}
	// X.509-SVID section 4: digitalSignature and no CA bit; exactly one URI.
	cert, k, err := a.leaf(now, &x509.Certificate{
		URIs:        []*url.URL{id.URL()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return nil, err
	}
	s := &x509svid.SVID{ID: id, Certificates: a.withChain(cert), PrivateKey: k}
	a.svids.Add(id, s)
	return s, nil
}

// leaf completes and signs t with a key of its own. The caller holds mu.
func (a *authority) leaf(now time.Time, t *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	if err := a.advance(now); err != nil {
		return nil, nil, err
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("issuer: make leaf key: %w", err)
	}
	t.Subject = pkix.Name{Organization: []string{"Attaché"}}
	cert, err := a.certify(now, t, &k.PublicKey, a.ttl)
	if err != nil {
		return nil, nil, err
	}
	return cert, k, nil
}

// certify completes and signs t for pub. The caller holds mu.
func (a *authority) certify(now time.Time, t *x509.Certificate, pub *ecdsa.PublicKey, life time.Duration) (*x509.Certificate, error) {
	t.SerialNumber = serial()
	t.NotBefore, t.NotAfter = now.Add(-Backdate), now.Add(life)
	if end := a.current.cert.NotAfter; t.NotAfter.After(end) { // an intermediate's life may be short
		t.NotAfter = end
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, t, a.current.cert, pub, a.current.key)
	if err != nil {
		return nil, fmt.Errorf("issuer: sign certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("issuer: read back certificate: %w", err)
	}
	return cert, nil
}

// webCertificate is a server certificate for the discovery listener.
func (a *authority) webCertificate(hosts []string) (*tls.Certificate, error) {
	t := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else if h != "" {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	cert, k, err := a.leaf(a.now(), t)
	if err != nil {
		return nil, err
	}
	out := &tls.Certificate{PrivateKey: k, Leaf: cert}
	for _, c := range a.withChain(cert) {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out, nil
}

// serial returns 120 random bits: positive and within the 20 octets of
// RFC 5280 section 4.1.2.2.
func serial() *big.Int {
	b := make([]byte, 15)
	_, _ = rand.Read(b) // never fails (crypto/rand, Go 1.24)
	b[0] |= 1           // not zero
	return new(big.Int).SetBytes(b)
}
