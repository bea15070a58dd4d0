package aws_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/minting"
	provider "github.com/attache-dev/attache/minting/aws"
	"github.com/attache-dev/attache/minting/mintingtest"
	"github.com/attache-dev/attache/test/servers"
)

// cloud is a real MinIO, by TLS, that trusts our issuer.
type cloud struct {
	*servers.MinIO
	src  *mintingtest.Source
	pem  string
	deps minting.Deps
}

// startMinIO serves our issuer's discovery document and keys, then MinIO.
func startMinIO(t *testing.T) *cloud {
	t.Helper()
	src := mintingtest.NewSource(t)
	var issuer *httptest.Server
	issuer = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			_ = json.NewEncoder(w).Encode(map[string]any{
				"issuer": issuer.URL, "jwks_uri": issuer.URL + "/keys", "response_types_supported": []string{"id_token"},
				"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"ES256"},
			})
		case "/keys":
			_ = json.NewEncoder(w).Encode(src.JWKS())
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(issuer.Close)
	src.Issuer = issuer.URL
	// The test server's certificate is for 127.0.0.1: MinIO may have it too.
	own := issuer.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	c := &cloud{src: src, pem: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.Certificate[0]}))}
	dir := t.TempDir()
	files := &servers.TLS{Cert: filepath.Join(dir, "crt"), Key: filepath.Join(dir, "key")}
	for name, text := range map[string]string{files.Cert: c.pem, files.Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.MinIO, err = servers.StartMinIO(t.Context(), servers.MinIOOptions{
		TLS: files, CAs: []string{files.Cert}, Discovery: issuer.URL + "/.well-known/openid-configuration", ClientID: "sts.amazonaws.com",
		Buckets: []string{"alpha", "beta"},
	})
	if errors.Is(err, servers.ErrMissing) && os.Getenv("ATTACHE_REQUIRE_SERVERS") != "1" {
		t.Skipf("needs MinIO: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.deps = minting.Deps{Client: func(_ []string, ca []byte) *http.Client {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(ca)
		return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	}}
	return c
}

func (c *cloud) minter(t *testing.T, change func(*v1alpha1.AWS)) *provider.Minter {
	t.Helper()
	s := v1alpha1.AWS{
		RoleARN: c.RoleARN, Region: c.Region, Endpoint: c.URL, CABundle: c.pem, Addresses: []string{"127.0.0.1"},
		Revocation: &v1alpha1.AWSRevocation{Kind: provider.RevokeMinIO},
	}
	if change != nil {
		change(&s)
	}
	m, err := provider.New("cloud", s, c.deps)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// s3 is a client with these keys.
func (c *cloud) s3(keys aws.CredentialsProvider) *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint: &c.URL, UsePathStyle: true, Region: c.Region, Credentials: keys, Retryer: aws.NopRetryer{},
		HTTPClient: c.deps.Client(nil, []byte(c.pem)),
	})
}

func put(t *testing.T, s *s3.Client, bucket, key string) error {
	_, err := s.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader([]byte("hello"))})
	return err
}

func get(t *testing.T, s *s3.Client, bucket, key string) error {
	out, err := s.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err == nil {
		_ = out.Body.Close()
	}
	return err
}

// code is the server's word for an error.
func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	if err != nil {
		return err.Error()
	}
	return "OK"
}

// TestMinIO mints at a real STS, uses what was minted against a server that
// enforces session policies, and revokes it.
func TestMinIO(t *testing.T) {
	c := startMinIO(t)
	e := minting.Evidence{Workload: mintingtest.Workload(), Source: c.src}
	r := request(e)
	r.Role = ""
	m := c.minter(t, nil)
	mint := func(t *testing.T, r minting.Request) minting.Credential {
		t.Helper()
		cr, err := m.Mint(t.Context(), r, e)
		if err != nil {
			t.Fatal(err)
		}
		return cr
	}
	all := r
	all.SessionPolicy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:*"],"Resource":["arn:aws:s3:::*"]}]}`
	everything := mint(t, all)
	for _, b := range []string{"alpha", "beta"} {
		if err := put(t, c.s3(keysOf(everything)), b, "k"); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("scope", func(t *testing.T) {
		one := r
		one.SessionPolicy = strings.Replace(policy, "alpha/*", "alpha/k", 1)
		s := c.s3(keysOf(mint(t, one)))
		for what, got := range map[string]struct {
			err  error
			want string
		}{
			"get in scope":   {get(t, s, "alpha", "k"), "OK"},
			"another bucket": {get(t, s, "beta", "k"), "AccessDenied"},
			"another action": {put(t, s, "alpha", "k"), "AccessDenied"},
			"another key":    {get(t, s, "alpha", "k2"), "AccessDenied"},
		} {
			if code(got.err) != got.want {
				t.Errorf("%s: %s, want %s", what, code(got.err), got.want)
			}
		}
	})
	t.Run("revoke", func(t *testing.T) {
		one, other := mint(t, r), mint(t, r)
		for range 2 { // again is as good
			if err := minting.Revoke(t.Context(), m, one); err != nil {
				t.Fatal(err)
			}
		}
		if got := code(get(t, c.s3(keysOf(one)), "alpha", "k")); got != "InvalidAccessKeyId" {
			t.Errorf("after its revocation: %s", got)
		}
		if got := code(get(t, c.s3(keysOf(other)), "alpha", "k")); got != "OK" {
			t.Errorf("another session: %s", got)
		}
	})
	t.Run("ttl", func(t *testing.T) {
		short := r
		short.TTL = 2 * time.Second
		cr := mint(t, short)
		s := c.s3(keysOf(cr))
		if got := code(get(t, s, "alpha", "k")); got != "OK" && time.Now().Before(cr.Expires) {
			t.Errorf("at once: %s", got)
		}
		<-time.After(time.Until(cr.Expires.Add(100 * time.Millisecond)))
		if got := code(get(t, s, "alpha", "k")); got != "AccessDenied" {
			t.Errorf("after its end: %s", got)
		}
	})
	t.Run("audience", func(t *testing.T) {
		m := c.minter(t, func(s *v1alpha1.AWS) { s.Audience = "somebody.else" })
		if _, err := m.Mint(t.Context(), r, e); !errors.Is(err, minting.ErrDenied) {
			t.Errorf("a token for somebody else: %v", err)
		}
	})
	t.Run("issuer", func(t *testing.T) {
		stranger := e
		stranger.Source = mintingtest.NewSource(t)
		_, err := m.Mint(t.Context(), r, stranger)
		if !errors.Is(err, minting.ErrDenied) && !errors.Is(err, minting.ErrUnavailable) {
			t.Errorf("a stranger's token: %v", err)
		}
		for _, s := range stranger.Source.(*mintingtest.Source).Signed() {
			if err != nil && strings.Contains(err.Error(), s) {
				t.Error("the error repeats the token")
			}
		}
	})
	t.Run("certificate", func(t *testing.T) {
		m := c.minter(t, func(s *v1alpha1.AWS) { s.CABundle = "" })
		if _, err := m.Mint(t.Context(), r, e); !errors.Is(err, minting.ErrUnavailable) {
			t.Errorf("a server with a certificate of nobody: %v", err)
		}
	})
}
