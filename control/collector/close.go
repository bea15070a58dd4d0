package collector

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/control/peer"
)

// closePrefix separates what a producer signs at its end from anything else
// that its key signs.
const closePrefix = "attache.audit.close/v1\n"

// errUnsigned is a close without a signature.
var errUnsigned = errors.New("is not signed")

// closed checks the signature of an epoch's end. A bad one is told of: the
// transport says whose line it is, but the store's own reader cannot prove it
// later.
func (c *Collector) closed(ctx context.Context, p store.Producer, before store.Head, l line) {
	err := c.checkClose(p, before, l)
	switch {
	case err == nil:
		c.metrics.closes.WithLabelValues("signed").Inc()
	case errors.Is(err, errUnsigned):
		c.metrics.closes.WithLabelValues("unsigned").Inc()
	default:
		c.metrics.closes.WithLabelValues("bad").Inc()
		c.tell(ctx, audit.EventProducerForged, p, l.Epoch, map[string]string{
			"reason": "the signature of the epoch's end: " + err.Error(), "sequence": strconv.FormatUint(l.Sequence, 10), "lines": "1",
		})
	}
}

// checkClose verifies that the pod which the certificate names signed that
// this line is the last of its epoch.
func (c *Collector) checkClose(p store.Producer, before store.Head, l line) error {
	if l.head.Event == nil || l.head.Event.Fields["signature"] == "" {
		return errUnsigned
	}
	f := l.head.Event.Fields
	if f["last"] != strconv.FormatUint(l.Sequence, 10) {
		return errors.New("names another last line")
	}
	if before.Chained && before.Last == l.Sequence-1 && f["head"] != before.Hash.String() {
		return errors.New("names another head of the chain")
	}
	leaf, err := c.signer(f["certificate"], l)
	if err != nil {
		return err
	}
	if id := leaf.Subject.SerialNumber; id != p.ID {
		return errors.New("is another producer's")
	}
	sig, err := base64.RawURLEncoding.DecodeString(f["signature"])
	if err != nil {
		return errors.New("is not base64url")
	}
	text := []byte(closePrefix + l.Epoch + "\n" + f["last"] + "\n" + f["head"])
	switch key := leaf.PublicKey.(type) {
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(text)
		if ecdsa.VerifyASN1(key, sum[:], sig) {
			return nil
		}
	case ed25519.PublicKey:
		if ed25519.Verify(key, text, sig) {
			return nil
		}
	}
	return errors.New("does not fit")
}

// signer verifies the certificate of a close by the authorities of the trust
// domain, as of the time of the line: it may come long after.
func (c *Collector) signer(text string, l line) (*x509.Certificate, error) {
	if c.Authorities == nil {
		return nil, errors.New("cannot be verified: no authorities are known")
	}
	roots, err := c.Authorities()
	if err != nil {
		return nil, fmt.Errorf("cannot be verified: %w", err)
	}
	var leaf *x509.Certificate
	between := x509.NewCertPool()
	for rest := []byte(text); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		cert, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, errors.New("has no certificate that can be read")
		}
		if leaf == nil {
			leaf = cert
		} else {
			between.AddCert(cert)
		}
	}
	if leaf == nil {
		return nil, errors.New("has no certificate")
	}
	at, err := time.Parse(time.RFC3339Nano, l.head.Time)
	if err != nil {
		return nil, errors.New("has no time")
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return nil, fmt.Errorf("its certificate: %w", err)
	}
	if _, err := peer.FromCertificate(leaf, at); err != nil {
		return nil, fmt.Errorf("its certificate: %w", err)
	}
	return leaf, nil
}
