package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
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
	"time"

	"github.com/attache-dev/attache/test/servers"
)

// Names of the demo's servers; no DNS knows them.
const (
	loginHost   = "login.attache.example"
	ticketsHost = "tickets.attache.example"
	reportsHost = "reports.attache.example"
	notesHost   = "notes.attache.example"
	loginURL    = "https://" + loginHost
	agentID     = "spiffe://attache.example/agent/quickstart"
	human       = "ana"
)

// addresses are host:port of the listeners.
type addresses struct{ login, apis, issuer string }

// world is everything outside Attaché: the authorization server, the APIs and
// the files that they share with it.
type world struct {
	dir     string // of the files
	at      addresses
	ca      *servers.Authority
	oidc    *servers.OIDC
	client  *http.Client // reaches the servers by their names, without Attaché
	apiKey  string
	rsKey   string // by which APIs may introspect
	secrets *secrets
	canary  canaries
	apis    *apis
	close   []func()
}

// startWorld writes the files into dir and starts every server.
func startWorld(ctx context.Context, dir string, at addresses) (w *world, err error) {
	w = &world{dir: dir, at: at, apiKey: "nk_live_" + random(), rsKey: random(), secrets: &secrets{}, canary: newCanaries()}
	defer func() {
		if err != nil {
			w.stop()
		}
	}()
	if err := w.writeFiles(); err != nil {
		return nil, err
	}
	if err := w.serveSSHAgent(); err != nil {
		return nil, err
	}
	w.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: w.ca.Pool()},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			to := w.at.apis
			if host, _, _ := net.SplitHostPort(addr); host == loginHost {
				to = w.at.login
			}
			return (&net.Dialer{}).DialContext(ctx, network, to)
		},
	}}
	w.close = append(w.close, w.client.CloseIdleConnections)
	if err := w.startLogin(ctx); err != nil {
		return nil, err
	}
	w.apis = newAPIs(w)
	return w, w.listen(w.at.apis, w.apis)
}

func (w *world) stop() {
	for i := len(w.close) - 1; i >= 0; i-- {
		w.close[i]()
	}
}

func (w *world) file(name string) string { return filepath.Join(w.dir, name) }

// writeFiles makes the authority, the certificates and the vendor's key.
func (w *world) writeFiles() error {
	if err := os.MkdirAll(w.dir, 0o700); err != nil {
		return err
	}
	var err error
	if w.ca, err = servers.NewAuthority("demo authority", w.file("ca.pem")); err != nil {
		return err
	}
	return errors.Join(
		w.ca.Issue(w.file("server.pem"), w.file("server.key"), loginHost, ticketsHost, reportsHost, notesHost),
		w.ca.Issue(w.file("issuer.pem"), w.file("issuer.key"), "localhost"),
		os.WriteFile(w.file("notes.key"), []byte(w.apiKey+"\n"), 0o600),
	)
}

// serveSSHAgent holds the key that signs the workload's JWTs.
func (w *world) serveSSHAgent() error {
	stop, err := servers.ServeSSHAgent(w.file("agent.sock"))
	if err == nil {
		w.close = append(w.close, stop)
	}
	return err
}

// startLogin starts oidc-provider and, before it, a front that notes every
// secret that passes, for the search at the end.
func (w *world) startLogin(ctx context.Context) error {
	testSecret := random()
	var err error
	w.oidc, err = servers.StartOIDC(ctx, servers.OIDCOptions{
		Issuer: loginURL, TLS: &servers.TLS{Cert: w.file("server.pem"), Key: w.file("server.key")}, ExtraCA: w.file("ca.pem"), TestSecret: testSecret, TTL: 120,
		Clients: []map[string]any{w.agentClient(), servers.ResourceServer("apis", w.rsKey)},
		Resources: map[string]servers.Resource{
			"https://" + ticketsHost: {Format: "jwt", Scope: "tickets:read tickets:write", TTL: 120},
			"https://" + reportsHost: {Format: "opaque", Scope: "reports:read reports:write", TTL: 60},
		},
		Actors: []servers.Actor{{Issuer: "https://" + w.at.issuer, JWKSURI: "https://" + w.at.issuer + "/keys"}},
	})
	if err != nil {
		return err
	}
	w.close = append(w.close, w.oidc.Close)
	behind := fmt.Sprintf("127.0.0.1:%d", w.oidc.Port)
	front := &httputil.ReverseProxy{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.ca.Pool()}},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL = &url.URL{Scheme: "https", Host: behind, Path: r.In.URL.Path, RawQuery: r.In.URL.RawQuery}
		},
		ErrorLog: log.New(io.Discard, "", 0),
		ModifyResponse: func(r *http.Response) error {
			b, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
			r.Body = io.NopCloser(bytes.NewReader(b))
			w.secrets.noteAnswer(r.Request.URL.Path, b)
			return err
		},
	}
	return w.listen(w.at.login, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if err != nil {
			return
		}
		w.secrets.noteRequest(r, b)
		r.Body = io.NopCloser(bytes.NewReader(b))
		front.ServeHTTP(rw, r)
	}))
}

// agentClient registers the agent: it authenticates by JWTs of the issuer that
// Attaché carries, whose keys are read from the issuer.
func (w *world) agentClient() map[string]any {
	c := servers.Client(agentID, nil, "tickets:read reports:read")
	delete(c, "jwks")
	c["jwks_uri"] = "https://" + w.at.issuer + "/keys"
	return c
}

// listen serves h over TLS at addr.
func (w *world) listen(addr string, h http.Handler) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("%w; is another demo running?", err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	w.close = append(w.close, func() { _ = srv.Close() })
	go func() { _ = srv.ServeTLS(ln, w.file("server.pem"), w.file("server.key")) }()
	return nil
}

// humanToken signs the human in at our audience, for this agent.
func (w *world) humanToken(ctx context.Context) (string, error) {
	return w.oidc.HumanToken(ctx, w.client, map[string]any{"sub": human, "aud": "attache", "azp": agentID, "email": "ana@attache.example", "ttl": 600})
}

// freeAddresses finds ports that nobody uses now.
func freeAddresses() (addresses, error) {
	var a addresses
	for _, p := range []*string{&a.login, &a.apis, &a.issuer} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return a, err
		}
		defer ln.Close()
		*p = ln.Addr().String()
	}
	return a, nil
}

func random() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
