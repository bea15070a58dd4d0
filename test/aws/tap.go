package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// session is one that MinIO's STS handed out.
type session struct {
	Handle  string // RoleSessionName
	Policy  string // the session policy that was sent
	Keys    aws.Credentials
	Asked   time.Time
	Expires time.Time
}

// tap stands in front of MinIO's STS. It learns what the agent must never see:
// the tokens that go in and the sessions that come out.
type tap struct {
	proxy http.Handler

	mu       sync.Mutex // guards the rest
	sessions []session
	tokens   []string
	calls    int
	fault    http.Handler // answers in place of MinIO
}

const maxAnswer = 1 << 20

func newTap(to *url.URL, rt http.RoundTripper) *tap {
	t := &tap{}
	t.proxy = &httputil.ReverseProxy{
		Transport: rt, ErrorLog: log.New(io.Discard, "", 0), ModifyResponse: t.learn,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = r.In.Host // it is signed where a session revokes itself
		},
	}
	return t
}

// ServeHTTP implements [http.Handler].
func (t *tap) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(io.LimitReader(r.Body, maxAnswer))
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(b))
	form, _ := url.ParseQuery(string(b)) // what is no form is MinIO's to refuse
	t.mu.Lock()
	t.calls++
	if token := form.Get("WebIdentityToken"); token != "" {
		t.tokens = append(t.tokens, token)
	}
	h := t.proxy
	if t.fault != nil {
		h = t.fault
	}
	t.mu.Unlock()
	h.ServeHTTP(w, r.WithContext(withForm(r.Context(), form)))
}

// learn keeps the session of an answer.
func (t *tap) learn(res *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return err
	}
	_ = res.Body.Close()
	res.Body = io.NopCloser(bytes.NewReader(b))
	if res.StatusCode != http.StatusOK {
		return nil
	}
	var a struct {
		Result struct {
			Credentials struct {
				AccessKeyID     string `xml:"AccessKeyId"`
				SecretAccessKey string
				SessionToken    string
				Expiration      time.Time
			}
		} `xml:"AssumeRoleWithWebIdentityResult"`
	}
	if err := xml.Unmarshal(b, &a); err != nil {
		return fmt.Errorf("answer of STS: %w", err)
	}
	form, c := formOf(res.Request.Context()), a.Result.Credentials
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sessions = append(t.sessions, session{
		Handle: form.Get("RoleSessionName"), Policy: form.Get("Policy"), Asked: time.Now(), Expires: c.Expiration,
		Keys: aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken},
	})
	return nil
}

// breakWith lets h answer in place of STS; nil repairs it.
func (t *tap) breakWith(h http.Handler) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fault = h
}

func (t *tap) minted() []session {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]session(nil), t.sessions...)
}

func (t *tap) asked() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.calls
}

// secrets are named for the search; access key ids are none.
func (t *tap) secrets() map[string]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string]string{}
	for i, s := range t.sessions {
		out[fmt.Sprintf("secret key #%d (%s)", i, s.Handle)] = s.Keys.SecretAccessKey
		out[fmt.Sprintf("session token #%d (%s)", i, s.Handle)] = s.Keys.SessionToken
	}
	for i, token := range t.tokens {
		out[fmt.Sprintf("web identity token #%d", i)] = token
	}
	return out
}
