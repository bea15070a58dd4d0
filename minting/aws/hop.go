package aws

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/internal/awsrole"
	"github.com/attache-dev/attache/minting"
)

// maxTagValue bounds the value of a session tag, in characters.
const maxTagValue = 256

// secondHop is what AssumeRole says of whom the session is for.
type secondHop struct {
	externalID     string
	sourceIdentity string
	tags           []types.Tag
	transitive     []string
}

func newSecondHop(c *v1alpha1.AWSChain, e minting.Evidence) (secondHop, error) {
	h := secondHop{externalID: c.ExternalID, transitive: c.TransitiveTags}
	var err error
	if h.sourceIdentity, err = sourceIdentity(c.SourceIdentity, e); err != nil {
		return secondHop{}, fmt.Errorf("sourceIdentity: %w", err)
	}
	for _, k := range slices.Sorted(maps.Keys(c.Tags)) {
		v, err := awsrole.Text(c.Tags[k], e.Workload, e.Task, inTag)
		if err == nil && (len([]rune(v)) > maxTagValue || !only(v, inTag)) {
			err = fmt.Errorf("its value %q is no tag's: at most %d letters, digits, spaces and _.:/=+-@", v, maxTagValue)
		}
		if err != nil {
			return secondHop{}, fmt.Errorf("tags[%s]: %w", k, err)
		}
		h.tags = append(h.tags, types.Tag{Key: aws.String(k), Value: aws.String(v)})
	}
	return h, nil
}

// Bounds of SourceIdentity (AWS STS API reference, AssumeRole).
const (
	minSource = 2
	maxSource = 64
	noSource  = "none"
)

// sourceIdentity is the configured text, or else the task's human.
func sourceIdentity(template string, e minting.Evidence) (string, error) {
	if template == noSource {
		return "", nil
	}
	if template == "" {
		if e.Task == nil || e.Task.Human == nil {
			return "", nil
		}
		return humanIdentity(*e.Task.Human), nil
	}
	s, err := awsrole.Text(template, e.Workload, e.Task, inSource)
	if err == nil && !legalSource(s) {
		err = fmt.Errorf("%q is none: 2 to 64 letters, digits and _+=,.@-, without aws: at the beginning", s)
	}
	return s, err
}

// humanIdentity is the human's verified address or subject, or, where neither
// is legal, a hash that names issuer and subject: "human-" and 128 bits.
func humanIdentity(h identity.Human) string {
	for _, s := range []string{h.Email, h.Subject} {
		if legalSource(s) {
			return s
		}
	}
	sum := sha256.Sum256([]byte(h.Issuer + " " + h.Subject))
	return "human-" + hex.EncodeToString(sum[:16])
}

func legalSource(s string) bool {
	return len(s) >= minSource && len(s) <= maxSource && only(s, inSource)
}

func inSource(r rune) bool {
	return r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("_+=,.@-", r))
}

func inExternalID(r rune) bool { return inSource(r) || r == ':' || r == '/' }

// inTag is the alphabet of tags: [\p{L}\p{Z}\p{N}_.:/=+\-@].
func inTag(r rune) bool {
	return unicode.In(r, unicode.L, unicode.Z, unicode.N) || strings.ContainsRune("_.:/=+-@", r)
}
