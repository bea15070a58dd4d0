package ui

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/attache-dev/attache/audit"
)

// linkLife is how long the printed link may be used.
const linkLife = time.Hour

// Link logs in the one person of a laptop, who read the address in a terminal.
// It works once. Make it with [NewLink].
type Link struct {
	token string
	port  int
	made  time.Time
	name  string

	mu   sync.Mutex // guards used
	used bool
}

// NewLink makes a link for a page at 127.0.0.1:port; name is the person's, for
// records.
func NewLink(port int, name string, now time.Time) *Link {
	return &Link{token: rand.Text(), port: port, made: now, name: name}
}

// URL is to be printed for the person, and nowhere else.
func (l *Link) URL() string {
	return "http://127.0.0.1:" + strconv.Itoa(l.port) + "/login/finish?token=" + url.QueryEscape(l.token)
}

// Hosts are the names of the page, for [Config].
func (l *Link) Hosts() []string {
	p := ":" + strconv.Itoa(l.port)
	return []string{"127.0.0.1" + p, "localhost" + p}
}

// cookie has the port in its name: browsers share cookies over all ports.
func (l *Link) cookie() string { return "attache-audit-" + strconv.Itoa(l.port) }

func (l *Link) grants() []Grant {
	all := []string{AllNamespaces}
	return []Grant{{Role: Auditor, Namespaces: all, Subjects: []string{l.name}}, {Role: Revoker, Namespaces: all, Subjects: []string{l.name}}}
}

var (
	errLinkUsed  = errors.New("this link has been used")
	errLinkWrong = errors.New("this link is not the one that was printed")
	errLinkOld   = errors.New("this link has expired")
)

func (l *Link) start(s *Server, w http.ResponseWriter, r *http.Request, why error) {
	s.loginPage(w, r, why)
}

func (l *Link) finish(s *Server, w http.ResponseWriter, r *http.Request) {
	if err := l.take(r.URL.Query().Get("token"), s.c.Now()); err != nil {
		if recErr := s.loginFailed(r, err); recErr != nil {
			err = recErr
		}
		s.loginPage(w, r, err)
		return
	}
	s.admit(w, r, Person{Subject: l.name}, "/")
}

// take uses the link up. A wrong token does not.
func (l *Link) take(token string, now time.Time) error {
	if subtle.ConstantTimeCompare([]byte(token), []byte(l.token)) != 1 {
		return errLinkWrong
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.used {
		return errLinkUsed
	}
	if now.Sub(l.made) > linkLife {
		return errLinkOld
	}
	l.used = true
	return nil
}

// admit makes a session, records it, and sends the browser to the page that it
// wanted.
func (s *Server) admit(w http.ResponseWriter, r *http.Request, p Person, to string) {
	if err := s.event(r.Context(), audit.EventLoginOK, &p, map[string]string{"remote": r.RemoteAddr}); err != nil {
		s.fail(w, r, nil, err)
		return
	}
	if _, err := s.sessions.begin(w, p); err != nil {
		s.fail(w, r, nil, err)
		return
	}
	http.Redirect(w, r, to, http.StatusSeeOther)
}

func (s *Server) logout(w http.ResponseWriter, r *http.Request, v *visit) error {
	if err := s.event(r.Context(), audit.EventLogout, &v.session.Person, map[string]string{"session": markOf(v.session.ID)}); err != nil {
		return err
	}
	s.sessions.end(w, v.session)
	s.pages.render(w, r, nil, http.StatusOK, "message", message{Title: "Logged out", Text: "This browser has no session any more."})
	return nil
}
