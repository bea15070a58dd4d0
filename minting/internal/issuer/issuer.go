// Package issuer is how providers talk HTTP to those who issue credentials:
// https only, no redirects, no cookies, a deadline, bounded answers, and errors
// that never repeat what was sent.
package issuer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/attache-dev/attache/minting"
)

// Bounds of an exchange.
const (
	MaxAnswer      = 1 << 20 // of a successful answer
	MaxError       = 4 << 10 // of an answer with an error, rest unread
	DefaultTimeout = 10 * time.Second
	maxCABundle    = 4 << 20
)

// Client talks to one issuer.
type Client struct {
	http    *http.Client
	timeout time.Duration
	now     func() time.Time
}

// New returns a Client on a copy of h, with redirects and cookies taken away.
func New(h *http.Client, timeout time.Duration, now func() time.Time) *Client {
	c := *h
	c.Jar = nil
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	return &Client{http: &c, timeout: timeout, now: now}
}

// Connect makes the Client of a provider from its settings. caFile is read
// now.
func Connect(d minting.Deps, addresses []string, caFile, caBundle string, timeout time.Duration) (*Client, error) {
	if d.Client == nil {
		return nil, errors.New("no HTTP client factory")
	}
	pem := []byte(caBundle)
	if caFile != "" {
		f, err := os.Open(caFile)
		if err != nil {
			return nil, fmt.Errorf("caFile: %w", err)
		}
		defer f.Close()
		more, err := io.ReadAll(io.LimitReader(f, maxCABundle))
		if err != nil {
			return nil, fmt.Errorf("caFile: %w", err)
		}
		pem = append(append(pem, '\n'), more...)
	}
	return New(d.Client(addresses, pem), timeout, d.Now), nil
}

// Answer is what an issuer said, whole and bounded.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Do sends req and reads the answer. Any status below 300, or of 400 and
// above, is an answer; redirects and failures on the way match
// [minting.ErrUnavailable].
func (c *Client) Do(ctx context.Context, req *http.Request) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	res, err := c.http.Do(req.WithContext(ctx))
	if err != nil {
		return Answer{}, c.transport(req, err)
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 && res.StatusCode < 400 {
		// Following would hand the assertion to whoever is named there.
		return Answer{}, fmt.Errorf("%w: %s answered with a redirect (%d), which is not followed; name the final URL in the provider", minting.ErrUnavailable, req.URL.Host, res.StatusCode)
	}
	a := Answer{Status: res.StatusCode, Header: res.Header}
	limit := int64(MaxAnswer)
	if res.StatusCode >= 400 {
		limit = MaxError
	}
	a.Body, err = io.ReadAll(io.LimitReader(res.Body, limit+1))
	if err != nil {
		return Answer{}, c.transport(req, err)
	}
	if int64(len(a.Body)) > limit {
		if res.StatusCode < 400 {
			return Answer{}, fmt.Errorf("%w: %s answered with more than %d bytes", minting.ErrUnavailable, req.URL.Host, limit)
		}
		a.Body = a.Body[:limit]
	}
	return a, nil
}

// transport words a failure on the way. The *url.Error around it is dropped:
// it repeats the URL.
func (c *Client) transport(req *http.Request, err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	return fmt.Errorf("%w: call %s: %w", minting.ErrUnavailable, req.URL.Host, err)
}

// Refusal turns an answer with an error status into an error. text is what the
// issuer said, already made safe; empty is fine.
func (c *Client) Refusal(what string, a Answer, text string) error {
	if text != "" {
		text = ": " + text
	}
	switch {
	case a.Status == http.StatusTooManyRequests, a.Status == http.StatusRequestTimeout,
		a.Status == http.StatusTooEarly, a.Status >= 500:
		err := fmt.Errorf("%w: %s answered %d%s", minting.ErrUnavailable, what, a.Status, text)
		wait, _ := minting.ParseRetryAfter(a.Header.Get("Retry-After"), c.now())
		return minting.WithRetryAfter(err, wait)
	case a.Status >= 400:
		return fmt.Errorf("%w: %s answered %d%s", minting.ErrDenied, what, a.Status, text)
	default:
		return fmt.Errorf("%w: %s answered %d%s", minting.ErrUnavailable, what, a.Status, text)
	}
}

// maxText bounds what is repeated of an issuer's words.
const maxText = 240

// Safe prepares an issuer's free text for an error: printable ASCII, bounded,
// and without any word that could be a credential or was part of one we sent.
func Safe(text string, sent ...string) string {
	if len(text) > 4*maxText {
		text = text[:4*maxText]
	}
	words := strings.FieldsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"'<>(){}[],;=&`, r) })
	for i, w := range words {
		if len(w) > 32 {
			words[i] = "…"
			continue
		}
		for _, s := range sent {
			if len(w) >= 6 && strings.Contains(s, w) {
				words[i] = "…"
				break
			}
		}
	}
	out := strings.Join(words, " ")
	if len(out) > maxText {
		out = out[:maxText]
	}
	return strings.ToValidUTF8(out, "")
}

// CheckURL parses an endpoint and refuses anything but https, except http to
// an issuer that the operator pinned to loopback addresses and nothing else.
func CheckURL(field, raw string, addresses []string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: is no URL", field)
	}
	if u.Host == "" || u.User != nil || u.Fragment != "" {
		return nil, fmt.Errorf("%s: is %q; must be https://host/path without user and fragment", field, raw)
	}
	switch u.Scheme {
	case "https":
		return u, nil
	case "http":
		if pinnedToLoopback(addresses) {
			return u, nil
		}
		return nil, fmt.Errorf("%s: is %q; must be https (http is for servers whose addresses are pinned to loopback)", field, raw)
	default:
		return nil, fmt.Errorf("%s: is %q; must be https", field, raw)
	}
}

func pinnedToLoopback(addresses []string) bool {
	for _, a := range addresses {
		if h, _, err := net.SplitHostPort(a); err == nil {
			a = h
		}
		ip, err := netip.ParseAddr(strings.Trim(a, "[]"))
		if err != nil || !ip.Unmap().IsLoopback() {
			return false
		}
	}
	return len(addresses) > 0
}
