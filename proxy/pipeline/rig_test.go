package pipeline_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/task"
	"github.com/attache-dev/attache/injector"
	"github.com/attache-dev/attache/injector/guard"
	"github.com/attache-dev/attache/internal/placeholder"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/all"
	"github.com/attache-dev/attache/minting/mintingtest"
	"github.com/attache-dev/attache/proxy/destination"
	"github.com/attache-dev/attache/proxy/front"
	"github.com/attache-dev/attache/proxy/intercept"
	"github.com/attache-dev/attache/proxy/pipeline"
	"github.com/attache-dev/attache/proxy/upstream"
)

// apiKey is the vendor key that only Attaché holds.
const apiKey = "vendor-key-5f1d0c1b9a7e4c33"

// lockedBuffer collects log lines of many goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// issuer is a small authorization server behind TLS.
type issuer struct {
	mu      sync.Mutex
	tokens  []string
	revoked []string
	answer  func(w http.ResponseWriter, r *http.Request) bool // true: answered
	calls   int
	dpop    bool
}

func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/revoke" {
		_ = r.ParseForm()
		i.mu.Lock()
		i.revoked = append(i.revoked, r.PostForm.Get("token"))
		i.mu.Unlock()
		return
	}
	i.mu.Lock()
	i.calls++
	answer := i.answer
	i.mu.Unlock()
	if answer != nil && answer(w, r) {
		return
	}
	token := "tok-" + rand.Text() + rand.Text()
	i.mu.Lock()
	i.tokens = append(i.tokens, token)
	kind := "Bearer"
	if i.dpop {
		kind = "DPoP"
	}
	i.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_, _ = fmt.Fprintf(w, `{"access_token":%q,"token_type":%q,"expires_in":300}`, token, kind)
}

func (i *issuer) minted() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]string(nil), i.tokens...)
}

func (i *issuer) ended() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]string(nil), i.revoked...)
}

func (i *issuer) asked() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.calls
}

// rig is the whole data path in one process, with a real origin, a real token
// endpoint and a real spool.
type rig struct {
	*pipeline.Pipeline
	t        *testing.T
	workload *identity.Workload
	caller   atomic.Pointer[identity.Workload] // if another one calls
	as       *issuer
	source   *mintingtest.Source
	spool    *audit.Spool
	spoolDir string
	cache    *minting.Cache
	tasks    *task.Store
	vault    *guard.Vault
	holders  *placeholder.Set
	front    *front.Front
	proxy    string // address
	base     string // URL of a base-URL door for api.test
	roots    *x509.CertPool
	logs     *lockedBuffer
	refused  atomic.Bool // the attestor's answer
	requests atomic.Int64
	handler  atomic.Pointer[http.HandlerFunc]
	dials    atomic.Int64
	secure   string // address of the TLS origin
	plain    string // address of the cleartext origin
	caPEM    string // of the origin
	kinds    sync.Map
	pool     *upstream.Pool
	skip     int // records that a test has done with
}

// settings change a rig before it starts.
type settings struct {
	rules     string // YAML, below rules:
	provider  string // YAML, further fields of provider tok's spec, two spaces deep
	oauth2    string // YAML, further fields of its oauth2
	config    string // YAML of an AttacheConfig's spec
	audit     func(*audit.Options)
	change    func(*api.Bundle)
	attester  identity.Attestor
	transport func(*pipeline.Config)
	documents string                    // YAML, further documents; {{SECURE}} and {{CA}} are the TLS origin's
	minters   map[string]minting.Minter // in place of a provider's own
	source    *mintingtest.Source       // of identity; nil: one of the rig's own
}

const defaultRules = `
  - {name: api, hosts: ["*.test"], action: allow, credential: {provider: tok}}
  - {name: denied, hosts: ["*.test"], paths: ["/denied/**"], action: deny, reason: "ask #platform"}
  - {name: grpc-denied, hosts: ["*.test"], paths: ["/grpc.testing.UnimplementedService/**"], action: deny, reason: "ask #platform"}
  - {name: raw, hosts: ["raw.test"], action: allow, rawPaths: true, credential: {provider: tok}}
  - {name: key, hosts: ["key.test"], action: allow, credential: {provider: key}}
  - {name: open, hosts: ["open.test", "h1open.test"], action: allow}
  - {name: pass, hosts: ["pass.test"], action: passthrough}
  - {name: short, hosts: ["short.test"], action: allow, maxStream: 300ms, credential: {provider: tok}}
  - {name: local, hosts: ["attache.internal"], action: allow, openTask: true}
  - {name: nowhere, hosts: ["localhost", "nowhere.invalid"], action: allow}
  - {name: addresses, hosts: ["169.254.169.254", "127.0.0.1"], ports: [80, 443, {{PLAIN}}], action: allow}
  - {name: echo, hosts: ["*.test"], paths: ["/echo-risk"], action: allow, echoRisk: true, credential: {provider: tok}}
`

func (r *rig) documents(s settings, asURL, asPEM, keyFile string) string {
	rules := s.rules
	if rules == "" {
		rules = defaultRules
	}
	_, port, _ := net.SplitHostPort(r.plain)
	rules = strings.ReplaceAll(rules, "{{PLAIN}}", port)
	as, _ := url.Parse(asURL)
	dest := fmt.Sprintf(`{host: "*.test", addresses: [%q], caBundle: %q, onlyCA: true}`, r.secure, r.caPEM)
	return fmt.Sprintf(`apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: tok}
spec:
  destinations:
  - %s
  oauth2:
    tokenEndpoint: https://as.example%s/token
    revocationEndpoint: https://as.example%s/revoke
    addresses: [%q]
    caBundle: %q
    grant: clientCredentials
    assertionAudience: https://as.example
    timeout: 1s
%s%s
---
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: key}
spec:
  destinations:
  - %s
  apiKey: {file: %q}
  inject: {as: header, name: X-Api-Key}
  placeholders: [{env: VENDOR_API_KEY, prefix: sk-}]
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: p}
spec:
  destinations:
  - %s
  - {host: "plain.test", scheme: http, addresses: [%q]}
  rules:
%s
---
apiVersion: attache.dev/v1alpha1
kind: AttacheConfig
metadata: {name: c}
spec:
  upstream: {parentProxy: none}
%s
`, dest, ":"+as.Port(), ":"+as.Port(), as.Host, asPEM, s.oauth2, s.provider, dest, keyFile, dest, r.plain, strings.Trim(rules, "\n"), s.config) +
		strings.NewReplacer("{{SECURE}}", strconv.Quote(r.secure), "{{PLAIN}}", strconv.Quote(r.plain), "{{CA}}", strconv.Quote(r.caPEM)).Replace(s.documents)
}

func newRig(t *testing.T, s settings) *rig {
	t.Helper()
	r := &rig{t: t, workload: mintingtest.Workload(), as: &issuer{}, logs: &lockedBuffer{}, source: s.source}
	if r.source == nil {
		r.source = mintingtest.NewSource(t)
	}
	log := slog.New(slog.NewJSONHandler(r.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	r.origin(t)
	asURL, asPEM := r.issuer(t)
	keyFile := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(keyFile, []byte(apiKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := api.Parse("rig.yaml", []byte(r.documents(s, asURL, asPEM, keyFile)))
	if err != nil {
		t.Fatal(err)
	}
	if s.change != nil {
		s.change(b)
	}
	spec := b.Config.Spec
	r.spoolDir = filepath.Join(t.TempDir(), "spool")
	opts := audit.FromConfig(spec.Audit)
	opts.Dir = r.spoolDir
	opts.Logger = log
	if s.audit != nil {
		s.audit(&opts)
	}
	if r.spool, err = audit.Open(opts); err != nil {
		t.Fatal(err)
	}
	r.pool, err = upstream.New(upstream.Config{Limits: spec.Limits, Upstream: spec.Upstream, Dialed: func(destination.Destination) { r.dials.Add(1) }})
	if err != nil {
		t.Fatal(err)
	}
	pool := r.pool
	var specs []placeholder.Spec
	for _, p := range b.Providers {
		for _, ph := range p.Spec.Placeholders {
			specs = append(specs, placeholder.Spec{Env: ph.Env, Prefix: ph.Prefix, Provider: p.Metadata.Name})
		}
	}
	if r.holders, err = placeholder.New(specs); err != nil {
		t.Fatal(err)
	}
	minters := map[string]minting.Minter{}
	var g minting.Guard
	for _, p := range b.Providers {
		if m := s.minters[p.Metadata.Name]; m != nil {
			minters[p.Metadata.Name] = m
			continue
		}
		m, err := all.Guarded(p, minting.Deps{Client: pool.Client, Logger: log}, &g)
		if err != nil {
			t.Fatal(err)
		}
		minters[p.Metadata.Name] = m
	}
	event := func(name string, fields map[string]string) { _ = r.spool.Event(name, fields) }
	r.cache = minting.NewCache(minting.CacheOptions{Minter: minting.NewRouter(minters), OnEvent: event, Logger: log})
	if r.tasks, err = task.NewStore(task.StoreConfig{OnEvent: event}); err != nil {
		t.Fatal(err)
	}
	proofs := injector.NewProofs(time.Now)
	r.vault = guard.NewVault(256, time.Hour, time.Now)
	cfg := pipeline.Config{
		Tasks: r.tasks, Minter: r.cache, Source: r.source, Upstream: pool, Spool: r.spool, Vault: r.vault, Placeholders: r.holders,
		Proofs: proofs, Revoke: r.revoke, Limits: spec.Limits, Log: log, Metrics: pipeline.NewMetrics(prometheus.NewRegistry()), Now: time.Now,
		OpenTask: func(ctx context.Context, c identity.Caller, purpose string, ttl time.Duration) (*identity.Task, error) {
			return r.tasks.Open(ctx, task.OpenRequest{Workload: c.Workload, RunID: c.Workload.RunID, Purpose: purpose, OpenedBy: task.ByAgent, TTL: ttl})
		},
		CloseTask: func(id string, w *identity.Workload) error {
			if _, err := r.tasks.Lookup(id, w); err != nil {
				return err
			}
			return r.tasks.Close(id, "closed by the agent")
		},
	}
	if s.transport != nil {
		s.transport(&cfg)
	}
	r.Pipeline = pipeline.New(cfg)
	r.tasks.OnClose(func(tk *identity.Task, _ string) {
		r.EndTask(tk.ID)
		r.cache.RevokeWhere(context.Background(), func(q minting.Request, _ minting.Credential) bool { return q.TaskID == tk.ID })
	})
	state, routes, err := pipeline.NewState(b, proofs)
	if err != nil {
		t.Fatal(err)
	}
	pool.SetRoutes(routes)
	r.SetState(state)
	r.open(t, s, b, pool, log)
	return r
}

func (r *rig) revoke(handle string) {
	r.cache.RevokeWhere(context.Background(), func(_ minting.Request, c minting.Credential) bool {
		if c.Handle != handle {
			return false
		}
		go r.EndCredential(handle)
		return true
	})
}

type attest func(net.Conn) (identity.Caller, error)

func (a attest) Attest(_ context.Context, c net.Conn) (identity.Caller, error) { return a(c) }

// open starts the front doors and arranges for the end.
func (r *rig) open(t *testing.T, s settings, b *api.Bundle, pool *upstream.Pool, log *slog.Logger) {
	t.Helper()
	ca, err := intercept.New(nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	r.roots = x509.NewCertPool()
	r.roots.AppendCertsFromPEM(ca.PEM())
	at := s.attester
	if at == nil {
		at = attest(func(net.Conn) (identity.Caller, error) {
			if r.refused.Load() {
				return identity.Caller{}, fmt.Errorf("%w: a stranger", identity.ErrUnattested)
			}
			w := r.caller.Load()
			if w == nil {
				w = r.workload
			}
			return identity.Caller{Workload: w, Process: identity.Process{PID: 42, UID: 1000, Exe: "/bin/agent", Digest: "sha256:00"}}, nil
		})
	}
	r.front = &front.Front{Attestor: at, CA: ca, Handler: r.Pipeline, Passthrough: r.Passthrough, Tunnel: r.Tunnel,
		Limits: b.Config.Spec.Limits, Log: log, Refused: func(k string) { r.kinds.Store(k, true) }}
	ln, base := listen(t), listen(t)
	r.proxy, r.base = ln.Addr().String(), front.LocalURL(base, false)
	pool.SetOwn([]net.Addr{ln.Addr(), base.Addr()})
	ctx, stop := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() { _ = r.front.ServeProxy(ctx, ln) })
	dest, err := destination.Parse("https", "api.test:443", 443)
	if err != nil {
		t.Fatal(err)
	}
	served.Go(func() { _ = r.front.ServeBaseURL(ctx, base, dest, nil) })
	t.Cleanup(func() {
		end, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = r.front.Shutdown(end)
		stop()
		served.Wait()
		r.tasks.Shutdown()
		_ = r.cache.Close(end)
		pool.Close()
		_ = r.spool.Close()
		r.searchForSecrets(t)
	})
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// origin starts the upstream: any name below .test with TLS; names that begin
// with h1 speak HTTP/1.1 only.
func (r *rig) origin(t *testing.T) {
	t.Helper()
	ca, err := intercept.New(nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	r.caPEM = string(ca.PEM())
	r.serve(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	cfg := &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		c, err := ca.Config(h.ServerName)
		if err != nil {
			return nil, err
		}
		c = c.Clone()
		c.NextProtos = []string{"h2", "http/1.1"}
		if strings.HasPrefix(h.ServerName, "h1") {
			c.NextProtos = []string{"http/1.1"}
		}
		return c, nil
	}, NextProtos: []string{"h2", "http/1.1"}}
	h := http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.requests.Add(1)
		(*r.handler.Load())(w, q)
	})
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	for _, secure := range []bool{true, false} {
		ln := listen(t)
		srv := &http.Server{Handler: h, ErrorLog: quiet, DisableGeneralOptionsHandler: true}
		t.Cleanup(func() { _ = srv.Close() })
		if secure {
			srv.TLSConfig = cfg
			r.secure = ln.Addr().String()
			go func() { _ = srv.ServeTLS(ln, "", "") }()
			continue
		}
		r.plain = ln.Addr().String()
		go func() { _ = srv.Serve(ln) }()
	}
}

// serve sets what the origin does.
func (r *rig) serve(h http.HandlerFunc) { r.handler.Store(&h) }

func (r *rig) issuer(t *testing.T) (base, caPEM string) {
	t.Helper()
	ca, err := intercept.New(nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(r.as)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	if srv.TLS, err = ca.Config("as.example"); err != nil {
		t.Fatal(err)
	}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv.URL, string(ca.PEM())
}

// searchForSecrets looks for every secret of the test in what the rig wrote.
func (r *rig) searchForSecrets(t *testing.T) {
	t.Helper()
	wrote := r.wrote(t)
	for _, s := range r.secrets() {
		if strings.Contains(wrote, s) {
			t.Errorf("the secret %.8s… stands in a log or record", s)
		}
	}
}

func (r *rig) secrets() []string {
	s := append(r.as.minted(), apiKey)
	return append(s, r.source.Signed()...)
}

// wrote is every log line and every byte of the spool.
func (r *rig) wrote(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString(r.logs.String())
	err := filepath.WalkDir(r.spoolDir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(p)
		b.Write(data)
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	return b.String()
}

// client is an agent's HTTP client behind the proxy.
func (r *rig) client(h2 bool) *http.Client {
	tr := &http.Transport{
		Proxy:             http.ProxyURL(&url.URL{Scheme: "http", Host: r.proxy}),
		TLSClientConfig:   &tls.Config{RootCAs: r.roots},
		ForceAttemptHTTP2: h2, DisableCompression: true,
	}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// result is an answer, read.
type result struct {
	*http.Response
	body string
	err  error // of the call, or of reading the body
}

func (r *rig) do(c *http.Client, method, u string, body io.Reader, header ...string) result {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, u, body)
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header[header[i]] = append(req.Header[header[i]], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		return result{&http.Response{}, "", err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return result{resp, string(b), err}
}

func (r *rig) get(u string, header ...string) result {
	r.t.Helper()
	return r.do(r.client(false), http.MethodGet, u, nil, header...)
}

// records waits for n finished requests and returns them in order. It fails if
// there are more, or one twice.
func (r *rig) records(n int) []audit.Record {
	r.t.Helper()
	var got []audit.Record
	for end := time.Now().Add(5 * time.Second); ; {
		got = nil
		if err := audit.Read(r.spoolDir, audit.Filter{}, func(rec audit.Record) bool {
			if rec.Request != nil {
				got = append(got, rec)
			}
			return true
		}); err != nil {
			r.t.Fatal(err)
		}
		done := 0
		for _, rec := range got {
			if rec.Type == audit.TypeEnd {
				done++
			}
		}
		got = got[min(r.skip, len(got)):]
		done -= r.skip
		if done >= n && len(got) == done || time.Now().After(end) {
			break
		}
		<-time.After(5 * time.Millisecond)
	}
	if len(got) != n {
		r.t.Fatalf("got %d records, want %d: %+v\n%s", len(got), n, got, r.logs)
	}
	seen := map[string]bool{}
	for _, rec := range got {
		if rec.Type != audit.TypeEnd || rec.Result == nil || seen[rec.ID] {
			r.t.Fatalf("record %s is not finished once: %+v", rec.ID, rec)
		}
		seen[rec.ID] = true
	}
	return got
}

// record is records(1).
func (r *rig) record() audit.Record {
	r.t.Helper()
	return r.records(1)[0]
}

// refusal checks that an answer is a refusal of ours with this code, recorded
// exactly once, and that nothing reached the origin.
func (r *rig) refusal(got result, status int, code, outcome string) audit.Record {
	r.t.Helper()
	if got.StatusCode != status || got.Header.Get("Attache-Error") != code || !strings.Contains(got.body, code) {
		r.t.Errorf("got %d %q, want %d %q: %s", got.StatusCode, got.Header.Get("Attache-Error"), status, code, got.body)
	}
	rec := r.record()
	if rec.ID != got.Header.Get("Attache-Record") || rec.Decision.Code != code || rec.Result.Outcome != outcome || rec.Result.Status != status || rec.Result.ErrorKind != code {
		r.t.Errorf("record: got %+v %+v, want code %s outcome %s", rec.Decision, rec.Result, code, outcome)
	}
	if n := r.requests.Load(); n != 0 {
		r.t.Errorf("the origin got %d requests", n)
	}
	return rec
}

// eventually waits for what another goroutine is about to do.
func (r *rig) eventually(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		if ok() {
			return
		}
		<-time.After(2 * time.Millisecond)
	}
	r.t.Fatalf("never saw: %s\n%s", what, r.logs)
}

// connect opens a CONNECT tunnel and TLS in it.
func (r *rig) connect(authority string, protos ...string) *tls.Conn {
	r.t.Helper()
	c := r.tunnel(authority)
	host, _, _ := net.SplitHostPort(authority)
	tc := tls.Client(c, &tls.Config{RootCAs: r.roots, ServerName: host, NextProtos: protos})
	if err := tc.HandshakeContext(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	return tc
}

func (r *rig) tunnel(authority string) net.Conn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.proxy)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", authority, authority)
	want := "HTTP/1.1 200 Connection established\r\n\r\n"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		r.t.Fatalf("CONNECT: %q %v", got, err)
	}
	return c
}
