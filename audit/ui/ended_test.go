package ui

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
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

// However many log out, each is remembered until the session is dead by its age.
func TestLogoutsAreForgottenByAge(t *testing.T) {
	c := newClock()
	s := &sessions{now: c.now}
	v := func(i int) *session { return &session{ID: strconv.Itoa(i), Began: c.now()} }
	const many = 30000
	first := v(0)
	for i := range many {
		s.forget(markOf(strconv.Itoa(i)), c.now())
	}
	c.advance(absoluteLimit - time.Minute)
	s.forget(markOf("later"), c.now())
	if s.alive(first) || len(s.ended) != many+1 {
		t.Errorf("%d of %d log-outs are remembered; the first: %v", len(s.ended), many+1, !s.alive(first))
	}
	c.advance(time.Hour)
	s.forget(markOf("last"), c.now())
	if len(s.ended) != 2 || s.alive(v(0)) != true {
		t.Errorf("%d log-outs are remembered, of which two may matter", len(s.ended))
	}
}

// Only the control plane's own record of that name ends a session.
func TestOnlyTheControlPlaneEndsSessions(t *testing.T) {
	c := newClock()
	db := newDB(t, c)
	h := serve(t, db, c, func(h *harness, conf *Config) {
		grantsFor(subject(Viewer, "ada", AllNamespaces))(h, conf)
		conf.SessionKey = key(7)
	})
	record := func(name, mark string) audit.Record {
		return audit.Record{Type: audit.TypeEvent, Time: c.now(), Event: &audit.Event{Name: name, Fields: map[string]string{"session": mark}}}
	}
	agent := store.Producer{ID: "0a1b2c3d-0000-4000-8000-000000000001", Kind: audit.KindSidecar, Namespace: "team"}
	named := agent
	named.ID = "control/of-another-namespace"
	all := func(of string) {
		fillAs(t, db, agent, record(audit.EventLogout, of+"sidecar"), record("LOGOUT", of+"sidecar in capitals"))
		fillAs(t, db, named, record(audit.EventLogout, of+"named"))
		fillAs(t, db, controlPlane(), record(audit.EventLogout, of+"ours"), record("Logout", of+"spelled"), record(audit.EventAuditQuery, of+"other"))
	}
	for _, of := range []string{"before ", "later "} {
		all(of)
		if err := h.page.learnEnds(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.advance(endedEvery)
	}
	if e := h.page.sessions.ended; len(e) != 2 || e["before ours"].IsZero() || e["later ours"].IsZero() {
		t.Errorf("ended: %v", e)
	}
}

// Until a replica knows who has logged out it believes nobody; afterwards it may
// be late by seconds.
func TestNobodyIsBelievedBeforeLogoutsAreKnown(t *testing.T) {
	c := newClock()
	db := newDB(t, c)
	h := serve(t, db, c, func(h *harness, conf *Config) {
		grantsFor(subject(Viewer, "ada", AllNamespaces))(h, conf)
		conf.SessionKey = key(7)
	})
	h.as(Person{Subject: "ada"})
	broken := errors.New("the store is away")
	var asked int
	learn := func(ctx context.Context, now time.Time) error {
		if asked++; asked <= 2 {
			return broken
		}
		return h.page.readEnds(ctx, now)
	}
	h.page.ends = ends{learn: learn} // it has just started
	status, _, header := h.get("/")
	if status != http.StatusServiceUnavailable || header.Get("Retry-After") == "" {
		t.Errorf("nothing could be read: %d", status)
	}
	if status, _, _ := h.post("/logout", nil); status != http.StatusForbidden { // its form has no token here
		t.Errorf("a log-out meanwhile: %d", status)
	}
	if status, _, _ := h.get("/"); status != http.StatusOK || asked != 3 {
		t.Errorf("when all is known: %d, asked %d times", status, asked)
	}
	c.advance(endedEvery)
	fail := func() error {
		h.page.ends.learn = func(context.Context, time.Time) error { return broken }
		defer func() { h.page.ends.learn = learn }()
		return h.page.learnEnds(t.Context())
	}
	if err := fail(); err != nil {
		t.Errorf("%s after the last reading: %v", endedEvery, err)
	}
	c.advance(endedLate - endedEvery)
	if err := fail(); !errors.Is(err, errEnds) {
		t.Errorf("%s after the last reading: %v", endedLate, err)
	}
	if status, _, _ := h.get("/"); status != http.StatusOK {
		t.Errorf("when the store answers again: %d", status)
	}
}

// One reading is for all who wait, whoever of them hangs up and whenever they
// came, and a slow one is waited for no longer than a page may take.
func TestAReadingOfLogoutsIsNobodysOwn(t *testing.T) {
	c := newClock()
	h := serve(t, newDB(t, c), c, grantsFor(subject(Viewer, "ada", AllNamespaces)))
	synctest.Test(t, func(t *testing.T) {
		h.page.c.Now = time.Now
		readings, took := 0, 3*time.Second
		h.page.ends = ends{learn: func(ctx context.Context, _ time.Time) error {
			readings++
			select {
			case <-time.After(took):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
		ask := func(ctx context.Context) chan error {
			got := make(chan error, 1)
			go func() { got <- h.page.learnEnds(ctx) }()
			synctest.Wait()
			return got
		}
		hangsUp, cancel := context.WithCancel(t.Context())
		first := ask(hangsUp)
		cancel()
		if err := <-first; !errors.Is(err, errEnds) {
			t.Errorf("who hung up: %v", err)
		}
		began := time.Now()
		if err := <-ask(t.Context()); !errors.Is(err, errEnds) || time.Since(began) != endedWait {
			t.Errorf("a page waited %s: %v", time.Since(began), err)
		}
		var late []chan error // with a second to go
		for range 10 {
			late = append(late, ask(t.Context()))
		}
		for _, l := range late {
			if err := <-l; err != nil {
				t.Errorf("who waits while the first has hung up: %v", err)
			}
		}
		if readings != 1 || time.Since(began) != took {
			t.Errorf("%d readings in %s", readings, time.Since(began))
		}
		took = time.Hour // the store hangs
		known := began
		for time.Since(known) < endedLate-endedWait {
			if err := <-ask(t.Context()); err != nil {
				t.Errorf("%s after what is known: %v", time.Since(known), err)
			}
		}
		if err := <-ask(t.Context()); !errors.Is(err, errEnds) {
			t.Errorf("%s after what is known: %v", time.Since(known), err)
		}
		if readings > 3 {
			t.Errorf("%d readings", readings)
		}
		took = 0
		time.Sleep(endedRead) // of the bubble: the reading that hangs is given up
		if err := <-ask(t.Context()); err != nil {
			t.Errorf("when the store answers again: %v", err)
		}
	})
}

// A reading that panics is one that failed: all who wait are told at once, the
// process lives, and the next one is made.
func TestAReadingOfLogoutsThatPanics(t *testing.T) {
	c := newClock()
	h := serve(t, newDB(t, c), c, grantsFor(subject(Viewer, "ada", AllNamespaces)))
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		h.page.log = slog.New(slog.NewTextHandler(&out, nil))
		h.page.c.Now = time.Now
		began, panics := time.Now(), true
		h.page.ends = ends{learn: func(context.Context, time.Time) error {
			time.Sleep(time.Second)
			if panics {
				panic("too bad")
			}
			return nil
		}}
		got := make(chan error, 3)
		for range cap(got) {
			go func() { got <- h.page.learnEnds(t.Context()) }()
		}
		for range cap(got) {
			if err := <-got; !errors.Is(err, errEnds) || time.Since(began) != time.Second {
				t.Errorf("who waits is told after %s: %v", time.Since(began), err)
			}
		}
		if !strings.Contains(out.String(), "level=ERROR") || !strings.Contains(out.String(), "too bad") || !strings.Contains(out.String(), "ended_test.go") {
			t.Errorf("logged: %s", &out)
		}
		panics = false
		if err := h.page.learnEnds(t.Context()); err != nil {
			t.Errorf("the next reading: %v", err)
		}
	})
}

// Who has no cookie of ours makes the store do nothing.
func TestStrangersDoNotAskForLogouts(t *testing.T) {
	c := newClock()
	h := serve(t, newDB(t, c), c, grantsFor(subject(Viewer, "ada", AllNamespaces)))
	var readings atomic.Int32
	h.page.ends = ends{learn: func(context.Context, time.Time) error { readings.Add(1); return errors.New("the store is away") }}
	home, err := url.Parse(h.srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	h.as(Person{Subject: "ada"})
	mine := keptCookies(h, home)
	for name, value := range map[string]string{"no cookie": "", "no cookie of ours": "AAAA", "a changed one": mine[0].Value[1:]} {
		h.c = h.browser()
		if value != "" {
			forged := *mine[0]
			forged.Value = value
			h.c.Jar.SetCookies(home, []*http.Cookie{&forged})
		}
		for _, path := range []string{"/", "/live/events", "/logout"} {
			if status, _, _ := h.get(path); status == http.StatusOK || status == http.StatusServiceUnavailable || readings.Load() != 0 {
				t.Errorf("%s, %s: %d, and the store was asked %d times", name, path, status, readings.Load())
			}
		}
	}
	h.c = h.browser()
	h.c.Jar.SetCookies(home, mine)
	if status, _, _ := h.get("/"); status != http.StatusServiceUnavailable || readings.Load() != 1 {
		t.Errorf("with a session: %d, and the store was asked %d times", status, readings.Load())
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
