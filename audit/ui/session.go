package ui

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"time"
)

const (
	idleLimit     = 30 * time.Minute // of a session that asks nothing
	absoluteLimit = 12 * time.Hour   // of any session
	renewAfter    = time.Minute      // the cookie's time of use is written anew
	maxCookie     = 3800             // bytes; browsers keep 4096 with name and attributes
	sweepEvery    = time.Minute      // log-outs of dead sessions are forgotten
)

var (
	errNoSession = errors.New("not logged in")
	errExpired   = errors.New("the session has expired")
)

// sealer keeps small values in cookies: encrypted and authenticated, with the
// cookie's purpose bound to it. It is safe for concurrent use.
type sealer struct {
	aead cipher.AEAD
	mac  []byte
}

// newSealer derives its keys from key, which several replicas may share.
func newSealer(key []byte) (*sealer, error) {
	derive := func(use string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte("attache.audit.ui/v1\n" + use))
		return h.Sum(nil)
	}
	block, err := aes.NewCipher(derive("cookie"))
	if err != nil {
		return nil, fmt.Errorf("session key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("session key: %w", err)
	}
	return &sealer{aead: aead, mac: derive("form")}, nil
}

func (s *sealer) seal(purpose string, v any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("seal cookie: %w", err)
	}
	text := base64.RawURLEncoding.EncodeToString(s.aead.Seal(nil, nil, b, []byte(purpose)))
	if len(text) > maxCookie {
		return "", fmt.Errorf("seal cookie: %d bytes, more than a browser keeps", len(text))
	}
	return text, nil
}

func (s *sealer) open(purpose, text string, v any) error {
	if len(text) > maxCookie {
		return errNoSession
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return errNoSession
	}
	if b, err = s.aead.Open(nil, nil, b, []byte(purpose)); err != nil {
		return errNoSession
	}
	if err := json.Unmarshal(b, v); err != nil {
		return errNoSession
	}
	return nil
}

// formToken binds a form to a session: a page of another site, or another
// session, cannot know it.
func (s *sealer) formToken(sessionID string) string {
	h := hmac.New(sha256.New, s.mac)
	h.Write([]byte(sessionID))
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

func (s *sealer) checkForm(sessionID, token string) bool {
	return hmac.Equal([]byte(s.formToken(sessionID)), []byte(token))
}

// sessions makes and reads the cookies of logged-in browsers.
type sessions struct {
	seal   *sealer
	name   string // of the cookie
	secure bool   // only over TLS
	same   http.SameSite
	now    func() time.Time

	mu    sync.Mutex           // guards all below
	ended map[string]time.Time // by markOf
	swept time.Time
}

func (s *sessions) begin(w http.ResponseWriter, p Person) (*session, error) {
	now := s.now().UTC()
	v := &session{ID: rand.Text(), Person: p, Began: now, Seen: now}
	return v, s.put(w, v)
}

func (s *sessions) put(w http.ResponseWriter, v *session) error {
	text, err := s.seal.seal(s.name, v)
	if err != nil {
		return err
	}
	http.SetCookie(w, s.cookie(text, 0))
	return nil
}

func (s *sessions) cookie(value string, maxAge int) *http.Cookie {
	return &http.Cookie{Name: s.name, Value: value, Path: "/", HttpOnly: true, Secure: s.secure, SameSite: s.same, MaxAge: maxAge}
}

// read returns the session of a request, and writes its time of use anew.
// Errors match errNoSession or errExpired.
func (s *sessions) read(w http.ResponseWriter, r *http.Request) (*session, error) {
	v, err := s.open(r)
	if err != nil {
		return nil, err
	}
	if now := s.now().UTC(); now.Sub(v.Seen) > renewAfter {
		v.Seen = now
		if err := s.put(w, v); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// open returns the session of a request. Errors are those of read.
func (s *sessions) open(r *http.Request) (*session, error) {
	c, err := r.Cookie(s.name)
	if err != nil {
		return nil, errNoSession
	}
	var v session
	if err := s.seal.open(s.name, c.Value, &v); err != nil {
		return nil, err
	}
	if s.now().UTC().Sub(v.Seen) > idleLimit || !s.alive(&v) {
		return nil, errExpired
	}
	return &v, nil
}

// alive reports whether a session may still be used, however long it was idle.
func (s *sessions) alive(v *session) bool {
	now := s.now()
	s.mu.Lock()
	_, ended := s.ended[markOf(v.ID)]
	s.mu.Unlock()
	return !ended && now.Sub(v.Began) <= absoluteLimit && !now.Before(v.Began.Add(-time.Minute))
}

// end forgets a session: its cookie is dead in this replica at once, and in
// others when they have read of it in the store.
func (s *sessions) end(w http.ResponseWriter, v *session) {
	http.SetCookie(w, s.cookie("", -1))
	s.forget(markOf(v.ID), s.now())
}

// forget ends the session of a mark, as it was logged out at a time. It is
// remembered until the session is dead by its age, however many there are: each
// needed a log-in.
func (s *sessions) forget(mark string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended == nil {
		s.ended = map[string]time.Time{}
	}
	now := s.now()
	if now.Sub(s.swept) > sweepEvery {
		s.swept = now
		maps.DeleteFunc(s.ended, func(_ string, t time.Time) bool { return now.Sub(t) > absoluteLimit+sweepEvery })
	}
	if _, known := s.ended[mark]; !known {
		s.ended[mark] = at
	}
}
