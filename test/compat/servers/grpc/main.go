// Command grpc is grpc-go's interop server behind two interceptors: each
// call needs a bearer token that the verifier accepts, and each call, accepted
// or not, is one line of JSON on stdout. It ends with its standard input.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// line is what the harness reads; it knows the same type.
type line struct {
	Host      string `json:"host"`
	Method    string `json:"method"`
	UserAgent string `json:"user_agent"`
	RequestID string `json:"request_id"`
	Token     string `json:"token"`
	Status    string `json:"status"` // gRPC code
}

type server struct {
	verify string
	mu     sync.Mutex // guards stdout
}

func main() {
	cert := flag.String("cert", "", "PEM file")
	key := flag.String("key", "", "PEM file")
	verify := flag.String("verify", "", "URL that answers 200 to a POST with a good bearer token")
	flag.Parse()
	pair, err := tls.LoadX509KeyPair(*cert, *key)
	if err != nil {
		log.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	s := &server{verify: *verify}
	g := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&pair)), grpc.UnaryInterceptor(s.unary), grpc.StreamInterceptor(s.stream),
		grpc.UnknownServiceHandler(s.unknown))
	testgrpc.RegisterTestServiceServer(g, interop.NewTestServer())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Println(ln.Addr())
	log.Fatal(g.Serve(ln))
}

func (s *server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	token, err := s.authorize(ctx)
	var out any
	if err == nil {
		out, err = next(ctx, req)
	}
	s.log(ctx, info.FullMethod, token, err)
	return out, err
}

func (s *server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	token, err := s.authorize(ss.Context())
	if err == nil {
		err = next(srv, ss)
	}
	s.log(ss.Context(), info.FullMethod, token, err)
	return err
}

// unknown answers methods that do not exist; the stream interceptor runs
// around it, so that they are in the log too.
func (s *server) unknown(_ any, ss grpc.ServerStream) error {
	m, _ := grpc.MethodFromServerStream(ss)
	return status.Errorf(codes.Unimplemented, "unknown method %s", m)
}

func (s *server) authorize(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	if len(values) != 1 || !strings.HasPrefix(values[0], "Bearer ") {
		return "", status.Error(codes.Unauthenticated, "no bearer token")
	}
	token := strings.TrimPrefix(values[0], "Bearer ")
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.verify, nil)
	if err != nil {
		return token, status.Error(codes.Internal, err.Error())
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return token, status.Error(codes.Unavailable, err.Error())
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return token, status.Error(codes.Unauthenticated, "token refused")
	}
	return token, nil
}

func (s *server) log(ctx context.Context, method, token string, err error) {
	md, _ := metadata.FromIncomingContext(ctx)
	l := line{Method: method, Token: token, Status: status.Code(err).String(), Host: first(md, ":authority"),
		UserAgent: first(md, "user-agent"), RequestID: first(md, "x-request-id")}
	b, jerr := json.Marshal(l)
	if jerr != nil {
		log.Fatal(jerr)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Printf("%s\n", b)
}

func first(md metadata.MD, key string) string {
	if v := md.Get(key); len(v) > 0 {
		return v[0]
	}
	return ""
}
