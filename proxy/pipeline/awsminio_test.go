package pipeline_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"

	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/mintingtest"
	"github.com/attache-dev/attache/proxy/pipeline"
	"github.com/attache-dev/attache/test/servers"
)

// minioHost is in the certificate that httptest makes.
const minioHost = "example.com"

// startMinIO serves the issuer's keys and a MinIO that trusts it.
func startMinIO(t *testing.T) (s *servers.MinIO, src *mintingtest.Source, caPEM string) {
	t.Helper()
	src = mintingtest.NewSource(t)
	issuer := httptest.NewTLSServer(nil)
	issuer.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/keys" {
			_ = json.NewEncoder(w).Encode(src.JWKS())
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{
			"issuer": issuer.URL, "jwks_uri": issuer.URL + "/keys", "response_types_supported": []string{"id_token"},
			"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"ES256"},
		})
	})
	t.Cleanup(issuer.Close)
	src.Issuer = issuer.URL
	own := issuer.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	caPEM = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.Certificate[0]}))
	dir := t.TempDir()
	files := &servers.TLS{Cert: filepath.Join(dir, "crt"), Key: filepath.Join(dir, "key")}
	for name, text := range map[string]string{files.Cert: caPEM, files.Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err = servers.StartMinIO(t.Context(), servers.MinIOOptions{
		TLS: files, CAs: []string{files.Cert}, Host: minioHost, Discovery: issuer.URL + "/.well-known/openid-configuration", ClientID: "sts.amazonaws.com",
		Buckets: []string{"alpha", "beta"},
	})
	if errors.Is(err, servers.ErrMissing) && os.Getenv("ATTACHE_REQUIRE_SERVERS") != "1" {
		t.Skipf("needs MinIO: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, src, caPEM
}

const minioDocuments = `---
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: minio}
spec:
  destinations:
  - {host: ` + minioHost + `, port: %[1]s, addresses: [%[2]q], caBundle: %[3]q, onlyCA: true}
  aws:
    roleARN: %[4]q
    region: us-east-1
    noEscapes: true
    endpoint: https://` + minioHost + `:%[1]s
    addresses: [%[2]q]
    caBundle: %[3]q
    endpoints:
    - {host: ` + minioHost + `, port: %[1]s, service: s3}
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: minio}
spec:
  rules:
  - name: alpha
    hosts: [` + minioHost + `]
    ports: [%[1]s]
    action: allow
    credential:
      provider: minio
      aws: {policy: {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": ["arn:aws:s3:::alpha", "arn:aws:s3:::alpha/*"]}]}}
`

// TestAWSWithMinIO sends an unchanged SDK's calls through the pipeline to a
// real STS and a server that verifies signatures and enforces session policies.
// Then it plays the thief of a session, which the agent cannot be.
func TestAWSWithMinIO(t *testing.T) {
	m, src, caPEM := startMinIO(t)
	_, port, _ := net.SplitHostPort(m.Addr)
	thief := &thief{}
	r := newRig(t, settings{
		documents: fmt.Sprintf(minioDocuments, port, m.Addr, caPEM, m.RoleARN), source: src,
		transport: func(c *pipeline.Config) { thief.Minter, c.Minter = c.Minter, thief },
	})
	c := s3.New(s3.Options{
		BaseEndpoint: aws.String(m.URL), UsePathStyle: true, Region: m.Region, HTTPClient: r.client(true), RetryMaxAttempts: 1,
		Credentials:                credentials.NewStaticCredentialsProvider(r.holders.Value("AWS_ACCESS_KEY_ID"), r.holders.Value("AWS_SECRET_ACCESS_KEY"), ""),
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenSupported,
	})
	data := bytes.Repeat([]byte("0123456789"), 100_000)
	keys := []string{"plain", "a key/ü+%~", "q&x=1", "%2F"}
	for _, key := range keys {
		if _, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("alpha"), Key: &key, Body: bytes.NewReader(data)}); err != nil {
			t.Fatalf("%q: %v\n%s", key, err, r.logs)
		}
		out, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("alpha"), Key: &key})
		if err != nil {
			t.Fatalf("%q: %v", key, err)
		}
		if b, err := io.ReadAll(out.Body); err != nil || !bytes.Equal(b, data) {
			t.Errorf("%q: %d bytes, %v", key, len(b), err)
		}
	}
	// MinIO does not honour escapes: a key that needs one is refused, by us.
	var refusal smithy.APIError
	_, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("alpha"), Key: aws.String("pl*")})
	if !errors.As(err, &refusal) || !strings.Contains(refusal.ErrorMessage(), pipeline.CodeAWSScope) {
		t.Errorf("a wildcard as data: %v", err)
	}
	list, err := c.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: aws.String("alpha"), Prefix: aws.String("pl")})
	if err != nil || len(list.Contents) != 1 {
		t.Errorf("%+v %v", list, err)
	}
	_, err = c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("beta"), Key: aws.String("k")})
	if !errors.As(err, &refusal) || refusal.ErrorCode() != "AccessDenied" || !strings.Contains(refusal.ErrorMessage(), pipeline.CodeAWSScope) {
		t.Errorf("another bucket: %v", err)
	}
	for i, rec := range r.records(2*len(keys) + 3) {
		if refused := i == 2*len(keys) || i == 2*len(keys)+2; refused {
			if rec.Decision.Code != pipeline.CodeAWSScope {
				t.Errorf("record %+v", rec.Decision)
			}
		} else if rec.Credential == nil || rec.Credential.AWS == nil || rec.Credential.ScopeSource != "derived" || rec.Result.UpstreamRequestID == "" {
			t.Errorf("record %+v %+v", rec.Credential, rec.Result)
		}
	}
	stolen := thief.last(t)
	own := s3.New(s3.Options{
		BaseEndpoint: aws.String("https://" + m.Addr), UsePathStyle: true, Region: m.Region, HTTPClient: trusting(caPEM), RetryMaxAttempts: 1,
		Credentials: credentials.NewStaticCredentialsProvider(stolen.AccessKeyID, stolen.Secret.Reveal(), stolen.SessionToken.Reveal()),
	})
	if _, err := own.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: aws.String("alpha"), Prefix: aws.String("pl")}); err != nil {
		t.Errorf("the session's own call: %v", err)
	}
	for what, err := range map[string]error{
		"another prefix": second(own.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: aws.String("alpha"), Prefix: aws.String("a")})),
		"another bucket": second(own.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: aws.String("beta"), Prefix: aws.String("pl")})),
		"another action": second(own.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("alpha"), Key: aws.String("plain")})),
	} {
		if !errors.As(err, &refusal) || refusal.ErrorCode() != "AccessDenied" {
			t.Errorf("%s with a stolen session: %v", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// thief keeps what is minted.
type thief struct {
	pipeline.Minter
	mu  sync.Mutex
	got []minting.Credential
}

// Mint implements minting.Minter.
func (s *thief) Mint(ctx context.Context, q minting.Request, e minting.Evidence) (minting.Credential, error) {
	c, err := s.Minter.Mint(ctx, q, e)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.got = append(s.got, c)
	}
	return c, err
}

func (s *thief) last(t *testing.T) minting.Credential {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.got) == 0 {
		t.Fatal("nothing was minted")
	}
	return s.got[len(s.got)-1]
}

func trusting(caPEM string) *http.Client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(caPEM))
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
}
