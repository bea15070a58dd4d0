package ui

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
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

// A thousand log-outs hide none before them from a replica that starts.
func TestAllLogoutsAreReadAtTheStart(t *testing.T) {
	c := newClock()
	db := newDB(t, c)
	logout := func(mark string) audit.Record {
		return audit.Record{Type: audit.TypeEvent, Time: c.now(), Event: &audit.Event{Name: audit.EventLogout, Fields: map[string]string{"session": mark}}}
	}
	h := serve(t, db, c, func(h *harness, conf *Config) {
		grantsFor(subject(Viewer, "ada", AllNamespaces))(h, conf)
		conf.SessionKey = key(7)
	})
	h.as(Person{Subject: "ada"})
	v := httptest.NewRequest(http.MethodGet, "/", nil)
	home, err := url.Parse(h.srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range h.c.Jar.Cookies(home) {
		v.AddCookie(k)
	}
	stolen, err := h.page.sessions.read(httptest.NewRecorder(), v)
	if err != nil {
		t.Fatal(err)
	}
	fillAs(t, db, controlPlane(), logout(markOf(stolen.ID)))
	c.advance(time.Minute)
	many := make([]audit.Record, 2*store.MaxLimit+10)
	for i := range many {
		many[i] = logout(markOf(strconv.Itoa(i)))
	}
	fillAs(t, db, controlPlane(), many...)
	if status, _, _ := h.get("/"); status != http.StatusUnauthorized {
		t.Errorf("a cookie of before %d log-outs is taken: %d", len(many), status)
	}
	if n := len(h.page.sessions.ended); n != len(many)+1 {
		t.Errorf("%d log-outs are known, want %d", n, len(many)+1)
	}
}

// Of more log-outs than are remembered the newest are kept.
func TestOldestLogoutsAreDropped(t *testing.T) {
	c := newClock()
	s := &sessions{now: c.now}
	v := func(i int) *session { return &session{ID: strconv.Itoa(i), Began: c.now()} }
	for i := range maxEnded + 1 {
		s.forget(markOf(strconv.Itoa(i)), c.now().Add(time.Duration(i-maxEnded)*time.Millisecond))
	}
	for i := maxEnded; i > maxEnded/2; i-- {
		if s.alive(v(i)) {
			t.Fatalf("log-out %d of %d is forgotten", i, maxEnded)
		}
	}
	if len(s.ended) > maxEnded || !s.alive(v(0)) {
		t.Errorf("%d are kept, the oldest among them: %v", len(s.ended), !s.alive(v(0)))
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
