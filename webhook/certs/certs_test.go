package certs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/attache-dev/attache/test/cluster"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// authority signs certificates for one test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, end time.Time) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: end,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{c, key}
}

func (a authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// data is a Secret with a certificate of a.
func (a authority) data(t *testing.T, end time.Time) map[string][]byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: end, DNSNames: []string{"x"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		caKey: a.pem(), certKey: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		keyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kb}),
	}
}

func mustParse(t *testing.T, data map[string][]byte) pair {
	t.Helper()
	p, err := parse(data)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A certificate of a new authority waits until the bundles have had it for a
// while; one of the same authority does not.
func TestOffer(t *testing.T) {
	now, year := time.Now(), time.Now().Add(365*24*time.Hour)
	one, two := newAuthority(t, year), newAuthority(t, year)
	first, renewed, other := mustParse(t, one.data(t, year)), mustParse(t, one.data(t, year)), mustParse(t, two.data(t, year))
	both := slices.Concat(one.pem(), two.pem())
	c := &Certificate{overlap: 10 * time.Second}
	if c.Ready() == nil {
		t.Error("ready without a certificate")
	}
	step := func(what string, p pair, bundle []byte, at time.Duration, wantAgain bool, want pair, ready bool) {
		t.Helper()
		if again := c.offer(p, [][]byte{bundle, bundle}, now.Add(at), quiet()); again != wantAgain {
			t.Errorf("%s: again %v", what, again)
		}
		got, err := c.serve(nil)
		if err != nil || !bytes.Equal(got.Certificate[0], want.certificate.Certificate[0]) {
			t.Errorf("%s: another certificate, %v", what, err)
		}
		if err := c.Ready(); (err == nil) != ready {
			t.Errorf("%s: ready: %v", what, err)
		}
	}
	step("the first is served at once", first, nil, 0, true, first, false)
	step("and ready when trusted", first, one.pem(), 0, false, first, true)
	step("a renewal is served at once", renewed, one.pem(), time.Second, false, renewed, true)
	step("another authority's waits for the bundle", other, one.pem(), 2*time.Second, true, renewed, true)
	step("and then for the API servers", other, both, 3*time.Second, true, renewed, true)
	step("still", other, both, 12*time.Second, true, renewed, true)
	step("until it is served", other, both, 13*time.Second, false, other, true)

	half := &Certificate{overlap: time.Second}
	if half.offer(first, [][]byte{one.pem(), nil}, now, quiet()); half.Ready() == nil {
		t.Error("ready when one of two configurations does not trust it")
	}
	expired := &Certificate{overlap: time.Hour}
	expired.offer(mustParse(t, one.data(t, now.Add(-time.Minute))), [][]byte{both}, now, quiet())
	if expired.Ready() == nil {
		t.Error("ready with an expired certificate")
	}
	if expired.offer(other, [][]byte{both}, now, quiet()); expired.Ready() != nil {
		t.Error("an expired certificate was kept")
	}
}

func TestBadSecrets(t *testing.T) {
	year := time.Now().Add(365 * 24 * time.Hour)
	one, two := newAuthority(t, year), newAuthority(t, year)
	good := one.data(t, year)
	for name, change := range map[string]func(map[string][]byte){
		"no key":            func(d map[string][]byte) { delete(d, keyKey) },
		"another key":       func(d map[string][]byte) { d[keyKey] = one.data(t, year)[keyKey] },
		"no authority":      func(d map[string][]byte) { d[caKey] = nil },
		"another authority": func(d map[string][]byte) { d[caKey] = two.pem() },
		"garbage":           func(d map[string][]byte) { d[certKey] = []byte("garbage") },
	} {
		d := map[string][]byte{}
		for k, v := range good {
			d[k] = v
		}
		change(d)
		if _, err := parse(d); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestJoinAuthorities(t *testing.T) {
	now := time.Now()
	year := now.Add(365 * 24 * time.Hour)
	one, two, old := newAuthority(t, year), newAuthority(t, year), newAuthority(t, now.Add(-time.Minute))
	for name, c := range map[string]struct{ fresh, old, want []byte }{
		"first":       {one.pem(), nil, one.pem()},
		"same":        {one.pem(), one.pem(), one.pem()},
		"rotated":     {two.pem(), one.pem(), slices.Concat(two.pem(), one.pem())},
		"expired":     {two.pem(), old.pem(), two.pem()},
		"kept":        {slices.Concat(two.pem(), one.pem()), slices.Concat(two.pem(), one.pem()), slices.Concat(two.pem(), one.pem())},
		"garbage old": {two.pem(), []byte("garbage"), two.pem()},
	} {
		if got := joinAuthorities(c.fresh, c.old, now); !bytes.Equal(got, c.want) {
			t.Errorf("%s: %d certificates", name, len(certificates(got)))
		}
	}
	var many []byte
	for range 10 {
		many = joinAuthorities(newAuthority(t, year).pem(), many, now)
	}
	if n := len(certificates(many)); n != maxAuthorities {
		t.Errorf("%d authorities", n)
	}
}

func TestFromFiles(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := FromFiles(dir); err == nil {
		t.Error("an empty folder is taken")
	}
	year := time.Now().Add(365 * 24 * time.Hour)
	a := newAuthority(t, year)
	write := func(end time.Time) []byte {
		d := a.data(t, end)
		for _, k := range []string{certKey, keyKey} {
			if err := os.WriteFile(filepath.Join(dir, k), d[k], 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return certificates(d[certKey])[0].Raw
	}
	first := write(year)
	c, _, err := FromFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.serve(&tls.ClientHelloInfo{})
	if err != nil || !bytes.Equal(got.Certificate[0], first) || c.Ready() != nil {
		t.Errorf("%v, %v", err, c.Ready())
	}
	if end := c.notAfter(); end.Unix() != year.Unix() {
		t.Errorf("ends %s", end)
	}
}

// Two replicas make one certificate, set the bundle of both configurations, and
// survive the loss of the authority's key: at no time does a replica serve what
// the bundle would not accept.
func TestRotation(t *testing.T) {
	e := cluster.API(t)
	ns := e.Namespace(t, nil)
	c, err := client.New(e.Config, client.Options{Scheme: scheme.Scheme})
	if err != nil {
		t.Fatal(err)
	}
	name := "rotation-" + ns
	url := "https://127.0.0.1:1/"
	none, never := admissionv1.SideEffectClassNone, admissionv1.Ignore
	hook := admissionv1.WebhookClientConfig{URL: &url}
	for _, o := range []client.Object{
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "cert", Namespace: ns}},
		&admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: []admissionv1.MutatingWebhook{
			{Name: "a.attache.dev", ClientConfig: hook, SideEffects: &none, FailurePolicy: &never, AdmissionReviewVersions: []string{"v1"}},
			{Name: "b.attache.dev", ClientConfig: hook, SideEffects: &none, FailurePolicy: &never, AdmissionReviewVersions: []string{"v1"}},
		}},
		&admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: []admissionv1.ValidatingWebhook{
			{Name: "c.attache.dev", ClientConfig: hook, SideEffects: &none, FailurePolicy: &never, AdmissionReviewVersions: []string{"v1"}},
		}},
	} {
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	var replicas []*Certificate
	for i := range 2 {
		replicas = append(replicas, replica(t, e, Options{
			Secret: client.ObjectKey{Namespace: ns, Name: "cert"}, Service: "attache-control", Configuration: name, Log: quiet(), overlap: 300 * time.Millisecond,
			controller: fmt.Sprintf("%s-%d", name, i),
		}))
	}
	served := func() (raws [][]byte) {
		for _, r := range replicas {
			if got, err := r.serve(nil); err == nil {
				raws = append(raws, got.Certificate[0])
			}
		}
		return raws
	}
	trusted := func() error {
		certs := served()
		var m admissionv1.MutatingWebhookConfiguration
		if err := c.Get(t.Context(), client.ObjectKey{Name: name}, &m); err != nil {
			return err
		}
		for _, w := range m.Webhooks {
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM(w.ClientConfig.CABundle)
			for _, raw := range certs {
				leaf, err := x509.ParseCertificate(raw)
				if err != nil {
					return err
				}
				if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "attache-control." + ns + ".svc"}); err != nil {
					return err
				}
			}
		}
		return nil
	}
	until(t, "both replicas are ready with one certificate", func() error {
		for _, r := range replicas {
			if err := r.Ready(); err != nil {
				return err
			}
		}
		if certs := served(); !bytes.Equal(certs[0], certs[1]) {
			return errors.New("certificates differ")
		}
		return trusted()
	})
	for i, lose := range []func(map[string][]byte){
		func(d map[string][]byte) { delete(d, "ca.key") }, // the authority can sign no more: another must be made
		func(d map[string][]byte) { clear(d) },            // as operators do who want a new one
	} {
		before := served()[0]
		var s corev1.Secret
		if err := c.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "cert"}, &s); err != nil {
			t.Fatal(err)
		}
		patch := client.MergeFrom(s.DeepCopy())
		lose(s.Data)
		if err := c.Patch(t.Context(), &s, patch); err != nil {
			t.Fatal(err)
		}
		until(t, "both replicas serve a new authority's certificate", func() error {
			if err := trusted(); err != nil {
				t.Fatalf("loss %d: the API server would refuse: %v", i, err)
			}
			certs := served()
			if len(certs) != 2 || bytes.Equal(certs[0], before) || !bytes.Equal(certs[0], certs[1]) {
				return errors.New("not yet")
			}
			return nil
		})
	}
	var v admissionv1.ValidatingWebhookConfiguration
	if err := c.Get(t.Context(), client.ObjectKey{Name: name}, &v); err != nil || len(certificates(v.Webhooks[0].ClientConfig.CABundle)) < 2 {
		t.Errorf("the old authority is gone from the bundle: %v", err)
	}
}

func replica(t *testing.T, e *cluster.Env, o Options) *Certificate {
	t.Helper()
	mgr, err := ctrl.NewManager(e.Config, ctrl.Options{Scheme: scheme.Scheme, Metrics: metricsserver.Options{BindAddress: "0"}})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := Rotate(mgr, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return cert
}

func until(t *testing.T, what string, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(fmt.Errorf("%s: %w", what, err))
		case <-tick.C:
		}
	}
}
