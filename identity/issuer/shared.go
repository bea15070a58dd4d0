package issuer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// follow takes over what the schedule says of JWT keys now.
func (r *ring) follow() error {
	s := r.schedule()
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	cur := at(s.jwt, now)
	k, err := signingKey(cur)
	if err != nil {
		return err
	}
	r.current, r.next, r.retired = k, nil, nil
	for _, t := range s.jwt {
		if t.key == cur.key {
			continue
		}
		j, err := publicJWK(t.key.Public())
		if err != nil {
			return fmt.Errorf("issuer: %w", err)
		}
		// Of a schedule the ring only publishes the others; who signs when is
		// not its choice.
		r.retired = append(r.retired, retiredKey{jwk: j})
	}
	return nil
}

func signingKey(t Term) (*key, error) {
	j, err := publicJWK(t.key.Public())
	if err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	return &key{signer: t.key, jwk: j}, nil
}

// follow takes over what the schedule says of authorities now. The caller
// holds mu.
func (a *authority) follow(now time.Time) {
	s := a.schedule()
	cur := at(s.ca, now)
	a.current, a.retired = &caKey{key: cur.key, cert: cur.cert, since: cur.from}, nil
	for _, t := range s.ca {
		if t.key != cur.key {
			a.retired = append(a.retired, &caKey{key: t.key, cert: t.cert})
		}
	}
}

// SignX509 signs an X.509-SVID of id for a key that the caller has proved to
// be the workload's. The subject is informative (X.509-SVID section 2), and
// SPIFFE verifiers do not look at it. The lifetime is [Config.X509TTL], less
// where an [Intermediate] expires before. The SVID comes first, then what leads
// from it to a root.
func (i *Issuer) SignX509(id spiffeid.ID, pub any, subject pkix.Name) ([]*x509.Certificate, error) {
	return i.SignX509For(id, pub, subject, i.cfg.X509TTL)
}

// SignX509For is [Issuer.SignX509] with another lifetime.
func (i *Issuer) SignX509For(id spiffeid.ID, pub any, subject pkix.Name, life time.Duration) ([]*x509.Certificate, error) {
	if !id.MemberOf(i.cfg.TrustDomain) || id.Path() == "" {
		return nil, fmt.Errorf("issuer: %q is no workload of trust domain %s", id, i.cfg.TrustDomain)
	}
	p, ok := pub.(*ecdsa.PublicKey)
	if !ok || p.Curve != elliptic.P256() {
		return nil, fmt.Errorf("issuer: key is a %T; must be ECDSA on P-256", pub)
	}
	return i.ca.sign(&x509.Certificate{
		Subject:     subject,
		URIs:        []*url.URL{id.URL()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, p, life)
}

// sign completes t and signs it for pub.
func (a *authority) sign(t *x509.Certificate, pub *ecdsa.PublicKey, life time.Duration) ([]*x509.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if err := a.advance(now); err != nil {
		return nil, err
	}
	c, err := a.certify(now, t, pub, life)
	if err != nil {
		return nil, err
	}
	return a.withChain(c), nil
}

// ServingCertificate makes a certificate for servers of the control plane,
// with the chain by which clients that know an older root verify it. It needs
// a [Config.Schedule]; callers renew it at half of [Config.X509TTL].
func (i *Issuer) ServingCertificate(hosts ...string) (*tls.Certificate, error) {
	if i.cfg.Schedule == nil {
		return nil, errors.New("issuer: has no serving root: no schedule")
	}
	now := i.cfg.Now()
	root := at(i.cfg.Schedule().serving, now)
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("issuer: make serving key: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{Organization: []string{"Attaché"}},
		NotBefore:             now.Add(-authorityBackdate),
		NotAfter:              now.Add(i.cfg.X509TTL),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, root.cert, k.Public(), root.key)
	if err != nil {
		return nil, fmt.Errorf("issuer: sign serving certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("issuer: read back serving certificate: %w", err)
	}
	out := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k, Leaf: leaf}
	for _, c := range root.cross {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out, nil
}
