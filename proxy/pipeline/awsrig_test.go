package pipeline_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/attache-dev/attache/injector/sigv4/sigv4test"
	"github.com/attache-dev/attache/internal/iampolicy"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
)

const awsRole = "arn:aws:iam::111122223333:role/agent"

// awsDocuments are a provider and rules for AWS's own host names, which all
// lead to the rig's origin.
const awsDocuments = `---
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: aws}
spec:
  destinations:
  - {host: "**.amazonaws.com", addresses: [{{SECURE}}], caBundle: {{CA}}, onlyCA: true}
  - {host: "s3.test", addresses: [{{SECURE}}], caBundle: {{CA}}, onlyCA: true}
  aws:
    roleARN: ` + awsRole + `
    region: eu-west-1
    endpoints:
    - {host: s3.test, service: s3, virtualHost: true}
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: aws}
spec:
  destinations:
  - {host: "**.amazonaws.com", addresses: [{{SECURE}}], caBundle: {{CA}}, onlyCA: true}
  rules:
  - {name: aws, hosts: ["**.amazonaws.com", "s3.test"], action: allow, credential: {provider: aws}}
  - name: bounded
    hosts: ["bounded.s3.eu-west-1.amazonaws.com"]
    action: allow
    credential:
      provider: aws
      aws: {policy: {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::bounded/public/*"}]}}
  - {name: prefix, hosts: ["prefix.s3.eu-west-1.amazonaws.com"], action: allow, credential: {provider: aws, aws: {granularity: prefix}}}
  - {name: session, hosts: ["session.s3.eu-west-1.amazonaws.com"], action: allow, credential: {provider: aws, aws: {granularity: session}}}
  - {name: wide, hosts: ["wide.s3.eu-west-1.amazonaws.com"], action: allow, credential: {provider: aws, aws: {onTooLarge: task}}}
  - {name: secret, hosts: ["media.s3.eu-west-1.amazonaws.com"], paths: ["/secret/**"], action: deny, reason: "ask #storage"}
  - {name: kept, hosts: ["media.s3.eu-west-1.amazonaws.com"], methods: [PUT, DELETE], paths: ["/kept/**"], action: deny, reason: "ask #storage"}
  - {name: vault, hosts: ["s3.eu-west-1.amazonaws.com"], paths: ["/vault/**"], action: deny, reason: "ask #storage"}
  - {name: none, hosts: ["denied.s3.eu-west-1.amazonaws.com"], action: deny, reason: "ask #storage"}
  - {name: named, hosts: ["secretsmanager.us-east-1.amazonaws.com"], action: allow, credentialCall: true, credential: {provider: aws}}
  - {name: unsealable, hosts: ["appstream2.us-east-1.amazonaws.com"], action: allow, credentialCall: true, credential: {provider: aws}}
  - {name: passed, hosts: ["secretsmanager.us-east-2.amazonaws.com"], action: allow, credentialCall: true, answerCredentials: pass, credential: {provider: aws}}
`

// session is what the rig's STS issued.
type session struct {
	secret, token, policy string
	handle                string
}

// fakeSTS issues sessions as AWS STS does (AWS STS API Reference,
// AssumeRoleWithWebIdentity): for a role's ARN and a session policy of at most
// 2,048 characters, at least 15 minutes long. It is strict about what the
// pipeline must give it.
type fakeSTS struct {
	t        *testing.T
	mu       sync.Mutex
	sessions map[string]session
	asked    []minting.Request
	err      error
	packed   int             // larger policies are too large once packed; 0: none is
	ended    map[string]bool // access key ids that AWS takes for expired
}

func (f *fakeSTS) Mint(_ context.Context, q minting.Request, _ minting.Evidence) (minting.Credential, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, q)
	if f.err != nil {
		return minting.Credential{}, f.err
	}
	if f.packed > 0 && len(q.SessionPolicy) > f.packed {
		return minting.Credential{}, fmt.Errorf("%w: PackedPolicyTooLarge", minting.ErrPolicyTooLarge)
	}
	var doc struct {
		Version   string
		Statement []map[string]any
	}
	if err := json.Unmarshal([]byte(q.SessionPolicy), &doc); err != nil || len(doc.Statement) == 0 || len(q.SessionPolicy) > 2048 {
		f.t.Errorf("session policy %q: %v", q.SessionPolicy, err)
	}
	if !strings.Contains(q.SessionPolicy, iampolicy.OpenEnd) || q.Destination != "aws:aws" || q.Role != awsRole || q.TTL <= 0 {
		f.t.Errorf("mint request %+v", q)
	}
	now := time.Now()
	id := "ASIA" + rand.Text()[:16]
	s := session{secret: "sk/" + rand.Text(), token: "IQoJ" + rand.Text() + rand.Text() + "==", policy: iampolicy.End(q.SessionPolicy, now.Add(q.TTL)), handle: minting.NewHandle()}
	f.sessions[id] = s
	return minting.Credential{
		Handle: s.handle, Kind: minting.KindAWS, Provider: q.Provider, AccessKeyID: id, Secret: secret.New(s.secret), SessionToken: secret.New(s.token),
		Role: q.Role, Issued: now, Expires: now.Add(q.TTL), Outlives: now.Add(15 * time.Minute), Derived: true,
	}, nil
}

func (f *fakeSTS) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fakeSTS) lookup(id string) (string, string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.sessions[id]
	return s.secret, s.token, ok
}

// issued are all sessions, by access key id.
func (f *fakeSTS) issued() map[string]session {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.sessions)
}

func (f *fakeSTS) requests() []minting.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]minting.Request(nil), f.asked...)
}

// expire makes every session so far an expired one.
func (f *fakeSTS) expire() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id := range f.sessions {
		f.ended[id] = true
	}
}

// awsRig is a rig whose origin is AWS: it checks every signature.
type awsRig struct {
	*rig
	sts   *fakeSTS
	mu    sync.Mutex
	calls []sigv4test.Call
	paths []string
	agent []http.Header
	// object answers what a verified call asks for; nil: 200 and an echo.
	object atomic.Pointer[http.HandlerFunc]
	offset atomic.Int64 // of AWS's clock, in seconds
}

func newAWSRig(t *testing.T, change func(*settings)) *awsRig {
	t.Helper()
	a := &awsRig{sts: &fakeSTS{t: t, sessions: map[string]session{}, ended: map[string]bool{}}}
	s := settings{documents: awsDocuments, minters: map[string]minting.Minter{"aws": a.sts}}
	if change != nil {
		change(&s)
	}
	a.rig = newRig(t, s)
	a.serve(a.origin)
	t.Cleanup(func() {
		wrote := a.wrote(t)
		for _, s := range a.sts.issued() {
			if strings.Contains(wrote, s.secret) || strings.Contains(wrote, s.token) {
				t.Error("a session's secret stands in a log or record")
			}
		}
	})
	return a
}

// awsError is S3's error (Amazon S3 API Reference, "Error responses").
func awsError(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, "<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>%s</Message><RequestId>REQ1</RequestId></Error>", code, message)
}

func (a *awsRig) origin(w http.ResponseWriter, r *http.Request) {
	now := time.Now().Add(time.Duration(a.offset.Load()) * time.Second).UTC()
	w.Header()["Date"] = []string{now.Format(http.TimeFormat)}
	w.Header().Set("X-Amz-Request-Id", "REQ1")
	v := sigv4test.Verifier{Lookup: a.sts.lookup, Single: strings.Contains(r.Host, "s3")}
	c, err := v.Verify(r)
	if err != nil {
		awsError(w, http.StatusForbidden, "SignatureDoesNotMatch", err.Error()+" token "+r.Header.Get("X-Amz-Security-Token"))
		return
	}
	a.sts.mu.Lock()
	ended := a.sts.ended[c.AccessKeyID]
	a.sts.mu.Unlock()
	if ended {
		awsError(w, http.StatusBadRequest, "ExpiredToken", "<Token-0>"+r.Header.Get("X-Amz-Security-Token")+"</Token-0>")
		return
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if d := now.Sub(at).Abs(); err != nil || d > 15*time.Minute {
		awsError(w, http.StatusForbidden, "RequestTimeTooSkewed", "the difference is too large")
		return
	}
	a.mu.Lock()
	a.calls, a.paths, a.agent = append(a.calls, c), append(a.paths, r.RequestURI), append(a.agent, r.Header.Clone())
	a.mu.Unlock()
	if h := a.object.Load(); h != nil {
		r.Body = io.NopCloser(bytes.NewReader(c.Body))
		(*h)(w, r)
		return
	}
	w.Header().Set("ETag", `"0"`)
	if r.Method == http.MethodGet {
		_, _ = io.WriteString(w, "object")
	}
}

func (a *awsRig) answer(h http.HandlerFunc) { a.object.Store(&h) }

// verified is the number of calls that AWS accepted, and the last of them.
func (a *awsRig) verified() (int, sigv4test.Call) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.calls) == 0 {
		return 0, sigv4test.Call{}
	}
	return len(a.calls), a.calls[len(a.calls)-1]
}

func (a *awsRig) placeholders() (id, key string) {
	return a.holders.Value("AWS_ACCESS_KEY_ID"), a.holders.Value("AWS_SECRET_ACCESS_KEY")
}

// s3 is the agent's client: aws-sdk-go-v2 with the run's placeholders.
func (a *awsRig) s3(change ...func(*s3.Options)) *s3.Client {
	id, key := a.placeholders()
	o := s3.Options{Region: "eu-west-1", RetryMaxAttempts: 1, RequestChecksumCalculation: aws.RequestChecksumCalculationWhenSupported, HTTPClient: a.client(true), Credentials: credentials.NewStaticCredentialsProvider(id, key, "")}
	for _, c := range change {
		c(&o)
	}
	return s3.New(o)
}

// signed is a request that the agent signs with the keys it was given.
func (a *awsRig) signed(method, url, service, region, body string, header ...string) *http.Request {
	a.t.Helper()
	r, err := http.NewRequestWithContext(a.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header[header[i]] = append(r.Header[header[i]], header[i+1])
	}
	a.sign(r, service, region, body)
	return r
}

func (a *awsRig) sign(r *http.Request, service, region, body string) {
	a.t.Helper()
	id, key := a.placeholders()
	hash := r.Header.Get("X-Amz-Content-Sha256")
	if hash == "" {
		sum := sha256.Sum256([]byte(body))
		hash = hex.EncodeToString(sum[:])
		if service == "s3" {
			r.Header.Set("X-Amz-Content-Sha256", hash)
		}
	}
	err := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = service == "s3" }).
		SignHTTP(a.t.Context(), aws.Credentials{AccessKeyID: id, SecretAccessKey: key}, r, hash, service, region, time.Now())
	if err != nil {
		a.t.Fatal(err)
	}
}

// send has the agent's client send r.
func (a *awsRig) send(r *http.Request) result {
	a.t.Helper()
	resp, err := a.client(false).Do(r)
	if err != nil {
		return result{&http.Response{}, "", err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return result{resp, string(b), err}
}

// s3Error is S3's error as its SDKs parse it.
type s3Error struct {
	XMLName                  xml.Name `xml:"Error"`
	Code, Message, RequestId string
}

// refusedS3 checks that an answer is our refusal in S3's form.
func (a *awsRig) refusedS3(got result, status int, code, awsCode, outcome string) {
	a.t.Helper()
	var e s3Error
	if err := xml.Unmarshal([]byte(got.body), &e); err != nil || e.Code != awsCode || !strings.Contains(e.Message, code) || e.RequestId == "" {
		a.t.Errorf("error %+v (%v), want %s: %s", e, err, awsCode, got.body)
	}
	if got.Header.Get("Content-Type") != "application/xml; charset=utf-8" || got.Header.Get("X-Amz-Request-Id") != e.RequestId {
		a.t.Errorf("header %v", got.Header)
	}
	a.refused(got, status, code, outcome)
}

// refused checks a refusal and its record, and that AWS executed nothing.
func (a *awsRig) refused(got result, status int, code, outcome string) {
	a.t.Helper()
	if got.err != nil || got.StatusCode != status || got.Header.Get("Attache-Error") != code {
		a.t.Errorf("got %d %q %v, want %d %q: %s", got.StatusCode, got.Header.Get("Attache-Error"), got.err, status, code, got.body)
	}
	rec := a.record()
	if rec.ID != got.Header.Get("Attache-Record") || rec.Result.Status != status || rec.Result.ErrorKind != code || rec.Result.Outcome != outcome || rec.Decision.Code != code {
		a.t.Errorf("record %+v %+v", rec.Decision, rec.Result)
	}
	if n, _ := a.verified(); n != 0 {
		a.t.Errorf("AWS executed %d calls", n)
	}
	a.skip = 1
}
