package dataplane

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/audit/ship/otlp"
	"github.com/attache-dev/attache/audit/ship/syslog"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/secret"
)

// Sinks are where the records of a data path go.
type Sinks struct {
	List []ship.Sink
	// Collector names the one that acknowledges begins of durability collector;
	// empty: none does.
	Collector string
}

// SVIDFunc gives the workload's X.509-SVID of now.
type SVIDFunc func() (*x509svid.SVID, error)

// SVIDOf asks source for the X.509-SVID of the workload that w returns.
func SVIDOf(source identity.Source, w func() *identity.Workload) SVIDFunc {
	return func() (*x509svid.SVID, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		return source.X509(ctx, w())
	}
}

// SignerOf signs with the workload's X.509-SVID.
func SignerOf(svid SVIDFunc) func([]byte) (audit.Signature, error) {
	return func(text []byte) (audit.Signature, error) {
		v, err := svid()
		if err != nil {
			return audit.Signature{}, err
		}
		var certificates bytes.Buffer
		for _, c := range v.Certificates {
			if err := pem.Encode(&certificates, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}); err != nil {
				return audit.Signature{}, err
			}
		}
		return audit.Signer(v.PrivateKey, certificates.String())(text)
	}
}

// Opener makes a sink of a type that not every program has.
type Opener func(*v1alpha1.AuditSink) (ship.Sink, error)

// OpenSinks makes the sinks that an AttacheConfig names. resource are further
// attributes of the producer, more the types that the program has beside otlp
// and syslog.
func OpenSinks(c v1alpha1.AuditConfig, svid SVIDFunc, resource map[string]string, version string, more ...map[string]Opener) (Sinks, error) {
	var out Sinks
	for i := range c.Sinks {
		s := &c.Sinks[i]
		open := func(s *v1alpha1.AuditSink) (ship.Sink, error) { return openSink(s, svid, resource, version) }
		for _, m := range more {
			if o := m[s.Type]; o != nil {
				open = o
			}
		}
		sink, err := open(s)
		if err != nil {
			return Sinks{}, errors.Join(fmt.Errorf("spec.audit.sinks[%d]: %w", i, err), out.Close())
		}
		out.List = append(out.List, sink)
		if s.Type == api.SinkOTLP && out.Collector == "" {
			out.Collector = s.Name
		}
	}
	return out, nil
}

func openSink(s *v1alpha1.AuditSink, svid SVIDFunc, resource map[string]string, version string) (ship.Sink, error) {
	switch s.Type {
	case api.SinkOTLP:
		c := otlp.Config{
			Name: s.Name, Protocol: s.Protocol, Endpoint: s.Endpoint, Gzip: s.Compression != "none", Timeout: s.Timeout.D(),
			Resource: resource, Version: version,
		}
		cleartext := s.TLS.Disabled
		if s.Protocol == api.SinkHTTP {
			u, err := url.Parse(s.Endpoint)
			if err != nil {
				return nil, err
			}
			cleartext = u.Scheme == api.SchemeHTTP
		}
		if !cleartext {
			var err error
			if c.TLS, err = SinkTLS(&s.TLS, s.Protocol, s.Endpoint, svid); err != nil {
				return nil, err
			}
		}
		for _, h := range s.HeadersFrom {
			c.Headers = append(c.Headers, otlp.Header{Name: h.Name, Value: func() (secret.Value, error) { return readHeader(h.File) }})
		}
		return otlp.New(c)
	case api.SinkSyslog:
		o := syslog.Options{Name: s.Name, Address: s.Endpoint, Format: s.Format, Timeout: s.Timeout.D(), Cleartext: s.TLS.Disabled}
		if !s.TLS.Disabled {
			var err error
			if o.TLS, err = SinkTLS(&s.TLS, "", s.Endpoint, svid); err != nil {
				return nil, err
			}
		}
		return syslog.New(o)
	}
	return nil, fmt.Errorf("type is %q, which this program does not have", s.Type)
}

// maxHeader bounds the file of a header's value, in bytes.
const maxHeader = 64 << 10

func readHeader(path string) (secret.Value, error) {
	f, err := os.Open(path) //nolint:gosec // the operator names it
	if err != nil {
		return secret.Value{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxHeader))
	if err != nil {
		return secret.Value{}, fmt.Errorf("read %s: %w", path, err)
	}
	if b = bytes.TrimSpace(b); len(b) == 0 || bytes.ContainsAny(b, "\r\n\x00") {
		return secret.Value{}, fmt.Errorf("%s must hold one line, the header's value", path)
	}
	return secret.New(string(b)), nil
}

// SinkTLS is the TLS configuration of a sink: protocol and endpoint say what its
// certificate must be for.
func SinkTLS(t *v1alpha1.SinkTLS, protocol, endpoint string, svid SVIDFunc) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	if c.ServerName == "" && protocol != api.SinkHTTP {
		host, _, err := net.SplitHostPort(endpoint)
		if err != nil {
			return nil, err
		}
		c.ServerName = host
	}
	roots := []byte(t.CABundle)
	if t.CAFile != "" {
		b, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("tls.caFile: %w", err)
		}
		roots = append(roots, b...)
	}
	if len(roots) > 0 {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(roots) {
			return nil, errors.New("tls: no certificate of an authority in PEM")
		}
	}
	switch {
	case t.SVID:
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			v, err := svid()
			if err != nil {
				return nil, err
			}
			out := &tls.Certificate{PrivateKey: v.PrivateKey, Leaf: v.Certificates[0]}
			for _, x := range v.Certificates {
				out.Certificate = append(out.Certificate, x.Raw)
			}
			return out, nil
		}
	case t.CertFile != "": // read for each handshake, since certificates are renewed
		if _, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile); err != nil {
			return nil, fmt.Errorf("tls.certFile: %w", err)
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
			return &pair, err
		}
	}
	return c, nil
}

// Close ends the sinks' connections.
func (s *Sinks) Close() error {
	var errs []error
	for _, sink := range s.List {
		if c, ok := sink.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// openRecords starts to ship the spool, and tells of both in metrics.
func (p *Plane) openRecords() error {
	var err error
	if len(p.cfg.Sinks.List) > 0 {
		if p.shipping, err = ship.Start(p.cfg.Spool, p.cfg.Sinks.List, ship.Options{Collector: p.cfg.Sinks.Collector, Log: p.cfg.Log}); err != nil {
			return err
		}
	}
	p.cfg.Log.Info("records are kept", "spool", p.cfg.Spool.Dir(), "sinks", len(p.cfg.Sinks.List), "outage_lasts", p.cfg.Spool.Lasts())
	return p.registry.Register(ship.Metrics(p.cfg.Spool, p.shipping))
}

// Shipping tells what the sinks have, in their order.
func (p *Plane) Shipping() []ship.Status {
	if p.shipping == nil {
		return nil
	}
	return p.shipping.Status()
}

// closeRecords closes the spool, and waits within bounds until the sinks have
// its last line.
func (p *Plane) closeRecords() error {
	err := p.cfg.Spool.Close()
	if p.shipping != nil {
		ctx, cancel := context.WithTimeout(context.Background(), p.spec.Audit.DrainTimeout.D())
		defer cancel()
		if left := p.shipping.Close(ctx); left != nil && p.cfg.Warn != nil {
			p.cfg.Warn(left.Error())
		}
	}
	return errors.Join(err, p.cfg.Sinks.Close())
}
