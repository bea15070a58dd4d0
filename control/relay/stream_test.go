package relay_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	grpctest "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/attache-dev/attache/api/controlpb"
)

// Nothing is kept back: each event of a stream passes as it comes, in both
// directions at once.
func TestStreams(t *testing.T) {
	g := start(t, nil)
	step := make(chan struct{})
	g.handle(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.EnableFullDuplex()
		w.Header().Set("Content-Type", "text/event-stream")
		lines := bufio.NewReader(r.Body)
		for range 3 {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			_, _ = fmt.Fprintf(w, "data: %s\n", line)
			_ = rc.Flush()
			<-step
		}
	})
	up, feed := io.Pipe()
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://api.model.test/stream", up)
	type opened struct {
		resp *http.Response
		err  error
	}
	got := make(chan opened, 1)
	go func() {
		resp, err := g.agent.Do(r)
		got <- opened{resp, err}
	}()
	_, _ = io.WriteString(feed, "one\n")
	o := <-got
	if o.err != nil {
		t.Fatal(o.err)
	}
	defer o.resp.Body.Close()
	down := bufio.NewReader(o.resp.Body)
	for _, want := range []string{"one", "two", "three"} {
		if want != "one" {
			_, _ = io.WriteString(feed, want+"\n")
		}
		line, err := down.ReadString('\n')
		if err != nil || line != "data: "+want+"\n" {
			t.Fatalf("got %q, %v; want %s", line, err, want)
		}
		_, _ = down.ReadString('\n')
		step <- struct{}{}
	}
	_ = feed.Close()
	if _, err := io.Copy(io.Discard, down); err != nil {
		t.Error(err)
	}
}

// hold starts a stream and returns it once its first byte is here.
func (g *rig) hold(url string) (*http.Response, *bufio.Reader) {
	g.t.Helper()
	r, _ := http.NewRequestWithContext(g.t.Context(), http.MethodGet, url, nil)
	resp, err := g.agent.Do(r)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = resp.Body.Close() })
	b := bufio.NewReader(resp.Body)
	if _, err := b.ReadByte(); err != nil {
		g.t.Fatal(err)
	}
	return resp, b
}

// A revocation ends the streams that it concerns, and no others; a revoked
// handle begins none.
func TestRevocation(t *testing.T) {
	endless := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "x")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	for _, tt := range []struct {
		name string
		r    *controlpb.Revocation
		cut  bool
	}{
		{"provider", &controlpb.Revocation{Id: "r", Provider: "model"}, true},
		{"owner", &controlpb.Revocation{Id: "r", Owner: "team@example.com"}, true},
		{"pod", &controlpb.Revocation{Id: "r", PodUid: uid}, true},
		{"all of them", &controlpb.Revocation{Id: "r", Provider: "model", Owner: "team@example.com", PodUid: uid}, true},
		{"another provider", &controlpb.Revocation{Id: "r", Provider: "leased"}, false},
		{"another owner", &controlpb.Revocation{Id: "r", Provider: "model", Owner: "other@example.com"}, false},
		{"older ones", &controlpb.Revocation{Id: "r", Provider: "model", NotBefore: timestamppb.New(time.Now().Add(-time.Hour))}, false},
		{"a task's", &controlpb.Revocation{Id: "r", Task: "task_1"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := start(t, nil)
			g.handle(endless)
			resp, body := g.hold("https://api.model.test/")
			g.server.Revoke([]*controlpb.Revocation{tt.r})
			if !tt.cut {
				done := make(chan struct{})
				go func() { defer close(done); _, _ = body.ReadByte() }()
				select {
				case <-done:
					t.Error("the stream was cut")
				case <-time.After(100 * time.Millisecond): // it may only be missed, never found wrongly
				}
				return
			}
			if _, err := body.ReadByte(); err == nil || err == io.EOF {
				t.Errorf("the stream went on: %v", err)
			}
			_ = resp.Body.Close()
			deadline := time.Now().Add(10 * time.Second)
			for len(g.seen("ended")) == 0 && time.Now().Before(deadline) {
				time.Sleep(time.Millisecond)
			}
			if e := g.seen("ended"); len(e) != 1 || e[0].Outcome != "revoked" {
				t.Errorf("events: %+v", e)
			}
		})
	}
	t.Run("handle", func(t *testing.T) {
		g := start(t, nil)
		a := g.get("https://api.model.test/")
		g.server.Revoke([]*controlpb.Revocation{{Id: "r", Handle: g.recordOf(a).Credential.Handle}})
		g.refused(g.get("https://api.model.test/"), http.StatusForbidden, "revoked")
	})
}

// maxStream ends a stream through the relay, too.
func TestMaxStream(t *testing.T) {
	g := start(t, nil)
	g.handle(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "x")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	_, body := g.hold("https://api.model.test/short")
	if _, err := body.ReadByte(); err == nil || err == io.EOF {
		t.Errorf("got %v", err)
	}
}

// A WebSocket goes through, with the key on its handshake.
func TestWebSocket(t *testing.T) {
	g := start(t, nil)
	g.agent = agent(g.proxy, g.plane.CA(), false)
	g.handle(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+root {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			typ, b, err := c.Read(r.Context())
			if err != nil {
				return
			}
			if err := c.Write(r.Context(), typ, []byte(strings.ToUpper(string(b)))); err != nil {
				return
			}
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	agent := *g.agent
	agent.Timeout = 0
	c, resp, err := websocket.Dial(ctx, "wss://api.model.test/realtime", &websocket.DialOptions{HTTPClient: &agent})
	if err != nil {
		t.Fatalf("%v\n%s", err, g.logs)
	}
	if resp.Header.Get("Attache-Relay-Address") != "" || resp.Header.Get("Attache-Record") == "" {
		t.Errorf("header is %v", resp.Header)
	}
	for _, text := range []string{"one", "two"} {
		if err := c.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, b, err := c.Read(ctx); err != nil || string(b) != strings.ToUpper(text) {
			t.Fatalf("got %q, %v", b, err)
		}
	}
	_ = c.Close(websocket.StatusNormalClosure, "")
}

type service struct {
	grpctest.UnimplementedTestServiceServer
}

func (service) FullDuplexCall(both grpctest.TestService_FullDuplexCallServer) error {
	for {
		m, err := both.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := both.Send(&grpctest.StreamingOutputCallResponse{Payload: m.Payload}); err != nil {
			return err
		}
	}
}

// gRPC goes through in both directions, with its trailers.
func TestGRPC(t *testing.T) {
	g := start(t, nil)
	srv := grpc.NewServer()
	grpctest.RegisterTestServiceServer(srv, service{})
	g.handle(srv.ServeHTTP)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(g.plane.CA())
	conn, err := grpc.NewClient("passthrough:///api.model.test:443", grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12})),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", g.proxy.Host)
			if err != nil {
				return nil, err
			}
			_, _ = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", addr, addr)
			resp, err := http.ReadResponse(bufio.NewReaderSize(c, 1), nil)
			if err != nil || resp.StatusCode != http.StatusOK {
				return nil, fmt.Errorf("CONNECT: %v %v", resp, err)
			}
			return c, nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	both, err := grpctest.NewTestServiceClient(conn).FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"a", "b"} {
		if err := both.Send(&grpctest.StreamingOutputCallRequest{Payload: &grpctest.Payload{Body: []byte(text)}}); err != nil {
			t.Fatal(err)
		}
		m, err := both.Recv()
		if err != nil || string(m.Payload.Body) != text {
			t.Fatalf("got %v, %v", m, err)
		}
	}
	_ = both.CloseSend()
	if _, err := both.Recv(); err != io.EOF {
		t.Errorf("the call ended with %v", err)
	}
}

// A session that the origin opens is sealed at the relay: neither the agent nor
// its pod has the cookie, and the next call carries it.
func TestSealed(t *testing.T) {
	g := start(t, nil)
	const session = "s3ss10n-8f2d7c6b5a4e"
	g.handle(func(w http.ResponseWriter, r *http.Request) {
		if c, err := r.Cookie("session"); err == nil && c.Value == session {
			_, _ = io.WriteString(w, "welcome back")
			return
		}
		http.SetCookie(w, &http.Cookie{Name: "session", Value: session, Path: "/", Secure: true, HttpOnly: true})
	})
	a := g.get("https://api.model.test/")
	cookie, _, _ := strings.Cut(a.header.Get("Set-Cookie"), ";")
	if cookie == "" || strings.Contains(cookie, session) {
		t.Fatalf("the agent got %q", a.header.Get("Set-Cookie"))
	}
	if a := g.get("https://api.model.test/", "Cookie", cookie); a.body != "welcome back" {
		t.Errorf("with the handle: %d %q", a.status, a.body)
	}
	if a := g.get("https://api.model.test/", "Cookie", "session=attache-sealed-00000000000000000000000000000000"); a.body != "" {
		t.Errorf("with another's handle: %d %q", a.status, a.body)
	}
}
