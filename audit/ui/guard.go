package ui

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/internal/sweep"
)

const (
	maxForm       = 16 << 10 // bytes of a form
	maxURL        = 16 << 10
	perSession    = 15 // requests a second
	burst         = 60 // requests at once
	maxQueries    = 8  // pages that ask the store at the same time, all sessions
	maxLive       = 4  // live views of one session
	maxLimited    = 10000
	waitForQuery  = 5 * time.Second
	failuresRate  = 1 // failed log-ins that are recorded each by itself, a second
	failuresBurst = 30
	tellRefusals  = time.Minute // those that were only counted are recorded
	contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)

// Errors of pages.
var (
	errNotFound  = errors.New("not found")
	errForbidden = errors.New("not allowed")
	errBusy      = errors.New("too many requests")
	errBadForm   = errors.New("the form was not made by this page")
)

// guard stands before everything: headers, the host's name, the method, the
// origin and the size of what is asked.
func (s *Server) guard(next http.Handler) http.Handler {
	csrf := http.NewCrossOriginProtection()
	inner := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		next.ServeHTTP(w, r)
	})
	csrf.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.fail(w, r, nil, errBadForm) }))
	checked := csrf.Handler(inner)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
		h.Set("Cache-Control", "no-store")
		if s.sessions.secure {
			h.Set("Strict-Transport-Security", "max-age=31536000")
		}
		if !s.hosts[strings.ToLower(r.Host)] {
			// Nothing of the name is repeated: it is not ours.
			http.Error(w, "This page is not served by that name.", http.StatusMisdirectedRequest)
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodPost {
			h.Set("Allow", "GET, HEAD, POST")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		if len(r.RequestURI) > maxURL {
			http.Error(w, "the address is too long", http.StatusRequestURITooLong)
			return
		}
		checked.ServeHTTP(w, r)
	})
}

// withSession lets through who is logged in and has a role.
func (s *Server) withSession(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ses, err := s.session(w, r)
		if errors.Is(err, errEnds) {
			s.fail(w, r, nil, err)
			return
		}
		if err != nil {
			s.login.start(s, w, r, err)
			return
		}
		g := s.login.grants()
		v := &visit{session: ses, view: scopeOf(g, &ses.Person, Viewer), audit: scopeOf(g, &ses.Person, Auditor), revoke: scopeOf(g, &ses.Person, Revoker)}
		if !s.limits.allow(ses.ID) {
			s.fail(w, r, v, errBusy)
			return
		}
		if r.Method == http.MethodPost && !s.sessions.seal.checkForm(ses.ID, r.PostFormValue("form_token")) {
			s.fail(w, r, v, errBadForm)
			return
		}
		if v.view.Empty() && r.URL.Path != "/logout" {
			s.fail(w, r, v, errNoAccess)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), visitKey{}, v)))
	})
}

// session returns the session of a request, if it was not ended anywhere. Only
// for who has a cookie that we made is the store asked about that.
func (s *Server) session(w http.ResponseWriter, r *http.Request) (*session, error) {
	if _, err := s.sessions.open(r); err != nil {
		return nil, err
	}
	if err := s.learnEnds(r.Context()); err != nil && r.URL.Path != "/logout" { // who wants to end a session may
		return nil, err
	}
	return s.sessions.read(w, r)
}

// wrap turns a page into a handler: with a place among those who ask the store
// and a time limit, except for what streams.
func (s *Server) wrap(p page) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v := visitOf(r.Context())
		streams := r.URL.Path == "/live/events" || r.URL.Path == "/export"
		if !streams {
			ctx, cancel := context.WithTimeout(r.Context(), s.c.QueryTimeout)
			defer cancel()
			release, err := s.limits.enter(ctx)
			if err != nil {
				s.fail(w, r, v, err)
				return
			}
			defer release()
			r = r.WithContext(ctx)
		}
		if err := p(w, r, v); err != nil {
			s.fail(w, r, v, err)
		}
	}
}

// event records what a person did. Without the record there is no answer.
func (s *Server) event(ctx context.Context, name string, p *Person, fields map[string]string) error {
	return s.eventAt(ctx, s.c.Now(), name, p, fields)
}

func (s *Server) eventAt(ctx context.Context, at time.Time, name string, p *Person, fields map[string]string) error {
	if p != nil {
		fields["by"] = p.Name()
		fields["subject"] = p.Subject
		if p.Issuer != "" {
			fields["issuer"] = p.Issuer
		}
	}
	for k, v := range fields {
		if v == "" {
			delete(fields, k)
		}
	}
	r := &audit.Record{Type: audit.TypeEvent, ID: audit.NewID(), Time: at.UTC(), Event: &audit.Event{Name: name, Fields: fields}}
	if err := s.c.Record(context.WithoutCancel(ctx), r); err != nil {
		return errors.Join(errUnrecorded, err)
	}
	return nil
}

// loginFailed records that somebody could not log in. Anybody can ask for that,
// so that beyond a rate they are only counted: a full spool would stop who may
// look, and the collector's own findings.
func (s *Server) loginFailed(r *http.Request, why error) error {
	return s.refused(r.Context(), loginsKey, &refusal{name: audit.EventLoginFailed, what: map[string]string{"reason": why.Error(), "remote": r.RemoteAddr}})
}

// accessRejected records that somebody may not see a page. Who is logged in can
// ask for that without end: beyond a rate of each person's it is only counted.
func (s *Server) accessRejected(r *http.Request, v *visit) error {
	key := "person " + v.session.Person.Issuer + " " + v.session.Person.Subject
	return s.refused(r.Context(), key, &refusal{name: audit.EventAccessRejected, person: &v.session.Person, what: map[string]string{"page": r.URL.Path}})
}

// refused records a refusal, or counts it.
func (s *Server) refused(ctx context.Context, key string, f *refusal) error {
	f.at = s.c.Now()
	t, tell := s.limits.rejected(key, f)
	if !tell {
		return nil
	}
	return s.tellRefusals(ctx, t)
}

// tellRefusals records the last of several refusals, for all. Where that fails
// they are counted with those that come.
func (s *Server) tellRefusals(ctx context.Context, t summed) error {
	fields, person := maps.Clone(t.last.what), t.last.person
	if t.n > 1 {
		fields["unrecorded"] = strconv.Itoa(t.n - 1)
	}
	if t.n > 1 && t.key == othersKey { // the others may be anybody's
		person = nil
		delete(fields, "page")
		fields["people"] = "several"
	}
	err := s.eventAt(ctx, t.last.at, t.last.name, person, fields)
	if err != nil {
		s.limits.giveBack(t)
	}
	return err
}

// Sweep records from now on what was only counted of refusals that are followed
// by none: within a minute, and the rest when stop is called, which is when no
// request can come any more.
func (s *Server) Sweep(ctx context.Context) (stop func()) {
	return sweep.Start(ctx, s.log, tellRefusals, func(ctx context.Context, _ bool) { s.tellAll(ctx) })
}

// tellAll records all refusals that were only counted.
func (s *Server) tellAll(ctx context.Context) {
	for _, t := range s.limits.takeRefused() {
		if err := s.tellRefusals(ctx, t); err != nil {
			s.log.ErrorContext(ctx, "refusals are not recorded", "event", t.last.name, "refusals", t.n, "error", err)
		}
	}
}

var errUnrecorded = errors.New("cannot be recorded, so it is not done")

// limits bound what sessions ask for.
type limits struct {
	now     func() time.Time
	queries chan struct{}

	mu      sync.Mutex // guards by, live, refused
	by      map[string]*rate.Limiter
	live    map[string]int
	refused map[string]*refusals
}

// refusal is what a record says of one.
type refusal struct {
	name   string
	person *Person // nil: nobody is logged in
	what   map[string]string
	at     time.Time
}

// refusals are those of one person, or all failed log-ins.
type refusals struct {
	*rate.Limiter
	untold int
	last   *refusal // of those
}

// summed are refusals that one record stands for.
type summed struct {
	key  string // whose
	last *refusal
	n    int
}

// Keys of refusals that are no one person's.
const (
	loginsKey = "log-ins"
	othersKey = "others" // those of people who are not told apart: there are too many
)

func newLimits(now func() time.Time) *limits {
	return &limits{now: now, queries: make(chan struct{}, maxQueries), by: map[string]*rate.Limiter{}, live: map[string]int{}, refused: map[string]*refusals{}}
}

func (l *limits) allow(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.by[key]
	if b == nil {
		if len(l.by) >= maxLimited { // forget who has been quiet
			for k, old := range l.by {
				if old.TokensAt(l.now()) >= burst {
					delete(l.by, k)
				}
			}
			if len(l.by) >= maxLimited {
				return false
			}
		}
		b = rate.NewLimiter(perSession, burst)
		l.by[key] = b
	}
	return b.AllowN(l.now(), 1)
}

// rejected reports whether one more refusal of somebody is recorded, with those
// before it that were not.
func (l *limits) rejected(key string, f *refusal) (t summed, tell bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key, b := l.refusalsOf(key)
	b.untold++
	b.last = f
	if !b.AllowN(f.at, 1) {
		return summed{}, false
	}
	return b.take(key), true
}

// refusalsOf returns somebody's, and under which key. l.mu is held.
func (l *limits) refusalsOf(key string) (string, *refusals) {
	b := l.refused[key]
	if b == nil && key != loginsKey && len(l.refused) >= maxLimited { // who logs in is known to an issuer: they are never so many
		now := l.now() // who is forgotten begins anew with all that may be recorded
		maps.DeleteFunc(l.refused, func(_ string, b *refusals) bool { return b.untold == 0 && b.TokensAt(now) >= failuresBurst })
		if len(l.refused) >= maxLimited {
			key = othersKey
			b = l.refused[key]
		}
	}
	if b == nil {
		b = &refusals{Limiter: rate.NewLimiter(failuresRate, failuresBurst)}
		l.refused[key] = b
	}
	return key, b
}

func (b *refusals) take(key string) summed {
	t := summed{key, b.last, b.untold}
	b.untold = 0
	return t
}

// giveBack counts refusals anew that could not be recorded.
func (l *limits) giveBack(t summed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, b := l.refusalsOf(t.key)
	if b.untold == 0 {
		b.last = t.last
	}
	b.untold += t.n
}

// takeRefused returns the refusals that were only counted.
func (l *limits) takeRefused() (all []summed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, b := range l.refused {
		if b.untold > 0 {
			all = append(all, b.take(key))
		}
	}
	return all
}

// enter waits for a place among those who ask the store.
func (l *limits) enter(ctx context.Context) (release func(), err error) {
	t := time.NewTimer(waitForQuery)
	defer t.Stop()
	select {
	case l.queries <- struct{}{}:
		return func() { <-l.queries }, nil
	case <-t.C:
		return nil, errBusy
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *limits) enterLive(key string) (release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.live[key] >= maxLive {
		return nil, errBusy
	}
	l.live[key]++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.live[key]--; l.live[key] == 0 {
			delete(l.live, key)
		}
	}, nil
}
