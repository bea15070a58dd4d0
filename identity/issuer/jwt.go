package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/secret"
)

// JWT implements [identity.Source]: an ES256 JWT-SVID, or with r.ClientID an
// RFC 7523 section 2.2 client assertion. A lifetime beyond the configured
// maximum is shortened.
func (i *Issuer) JWT(ctx context.Context, r identity.JWTRequest) (identity.JWT, error) {
	if err := i.checkJWT(r); err != nil {
		return identity.JWT{}, err
	}
	ttl := r.TTL
	if ttl == 0 {
		ttl = i.cfg.JWTTTL
	}
	ttl = min(ttl, i.cfg.MaxJWTTTL)
	k := i.ring.signer(ctx)
	now := i.cfg.Now()
	out := identity.JWT{ID: randomID(), Expires: now.Add(ttl).Truncate(time.Second)}
	payload, err := i.claims(r, out, now)
	if err != nil {
		return identity.JWT{}, err
	}
	tok, err := sign(k, payload)
	if err != nil && i.ring.replace(ctx, k) {
		tok, err = sign(i.ring.signer(ctx), payload)
	}
	if err != nil {
		return identity.JWT{}, fmt.Errorf("issuer: sign JWT with key %s: %w: %w", k.jwk.KeyID, identity.ErrUnavailable, err)
	}
	out.Token = secret.New(tok)
	return out, nil
}

func (i *Issuer) checkJWT(r identity.JWTRequest) error {
	if err := i.check(r.Workload); err != nil {
		return err
	}
	switch {
	case r.Audience == "":
		return errors.New("issuer: no audience; a JWT is for exactly one recipient")
	case r.TTL < 0 || r.TTL > 0 && r.TTL < time.Second:
		return fmt.Errorf("issuer: JWT lifetime is %v; must be at least 1s", r.TTL)
	// A client assertion must not be mistaken for a JWT-SVID: not for another
	// workload's, nor for one with this issuer as iss.
	case strings.HasPrefix(strings.ToLower(r.ClientID), "spiffe:") && r.ClientID != r.Workload.ID.String():
		return fmt.Errorf("issuer: client id %q is another workload's SPIFFE ID", r.ClientID)
	case strings.TrimSuffix(r.ClientID, "/") == i.cfg.URL:
		return fmt.Errorf("issuer: client id %q is the issuer's own URL", r.ClientID)
	}
	for name := range r.Claims {
		if registered(name) {
			return fmt.Errorf("issuer: claim %q is registered (RFC 7519 section 4.1) and set by the issuer; use another name", name)
		}
	}
	return nil
}

// registered reports the claims of RFC 7519 section 4.1. Case is folded since
// careless verifiers fold it too.
func registered(name string) bool {
	switch strings.ToLower(name) {
	case "iss", "sub", "aud", "exp", "nbf", "iat", "jti":
		return true
	}
	return false
}

func (i *Issuer) claims(r identity.JWTRequest, t identity.JWT, now time.Time) ([]byte, error) {
	c := make(map[string]any, len(r.Claims)+7)
	for k, v := range r.Claims {
		c[k] = v
	}
	c["iss"], c["sub"] = i.cfg.URL, r.Workload.ID.String()
	if r.ClientID != "" {
		c["iss"], c["sub"] = r.ClientID, r.ClientID
	}
	c["aud"] = r.Audience // a string, not a list: one recipient
	c["iat"] = now.Unix()
	c["nbf"] = now.Add(-Backdate).Unix()
	c["exp"] = t.Expires.Unix()
	c["jti"] = t.ID
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("issuer: encode claims: %w", err)
	}
	return b, nil
}

func sign(k *key, payload []byte) (string, error) {
	opt := (&jose.SignerOptions{}).WithType("JWT")
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: opaque{k}}, opt)
	if err != nil {
		return "", err
	}
	jws, err := s.Sign(payload)
	if err != nil {
		return "", err
	}
	return jws.CompactSerialize()
}
