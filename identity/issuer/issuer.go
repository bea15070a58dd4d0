// Package issuer is the identity issuer that Attaché carries inside: an X.509
// authority and a JWT signer for one trust domain, with the OpenID discovery
// and SPIFFE bundle documents by which others learn to trust it.
//
// Keys live in memory and die with the process, unless a [KeySource] holds
// them outside (see [SSHAgent]). Nothing runs in the background: keys are
// rotated when a document is asked for and the time has come, so an idle
// issuer costs nothing and cannot leak a goroutine.
package issuer

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/attache-dev/attache/identity"
)

// Defaults of [Config].
const (
	DefaultRotateEvery   = 24 * time.Hour
	DefaultPublishAhead  = time.Hour
	DefaultCacheLifetime = 15 * time.Minute
	DefaultJWTTTL        = 5 * time.Minute
	DefaultMaxJWTTTL     = time.Hour
	DefaultX509TTL       = time.Hour
)

// Backdate is how far nbf and NotBefore lie in the past, for verifiers whose
// clock is behind. Published keys outlive their last token by the same.
const Backdate = 60 * time.Second

// Config describes an [Issuer]. Only TrustDomain is required.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	// URL is the iss of JWT-SVIDs and the base of the discovery documents:
	// https, without query, fragment or trailing slash. Default:
	// https://TRUSTDOMAIN.
	URL string
	// Keys holds the JWT signing keys. Default: [Memory].
	Keys KeySource
	// Schedule, if set, says which keys sign, instead of Keys and an authority
	// in memory: several issuers share it. It is asked for each document, must
	// never answer nil, and whoever sets it advances it.
	Schedule func() *Schedule
	// Upstream, if set, is the X.509 authority, instead of one of the
	// schedule's or one in memory: an [Intermediate] of the trust domain's own
	// authority. It is asked for each document; nil: there is none now, and
	// nothing is signed.
	Upstream func() *Intermediate
	// RotateEvery is how long a JWT key signs.
	RotateEvery time.Duration
	// PublishAhead is how long a key is in the JWKS before it signs; below
	// RotateEvery. Default: one hour, at most half of RotateEvery.
	PublishAhead time.Duration
	// CacheLifetime is how long a fetched JWKS may be used (max-age); at most
	// PublishAhead. Default: 15 minutes, at most PublishAhead.
	CacheLifetime time.Duration
	// JWTTTL is the lifetime of a JWT whose request names none, MaxJWTTTL the
	// longest one.
	JWTTTL, MaxJWTTTL time.Duration
	// X509TTL is the lifetime of an X.509-SVID.
	X509TTL time.Duration
	// Log receives key rotations and their failures. Default: discarded.
	Log *slog.Logger
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// Issuer implements [identity.Source] for every workload of its trust domain.
// It is safe for concurrent use.
type Issuer struct {
	cfg  Config
	ring *ring
	ca   *authority

	mu      sync.Mutex // guards servers and closed
	servers map[*http.Server]struct{}
	closed  bool
	seq     sequence
}

var _ identity.Source = (*Issuer)(nil)

// New checks c, obtains the first signing key and returns an issuer. Call
// [Issuer.Close] when done.
func New(ctx context.Context, c Config) (*Issuer, error) {
	if err := c.fill(); err != nil {
		return nil, err
	}
	r, err := newRing(ctx, c)
	if err != nil {
		return nil, err
	}
	ca, err := newAuthority(c)
	if err != nil {
		return nil, err
	}
	return &Issuer{cfg: c, ring: r, ca: ca, servers: map[*http.Server]struct{}{}}, nil
}

func (c *Config) fill() error {
	if c.TrustDomain.IsZero() {
		return errors.New("issuer: no trust domain; set Config.TrustDomain")
	}
	if c.URL == "" {
		c.URL = "https://" + c.TrustDomain.Name()
	}
	if err := CheckURL(c.URL); err != nil {
		return err
	}
	if c.Keys == nil {
		c.Keys = Memory{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c.fillTimes()
}

func (c *Config) fillTimes() error {
	for _, d := range []struct {
		name string
		d    *time.Duration
		def  time.Duration
	}{
		{"RotateEvery", &c.RotateEvery, DefaultRotateEvery},
		{"PublishAhead", &c.PublishAhead, 0},
		{"CacheLifetime", &c.CacheLifetime, 0},
		{"MaxJWTTTL", &c.MaxJWTTTL, DefaultMaxJWTTTL},
		{"JWTTTL", &c.JWTTTL, 0},
		{"X509TTL", &c.X509TTL, DefaultX509TTL},
	} {
		if *d.d < 0 {
			return fmt.Errorf("issuer: %s is %v; must not be negative", d.name, *d.d)
		}
		if *d.d == 0 {
			*d.d = d.def
		}
	}
	if c.PublishAhead == 0 {
		c.PublishAhead = min(DefaultPublishAhead, c.RotateEvery/2)
	}
	if c.CacheLifetime == 0 {
		c.CacheLifetime = min(DefaultCacheLifetime, c.PublishAhead)
	}
	if c.JWTTTL == 0 {
		c.JWTTTL = min(DefaultJWTTTL, c.MaxJWTTTL)
	}
	switch {
	case c.PublishAhead >= c.RotateEvery:
		return fmt.Errorf("issuer: PublishAhead is %v; must be below RotateEvery (%v)", c.PublishAhead, c.RotateEvery)
	case c.CacheLifetime > c.PublishAhead:
		return fmt.Errorf("issuer: CacheLifetime is %v; must be at most PublishAhead (%v), or cached key sets miss new keys", c.CacheLifetime, c.PublishAhead)
	case c.JWTTTL > c.MaxJWTTTL:
		return fmt.Errorf("issuer: JWTTTL is %v; must be at most MaxJWTTTL (%v)", c.JWTTTL, c.MaxJWTTTL)
	}
	return nil
}

// CheckURL reports whether s can be the URL of an issuer: https, a host, no
// user, query or fragment (OpenID Connect Discovery 1.0 section 3), and no
// trailing slash, which verifiers treat differently.
func CheckURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return fmt.Errorf("issuer URL: %w", err)
	case u.Scheme != "https" || u.Hostname() == "":
		return fmt.Errorf("issuer URL is %q; must be https://HOST[:PORT][/PATH]", s)
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(s, "#"):
		return fmt.Errorf("issuer URL is %q; must have no user, query or fragment", u.Redacted())
	case strings.HasSuffix(s, "/"):
		return fmt.Errorf("issuer URL is %q; must not end in a slash", s)
	}
	return nil
}

// URL is the iss of the issuer's JWT-SVIDs.
func (i *Issuer) URL() string { return i.cfg.URL }

// TrustDomain is the trust domain the issuer speaks for.
func (i *Issuer) TrustDomain() spiffeid.TrustDomain { return i.cfg.TrustDomain }

// X509 implements [identity.Source]. A workload gets the same SVID until half
// of its life has passed.
func (i *Issuer) X509(_ context.Context, w *identity.Workload) (*x509svid.SVID, error) {
	if err := i.check(w); err != nil {
		return nil, err
	}
	return i.ca.svid(w.ID)
}

// Bundle implements [identity.Source]: the authorities that sign now, signed
// lately, or will sign.
func (i *Issuer) Bundle(context.Context) (*x509bundle.Bundle, error) {
	certs, err := i.ca.authorities()
	if err != nil {
		return nil, err
	}
	return x509bundle.FromX509Authorities(i.cfg.TrustDomain, certs), nil
}

// Close stops the servers that [Issuer.ServeTLS] runs. Documents already
// issued stay valid until they expire.
func (i *Issuer) Close() error {
	i.mu.Lock()
	i.closed = true
	servers := i.servers
	i.servers = map[*http.Server]struct{}{}
	i.mu.Unlock()
	var errs []error
	for s := range servers {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// check refuses identities that are not this issuer's to give.
func (i *Issuer) check(w *identity.Workload) error {
	switch {
	case w == nil || w.ID.IsZero():
		return errors.New("issuer: no workload; attest the caller first")
	case !w.ID.MemberOf(i.cfg.TrustDomain):
		return fmt.Errorf("issuer: workload %s is not in trust domain %s", w.ID, i.cfg.TrustDomain)
	case w.ID.Path() == "":
		return fmt.Errorf("issuer: %s names the trust domain itself, not a workload", w.ID)
	}
	return nil
}

// randomID returns 128 random bits as hex.
func randomID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand, Go 1.24)
	return hex.EncodeToString(b[:])
}
