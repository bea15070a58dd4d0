package ui

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

// harness is a review page with a store, and a browser that is logged in.
type harness struct {
	t      *testing.T
	db     *store.DB
	page   *Server
	srv    *httptest.Server
	c      *http.Client
	clock  *clock
	mu     sync.Mutex // guards events, broken, orders
	events []audit.Record
	broken bool // events cannot be recorded
	orders []Order
}

// newDB returns an empty SQLite store.
func newDB(t *testing.T, c *clock) *store.DB {
	t.Helper()
	db, err := store.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "records.db"), store.Options{Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// fill writes records to a spool, and its lines to the store as those of one
// producer, of the first record's namespace.
func fill(t *testing.T, db *store.DB, records ...audit.Record) {
	t.Helper()
	namespace := ""
	if w := records[0].Workload; w != nil {
		namespace = w.Namespace
	}
	fillAs(t, db, store.Producer{ID: "pod-" + namespace, Kind: "sidecar", Namespace: namespace, Pod: "pod-" + namespace}, records...)
}

func controlPlane() store.Producer { return store.Producer{ID: "control/0", Kind: "control"} }

func fillAs(t *testing.T, db *store.DB, p store.Producer, records ...audit.Record) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "spool")
	s, err := audit.Open(audit.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for i := range records {
		if err := s.Write(&records[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	segments, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range segments {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var lines []audit.Line
		for text := range bytes.Lines(b) {
			l, err := audit.ParseLine(text)
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, l)
		}
		if _, err := db.Append(t.Context(), p, lines); err != nil {
			t.Fatal(err)
		}
	}
}

// serve starts the page over TLS. change may alter the configuration; without
// OIDC it gets a link.
func serve(t *testing.T, db *store.DB, c *clock, change func(h *harness, conf *Config)) *harness {
	t.Helper()
	h := &harness{t: t, db: db, clock: c}
	h.srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.page.ServeHTTP(w, r) }))
	h.srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	h.srv.StartTLS()
	t.Cleanup(h.srv.Close)
	host := h.srv.Listener.Addr().String()
	conf := Config{Store: db, Hosts: []string{host}, Now: c.now, Record: h.record,
		Revoke: func(_ context.Context, o Order) (string, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.orders = append(h.orders, o)
			return "revoked at the issuer", nil
		}}
	if change != nil {
		change(h, &conf)
	}
	if conf.OIDC == nil && conf.Link == nil {
		conf.Link = NewLink(443, "ada", c.now())
	}
	var err error
	if h.page, err = New(conf); err != nil {
		t.Fatal(err)
	}
	h.c = h.browser()
	return h
}

// browser is a client with a cookie jar of its own.
func (h *harness) browser() *http.Client {
	jar, err := cookiejar.New(nil)
	if err != nil {
		h.t.Fatal(err)
	}
	c := *h.srv.Client()
	c.Jar, c.Timeout = jar, time.Minute
	return &c
}

func (h *harness) record(_ context.Context, r *audit.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken {
		return errors.New("the disk is full")
	}
	h.events = append(h.events, *r)
	return nil
}

// named returns the events of a name.
func (h *harness) named(name string) []audit.Record {
	h.mu.Lock()
	defer h.mu.Unlock()
	var l []audit.Record
	for _, e := range h.events {
		if e.Event.Name == name {
			l = append(l, e)
		}
	}
	return l
}

// login uses the link.
func (h *harness) login() {
	h.t.Helper()
	if status, body, _ := h.get("/login/finish?token=" + h.page.c.Link.token); status != http.StatusOK {
		h.t.Fatalf("log-in: %d %s", status, body)
	}
}

// as puts a session of p into the browser, as a log-in would.
func (h *harness) as(p Person) {
	h.t.Helper()
	w := httptest.NewRecorder()
	if _, err := h.page.sessions.begin(w, p); err != nil {
		h.t.Fatal(err)
	}
	h.c = h.browser()
	u, err := url.Parse(h.srv.URL)
	if err != nil {
		h.t.Fatal(err)
	}
	h.c.Jar.SetCookies(u, w.Result().Cookies())
}

func (h *harness) do(r *http.Request) (int, string, http.Header) {
	h.t.Helper()
	res, err := h.c.Do(r)
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 64<<20))
	if err != nil {
		h.t.Fatal(err)
	}
	for k, v := range res.Trailer {
		res.Header[k] = v
	}
	return res.StatusCode, string(b), res.Header
}

func (h *harness) get(path string) (int, string, http.Header) {
	h.t.Helper()
	r, err := http.NewRequestWithContext(h.t.Context(), http.MethodGet, h.srv.URL+path, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	return h.do(r)
}

// page200 is the body of a page that must be there.
func (h *harness) page200(path string) string {
	h.t.Helper()
	status, body, _ := h.get(path)
	if status != http.StatusOK {
		h.t.Fatalf("%s: %d %s", path, status, textOf(body))
	}
	return body
}

func (h *harness) post(path string, form url.Values, headers ...string) (int, string, http.Header) {
	h.t.Helper()
	r, err := http.NewRequestWithContext(h.t.Context(), http.MethodPost, h.srv.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		h.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	return h.do(r)
}

var (
	formToken = regexp.MustCompile(`name="form_token" value="([^"]+)"`)
	tags      = regexp.MustCompile(`<[^>]*>`)
	spaces    = regexp.MustCompile(`\s+`)
)

// token is the form token of a page.
func token(t *testing.T, body string) string {
	t.Helper()
	m := formToken.FindStringSubmatch(body)
	if m == nil {
		t.Fatal("the page has no form token")
	}
	return m[1]
}

// textOf is a page without its marks.
func textOf(body string) string {
	return strings.TrimSpace(spaces.ReplaceAllString(tags.ReplaceAllString(body, " "), " "))
}

// sample is a finished request of an agent.
func sample(id, namespace string, at time.Time) audit.Record {
	return audit.Record{
		Type: audit.TypeEnd, ID: id, Time: at,
		Steps:    &audit.Steps{Attested: 180, Decided: 240, Minted: 310, Injected: 320, FirstByte: 24100, Ended: 25300},
		Workload: &audit.Workload{ID: "spiffe://example.org/ns/" + namespace + "/sa/invoices", Namespace: namespace, ServiceAccount: "invoices", RunID: "run-" + namespace},
		Process:  &audit.Process{PID: 42, Exe: "/usr/bin/python3"}, Owner: "team-" + namespace + "@example.com", OwnerSource: "namespace",
		Human:    &audit.Human{Subject: "sub-" + namespace, Issuer: "https://login.example.com", Email: "person-" + namespace + "@example.com"},
		Task:     &audit.Task{ID: "task-" + namespace, Purpose: "close the books of " + namespace, OpenedBy: "launcher"},
		Request:  &audit.Request{Door: "aws", Scheme: "https", Host: "s3." + namespace + ".example.com", Port: 443, Method: "GET", Path: "/payments-" + namespace + "/may.csv", Protocol: "http"},
		Decision: &audit.Decision{Verdict: "inject", Policy: namespace + "/invoices", Rule: "read-" + namespace, Version: "sha256:" + namespace, Reason: "rule read allows GET"},
		Credential: &audit.Use{Handle: "cred_" + hexOf(namespace), Provider: "aws-" + namespace, Kind: "aws-session", TTLSeconds: 900, Expires: at.Add(15 * time.Minute),
			AWS: &audit.AWSUse{Service: "s3", Operation: "GetObject", Region: "eu-west-1", Account: "111122223333", Actions: []string{"s3:GetObject"}, Resources: []string{"arn:aws:s3:::payments-" + namespace + "/may.csv"}, Scope: "request"}},
		Result: &audit.Result{Outcome: audit.OutcomeOK, Status: 200, BytesDown: 1024, UpstreamRequestID: "up-" + namespace},
	}
}

// refused is a request that was denied.
func refused(id, namespace string, at time.Time) audit.Record {
	r := sample(id, namespace, at)
	r.Steps = &audit.Steps{Decided: 240, Ended: 300}
	r.Request.Method, r.Request.Path, r.Request.Door = "DELETE", "/payments-"+namespace+"/june.csv", "connect"
	r.Credential = nil
	r.Decision = &audit.Decision{Verdict: "deny", Version: "sha256:" + namespace, Reason: "no rule of " + namespace + " allows DELETE", Code: "denied"}
	r.Result = &audit.Result{Outcome: audit.OutcomeDenied, Status: 403}
	return r
}

// happened is an event about a credential.
func happened(id, name, namespace string, at time.Time) audit.Record {
	return audit.Record{Type: audit.TypeEvent, ID: id, Time: at, Workload: &audit.Workload{ID: "spiffe://example.org/ns/" + namespace + "/sa/invoices", Namespace: namespace},
		Event: &audit.Event{Name: name, Fields: map[string]string{"handle": "cred_" + hexOf(namespace), "reason": "reason-" + namespace}}}
}

func hexOf(s string) string {
	const digits = "0123456789abcdef"
	var b strings.Builder
	for i := range len(s) {
		b.WriteByte(digits[s[i]>>4])
		b.WriteByte(digits[s[i]&15])
	}
	return b.String()
}
