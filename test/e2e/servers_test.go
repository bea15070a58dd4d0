package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// authority is the certificate authority of a test's servers.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "e2e"}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t: t, cert: cert, key: key}
}

// pem is the authority's certificate.
func (a *authority) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
}

// block is the certificate as a YAML block scalar with this indentation.
func (a *authority) block(indent int) string { return yamlBlock(a.pem(), indent) }

func yamlBlock(s string, indent int) string {
	pad := "\n" + strings.Repeat(" ", indent)
	return "|" + pad + strings.ReplaceAll(strings.TrimSpace(s), "\n", pad)
}

// leaf makes a server certificate that ends at end.
func (a *authority) leaf(end time.Time, names ...string) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serve starts a TLS server.
func (a *authority) serve(cert tls.Certificate, h http.Handler) string {
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}}
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	a.t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s.Listener.Addr().String()
}

// apiHost is the name under which agents know the origin.
const apiHost = "api.e2e.test"

// origin is the protected API.
type origin struct {
	ca   *authority
	addr string

	streams atomic.Int64 // open /sse

	mu   sync.Mutex // guards got
	got  []*http.Request
	stop chan struct{}
}

// newOrigin serves /v1/… (one JSON line), /sse (events until the client goes)
// and /big?n (n MiB).
func newOrigin(t testing.TB) *origin {
	t.Helper()
	o := &origin{ca: newAuthority(t), stop: make(chan struct{})}
	t.Cleanup(func() { close(o.stop) })
	o.addr = o.ca.serve(o.ca.leaf(time.Now().Add(time.Hour), apiHost), o)
	return o
}

// ServeHTTP implements http.Handler.
func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	o.got = append(o.got, r)
	o.mu.Unlock()
	switch r.URL.Path {
	case "/sse":
		o.streams.Add(1)
		defer o.streams.Add(-1)
		w.Header().Set("Content-Type", "text/event-stream")
		for i := 0; ; i++ {
			if _, err := fmt.Fprintf(w, "data: event-%d\n\n", i); err != nil {
				return
			}
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-o.stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	case "/big":
		_, _ = io.CopyN(w, zeros{}, 64<<20)
	default:
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"path":%q}`, r.URL.Path)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '0'
	}
	return len(p), nil
}

// requests are what arrived so far.
func (o *origin) requests() []*http.Request {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]*http.Request(nil), o.got...)
}

// destination is the YAML list element that reaches the origin.
func (o *origin) destination() string {
	return "{host: " + apiHost + `, addresses: ["` + o.addr + `"], onlyCA: true, caBundle: ` + fmt.Sprintf("%q", o.ca.pem()) + "}"
}

// allow is a policy that lets everything to the origin pass, with extra fields
// of the rule.
func (o *origin) allow(fields string) string {
	return `apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: agents}
spec:
  destinations: [` + o.destination() + `]
  rules:
  - {name: api, hosts: [` + apiHost + `], action: allow` + fields + `}
`
}

// issuer is a token endpoint with revocation (RFC 6749, 7009).
type issuer struct {
	ca   *authority
	addr string
	hold <-chan struct{} // revocations are not answered before; nil: at once

	mu      sync.Mutex // guards what follows
	answer  http.HandlerFunc
	asked   int
	issued  []string
	revoked []string
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	i := &issuer{ca: newAuthority(t)}
	i.addr = i.ca.serve(i.ca.leaf(time.Now().Add(time.Hour), "127.0.0.1"), i)
	return i
}

// lie replaces the answers of the token endpoint.
func (i *issuer) lie(h http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.answer = h
}

// ServeHTTP implements http.Handler.
func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	i.mu.Lock()
	lie := i.answer
	if r.URL.Path == "/token" {
		i.asked++
	}
	i.mu.Unlock()
	switch {
	case r.URL.Path == "/revoke":
		i.mu.Lock()
		i.revoked = append(i.revoked, r.PostForm.Get("token"))
		i.mu.Unlock()
		if i.hold != nil {
			<-i.hold
		}
	case r.URL.Path != "/token" || r.PostForm.Get("client_assertion") == "":
		w.WriteHeader(http.StatusBadRequest)
	case lie != nil:
		lie(w, r)
	default:
		token(w, map[string]any{"access_token": i.issue(), "token_type": "Bearer", "expires_in": 300})
	}
}

// issue makes a token that revocation and origins know.
func (i *issuer) issue() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	s := "at-" + hex.EncodeToString(b[:])
	i.mu.Lock()
	defer i.mu.Unlock()
	i.issued = append(i.issued, s)
	return s
}

func token(w http.ResponseWriter, v map[string]any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(v)
}

func (i *issuer) state() (asked int, issued, revoked []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked, append([]string(nil), i.issued...), append([]string(nil), i.revoked...)
}

// provider is an oauth2 provider named tokens for the origin.
func (i *issuer) provider(o *origin, extra string) string {
	return `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: tokens}
spec:
  destinations: [` + o.destination() + `]
  oauth2:
    tokenEndpoint: https://` + i.addr + `/token
    revocationEndpoint: https://` + i.addr + `/revoke
    addresses: ["` + i.addr + `"]
    caBundle: ` + i.ca.block(6) + `
    grant: clientCredentials
    timeout: 10s
` + extra
}
