package collector

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strconv"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/control/peer"
)

// errUnsigned is a close without a signature.
var errUnsigned = errors.New("is not signed")

// closed checks the signature of an epoch's end, and reports whether it holds.
// A bad one is told of: the connection says whose line it is, but who verifies
// the store later has only the signature.
func (c *Collector) closed(ctx context.Context, p store.Producer, before store.Head, l line) bool {
	err := c.checkClose(p, before, l)
	switch {
	case err == nil:
		c.metrics.closes.WithLabelValues("signed").Inc()
		return true
	case errors.Is(err, errUnsigned):
		c.metrics.closes.WithLabelValues("unsigned").Inc()
	default:
		c.metrics.closes.WithLabelValues("bad").Inc()
		c.tell(ctx, audit.EventProducerForged, p, l.Epoch, map[string]string{
			"reason": "the end of the epoch: " + err.Error(), "sequence": strconv.FormatUint(l.Sequence, 10), "lines": "1",
		})
	}
	return false
}

// checkClose verifies that the pod which the certificate names signed that
// this line is the last of its epoch.
func (c *Collector) checkClose(p store.Producer, before store.Head, l line) error {
	r, err := l.Record()
	if err != nil {
		return err
	}
	key, cert, err := audit.VerifyClose(&r)
	switch {
	case err != nil:
		return err
	case key == nil:
		return errUnsigned
	case cert == nil:
		return errors.New("its key has no certificate of the trust domain")
	case before.Chained && before.Last == l.Sequence-1 && r.Event.Fields["head"] != before.Hash.String():
		return errors.New("it names another head of the chain")
	case c.Authorities == nil:
		return errors.New("no authorities are known to verify its certificate")
	}
	roots, err := c.Authorities()
	if err != nil {
		return fmt.Errorf("authorities: %w", err)
	}
	between := x509.NewCertPool()
	for _, rest := range []string{r.Event.Fields["certificate"], r.Event.Fields["issuers"]} {
		appendPEM(between, []byte(rest))
	}
	// As of the time of the line: it may come long after.
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: r.Time, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return fmt.Errorf("its certificate: %w", err)
	}
	pod, err := peer.FromCertificate(cert, r.Time)
	if err != nil {
		return fmt.Errorf("its certificate: %w", err)
	}
	if pod.UID != p.ID {
		return errors.New("it is signed by another producer")
	}
	return nil
}

func appendPEM(pool *x509.CertPool, rest []byte) {
	for {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return
		}
		if c, err := x509.ParseCertificate(b.Bytes); err == nil {
			pool.AddCert(c)
		}
	}
}
