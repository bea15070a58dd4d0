package run

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/issuer"
	"github.com/attache-dev/attache/identity/spiffe"
)

// source is where identity documents come from and what closes it.
type source struct {
	identity.Source
	id     spiffeid.ID // of the workload
	issuer *issuer.Issuer
	ln     net.Listener // of discovery; nil: none
	close  func() error
}

// identityWait is how long the first identity may take.
const identityWait = 10 * time.Second

// openSource opens the configured source of identity.
func openSource(ctx context.Context, o *Options, c v1alpha1.AttacheConfigSpec) (*source, error) {
	if c.Identity.Source == api.SourceSPIFFE {
		wait, cancel := context.WithTimeout(ctx, identityWait)
		defer cancel()
		s, err := spiffe.New(wait, spiffe.Config{Socket: c.Identity.Socket, Log: o.Log})
		if err != nil {
			return nil, fmt.Errorf("SPIFFE Workload API: %w; is the agent running, and is this process registered with it?", err)
		}
		id, err := s.ID()
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		return &source{Source: s, id: id, close: s.Close}, nil
	}
	td, err := spiffeid.TrustDomainFromString(c.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("spec.trustDomain: %w", err)
	}
	name := workloadName(o, c)
	id, err := spiffeid.FromSegments(td, "agent", name)
	if err != nil {
		return nil, fmt.Errorf("workload name %q: %w", name, err)
	}
	s := &source{id: id}
	cfg := issuer.Config{TrustDomain: td, URL: c.Identity.IssuerURL, RotateEvery: c.Identity.RotateEvery.D(), Log: o.Log}
	if c.Identity.SSHAgent != "" {
		cfg.Keys = issuer.SSHAgent{Socket: c.Identity.SSHAgent}
	}
	if c.Identity.Listen != "" {
		if s.ln, err = (&net.ListenConfig{}).Listen(ctx, "tcp", c.Identity.Listen); err != nil {
			return nil, fmt.Errorf("spec.identity.listen: %w; choose a free port", err)
		}
		if cfg.URL == "" {
			cfg.URL = "https://" + s.ln.Addr().String()
		}
	}
	if s.issuer, err = issuer.New(ctx, cfg); err != nil {
		if s.ln != nil {
			_ = s.ln.Close()
		}
		return nil, err
	}
	s.Source, s.close = s.issuer, s.issuer.Close
	return s, s.serve(o, c.Identity)
}

// serve publishes discovery and keys, so that others can verify our tokens.
func (s *source) serve(o *Options, c v1alpha1.IdentityConfig) error {
	if s.ln == nil {
		return nil
	}
	var cert *tls.Certificate
	if c.TLSCertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.TLSCertFile, c.TLSKeyFile)
		if err != nil {
			return errors.Join(fmt.Errorf("spec.identity.tlsCertFile: %w", err), s.close())
		}
		cert = &pair
	}
	go func() {
		if err := s.issuer.ServeTLS(s.ln, cert); err != nil {
			o.Log.Error("issuer's discovery listener ended", "cause", err)
		}
	}()
	o.Log.Info("issuer publishes its keys", "url", s.issuer.URL(), "listen", s.ln.Addr().String())
	return nil
}

var notPathSegment = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

// workloadName is the last segment of the SPIFFE ID.
func workloadName(o *Options, c v1alpha1.AttacheConfigSpec) string {
	for _, n := range []string{o.Name, c.Workload.Name} {
		if n != "" {
			return n
		}
	}
	n := notPathSegment.ReplaceAllString(filepath.Base(o.Command[0]), "-")
	if n = strings.Trim(n, ".-"); n == "" {
		return "agent"
	}
	return n
}

// newWorkload describes the run. Its posture is what the sandbox enforces.
func newWorkload(o *Options, c v1alpha1.AttacheConfigSpec, id spiffeid.ID, confined string) *identity.Workload {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	w := &identity.Workload{
		ID: id, Namespace: "local", ServiceAccount: workloadName(o, c), Labels: c.Workload.Labels, Node: host,
		Posture: map[string]string{"confined": confined}, RunID: newRunID(),
	}
	switch {
	case o.Owner != "":
		w.Owner, w.OwnerSource = o.Owner, "flag"
	case c.Workload.Owner != "":
		w.Owner, w.OwnerSource = c.Workload.Owner, "config"
	}
	return w
}
