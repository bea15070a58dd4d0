// Package aws mints sessions of IAM roles at AWS Security Token Service, or at
// a server with the same API, such as MinIO: no key anywhere, the workload
// proves itself by a JWT or by its X.509-SVID.
//
// The first hop is AssumeRoleWithWebIdentity, or CreateSession of IAM Roles
// Anywhere. A second hop, AssumeRole, follows where the provider chains roles
// and always after Roles Anywhere, whose sessions take no policy. The session
// policy goes with the last hop only: AWS intersects a session with the role,
// but two policies that are sent together would be added up.
//
// RoleSessionName is the credential's handle, so that CloudTrail's lines and
// Attaché's records find each other, and so that a session can be denied on
// its own.
//
// The SDK is used for what it knows best, endpoints, the wire format and
// SigV4, and for nothing else: no credential chain, no retries, nothing read
// from the environment or from files.
package aws

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/awsrole"
	"github.com/attache-dev/attache/internal/iampolicy"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/internal/issuer"
)

// Kinds of revocation.
const (
	RevokeIAMDeny = "iamDeny"
	RevokeMinIO   = "minio"
)

// Limits of STS (AWS STS API reference, AssumeRole and
// AssumeRoleWithWebIdentity).
const (
	MaxPolicy = 2048 // characters of a session policy

	minDuration = awsrole.LeastSession
	maxDuration = 12 * time.Hour
	maxChained  = time.Hour
)

// Defaults of the provider's fields.
const (
	defaultAudience = "sts.amazonaws.com"
	defaultPace     = 20 // calls a second
)

// Minter mints sessions for one CredentialProvider. It is safe for concurrent
// use.
type Minter struct {
	name     string
	spec     v1alpha1.AWS
	deps     minting.Deps
	client   *issuer.Client
	pace     *rate.Limiter // of calls to STS
	ending   *rate.Limiter // of revocations, which must not wait behind new sessions
	endpoint string        // of STS, for the circuit breaker
	anywhere string        // endpoint of Roles Anywhere, empty without
	denier   *denier
	skew     atomic.Int64 // STS's clock less ours, as last seen
}

// New returns the Minter of the provider called name. It reads spec.CAFile and
// calls nobody.
func New(name string, s v1alpha1.AWS, d minting.Deps) (*Minter, error) {
	d = d.WithDefaults()
	if err := check(&s); err != nil {
		return nil, fmt.Errorf("provider %s: aws.%w", name, err)
	}
	c, err := issuer.Connect(d, s.Addresses, s.CAFile, s.CABundle, s.Timeout.D())
	if err != nil {
		return nil, fmt.Errorf("provider %s: aws: %w", name, err)
	}
	m := &Minter{name: name, spec: s, deps: d, client: c, pace: rate.NewLimiter(rate.Limit(s.CallsPerSecond), s.CallsPerSecond)}
	m.ending = rate.NewLimiter(endingFactor*m.pace.Limit(), endingFactor*m.pace.Burst())
	if m.endpoint, err = stsEndpoint(s); err != nil {
		return nil, fmt.Errorf("provider %s: aws.region: %w", name, err)
	}
	if s.RolesAnywhere != nil {
		if m.anywhere, err = anywhereEndpoint(s); err != nil {
			return nil, fmt.Errorf("provider %s: aws.rolesAnywhere.%w", name, err)
		}
	}
	if r := s.Revocation; r != nil && r.Kind == RevokeIAMDeny {
		if m.denier, err = newDenier(m); err != nil {
			return nil, fmt.Errorf("provider %s: aws.revocation.%w", name, err)
		}
	}
	return m, nil
}

// Endpoint names the issuer for the circuit breaker.
func (m *Minter) Endpoint() string { return m.endpoint }

// Mint implements [minting.Minter].
func (m *Minter) Mint(ctx context.Context, r minting.Request, e minting.Evidence) (minting.Credential, error) {
	c, err := m.mint(ctx, r, e)
	if err != nil {
		return minting.Credential{}, fmt.Errorf("provider %s: %w", m.name, err)
	}
	return c, nil
}

// plan is what a mint request comes to.
type plan struct {
	handle   string
	first    string // role of the first hop
	last     string // role of the second hop, empty where there is none
	policy   string // for the last hop
	ends     time.Time
	duration time.Duration // of the last hop
	second   secondHop
	skew     time.Duration // used for the end in policy
}

func (m *Minter) mint(ctx context.Context, r minting.Request, e minting.Evidence) (minting.Credential, error) {
	p, err := m.plan(r, e)
	if err != nil {
		return minting.Credential{}, err
	}
	s, err := m.assume(ctx, p, e)
	if err != nil {
		return minting.Credential{}, err
	}
	if late := time.Duration(m.skew.Load()) - p.skew; late > p.ends.Sub(m.deps.Now())/4 {
		// The policy would end long before we stop using the session.
		return minting.Credential{}, fmt.Errorf("%w: the clock of STS is %s ahead of ours; check the clock", minting.ErrUnavailable, late)
	}
	if m.denier != nil && s.userID == "" {
		return minting.Credential{}, fmt.Errorf("%w: STS did not name the session, so that it could not be revoked", minting.ErrUnavailable)
	}
	return m.credential(p, s, e), nil
}

// plan decides all that can be decided without asking anybody.
func (m *Minter) plan(r minting.Request, e minting.Evidence) (plan, error) {
	if e.Workload == nil || e.Source == nil {
		return plan{}, fmt.Errorf("%w: no attested workload", minting.ErrDenied)
	}
	if r.SessionPolicy == "" {
		// The whole role, for nobody said what for.
		return plan{}, fmt.Errorf("%w: the request has no session policy", minting.ErrDenied)
	}
	p := plan{handle: minting.NewHandle(), duration: m.spec.Duration.D()}
	if err := m.roles(&p, r, e); err != nil {
		return plan{}, fmt.Errorf("%w: %w", minting.ErrDenied, err)
	}
	if p.last != "" {
		p.duration = m.chained()
	}
	ttl := r.TTL
	if ttl <= 0 || ttl > p.duration {
		ttl = p.duration
	}
	p.ends = m.deps.Now().Add(ttl).Truncate(time.Second)
	p.skew = time.Duration(m.skew.Load())
	p.policy = iampolicy.End(r.SessionPolicy, p.ends.Add(p.skew))
	if err := checkPolicy(p.policy); err != nil {
		return plan{}, err
	}
	return p, nil
}

// chained is the duration of a second hop: an hour at most, whatever the role
// allows (IAM user guide, role chaining).
func (m *Minter) chained() time.Duration {
	if m.spec.Chain != nil {
		return m.spec.Chain.Duration.D()
	}
	return min(m.spec.Duration.D(), maxChained)
}

// roles expands the templates. A role that the request names stands for the
// provider's roleARN; the second hop's role is the provider's.
func (m *Minter) roles(p *plan, r minting.Request, e minting.Evidence) error {
	var err error
	if c := m.spec.Chain; c != nil {
		if p.last, err = awsrole.Expand(c.RoleARN, e.Workload, e.Task); err != nil {
			return fmt.Errorf("chain.roleARN: %w", err)
		}
		if p.second, err = newSecondHop(c, e); err != nil {
			return fmt.Errorf("chain.%w", err)
		}
	}
	p.first = r.Role
	if p.first == "" || p.first == p.last {
		p.first = m.spec.RoleARN
	}
	if p.first, err = awsrole.Expand(p.first, e.Workload, e.Task); err != nil {
		return fmt.Errorf("roleARN: %w", err)
	}
	if m.spec.RolesAnywhere != nil && p.last == "" {
		p.last = p.first
	}
	return nil
}

// checkPolicy holds a session policy against what STS takes in plain
// characters: anything it would refuse costs no call.
func checkPolicy(policy string) error {
	n := 0
	for i, c := range policy {
		n++
		if c != '\t' && c != '\n' && c != '\r' && (c < ' ' || c > 'ÿ') {
			return fmt.Errorf("%w: the session policy has a character at offset %d that STS does not take", minting.ErrDenied, i)
		}
	}
	if n > MaxPolicy {
		return fmt.Errorf("%w: the session policy has %d characters, STS takes %d", minting.ErrPolicyTooLarge, n, MaxPolicy)
	}
	return nil
}

// credential wraps a session.
func (m *Minter) credential(p plan, s session, e minting.Evidence) minting.Credential {
	c := minting.Credential{
		Handle: p.handle, Kind: minting.KindAWS, Provider: m.name,
		Secret: s.secret, AccessKeyID: s.keyID, SessionToken: s.token, Role: s.arn,
		Issued: m.deps.Now(), Expires: p.ends, Derived: true,
	}
	// The session policy ends with Expires, so the keys' own end is later but
	// worth nothing, unless the policy was made without an end.
	if s.expires.Before(c.Expires) {
		c.Expires = s.expires
	} else if s.expires.After(c.Expires) && !strings.Contains(p.policy, iamTime(p.ends.Add(p.skew))) {
		c.Outlives = s.expires
	}
	switch {
	case m.denier != nil:
		c.RevokeID = s.userID
		c.Undo = func(ctx context.Context) error { return m.deny(ctx, p, s, e) }
	case m.spec.Revocation != nil && m.spec.Revocation.Kind == RevokeMinIO:
		c.Undo = func(ctx context.Context) error { return m.revokeMinIO(ctx, s) }
	}
	return c
}

// Revoke implements [minting.Revoker].
func (m *Minter) Revoke(ctx context.Context, c minting.Credential) error {
	if c.Undo == nil {
		return fmt.Errorf("provider %s: %w: STS ends no session; it ends by itself at %s", m.name, errors.ErrUnsupported, iamTime(c.Expires))
	}
	return c.Undo(ctx)
}

// learn notes how far STS's clock is from ours, by the Date of its answer:
// aws:CurrentTime is compared with STS's. Seconds are what a Date can tell.
func (m *Minter) learn(a issuer.Answer) {
	at, err := http.ParseTime(a.Header.Get("Date"))
	if err != nil || a.Status != http.StatusOK {
		return
	}
	skew := at.Sub(m.deps.Now()).Truncate(time.Second)
	if skew.Abs() <= 2*time.Second {
		skew = 0
	}
	m.skew.Store(int64(min(max(skew, -maxSkew), maxSkew)))
}

// endingFactor is how much faster revocations may go: at the end of a run all
// sessions of its last minutes are due at once.
const endingFactor = 4

// wait spends one call of a pace.
func (m *Minter) wait(ctx context.Context, pace *rate.Limiter) error {
	if err := pace.Wait(ctx); err != nil {
		if cause := ctx.Err(); cause != nil {
			err = cause
		}
		return minting.WithRetryAfter(fmt.Errorf("%w: %v calls a second are not enough; raise callsPerSecond or choose a coarser granularity: %w", minting.ErrUnavailable, pace.Limit(), err), time.Second)
	}
	return nil
}

// kind tells whether asking the identity source again can help.
func kind(ctx context.Context, err error) error {
	if errors.Is(err, identity.ErrUnavailable) || ctx.Err() != nil {
		return minting.ErrUnavailable
	}
	return minting.ErrDenied
}
