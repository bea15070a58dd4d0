package ui

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/attache-dev/attache/audit"
)

func TestHeaders(t *testing.T) {
	h := world(t, nil)
	h.login()
	for _, path := range []string{"/", "/login", "/nothing", "/export?format=csv"} {
		_, _, header := h.get(path)
		for k, want := range map[string]string{"Content-Security-Policy": contentPolicy, "Cache-Control": "no-store", "X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin"} {
			if got := header.Get(k); got != want {
				t.Errorf("%s: %s is %q, want %q", path, k, got, want)
			}
		}
	}
	if strings.Contains(contentPolicy, "unsafe") || !strings.Contains(contentPolicy, "frame-ancestors 'none'") || !strings.Contains(contentPolicy, "default-src 'none'") {
		t.Errorf("content policy %q", contentPolicy)
	}
	for name := range h.page.pages.assets {
		if _, _, header := h.get("/static/" + name); !strings.Contains(header.Get("Cache-Control"), "immutable") {
			t.Errorf("%s is fetched anew each time", name)
		}
	}
}

// A browser that somebody's DNS led here gets nothing.
func TestForeignHostIsRefused(t *testing.T) {
	h := world(t, nil)
	h.login()
	for _, host := range []string{"evil.example", "evil.example:443", "127.0.0.1", "localhost.evil.example", "127.0.0.1.nip.io"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.srv.URL+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		if status, body, _ := h.do(r); status != http.StatusMisdirectedRequest || strings.Contains(body, host) || strings.Contains(body, "<") {
			t.Errorf("%s: %d %s", host, status, body)
		}
	}
}

// No page of another site makes this one act.
func TestForeignFormsAreRefused(t *testing.T) {
	h := world(t, nil)
	h.login()
	good := token(t, h.page200("/"))
	form := func(token string) url.Values {
		return url.Values{"form_token": {token}, "credential": {"cred_" + hexOf("a")}}
	}
	for _, tt := range []struct {
		name    string
		form    url.Values
		headers []string
	}{
		{"no token", form(""), nil},
		{"another session's token", form(h.page.sessions.seal.formToken("other")), nil},
		{"another site", form(good), []string{"Sec-Fetch-Site", "cross-site"}},
		{"a sibling site", form(good), []string{"Sec-Fetch-Site", "same-site"}},
		{"another origin", form(good), []string{"Origin", "https://evil.example"}},
		{"no origin", form(good), []string{"Origin", "null"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, path := range []string{"/revoke", "/logout"} {
				if status, body, _ := h.post(path, tt.form, tt.headers...); status != http.StatusForbidden {
					t.Errorf("%s: %d %s", path, status, textOf(body))
				}
			}
		})
	}
	if len(h.orders) != 0 {
		t.Fatalf("orders: %+v", h.orders)
	}
	if status, _, _ := h.post("/revoke", form(good), "Sec-Fetch-Site", "same-origin", "Origin", h.srv.URL); status != http.StatusOK || len(h.orders) != 1 {
		t.Errorf("the page's own form: %d", status)
	}
	for _, method := range []string{http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodTrace, "PROPFIND"} {
		r, err := http.NewRequestWithContext(t.Context(), method, h.srv.URL+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if status, _, _ := h.do(r); status != http.StatusMethodNotAllowed {
			t.Errorf("%s: %d", method, status)
		}
	}
}

func TestLinkWorksOnce(t *testing.T) {
	h := world(t, nil)
	path := "/login/finish?token=" + h.page.c.Link.token
	if status, body, _ := h.get("/login/finish?token=wrong"); status != http.StatusUnauthorized || !strings.Contains(body, "not the one that was printed") {
		t.Errorf("a wrong link: %d %s", status, textOf(body))
	}
	h.login()
	other := h.c
	h.c = h.browser()
	if status, body, _ := h.get(path); status != http.StatusUnauthorized || !strings.Contains(body, "has been used") {
		t.Errorf("the second use: %d %s", status, textOf(body))
	}
	if status, body, _ := h.get("/"); status != http.StatusUnauthorized || !strings.Contains(body, "attache audit ui") {
		t.Errorf("without a session: %d %s", status, textOf(body))
	}
	h.c = other
	body := h.page200("/")
	if status, out, _ := h.post("/logout", url.Values{"form_token": {token(t, body)}}); status != http.StatusOK || !strings.Contains(out, "Logged out") {
		t.Errorf("log-out: %d %s", status, textOf(out))
	}
	if status, _, _ := h.get("/"); status != http.StatusUnauthorized {
		t.Errorf("after log-out: %d", status)
	}
	for name, want := range map[string]int{audit.EventLoginOK: 1, audit.EventLoginFailed: 2, audit.EventLogout: 1} {
		if got := len(h.named(name)); got != want {
			t.Errorf("%s: %d events, want %d", name, got, want)
		}
	}
}

func TestLinkExpires(t *testing.T) {
	c := newClock()
	l := NewLink(1, "ada", c.t)
	if err := l.take(l.token, c.t.Add(linkLife+time.Second)); !errors.Is(err, errLinkOld) {
		t.Errorf("got %v", err)
	}
	if !strings.HasPrefix(l.URL(), "http://127.0.0.1:1/login/finish?token=") {
		t.Errorf("got %s", l.URL())
	}
}

func TestExpiredSessionSaysSo(t *testing.T) {
	h := world(t, nil)
	h.login()
	h.clock.advance(31 * time.Minute)
	if status, body, _ := h.get("/search?q=x"); status != http.StatusUnauthorized || !strings.Contains(body, "the session has expired") {
		t.Errorf("got %d %s", status, textOf(body))
	}
}

// What cannot be recorded is not shown, and not done.
func TestWithoutARecordThereIsNoAnswer(t *testing.T) {
	h := world(t, nil)
	h.login()
	body := h.page200("/")
	h.broken = true
	for _, path := range append(everyPage("a")[:19], "/export?format=csv") {
		if status, body, _ := h.get(path); status != http.StatusServiceUnavailable || strings.Contains(body, "payments") || strings.Contains(body, "disk") {
			t.Errorf("%s: %d %s", path, status, textOf(body))
		}
	}
	if status, _, _ := h.post("/revoke", url.Values{"form_token": {token(t, body)}, "credential": {"cred_" + hexOf("a")}}); status != http.StatusServiceUnavailable || len(h.orders) != 0 {
		t.Errorf("revoked without a record: %d", status)
	}
	h.c = h.browser()
	h.page.c.Link.used = false
	if status, _, _ := h.get("/login/finish?token=" + h.page.c.Link.token); status != http.StatusServiceUnavailable {
		t.Errorf("logged in without a record: %d", status)
	}
}

func TestRateLimit(t *testing.T) {
	h := world(t, nil)
	h.login()
	var busy int
	for range burst + 10 {
		status, body, header := h.get("/policy/x")
		if status == http.StatusTooManyRequests {
			busy++
			if header.Get("Retry-After") == "" || !strings.Contains(body, "Too many") {
				t.Fatalf("got %s", textOf(body))
			}
		}
	}
	if busy == 0 {
		t.Error("nothing was refused")
	}
	h.clock.advance(10 * time.Second)
	h.page200("/policy/x")
	// Another session is not held up.
	h.as(Person{Subject: "ada"})
	h.page200("/policy/x")
}

func TestQueriesWaitForAPlace(t *testing.T) {
	l := newLimits(time.Now)
	var release []func()
	for range maxQueries {
		f, err := l.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		release = append(release, f)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.enter(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	release[0]()
	if _, err := l.enter(t.Context()); err != nil {
		t.Errorf("got %v", err)
	}
	var live []func()
	for range maxLive {
		f, err := l.enterLive("s")
		if err != nil {
			t.Fatal(err)
		}
		live = append(live, f)
	}
	if _, err := l.enterLive("s"); !errors.Is(err, errBusy) {
		t.Errorf("got %v", err)
	}
	if _, err := l.enterLive("other"); err != nil {
		t.Errorf("got %v", err)
	}
	live[0]()
	if _, err := l.enterLive("s"); err != nil {
		t.Errorf("got %v", err)
	}
}

// watched looks at something whenever a file is written to it.
type watched struct {
	*httptest.ResponseRecorder
	look func()
}

func (w watched) Write(b []byte) (int, error) { w.look(); return w.ResponseRecorder.Write(b) }

// Who reads an export slowly keeps nobody from the pages.
func TestExportHoldsNoPlace(t *testing.T) {
	h := world(t, nil)
	looked := 0
	w := watched{httptest.NewRecorder(), func() {
		looked++
		if n := len(h.page.limits.queries); n != 0 {
			t.Errorf("%d places are taken while the file is written", n)
		}
	}}
	v := &visit{session: &session{ID: "s"}, audit: Scope{All: true}}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/export?format=csv&q=", nil)
	if err := h.page.export(w, r, v); err != nil || looked == 0 {
		t.Errorf("%v, written %d times", err, looked)
	}
	for range maxLive {
		done, err := h.page.limits.enterLive("export/s")
		if err != nil {
			t.Fatal(err)
		}
		defer done()
	}
	if err := h.page.export(w, r, v); !errors.Is(err, errBusy) {
		t.Errorf("a fifth export at once: %v", err)
	}
}

// Who cannot log in cannot fill the spool with that either.
func TestFailedLogInsAreBounded(t *testing.T) {
	h := world(t, nil)
	for range 100 {
		if status, _, _ := h.get("/login/finish?token=guess"); status != http.StatusUnauthorized {
			t.Fatalf("%d", status)
		}
	}
	if n := len(h.named(audit.EventLoginFailed)); n != 30 {
		t.Errorf("%d are recorded", n)
	}
	h.clock.advance(time.Second)
	h.get("/login/finish?token=guess")
	if l := h.named(audit.EventLoginFailed); len(l) != 31 || l[30].Event.Fields["unrecorded"] != "70" {
		t.Errorf("%d are recorded; the last: %v", len(l), l[len(l)-1].Event.Fields)
	}
}

func TestNewChecksItsConfig(t *testing.T) {
	c := newClock()
	db := newDB(t, c)
	rec := func(context.Context, *audit.Record) error { return nil }
	link := NewLink(1, "ada", c.t)
	grants := []Grant{subject(Viewer, "x", "a")}
	for _, tt := range []struct {
		conf Config
		want string
	}{
		{Config{Record: rec, Link: link, Hosts: []string{"x"}}, "no store"},
		{Config{Store: db, Link: link, Hosts: []string{"x"}}, "nobody records"},
		{Config{Store: db, Record: rec, Hosts: []string{"x"}}, "needs a log-in"},
		{Config{Store: db, Record: rec, Link: link, OIDC: &OIDC{}, Hosts: []string{"x"}}, "needs a log-in"},
		{Config{Store: db, Record: rec, Link: link}, "needs the names"},
		{Config{Store: db, Record: rec, Link: link, Hosts: []string{"x"}, SessionKey: []byte("short")}, "at least 32"},
		{Config{Store: db, Record: rec, Hosts: []string{"x"}, OIDC: &OIDC{Issuer: "login", ClientID: "a", URL: "https://x", Grants: grants}}, "oidc.issuer"},
		{Config{Store: db, Record: rec, Hosts: []string{"x"}, OIDC: &OIDC{Issuer: "https://l", URL: "https://x", Grants: grants}}, "oidc.clientID"},
		{Config{Store: db, Record: rec, Hosts: []string{"x"}, OIDC: &OIDC{Issuer: "https://l", ClientID: "a", URL: "ftp://x", Grants: grants}}, "oidc.url"},
		{Config{Store: db, Record: rec, Hosts: []string{"x"}, OIDC: &OIDC{Issuer: "https://l", ClientID: "a", URL: "https://x"}}, "grants: is empty"},
		{Config{Store: db, Record: rec, Hosts: []string{"x"}, OIDC: &OIDC{Issuer: "https://l", ClientID: "a", URL: "https://x", Grants: []Grant{{Role: "boss"}}}}, "grants[0].role"},
	} {
		if _, err := New(tt.conf); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
}

// The stream gives what comes, of the reader's namespaces only.
func TestLiveEvents(t *testing.T) {
	h := world(t, grantsFor(subject(Viewer, "va", "a")))
	h.as(Person{Subject: "va"})
	body := h.page200("/live")
	at := linkIn(t, body, `data-events="`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, h.srv.URL+at, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := h.c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if got := res.Header.Get("Content-Type"); !strings.HasPrefix(got, "text/event-stream") {
		t.Fatalf("content type %q", got)
	}
	fill(t, h.db, sample("rec_b7", "b", h.clock.t))
	fill(t, h.db, sample("rec_a7", "a", h.clock.t))
	got := ""
	buf := make([]byte, 4096)
	for !strings.Contains(got, "rec_a7") {
		n, err := res.Body.Read(buf)
		got += string(buf[:n])
		if err != nil {
			t.Fatalf("%v after %q", err, got)
		}
	}
	if !strings.Contains(got, "event: row\nid: ") || strings.Contains(got, "rec_b7") || strings.Contains(got, "payments-b") {
		t.Errorf("got %s", got)
	}
	for line := range strings.Lines(got) {
		if k, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":"); k != "event" && k != "id" && k != "data" && k != "" {
			t.Errorf("a line that no stream has: %q", line)
		}
	}
}

func linkIn(t *testing.T, body, before string) string {
	t.Helper()
	_, rest, ok := strings.Cut(body, before)
	if !ok {
		t.Fatalf("no %s", before)
	}
	link, _, _ := strings.Cut(rest, `"`)
	return strings.NewReplacer("&amp;", "&", "&#43;", "+").Replace(link)
}

// Nor can who is logged in, and may see nothing.
func TestRefusalsAreBounded(t *testing.T) {
	h := world(t, grantsFor(subject(Viewer, "viewer", "a")))
	for _, who := range []string{"nobody", "other"} {
		h.as(Person{Subject: who})
		for range 60 {
			if status, _, _ := h.get("/"); status != http.StatusForbidden && status != http.StatusTooManyRequests {
				t.Fatalf("%d", status)
			}
			h.clock.advance(100 * time.Millisecond)
		}
	}
	h.clock.advance(time.Second)
	h.get("/")
	l := h.named(audit.EventAccessRejected)
	untold, err := strconv.Atoi(l[len(l)-1].Event.Fields["unrecorded"])
	if len(l) > 2*(30+7) || err != nil || untold < 1 || untold > 30 {
		t.Errorf("%d are recorded, and %d of one person only counted: %v", len(l), untold, err)
	}
}

// Refusals that nobody follows are recorded too, with how many they were:
// within a minute, or when the page ends; and when the record failed, later.
func TestEveryRefusalIsTold(t *testing.T) {
	h := world(t, grantsFor(subject(Viewer, "viewer", "a")))
	synctest.Test(t, func(t *testing.T) {
		h.page.c.Now = time.Now
		told := func(name, of string) (n int) {
			t.Helper()
			for _, e := range h.named(name) {
				if e.Event.Fields["subject"] != of {
					continue
				}
				n++
				if more := e.Event.Fields["unrecorded"]; more != "" {
					m, err := strconv.Atoi(more)
					if err != nil || m < 1 {
						t.Errorf("unrecorded: %q", more)
					}
					n += m
				}
			}
			return n
		}
		refuse := func(n int) {
			r := httptest.NewRequest(http.MethodGet, "/policy/x", nil)
			for range n {
				if err := h.page.loginFailed(r, errFlow); err != nil && !errors.Is(err, errUnrecorded) {
					t.Fatal(err)
				}
				for _, who := range []string{"one", "two"} {
					if err := h.page.accessRejected(r, &visit{session: &session{Person: Person{Subject: who}}}); err != nil && !errors.Is(err, errUnrecorded) {
						t.Fatal(err)
					}
				}
			}
		}
		check := func(when string, want int) {
			t.Helper()
			if a, b, c := told(audit.EventAccessRejected, "one"), told(audit.EventAccessRejected, "two"), told(audit.EventLoginFailed, ""); a != want || b != want || c != want {
				t.Errorf("%s: %d, %d and %d are told of %d", when, a, b, c, want)
			}
		}
		stop := h.page.Sweep(t.Context())
		refuse(1000)
		check("at once", failuresBurst)
		last := time.Now()
		time.Sleep(tellRefusals)
		synctest.Wait()
		check("a minute later", 1000)
		if l := h.named(audit.EventAccessRejected); !l[len(l)-1].Time.Equal(last) || l[len(l)-1].Event.Fields["page"] != "/policy/x" {
			t.Errorf("told: %+v", l[len(l)-1])
		}
		breaks := func(b bool) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.broken = b
		}
		breaks(true)
		refuse(100)
		time.Sleep(2 * tellRefusals)
		synctest.Wait()
		check("while nothing can be recorded", 1000)
		breaks(false)
		time.Sleep(tellRefusals)
		synctest.Wait()
		check("when it can", 1100)
		refuse(50)
		stop()
		check("at the end", 1150)
	})
}

// Whose refusals are told is forgotten when there are too many, never the number.
func TestRefusalsOfManyAreCounted(t *testing.T) {
	l := newLimits(time.Now)
	f := &refusal{name: audit.EventAccessRejected}
	for i := range maxLimited + 10 {
		l.giveBack(summed{strconv.Itoa(i), f, 2})
	}
	n := 0
	for _, b := range l.takeRefused() {
		n += b.n
	}
	if n != 2*(maxLimited+10) || len(l.refused) > maxLimited+1 {
		t.Errorf("%d of %d in %d", n, 2*(maxLimited+10), len(l.refused))
	}
	l.giveBack(summed{"new", f, 1})
	if len(l.refused) > maxLimited {
		t.Errorf("%d are remembered", len(l.refused))
	}
}

// A record names nobody for what others did: beyond those who are told apart one
// that stands for several says so. A failed log-in is no refusal of theirs.
func TestNobodyIsNamedForOthers(t *testing.T) {
	h := world(t, grantsFor(subject(Viewer, "viewer", "a")))
	for i := range maxLimited {
		h.page.limits.refused["person "+strconv.Itoa(i)] = &refusals{Limiter: rate.NewLimiter(0, 0), untold: 1, last: &refusal{}}
	}
	r := httptest.NewRequest(http.MethodGet, "/policy/x", nil)
	refuse := func(who string) {
		t.Helper()
		if err := h.page.accessRejected(r, &visit{session: &session{Person: Person{Subject: who, Issuer: "https://login.example.com"}}}); err != nil && !errors.Is(err, errUnrecorded) {
			t.Fatal(err)
		}
	}
	last := func(event string, n int, want map[string]string) {
		t.Helper()
		l := h.named(event)
		if len(l) != n {
			t.Fatalf("%d records, want %d", len(l), n)
		}
		if got := l[n-1].Event.Fields; !maps.Equal(got, want) {
			t.Errorf("record %d has %v, want %v", n, got, want)
		}
	}
	named := func(who string) map[string]string {
		return map[string]string{"by": who, "subject": who, "issuer": "https://login.example.com", "page": "/policy/x"}
	}
	for i := range failuresBurst {
		refuse(strconv.Itoa(-i))
	}
	refuse("ada")
	refuse("bob")
	last(audit.EventAccessRejected, failuresBurst, named(strconv.Itoa(1-failuresBurst)))
	if err := h.page.loginFailed(r, errFlow); err != nil {
		t.Fatal(err)
	}
	last(audit.EventLoginFailed, 1, map[string]string{"reason": errFlow.Error(), "remote": r.RemoteAddr})
	h.clock.advance(time.Second)
	h.broken = true
	refuse("cyd")
	h.broken = false
	h.clock.advance(time.Second)
	refuse("dan")
	last(audit.EventAccessRejected, failuresBurst+1, map[string]string{"people": "several", "unrecorded": "3"})
	refuse("eve") // one alone, by its name
	for k := range h.page.limits.refused {
		if k != othersKey {
			delete(h.page.limits.refused, k)
		}
	}
	h.page.tellAll(t.Context())
	last(audit.EventAccessRejected, failuresBurst+2, named("eve"))
}
