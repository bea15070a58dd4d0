// Package broker asks the cluster's broker (control/broker) for credentials
// whose root is a Secret that no sidecar can read.
//
// The broker knows us by our X.509-SVID and decides by itself; what we send is
// what the call looks like, not that it is allowed. What comes back lives in
// memory for minutes: a token's own lifetime, or the lease of a vendor's key.
package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
)

// Bounds of one call.
const (
	timeout  = 15 * time.Second
	maxLease = time.Hour // more is no lease
)

// Broker makes the Minters of providers whose credentials the broker mints.
type Broker struct{ client controlpb.BrokerClient }

// New returns a Broker on a connection to the control plane, by mutual TLS.
func New(conn grpc.ClientConnInterface) *Broker {
	return &Broker{client: controlpb.NewBrokerClient(conn)}
}

// Minter returns the Minter of p. It fits [minting.Deps].Broker. What a relay
// puts on is never asked for: its credential here is a name and an end.
func (b *Broker) Minter(p v1alpha1.CredentialProvider) (minting.Minter, error) {
	if api.ByRelay(&p.Spec) {
		return relayed{name: p.Metadata.Name, derived: p.Spec.APIKey == nil}, nil
	}
	m := &minter{client: b.client, name: p.Metadata.Name, ref: p.Metadata.Name, kind: minting.KindBearer}
	if p.Metadata.Namespace != "" {
		m.ref = p.Metadata.Namespace + "/" + p.Metadata.Name
	}
	if p.Spec.APIKey != nil {
		m.kind = minting.KindAPIKey
	}
	return m, nil
}

type minter struct {
	client          controlpb.BrokerClient
	name, ref, kind string
}

// Mint implements [minting.Minter].
func (m *minter) Mint(ctx context.Context, r minting.Request, e minting.Evidence) (minting.Credential, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c := e.Call
	start := time.Now()
	a, err := m.client.Mint(ctx, &controlpb.MintRequest{
		Provider: m.ref, Scheme: c.Scheme, Host: c.Host, Port: int32(c.Port), Method: c.Method, Path: c.Path, Protocol: c.Protocol, //nolint:gosec // a port
		Record: c.Record, Scopes: r.Scope, Resources: r.Resources, Audience: r.Audience,
	}, grpc.WaitForReady(true)) // while one replica ends, the next connection is to another
	if err != nil {
		return minting.Credential{}, fmt.Errorf("provider %s: %w", m.name, worded(err))
	}
	if err := minting.CheckSecret(a.GetValue()); err != nil {
		return minting.Credential{}, fmt.Errorf("provider %s: the broker's answer: %w", m.name, err)
	}
	// An issuer that says nothing, or years, gives no lease.
	expires := start.Add(maxLease)
	if t := a.GetExpires(); t.IsValid() && t.AsTime().Before(expires) {
		expires = t.AsTime()
	}
	if !expires.After(start) {
		return minting.Credential{}, fmt.Errorf("provider %s: %w: the lease ended at %s, before it began; compare the clocks of this node and the control plane", m.name, minting.ErrUnavailable, expires.UTC().Format(time.RFC3339))
	}
	handle := a.GetHandle()
	if !strings.HasPrefix(handle, "cred_") || len(handle) > 64 {
		return minting.Credential{}, fmt.Errorf("provider %s: %w: the broker's answer names no handle", m.name, minting.ErrUnavailable)
	}
	return minting.Credential{
		Handle: handle, Kind: m.kind, Provider: m.name, Secret: secret.New(a.GetValue()),
		Issued: start, Expires: expires, Scope: r.Scope, Derived: m.kind != minting.KindAPIKey,
	}, nil
}

// relayed makes the credentials of a provider whose secrets stay at the relay.
type relayed struct {
	name    string
	derived bool
}

// Mint implements [minting.Minter]. It names what the relay will put on, so that
// records and revocations have a handle.
func (m relayed) Mint(_ context.Context, r minting.Request, _ minting.Evidence) (minting.Credential, error) {
	now := time.Now()
	return minting.Credential{
		Handle: minting.NewHandle(), Kind: minting.KindRelay, Provider: m.name,
		Issued: now, Expires: now.Add(maxLease), Scope: r.Scope, Derived: m.derived,
	}, nil
}

// worded turns the broker's status into an error of package minting. Its text
// is the broker's, which never repeats a secret.
func worded(err error) error {
	s := status.Convert(err)
	switch s.Code() {
	case codes.PermissionDenied, codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.Unimplemented:
		return fmt.Errorf("%w: the broker: %s", minting.ErrDenied, s.Message())
	case codes.ResourceExhausted:
		return minting.WithRetryAfter(fmt.Errorf("%w: the broker: %s", minting.ErrUnavailable, s.Message()), 2*time.Second)
	}
	if errors.Is(err, context.DeadlineExceeded) || s.Code() == codes.DeadlineExceeded {
		return fmt.Errorf("%w: the broker did not answer in %s", minting.ErrUnavailable, timeout)
	}
	return fmt.Errorf("%w: the broker: %s", minting.ErrUnavailable, s.Message())
}
