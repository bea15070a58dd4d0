// Package all is the registry of providers: a new one is one folder under
// minting and one line here.
package all

import (
	"fmt"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/apikey"
	"github.com/attache-dev/attache/minting/aws"
	"github.com/attache-dev/attache/minting/jwtsvid"
	"github.com/attache-dev/attache/minting/oauth2"
)

// New returns the Minter that p describes. Presets have been filled in by then
// (package api does it when it loads p).
func New(p v1alpha1.CredentialProvider, d minting.Deps) (minting.Minter, error) {
	m, _, err := build(p, d)
	return m, err
}

// Guarded is New with back-off and g's circuit breaker for the issuer around
// it: what programs use.
func Guarded(p v1alpha1.CredentialProvider, d minting.Deps, g *minting.Guard) (minting.Minter, error) {
	m, endpoint, err := build(p, d)
	if err != nil {
		return nil, err
	}
	return g.Wrap(p.Metadata.Name, endpoint, m), nil
}

// build makes the Minter and names the endpoint it asks.
func build(p v1alpha1.CredentialProvider, d minting.Deps) (minting.Minter, string, error) {
	name, s := p.Metadata.Name, p.Spec
	if api.NeedsBroker(&s) && d.Root == nil {
		if d.Broker == nil {
			return nil, "", fmt.Errorf("provider %s: its root is a Secret of a cluster, which only the cluster's broker reads", name)
		}
		m, err := d.Broker(p)
		return m, "broker", err
	}
	switch set := count(s.OAuth2 != nil, s.APIKey != nil, s.JWT != nil, s.AWS != nil); {
	case set != 1:
		return nil, "", fmt.Errorf("provider %s: has %d of oauth2, apiKey, jwt, aws; must have exactly one, or a preset", name, set)
	case s.OAuth2 != nil:
		m, err := oauth2.New(name, *s.OAuth2, d)
		if err != nil {
			return nil, "", err
		}
		return m, m.Endpoint(), nil
	case s.APIKey != nil:
		m, err := apikey.New(name, *s.APIKey, d)
		if err != nil {
			return nil, "", err
		}
		return m, m.Endpoint(), nil
	case s.AWS != nil:
		m, err := aws.New(name, *s.AWS, d)
		if err != nil {
			return nil, "", err
		}
		return m, m.Endpoint(), nil
	default:
		m, err := jwtsvid.New(name, *s.JWT, d)
		return m, "identity", err
	}
}

func count(set ...bool) int {
	n := 0
	for _, s := range set {
		if s {
			n++
		}
	}
	return n
}
