// Package upstream is what the clients of the compatibility matrix talk to:
// protected servers that verify each credential they are shown, and log each
// request with the record id that it carried.
//
// The token server is npm oidc-provider behind a tap that learns what it
// issues; tokens for APIs are JWTs checked against its key set, those for git
// are opaque and introspected. The two vendors of language models are stood in
// for by handlers that follow the vendors' own pages to the letter.
package upstream

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/identity/issuer"
	"github.com/attache-dev/attache/test/servers"
)

// Workload is the SPIFFE ID under which every client runs.
const Workload = "spiffe://attache.local/agent/compat"

// Names of the upstreams; certificates and policy use them.
const (
	APIHost        = "api.compat.example"
	MCPHost        = "mcp.compat.example"
	GitHost        = "git.compat.example"
	PyPIHost       = "pypi.compat.example"
	NPMHost        = "npm.compat.example"
	CratesHost     = "crates.compat.example"
	GRPCHost       = "grpc.compat.example"
	GRPCDeniedHost = "grpc-denied.compat.example"
	CanaryHost     = "canary.compat.example"
	idpHost        = "idp.compat.example"
	issuerHost     = "issuer.compat.example"

	// IssuerURL is the iss of the workload's own tokens.
	IssuerURL = "https://" + issuerHost
	// IDP is the token server's issuer.
	IDP = "https://" + idpHost

	scope            = "compat:use"
	resourceServerID = "resource-server"
)

// JWTHosts verify access tokens offline, each with itself as audience.
var JWTHosts = []string{APIHost, MCPHost, PyPIHost, NPMHost, CratesHost, GRPCHost,
	PlainName(APIHost), PlainName(MCPHost), PlainName(PyPIHost), PlainName(NPMHost), PlainName(CratesHost)}

// PlainName is the name under which the upstream called host also serves http
// without TLS: a name of its own, so that no provider of the https one covers
// it.
func PlainName(host string) string { return "plain-" + host }

// Set is all upstreams, running.
type Set struct {
	Log    Log
	Canary string // planted on purpose

	CA       string // PEM file of their authority
	Addr     string // all TLS hosts but gRPC, chosen by SNI and Host
	Plain    string // all hosts without TLS
	GRPC     string // GRPCHost
	SSHAgent string // socket with the key that signs the workload's tokens

	issuer           string
	introspection    string
	introspectSecret string
	client           *http.Client // knows all names
	signer           *issuer.Issuer
	keys             oidc.KeySet // of the token server
	workloadKeys     oidc.KeySet
	anthropicTokens  tokens
	openaiTokens     tokens
	dir              string
	stop             []func()
	wg               sync.WaitGroup
}

// Options say what to start and with which programs.
type Options struct {
	Dir        string // scratch; out of the clients' reach
	GRPCServer string // the program built from test/compat/servers/grpc
	MCPServer  string // the program built from test/compat/servers/mcp
}

// Start starts all upstreams. Close ends them.
func Start(ctx context.Context, o Options) (*Set, error) {
	s := &Set{dir: o.Dir, Canary: "canary-" + rand.Text(), introspectSecret: rand.Text(), issuer: IDP}
	err := s.start(ctx, o)
	if err != nil {
		s.Close()
	}
	return s, err
}

func (s *Set) start(ctx context.Context, o Options) error {
	names := []string{APIHost, MCPHost, GitHost, PyPIHost, NPMHost, CratesHost, GRPCHost, CanaryHost, idpHost, issuerHost, anthropicHost, openaiHost, openaiAuth}
	certs, err := newCertificates(s.dir, names)
	if err != nil {
		return err
	}
	s.CA = certs.CA
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.Addr = ln.Addr().String()
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		to := s.Addr
		if strings.HasSuffix(addr, ":80") {
			to = s.Plain
		}
		return (&net.Dialer{}).DialContext(ctx, network, to)
	}
	s.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DialContext: dial, TLSClientConfig: &tls.Config{RootCAs: certs.roots}}}
	if err := s.openIssuer(ctx); err != nil {
		return err
	}
	jwks, err := s.openTokenServer(ctx, certs)
	if err != nil {
		return err
	}
	git, err := s.git(ctx)
	if err != nil {
		return err
	}
	mcpAddr, _, err := s.program(ctx, o.MCPServer)
	if err != nil {
		return err
	}
	packages, err := newPackages()
	if err != nil {
		return err
	}
	bearer := func(h http.Handler) http.Handler { return s.Log.handler(s.protected(s.jwt, h)) }
	hosts := map[string]http.Handler{
		APIHost: bearer(s.api()), MCPHost: bearer(mcpServer(mcpAddr)),
		PyPIHost: bearer(packages.pypi()), NPMHost: bearer(packages.npm("https://" + NPMHost)), CratesHost: bearer(packages.crates("https://" + CratesHost)),
		GitHost:    s.Log.handler(s.protected(s.introspect, git)),
		CanaryHost: s.Log.handler(s.canary()),
		idpHost:    jwks, issuerHost: http.FileServer(http.Dir(filepath.Join(s.dir, "issuer"))),
		openaiHost: s.Log.handler(s.openai()), openaiAuth: exactly("/oauth/token", s.openaiToken),
		anthropicHost: s.anthropicSite(),
	}
	mux := byHost(hosts)
	s.serve(&http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certs.pair}}}, ln, true)
	s.keys = oidc.NewRemoteKeySet(oidc.ClientContext(context.WithoutCancel(ctx), s.client), IDP+"/jwks")
	s.workloadKeys = oidc.NewRemoteKeySet(oidc.ClientContext(context.WithoutCancel(ctx), s.client), IssuerURL+issuer.KeysPath)
	s.introspection = IDP + "/token/introspection"
	npm, crates := PlainName(NPMHost), PlainName(CratesHost)
	plainHosts := map[string]http.Handler{
		PlainName(APIHost): hosts[APIHost], PlainName(MCPHost): hosts[MCPHost], PlainName(GitHost): hosts[GitHost], PlainName(PyPIHost): hosts[PyPIHost],
		npm: bearer(packages.npm("http://" + npm)), crates: bearer(packages.crates("http://" + crates)),
	}
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.Plain = plain.Addr().String()
	s.serve(&http.Server{Handler: byHost(plainHosts), ReadHeaderTimeout: 10 * time.Second}, plain, false)
	return s.openGRPC(ctx, o.GRPCServer, certs)
}

// anthropicSite is one host for tokens and calls.
func (s *Set) anthropicSite() http.Handler {
	calls, token := s.Log.handler(s.anthropic()), exactly("/v1/oauth/token", s.anthropicToken)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/oauth/token" {
			token.ServeHTTP(w, r)
			return
		}
		calls.ServeHTTP(w, r)
	})
}

func exactly(path string, h http.HandlerFunc) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc(path+"/{$}", http.NotFound)
	mux.HandleFunc(path, h)
	return mux
}

func byHost(hosts map[string]http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := strings.Cut(r.Host, ":")
		if h := hosts[host]; h != nil {
			h.ServeHTTP(w, r)
			return
		}
		http.Error(w, "no such host: "+r.Host, http.StatusMisdirectedRequest)
	})
}

func (s *Set) serve(srv *http.Server, ln net.Listener, secure bool) {
	s.stop = append(s.stop, func() { _ = srv.Close() })
	s.wg.Go(func() {
		if secure {
			_ = srv.ServeTLS(ln, "", "") // ends with Close
			return
		}
		_ = srv.Serve(ln)
	})
}

// Close ends all upstreams and waits for them.
func (s *Set) Close() {
	for i := len(s.stop) - 1; i >= 0; i-- {
		s.stop[i]()
	}
	s.wg.Wait()
}

// openIssuer puts the key that signs the workload's tokens into an ssh-agent,
// so that every run shares it, and publishes the public half.
func (s *Set) openIssuer(ctx context.Context) error {
	s.SSHAgent = filepath.Join(s.dir, "agent.sock")
	stop, err := servers.ServeSSHAgent(s.SSHAgent)
	if err != nil {
		return fmt.Errorf("ssh-agent: %w", err)
	}
	s.stop = append(s.stop, stop)
	td, err := spiffeid.TrustDomainFromString("attache.local")
	if err != nil {
		return err
	}
	i, err := issuer.New(ctx, issuer.Config{TrustDomain: td, URL: IssuerURL, Keys: issuer.SSHAgent{Socket: s.SSHAgent}})
	if err != nil {
		return err
	}
	s.signer = i
	s.stop = append(s.stop, func() { _ = i.Close() })
	return i.Export(ctx, filepath.Join(s.dir, "issuer"))
}

// openTokenServer starts oidc-provider and returns a reverse proxy to it that
// learns the assertions it is shown and the tokens it issues.
func (s *Set) openTokenServer(ctx context.Context, certs *certificates) (http.Handler, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, "issuer", issuer.KeysPath))
	if err != nil {
		return nil, err
	}
	var keys any
	if err := json.Unmarshal(b, &keys); err != nil {
		return nil, err
	}
	opaque := servers.Resource{Format: "opaque", Scope: scope, TTL: 600}
	resources := map[string]servers.Resource{"https://" + GitHost: opaque, "https://" + PlainName(GitHost): opaque}
	for _, h := range JWTHosts {
		resources["https://"+h] = servers.Resource{Format: "jwt", Scope: scope, TTL: 600}
	}
	op, err := servers.StartOIDC(ctx, servers.OIDCOptions{
		Issuer: IDP, TLS: &servers.TLS{Cert: certs.Cert, Key: certs.Key}, Resources: resources,
		Clients: []map[string]any{servers.Client(Workload, keys, scope), servers.ResourceServer(resourceServerID, s.introspectSecret)},
	})
	if err != nil {
		return nil, err
	}
	s.stop = append(s.stop, op.Close)
	to := &url.URL{Scheme: "https", Host: fmt.Sprintf("127.0.0.1:%d", op.Port)}
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = r.In.Host
		},
		Transport:      &http.Transport{TLSClientConfig: &tls.Config{RootCAs: certs.roots, ServerName: idpHost}},
		ModifyResponse: s.learn,
	}, nil
}

// learn keeps the tokens of an answer of the token server.
func (s *Set) learn(res *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err != nil {
		return err
	}
	_ = res.Body.Close()
	var a struct {
		Token string `json:"access_token"`
	}
	if json.Unmarshal(b, &a) == nil {
		s.Log.Learn(a.Token)
	}
	res.Body = io.NopCloser(strings.NewReader(string(b)))
	res.ContentLength = int64(len(b))
	res.Header.Set("Content-Length", fmt.Sprint(len(b)))
	return nil
}

// openGRPC starts the interop server and reads its access log.
func (s *Set) openGRPC(ctx context.Context, program string, certs *certificates) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	verify := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := s.jwt(r.Context(), GRPCHost, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")); err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
		}
	})
	s.serve(&http.Server{Handler: verify, ReadHeaderTimeout: 10 * time.Second}, ln, false)
	var lines *bufio.Scanner
	if s.GRPC, lines, err = s.program(ctx, program, "-cert", certs.Cert, "-key", certs.Key, "-verify", "http://"+ln.Addr().String()); err != nil {
		return err
	}
	s.wg.Go(func() {
		for lines.Scan() {
			s.logGRPC(lines.Bytes())
		}
	})
	return nil
}

// program starts a server that prints its address and ends with its standard
// input, and returns the address and what it prints after it.
func (s *Set) program(ctx context.Context, path string, args ...string) (string, *bufio.Scanner, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env, cmd.Stderr = []string{}, os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, fmt.Errorf("start %s: %w", path, err)
	}
	s.stop = append(s.stop, func() { _ = in.Close() })
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		return "", nil, fmt.Errorf("%s did not start", path)
	}
	return lines.Text(), lines, nil
}

func (s *Set) logGRPC(b []byte) {
	var l struct {
		Host      string `json:"host"`
		Method    string `json:"method"`
		UserAgent string `json:"user_agent"`
		RequestID string `json:"request_id"`
		Token     string `json:"token"`
		Status    string `json:"status"`
	}
	if err := json.Unmarshal(b, &l); err != nil {
		s.Log.Add(Entry{Host: "grpc", Path: "unreadable line: " + string(b)})
		return
	}
	s.Log.Learn(l.Token)
	s.Log.Add(Entry{Host: l.Host, Method: http.MethodPost, Path: l.Method, ID: idOf(l.UserAgent, l.RequestID), Status: http.StatusOK, GRPC: l.Status})
}
