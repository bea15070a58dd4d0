package aws_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/minting"
	provider "github.com/attache-dev/attache/minting/aws"
	"github.com/attache-dev/attache/minting/mintingtest"
)

// FuzzAnswer: whatever STS or Roles Anywhere answers, a credential is whole
// and ends in time, and an error is one of ours and repeats no token.
func FuzzAnswer(f *testing.F) {
	const good = `<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>ASIAEXAMPLE000000001</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>2026-11-23T07:10:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`
	f.Add(200, good, "")
	f.Add(200, strings.Replace(good, "2026-", "2036-", 1), "")
	f.Add(400, `<ErrorResponse><Error><Code>Throttling</Code><Message>x</Message></Error></ErrorResponse>`, "3")
	f.Add(403, `{"message":"x"}`, "")
	f.Add(503, ``, "Fri, 31 Dec 1999 23:59:59 GMT")
	f.Add(201, `{"credentialSet":[]}`, "")
	now := time.Date(2026, 11, 23, 7, 0, 0, 0, time.UTC)
	src := mintingtest.NewSource(f)
	e := minting.Evidence{Workload: mintingtest.Workload(), Source: src}
	f.Fuzz(func(t *testing.T, status int, body, retry string) {
		if status < 200 || status > 599 {
			return
		}
		deps := minting.Deps{Now: func() time.Time { return now }, Client: func([]string, []byte) *http.Client {
			return &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: status, Header: http.Header{"Retry-After": {retry}}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
			})}
		}}
		m, err := provider.New("cloud", v1alpha1.AWS{RoleARN: roleARN, Region: "eu-west-1"}, deps)
		if err != nil {
			t.Fatal(err)
		}
		c, err := m.Mint(t.Context(), request(e), e)
		if err != nil {
			if errors.Is(err, minting.ErrDenied) == errors.Is(err, minting.ErrUnavailable) || len(err.Error()) > 1000 {
				t.Fatalf("status %d, %q: %v", status, body, err)
			}
			return
		}
		if c.AccessKeyID == "" || c.Secret.IsZero() || c.SessionToken.IsZero() || !c.Expires.After(now) || c.Expires.After(now.Add(15*time.Minute)) {
			t.Fatalf("status %d, %q: %+v", status, body, c)
		}
	})
}
