package ui

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

//go:embed templates/*.html static/*
var files embed.FS

// pages renders templates. It never changes after loadPages.
type pages struct {
	s      *Server
	byName map[string]*template.Template
	assets map[string]asset
}

type asset struct {
	kind string
	body []byte
}

// frame is what every page has around its own data.
type frame struct {
	Title     string
	Path      string // of the navigation
	Person    string
	Scope     string
	FormToken string
	Narrow    bool // not all namespaces
	CanRevoke bool
	CanExport bool
	Style     string
	Script    string
	Zone      string
	Now       time.Time
	Data      any
}

// message is a page of a few words.
type message struct {
	Title, Text, Detail string
	Bad                 bool
	Link, LinkText      string
}

func loadPages(s *Server) (*pages, error) {
	p := &pages{s: s, byName: map[string]*template.Template{}, assets: map[string]asset{}}
	names := map[string]string{}
	for file, kind := range map[string]string{"style.css": "text/css; charset=utf-8", "app.js": "text/javascript; charset=utf-8"} {
		b, err := files.ReadFile("static/" + file)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		sum := sha256.Sum256(b)
		base, ext, _ := strings.Cut(file, ".")
		name := base + "." + hex.EncodeToString(sum[:6]) + "." + ext
		p.assets[name] = asset{kind, b}
		names[file] = "/static/" + name
	}
	funcs := p.funcs(names)
	shared, err := template.New("").Funcs(funcs).ParseFS(files, "templates/_*.html")
	if err != nil {
		return nil, fmt.Errorf("parse templates: %w", err)
	}
	all, err := fs.Glob(files, "templates/[a-z]*.html")
	if err != nil {
		return nil, fmt.Errorf("list templates: %w", err)
	}
	for _, file := range all {
		t, err := shared.Clone()
		if err == nil {
			t, err = t.ParseFS(files, file)
		}
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", file, err)
		}
		p.byName[strings.TrimSuffix(strings.TrimPrefix(file, "templates/"), ".html")] = t
	}
	return p, nil
}

func (p *pages) funcs(assets map[string]string) template.FuncMap {
	loc := p.s.c.Location
	return template.FuncMap{
		"asset":  func(n string) string { return assets[n] },
		"clock":  func(t time.Time) string { return zero(t, t.In(loc).Format("15:04:05.000")) },
		"micro":  func(t time.Time) string { return zero(t, t.In(loc).Format("15:04:05.000000")) },
		"stamp":  func(t time.Time) string { return zero(t, t.In(loc).Format("2006-01-02 15:04:05")) },
		"minute": func(t time.Time) string { return zero(t, t.In(loc).Format("Jan 2 15:04")) },
		"when":   func(t time.Time) string { return p.when(t) },
		"iso":    func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) },
		"ago":    func(t time.Time) string { return ago(p.s.c.Now().Sub(t)) },
		"count":  count,
		"bytes":  byteCount,
		"short":  shortID,
		"term":   term,
		"search": searchURL,
		"cut":    cut,
		"span":   ago,
		"plural": func(n any, one, many string) string {
			if s := count(n); s != "1" {
				return s + " " + many
			}
			return "1 " + one
		},
	}
}

func zero(t time.Time, s string) string {
	if t.IsZero() {
		return "–"
	}
	return s
}

// when shows the time of today, and also the day of others.
func (p *pages) when(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	now, t := p.s.now(), t.In(p.s.c.Location)
	if now.Year() == t.Year() && now.YearDay() == t.YearDay() {
		return t.Format("15:04:05")
	}
	if now.Year() == t.Year() {
		return t.Format("Jan 2 15:04:05")
	}
	return t.Format("2006-01-02 15:04:05")
}

// render writes a page. What records hold is escaped by the template, and then
// everything that is not a printable character is shown as its escape.
func (p *pages) render(w http.ResponseWriter, r *http.Request, v *visit, status int, name string, data any) {
	f := frame{Path: "/" + strings.SplitN(strings.TrimPrefix(r.URL.Path, "/"), "/", 2)[0], Data: data, Now: p.s.now(), Zone: p.s.now().Format("MST")}
	if v != nil {
		f.Person, f.Scope, f.Narrow = v.session.Person.Name(), v.view.String(), !v.view.All
		f.FormToken = p.s.sessions.seal.formToken(v.session.ID)
		f.CanRevoke, f.CanExport = p.s.c.Revoke != nil && !v.revoke.Empty(), !v.audit.Empty()
	}
	var b bytes.Buffer
	if err := p.byName[name].ExecuteTemplate(&b, "page", f); err != nil {
		p.s.log.ErrorContext(r.Context(), "page cannot be rendered", "page", name, "error", err)
		http.Error(w, "The page cannot be shown; the log says why.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(visible(b.Bytes()))
}

// visible writes what a screen would not show as a character (controls,
// bidirectional and zero-width marks) as an escape, wherever it stands.
func visible(b []byte) []byte {
	clean := true
	for _, c := range b {
		if c >= 0x80 || c < 0x20 && c != '\n' || c == 0x7f {
			clean = false
			break
		}
	}
	if clean {
		return b
	}
	out := make([]byte, 0, len(b)+64)
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		switch {
		case r == '\n', r == '\t', unicode.IsPrint(r) && !(r == utf8.RuneError && n == 1), r == '\u00a0':
			out = append(out, b[i:i+n]...)
		default:
			out = append(out, audit.Safe(string(b[i:i+n]))...)
		}
		i += n
	}
	return out
}

func (s *Server) static(w http.ResponseWriter, r *http.Request) {
	a, ok := s.pages.assets[r.PathValue("file")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", a.kind)
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable") // the name changes with the file
	_, _ = w.Write(a.body)
}

// fail answers with a page that says what is wrong and what to do.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, v *visit, err error) {
	status, m := http.StatusInternalServerError, message{Title: "Something went wrong", Text: "The page cannot be shown. The log of the service says why.", Bad: true}
	var q *audit.QueryError
	switch {
	case errors.Is(err, context.Canceled):
		return // nobody reads it
	case errors.Is(err, errNotFound), errors.Is(err, store.ErrNotFound):
		status, m = http.StatusNotFound, message{Title: "Not found", Text: "There is no such page or record, or it belongs to a namespace that you may not see."}
	case errors.Is(err, errNoAccess):
		status, m = http.StatusForbidden, message{Title: "No access", Text: "You are logged in, and no role gives you the records of any namespace. Ask whoever runs this service for a grant to your group.", Bad: true}
		if recErr := s.accessRejected(r, v); recErr != nil {
			s.log.ErrorContext(r.Context(), "cannot record a refusal", "error", recErr)
		}
	case errors.Is(err, errForbidden):
		status, m = http.StatusForbidden, message{Title: "Not allowed", Text: "Your role does not allow this in that namespace.", Bad: true}
		if recErr := s.accessRejected(r, v); recErr != nil {
			s.log.ErrorContext(r.Context(), "cannot record a refusal", "error", recErr)
		}
	case errors.Is(err, errBusy):
		w.Header().Set("Retry-After", "5")
		status, m = http.StatusTooManyRequests, message{Title: "Too many questions", Text: "This session, or all of them together, ask more than the store answers. Wait a few seconds and reload.", Bad: true}
	case errors.Is(err, errEnds):
		w.Header().Set("Retry-After", "5")
		status, m = http.StatusServiceUnavailable, message{Title: "The record store does not answer", Text: "Who has logged out is read there, and nobody is believed before that. Reload in a few seconds.", Bad: true}
	case errors.Is(err, errBadForm):
		status, m = http.StatusForbidden, message{Title: "Form refused", Text: "The form was not made by this page in this session. Go back, reload the page, and send it again.", Bad: true}
	case errors.Is(err, context.DeadlineExceeded):
		status, m = http.StatusGatewayTimeout, message{Title: "The question took too long", Text: "It was cancelled. Ask for a shorter time, or add a term such as agent:, host: or human:.", Bad: true}
	case errors.Is(err, store.ErrCursor):
		status, m = http.StatusBadRequest, message{Title: "This page has moved on", Text: "The place in the list is not known any more. Start the search again.", Bad: true}
	case errors.As(err, &q):
		status, m = http.StatusBadRequest, message{Title: "The query has a mistake", Text: q.Error(), Bad: true}
	case errors.Is(err, errUnrecorded):
		status, m = http.StatusServiceUnavailable, message{Title: "Cannot be recorded", Text: "What people look at is recorded, and that record cannot be written now. So nothing is shown. The log of the service says why.", Bad: true}
	}
	if status >= http.StatusInternalServerError {
		s.log.ErrorContext(r.Context(), "page failed", "path", r.URL.Path, "error", err)
	}
	s.pages.render(w, r, v, status, "message", m)
}

// loginPage says that a session is needed, and why there is none.
func (s *Server) loginPage(w http.ResponseWriter, r *http.Request, why error) {
	type data struct {
		OIDC  bool
		Why   string
		To    string
		Again bool
	}
	d := data{OIDC: s.c.OIDC != nil, To: "/"}
	status := http.StatusOK
	if r.URL.Path != "/login" && r.URL.Path != "/login/finish" && r.Method == http.MethodGet {
		d.To = localPath(r.URL.RequestURI())
	} else if r.URL.Path == "/login" {
		d.To = localPath(r.URL.Query().Get("to"))
	}
	if why != nil {
		status = http.StatusUnauthorized
		if !errors.Is(why, errNoSession) {
			d.Why = why.Error()
		}
		if errors.Is(why, errUnrecorded) {
			status, d.Why = http.StatusServiceUnavailable, "log-ins cannot be recorded now, so nobody is let in"
		}
	}
	s.pages.render(w, r, nil, status, "login", d)
}
