package sidecar

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/issuer"
)

// folder is a Control without a control plane: documents from a folder, and
// identities from an issuer of our own. It is for tests and demonstrations.
type folder struct {
	dir      string
	issuer   *issuer.Issuer
	workload *identity.Workload
	log      *slog.Logger
}

// NewFolder returns a [Control] over the documents in dir. The pod is called
// name, and its identity is worth nothing outside.
func NewFolder(ctx context.Context, dir, name string, log *slog.Logger) (Control, error) {
	b, err := api.Load(dir)
	if err != nil {
		return nil, err
	}
	c := b.Config.Spec
	td, err := spiffeid.TrustDomainFromString(c.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("spec.trustDomain: %w", err)
	}
	if name == "" {
		name = c.Workload.Name
	}
	if name == "" {
		name = "agent"
	}
	id, err := spiffeid.FromSegments(td, "ns", "local", "sa", name)
	if err != nil {
		return nil, fmt.Errorf("workload name %q: %w", name, err)
	}
	iss, err := issuer.New(ctx, issuer.Config{TrustDomain: td, URL: c.Identity.IssuerURL, RotateEvery: c.Identity.RotateEvery.D(), Log: log})
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	var run [16]byte
	_, _ = rand.Read(run[:]) // never fails
	f := &folder{dir: dir, issuer: iss, log: log, workload: &identity.Workload{
		ID: id, Namespace: "local", ServiceAccount: name, Labels: c.Workload.Labels, Node: host,
		Posture: map[string]string{"attested": "no"}, RunID: hex.EncodeToString(run[:]),
	}}
	if c.Workload.Owner != "" {
		f.workload.Owner, f.workload.OwnerSource = c.Workload.Owner, "config"
	}
	return f, nil
}

// Attest implements [Control]; it attests nothing.
func (f *folder) Attest(context.Context) (identity.Source, error) { return f.issuer, nil }

// Workload implements [Control].
func (f *folder) Workload() *identity.Workload { return f.workload }

// Stale implements [Control]: a folder is always what it is.
func (f *folder) Stale() error { return nil }

// Follow implements [Control].
func (f *folder) Follow(ctx context.Context, to Follower) error {
	b, err := api.Load(f.dir)
	if err != nil {
		return err
	}
	if err := to.Apply(b); err != nil {
		return b.Located(err)
	}
	w := api.Watcher{Dir: f.dir, Log: f.log, Apply: to.Apply, Rejected: to.Rejected}
	return w.Run(ctx)
}
