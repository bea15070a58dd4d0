package otlp

import (
	"context"
	"fmt"
	"strings"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/attache-dev/attache/internal/secret"
)

// maxAnswer bounds a receiver's answer, in bytes.
const maxAnswer = 1 << 20

type overGRPC struct {
	conn   *grpc.ClientConn
	client collogs.LogsServiceClient
	gzip   bool
}

func newGRPC(c Config) (transport, error) {
	creds := insecure.NewCredentials()
	if c.TLS != nil {
		creds = credentials.NewTLS(c.TLS)
	}
	conn, err := grpc.NewClient(c.Endpoint, grpc.WithTransportCredentials(creds), grpc.WithDisableServiceConfig(),
		// The wait between attempts is package ship's; a connection follows at once.
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 5 * time.Second, Backoff: backoff.Config{
			BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.3, MaxDelay: 5 * time.Second,
		}}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 5 * time.Minute, Timeout: 20 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return nil, fmt.Errorf("otlp sink %s: %w", c.Name, err)
	}
	return &overGRPC{conn, collogs.NewLogsServiceClient(conn), c.Gzip}, nil
}

// Close implements io.Closer.
func (g *overGRPC) Close() error { return g.conn.Close() }

func (g *overGRPC) export(ctx context.Context, req *collogs.ExportLogsServiceRequest, headers map[string]secret.Value) (*collogs.ExportLogsServiceResponse, error) {
	for name, v := range headers {
		ctx = metadata.AppendToOutgoingContext(ctx, strings.ToLower(name), v.Reveal())
	}
	var opts []grpc.CallOption
	if g.gzip {
		opts = append(opts, grpc.UseCompressor(gzip.Name))
	}
	answer, err := g.client.Export(ctx, req, opts...)
	if err != nil {
		return nil, classify(err, proto.Size(req))
	}
	return answer, nil
}

// smallRequest is what no receiver refuses for its size, in bytes.
const smallRequest = 64 << 10

// classify says whether an answer is about these records, so that they must not
// be sent again, or about the receiver. Who is not let in, or finds no service,
// is told so and tries again: an operator can cure that, and records wait.
// OTLP 1.11.0, "OTLP/gRPC response", has RESOURCE_EXHAUSTED as retryable only
// with RetryInfo; without it a message was too large, or somebody limits rates
// and does not say so.
func classify(err error, size int) error {
	st := status.Convert(err)
	var after time.Duration
	hinted := false
	for _, d := range st.Details() {
		if r, ok := d.(*errdetails.RetryInfo); ok {
			after, hinted = r.GetRetryDelay().AsDuration(), true
		}
	}
	switch st.Code() {
	case codes.InvalidArgument, codes.OutOfRange, codes.DataLoss:
		return &refusedError{st.Message()}
	case codes.ResourceExhausted:
		if !hinted && size > smallRequest {
			return &refusedError{st.Message()}
		}
	}
	return later(fmt.Errorf("otlp: %w", err), after)
}
