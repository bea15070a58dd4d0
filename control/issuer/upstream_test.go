package issuer_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/control/peer"
	idissuer "github.com/attache-dev/attache/identity/issuer"
)

// authority stands for SPIRE's: package spire is tested against a server.
type authority struct {
	root    *x509.Certificate
	rootKey *ecdsa.PrivateKey

	mu   sync.Mutex // guards what follows
	now  *idissuer.Intermediate
	jwts map[string]time.Time
	fail error
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{rootKey: newKey(t), jwts: map[string]time.Time{}}
	a.root = a.certify(t, nil, &a.rootKey.PublicKey, "spiffe://cluster.test", pkix.Name{CommonName: "upstream"}, true)
	key := newKey(t)
	a.now = &idissuer.Intermediate{
		Key: key, Roots: []*x509.Certificate{a.root},
		Chain: []*x509.Certificate{a.certify(t, a.root, &key.PublicKey, "spiffe://cluster.test", pkix.Name{CommonName: "intermediate"}, true)},
	}
	return a
}

func (a *authority) certify(t *testing.T, parent *x509.Certificate, pub any, id string, subject pkix.Name, isCA bool) *x509.Certificate {
	t.Helper()
	u, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: subject, URIs: []*url.URL{u}, BasicConstraintsValid: true, IsCA: isCA,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(6 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if isCA {
		c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageCertSign, nil
	}
	if parent == nil {
		parent = c
	}
	raw, err := x509.CreateCertificate(rand.Reader, c, parent, pub, a.rootKey)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (a *authority) Intermediate() *idissuer.Intermediate {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.now
}

func (a *authority) PublishJWT(_ context.Context, k idissuer.PublicKey) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fail == nil {
		a.jwts[k.ID] = k.Expires
	}
	return a.fail
}

func (a *authority) verify(certs [][]byte) error {
	var chain []*x509.Certificate
	for _, der := range certs {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		chain = append(chain, c)
	}
	_, _, err := x509svid.Verify(chain, x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("cluster.test"), []*x509.Certificate{a.root}))
	return err
}

func below(a *authority) change {
	return func(_ *issuer.Config, k *issuer.KeysConfig) { k.Upstream = a }
}

// A cluster goes over to an authority above ours while its pods run: those
// attested before renew, and from then on have SVIDs that verify by it alone.
func TestUpstream(t *testing.T) {
	r := start(t)
	a := r.admit("a", nil, nil)
	if up := newAuthority(t); up.verify(a.mustAttest().Certificates) == nil {
		t.Fatal("the Secret's SVID verifies by another authority: the test tests nothing")
	}
	up := newAuthority(t)
	r.serve(below(up), func(c *issuer.Config, _ *issuer.KeysConfig) { c.Metrics = nil })
	got, err := a.send(a.request(), *a.svid)
	if err != nil {
		t.Fatalf("renew after the source has changed: %v", err)
	}
	if err := up.verify(got.Certificates); err != nil {
		t.Error(err)
	}
	if len(got.Roots) != 1 || string(got.Roots[0]) != string(up.root.Raw) {
		t.Error("the roots are not upstream's alone")
	}
	if _, err := a.jwt(&controlpb.JWTRequest{Audience: upstream}); err != nil {
		t.Errorf("a token with the new SVID: %v", err)
	}
	if got, err := a.send(a.request(), *a.svid); err != nil || up.verify(got.Certificates) != nil {
		t.Errorf("renew with the new SVID: %v", err)
	}
}

// Another workload of the same trust domain, with a certificate that SPIRE
// itself gave it, is not the pod: not by its SPIFFE ID, and not if somebody
// with power over SPIRE had the pod's uid written into it.
func TestUpstreamWorkloadIsNoPod(t *testing.T) {
	up := newAuthority(t)
	r := start(t, below(up))
	a := r.admit("a", nil, nil)
	a.mustAttest()
	id := "spiffe://cluster.test/ns/" + r.ns + "/sa/default"
	for reason, subject := range map[string]pkix.Name{
		"no_svid": {Organization: []string{"SPIRE"}}, "second_key": peer.Subject(string(a.pod.UID)),
	} {
		forged := *a
		key := newKey(t)
		forged.svid = &tls.Certificate{Certificate: [][]byte{up.certify(t, up.root, &key.PublicKey, id, subject, false).Raw}, PrivateKey: key}
		_, err := forged.jwt(&controlpb.JWTRequest{Audience: upstream})
		r.refusedFor(err, reason)
	}
	if _, err := a.jwt(&controlpb.JWTRequest{Audience: upstream}); err != nil {
		t.Errorf("the pod itself: %v", err)
	}
}

func TestUpstreamLearnsJWTKeys(t *testing.T) {
	up := newAuthority(t)
	up.fail = errors.New("down")
	r := start(t, below(up))
	if err := r.keys.Sync(t.Context()); err != nil {
		t.Fatalf("a trust domain that learns of keys late stops the control plane: %v", err)
	}
	if len(up.jwts) != 0 {
		t.Fatal("published while it failed")
	}
	up.mu.Lock()
	up.fail = nil
	up.mu.Unlock()
	if err := r.keys.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, kid := range kids(t, r.keys) {
		if end, ok := up.jwts[kid]; !ok || time.Until(end) < 30*24*time.Hour {
			t.Errorf("key %s: published until %v", kid, end)
		}
	}
	// The successor is there a day before it signs.
	r.ahead.Store(int64(issuer.DefaultRotateEvery))
	if err := r.keys.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(kids(t, r.keys)); n != 2 || len(up.jwts) != n {
		t.Errorf("%d keys, %d published", n, len(up.jwts))
	}
}

// While there is no authority nothing is signed, and the sidecar is asked to
// come again.
func TestUpstreamWithoutAuthority(t *testing.T) {
	up := newAuthority(t)
	r := start(t, below(up))
	a := r.admit("a", nil, nil)
	up.mu.Lock()
	was := up.now
	up.now = nil
	up.mu.Unlock()
	_, err := a.attest()
	r.refusedFor(err, "internal")
	if e := r.lastEvent(); e.Outcome != "later" {
		t.Errorf("outcome %q", e.Outcome)
	}
	up.mu.Lock()
	up.now = was
	up.mu.Unlock()
	a.mustAttest()
}
