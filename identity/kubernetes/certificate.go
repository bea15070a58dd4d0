package kubernetes

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/attache-dev/attache/api/controlpb"
)

const (
	// certificatePoll is how often the kubelet's file is looked at.
	certificatePoll = 10 * time.Second
	maxCertificate  = 64 << 10
)

// attestCertificate presents the pod's certificate, and learns what was
// attested of the pod.
func (s *Source) attestCertificate(ctx context.Context) (time.Duration, error) {
	v, sum, err := s.readCertificate()
	if err != nil {
		return 0, err
	}
	// Of a file that is refused nothing is gained by asking at each poll.
	s.mu.Lock()
	s.sum = sum
	s.mu.Unlock()
	c := s.TLS()
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return presented(v), nil }
	conn, err := s.dialWith(c)
	if err != nil {
		return 0, err
	}
	return s.ask(ctx, conn, &controlpb.AttestRequest{Instance: s.instance}, v)
}

// readCertificate reads the kubelet's file: a private key, then the chain. The
// kubelet replaces it in one step.
func (s *Source) readCertificate() (*x509svid.SVID, [sha256.Size]byte, error) {
	var none [sha256.Size]byte
	b, err := readBounded(s.cfg.CertificateFile, maxCertificate)
	if err != nil {
		return nil, none, fmt.Errorf("read the pod's certificate: %w", err)
	}
	defer clear(b)
	v, err := x509svid.Parse(b, b)
	if err != nil {
		return nil, none, fmt.Errorf("read the pod's certificate: %s: %w", s.cfg.CertificateFile, err)
	}
	return v, sha256.Sum256(b), nil
}

func readBounded(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var b bytes.Buffer
	n, err := io.Copy(&b, io.LimitReader(f, most+1))
	switch {
	case err != nil:
		return nil, err
	case n == 0 || n > most:
		return nil, errors.New(path + " is empty or too long")
	}
	return b.Bytes(), nil
}

// replaced reports whether the kubelet has written another certificate.
func (s *Source) replaced() bool {
	b, err := readBounded(s.cfg.CertificateFile, maxCertificate)
	if err != nil {
		return false // the next attempt says it
	}
	defer clear(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	return sha256.Sum256(b) != s.sum
}
