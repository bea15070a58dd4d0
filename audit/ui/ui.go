// Package ui is the review page: server-rendered HTML over a store of records,
// for a laptop (one person, a one-time link) and for a cluster (log-in by
// OpenID Connect, roles per namespace).
//
// Everything that comes from a record is hostile: it is escaped by html/template
// and by audit.Safe, and the pages run no script but their own file.
package ui

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

// Config of [New]. Store, Record and exactly one of OIDC and Link are required.
type Config struct {
	Store *store.DB
	// Record writes an event to the chain: log-ins, queries, exports and orders
	// to revoke. What it cannot write is not answered.
	Record func(context.Context, *audit.Record) error
	Log    *slog.Logger // nil: nothing is logged

	OIDC *OIDC // log-in of a cluster
	Link *Link // the one person of a laptop

	// Hosts are the names by which the page may be asked for, with their port
	// where it is not the scheme's own. A request to another name is refused: it
	// is a browser that was led here by somebody's DNS.
	Hosts []string
	// SessionKey seals cookies, 32 bytes or more; replicas must share it. Nil:
	// random, so that a restart logs everybody out.
	SessionKey []byte

	// Revoke orders a revocation; nil: the pages have no button.
	Revoke func(context.Context, Order) (string, error)
	// Policies explains decisions and reads what an agent may do; the zero value
	// leaves that out of the pages.
	Policies Policies
	// Location in which times are shown and dates are read. Nil: UTC.
	Location *time.Location
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// QueryTimeout bounds what one page asks of the store. Default 10 s.
	QueryTimeout time.Duration
}

// Order asks for a revocation. Exactly one of Handle and Task is set.
type Order struct {
	Handle    string
	Task      string
	Namespace string // of the workload, which the person may revoke in
	Reason    string
	By        Person
}

// Policies reads policies for the pages. Each may be nil.
type Policies struct {
	// Reach lists what the workload of a record may do by the policies in force.
	Reach func(ctx context.Context, w *audit.Workload) ([]Reach, error)
	// Explain says at length how the decision about a record comes about now.
	Explain func(ctx context.Context, r *audit.Record) (string, error)
	// Patch is a policy document that allows what a record was denied, no more.
	Patch func(ctx context.Context, r *audit.Record) (string, error)
}

// Unsaid is an error of [Policies] whose text is for who looks: why nothing can
// be said. What else goes wrong is logged, and not shown to them.
type Unsaid string

// Error is the text.
func (u Unsaid) Error() string { return string(u) }

// Reach is one rule that an agent may use.
type Reach struct {
	Policy, Rule string
	Action       string // inject, allow, passthrough, deny
	Hosts        []string
	Methods      []string
	Paths        []string
	Provider     string
}

const defaultQueryTimeout = 10 * time.Second

// Server is the review page. It is safe for concurrent use.
type Server struct {
	c        Config
	log      *slog.Logger
	sessions *sessions
	ends     ends
	pages    *pages
	limits   *limits
	login    login
	handler  http.Handler
	hosts    map[string]bool
}

// New makes the pages. The error names what of c is wrong.
func New(c Config) (*Server, error) {
	switch {
	case c.Store == nil:
		return nil, errors.New("audit page: no store")
	case c.Record == nil:
		return nil, errors.New("audit page: nobody records who looks")
	case (c.OIDC == nil) == (c.Link == nil):
		return nil, errors.New("audit page: needs a log-in: OpenID Connect or a link")
	case len(c.Hosts) == 0:
		return nil, errors.New("audit page: needs the names that it is asked for by")
	case c.SessionKey != nil && len(c.SessionKey) < 32:
		return nil, fmt.Errorf("audit page: the session key has %d bytes; at least 32", len(c.SessionKey))
	}
	if c.SessionKey == nil {
		c.SessionKey = make([]byte, 32)
		rand.Read(c.SessionKey) //nolint:errcheck // never fails
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Location == nil {
		c.Location = time.UTC
	}
	if c.QueryTimeout <= 0 {
		c.QueryTimeout = defaultQueryTimeout
	}
	s := &Server{c: c, log: c.Log, limits: newLimits(c.Now), hosts: map[string]bool{}}
	s.ends.learn = s.readEnds
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, h := range c.Hosts {
		s.hosts[h] = true
	}
	seal, err := newSealer(c.SessionKey)
	if err != nil {
		return nil, err
	}
	s.sessions = &sessions{seal: seal, name: "__Host-attache-audit", secure: true, same: http.SameSiteLaxMode, now: c.Now}
	if c.Link != nil { // plain http on a loopback address
		s.sessions.name, s.sessions.secure, s.sessions.same = c.Link.cookie(), false, http.SameSiteStrictMode
		s.login = c.Link
	} else {
		if s.login, err = c.OIDC.prepare(seal); err != nil {
			return nil, err
		}
	}
	if s.pages, err = loadPages(s); err != nil {
		return nil, err
	}
	s.handler = s.guard(s.routes())
	return s, nil
}

// ServeHTTP serves the pages.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// login is how a browser gets a session.
type login interface {
	// start answers a request without a session.
	start(s *Server, w http.ResponseWriter, r *http.Request, why error)
	// finish answers the request that proves who it is.
	finish(s *Server, w http.ResponseWriter, r *http.Request)
	// grants are the roles of people.
	grants() []Grant
}

// routes of the pages. Whatever is not under open needs a session.
func (s *Server) routes() http.Handler {
	open := http.NewServeMux()
	open.HandleFunc("GET /static/{file}", s.static)
	open.HandleFunc("GET /login", func(w http.ResponseWriter, r *http.Request) { s.login.start(s, w, r, nil) })
	open.HandleFunc("GET /login/finish", func(w http.ResponseWriter, r *http.Request) { s.login.finish(s, w, r) })
	closed := http.NewServeMux()
	for pattern, h := range map[string]page{
		"GET /{$}":                 s.front,
		"GET /search":              s.search,
		"GET /live":                s.live,
		"GET /live/events":         s.liveEvents,
		"GET /record/{id}":         s.record,
		"GET /agent":               s.agent,
		"GET /credential/{id}":     s.credential,
		"GET /task/{id}":           s.task,
		"GET /human":               s.human,
		"GET /denied":              s.denied,
		"GET /policy/{version...}": s.policy,
		"GET /document":            s.document,
		"GET /producers":           s.producers,
		"GET /export":              s.export,
		"GET /revoke":              s.revokeAsk,
		"POST /revoke":             s.revokeDo,
		"POST /logout":             s.logout,
	} {
		closed.HandleFunc(pattern, s.wrap(h))
	}
	closed.HandleFunc("/", s.wrap(func(http.ResponseWriter, *http.Request, *visit) error { return errNotFound }))
	open.Handle("/", s.withSession(closed))
	return open
}

// page is a handler of somebody who is logged in. Its error becomes a page.
type page func(http.ResponseWriter, *http.Request, *visit) error
