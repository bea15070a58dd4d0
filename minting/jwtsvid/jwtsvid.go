// Package jwtsvid presents a JWT-SVID of the workload, made for the
// destination's audience, as bearer token. Destinations verify it against the
// trust domain's keys; no issuer of theirs is involved.
package jwtsvid

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/minting"
)

// Minter mints JWT-SVIDs for one CredentialProvider. It is safe for concurrent
// use.
type Minter struct {
	name string
	spec v1alpha1.JWT
	deps minting.Deps
}

// New returns the Minter of the provider called name.
func New(name string, spec v1alpha1.JWT, d minting.Deps) (*Minter, error) {
	return &Minter{name: name, spec: spec, deps: d.WithDefaults()}, nil
}

// Mint implements [minting.Minter]. A JWT-SVID cannot be revoked: it ends with
// its TTL.
func (m *Minter) Mint(ctx context.Context, r minting.Request, e minting.Evidence) (minting.Credential, error) {
	c, err := m.mint(ctx, r, e)
	if err != nil {
		return minting.Credential{}, fmt.Errorf("provider %s: %w", m.name, err)
	}
	return c, nil
}

func (m *Minter) mint(ctx context.Context, r minting.Request, e minting.Evidence) (minting.Credential, error) {
	if e.Workload == nil || e.Source == nil {
		return minting.Credential{}, fmt.Errorf("%w: no attested workload", minting.ErrDenied)
	}
	aud, err := m.audience(r)
	if err != nil {
		return minting.Credential{}, err
	}
	t, err := e.Source.JWT(ctx, identity.JWTRequest{Workload: e.Workload, Audience: aud, TTL: r.TTL})
	if err != nil {
		kind := minting.ErrDenied
		if errors.Is(err, identity.ErrUnavailable) || ctx.Err() != nil {
			kind = minting.ErrUnavailable
		}
		return minting.Credential{}, fmt.Errorf("%w: sign JWT-SVID for %s: %w", kind, aud, err)
	}
	now := m.deps.Now()
	if err := minting.CheckSecret(t.Token.Reveal()); err != nil {
		return minting.Credential{}, err
	}
	if !t.Expires.After(now) {
		return minting.Credential{}, fmt.Errorf("%w: the JWT-SVID for %s had already expired; check the clock", minting.ErrUnavailable, aud)
	}
	c := minting.Credential{
		Handle: minting.NewHandle(), Kind: minting.KindJWT, Provider: m.name,
		Secret: t.Token, Issued: now, Expires: t.Expires, Derived: true, RevokeID: t.ID,
	}
	return c, nil
}

// audience is the rule's, the provider's, or the destination itself: never one
// wide audience, so that no destination can use the token at another.
func (m *Minter) audience(r minting.Request) (string, error) {
	if r.Audience != "" {
		return r.Audience, nil
	}
	if m.spec.Audience != "" {
		return m.spec.Audience, nil
	}
	u, err := url.Parse(r.Destination)
	if err != nil || u.Hostname() == "" {
		return "", fmt.Errorf("%w: no audience: the destination %q names no host", minting.ErrDenied, r.Destination)
	}
	host := u.Hostname()
	if ip := net.ParseIP(host); ip != nil && ip.To4() == nil {
		host = "[" + host + "]"
	}
	return "https://" + host, nil
}
