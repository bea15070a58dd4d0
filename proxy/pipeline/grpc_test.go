package pipeline_test

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/policy"
)

// service is the interop test service, cut to what the tests need.
type service struct {
	grpc_testing.UnimplementedTestServiceServer
	authorized chan bool
	deadline   chan time.Duration
	canceled   chan struct{}
	token      func() string
}

func (s *service) UnaryCall(ctx context.Context, in *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	auth := md.Get("authorization")
	s.authorized <- len(auth) == 1 && auth[0] == "Bearer "+s.token()
	if d, ok := ctx.Deadline(); ok {
		s.deadline <- time.Until(d)
	}
	if in.ResponseStatus != nil {
		return nil, status.Error(codes.Code(in.ResponseStatus.Code), in.ResponseStatus.Message) //nolint:gosec // a test's code
	}
	_ = grpc.SetTrailer(ctx, metadata.Pairs("x-late", "late"))
	return &grpc_testing.SimpleResponse{Payload: in.Payload}, nil
}

func (s *service) StreamingOutputCall(in *grpc_testing.StreamingOutputCallRequest, out grpc_testing.TestService_StreamingOutputCallServer) error {
	for range in.ResponseParameters {
		if err := out.Send(&grpc_testing.StreamingOutputCallResponse{Payload: in.Payload}); err != nil {
			return err
		}
	}
	if len(in.ResponseParameters) == 0 {
		<-out.Context().Done()
		close(s.canceled)
		return status.FromContextError(out.Context().Err()).Err()
	}
	return nil
}

func (s *service) StreamingInputCall(in grpc_testing.TestService_StreamingInputCallServer) error {
	n := int32(0)
	for {
		m, err := in.Recv()
		if err == io.EOF {
			return in.SendAndClose(&grpc_testing.StreamingInputCallResponse{AggregatedPayloadSize: n})
		}
		if err != nil {
			return err
		}
		n += int32(len(m.Payload.Body)) //nolint:gosec // a few bytes
	}
}

func (s *service) FullDuplexCall(both grpc_testing.TestService_FullDuplexCallServer) error {
	for {
		m, err := both.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := both.Send(&grpc_testing.StreamingOutputCallResponse{Payload: m.Payload}); err != nil {
			return err
		}
	}
}

// grpcRig is a rig whose origin is a gRPC server, and a client of it.
func grpcRig(t *testing.T) (*rig, *service, grpc_testing.TestServiceClient, grpc_testing.UnimplementedServiceClient) {
	t.Helper()
	r := newRig(t, settings{})
	s := &service{authorized: make(chan bool, 100), deadline: make(chan time.Duration, 100), canceled: make(chan struct{})}
	s.token = func() string { return r.as.minted()[0] }
	srv := grpc.NewServer()
	grpc_testing.RegisterTestServiceServer(srv, s)
	r.serve(srv.ServeHTTP)
	c, err := grpc.NewClient("passthrough:///grpc.test:443",
		grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(r.roots, "grpc.test")),
		grpc.WithContextDialer(func(_ context.Context, addr string) (net.Conn, error) { return r.tunnel(addr), nil }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return r, s, grpc_testing.NewTestServiceClient(c), grpc_testing.NewUnimplementedServiceClient(c)
}

func payload(s string) *grpc_testing.Payload { return &grpc_testing.Payload{Body: []byte(s)} }

func TestGRPC(t *testing.T) {
	r, s, c, _ := grpcRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var late metadata.MD
	out, err := c.UnaryCall(ctx, &grpc_testing.SimpleRequest{Payload: payload("hello")}, grpc.Trailer(&late))
	if err != nil || string(out.Payload.Body) != "hello" || len(late.Get("x-late")) != 1 {
		t.Fatalf("unary: %v %v %v", out, err, late)
	}
	if !<-s.authorized {
		t.Error("the credential is missing")
	}
	if d := <-s.deadline; d < 5*time.Second || d > 10*time.Second {
		t.Errorf("the deadline arrived as %v", d)
	}
	down, err := c.StreamingOutputCall(ctx, &grpc_testing.StreamingOutputCallRequest{Payload: payload("x"), ResponseParameters: make([]*grpc_testing.ResponseParameters, 3)})
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		if _, err := down.Recv(); err == io.EOF && n == 3 {
			break
		} else if err != nil {
			t.Fatalf("server streaming: %d %v", n, err)
		}
	}
	up, err := c.StreamingInputCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_ = up.Send(&grpc_testing.StreamingInputCallRequest{Payload: payload("1234")})
	}
	if sum, err := up.CloseAndRecv(); err != nil || sum.AggregatedPayloadSize != 12 {
		t.Errorf("client streaming: %v %v", sum, err)
	}
	both, err := c.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // each answer comes before the next question
		_ = both.Send(&grpc_testing.StreamingOutputCallRequest{Payload: payload("ping")})
		if m, err := both.Recv(); err != nil || string(m.Payload.Body) != "ping" {
			t.Fatalf("full duplex: %v %v", m, err)
		}
	}
	_ = both.CloseSend()
	if _, err := both.Recv(); err != io.EOF {
		t.Errorf("full duplex ended with %v", err)
	}
	for _, rec := range r.records(4) {
		if rec.Request.Protocol != policy.GRPC || rec.Result.GRPCStatus != "0" || rec.Result.Outcome != audit.OutcomeOK {
			t.Errorf("record %+v %+v", rec.Request, rec.Result)
		}
	}
}

// Errors without a message travel as Trailers-Only.
func TestGRPCErrors(t *testing.T) {
	r, _, c, u := grpcRig(t)
	_, err := c.UnaryCall(t.Context(), &grpc_testing.SimpleRequest{ResponseStatus: &grpc_testing.EchoStatus{Code: 9, Message: "not now: é%"}})
	if s := status.Convert(err); s.Code() != codes.FailedPrecondition || s.Message() != "not now: é%" {
		t.Errorf("got %v", err)
	}
	if _, err := c.UnimplementedCall(t.Context(), &grpc_testing.Empty{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("got %v", err)
	}
	_, err = u.UnimplementedCall(t.Context(), &grpc_testing.Empty{})
	if s := status.Convert(err); s.Code() != codes.PermissionDenied || !strings.HasPrefix(s.Message(), "Attaché refused this call") || !strings.Contains(s.Message(), "ask #platform") || !strings.Contains(s.Message(), "rec_") {
		t.Errorf("denied: got %v", err)
	}
	recs := r.records(3)
	if recs[0].Result.GRPCStatus != "9" || recs[1].Result.GRPCStatus != "12" || recs[2].Decision.Code != "denied" {
		t.Errorf("records %+v %+v %+v", recs[0].Result, recs[1].Result, recs[2].Decision)
	}
	r.mintFails(500, "")
	r.revokeEverything()
	if _, err := c.UnaryCall(t.Context(), &grpc_testing.SimpleRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("no credential: got %v", err)
	}
}

func TestGRPCCancelAndDeadline(t *testing.T) {
	_, s, c, _ := grpcRig(t)
	// A first call, so that the deadline of the second measures nothing else.
	if _, err := c.UnaryCall(t.Context(), &grpc_testing.SimpleRequest{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	stream, err := c.StreamingOutputCall(ctx, &grpc_testing.StreamingOutputCallRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("got %v", err)
	}
	select {
	case <-s.canceled:
	case <-time.After(5 * time.Second):
		t.Error("the server never knew")
	}
}
