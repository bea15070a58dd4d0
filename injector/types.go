// Package injector puts a credential on a request, takes the agent's own
// away, and guards the answer against the credential coming back.
//
// For one request the pipeline calls, in this order:
//
//  1. [CheckMethod] before anything else;
//  2. [Injector.Ambient] while the request is still as the agent sent it;
//  3. [Hygiene]: hop-by-hop fields go first, so that "Connection:
//     authorization" cannot take off what is put on later;
//  4. [Strip]: the agent's own credentials and every placeholder;
//  5. guard.Vault.Unseal: handles of sealed credentials are opened;
//  6. [Injector.Apply] and guard.Request;
//  7. guard.Response on the answer, guard.Patterns.Header on 1xx answers.
//
// All of them change a request that is the caller's to change: a clone.
package injector

import (
	"errors"

	"github.com/attache-dev/attache/minting"
)

// Errors that callers tell apart. None ever holds a secret.
var (
	// ErrCleartext is matched when a credential would travel unencrypted.
	ErrCleartext = errors.New("the credential may not travel unencrypted")
	// ErrUnusable is matched when a credential cannot be put on a request.
	ErrUnusable = errors.New("the credential cannot be put on a request")
	// ErrNoPlaceholder is matched when a request does not carry this run's
	// placeholder for the provider: nobody asked for the credential.
	ErrNoPlaceholder = errors.New("the request carries no placeholder of this provider")
	// ErrCrossSite is matched when a browser says that another site made the
	// request.
	ErrCrossSite = errors.New("the request was made by another site")
	// ErrMethod is matched by TRACE and TRACK, whose answers repeat the request.
	ErrMethod = errors.New("the method repeats the request in its answer")
)

// Placeholders finds this run's placeholders.
type Placeholders interface {
	// Contains finds a placeholder anywhere in s and returns the variable it
	// was given to the agent in. It is safe for concurrent use.
	Contains(s string) (name string, ok bool)
}

// Prover makes DPoP proofs (RFC 9449 section 4.2).
type Prover interface {
	// Prove returns the proof for one request, signed by c.Key and bound to
	// c.Secret. htu is the request's URL without query and fragment. It is safe
	// for concurrent use.
	Prove(c minting.Credential, method, htu string) (string, error)
}

// ProverFunc is a function that is a [Prover].
type ProverFunc func(c minting.Credential, method, htu string) (string, error)

// Prove implements [Prover].
func (f ProverFunc) Prove(c minting.Credential, method, htu string) (string, error) {
	return f(c, method, htu)
}
