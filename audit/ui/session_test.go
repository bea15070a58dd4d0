package ui

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// clock is a time that tests move.
type clock struct{ t time.Time }

func (c *clock) now() time.Time          { return c.t }
func (c *clock) advance(d time.Duration) { c.t = c.t.Add(d) }
func newClock() *clock                   { return &clock{time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)} }
func key(b byte) []byte                  { k := make([]byte, 32); k[0] = b; return k }

func testSessions(t *testing.T, c *clock, k []byte) *sessions {
	t.Helper()
	seal, err := newSealer(k)
	if err != nil {
		t.Fatal(err)
	}
	return &sessions{seal: seal, name: "__Host-x", secure: true, same: http.SameSiteLaxMode, now: c.now}
}

// bearing is a request with the cookies that w set.
func bearing(w *httptest.ResponseRecorder) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	for _, c := range w.Result().Cookies() {
		r.AddCookie(c)
	}
	return r
}

func TestSessionExpires(t *testing.T) {
	for _, tt := range []struct {
		name  string
		after []time.Duration // each followed by a request
		alive bool
	}{
		{"at once", []time.Duration{0}, true},
		{"in use", []time.Duration{29 * time.Minute, 29 * time.Minute, 29 * time.Minute}, true},
		{"idle", []time.Duration{31 * time.Minute}, false},
		{"idle after use", []time.Duration{29 * time.Minute, 31 * time.Minute}, false},
		{"from the future", []time.Duration{-2 * time.Minute}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newClock()
			s := testSessions(t, c, key(1))
			w := httptest.NewRecorder()
			if _, err := s.begin(w, Person{Subject: "ada"}); err != nil {
				t.Fatal(err)
			}
			r := bearing(w)
			var err error
			for _, d := range tt.after {
				c.advance(d)
				w := httptest.NewRecorder()
				if _, err = s.read(w, r); err != nil {
					break
				}
				if len(w.Result().Cookies()) > 0 {
					r = bearing(w)
				}
			}
			if (err == nil) != tt.alive {
				t.Errorf("alive: got %v, want %v", err, tt.alive)
			}
		})
	}
}

// However busy, a session ends.
func TestSessionEndsAbsolutely(t *testing.T) {
	c := newClock()
	s := testSessions(t, c, key(1))
	w := httptest.NewRecorder()
	if _, err := s.begin(w, Person{Subject: "ada"}); err != nil {
		t.Fatal(err)
	}
	r := bearing(w)
	for range 12*60/20 - 1 {
		c.advance(20 * time.Minute)
		w := httptest.NewRecorder()
		if _, err := s.read(w, r); err != nil {
			t.Fatalf("after %v: %v", c.t, err)
		}
		r = bearing(w)
	}
	c.advance(21 * time.Minute)
	if _, err := s.read(httptest.NewRecorder(), r); err == nil {
		t.Error("a session of more than twelve hours is alive")
	}
}

func TestSessionRefusesForeignCookies(t *testing.T) {
	c := newClock()
	s := testSessions(t, c, key(1))
	w := httptest.NewRecorder()
	v, err := s.begin(w, Person{Subject: "ada"})
	if err != nil {
		t.Fatal(err)
	}
	r := bearing(w)
	if _, err := s.read(httptest.NewRecorder(), r); err != nil {
		t.Fatal(err)
	}
	if _, err := testSessions(t, c, key(2)).read(httptest.NewRecorder(), r); err == nil {
		t.Error("a cookie of another key is taken")
	}
	if replica := testSessions(t, c, key(1)); true {
		if _, err := replica.read(httptest.NewRecorder(), r); err != nil {
			t.Errorf("another replica with the same key: %v", err)
		}
	}
	text := w.Result().Cookies()[0].Value
	for i := range len(text) {
		b := []byte(text)
		b[i] ^= 1
		if string(b) == text {
			continue
		}
		bad := httptest.NewRequest(http.MethodGet, "/", nil)
		bad.AddCookie(&http.Cookie{Name: s.name, Value: string(b)})
		if _, err := s.read(httptest.NewRecorder(), bad); err == nil && i < len(text)-1 {
			t.Fatalf("a cookie with a changed byte %d is taken", i)
		}
	}
	// A value sealed for another purpose is no session.
	other, err := s.seal.seal("__Host-other", v)
	if err != nil {
		t.Fatal(err)
	}
	swapped := httptest.NewRequest(http.MethodGet, "/", nil)
	swapped.AddCookie(&http.Cookie{Name: s.name, Value: other})
	if _, err := s.read(httptest.NewRecorder(), swapped); err == nil {
		t.Error("a cookie of another purpose is taken")
	}
	s.end(httptest.NewRecorder(), v)
	if _, err := s.read(httptest.NewRecorder(), r); err == nil {
		t.Error("a cookie is taken after log-out")
	}
}

func TestFormTokenIsOfOneSession(t *testing.T) {
	s := testSessions(t, newClock(), key(1))
	if !s.seal.checkForm("a", s.seal.formToken("a")) || s.seal.checkForm("b", s.seal.formToken("a")) || s.seal.checkForm("a", "") {
		t.Error("form tokens are not bound to their session")
	}
	other := testSessions(t, newClock(), key(2))
	if s.seal.checkForm("a", other.seal.formToken("a")) {
		t.Error("a form token of another key is taken")
	}
}

func FuzzOpenCookie(f *testing.F) {
	seal, err := newSealer(key(1))
	if err != nil {
		f.Fatal(err)
	}
	good, err := seal.seal("p", session{ID: "x"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add("")
	f.Add("AAAA")
	f.Fuzz(func(t *testing.T, text string) {
		var s session
		if err := seal.open("p", text, &s); err == nil && text != good && s.ID != "x" {
			t.Errorf("%q opens", text)
		}
	})
}
