package issuer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"
)

// Serving roots outlive the pods that have them in their specification, which
// nothing can change: a root signs for a year, and is good for ten.
const (
	servingTerm = 365 * 24 * time.Hour
	servingLife = 10 * servingTerm
	maxCross    = 10 // generations of serving roots whose pods still connect
)

// authorityBackdate is how far a clock may be behind, and still verifies the
// control plane: there a sidecar learns that its clock is wrong.
const authorityBackdate = time.Hour

// Schedule is the keys that several issuers of one trust domain share, and
// when each of them signs. All who hold the same schedule sign with the same
// keys at any time, without talking to each other. It is not changed once
// made; [Schedule.Advance] answers another one.
//
// It holds private keys in the clear: a store that others can read is their
// loss.
type Schedule struct {
	jwt     []Term
	ca      []Term
	serving []Term
}

// Term is one key and the time from which it signs, which is until the next
// one does.
type Term struct {
	key       *ecdsa.PrivateKey
	cert      *x509.Certificate // authorities only
	published time.Time         // verifiers can know it since
	from      time.Time         // it signs from
	// cross are certificates of key by earlier serving roots, newest first:
	// the chain by which those who know only an old root verify.
	cross []*x509.Certificate
}

// Advance brings s (nil: nothing yet) to now: successors are published
// [Config.PublishAhead] before they sign, and keys that nobody needs any
// more are dropped. It reports whether anything changed. Of c only
// TrustDomain and the times are used.
func (s *Schedule) Advance(c Config, now time.Time) (*Schedule, bool, error) {
	if err := c.fill(); err != nil {
		return nil, false, err
	}
	if s == nil {
		s = &Schedule{}
	}
	out := &Schedule{}
	var changed [3]bool
	var errs [3]error
	out.jwt, changed[0], errs[0] = s.advance(s.jwt, now, plan{
		rotate: c.RotateEvery, ahead: c.PublishAhead, keep: c.MaxJWTTTL + Backdate, make: newSigner,
	})
	out.ca, changed[1], errs[1] = s.advance(s.ca, now, plan{
		rotate: caTerm, ahead: c.PublishAhead, keep: c.X509TTL + Backdate,
		make: func(_ *Term, from time.Time) (Term, error) {
			return newRoot(c, now, from.Add(2*caTerm+c.X509TTL), pkix.Name{Organization: []string{"Attaché"}, CommonName: c.TrustDomain.Name()})
		},
	})
	out.serving, changed[2], errs[2] = s.advance(s.serving, now, plan{
		rotate: servingTerm, ahead: c.PublishAhead, keep: slack,
		make: func(last *Term, from time.Time) (Term, error) { return newServing(c, last, now, from) },
	})
	if err := errors.Join(errs[:]...); err != nil {
		return nil, false, err
	}
	return out, changed[0] || changed[1] || changed[2], nil
}

// slack is how far the clocks of two holders of a schedule may differ, and
// how late one of them may read it.
const slack = 10 * time.Minute

type plan struct {
	rotate, ahead, keep time.Duration
	make                func(last *Term, from time.Time) (Term, error)
}

func (*Schedule) advance(terms []Term, now time.Time, p plan) ([]Term, bool, error) {
	out := slices.Clone(terms)
	if len(out) == 0 { // the first key cannot wait
		t, err := p.make(nil, now)
		if err != nil {
			return nil, false, err
		}
		t.published, t.from = now, now
		return []Term{t}, true, nil
	}
	changed := false
	last := &out[len(out)-1]
	if end := last.from.Add(p.rotate); !now.Before(end.Add(-p.ahead - slack)) {
		from := later(now.Add(p.ahead+slack), end)
		if last.cert != nil && from.Add(p.keep).After(last.cert.NotAfter) {
			from = now // nothing that last signs would be good for its whole life
		}
		t, err := p.make(last, from)
		if err != nil {
			return nil, false, err
		}
		t.published, t.from = now, from
		out, changed = append(out, t), true
	}
	for len(out) > 1 && now.After(out[1].from.Add(p.keep+slack)) {
		out, changed = out[1:], true
	}
	return out, changed, nil
}

func newSigner(*Term, time.Time) (Term, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Term{}, fmt.Errorf("issuer: make signing key: %w", err)
	}
	return Term{key: k}, nil
}

func newRoot(c Config, now, until time.Time, subject pkix.Name) (Term, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Term{}, fmt.Errorf("issuer: make authority key: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               subject,
		URIs:                  []*url.URL{c.TrustDomain.ID().URL()},
		NotBefore:             now.Add(-authorityBackdate),
		NotAfter:              until,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	cert, err := selfSign(t, k)
	if err != nil {
		return Term{}, err
	}
	return Term{key: k, cert: cert}, nil
}

// newServing makes a root for servers of the control plane. last certifies
// it, so that those who know only last trust it too.
func newServing(c Config, last *Term, now, from time.Time) (Term, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Term{}, fmt.Errorf("issuer: make serving key: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber: serial(),
		// Of its own name: chains are built by name.
		Subject:               pkix.Name{Organization: []string{"Attaché"}, CommonName: "control plane " + randomID()[:8]},
		NotBefore:             now.Add(-authorityBackdate),
		NotAfter:              from.Add(servingLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	cert, err := selfSign(t, k)
	if err != nil {
		return Term{}, err
	}
	out := Term{key: k, cert: cert}
	if last == nil {
		return out, nil
	}
	cross := *t
	cross.SerialNumber, cross.NotAfter = serial(), last.cert.NotAfter
	der, err := x509.CreateCertificate(rand.Reader, &cross, last.cert, k.Public(), last.key)
	if err != nil {
		return Term{}, fmt.Errorf("issuer: certify serving root: %w", err)
	}
	by, err := x509.ParseCertificate(der)
	if err != nil {
		return Term{}, fmt.Errorf("issuer: read back serving root: %w", err)
	}
	out.cross = append([]*x509.Certificate{by}, last.cross...)
	out.cross = out.cross[:min(len(out.cross), maxCross)]
	return out, nil
}

// at is the term that signs at now: the last that has begun.
func at(terms []Term, now time.Time) Term {
	for _, t := range slices.Backward(terms) {
		if !now.Before(t.from) {
			return t
		}
	}
	return terms[0] // a clock that lags
}

// ServingRoots are the certificates by which servers of the control plane are
// verified: the one that signs, its successor once it is published, and for a
// while its predecessor.
func (s *Schedule) ServingRoots() []*x509.Certificate {
	var out []*x509.Certificate
	for _, t := range s.serving {
		out = append(out, t.cert)
	}
	return out
}

// Authorities are the X.509 authorities of the trust domain, as ServingRoots.
func (s *Schedule) Authorities() []*x509.Certificate {
	var out []*x509.Certificate
	for _, t := range s.ca {
		out = append(out, t.cert)
	}
	return out
}

// Due is when the earliest successor begins to sign; zero if none is
// published.
func (s *Schedule) Due(now time.Time) time.Time {
	var due time.Time
	for _, terms := range [][]Term{s.jwt, s.ca, s.serving} {
		if l := terms[len(terms)-1]; now.Before(l.from) && (due.IsZero() || l.from.Before(due)) {
			due = l.from
		}
	}
	return due
}
