package aws

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/internal/issuer"
)

// anywhereARN is the form of the two ARNs that Roles Anywhere asks for.
var anywhereARN = regexp.MustCompile(`^arn:(aws(?:-[a-z]+)*):rolesanywhere:([a-z0-9-]+):[0-9]{12}:(trust-anchor|profile)/[0-9a-f-]{36}$`)

// suffixes of AWS's host names, by partition; dual-stack names in the second
// place. Roles Anywhere's data plane is in no SDK, so that none resolves it.
var suffixes = map[string][2]string{
	"aws":        {"amazonaws.com", "api.aws"},
	"aws-us-gov": {"amazonaws.com", "api.aws"},
	"aws-cn":     {"amazonaws.com.cn", "api.amazonwebservices.com.cn"},
}

func anywhereEndpoint(s v1alpha1.AWS) (string, error) {
	r := s.RolesAnywhere
	anchor, profile := anywhereARN.FindStringSubmatch(r.TrustAnchorARN), anywhereARN.FindStringSubmatch(r.ProfileARN)
	switch {
	case anchor == nil || anchor[3] != "trust-anchor":
		return "", fmt.Errorf("trustAnchorARN: %q is no ARN of a trust anchor", r.TrustAnchorARN)
	case profile == nil || profile[3] != "profile":
		return "", fmt.Errorf("profileARN: %q is no ARN of a profile", r.ProfileARN)
	case anchor[2] != profile[2]:
		return "", errors.New("profileARN: is in another region than the trust anchor")
	}
	if r.Endpoint != "" {
		if _, err := issuer.CheckURL("endpoint", r.Endpoint, s.Addresses); err != nil {
			return "", err
		}
		return strings.TrimRight(r.Endpoint, "/"), nil
	}
	suffix, ok := suffixes[anchor[1]]
	if !ok {
		return "", fmt.Errorf("endpoint: is missing; it is not known for partition %s", anchor[1])
	}
	host, domain := "rolesanywhere", suffix[0]
	if s.FIPS {
		host += "-fips"
	}
	if s.DualStack {
		domain = suffix[1]
	}
	return "https://" + host + "." + anchor[2] + "." + domain, nil
}

// createSession is the first hop with an X.509-SVID: CreateSession of IAM
// Roles Anywhere. Its session is for the second hop only.
func (m *Minter) createSession(ctx context.Context, role string, e minting.Evidence) (session, error) {
	svid, err := e.Source.X509(ctx, e.Workload)
	if err != nil {
		return session{}, fmt.Errorf("%w: X.509-SVID: %w", kind(ctx, err), err)
	}
	body, err := json.Marshal(map[string]any{
		"durationSeconds": int(minDuration / time.Second), "profileArn": m.spec.RolesAnywhere.ProfileARN,
		"roleArn": role, "trustAnchorArn": m.spec.RolesAnywhere.TrustAnchorARN,
	})
	if err != nil {
		return session{}, fmt.Errorf("%w: %w", minting.ErrDenied, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.anywhere+"/sessions", bytes.NewReader(body))
	if err != nil {
		return session{}, fmt.Errorf("%w: Roles Anywhere: the endpoint is no URL", minting.ErrDenied)
	}
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set("Content-Type", "application/json")
	region := anywhereARN.FindStringSubmatch(m.spec.RolesAnywhere.TrustAnchorARN)[2]
	if err := signX509(req, body, svid.Certificates, svid.PrivateKey, region, m.deps.Now()); err != nil {
		return session{}, fmt.Errorf("%w: Roles Anywhere: %w", minting.ErrDenied, err)
	}
	if err := m.wait(ctx, m.pace); err != nil {
		return session{}, err
	}
	a, err := m.client.Do(ctx, req)
	if err != nil {
		return session{}, fmt.Errorf("CreateSession of Roles Anywhere: %w", err)
	}
	if a.Status != http.StatusCreated {
		return session{}, m.anywhereRefusal(a)
	}
	return m.anywhereSession(a.Body)
}

func (m *Minter) anywhereRefusal(a issuer.Answer) error {
	var w struct {
		Message string `json:"message"`
	}
	_ = json.Unmarshal(a.Body, &w) // no message is fine
	code, _, _ := strings.Cut(a.Header.Get("X-Amzn-ErrorType"), ":")
	return m.worded("CreateSession of Roles Anywhere", a, code, w.Message)
}

// anywhereSession reads the answer (IAM Roles Anywhere user guide,
// CreateSession).
func (m *Minter) anywhereSession(body []byte) (session, error) {
	var w struct {
		CredentialSet []struct {
			Credentials struct {
				AccessKeyID  string    `json:"accessKeyId"`
				Secret       string    `json:"secretAccessKey"`
				SessionToken string    `json:"sessionToken"`
				Expiration   time.Time `json:"expiration"`
			} `json:"credentials"`
		} `json:"credentialSet"`
	}
	if err := json.Unmarshal(body, &w); err != nil || len(w.CredentialSet) != 1 {
		return session{}, fmt.Errorf("%w: Roles Anywhere answered nonsense: no set of credentials", minting.ErrUnavailable)
	}
	c := w.CredentialSet[0].Credentials
	return m.keys(c.AccessKeyID, c.Secret, c.SessionToken, c.Expiration, minDuration)
}

// Headers of the signature, in the order in which they are signed.
const signedX509 = "content-type;host;x-amz-date;x-amz-x509"

// signX509 signs req with the key of chain's first certificate (IAM Roles
// Anywhere user guide, signing process): SigV4's canonical form, but the
// certificate's serial number as key id, and a signature of its key.
func signX509(req *http.Request, body []byte, chain []*x509.Certificate, key crypto.Signer, region string, now time.Time) error {
	if len(chain) == 0 {
		return errors.New("the X.509-SVID has no certificate")
	}
	var algorithm string
	switch key.Public().(type) {
	case *ecdsa.PublicKey:
		algorithm = "AWS4-X509-ECDSA-SHA256"
	case *rsa.PublicKey:
		algorithm = "AWS4-X509-RSA-SHA256"
	default:
		return fmt.Errorf("the X.509-SVID has a key of type %T; ECDSA and RSA are possible", key.Public())
	}
	at := now.UTC().Format("20060102T150405Z")
	req.Header.Set("X-Amz-Date", at)
	req.Header.Set("X-Amz-X509", base64.StdEncoding.EncodeToString(chain[0].Raw))
	signed := signedX509
	if len(chain) > 1 {
		var more []string
		for _, c := range chain[1:] {
			more = append(more, base64.StdEncoding.EncodeToString(c.Raw))
		}
		req.Header.Set("X-Amz-X509-Chain", strings.Join(more, ","))
		signed += ";x-amz-x509-chain"
	}
	scope := at[:8] + "/" + region + "/rolesanywhere/aws4_request"
	text := algorithm + "\n" + at + "\n" + scope + "\n" + hexSum([]byte(canonical(req, signed, body)))
	sum := sha256.Sum256([]byte(text))
	sig, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return fmt.Errorf("sign with the X.509-SVID: %w", err)
	}
	req.Header.Set("Authorization", algorithm+" Credential="+chain[0].SerialNumber.String()+"/"+scope+
		", SignedHeaders="+signed+", Signature="+hex.EncodeToString(sig))
	return nil
}

// canonical is the canonical request of a call without a query.
func canonical(req *http.Request, signed string, body []byte) string {
	var b strings.Builder
	b.WriteString(req.Method + "\n" + (&url.URL{Path: req.URL.Path}).EscapedPath() + "\n\n")
	for name := range strings.SplitSeq(signed, ";") {
		v := req.Header.Get(name)
		if name == "host" {
			v = req.URL.Host
		}
		b.WriteString(name + ":" + strings.TrimSpace(v) + "\n")
	}
	b.WriteString("\n" + signed + "\n" + hexSum(body))
	return b.String()
}

func hexSum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}
