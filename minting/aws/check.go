package aws

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/internal/awsrole"
	"github.com/attache-dev/attache/minting/internal/issuer"
)

var region = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Bounds of session tags and external ids (AWS STS API reference, AssumeRole).
const (
	maxTags     = 50
	maxTagKey   = 128
	maxExternal = 1224
)

// check validates s and fills in its defaults.
func check(s *v1alpha1.AWS) error {
	if err := awsrole.Check(s.RoleARN); err != nil {
		return fmt.Errorf("roleARN: %w", err)
	}
	if !region.MatchString(s.Region) {
		return fmt.Errorf("region: is %q; must be the name of a region, such as eu-west-1", s.Region)
	}
	if s.Endpoint != "" {
		if _, err := issuer.CheckURL("endpoint", s.Endpoint, s.Addresses); err != nil {
			return err
		}
		if s.FIPS || s.DualStack {
			return errors.New("endpoint: cannot stand with fips or dualStack, which choose among AWS's own")
		}
	}
	if s.Audience == "" {
		s.Audience = defaultAudience
	}
	if s.CallsPerSecond == 0 {
		s.CallsPerSecond = defaultPace
	}
	if s.CallsPerSecond < 0 {
		return fmt.Errorf("callsPerSecond: is %d; must be at least 1", s.CallsPerSecond)
	}
	if err := checkDuration("duration", &s.Duration, maxDuration); err != nil {
		return err
	}
	if s.RolesAnywhere != nil && s.TokenFile != "" {
		return errors.New("tokenFile: cannot stand with rolesAnywhere, which takes the X.509-SVID")
	}
	if err := checkChain(s); err != nil {
		return fmt.Errorf("chain.%w", err)
	}
	return checkRevocation(s)
}

// checkDuration fills in 15 minutes.
func checkDuration(field string, d *v1alpha1.Duration, most time.Duration) error {
	if *d == 0 {
		*d = v1alpha1.Duration(minDuration)
	}
	if d.D() < minDuration || d.D() > most || d.D()%time.Second != 0 {
		return fmt.Errorf("%s: is %s; must be whole seconds between %s and %s", field, d.D(), minDuration, most)
	}
	return nil
}

func checkChain(s *v1alpha1.AWS) error {
	c := s.Chain
	if c == nil {
		return nil
	}
	own := *c // the caller's stays as it is
	c, s.Chain = &own, &own
	if err := awsrole.Check(c.RoleARN); err != nil {
		return fmt.Errorf("roleARN: %w", err)
	}
	if err := checkDuration("duration", &c.Duration, maxChained); err != nil {
		return err
	}
	if c.ExternalID != "" && (len(c.ExternalID) < 2 || len(c.ExternalID) > maxExternal || !only(c.ExternalID, inExternalID)) {
		return errors.New("externalID: must be 2 to 1224 letters, digits and _+=,.@:/-")
	}
	if len(c.Tags) > maxTags {
		return fmt.Errorf("tags: has %d; at most %d are possible", len(c.Tags), maxTags)
	}
	seen := map[string]bool{}
	for k, v := range c.Tags {
		switch folded := strings.ToLower(k); {
		case k == "" || len([]rune(k)) > maxTagKey || !only(k, inTag) || strings.HasPrefix(folded, "aws:"):
			return fmt.Errorf("tags: the key %q is not legal", k)
		case seen[folded]: // AWS compares keys without case
			return fmt.Errorf("tags: has %q twice, in other letters", k)
		default:
			seen[folded] = true
		}
		if err := awsrole.CheckText(v); err != nil {
			return fmt.Errorf("tags[%s]: %w", k, err)
		}
	}
	for i, k := range c.TransitiveTags {
		if _, ok := c.Tags[k]; !ok || slices.Contains(c.TransitiveTags[:i], k) {
			return fmt.Errorf("transitiveTags: %q is no key of tags, or there twice", k)
		}
	}
	if err := awsrole.CheckText(c.SourceIdentity); err != nil {
		return fmt.Errorf("sourceIdentity: %w", err)
	}
	return nil
}

func checkRevocation(s *v1alpha1.AWS) error {
	r := s.Revocation
	if r == nil {
		return nil
	}
	switch r.Kind {
	case RevokeIAMDeny:
		if err := awsrole.Check(r.RoleARN); err != nil {
			return fmt.Errorf("revocation.roleARN: %w", err)
		}
		if s.RolesAnywhere != nil {
			return errors.New("revocation.kind: iamDeny assumes its role by web identity; it cannot stand with rolesAnywhere")
		}
		if r.Endpoint != "" {
			if _, err := issuer.CheckURL("revocation.endpoint", r.Endpoint, s.Addresses); err != nil {
				return err
			}
		}
	case RevokeMinIO:
		if s.Endpoint == "" || s.Chain != nil || s.RolesAnywhere != nil {
			return errors.New("revocation.kind: minio needs an endpoint, and neither chain nor rolesAnywhere")
		}
		if r.RoleARN != "" || r.Endpoint != "" {
			return errors.New("revocation: kind minio takes no roleARN and no endpoint; the session revokes itself where it came from")
		}
	default:
		return fmt.Errorf("revocation.kind: is %q; must be one of %s, %s", r.Kind, RevokeIAMDeny, RevokeMinIO)
	}
	return nil
}

func only(s string, legal func(rune) bool) bool {
	return strings.IndexFunc(s, func(r rune) bool { return !legal(r) }) < 0
}
