package task

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"golang.org/x/time/rate"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
)

const (
	maxDocument  = 1 << 20 // discovery or JWKS
	fetchTimeout = 5 * time.Second
)

// signed verifies the signature of raw and returns its payload.
func (h *humanIssuer) signed(ctx context.Context, raw string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*fetchTimeout)
	defer cancel()
	v, err := h.verifier(ctx)
	if err != nil {
		return nil, h.unavailable(err)
	}
	tok, err := v.Verify(ctx, raw)
	if err != nil {
		// go-oidc flattens causes to text, and its text may repeat claims.
		if f, ok := h.client.Transport.(*bounded); ok {
			if cause := f.lastError(); cause != nil {
				return nil, h.unavailable(cause)
			}
		}
		if ctx.Err() != nil {
			return nil, h.unavailable(ctx.Err())
		}
		return nil, refuse(CodeSignature, "the human's token is not signed by a key of %s", h.spec.Issuer)
	}
	var payload rawJSON
	if err := tok.Claims(&payload); err != nil {
		return nil, refuse(CodeMalformed, "the human's token has no claims")
	}
	return payload, nil
}

// rawJSON receives a document as it is.
type rawJSON []byte

// UnmarshalJSON implements json.Unmarshaler.
func (r *rawJSON) UnmarshalJSON(b []byte) error { *r = append([]byte(nil), b...); return nil }

func (h *humanIssuer) unavailable(err error) *Error {
	return &Error{
		Code: CodeUnavailable,
		Text: fmt.Sprintf("issuer %s cannot be asked for its keys now; try again", h.spec.Issuer),
		Err:  fmt.Errorf("%w: %w", identity.ErrUnavailable, err),
	}
}

// verifier returns the issuer's verifier, reading discovery anew when what is
// known is old. One caller reads, the others wait for it or their context.
func (h *humanIssuer) verifier(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	if v := h.cached(); v != nil {
		return v, nil
	}
	select {
	case h.gate <- struct{}{}:
		defer func() { <-h.gate }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if v := h.cached(); v != nil {
		return v, nil
	}
	p, err := oidc.NewProvider(oidc.ClientContext(ctx, h.client), h.spec.Issuer)
	if err != nil {
		return nil, err
	}
	var meta struct {
		JWKS string `json:"jwks_uri"`
	}
	if err := p.Claims(&meta); err != nil {
		return nil, err
	}
	if u, err := url.Parse(meta.JWKS); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, errors.New("jwks_uri of the discovery document is no https URL")
	}
	algs := make([]string, 0, 10)
	for _, a := range algorithms() {
		algs = append(algs, string(a))
	}
	// Audience and times are checked by humanIssuer.check, with clearer words.
	v := p.Verifier(&oidc.Config{SkipClientIDCheck: true, SkipExpiryCheck: true, SupportedSigningAlgs: algs})
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keys, h.fetched = v, h.now()
	return v, nil
}

func (h *humanIssuer) cached() *oidc.IDTokenVerifier {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.keys == nil || h.now().Sub(h.fetched) >= metadataLife {
		return nil
	}
	return h.keys
}

// bound returns a copy of c that cannot be held up, flooded or led elsewhere
// by an issuer.
func bound(c *http.Client) *http.Client {
	base := c.Transport
	if base == nil {
		base = http.DefaultTransport
	}
	return &http.Client{
		// Keys with unknown ids make the key set be read again: a stream of
		// bad tokens must not become a stream of requests.
		Transport: &bounded{base: base, limit: rate.NewLimiter(rate.Every(time.Second), 10)},
		Timeout:   fetchTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
}

// bounded is a transport for small documents.
type bounded struct {
	base  http.RoundTripper
	limit *rate.Limiter
	last  failure
}

// RoundTrip implements [http.RoundTripper]. Everything but a 200 is an error,
// for go-oidc would quote the answer's body.
func (b *bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := b.try(r)
	b.last.set(err)
	return res, err
}

func (b *bounded) try(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, errors.New("issuer documents are read over https only")
	}
	if !b.limit.Allow() {
		return nil, errors.New("issuer documents were read too often just now")
	}
	res, err := b.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		_ = res.Body.Close()
		return nil, fmt.Errorf("%s answered %d; want 200", r.URL.Redacted(), res.StatusCode)
	}
	res.Body = &boundedBody{ReadCloser: res.Body, left: maxDocument, fail: b.last.set}
	return res, nil
}

func (b *bounded) lastError() error { return b.last.get() }

// boundedBody fails, rather than ends, after left bytes.
type boundedBody struct {
	io.ReadCloser
	left int
	fail func(error)
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, b.tooLong()
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left+1)])
	b.left -= n
	if b.left < 0 {
		return 0, b.tooLong()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		b.fail(err)
	}
	return n, err
}

func (b *boundedBody) tooLong() error {
	err := fmt.Errorf("issuer document is longer than %d bytes", maxDocument)
	b.fail(err)
	return err
}

// HTTPClient makes a client for an issuer from its own fields: CAFile and
// CABundle add roots, Addresses pin the issuer's host. It uses no proxy of the
// environment.
func HTTPClient(h v1alpha1.HumanIssuer) (*http.Client, error) {
	u, err := url.Parse(h.Issuer)
	if err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	roots, err := roots(h)
	if err != nil {
		return nil, err
	}
	pins, err := pins(h, u)
	if err != nil {
		return nil, err
	}
	d := &net.Dialer{Timeout: fetchTimeout}
	own := net.JoinHostPort(u.Hostname(), portOf(u))
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if len(pins) == 0 || addr != own {
				return d.DialContext(ctx, network, addr)
			}
			var errs []error
			for _, p := range pins {
				c, err := d.DialContext(ctx, network, p)
				if err == nil {
					return c, nil
				}
				errs = append(errs, err)
			}
			return nil, errors.Join(errs...)
		},
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    fetchTimeout,
		ResponseHeaderTimeout:  fetchTimeout,
		MaxResponseHeaderBytes: 64 << 10,
		MaxIdleConns:           2,
		IdleConnTimeout:        30 * time.Second,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // the bound is on what arrives
	}}, nil
}

func portOf(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	return "443"
}

func roots(h v1alpha1.HumanIssuer) (*x509.CertPool, error) {
	pem := []byte(h.CABundle)
	if h.CAFile != "" {
		b, err := os.ReadFile(h.CAFile)
		if err != nil {
			return nil, fmt.Errorf("caFile: %w", err)
		}
		pem = append(append(pem, '\n'), b...)
	}
	if len(strings.TrimSpace(string(pem))) == 0 {
		return nil, nil // the system's
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("caFile, caBundle: no certificate in PEM form")
	}
	return pool, nil
}

func pins(h v1alpha1.HumanIssuer, u *url.URL) ([]string, error) {
	var out []string
	for n, a := range h.Addresses {
		host, port, err := net.SplitHostPort(a)
		if err != nil {
			host, port = strings.Trim(a, "[]"), portOf(u)
		}
		if net.ParseIP(host) == nil {
			return nil, fmt.Errorf("addresses[%d]: is %q; must be an IP address with an optional port", n, a)
		}
		out = append(out, net.JoinHostPort(host, port))
	}
	return out, nil
}
