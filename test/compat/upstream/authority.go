package upstream

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"path/filepath"

	"github.com/attache-dev/attache/test/servers"
)

// certificates are a throw-away authority and one certificate for all names.
type certificates struct {
	CA, Cert, Key string // PEM files
	pair          tls.Certificate
	roots         *x509.CertPool
}

func newCertificates(dir string, names []string) (*certificates, error) {
	c := &certificates{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "leaf.pem"), Key: filepath.Join(dir, "leaf.key")}
	ca, err := servers.NewAuthority("compat upstreams", c.CA)
	if err == nil {
		err = ca.Issue(c.Cert, c.Key, names...)
	}
	if err != nil {
		return nil, fmt.Errorf("make certificates: %w", err)
	}
	c.roots = ca.Pool()
	c.pair, err = tls.LoadX509KeyPair(c.Cert, c.Key)
	return c, err
}
