package ui

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/test/servers"
)

// cluster is a review page behind a real OpenID provider.
func cluster(t *testing.T, db *store.DB, c *clock) (*harness, *servers.OIDC) {
	t.Helper()
	var op *servers.OIDC
	h := serve(t, db, c, func(h *harness, conf *Config) {
		var err error
		op, err = servers.StartOIDC(context.WithoutCancel(t.Context()), servers.OIDCOptions{
			Clients: []map[string]any{{"client_id": "page", "client_secret": "page-secret", "redirect_uris": []string{h.srv.URL + "/login/finish"},
				"response_types": []string{"code"}, "grant_types": []string{"authorization_code"}, "token_endpoint_auth_method": "client_secret_basic"}},
			People: map[string]map[string]any{
				"ana":     {"email": "ana@example.com", "email_verified": true, "groups": []string{"team-a", "unrelated"}},
				"bob":     {"email": "bob@example.com", "email_verified": true, "groups": []string{"team-b"}},
				"mallory": {"email": "boss@example.com", "email_verified": false, "groups": []string{"none"}},
			},
		})
		if errors.Is(err, servers.ErrMissing) && os.Getenv("ATTACHE_REQUIRE_SERVERS") == "" {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(op.Close)
		pw := secret.New("page-secret")
		conf.OIDC = &OIDC{Issuer: op.URL, ClientID: "page", ClientSecret: &pw, URL: h.srv.URL, Grants: []Grant{
			{Role: Viewer, Namespaces: []string{"a"}, Groups: []string{"team-a"}},
			{Role: Auditor, Namespaces: []string{"b"}, Groups: []string{"team-b"}},
			{Role: Revoker, Namespaces: []string{AllNamespaces}, Emails: []string{"boss@example.com"}},
		}}
	})
	return h, op
}

// signIn follows a log-in as a browser does, up to the click on a name.
func signIn(h *harness, who, to string) (int, string) {
	h.t.Helper()
	status, body, _ := h.get("/login?go=1&to=" + url.QueryEscape(to))
	_, link, ok := strings.Cut(body, `href="/interaction/`)
	if !ok {
		h.t.Fatalf("no sign-in page: %d %s", status, textOf(body))
	}
	link, _, _ = strings.Cut(link, "?")
	at, err := url.Parse(h.page.c.OIDC.Issuer)
	if err != nil {
		h.t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(h.t.Context(), http.MethodGet, at.JoinPath("interaction", link).String()+"?as="+who, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	status, body, _ = h.do(r)
	return status, body
}

// A person who signs in at a real provider sees what their groups give them.
func TestOIDC(t *testing.T) {
	c := &clock{time.Now()}
	db := newDB(t, c)
	fill(t, db, sample("rec_aa", "a", c.t.Add(-time.Minute)))
	fill(t, db, sample("rec_bb", "b", c.t.Add(-time.Minute)))
	h, _ := cluster(t, db, c)

	status, body, _ := h.get("/search?q=type:request")
	if status != http.StatusUnauthorized || !strings.Contains(body, "Log in") || strings.Contains(body, "payments") {
		t.Fatalf("without a log-in: %d %s", status, textOf(body))
	}
	status, body = signIn(h, "ana", "/search?q=type:request")
	if status != http.StatusOK || !strings.Contains(body, "payments-a") || strings.Contains(body, "payments-b") || !strings.Contains(body, "ana@example.com") {
		t.Fatalf("ana: %d %s", status, textOf(body))
	}
	if l := h.named(audit.EventLoginOK); len(l) != 1 || l[0].Event.Fields["by"] != "ana@example.com" || l[0].Event.Fields["subject"] != "ana" {
		t.Errorf("log-ins: %+v", l)
	}
	h.c = h.browser()
	if status, body = signIn(h, "bob", "/search?q=type:request"); status != http.StatusOK || strings.Contains(body, "payments-a") || !strings.Contains(body, "payments-b") {
		t.Fatalf("bob: %d %s", status, textOf(body))
	}
	// An email that the provider did not verify is nobody's.
	h.c = h.browser()
	if status, body = signIn(h, "mallory", "/"); status != http.StatusForbidden || !strings.Contains(body, "No access") {
		t.Errorf("mallory: %d %s", status, textOf(body))
	}
	if l := h.named(audit.EventAccessRejected); len(l) != 1 {
		t.Errorf("refusals: %+v", l)
	}
	h.c = h.browser()
	if status, body = signIn(h, "nobody", "/"); status != http.StatusUnauthorized || !strings.Contains(body, "the log-in service refused") {
		t.Errorf("access_denied: %d %s", status, textOf(body))
	}
	if l := h.named(audit.EventLoginFailed); len(l) != 1 {
		t.Errorf("failed log-ins: %+v", l)
	}
}

// What comes back must be what this browser began, now.
func TestOIDCRefusesForeignReturns(t *testing.T) {
	c := &clock{time.Now()}
	h, op := cluster(t, newDB(t, c), c)
	begin := func() url.Values {
		stop := *h.c
		stop.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.srv.URL+"/login?go=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := stop.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		u, err := res.Location()
		if err != nil || !strings.HasPrefix(u.String(), op.URL) {
			t.Fatalf("leads to %v, %v", u, err)
		}
		return u.Query()
	}
	q := begin()
	if q.Get("code_challenge_method") != "S256" || q.Get("code_challenge") == "" || q.Get("nonce") == "" || q.Get("state") == "" || q.Get("response_type") != "code" {
		t.Errorf("asks for %v", q)
	}
	for _, tt := range []struct {
		name string
		path func() string
		want string
	}{
		{"another state", func() string { begin(); return "/login/finish?code=x&state=other" }, "was not begun in this browser"},
		{"no state", func() string { begin(); return "/login/finish?code=x" }, "was not begun in this browser"},
		{"another browser", func() string { s := begin().Get("state"); h.c = h.browser(); return "/login/finish?code=x&state=" + s }, "was not begun in this browser"},
		{"too late", func() string {
			s := begin().Get("state")
			c.advance(11 * time.Minute)
			return "/login/finish?code=x&state=" + s
		}, "took too long"},
		{"a made-up code", func() string { return "/login/finish?code=x&state=" + begin().Get("state") }, "the log-in service refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if status, body, _ := h.get(tt.path()); status != http.StatusUnauthorized || !strings.Contains(body, tt.want) {
				t.Errorf("got %d %s", status, textOf(body))
			}
		})
	}
	op.Close()
	h.page.c.OIDC.prov = nil
	if status, body, _ := h.get("/login?go=1"); !strings.Contains(body, "does not answer") {
		t.Errorf("the provider is away: %d %s", status, textOf(body))
	}
}

// A token that was made for another log-in is refused: its nonce is not that of
// the flow which this browser began.
func TestOIDCRefusesAnotherNonce(t *testing.T) {
	c := &clock{time.Now()}
	h, _ := cluster(t, newDB(t, c), c)
	for _, other := range []bool{false, true} {
		h.c = h.browser()
		var back *url.URL
		follow := h.c.CheckRedirect
		h.c.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
			if r.URL.Path == "/login/finish" {
				back = r.URL
				return http.ErrUseLastResponse
			}
			return nil
		}
		signIn(h, "ana", "/logout")
		if back == nil {
			t.Fatal("the provider did not lead back")
		}
		h.c.CheckRedirect = follow
		home, err := url.Parse(h.srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		for _, cookie := range h.c.Jar.Cookies(home) {
			if cookie.Name != flowCookie || !other {
				continue
			}
			var f flow
			if err := h.page.sessions.seal.open(flowCookie, cookie.Value, &f); err != nil {
				t.Fatal(err)
			}
			f.Nonce = "another"
			text, err := h.page.sessions.seal.seal(flowCookie, f)
			if err != nil {
				t.Fatal(err)
			}
			h.c.Jar.SetCookies(home, []*http.Cookie{{Name: flowCookie, Value: text, Path: "/", Secure: true}})
		}
		_, body, _ := h.get("/login/finish?" + back.RawQuery)
		if refused := strings.Contains(body, "does not hold"); refused != other {
			t.Errorf("another nonce %v: %s", other, textOf(body))
		}
	}
}
