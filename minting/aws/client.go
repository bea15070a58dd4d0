package aws

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// userAgent replaces the SDK's, which tells of variables in our environment.
const userAgent = "attache"

// sts returns a client that signs with creds, nil for calls that are not
// signed. Making one opens nothing.
func (m *Minter) sts(creds aws.CredentialsProvider) *sts.Client {
	o := sts.Options{
		Region: m.spec.Region, Credentials: creds, HTTPClient: doer{m},
		// Guard decides about retries; it knows of back-off and of others.
		Retryer: aws.NopRetryer{},
	}
	if m.spec.Endpoint != "" {
		o.BaseEndpoint = &m.spec.Endpoint
	}
	if m.spec.FIPS {
		o.EndpointOptions.UseFIPSEndpoint = aws.FIPSEndpointStateEnabled
	}
	if m.spec.DualStack {
		o.EndpointOptions.UseDualStackEndpoint = aws.DualStackEndpointStateEnabled
	}
	return sts.New(o)
}

// stsEndpoint is where the SDK will call: its resolver knows which regions
// have FIPS and dual-stack endpoints.
func stsEndpoint(s v1alpha1.AWS) (string, error) {
	p := sts.EndpointParameters{
		Region: &s.Region, UseFIPS: &s.FIPS, UseDualStack: &s.DualStack, UseGlobalEndpoint: aws.Bool(false),
	}
	if s.Endpoint != "" {
		p.Endpoint = &s.Endpoint
	}
	e, err := sts.NewDefaultEndpointResolverV2().ResolveEndpoint(context.Background(), p)
	if err != nil {
		return "", fmt.Errorf("no endpoint of STS: %w", err)
	}
	return e.URI.String(), nil
}

// doer is how the SDK reaches the network: through the issuer client, with its
// bounds and without redirects.
type doer struct{ m *Minter }

// sendError is an error of doer; what the SDK writes around it is not ours.
type sendError struct{ err error }

func (e *sendError) Error() string { return e.err.Error() }
func (e *sendError) Unwrap() error { return e.err }

// Do implements the SDK's HTTPClient.
func (d doer) Do(req *http.Request) (*http.Response, error) {
	req.Header.Set("User-Agent", userAgent)
	req.Header.Del("X-Amzn-Trace-Id") // of the Lambda we might run in
	a, err := d.m.client.Do(req.Context(), req)
	if err != nil {
		return nil, &sendError{err}
	}
	d.m.learn(a)
	return &http.Response{
		StatusCode: a.Status, Status: http.StatusText(a.Status), Header: a.Header, Request: req,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: io.NopCloser(bytes.NewReader(a.Body)), ContentLength: int64(len(a.Body)),
	}, nil
}

// withRevokeType adds MinIO's parameter TokenRevokeType, which later names the
// session to its revoke-tokens call.
func withRevokeType(handle string) func(*sts.Options) {
	add := middleware.SerializeMiddlewareFunc("TokenRevokeType", func(ctx context.Context, in middleware.SerializeInput, next middleware.SerializeHandler) (middleware.SerializeOutput, middleware.Metadata, error) {
		req, ok := in.Request.(*smithyhttp.Request)
		if !ok {
			return middleware.SerializeOutput{}, middleware.Metadata{}, errors.New("not an HTTP request")
		}
		body, err := io.ReadAll(req.GetStream())
		if err != nil {
			return middleware.SerializeOutput{}, middleware.Metadata{}, err
		}
		more := "&" + url.Values{"TokenRevokeType": {handle}}.Encode()
		if in.Request, err = req.SetStream(strings.NewReader(string(body) + more)); err != nil {
			return middleware.SerializeOutput{}, middleware.Metadata{}, err
		}
		return next.HandleSerialize(ctx, in)
	})
	return func(o *sts.Options) {
		o.APIOptions = append(o.APIOptions, func(s *middleware.Stack) error {
			return s.Serialize.Insert(add, "OperationSerializer", middleware.After)
		})
	}
}
