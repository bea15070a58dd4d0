package oauth2

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/internal/issuer"
)

// metadataTTL is how long a server's metadata is believed; what is older
// serves on while the server does not answer.
const metadataTTL = time.Hour

// endpoints of an authorization server. revocation is empty where it has none.
type endpoints struct{ token, revocation string }

// discovery finds the endpoints of one issuer and remembers them.
type discovery struct {
	spec   v1alpha1.OAuth2
	client *issuer.Client
	now    func() time.Time
	flight singleflight.Group

	mu    sync.Mutex // guards found and until
	found *endpoints
	until time.Time
}

func newDiscovery(s v1alpha1.OAuth2, c *issuer.Client, now func() time.Time) *discovery {
	return &discovery{spec: s, client: c, now: now}
}

// endpoints returns the configured endpoints, or else the issuer's own word.
func (d *discovery) endpoints(ctx context.Context) (endpoints, error) {
	if d.spec.TokenEndpoint != "" {
		return endpoints{d.spec.TokenEndpoint, d.spec.RevocationEndpoint}, nil
	}
	d.mu.Lock()
	found, until := d.found, d.until
	d.mu.Unlock()
	if found != nil && d.now().Before(until) {
		return *found, nil
	}
	// One look-up for all who wait; it does not end with the first of them.
	ch := d.flight.DoChan("", func() (any, error) { return d.fetch(context.WithoutCancel(ctx)) })
	select {
	case r := <-ch:
		if r.Err == nil {
			return r.Val.(endpoints), nil //nolint:forcetypeassert // fetch returns nothing else
		}
		if found != nil {
			return *found, nil
		}
		return endpoints{}, r.Err
	case <-ctx.Done():
		return endpoints{}, fmt.Errorf("%w: discover %s: %w", minting.ErrUnavailable, d.spec.Issuer, ctx.Err())
	}
}

// fetch asks by RFC 8414 and, where that is unknown, by OpenID Connect
// Discovery.
func (d *discovery) fetch(ctx context.Context) (endpoints, error) {
	var last error
	for _, u := range metadataURLs(d.spec.Issuer) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
		if err != nil {
			return endpoints{}, fmt.Errorf("%w: discover: issuer is no URL", minting.ErrDenied)
		}
		req.Header.Set("Accept", "application/json")
		a, err := d.client.Do(ctx, req)
		if err != nil {
			return endpoints{}, fmt.Errorf("discover %s: %w", d.spec.Issuer, err)
		}
		if a.Status != http.StatusOK {
			last = d.client.Refusal("discovery of "+d.spec.Issuer, a, "")
			if a.Status >= 500 || a.Status == http.StatusTooManyRequests {
				return endpoints{}, last
			}
			continue
		}
		e, err := parseMetadata(a.Body, d.spec)
		if err != nil {
			return endpoints{}, err
		}
		d.mu.Lock()
		d.found, d.until = &e, d.now().Add(metadataTTL)
		d.mu.Unlock()
		return e, nil
	}
	return endpoints{}, fmt.Errorf("%w; name the tokenEndpoint if the server has no metadata", last)
}

// metadataURLs: RFC 8414 section 3 puts the well-known part between host and
// path, OpenID Connect Discovery section 4 behind the path.
func metadataURLs(iss string) []string {
	u, err := url.Parse(iss)
	if err != nil {
		return nil
	}
	path := strings.TrimRight(u.EscapedPath(), "/")
	root := u.Scheme + "://" + u.Host
	return []string{
		root + "/.well-known/oauth-authorization-server" + path,
		root + path + "/.well-known/openid-configuration",
	}
}

// parseMetadata reads RFC 8414 section 3.2 metadata. The issuer in it must be
// ours to the letter (section 3.3): otherwise one server could hand out the
// endpoints of another and collect assertions made for it.
func parseMetadata(body []byte, s v1alpha1.OAuth2) (endpoints, error) {
	var w struct {
		Issuer     string `json:"issuer"`
		Token      string `json:"token_endpoint"`
		Revocation string `json:"revocation_endpoint"`
	}
	if json.Unmarshal(body, &w) != nil {
		return endpoints{}, fmt.Errorf("%w: discover %s: the metadata is no JSON object", minting.ErrUnavailable, s.Issuer)
	}
	if w.Issuer != s.Issuer {
		return endpoints{}, fmt.Errorf("%w: discover %s: the metadata is for issuer %q; oauth2.issuer must be the same to the letter", minting.ErrDenied, s.Issuer, issuer.Safe(w.Issuer))
	}
	if w.Token == "" {
		return endpoints{}, fmt.Errorf("%w: discover %s: the metadata names no token_endpoint", minting.ErrDenied, s.Issuer)
	}
	if s.RevocationEndpoint != "" {
		w.Revocation = s.RevocationEndpoint
	}
	for _, f := range []struct{ name, value string }{{"token_endpoint", w.Token}, {"revocation_endpoint", w.Revocation}} {
		if f.value == "" {
			continue
		}
		u, err := issuer.CheckURL(f.name, f.value, s.Addresses)
		if err == nil && u.Scheme == "http" && strings.HasPrefix(s.Issuer, "https:") {
			err = fmt.Errorf("%s: is http under an https issuer", f.name)
		}
		if err != nil {
			return endpoints{}, fmt.Errorf("%w: discover %s: %w", minting.ErrDenied, s.Issuer, err)
		}
	}
	return endpoints{w.Token, w.Revocation}, nil
}
