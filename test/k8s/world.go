package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/attache-dev/attache/test/cluster/node"
	"github.com/attache-dev/attache/test/servers"
)

// Servers outside of the cluster. The cluster's DNS answers their names with
// the node's address; each listens on port 443 there.
const (
	loginHost   = "login.vendor.test"   // the authorization server: oidc-provider
	reportsHost = "reports.vendor.test" // an API that takes its tokens
	notesHost   = "notes.vendor.test"   // an API that takes a static key
	openHost    = "open.vendor.test"    // an API that takes everybody
	evilHost    = "evil.vendor.test"    // an attacker's: it notes what it gets
	issuerHost  = "issuer.vendor.test"  // the bucket with the cluster's public keys
)

func hosts() []string {
	return []string{loginHost, reportsHost, notesHost, openHost, evilHost, issuerHost, stsHost, storeHost}
}

const (
	trustDomain = "cluster.test"
	// account is the service account of agents.
	account = "agent"
)

func spiffeID(namespace string) string {
	return "spiffe://" + trustDomain + "/ns/" + namespace + "/sa/" + account
}

// world is everything outside of the cluster.
type world struct {
	dir    string
	ca     *servers.Authority
	oidc   *servers.OIDC
	apiKey string
	// reviewKey is the secret of the review page at the authorization server.
	reviewKey string
	client    *http.Client
	mu        sync.Mutex // guards what follows
	calls     []call
	secrets   []string // credentials that went over the wire; none may be in a pod
	issuer    map[string][]byte
	store     *servers.MinIO // started by the case that needs it
}

// call is what a server saw.
type call struct {
	Host, Method, Path string
	Who                string // the verified caller, or why it was refused
	Status             int
	From               string // address of the peer
	Headers            http.Header
}

func random() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// startWorld starts every server; they end with this process.
func startWorld(ctx context.Context, dir string) (*world, error) {
	w := &world{dir: dir, apiKey: "nk_live_" + random(), reviewKey: random(), issuer: map[string][]byte{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if w.ca, err = servers.NewAuthority("vendors", w.file("ca.pem")); err != nil {
		return nil, err
	}
	if err := w.ca.Issue(w.file("server.pem"), w.file("server.key"), hosts()...); err != nil {
		return nil, err
	}
	if err := node.AddHosts(node.Address, hosts()...); err != nil {
		return nil, err
	}
	w.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.ca.Pool()}}}
	login, err := w.startLogin(ctx)
	if err != nil {
		return nil, err
	}
	return w, w.listen(map[string]http.Handler{
		loginHost:   login,
		issuerHost:  http.HandlerFunc(w.serveIssuer),
		reportsHost: w.api(w.reports),
		notesHost:   w.api(w.notes),
		openHost:    w.api(everybody),
		evilHost:    w.api(everybody),
		stsHost:     http.HandlerFunc(w.serveStore),
		storeHost:   http.HandlerFunc(w.serveStore),
	})
}

func (w *world) file(name string) string { return filepath.Join(w.dir, name) }

// listen serves the hosts at the node's address.
func (w *world) listen(handlers map[string]http.Handler) error {
	ln, err := net.Listen("tcp", net.JoinHostPort(node.Address, "443"))
	if err != nil {
		return err
	}
	srv := &http.Server{
		ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0),
		Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			h, ok := handlers[r.Host]
			if !ok || r.TLS.ServerName != r.Host {
				http.Error(rw, "misdirected", http.StatusMisdirectedRequest)
				return
			}
			h.ServeHTTP(rw, r)
		}),
	}
	go func() { _ = srv.ServeTLS(ln, w.file("server.pem"), w.file("server.key")) }()
	return nil
}

// agentNamespaces are those whose agents the authorization server knows.
func agentNamespaces() []string {
	return []string{nsAgents, nsTransparent, nsRestricted, nsUpgrade, nsAttacks}
}

// startLogin starts oidc-provider. The agents are its clients: they
// authenticate by JWTs that the cluster's issuer signs (RFC 7523), whose keys
// it reads from the bucket. No client has a secret but the API that asks
// about tokens, and the review page, at which people log in.
func (w *world) startLogin(ctx context.Context) (http.Handler, error) {
	var clients []map[string]any
	for _, ns := range agentNamespaces() {
		c := servers.Client(spiffeID(ns), nil, "reports:read")
		delete(c, "jwks")
		c["jwks_uri"] = "https://" + issuerHost + "/keys"
		clients = append(clients, c)
	}
	var err error
	w.oidc, err = servers.StartOIDC(ctx, servers.OIDCOptions{
		Issuer: "https://" + loginHost, TLS: &servers.TLS{Cert: w.file("server.pem"), Key: w.file("server.key")}, ExtraCA: w.file("ca.pem"),
		Clients: append(clients, w.reviewLogin()), People: reviewPeople(), TTL: 120,
		Resources: map[string]servers.Resource{"https://" + reportsHost: {Format: "jwt", Scope: "reports:read", TTL: 120}},
	})
	if err != nil {
		return nil, err
	}
	behind := fmt.Sprintf("127.0.0.1:%d", w.oidc.Port)
	return &httputil.ReverseProxy{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.ca.Pool()}},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL = &url.URL{Scheme: "https", Host: behind, Path: r.In.URL.Path, RawQuery: r.In.URL.RawQuery}
		},
		ErrorLog: log.New(io.Discard, "", 0),
		ModifyResponse: func(r *http.Response) error {
			b, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
			r.Body = io.NopCloser(bytes.NewReader(b))
			var answer struct {
				Token string `json:"access_token"`
			}
			if json.Unmarshal(b, &answer) == nil {
				w.noteSecret(answer.Token)
			}
			return err
		},
	}, nil
}

func (w *world) noteSecret(s string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s != "" && !slices.Contains(w.secrets, s) {
		w.secrets = append(w.secrets, s)
	}
}

// secretsSeen are the credentials of the run until now.
func (w *world) secretsSeen() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append(slices.Clone(w.secrets), w.apiKey)
}

// publish puts a file into the bucket.
func (w *world) publish(path string, content []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.issuer[path] = content
}

func (w *world) serveIssuer(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	b, ok := w.issuer[r.URL.Path]
	w.mu.Unlock()
	if !ok {
		http.NotFound(rw, r)
		return
	}
	rw.Header().Set("Content-Type", "application/json")
	_, _ = rw.Write(b)
}

var errRefused = errors.New("refused")

// api notes each call and answers those that verify lets pass.
func (w *world) api(verify func(*http.Request) (string, error)) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		who, err := verify(r)
		status := http.StatusOK
		if err != nil {
			who, status = err.Error(), http.StatusUnauthorized
		}
		w.mu.Lock()
		w.calls = append(w.calls, call{r.Host, r.Method, r.URL.Path, who, status, r.RemoteAddr, r.Header.Clone()})
		w.mu.Unlock()
		if err != nil {
			rw.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(rw, `{"error":"unauthorized"}`, status)
			return
		}
		if strings.Contains(r.URL.Path, "/stream") {
			streamLines(rw, r)
			return
		}
		_ = json.NewEncoder(rw).Encode(map[string]any{"path": r.URL.Path})
	})
}

// streamLines writes a line every 200 ms until the client goes.
func streamLines(rw http.ResponseWriter, r *http.Request) {
	flush := http.NewResponseController(rw)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for n := 1; ; n++ {
		if _, err := fmt.Fprintf(rw, "event %d\n", n); err != nil || flush.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
	}
}

// reports verifies the access token against the keys of the authorization
// server, and says which client it was given to.
func (w *world) reports(r *http.Request) (string, error) {
	raw, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return "", fmt.Errorf("%w: no token", errRefused)
	}
	tok, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		return "", fmt.Errorf("%w: not a JWT", errRefused)
	}
	keys, err := w.keys(r.Context())
	if err != nil {
		return "", err
	}
	var std jwt.Claims
	var own struct {
		ClientID string `json:"client_id"`
		Scope    string `json:"scope"`
	}
	if err := tok.Claims(keys, &std, &own); err != nil {
		return "", fmt.Errorf("%w: signature", errRefused)
	}
	if err := std.ValidateWithLeeway(jwt.Expected{Issuer: "https://" + loginHost, AnyAudience: jwt.Audience{"https://" + reportsHost}, Time: time.Now()}, 0); err != nil {
		return "", fmt.Errorf("%w: %w", errRefused, err)
	}
	if own.Scope != "reports:read" {
		return "", fmt.Errorf("%w: scope %q", errRefused, own.Scope)
	}
	return own.ClientID, nil
}

func (w *world) keys(ctx context.Context) (*jose.JSONWebKeySet, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+loginHost+"/jwks", nil)
	if err != nil {
		return nil, err
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var set jose.JSONWebKeySet
	return &set, json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&set)
}

func (w *world) notes(r *http.Request) (string, error) {
	if subtle.ConstantTimeCompare([]byte(r.Header.Get("X-Api-Key")), []byte(w.apiKey)) != 1 {
		return "", fmt.Errorf("%w: wrong key", errRefused)
	}
	return "key", nil
}

func everybody(*http.Request) (string, error) { return "somebody", nil }

// seen returns the calls of a host whose path begins so.
func (w *world) seen(host, path string) []call {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []call
	for _, c := range w.calls {
		if c.Host == host && strings.HasPrefix(c.Path, path) {
			out = append(out, c)
		}
	}
	return out
}

// verified waits for a call that the host let pass as who.
func (w *world) verified(ctx context.Context, host, path, who string) error {
	return until(ctx, fmt.Sprintf("%s%s is called by %s", host, path, who), func() (bool, string) {
		calls := w.seen(host, path)
		for _, c := range calls {
			if c.Status == http.StatusOK && c.Who == who {
				return true, ""
			}
		}
		if len(calls) == 0 {
			return false, "no call arrived"
		}
		last := calls[len(calls)-1]
		return false, fmt.Sprintf("%d calls arrived, the last from %s: %d %s", len(calls), last.From, last.Status, last.Who)
	})
}
