package issuer

import (
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// leastLife is what must be left of an intermediate's life for it to sign:
// below, documents would be born dead.
const leastLife = time.Minute

// Intermediate is an X.509 authority that the authority of the trust domain,
// which somebody else has, certifies. It is not changed once made.
type Intermediate struct {
	Key   *ecdsa.PrivateKey
	Chain []*x509.Certificate // its certificate, then those above it; the root may be left out
	Roots []*x509.Certificate // authorities of the trust domain, as last heard
}

// Check reports why i cannot sign at now: its chain does not lead from its key
// to one of its roots, or it has all but expired.
func (i *Intermediate) Check(now time.Time) error {
	switch {
	case i == nil || i.Key == nil || len(i.Chain) == 0 || len(i.Roots) == 0:
		return errors.New("issuer: no intermediate authority yet")
	case !i.Key.PublicKey.Equal(i.Chain[0].PublicKey):
		return errors.New("issuer: the intermediate authority is of another key")
	case !i.Chain[0].IsCA || i.Chain[0].KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("issuer: the intermediate authority may not sign certificates")
	case now.Add(leastLife).After(i.Chain[0].NotAfter):
		return fmt.Errorf("issuer: the intermediate authority expired at %s", i.Chain[0].NotAfter.UTC().Format(time.RFC3339))
	}
	roots, above := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range i.Roots {
		roots.AddCert(c)
	}
	for _, c := range i.Chain[1:] {
		above.AddCert(c)
	}
	if _, err := i.Chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: above, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return fmt.Errorf("issuer: the intermediate authority is not of the trust domain: %w", err)
	}
	return nil
}

// followUpstream takes over the intermediate of now. The caller holds mu.
func (a *authority) followUpstream(now time.Time) error {
	i := a.upstream()
	if i == nil {
		return errors.New("issuer: no intermediate authority yet")
	}
	if a.current == nil || a.current.cert != i.Chain[0] || !slices.Equal(a.roots, i.Roots) {
		if err := i.Check(now); err != nil {
			return err
		}
		a.current, a.roots = &caKey{key: i.Key, cert: i.Chain[0], chain: i.Chain}, i.Roots
	}
	if now.Add(leastLife).After(a.current.cert.NotAfter) {
		return i.Check(now)
	}
	return nil
}

// withChain is leaf with what verifiers need to get from it to a root. The
// caller holds mu.
func (a *authority) withChain(leaf *x509.Certificate) []*x509.Certificate {
	return append([]*x509.Certificate{leaf}, a.current.chain...)
}

// PublicKey is a key that verifies JWT-SVIDs, and how long it may be needed.
type PublicKey struct {
	ID      string // kid
	Key     *ecdsa.PublicKey
	Expires time.Time
}

// JWTKeys are the keys of s that sign or will sign JWT-SVIDs, for who
// publishes them elsewhere; c is that of [Schedule.Advance]. A key's Expires
// changes only if its successor comes late.
func (s *Schedule) JWTKeys(c Config) ([]PublicKey, error) {
	if err := c.fill(); err != nil {
		return nil, err
	}
	var out []PublicKey
	for n, t := range s.jwt {
		j, err := publicJWK(t.key.Public())
		if err != nil {
			return nil, fmt.Errorf("issuer: %w", err)
		}
		end := t.from.Add(2 * c.RotateEvery)
		if n+1 < len(s.jwt) {
			end = later(end, s.jwt[n+1].from.Add(c.MaxJWTTTL+Backdate+slack))
		}
		out = append(out, PublicKey{ID: j.KeyID, Key: ecdsaOf(j), Expires: end.UTC().Truncate(time.Second)})
	}
	return out, nil
}

// ecdsaOf is the key of one that publicJWK made.
func ecdsaOf(j jose.JSONWebKey) *ecdsa.PublicKey {
	k, _ := j.Key.(*ecdsa.PublicKey)
	return k
}
