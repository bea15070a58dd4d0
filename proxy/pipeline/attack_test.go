package pipeline_test

import (
	"bufio"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/task"
	"github.com/attache-dev/attache/injector"
	"github.com/attache-dev/attache/injector/guard"
	"github.com/attache-dev/attache/internal/placeholder"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/all"
	"github.com/attache-dev/attache/proxy"
	"github.com/attache-dev/attache/proxy/destination"
	"github.com/attache-dev/attache/proxy/http1"
	"github.com/attache-dev/attache/proxy/pipeline"
	"github.com/attache-dev/attache/proxy/upstream"
)

// attackKey is the secret of the provider in [attackConfig].
const attackKey = "sk-attack-0123456789abcdefghij"

// attackConfig has one provider and rules with conditions that attackers would
// like to evade. HTTPS and HTTP are the origin's addresses.
const attackConfig = `
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: api}
spec:
  destinations: [{host: api.test, addresses: ["HTTPS"], caFile: ca.pem}]
  apiKey: {file: key}
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: p}
spec:
  destinations: [{host: api.test, port: 80, scheme: http, addresses: ["HTTP"]}]
  rules:
  - {name: dry, hosts: [api.test], ports: [443], paths: ["/danger/**"], headers: [{name: X-Dry-Run, exact: "true"}], action: allow, credential: {provider: api}}
  - {name: open, hosts: [api.test], ports: [443], paths: ["/open/**"], action: allow, credential: {provider: api}}
  - {name: clear, hosts: [api.test], ports: [80], paths: ["/open/**"], action: allow}
`

// attackRig is a pipeline before a real origin, behind the real HTTP/1.1 codec.
type attackRig struct {
	t    *testing.T
	pipe *pipeline.Pipeline
}

func newAttackRig(t *testing.T, origin http.Handler) *attackRig {
	t.Helper()
	secure, plain := httptest.NewUnstartedServer(origin), httptest.NewServer(origin)
	secure.TLS = nil
	secure.StartTLS()
	t.Cleanup(secure.Close)
	t.Cleanup(plain.Close)

	dir := t.TempDir()
	// The test server's certificate is for example.com.
	config := strings.NewReplacer("HTTPS", secure.Listener.Addr().String(), "HTTP", plain.Listener.Addr().String(),
		"caFile: ca.pem", "caFile: ca.pem, serverName: example.com").Replace(attackConfig)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})
	for name, text := range map[string]string{"a.yaml": config, "key": attackKey, "ca.pem": string(ca)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := api.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	limits := b.Config.Spec.Limits
	up, err := upstream.New(upstream.Config{Limits: limits, Upstream: b.Config.Spec.Upstream})
	if err != nil {
		t.Fatal(err)
	}
	spool, err := audit.Open(audit.Options{Dir: filepath.Join(dir, "spool")})
	if err != nil {
		t.Fatal(err)
	}
	minter, err := all.New(b.Providers[0], minting.Deps{Client: up.Client})
	if err != nil {
		t.Fatal(err)
	}
	cache := minting.NewCache(minting.CacheOptions{Minter: minter})
	tasks, err := task.NewStore(task.StoreConfig{})
	if err != nil {
		t.Fatal(err)
	}
	holders, err := placeholder.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	proofs := injector.NewProofs(time.Now)
	state, routes, err := pipeline.NewState(b, proofs)
	if err != nil {
		t.Fatal(err)
	}
	up.SetRoutes(routes)
	pipe := pipeline.New(pipeline.Config{
		Tasks: tasks, Minter: cache, Upstream: up, Spool: spool, Vault: guard.NewVault(64, time.Hour, time.Now),
		Placeholders: holders, Proofs: proofs, Limits: limits, Log: slog.New(slog.DiscardHandler),
		Metrics: pipeline.NewMetrics(prometheus.NewRegistry()), Now: time.Now,
	})
	pipe.SetState(state)
	t.Cleanup(func() {
		tasks.Shutdown()
		_ = cache.Close(context.Background())
		up.Close()
		if err := spool.Close(); err != nil {
			t.Error(err)
		}
	})
	return &attackRig{t: t, pipe: pipe}
}

// ask sends raw bytes to the pipeline as a client of scheme://api.test and
// returns everything that comes back until the connection closes.
func (r *attackRig) ask(scheme, raw string) string {
	r.t.Helper()
	port := map[string]int{"https": 443, "http": 80}[scheme]
	dest, err := destination.Parse(scheme, net.JoinHostPort("api.test", strconv.Itoa(port)), port)
	if err != nil {
		r.t.Fatal(err)
	}
	conn := &proxy.Conn{Door: proxy.DoorConnect, Dest: dest, Caller: identity.Caller{Workload: &identity.Workload{
		ID: spiffeid.RequireFromString("spiffe://attache.local/agent/test"), RunID: "run"}}}
	server, client := r.connection()
	codec := &http1.Server{Log: slog.New(slog.DiscardHandler), Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		q.URL.Scheme, q.URL.Host = scheme, dest.Authority()
		r.pipe.ServeHTTP(w, q)
	})}
	go func() {
		defer server.Close()
		codec.ServeConn(proxy.WithConn(r.t.Context(), conn), server)
	}()
	defer client.Close()
	_ = client.SetDeadline(time.Now().Add(10 * time.Second))
	go func() { _, _ = io.WriteString(client, raw) }()
	var out strings.Builder
	for buf := make([]byte, 4096); ; {
		n, err := client.Read(buf)
		out.Write(buf[:n])
		if err != nil { // a connection that is cut is an answer too
			return out.String()
		}
		if strings.Contains(out.String(), "\ngot hello") { // on a switched connection nothing more is said
			_ = client.CloseWrite()
		}
	}
}

// connection returns the two ends of a TCP connection.
func (r *attackRig) connection() (server net.Conn, client *net.TCPConn) {
	r.t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		r.t.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.DialTCP("tcp", nil, ln.Addr().(*net.TCPAddr)); err != nil {
		r.t.Fatal(err)
	}
	if server, err = ln.Accept(); err != nil {
		r.t.Fatal(err)
	}
	return server, client
}

func get(path string, header ...string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: api.test\r\n" + strings.Join(header, "\r\n") + "\r\n\r\n"
}

// TestConditionOnHeaderThatDoesNotTravel: policy must see the header fields
// that the origin sees, not those that Connection takes off (rule 3).
func TestConditionOnHeaderThatDoesNotTravel(t *testing.T) {
	rig := newAttackRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "dry=%q", r.Header.Get("X-Dry-Run"))
	}))
	tests := []struct{ name, request, want string }{
		{"travels", get("/danger/x", "X-Dry-Run: true", "Connection: close"), `dry="true"`},
		{"missing", get("/danger/x", "Connection: close"), "403 Forbidden"},
		{"named by Connection", get("/danger/x", "X-Dry-Run: true", "Connection: close, x-dry-run"), "403 Forbidden"},
		{"named by Proxy-Connection", get("/danger/x", "X-Dry-Run: true", "Proxy-Connection: X-Dry-Run", "Connection: close"), "403 Forbidden"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := rig.ask("https", tt.request); !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// switching answers 101 to every upgrade, repeats the credential and a session
// cookie, and says what it got on the switched connection.
func switching(w http.ResponseWriter, r *http.Request) {
	asked := r.Header.Get("Upgrade")
	if asked == "" {
		_, _ = io.WriteString(w, "no upgrade")
		return
	}
	c, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	auth := r.Header.Get("Authorization")
	fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\nX-Echo: %s\r\nSet-Cookie: session=tell-nobody; HttpOnly\r\n\r\necho %s\n", asked, auth, auth)
	line, _ := buf.ReadString('\n')
	fmt.Fprintf(c, "got %s", line)
}

// TestUpgrade: only WebSocket is carried on. After h2c the agent could send
// requests that neither policy nor record sees. And what comes back is guarded.
func TestUpgrade(t *testing.T) {
	rig := newAttackRig(t, http.HandlerFunc(switching))
	for _, proto := range []string{"h2c", "HTTP/2.0", "TLS/1.2", "spdy/3.1", "websocket, h2c"} {
		got := rig.ask("https", get("/open/up", "Connection: Upgrade, HTTP2-Settings, close", "Upgrade: "+proto, "HTTP2-Settings: AAMAAABkAAQAAP__"))
		if !strings.Contains(got, "no upgrade") {
			t.Errorf("upgrade to %s: got %q", proto, got)
		}
	}
	got := rig.ask("https", get("/open/up", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")+"hello\n")
	if !strings.HasPrefix(got, "HTTP/1.1 101 ") || !strings.Contains(got, "got hello") {
		t.Errorf("websocket: got %q", got)
	}
	for _, secret := range []string{attackKey, "tell-nobody"} {
		if strings.Contains(got, secret) {
			t.Errorf("websocket: the agent reads %q in %q", secret, got)
		}
	}
}

// TestEarlyHints: informational answers are guarded like final ones (rules 6, 7).
func TestEarlyHints(t *testing.T) {
	rig := newAttackRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Link", "</style.css?access_token=tell-nobody-1>; rel=preload")
		h.Set("Set-Cookie", "session=tell-nobody-2; HttpOnly")
		h.Set("Authorization", "Bearer tell-nobody-3")
		h.Set("X-Echo", r.Header.Get("Authorization"))
		w.WriteHeader(http.StatusEarlyHints)
	}))
	got := rig.ask("https", get("/open/hints", "Connection: close"))
	hints, err := textproto.NewReader(bufio.NewReader(strings.NewReader(strings.TrimPrefix(got, "HTTP/1.1 103 Early Hints\r\n")))).ReadMIMEHeader()
	if err != nil || !strings.Contains(hints.Get("Link"), "style.css") {
		t.Fatalf("the hints did not arrive: %v in %q", err, got)
	}
	for _, secret := range []string{attackKey, "tell-nobody"} {
		if strings.Contains(got, secret) {
			t.Errorf("the agent reads %q in %q", secret, got)
		}
	}
}

// TestSealedValueStaysEncrypted: a handle that was sealed on https is not
// opened on http, where the value would travel in clear (invariant 5).
func TestSealedValueStaysEncrypted(t *testing.T) {
	rig := newAttackRig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/open/login" {
			http.SetCookie(w, &http.Cookie{Name: "session", Value: "tell-nobody", HttpOnly: true})
		}
		_, _ = io.WriteString(w, "cookie="+url.QueryEscape(r.Header.Get("Cookie")))
	}))
	handle := regexp.MustCompile(`session=attache-sealed-[0-9a-f]{32}`).FindString(rig.ask("https", get("/open/login", "Connection: close")))
	if handle == "" {
		t.Fatal("the cookie was not sealed")
	}
	if got := rig.ask("https", get("/open/x", "Cookie: "+handle, "Connection: close")); !strings.Contains(got, "cookie=session%3D*") {
		t.Errorf("encrypted: the origin did not get the cookie (masked in its echo): %q", got)
	}
	if got := rig.ask("http", get("/open/x", "Cookie: "+handle, "Connection: close")); !strings.Contains(got, "200 OK") || !strings.HasSuffix(got, "cookie=") {
		t.Errorf("in clear: got %q, want no cookie", got)
	}
}
