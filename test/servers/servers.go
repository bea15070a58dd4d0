// Package servers starts the real servers that tests and the demo talk to.
package servers

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// ErrMissing is matched when a server cannot be started because what it needs
// (node, npm, its packages) is not installed and cannot be.
var ErrMissing = errors.New("a program is missing")

const startTimeout = 60 * time.Second

// TLS names PEM files of a server's certificate and key.
type TLS struct {
	Cert string `json:"cert"`
	Key  string `json:"key"`
}

// Resource is a protected API known to the authorization server.
type Resource struct {
	Format string `json:"format,omitempty"` // jwt (default) or opaque
	Scope  string `json:"scope,omitempty"`  // all scopes, separated by spaces
	TTL    int    `json:"ttl,omitempty"`    // seconds
}

// Actor is an issuer whose workloads may act for humans.
type Actor struct {
	Issuer  string `json:"issuer"`
	JWKS    any    `json:"jwks,omitempty"`    // the key set itself
	JWKSURI string `json:"jwksURI,omitempty"` // or where it is
}

// OIDCOptions configure the authorization server, see oidc/server.mjs.
type OIDCOptions struct {
	Host         string              `json:"host,omitempty"` // in the issuer; default 127.0.0.1
	Port         int                 `json:"port,omitempty"`
	Issuer       string              `json:"issuer,omitempty"`
	TLS          *TLS                `json:"tls,omitempty"`
	Clients      []map[string]any    `json:"clients"` // oidc-provider client metadata
	Resources    map[string]Resource `json:"resources,omitempty"`
	Actors       []Actor             `json:"actors,omitempty"`
	TTL          int                 `json:"ttl,omitempty"` // seconds
	RequireNonce bool                `json:"requireNonce,omitempty"`
	IgnoreActor  bool                `json:"ignoreActor,omitempty"`
	// TestSecret enables OIDC.HumanToken.
	TestSecret string `json:"testSecret,omitempty"`
	// People can sign in in a browser by a click: claims by login.
	People map[string]map[string]any `json:"people,omitempty"`
	// ExtraCA is a PEM file that the server trusts besides the system's roots,
	// for the key sets of actors and clients.
	ExtraCA string `json:"-"`
}

// Client is the metadata of a client that authenticates by private_key_jwt
// and may use client credentials and token exchange.
func Client(id string, jwks any, scope string) map[string]any {
	return map[string]any{
		"client_id": id, "token_endpoint_auth_method": "private_key_jwt", "token_endpoint_auth_signing_alg": "ES256",
		"jwks": jwks, "grant_types": []string{"client_credentials", "urn:ietf:params:oauth:grant-type:token-exchange"},
		"redirect_uris": []string{}, "response_types": []string{}, "scope": scope,
	}
}

// ResourceServer is the metadata of a client that may introspect tokens.
func ResourceServer(id, secret string) map[string]any {
	return map[string]any{
		"client_id": id, "client_secret": secret, "grant_types": []string{},
		"redirect_uris": []string{}, "response_types": []string{},
	}
}

// OIDC is a running authorization server.
type OIDC struct {
	URL    string // the issuer
	Port   int
	secret string
	stdin  io.Closer
	done   chan struct{}
}

// StartOIDC installs the server's packages once and starts it. It ends with
// ctx, by Close, or with this process. An error matches ErrMissing where node
// or npm are not installed.
func StartOIDC(ctx context.Context, o OIDCOptions) (*OIDC, error) {
	dir, err := installOIDC(ctx)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "node", "server.mjs")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	if o.ExtraCA != "" {
		cmd.Env = append(cmd.Env, "NODE_EXTRA_CA_CERTS="+o.ExtraCA)
	}
	var log tail
	cmd.Stderr = &log
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start oidc server: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start oidc server: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start oidc server: %w", err)
	}
	s := &OIDC{secret: o.TestSecret, stdin: in, done: make(chan struct{})}
	ready := make(chan error, 1)
	go func() {
		defer close(s.done)
		r := bufio.NewReader(out)
		line, err := r.ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(line, s)
		}
		ready <- err
		_, _ = io.Copy(io.Discard, r)
		_ = cmd.Wait()
	}()
	if err := json.NewEncoder(in).Encode(o); err != nil {
		s.Close()
		return nil, fmt.Errorf("configure oidc server: %w: %s", err, log.String())
	}
	select {
	case err = <-ready:
	case <-time.After(startTimeout):
		err = errors.New("no answer in time")
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("start oidc server: %w: %s", err, log.String())
	}
	return s, nil
}

// Close ends the server and waits for it.
func (s *OIDC) Close() {
	_ = s.stdin.Close()
	<-s.done
}

// HumanToken returns a token of a signed-in human with these claims; sub and
// aud are required, azp or may_act name the workload that may act.
func (s *OIDC) HumanToken(ctx context.Context, c *http.Client, claims map[string]any) (string, error) {
	b, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("human token: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/test/human-token", bytes.NewReader(b))
	if err != nil {
		return "", fmt.Errorf("human token: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+s.secret)
	res, err := c.Do(req)
	if err != nil {
		return "", fmt.Errorf("human token: %w", err)
	}
	defer res.Body.Close()
	var a struct{ Token string }
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&a); err != nil || res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("human token: status %d", res.StatusCode)
	}
	return a.Token, nil
}

// installOIDC copies the server to .cache/npm/oidc and installs its packages
// there, once for each lock file. Concurrent calls, of other processes too,
// wait for one another.
func installOIDC(ctx context.Context) (string, error) {
	for _, p := range []string{"node", "npm"} {
		if _, err := exec.LookPath(p); err != nil {
			return "", fmt.Errorf("%w: %s is not in PATH; install Node 20 or newer", ErrMissing, p)
		}
	}
	_, here, _, _ := runtime.Caller(0)
	src := filepath.Join(filepath.Dir(here), "oidc")
	dir := filepath.Join(filepath.Dir(here), "..", "..", ".cache", "npm", "oidc")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("install oidc server: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", fmt.Errorf("install oidc server: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("install oidc server: %w", err)
	}
	want, err := os.ReadFile(filepath.Join(src, "package-lock.json"))
	if err != nil {
		return "", fmt.Errorf("install oidc server: %w", err)
	}
	for _, f := range []string{"package.json", "package-lock.json", "server.mjs"} {
		b, err := os.ReadFile(filepath.Join(src, f))
		if err != nil {
			return "", fmt.Errorf("install oidc server: %w", err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), b, 0o644); err != nil {
			return "", fmt.Errorf("install oidc server: %w", err)
		}
	}
	stamp := filepath.Join(dir, ".installed")
	if have, err := os.ReadFile(stamp); err == nil && bytes.Equal(have, want) {
		return dir, nil
	}
	cmd := exec.CommandContext(ctx, "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: install oidc server: npm ci: %w: %s", ErrMissing, err, out)
	}
	if err := os.WriteFile(stamp, want, 0o644); err != nil {
		return "", fmt.Errorf("install oidc server: %w", err)
	}
	return dir, nil
}

// tail keeps the last bytes of a server's log.
type tail struct {
	mu sync.Mutex // guards b
	b  []byte
}

const tailSize = 8 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > tailSize {
		t.b = t.b[len(t.b)-tailSize:]
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}
