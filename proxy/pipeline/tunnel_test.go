package pipeline_test

import (
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

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/task"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/proxy"
	"github.com/attache-dev/attache/proxy/destination"
	"github.com/attache-dev/attache/proxy/pipeline"
)

func echoSocket(t *testing.T) http.HandlerFunc {
	return func(w http.ResponseWriter, q *http.Request) {
		if !strings.HasPrefix(q.Header.Get("Authorization"), "Bearer tok-") {
			t.Errorf("no credential: %v", q.Header)
		}
		c, err := websocket.Accept(w, q, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.CloseNow()
		for {
			kind, b, err := c.Read(q.Context())
			if err != nil {
				return
			}
			if string(b) == "leak" {
				b = []byte(q.Header.Get("Authorization"))
			}
			_ = c.Write(q.Context(), kind, b)
		}
	}
}

func TestWebSocket(t *testing.T) {
	r := newRig(t, settings{})
	r.serve(echoSocket(t))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, resp, err := websocket.Dial(ctx, "wss://h1.test/chat", &websocket.DialOptions{HTTPClient: r.client(false)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	for _, m := range []string{"hello", "ends as the token begins: t", strings.Repeat("x", 20000)} {
		_ = c.Write(ctx, websocket.MessageText, []byte(m))
		if _, b, err := c.Read(ctx); err != nil || string(b) != m {
			t.Fatalf("got %q %v", b, err)
		}
	}
	_ = c.Write(ctx, websocket.MessageText, []byte("leak"))
	if _, b, err := c.Read(ctx); err != nil || strings.Contains(string(b), "tok-") || !strings.Contains(string(b), "***") {
		t.Errorf("got %q %v", b, err)
	}
	if err := c.Close(websocket.StatusNormalClosure, "bye"); err != nil {
		t.Errorf("close: %v", err)
	}
	rec := r.record()
	if rec.ID != resp.Header.Get("Attache-Record") || rec.Request.Protocol != policy.WebSocket || rec.Result.Outcome != audit.OutcomeOK ||
		rec.Result.Status != 101 || rec.Result.BytesUp < 20000 || rec.Result.BytesDown < 20000 || rec.Result.Masked != 1 {
		t.Errorf("record %+v %+v", rec.Request, rec.Result)
	}
}

// Invariant 6: revocation cuts an upgraded connection.
func TestRevocationCutsWebSockets(t *testing.T) {
	r := newRig(t, settings{})
	r.serve(echoSocket(t))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, "wss://h1.test/chat", &websocket.DialOptions{HTTPClient: r.client(false)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	r.revokeAll()
	if _, _, err := c.Read(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("got %v", err)
	}
	if rec := r.record(); rec.Result.Outcome != audit.OutcomeRevoked {
		t.Errorf("record %+v", rec.Result)
	}
}

// A half-closed peer still gets its answer.
func TestHalfCloseThroughAnUpgrade(t *testing.T) {
	r := newRig(t, settings{})
	r.serve(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Connection", "Upgrade")
		w.WriteHeader(http.StatusSwitchingProtocols)
		c, b, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		all, err := io.ReadAll(b)
		_, _ = fmt.Fprintf(c, "got %d %v", len(all), err)
	})
	c := r.connect("h1.test:443", "http/1.1")
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: h1.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nahead of the 101, ")
	_, _ = io.WriteString(c, "and after")
	_ = c.CloseWrite()
	b, err := io.ReadAll(c)
	if err != nil || !strings.HasSuffix(string(b), "got 27 <nil>") {
		t.Errorf("got %q %v", b, err)
	}
}

// Passthrough: TLS end to end, recorded, counted, cut.
func TestPassthroughTunnel(t *testing.T) {
	r := newRig(t, settings{})
	release := make(chan struct{})
	r.serve(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/wait" {
			_ = http.NewResponseController(w).Flush()
			<-q.Context().Done()
			close(release)
			return
		}
		_, _ = io.WriteString(w, "end to end "+q.Header.Get("Authorization"))
	})
	c := r.client(false)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(r.caPEM)) // the origin's own certificate
	c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: roots}
	if got := r.do(c, http.MethodGet, "https://pass.test/", nil, "Authorization", "own"); got.body != "end to end own" {
		t.Fatalf("got %d %s %v", got.StatusCode, got.body, got.err)
	}
	c.CloseIdleConnections()
	rec := r.record()
	if rec.Request.Host != "pass.test" || rec.Request.Method != "CONNECT" || rec.Request.Address != r.secure || rec.Decision.Verdict != "passthrough" ||
		rec.Result.Outcome != audit.OutcomeOK || rec.Result.BytesUp < 300 || rec.Result.BytesDown < 300 || rec.Credential != nil || rec.Workload == nil {
		t.Errorf("record %+v %+v %+v", rec.Request, rec.Decision, rec.Result)
	}
	resp, err := c.Get("https://pass.test/wait")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	start := time.Now()
	r.EndRun(r.workload.RunID)
	if _, err := io.ReadAll(resp.Body); err == nil || time.Since(start) > 3*time.Second {
		t.Errorf("the tunnel was not cut: %v after %v", err, time.Since(start))
	}
	<-release
	if rec := r.records(2)[1]; rec.Result.Outcome != audit.OutcomeRevoked {
		t.Errorf("record %+v", rec.Result)
	}
}

// A policy that changes between question and tunnel closes the tunnel.
func TestTunnelAsksPolicyAgain(t *testing.T) {
	r := newRig(t, settings{})
	dest, err := destination.Parse("https", "pass.test:443", 443)
	if err != nil {
		t.Fatal(err)
	}
	conn := &proxy.Conn{Dest: dest, Door: proxy.DoorConnect}
	conn.Caller.Workload = r.workload
	if !r.Passthrough(t.Context(), conn) {
		t.Fatal("no passthrough")
	}
	r.SetState(&pipeline.State{})
	if err := r.Tunnel(t.Context(), conn, nil); err == nil || r.dials.Load() != 0 {
		t.Errorf("got %v after %d dials", err, r.dials.Load())
	}
	if rec := r.record(); rec.Result.Outcome != audit.OutcomeDenied || rec.Decision.Verdict != "deny" {
		t.Errorf("record %+v %+v", rec.Decision, rec.Result)
	}
}

// endsAtOnce is a task store whose current task ends right after it was
// looked up.
type endsAtOnce struct {
	pipeline.Tasks
	end func(id string)
}

func (e endsAtOnce) Current(w *identity.Workload) *identity.Task {
	t := e.Tasks.Current(w)
	if t != nil {
		e.end(t.ID)
	}
	return t
}

// A task that ends before its tunnel could be cut opens none.
func TestTunnelOfAnEndedTask(t *testing.T) {
	var r *rig
	r = newRig(t, settings{transport: func(c *pipeline.Config) {
		c.Tasks = endsAtOnce{c.Tasks, func(id string) { _ = r.tasks.Close(id, "test") }}
	}})
	if _, err := r.tasks.Open(t.Context(), task.OpenRequest{Workload: r.workload, Purpose: "test", OpenedBy: task.ByLauncher}); err != nil {
		t.Fatal(err)
	}
	dest, err := destination.Parse("https", "pass.test:443", 443)
	if err != nil {
		t.Fatal(err)
	}
	conn := &proxy.Conn{Dest: dest, Door: proxy.DoorConnect}
	conn.Caller.Workload = r.workload
	agent, far := net.Pipe()
	_ = far.Close()
	defer agent.Close()
	if err := r.Tunnel(t.Context(), conn, agent); err == nil || r.dials.Load() != 0 {
		t.Errorf("got %v after %d dials", err, r.dials.Load())
	}
	if rec := r.record(); rec.Task == nil || rec.Result.Outcome == audit.OutcomeOK || rec.Result.ErrorKind != pipeline.CodeRevoked {
		t.Errorf("record %+v %+v %+v", rec.Task, rec.Decision, rec.Result)
	}
}

// A tunnel counts as a request: passthrough is no way around the limit.
func TestTunnelsAreLimited(t *testing.T) {
	r := newRig(t, settings{config: "  limits: {maxRequestsPerSec: 2}"})
	c := r.client(false)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(r.caPEM))
	c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: roots}
	c.Transport.(*http.Transport).DisableKeepAlives = true
	refused := 0
	for range 8 {
		if got := r.do(c, http.MethodGet, "https://pass.test/", nil); got.err != nil {
			refused++
		}
	}
	if refused == 0 {
		t.Fatal("eight tunnels at once were not limited")
	}
	if n := r.dials.Load(); n != int64(8-refused) {
		t.Errorf("%d dials of %d tunnels", n, 8-refused)
	}
	limited := 0
	for _, rec := range r.records(8) {
		if rec.Result.ErrorKind == pipeline.CodeRateLimited {
			limited++
			if rec.Result.Outcome != audit.OutcomeDenied || rec.Decision.Verdict != "deny" || rec.Decision.Code != pipeline.CodeRateLimited {
				t.Errorf("record %+v %+v", rec.Decision, rec.Result)
			}
		}
	}
	if limited != refused {
		t.Errorf("%d refused, %d recorded so", refused, limited)
	}
}

// A tunnel whose origin cannot be reached is recorded as such.
func TestTunnelFailures(t *testing.T) {
	r := newRig(t, settings{rules: `
  - {name: pass, hosts: ["nowhere.invalid", "localhost"], action: passthrough}
`})
	for i, host := range []string{"nowhere.invalid", "localhost"} {
		c := r.tunnel(host + ":443")
		err := tls.Client(c, &tls.Config{ServerName: host, RootCAs: r.roots}).HandshakeContext(t.Context())
		if err == nil {
			t.Error("a handshake with nobody")
		}
		if rec := r.records(i + 1)[i]; rec.Result.Outcome != audit.OutcomeError || rec.Result.ErrorKind == "" {
			t.Errorf("record %+v", rec.Result)
		}
	}
}

// Rule 2: only the protocol that was asked for is switched to.
func TestSwitchToAnotherProtocol(t *testing.T) {
	r := newRig(t, settings{})
	r.serve(func(w http.ResponseWriter, _ *http.Request) {
		c, b, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_, _ = b.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
		_ = b.Flush()
	})
	got := r.get("https://h1.test/", "Connection", "Upgrade", "Upgrade", "websocket")
	if got.StatusCode != http.StatusBadGateway || got.Header.Get("Attache-Error") != pipeline.CodeProtocol {
		t.Errorf("got %d %s %v", got.StatusCode, got.body, got.err)
	}
	if rec := r.record(); rec.Result.Outcome != audit.OutcomeError {
		t.Errorf("record %+v", rec.Result)
	}
}
