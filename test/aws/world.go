package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/attache-dev/attache/test/servers"
)

// Names of the servers; no DNS knows them.
const (
	storeHost = "minio.aws.example"
	stsHost   = "sts.aws.example"
	audience  = "attache-minio"
	region    = "us-east-1"
)

// world is everything outside Attaché: MinIO with its audit log, the tap in
// front of its STS, and the one attache run that serves the issuer.
type world struct {
	attache string
	dir     string // of files that are out of the clients' reach
	ca      *servers.Authority
	issuer  string // URL
	tap     *tap
	tapAddr string
	log     *auditLog
	minio   *servers.MinIO
	root    *s3.Client
	client  *http.Client // reaches MinIO under each of its names
	stop    []func()
}

// startWorld starts all servers; close ends them.
func startWorld(ctx context.Context, attache, dir string) (_ *world, err error) {
	w := &world{attache: attache, dir: dir, log: &auditLog{}}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.ca, err = servers.NewAuthority("servers of the AWS suite", w.file("ca.pem")); err != nil {
		return nil, err
	}
	if err = w.ca.Issue(w.file("server.pem"), w.file("server.key"), storeHost, "*."+storeHost, stsHost); err != nil {
		return nil, err
	}
	if err = w.ca.Issue(w.file("issuer.pem"), w.file("issuer.key"), "localhost"); err != nil {
		return nil, err
	}
	if err = errors.Join(w.serveKey("agent.sock"), w.serveKey("other.sock")); err != nil {
		return nil, err
	}
	if err = w.startIssuer(ctx); err != nil {
		return nil, err
	}
	auditURL, err := w.serveAudit()
	if err != nil {
		return nil, err
	}
	w.minio, err = servers.StartMinIO(ctx, servers.MinIOOptions{
		TLS: &servers.TLS{Cert: w.file("server.pem"), Key: w.file("server.key")}, Host: storeHost, Domain: storeHost, Region: region,
		Discovery: w.issuer + "/.well-known/openid-configuration", ClientID: audience, CAs: []string{w.file("ca.pem")}, Audit: auditURL,
		Buckets: []string{"alpha", "beta", "gamma"},
	})
	if err != nil {
		return nil, err
	}
	w.stop = append(w.stop, w.minio.Close)
	w.client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: w.ca.Pool()}, MaxIdleConnsPerHost: 8,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, w.minio.Addr)
		},
	}}
	w.stop = append(w.stop, w.client.CloseIdleConnections)
	w.root = w.s3(aws.Credentials{AccessKeyID: w.minio.RootUser, SecretAccessKey: w.minio.RootPassword})
	if err := w.serveTap(); err != nil {
		return nil, err
	}
	return w, w.seed(ctx)
}

func (w *world) close() {
	for i := len(w.stop) - 1; i >= 0; i-- {
		w.stop[i]()
	}
}

func (w *world) file(name string) string { return filepath.Join(w.dir, name) }

// s3 is a client that goes straight to MinIO with keys of our choice.
func (w *world) s3(keys aws.Credentials) *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint: aws.String("https://" + storeHost), UsePathStyle: true, Region: region, HTTPClient: w.client, RetryMaxAttempts: 1,
		Credentials: credentials.StaticCredentialsProvider{Value: keys},
	})
}

// serveKey runs an ssh-agent with a signing key of its own: keys outlive the
// runs that sign with them.
func (w *world) serveKey(socket string) error {
	stop, err := servers.ServeSSHAgent(w.file(socket))
	if err == nil {
		w.stop = append(w.stop, stop)
	}
	return err
}

// startIssuer runs Attaché for its embedded issuer alone: MinIO wants the
// discovery document before it starts, and the keys whenever a new one signs.
func (w *world) startIssuer(ctx context.Context) error {
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	_, port, _ := net.SplitHostPort(addr)
	w.issuer = "https://localhost:" + port
	config := w.file("issuer-config")
	if err := writeConfig(config, w.issuerConfig(addr)); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, w.attache, "run", "--config", config, "--state", w.file("issuer-state"), "--", "/bin/sh", "-c", "echo ready; exec cat")
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + w.dir, "TMPDIR=" + os.TempDir()}
	var messages bytes.Buffer
	cmd.Stderr, cmd.Dir, cmd.WaitDelay = &messages, w.dir, 10*time.Second
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewReader(out)
	_, err = lines.ReadString('\n')
	w.stop = append(w.stop, func() {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, lines)
		_ = cmd.Wait()
	})
	if err != nil {
		return fmt.Errorf("the issuer's attache run: %w: %s", err, messages.String())
	}
	return nil
}

func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

func (w *world) serveAudit() (string, error) {
	addr, err := w.serve(w.log, false)
	return "http://" + addr, err
}

// serveTap puts the tap in front of MinIO's STS.
func (w *world) serveTap() error {
	w.tap = newTap(&url.URL{Scheme: "https", Host: storeHost}, w.client.Transport)
	var err error
	w.tapAddr, err = w.serve(w.tap, true)
	return err
}

func (w *world) serve(h http.Handler, secure bool) (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	w.stop = append(w.stop, func() { _ = srv.Close() })
	go func() {
		if secure {
			_ = srv.ServeTLS(ln, w.file("server.pem"), w.file("server.key"))
			return
		}
		_ = srv.Serve(ln)
	}()
	return ln.Addr().String(), nil
}

// seeds are what is there before: in scope, read-only, and out of scope.
var seeds = []struct{ bucket, key string }{{"alpha", "readonly/seed"}, {"alpha", "private/seed"}, {"beta", "desk/seed"}, {"gamma", "seed"}}

func seedText(bucket, key string) string { return "seed of " + bucket + "/" + key }

func (w *world) seed(ctx context.Context) error {
	for _, s := range seeds {
		if err := w.store(ctx, s.bucket, s.key, []byte(seedText(s.bucket, s.key))); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) store(ctx context.Context, bucket, key string, data []byte) error {
	_, err := w.root.PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(data)})
	return err
}
