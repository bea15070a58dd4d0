package issuer

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
)

// Paths of the documents below the issuer's URL.
const (
	DiscoveryPath = "/.well-known/openid-configuration"
	KeysPath      = "/keys"
	BundlePath    = "/bundle"
)

const maxHeader = 16 << 10

// discovery is the part of OpenID Connect Discovery 1.0 section 3 that
// federation needs. There is no authorization endpoint: tokens are not handed
// out here.
type discovery struct {
	Issuer        string   `json:"issuer"`
	JWKSURI       string   `json:"jwks_uri"`
	ResponseTypes []string `json:"response_types_supported"`
	SubjectTypes  []string `json:"subject_types_supported"`
	Algorithms    []string `json:"id_token_signing_alg_values_supported"`
	Claims        []string `json:"claims_supported"`
}

func newDiscovery(issuerURL string) discovery {
	return discovery{
		Issuer:        issuerURL,
		JWKSURI:       issuerURL + KeysPath,
		ResponseTypes: []string{"id_token"},
		SubjectTypes:  []string{"public"},
		Algorithms:    []string{string(jose.ES256)},
		Claims:        []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti"},
	}
}

// Keys returns the public keys by which tokens are verified, as the JWKS
// document holds them.
func (i *Issuer) Keys(ctx context.Context) jose.JSONWebKeySet { return i.ring.published(ctx) }

// SPIFFEBundle returns the trust bundle in the SPIFFE format: X.509 and JWT
// authorities with a refresh hint and a sequence number.
func (i *Issuer) SPIFFEBundle(ctx context.Context) (*spiffebundle.Bundle, error) {
	certs, err := i.ca.authorities()
	if err != nil {
		return nil, err
	}
	b := spiffebundle.FromX509Authorities(i.cfg.TrustDomain, certs)
	for _, k := range i.Keys(ctx).Keys {
		if err := b.AddJWTAuthority(k.KeyID, k.Key); err != nil {
			return nil, fmt.Errorf("issuer: bundle: %w", err)
		}
	}
	b.SetRefreshHint(i.cfg.CacheLifetime)
	b.SetSequenceNumber(i.seq.of(b))
	return b, nil
}

// sequence numbers the contents of the bundle: SPIFFE Trust Domain and Bundle
// section 4.1.2 asks for a number that grows with each change.
type sequence struct {
	mu   sync.Mutex // guards last and n
	last [sha256.Size]byte
	n    uint64
}

func (s *sequence) of(b *spiffebundle.Bundle) uint64 {
	var parts []string
	for _, c := range b.X509Authorities() {
		parts = append(parts, "x509 "+string(c.Raw))
	}
	for id := range b.JWTAuthorities() { // a thumbprint: it names the key
		parts = append(parts, "jwt "+id)
	}
	slices.Sort(parts)
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d %s", len(p), p)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if sum := [sha256.Size]byte(h.Sum(nil)); sum != s.last {
		s.last = sum
		s.n++
	}
	return s.n
}

// Handler serves discovery, JWKS and the SPIFFE bundle below the path of the
// issuer's URL. Nothing it serves is secret.
func (i *Issuer) Handler() http.Handler {
	prefix := ""
	if u, err := url.Parse(i.cfg.URL); err == nil { // checked by New
		prefix = u.EscapedPath()
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+prefix+DiscoveryPath, func(w http.ResponseWriter, r *http.Request) {
		i.answer(w, r, "application/json", newDiscovery(i.cfg.URL))
	})
	mux.HandleFunc("GET "+prefix+KeysPath, func(w http.ResponseWriter, r *http.Request) {
		i.answer(w, r, "application/jwk-set+json", i.Keys(r.Context()))
	})
	mux.HandleFunc("GET "+prefix+BundlePath, func(w http.ResponseWriter, r *http.Request) {
		b, err := i.SPIFFEBundle(r.Context())
		if err != nil {
			i.cfg.Log.ErrorContext(r.Context(), "bundle not served", "error", err)
			http.Error(w, "the bundle is unavailable", http.StatusServiceUnavailable)
			return
		}
		i.answer(w, r, "application/json", b)
	})
	return mux
}

// answer writes v as a document that caches may keep for CacheLifetime.
func (i *Issuer) answer(w http.ResponseWriter, r *http.Request, kind string, v any) {
	b, err := encode(v)
	if err != nil {
		i.cfg.Log.ErrorContext(r.Context(), "document not encoded", "error", err)
		http.Error(w, "the document is unavailable", http.StatusInternalServerError)
		return
	}
	sum := sha256.Sum256(b)
	tag := `"` + hex.EncodeToString(sum[:16]) + `"`
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Cache-Control", fmt.Sprintf("public, max-age=%d", int(i.cfg.CacheLifetime/time.Second)))
	h.Set("ETag", tag)
	h.Set("X-Content-Type-Options", "nosniff")
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	_, _ = w.Write(b)
}

func encode(v any) ([]byte, error) {
	if b, ok := v.(*spiffebundle.Bundle); ok {
		return b.Marshal()
	}
	return json.MarshalIndent(v, "", "  ")
}

// ServeTLS serves [Issuer.Handler] on ln until [Issuer.Close] and then
// returns nil. Without cert the issuer signs a certificate of its own for the
// URL's host and the listener's address, renewed as it ages; its authority is
// in [Issuer.Bundle].
func (i *Issuer) ServeTLS(ln net.Listener, cert *tls.Certificate) error {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	} else {
		c := &webCertificate{ca: i.ca, hosts: i.hosts(ln)}
		cfg.GetCertificate = c.get
	}
	s := &http.Server{
		Handler:           i.Handler(),
		TLSConfig:         cfg,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(i.cfg.Log.Handler(), slog.LevelDebug),
	}
	i.mu.Lock()
	if i.closed {
		i.mu.Unlock()
		return errors.Join(errors.New("issuer: closed"), ln.Close())
	}
	i.servers[s] = struct{}{}
	i.mu.Unlock()
	if err := s.ServeTLS(ln, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("issuer: serve discovery on %s: %w", ln.Addr(), err)
	}
	return nil
}

// hosts are the names under which the discovery listener is reached.
func (i *Issuer) hosts(ln net.Listener) []string {
	var out []string
	if u, err := url.Parse(i.cfg.URL); err == nil {
		out = append(out, u.Hostname())
	}
	if h, _, err := net.SplitHostPort(ln.Addr().String()); err == nil && !slices.Contains(out, h) {
		out = append(out, h)
	}
	return out
}

// webCertificate keeps a server certificate fresh.
type webCertificate struct {
	ca    *authority
	hosts []string
	mu    sync.Mutex // guards cert
	cert  *tls.Certificate
}

func (c *webCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cert != nil && c.ca.now().Add(c.ca.ttl/2).Before(c.cert.Leaf.NotAfter) {
		return c.cert, nil
	}
	cert, err := c.ca.webCertificate(c.hosts)
	if err != nil {
		return nil, err
	}
	c.cert = cert
	return cert, nil
}
