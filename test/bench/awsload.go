package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// Modes of an order that aws-sdk-go-v2 executes.
const (
	modeGet    = "aws-get"    // 1 KiB
	modeUpload = "aws-upload" // uploadSize, streamed, with a trailing checksum
)

const uploadSize = 1 << 30

// awsClient is client for the modes of AWS. With Header the SDK signs with the
// session's own keys, in process; else with what it finds in the environment.
func (o *order) awsClient(ctx context.Context, cfg *tls.Config) (do func() error, done func(), err error) {
	cfg = cfg.Clone()
	cfg.ServerName, cfg.NextProtos = "", []string{"http/1.1"}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: cfg, MaxIdleConnsPerHost: 1}
	keys := aws.Credentials{AccessKeyID: awsKeyID, SecretAccessKey: awsSecret, SessionToken: awsToken}
	if !o.Header {
		keys = aws.Credentials{AccessKeyID: os.Getenv("AWS_ACCESS_KEY_ID"), SecretAccessKey: os.Getenv("AWS_SECRET_ACCESS_KEY")}
	}
	c := s3.New(s3.Options{
		BaseEndpoint: aws.String("https://" + o.Host), UsePathStyle: true, Region: "us-east-1", RetryMaxAttempts: 1,
		HTTPClient: &http.Client{Transport: transport}, Credentials: credentials.StaticCredentialsProvider{Value: keys},
	})
	if o.Mode == modeGet {
		return func() error { return get(ctx, c) }, transport.CloseIdleConnections, nil
	}
	size := int64(1 << 20) // the first one opens the connection and mints
	return func() error {
		n := size
		size = uploadSize
		_, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: aws.String("bench"), Key: aws.String("upload"), ContentLength: &n, Body: io.LimitReader(zeros{}, n)})
		return err
	}, transport.CloseIdleConnections, nil
}

func get(ctx context.Context, c *s3.Client) error {
	out, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String("bench"), Key: aws.String("1k")})
	if err != nil {
		return err
	}
	defer out.Body.Close()
	if n, err := io.Copy(io.Discard, out.Body); err != nil || n != 1<<10 {
		return fmt.Errorf("%d bytes: %w", n, err)
	}
	return nil
}

// zeros is a body that cannot be read twice.
type zeros struct{}

// Read implements [io.Reader].
func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
