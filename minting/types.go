// Package minting turns an allowed request into a short-lived credential.
//
// A provider is one folder below this one with one [Minter]; cache, single
// flight, renewal, back-off, circuit breaker and revocation wrap around it and
// are Minters themselves.
package minting

import (
	"cmp"
	"context"
	"crypto"
	"errors"
	"fmt"
	"time"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/secret"
)

// ErrDenied is matched when the issuer refused for good: asking again with the
// same request cannot help.
var ErrDenied = errors.New("issuer denied the request")

// ErrUnavailable is matched when the issuer could not be reached, is
// throttling, or answered nonsense. See [RetryAfter].
var ErrUnavailable = errors.New("issuer is unavailable")

// ErrPolicyTooLarge is matched, with [ErrDenied], when a session policy exceeds
// a limit of the issuer: the same call may succeed with a coarser one.
var ErrPolicyTooLarge = fmt.Errorf("%w: session policy is too large", ErrDenied)

// Request is everything a credential depends on. [Request.Key] hashes every
// field by reflection, so a field added here is part of the cache key without
// anybody remembering it. Fields are therefore plain values: no pointer, no
// function.
type Request struct {
	Provider   string // name of the CredentialProvider
	Generation string // digest of its spec: a changed provider shares nothing

	WorkloadID    string // SPIFFE ID
	PostureDigest string // identity.Workload.PostureDigest
	RunID         string
	Caller        string // digest of the calling executable where the rule binds to it

	Destination          string // scheme://host:port the credential is for
	Audience             string
	Resources            []string `key:"set"` // order and repetition mean nothing
	Role                 string
	Scope                []string `key:"set"`
	AuthorizationDetails string   // canonical JSON
	SessionPolicy        string   // IAM session policy of policy/awsscope, canonical
	TTL                  time.Duration

	TaskID        string
	Subject       string // issuer + subject of the human; empty without one
	SubjectToken  string // fingerprint of the human's token, never the token
	Actor         string // SPIFFE ID acting for the subject
	KeyThumbprint string // RFC 7638 thumbprint of the proof key; empty for bearers
}

// Evidence is what a provider may present to an issuer. It is not part of the
// cache key: Request already names what it proves.
type Evidence struct {
	Workload *identity.Workload
	Task     *identity.Task // nil without a task
	Source   identity.Source
	Call     Call
}

// Call is the request that a credential is minted for first; later ones may
// share it. The broker decides by it again.
type Call struct {
	Scheme, Host, Method, Path, Protocol string
	Port                                 int
	Record                               string // id of its audit record
}

// Credential kinds.
const (
	KindBearer = "bearer"  // RFC 6750 token
	KindDPoP   = "dpop"    // RFC 9449 token with its key
	KindAPIKey = "api-key" // a vendor's static key: not derived
	KindJWT    = "jwt-svid"
	// KindRelay is a credential that a relay of the control plane puts on. It has
	// a handle and an end, and no Secret: that never enters this process.
	KindRelay = "relay"
	KindAWS   = "aws-session" // a session of AWS STS: Secret is the secret access key
)

// Credential is a minted credential. Only Secret, SessionToken and Key are secret.
type Credential struct {
	Handle   string // "cred_" + 128 random bits; names the credential in records
	Kind     string
	Provider string
	Secret   secret.Value
	Key      crypto.Signer // proof key of a DPoP token, nil otherwise

	AccessKeyID  string       // of KindAWS
	SessionToken secret.Value // of KindAWS
	Role         string       // ARN of the assumed role session, KindAWS

	Issued  time.Time
	Expires time.Time // zero only for KindAPIKey
	Scope   []string  // as granted; nil if the issuer did not say
	Derived bool      // minted for this request's scope, not a static root
	Cached  bool      // answered from the cache
	// RevokeID is what a revocation needs beyond Secret (lease id, jti).
	RevokeID string
	// Outlives is when the issuer itself ends the credential, where that is
	// later than Expires. Such a credential is revoked at Expires.
	Outlives time.Time
	// Undo revokes the credential at its issuer; nil where the issuer cannot.
	// It belongs to the provider as it was when it minted, so that a
	// credential can be revoked after its provider was reconfigured.
	Undo func(context.Context) error
}

// PublicID is the issuer's own name of the credential, of no use to a thief: an
// AWS access key id, a jti; empty where there is none.
func (c *Credential) PublicID() string { return cmp.Or(c.AccessKeyID, c.RevokeID) }

// Minter mints credentials. Implementations are safe for concurrent use.
// Errors match [ErrDenied] or [ErrUnavailable], never contain a secret, and
// say what an operator should look at.
type Minter interface {
	Mint(ctx context.Context, r Request, e Evidence) (Credential, error)
}

// Revoker is the optional second interface of a Minter whose issuer can
// revoke.
type Revoker interface {
	Revoke(ctx context.Context, c Credential) error
}
