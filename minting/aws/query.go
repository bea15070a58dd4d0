package aws

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/internal/issuer"
)

// post sends form, nil for none, signed by s.
func (m *Minter) post(ctx context.Context, where, service, region string, form url.Values, s session) (issuer.Answer, error) {
	body := []byte(form.Encode())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, where, bytes.NewReader(body))
	if err != nil {
		return issuer.Answer{}, fmt.Errorf("%w: %s: the endpoint is no URL", minting.ErrDenied, service)
	}
	req.Header.Set("User-Agent", userAgent)
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	}
	sum := hexSum(body)
	req.Header.Set("X-Amz-Content-Sha256", sum)
	keys, err := aws.CredentialsProviderFunc(s.credentials).Retrieve(ctx)
	if err != nil {
		return issuer.Answer{}, err
	}
	if err := v4.NewSigner().SignHTTP(ctx, keys, req, sum, service, region, m.deps.Now().UTC()); err != nil {
		return issuer.Answer{}, fmt.Errorf("%w: %s: sign: %w", minting.ErrDenied, service, err)
	}
	if err := m.wait(ctx, m.ending); err != nil {
		return issuer.Answer{}, err
	}
	return m.client.Do(ctx, req)
}

// errorOf reads code and message of an error: ErrorResponse of IAM, Error of
// S3, or MinIO's JSON.
func errorOf(body []byte) (code, message string) {
	var w struct {
		Code, Message string
		Error         struct{ Code, Message string }
	}
	if xml.Unmarshal(body, &w) != nil && json.Unmarshal(body, &w) != nil {
		return "", ""
	}
	if w.Error.Code != "" {
		return w.Error.Code, w.Error.Message
	}
	return w.Code, w.Message
}

// revokeMinIO has a session revoke itself (MinIO admin API, revoke-tokens; the
// session carries its handle as revoke type, so that no other one ends).
func (m *Minter) revokeMinIO(ctx context.Context, s session) error {
	if !s.expires.After(m.deps.Now()) {
		return nil
	}
	u, err := url.Parse(m.spec.Endpoint)
	if err != nil {
		return fmt.Errorf("%w: provider %s: endpoint is no URL", minting.ErrDenied, m.name)
	}
	u = &url.URL{Scheme: u.Scheme, Host: u.Host, Path: "/minio/admin/v3/revoke-tokens/openid"}
	a, err := m.post(ctx, u.String(), "s3", m.spec.Region, nil, s)
	if err != nil {
		return fmt.Errorf("provider %s: revoke: %w", m.name, err)
	}
	if a.Status == http.StatusNoContent || a.Status == http.StatusOK {
		return nil
	}
	code, message := errorOf(a.Body)
	if code == "InvalidAccessKeyId" { // it knows the key no more
		return nil
	}
	return fmt.Errorf("provider %s: %w", m.name, m.worded("revoke-tokens", a, code, message, s.secret.Reveal(), s.token.Reveal()))
}

// iamTime is how policies write a time.
func iamTime(t time.Time) string { return t.UTC().Format(time.RFC3339) }
