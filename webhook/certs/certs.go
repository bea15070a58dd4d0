// Package certs gives the admission webhook its serving certificate: one that
// this program makes and renews in a Secret, or one from files that something
// else renews.
//
// The API server trusts what the webhook configurations name as caBundle. A
// certificate of a new authority is therefore served only after the bundle names
// that authority, and the bundle names the old one as long as it is valid.
package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
)

// Certificate is what a server serves, and when that ends.
type Certificate struct {
	overlap time.Duration
	mu      sync.Mutex // guards all below
	current *tls.Certificate
	roots   []*x509.Certificate // of current, the one that signed it first
	since   time.Time           // all bundles have had the root of the next one
	trusted bool                // by the webhook configurations
	get     func(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

// TLS is the configuration of a server.
func (c *Certificate) TLS() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.serve, NextProtos: []string{"h2", "http/1.1"}}
}

var errNone = errors.New("no certificate yet")

func (c *Certificate) serve(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c.get != nil {
		return c.get(hello)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil {
		return nil, errNone
	}
	return c.current, nil
}

// Ready says why the API server would not accept the certificate.
func (c *Certificate) Ready() error {
	if c.get == nil {
		c.mu.Lock()
		trusted := c.trusted
		c.mu.Unlock()
		if !trusted {
			return errors.New("the webhook configurations do not have its authority as caBundle yet")
		}
	}
	end := c.notAfter()
	switch {
	case end.IsZero():
		return errNone
	case time.Now().After(end):
		return fmt.Errorf("expired at %s", end.UTC().Format(time.RFC3339))
	}
	return nil
}

// notAfter is the end of the certificate; zero without one.
func (c *Certificate) notAfter() time.Time {
	served, err := c.serve(nil)
	if err != nil {
		return time.Time{}
	}
	leaf := served.Leaf
	if leaf == nil {
		if leaf, err = x509.ParseCertificate(served.Certificate[0]); err != nil {
			return time.Time{}
		}
	}
	return leaf.NotAfter
}

// root is the authority of what is served, in PEM; empty without one.
func (c *Certificate) root() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.roots) == 0 {
		return nil
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.roots[0].Raw})
}

// Collector is a metric of the certificate's end.
func (c *Certificate) Collector() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "attache_webhook_certificate_expiry_timestamp_seconds", Help: "End of the webhook's certificate in Unix time; 0 without one.",
	}, func() float64 {
		if end := c.notAfter(); !end.IsZero() {
			return float64(end.Unix())
		}
		return 0
	})
}

// FromFiles serves tls.crt and tls.key of a folder, and reads them again when they
// change. Run the function until the server ends.
func FromFiles(dir string) (*Certificate, func(context.Context) error, error) {
	w, err := certwatcher.New(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	if err != nil {
		return nil, nil, fmt.Errorf("webhook certificate: %w", err)
	}
	return &Certificate{get: w.GetCertificate}, w.Start, nil
}

// pair is the content of a Secret.
type pair struct {
	certificate tls.Certificate
	roots       []*x509.Certificate
}

// parse reads a Secret and checks that its parts belong together.
func parse(data map[string][]byte) (pair, error) {
	cert, err := tls.X509KeyPair(data[certKey], data[keyKey])
	if err != nil {
		return pair{}, fmt.Errorf("%s and %s: %w", certKey, keyKey, err)
	}
	roots := certificates(data[caKey])
	if len(roots) == 0 {
		return pair{}, fmt.Errorf("%s has no certificate", caKey)
	}
	if err := cert.Leaf.CheckSignatureFrom(roots[0]); err != nil {
		return pair{}, fmt.Errorf("%s is not of the first authority of %s: %w", certKey, caKey, err)
	}
	return pair{cert, roots}, nil
}

func certificates(text []byte) []*x509.Certificate {
	var list []*x509.Certificate
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			return list
		}
		if c, err := x509.ParseCertificate(b.Bytes); err == nil && b.Type == "CERTIFICATE" {
			list = append(list, c)
		}
	}
}

func has(list []*x509.Certificate, c *x509.Certificate) bool {
	for _, o := range list {
		if bytes.Equal(o.Raw, c.Raw) {
			return true
		}
	}
	return false
}

// defaultOverlap is how long API servers get to see a new bundle, before a certificate
// is served that needs it.
const defaultOverlap = 10 * time.Second

// offer takes the Secret's pair, and the bundles of the webhook configurations.
// It serves the pair at once if nothing better is there or the bundles have had
// its authority for a while, and returns whether it is to be offered again.
func (c *Certificate) offer(p pair, bundles [][]byte, now time.Time, log *slog.Logger) (again bool) {
	trusted := true
	for _, b := range bundles {
		trusted = trusted && has(certificates(b), p.roots[0])
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !trusted {
		c.since = time.Time{}
	} else if c.since.IsZero() {
		c.since = now
	}
	if c.current != nil && bytes.Equal(c.current.Certificate[0], p.certificate.Certificate[0]) {
		c.roots, c.trusted = p.roots, trusted
		return !trusted
	}
	usable := c.current != nil && now.Before(c.current.Leaf.NotAfter)
	if usable && !has(c.roots[:1], p.roots[0]) && (!trusted || now.Sub(c.since) < c.overlap) {
		return true
	}
	c.current, c.roots, c.trusted = &p.certificate, p.roots, trusted
	log.Info("webhook certificate in use", "until", p.certificate.Leaf.NotAfter.UTC().Format(time.RFC3339))
	return !trusted
}
