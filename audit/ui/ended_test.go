package ui

import (
	"context"
	"net/http"
	"net/url"
	"testing"

	"github.com/attache-dev/attache/audit"
)

// A log-out ends the session at every replica that shares key and store, within
// seconds, and stays after a restart; other sessions live on.
func TestLogoutHoldsAtReplicas(t *testing.T) {
	c := newClock()
	db := newDB(t, c)
	replica := func() *harness {
		return serve(t, db, c, func(h *harness, conf *Config) {
			grantsFor(subject(Viewer, "ada", AllNamespaces), subject(Viewer, "bob", AllNamespaces))(h, conf)
			conf.SessionKey = key(7)
			conf.Record = func(_ context.Context, r *audit.Record) error { // as the trail's goes to the store
				if r.Event.Name == audit.EventLogout {
					fillAs(t, db, controlPlane(), *r)
				}
				return nil
			}
		})
	}
	one, two := replica(), replica()
	one.as(Person{Subject: "bob"})
	bob := one.c.Jar
	one.as(Person{Subject: "ada"})
	home, err := url.Parse(one.srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	stolen := two.browser()
	stolen.Jar.SetCookies(home, keptCookies(one, home))
	at := func(h *harness, who http.CookieJar) int {
		t.Helper()
		h.c = h.browser()
		h.c.Jar = who
		status, _, _ := h.get("/")
		return status
	}
	if got := at(two, stolen.Jar); got != http.StatusOK {
		t.Fatalf("another replica does not know the session: %d", got)
	}
	body := one.page200("/")
	if status, _, _ := one.post("/logout", url.Values{"form_token": {token(t, body)}}); status != http.StatusOK {
		t.Fatalf("log out: %d", status)
	}
	if got := at(one, stolen.Jar); got != http.StatusUnauthorized {
		t.Errorf("the replica of the log-out takes the cookie: %d", got)
	}
	c.advance(endedEvery)
	if got := at(two, stolen.Jar); got != http.StatusUnauthorized {
		t.Errorf("another replica takes the cookie after %s: %d", endedEvery, got)
	}
	three := replica()
	if got := at(three, stolen.Jar); got != http.StatusUnauthorized {
		t.Errorf("a replica that has just started takes the cookie: %d", got)
	}
	for _, h := range []*harness{one, two, three} {
		if got := at(h, bob); got != http.StatusOK {
			t.Errorf("somebody else was logged out: %d", got)
		}
	}
}

// keptCookies are those of a browser, as who copied them has them.
func keptCookies(h *harness, home *url.URL) []*http.Cookie {
	l := h.c.Jar.Cookies(home)
	for _, k := range l {
		k.Path, k.Secure = "/", true
	}
	return l
}
