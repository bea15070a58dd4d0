package servers

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// MinIOOptions configure a MinIO server: S3, STS and IAM policies in one.
type MinIOOptions struct {
	// TLS is the server's certificate; nil serves http.
	TLS *TLS
	// Host stands in URL, default 127.0.0.1. The server itself listens on
	// 127.0.0.1 only.
	Host string
	// Discovery is the OpenID configuration of the issuer whose tokens its STS
	// takes. It must answer before the server starts. Empty: no STS.
	Discovery string
	// ClientID is the audience that tokens must have.
	ClientID string
	// RolePolicy is the policy of the one role, default readwrite.
	RolePolicy string
	// CAs are PEM files that the server trusts: for Discovery and Audit.
	CAs []string
	// Audit is a URL that gets each line of the audit log by POST.
	Audit string
	// Region, default us-east-1.
	Region string
	// Domain is one below which BUCKET.Domain is served too.
	Domain string
	// Buckets are made before StartMinIO returns.
	Buckets []string
}

// MinIO is a running MinIO server.
type MinIO struct {
	URL     string // scheme://Host:port
	Addr    string // 127.0.0.1:port
	Region  string
	RoleARN string // of the role for tokens of the issuer; empty without Discovery
	// Root may do anything: for the tests' own look behind the curtain.
	RootUser, RootPassword string

	http  *http.Client
	stdin io.Closer
	done  chan struct{}
	log   *head
	dir   string
}

// keeper turns into the server, which is killed when its stdin closes; that
// happens when this process ends, however it ends.
const keeper = `exec 3<&0; (cat <&3; kill -9 $$) >/dev/null 2>&1 & exec "$@" </dev/null 3<&-`

var roleLine = regexp.MustCompile(`arn:minio:iam:[a-z0-9-]*::role/[A-Za-z0-9_+=,.@-]+`)

// StartMinIO starts a server. It ends with ctx, by Close, or with this process.
// An error matches ErrMissing where the server is not built: it is then built
// (about eight minutes) only if ATTACHE_REQUIRE_SERVERS is 1.
func StartMinIO(ctx context.Context, o MinIOOptions) (*MinIO, error) {
	bin, err := buildMinIO(ctx)
	if err != nil {
		return nil, err
	}
	client, err := o.client()
	if err != nil {
		return nil, fmt.Errorf("start minio: %w", err)
	}
	// Between the choice of a port and its use another program may take it.
	for try := 1; ; try++ {
		s, err := o.start(ctx, bin, client)
		if err == nil {
			for _, b := range o.Buckets {
				if err := s.MakeBucket(ctx, b); err != nil {
					s.Close()
					return nil, err
				}
			}
			return s, nil
		}
		if try == 3 || ctx.Err() != nil {
			return nil, err
		}
	}
}

func (o MinIOOptions) start(ctx context.Context, bin string, client *http.Client) (*MinIO, error) {
	dir, err := os.MkdirTemp("", "minio")
	if err != nil {
		return nil, fmt.Errorf("start minio: %w", err)
	}
	s := &MinIO{Region: o.Region, RootUser: rand.Text(), RootPassword: rand.Text(), http: client, dir: dir, log: &head{}, done: make(chan struct{})}
	if s.Region == "" {
		s.Region = "us-east-1"
	}
	if err := o.certs(filepath.Join(dir, "certs")); err != nil {
		_ = os.RemoveAll(dir)
		return nil, fmt.Errorf("start minio: %w", err)
	}
	if s.Addr, err = freeAddr(); err != nil {
		_ = os.RemoveAll(dir)
		return nil, fmt.Errorf("start minio: %w", err)
	}
	_, port, _ := net.SplitHostPort(s.Addr)
	s.URL = "http://" + net.JoinHostPort(o.host(), port)
	if o.TLS != nil {
		s.URL = "https://" + net.JoinHostPort(o.host(), port)
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", keeper, "minio", bin, "server", "--certs-dir", filepath.Join(dir, "certs"),
		"--address", s.Addr, "--console-address", "127.0.0.1:0", filepath.Join(dir, "data"))
	cmd.Env = o.env(s)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	in, err := cmd.StdinPipe()
	if err == nil {
		s.stdin = in
		err = cmd.Start()
	}
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, fmt.Errorf("start minio: %w", err)
	}
	go func() {
		defer close(s.done)
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	}()
	if err := s.ready(ctx, o.Discovery != ""); err != nil {
		s.Close()
		return nil, fmt.Errorf("start minio: %w: %s", err, s.log.String())
	}
	return s, nil
}

func (o MinIOOptions) host() string {
	if o.Host == "" {
		return "127.0.0.1"
	}
	return o.Host
}

func (o MinIOOptions) env(s *MinIO) []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "MINIO_ROOT_USER=" + s.RootUser, "MINIO_ROOT_PASSWORD=" + s.RootPassword,
		"MINIO_BROWSER=off", "MINIO_UPDATE=off", "MINIO_REGION=" + s.Region,
	}
	if o.Domain != "" {
		env = append(env, "MINIO_DOMAIN="+o.Domain)
	}
	if o.Discovery != "" {
		policy := o.RolePolicy
		if policy == "" {
			policy = "readwrite"
		}
		env = append(env, "MINIO_IDENTITY_OPENID_CONFIG_URL="+o.Discovery, "MINIO_IDENTITY_OPENID_CLIENT_ID="+o.ClientID,
			"MINIO_IDENTITY_OPENID_ROLE_POLICY="+policy)
	}
	if o.Audit != "" {
		env = append(env, "MINIO_AUDIT_WEBHOOK_ENABLE_TEST=on", "MINIO_AUDIT_WEBHOOK_ENDPOINT_TEST="+o.Audit)
	}
	return env
}

// certs lays out the folder that MinIO reads: its certificate, and whom it
// trusts besides the system's roots.
func (o MinIOOptions) certs(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "CAs"), 0o700); err != nil {
		return err
	}
	from := map[string]string{}
	if o.TLS != nil {
		from["public.crt"], from["private.key"] = o.TLS.Cert, o.TLS.Key
	}
	for i, ca := range o.CAs {
		from[fmt.Sprintf("CAs/%d.crt", i)] = ca
	}
	for name, src := range from {
		b, err := os.ReadFile(src)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// client trusts the server's own certificate and those of CAs.
func (o MinIOOptions) client() (*http.Client, error) {
	pool := x509.NewCertPool()
	files := o.CAs
	if o.TLS != nil {
		files = append([]string{o.TLS.Cert}, files...)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		pool.AppendCertsFromPEM(b)
	}
	return &http.Client{Timeout: startTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{RootCAs: pool, ServerName: o.host(), MinVersion: tls.VersionTLS12},
	}}, nil
}

// ready waits until the server serves, and for its role's ARN, which it prints.
func (s *MinIO) ready(ctx context.Context, role bool) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if role {
			s.RoleARN = roleLine.FindString(s.log.String())
		}
		if (s.RoleARN != "" || !role) && s.serves(ctx, role) {
			return nil
		}
		select {
		case <-tick.C:
		case <-s.done:
			return errors.New("it ended")
		case <-ctx.Done():
			return fmt.Errorf("not ready in time: %w", ctx.Err())
		}
	}
}

// serves reports whether all parts answer: the health check is content before
// the parts for S3 and STS are there.
func (s *MinIO) serves(ctx context.Context, sts bool) bool {
	if s.call(ctx, http.MethodGet, "/minio/health/ready", false) != nil || s.call(ctx, http.MethodGet, "/", true) != nil {
		return false
	}
	if !sts {
		return true
	}
	f := url.Values{"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "RoleArn": {s.RoleARN}, "WebIdentityToken": {"none"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.base()+"/", strings.NewReader(f.Encode()))
	if err != nil {
		return false
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := s.http.Do(req)
	if err != nil {
		return false
	}
	defer res.Body.Close()
	return res.StatusCode == http.StatusBadRequest // it looked at the token
}

// base is URL with the address in place of the name, which need not resolve.
func (s *MinIO) base() string {
	if strings.HasPrefix(s.URL, "https:") {
		return "https://" + s.Addr
	}
	return "http://" + s.Addr
}

// MakeBucket makes a bucket as root. A server that has just begun may ask for
// patience.
func (s *MinIO) MakeBucket(ctx context.Context, bucket string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := s.call(ctx, http.MethodPut, "/"+bucket, true)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errBusy) || ctx.Err() != nil {
			return fmt.Errorf("make bucket %s: %w", bucket, err)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-s.done:
		case <-ctx.Done():
		}
	}
}

// errBusy is a status of 503.
var errBusy = errors.New("busy")

// call sends a request without a body, signed by root if asked to.
func (s *MinIO) call(ctx context.Context, method, path string, signed bool) error {
	req, err := http.NewRequestWithContext(ctx, method, s.base()+path, nil)
	if err != nil {
		return err
	}
	if signed {
		const empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // SHA-256 of nothing
		req.Header.Set("X-Amz-Content-Sha256", empty)
		root := aws.Credentials{AccessKeyID: s.RootUser, SecretAccessKey: s.RootPassword}
		if err := v4.NewSigner().SignHTTP(ctx, root, req, empty, "s3", s.Region, time.Now()); err != nil {
			return err
		}
	}
	res, err := s.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(res.Body, 4<<10))
		if res.StatusCode == http.StatusServiceUnavailable {
			return fmt.Errorf("%w: %s", errBusy, b)
		}
		return fmt.Errorf("status %d: %s", res.StatusCode, b)
	}
	return nil
}

// Close ends the server, waits for it and removes its data.
func (s *MinIO) Close() {
	_ = s.stdin.Close()
	<-s.done
}

// Log is the beginning of what the server printed.
func (s *MinIO) Log() string { return s.log.String() }

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// buildMinIO returns the server's path. Building it takes longer than a test
// may, so that only runs that require all servers do.
func buildMinIO(ctx context.Context) (string, error) {
	_, here, _, _ := runtime.Caller(0)
	script := filepath.Join(filepath.Dir(here), "minio", "build.sh")
	bin := filepath.Join(filepath.Dir(here), "..", "..", ".cache", "bin", "minio")
	if _, err := os.Stat(bin); err != nil && os.Getenv("ATTACHE_REQUIRE_SERVERS") != "1" {
		return "", fmt.Errorf("%w: minio is not built; run test/servers/minio/build.sh", ErrMissing)
	}
	minioBuild.Lock()
	defer minioBuild.Unlock()
	cmd := exec.CommandContext(ctx, "sh", script)
	var log tail
	cmd.Stderr = &log
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%w: build minio: %w: %s", ErrMissing, err, log.String())
	}
	return string(bytes.TrimSpace(out)), nil
}

var minioBuild sync.Mutex // one build at a time

// head keeps the first bytes of a server's log.
type head struct {
	mu sync.Mutex // guards b
	b  []byte
}

const headSize = 32 << 10

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if room := headSize - len(h.b); room > 0 {
		h.b = append(h.b, p[:min(room, len(p))]...)
	}
	return len(p), nil
}

func (h *head) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return string(h.b)
}
