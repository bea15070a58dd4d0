package aws_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/minting"
	provider "github.com/attache-dev/attache/minting/aws"
	"github.com/attache-dev/attache/minting/mintingtest"
)

const (
	account  = "123456789012"
	roleARN  = "arn:aws:iam::" + account + ":role/agents/reader"
	chainARN = "arn:aws:iam::" + account + ":role/target"
	denyARN  = "arn:aws:iam::" + account + ":role/revoker"
	roleID   = "AROAEXAMPLEROLEID0001"
	policy   = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:GetObject"],"Resource":["arn:aws:s3:::alpha/*"],"Condition":{"DateLessThan":{"aws:CurrentTime":"9999-12-31T23:59:59Z"}}}]}`
)

// answer is what the fake says in a grant, so that a test can make it lie.
type answer struct {
	XMLName xml.Name
	Result  struct {
		XMLName     xml.Name
		Credentials *credentials `xml:",omitempty"`
		AssumedRole struct {
			AssumedRoleID string `xml:"AssumedRoleId"`
			Arn           string
		} `xml:"AssumedRoleUser"`
		Packed int `xml:"PackedPolicySize"`
	}
}

type credentials struct {
	AccessKeyID     string `xml:"AccessKeyId"`
	SecretAccessKey string
	SessionToken    string
	Expiration      string `xml:",omitempty"`
}

// fakeSTS follows the AWS STS API reference (version 2011-06-15) for
// AssumeRoleWithWebIdentity and AssumeRole: required parameters, their bounds,
// the token's signature and audience, the signature of the second call. It
// refuses everything else.
type fakeSTS struct {
	t   testing.TB
	src *mintingtest.Source
	lie func(*answer)
	now func() time.Time

	mu       sync.Mutex // guards what follows
	sessions map[string]credentials
	calls    []url.Values
	made     []string // secrets that were handed out
}

func newSTS(t testing.TB) *fakeSTS {
	return &fakeSTS{t: t, src: mintingtest.NewSource(t), now: time.Now, sessions: map[string]credentials{}}
}

func (f *fakeSTS) asked() []url.Values {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (f *fakeSTS) secrets() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append(f.src.Signed(), f.made...)
}

func fail(w http.ResponseWriter, status int, code, text string) {
	w.Header().Set("Content-Type", "text/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>%s</Code><Message>%s</Message></Error><RequestId>c6104cbe</RequestId></ErrorResponse>`, code, text)
}

func (f *fakeSTS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<16))
	if err != nil {
		return
	}
	q, err := url.ParseQuery(string(body))
	if err != nil || r.Method != http.MethodPost || r.URL.Path != "/" || r.URL.RawQuery != "" || q.Get("Version") != "2011-06-15" {
		fail(w, http.StatusBadRequest, "InvalidAction", "what is that")
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, q)
	switch q.Get("Action") {
	case "AssumeRoleWithWebIdentity":
		if r.Header.Get("Authorization") != "" {
			f.t.Error("AssumeRoleWithWebIdentity is signed")
		}
		if !f.known(w, q, 12*time.Hour, "RoleArn", "RoleSessionName", "WebIdentityToken", "DurationSeconds", "Policy") {
			return
		}
		if err := f.verifyToken(q.Get("WebIdentityToken")); err != nil {
			fail(w, http.StatusBadRequest, "InvalidIdentityToken", err.Error())
			return
		}
	case "AssumeRole":
		if !f.known(w, q, time.Hour, "RoleArn", "RoleSessionName", "DurationSeconds", "Policy", "ExternalId", "SourceIdentity", "Tags.", "TransitiveTagKeys.") {
			return
		}
		if !f.signed(r, body, "sts", "eu-west-1") {
			fail(w, http.StatusForbidden, "SignatureDoesNotMatch", "no")
			return
		}
	default:
		fail(w, http.StatusBadRequest, "InvalidAction", "what is that")
		return
	}
	f.grant(w, q)
}

// known checks that there is no other parameter, and the bounds of those.
func (f *fakeSTS) known(w http.ResponseWriter, q url.Values, most time.Duration, names ...string) bool {
	for k, v := range q {
		ok := k == "Action" || k == "Version"
		for _, n := range names {
			ok = ok || k == n || strings.HasSuffix(n, ".") && strings.HasPrefix(k, n+"member.")
		}
		if !ok || len(v) != 1 {
			fail(w, http.StatusBadRequest, "ValidationError", "parameter "+k)
			return false
		}
	}
	d, err := time.ParseDuration(q.Get("DurationSeconds") + "s")
	switch {
	case err != nil || d < 15*time.Minute || d > most:
		fail(w, http.StatusBadRequest, "ValidationError", "DurationSeconds")
	case utf8.RuneCountInString(q.Get("Policy")) > 2048:
		fail(w, http.StatusBadRequest, "ValidationError", "Policy")
	case len(q.Get("RoleSessionName")) < 2 || len(q.Get("RoleSessionName")) > 64 || strings.Trim(q.Get("RoleSessionName"), "abcdefghijklmnopqrstuvwxyz0123456789_-") != "":
		fail(w, http.StatusBadRequest, "ValidationError", "RoleSessionName")
	default:
		return true
	}
	return false
}

func (f *fakeSTS) verifyToken(raw string) error {
	tok, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return err
	}
	var c jwt.Claims
	if err := tok.Claims(f.src.Key.Public(), &c); err != nil {
		return err
	}
	return c.Validate(jwt.Expected{AnyAudience: jwt.Audience{"sts.amazonaws.com"}, Issuer: f.src.Issuer, Time: time.Now()})
}

// signed signs the request anew with the session it names, by the SDK's own
// signer, and compares.
func (f *fakeSTS) signed(r *http.Request, body []byte, service, region string) bool {
	have := r.Header.Get("Authorization")
	_, rest, _ := strings.Cut(have, "Credential=")
	id, _, _ := strings.Cut(rest, "/")
	c, ok := f.sessions[id]
	if !ok {
		return false
	}
	_, list, _ := strings.Cut(have, "SignedHeaders=")
	list, _, _ = strings.Cut(list, ",")
	names := strings.Split(list, ";")
	u := *r.URL
	u.Scheme, u.Host = "https", r.Host
	again, err := http.NewRequestWithContext(r.Context(), r.Method, u.String(), bytes.NewReader(body))
	if err != nil {
		return false
	}
	for _, n := range names {
		if n != "host" && n != "content-length" {
			again.Header.Set(n, r.Header.Get(n))
		}
	}
	for _, must := range []string{"host", "x-amz-date", "x-amz-security-token"} {
		if !slices.Contains(names, must) {
			return false
		}
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || f.now().Sub(at).Abs() > 15*time.Minute {
		return false
	}
	again.Header.Del("X-Amz-Security-Token")
	keys := aws.Credentials{AccessKeyID: id, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken}
	if r.Header.Get("X-Amz-Security-Token") != c.SessionToken {
		return false
	}
	if err := v4.NewSigner().SignHTTP(r.Context(), keys, again, sha256hex(body), service, region, at); err != nil {
		return false
	}
	return again.Header.Get("Authorization") == have
}

func (f *fakeSTS) grant(w http.ResponseWriter, q url.Values) {
	var a answer
	action, role := q.Get("Action"), q.Get("RoleArn")
	a.XMLName.Local, a.Result.XMLName.Local = action+"Response", action+"Result"
	d, _ := time.ParseDuration(q.Get("DurationSeconds") + "s")
	a.Result.Credentials = &credentials{
		AccessKeyID: "ASIA" + rand.Text()[:16], SecretAccessKey: "secret-" + rand.Text(), SessionToken: "token-" + rand.Text(),
		Expiration: f.now().Add(d).UTC().Format(time.RFC3339),
	}
	a.Result.AssumedRole.AssumedRoleID = roleID + ":" + q.Get("RoleSessionName")
	a.Result.AssumedRole.Arn = "arn:aws:sts::" + account + ":assumed-role" + role[strings.LastIndexByte(role, '/'):] + "/" + q.Get("RoleSessionName")
	a.Result.Packed = 17
	if f.lie != nil {
		f.lie(&a)
	}
	if c := a.Result.Credentials; c != nil {
		f.sessions[c.AccessKeyID] = *c
		f.made = append(f.made, c.SecretAccessKey, c.SessionToken)
	}
	w.Header().Set("Content-Type", "text/xml")
	_ = xml.NewEncoder(w).Encode(a)
}

// spec is a provider at the fake.
func spec(endpoint string) v1alpha1.AWS {
	return v1alpha1.AWS{RoleARN: roleARN, Region: "eu-west-1", Endpoint: endpoint, CallsPerSecond: 1000}
}

// connect serves h and returns a minter for it.
func connect(t testing.TB, h http.Handler, change func(*v1alpha1.AWS)) *provider.Minter {
	t.Helper()
	srv, deps := mintingtest.Serve(t, h)
	s := spec(srv.URL)
	if change != nil {
		change(&s)
	}
	m, err := provider.New("cloud", s, deps)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func evidence(f *fakeSTS) minting.Evidence {
	return minting.Evidence{Workload: mintingtest.Workload(), Source: f.src}
}

func request(e minting.Evidence) minting.Request {
	r := mintingtest.Request("cloud", e)
	r.Destination, r.SessionPolicy, r.Role = "aws:aws", policy, roleARN
	return r
}

// keysOf lets an SDK client sign with c.
func keysOf(c minting.Credential) aws.CredentialsProvider {
	return aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.Secret.Reveal(), SessionToken: c.SessionToken.Reveal()}, nil
	})
}
