package pipeline_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/task"
	"github.com/attache-dev/attache/injector/guard"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/proxy/pipeline"
)

// strict is an origin that knows one good token.
type strict struct {
	mu     sync.Mutex
	good   func(token string) bool
	got    []string // bodies by attempt
	tokens []string
}

func (s *strict) serve(w http.ResponseWriter, q *http.Request) {
	b, _ := io.ReadAll(q.Body)
	token := strings.TrimPrefix(q.Header.Get("Authorization"), "Bearer ")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got, s.tokens = append(s.got, string(b)), append(s.tokens, token)
	if !s.good(token) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	_, _ = io.WriteString(w, "welcome")
}

// Rule 9: once more with a fresh credential, where that is safe.
func TestRetryOnce(t *testing.T) {
	big := strings.Repeat("x", 65<<10)
	for _, c := range []struct {
		name, method, body string
		header             []string
		chunked            bool
		want, attempts     int
		config             string
	}{
		{name: "GET", method: "GET", want: 200, attempts: 2},
		{name: "PUT", method: "PUT", body: "all of it", want: 200, attempts: 2},
		{name: "DELETE", method: "DELETE", want: 200, attempts: 2},
		{name: "POST", method: "POST", body: "pay", want: 401, attempts: 1},
		{name: "POST without body", method: "POST", want: 401, attempts: 1},
		{name: "PATCH", method: "PATCH", body: "x", want: 401, attempts: 1},
		{name: "POST with key", method: "POST", body: "pay", header: []string{"Idempotency-Key", "k"}, want: 200, attempts: 2},
		{name: "large PUT", method: "PUT", body: big, want: 401, attempts: 1},
		{name: "large PUT that may be kept", method: "PUT", body: big, want: 200, attempts: 2, config: "  limits: {maxReplayBytes: 131072}"},
		{name: "PUT of unknown length", method: "PUT", body: "x", chunked: true, want: 401, attempts: 1},
	} {
		for _, h2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s h2=%v", c.name, h2), func(t *testing.T) {
				r := newRig(t, settings{config: c.config})
				o := &strict{good: func(string) bool { return true }}
				r.serve(o.serve)
				r.get("https://api.test/") // puts a credential in the cache
				first := r.as.minted()[0]
				o.mu.Lock()
				o.good, o.got = func(token string) bool { return token != first }, nil
				o.mu.Unlock()
				var body io.Reader
				if c.body != "" {
					body = strings.NewReader(c.body)
				}
				if c.chunked {
					body = io.MultiReader(body)
				}
				got := r.do(r.client(h2), c.method, "https://api.test/", body, c.header...)
				if got.StatusCode != c.want || len(o.got) != c.attempts {
					t.Fatalf("got %d after %d attempts, want %d after %d", got.StatusCode, len(o.got), c.want, c.attempts)
				}
				for i, b := range o.got {
					if b != c.body {
						t.Errorf("attempt %d carried %d bytes", i, len(b))
					}
				}
				rec := r.records(2)[1]
				if rec.Result.Retried != (c.attempts == 2) || rec.Result.BytesUp != int64(len(c.body)) {
					t.Errorf("record %+v", rec.Result)
				}
				// Retried or not, the next call has a credential that works.
				if got := r.do(r.client(h2), http.MethodPost, "https://api.test/", nil); got.StatusCode != 200 {
					t.Errorf("the stale credential is still in use: %d", got.StatusCode)
				}
				if n := len(r.as.minted()); n != 2 {
					t.Errorf("%d credentials minted", n)
				}
			})
		}
	}
}

// A credential that was minted for this very call is not stale.
func TestNoRetryOfAFreshCredential(t *testing.T) {
	r := newRig(t, settings{})
	o := &strict{good: func(string) bool { return false }}
	r.serve(o.serve)
	if got := r.get("https://api.test/"); got.StatusCode != 401 || len(o.got) != 1 || len(r.as.minted()) != 1 {
		t.Errorf("got %d after %d attempts with %d credentials", got.StatusCode, len(o.got), len(r.as.minted()))
	}
	// Nor is one retried twice: the second is cached, the third fresh.
	if got := r.get("https://api.test/"); got.StatusCode != 401 || len(o.got) != 3 || len(r.as.minted()) != 2 {
		t.Errorf("got %d after %d attempts with %d credentials", got.StatusCode, len(o.got), len(r.as.minted()))
	}
}

// The retried answer may repeat the first credential: it is masked as well.
func TestStaleCredentialIsGuarded(t *testing.T) {
	r := newRig(t, settings{})
	o := &strict{good: func(string) bool { return true }}
	r.serve(o.serve)
	r.get("https://api.test/")
	first := r.as.minted()[0]
	r.serve(func(w http.ResponseWriter, q *http.Request) {
		if q.Header.Get("Authorization") == "Bearer "+first {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, "before: "+first)
	})
	if got := r.get("https://api.test/"); strings.Contains(got.body, first) || !strings.HasPrefix(got.body, "before: *") {
		t.Errorf("got %s", got.body)
	}
}

// If no fresh credential can be had, the origin's own answer stands.
func TestRetryWithoutAFreshCredential(t *testing.T) {
	r := newRig(t, settings{})
	o := &strict{good: func(string) bool { return true }}
	r.serve(o.serve)
	r.get("https://api.test/")
	first := r.as.minted()[0]
	r.mintFails(400, `{"error":"invalid_grant"}`)
	r.serve(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, "bad: "+first)
	})
	if got := r.get("https://api.test/"); got.StatusCode != 401 || strings.Contains(got.body, first) || !strings.HasPrefix(got.body, "bad: *") {
		t.Errorf("got %d %s", got.StatusCode, got.body)
	}
}

// RFC 9449 section 9: the same token again with the nonce that the origin
// asks for; a POST is not repeated but the next one has the nonce.
func TestDPoPNonce(t *testing.T) {
	r := newRig(t, settings{oauth2: "    dpop: true\n", provider: "  inject: {as: dpop}\n"})
	r.as.dpop = true
	var mu sync.Mutex
	attempts := 0
	r.serve(func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		attempts++
		if !strings.HasPrefix(q.Header.Get("Authorization"), "DPoP ") || q.Header.Get("Dpop") == "" {
			t.Errorf("no proof: %v", q.Header)
		}
		if !proofHolds(q.Header.Get("Dpop"), "nonce-"+q.Method) {
			w.Header().Set("Dpop-Nonce", "nonce-"+q.Method)
			w.Header().Set("WWW-Authenticate", `DPoP error="use_dpop_nonce"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	if got := r.get("https://api.test/"); got.StatusCode != 200 || attempts != 2 || len(r.as.minted()) != 1 {
		t.Errorf("got %d after %d attempts with %d tokens", got.StatusCode, attempts, len(r.as.minted()))
	}
	for i, want := range []int{401, 200} {
		if got := r.do(r.client(false), http.MethodPost, "https://api.test/", strings.NewReader("x")); got.StatusCode != want {
			t.Errorf("POST %d: got %d, want %d", i, got.StatusCode, want)
		}
	}
	if attempts != 4 {
		t.Errorf("%d attempts", attempts)
	}
}

// Rule 7: what the origin repeats is masked, in head, body, early hints and
// trailers, on both protocols.
func TestEchoIsMasked(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		for _, host := range []string{"api.test", "h1.test"} {
			t.Run(fmt.Sprintf("%s h2=%v", host, h2), func(t *testing.T) {
				r := newRig(t, settings{})
				r.serve(func(w http.ResponseWriter, q *http.Request) {
					h, own := w.Header(), q.Header.Get("Authorization")
					h.Set("X-Early", own)
					w.WriteHeader(http.StatusEarlyHints)
					h.Set("Trailer", "X-Late")
					h.Set("X-Echo", own)
					_, _ = io.WriteString(w, "you sent "+own+"!")
					h.Set("X-Late", own)
				})
				var early strings.Builder
				got := r.hinted(r.client(h2), "https://"+host+"/", &early)
				token := r.as.minted()[0]
				for what, text := range map[string]string{"header": fmt.Sprint(got.Header), "body": got.body, "hints": early.String(), "trailer": fmt.Sprint(got.Trailer)} {
					if strings.Contains(text, token) || !strings.Contains(text, "***") {
						t.Errorf("%s: %s", what, text)
					}
				}
				if rec := r.record(); rec.Result.Outcome != audit.OutcomeOK || rec.Result.Masked < 3 {
					t.Errorf("record %+v", rec.Result)
				}
			})
		}
	}
}

// Rule 7: where masking would show, the stream is cut, the credential revoked
// and the leak recorded.
func TestLeakIsCutAndRevoked(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		r := newRig(t, settings{})
		r.serve(func(w http.ResponseWriter, q *http.Request) {
			w.Header().Set("Content-Digest", "sha-256=:AAAA:")
			_, _ = io.WriteString(w, "you sent "+q.Header.Get("Authorization")+"!")
		})
		got := r.do(r.client(h2), http.MethodGet, "https://api.test/", nil)
		if got.err == nil || strings.Contains(got.body, r.as.minted()[0]) {
			t.Errorf("the answer went through: %v %q", got.err, got.body)
		}
		if rec := r.record(); rec.Result.Outcome != audit.OutcomeLeak || rec.Result.ErrorKind != pipeline.CodeLeak {
			t.Errorf("record %+v", rec.Result)
		}
		r.eventually("the revocation", func() bool { return len(r.as.ended()) == 1 })
	}
}

// Rule 6 holds for answers of any length, whatever type they say or do not.
func TestLongAnswersAreSealed(t *testing.T) {
	combinations(t, func(t *testing.T, r *rig, c *http.Client, base string) {
		const issued = "ghs_issued0123456789issued0123456789"
		pad := strings.Repeat(" ", 1<<20)
		for n, kind := range []string{"application/json", "text/plain"} {
			r.serve(func(w http.ResponseWriter, _ *http.Request) {
				body := `{"access_token":"` + issued + `",` + pad + `"client_secret":"` + issued + `"}`
				w.Header().Set("Content-Type", kind)
				w.Header().Set("Content-Length", fmt.Sprint(len(body)))
				_, _ = io.WriteString(w, body)
			})
			got := r.do(c, http.MethodGet, base+"/", nil)
			if got.err != nil || strings.Contains(got.body, issued) || strings.Count(got.body, guard.HandlePrefix) != 2 || len(got.body) < len(pad) {
				t.Errorf("%s: %d bytes, %d handles, token passed: %t, %v", kind, len(got.body), strings.Count(got.body, guard.HandlePrefix), strings.Contains(got.body, issued), got.err)
			}
			if rec := r.records(n + 1)[n]; rec.Result.Sealed != 2 || rec.Result.Outcome != audit.OutcomeOK {
				t.Errorf("%s: record %+v", kind, rec.Result)
			}
		}
	})
}

// A leak ends the credential for all who use it (invariant 6), but for a static
// key, which it cannot end: there one answer must not stop the others.
func TestLeakAndTheOtherCalls(t *testing.T) {
	for _, tt := range []struct {
		host string
		cut  bool // the other call
	}{{"api.test", true}, {"key.test", false}} {
		t.Run(tt.host, func(t *testing.T) {
			r := newRig(t, settings{})
			began, leaked := make(chan struct{}), make(chan struct{})
			r.serve(func(w http.ResponseWriter, q *http.Request) {
				if q.URL.Path == "/stream" {
					_, _ = io.WriteString(w, "begin ")
					_ = http.NewResponseController(w).Flush()
					close(began)
					<-leaked
					if tt.cut {
						<-q.Context().Done()
						return
					}
					time.Sleep(300 * time.Millisecond) // a cut takes less
					_, _ = io.WriteString(w, "end")
					return
				}
				w.Header().Set("Content-Digest", "sha-256=:AAAA:")
				_, _ = io.WriteString(w, "you sent "+q.Header.Get("Authorization")+q.Header.Get("X-Api-Key"))
			})
			headers := []string{}
			if !tt.cut {
				headers = []string{"X-Api-Key", r.holders.Value("VENDOR_API_KEY")}
			}
			other := make(chan result, 1)
			go func() { other <- r.do(r.client(false), http.MethodGet, "https://"+tt.host+"/stream", nil, headers...) }()
			<-began
			got := r.do(r.client(false), http.MethodGet, "https://"+tt.host+"/leak", nil, headers...)
			close(leaked)
			if got.err == nil {
				t.Errorf("the leak went through: %q", got.body)
			}
			if o := <-other; (o.err != nil) != tt.cut || !tt.cut && o.body != "begin end" {
				t.Errorf("the other call: %q, %v; want it cut: %t", o.body, o.err, tt.cut)
			}
			for _, rec := range r.records(2) {
				want := audit.OutcomeLeak
				if rec.Request.Path == "/stream" {
					want = map[bool]string{true: audit.OutcomeRevoked, false: audit.OutcomeOK}[tt.cut]
				}
				if rec.Result.Outcome != want {
					t.Errorf("%s: got %s, want %s", rec.Request.Path, rec.Result.Outcome, want)
				}
			}
			if tt.cut {
				r.eventually("the revocation", func() bool { return len(r.as.ended()) == 1 })
			}
		})
	}
}

// Rule 6: a credential that the origin issues is kept here; its handle opens
// at that host, for that workload and task, and nowhere else.
func TestIssuedCredentialsAreSealed(t *testing.T) {
	r := newRig(t, settings{})
	const issued = "ghs_issued0123456789issued0123456789"
	var got http.Header
	r.serve(func(w http.ResponseWriter, q *http.Request) {
		got = q.Header
		if q.URL.Path == "/issue" {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Set-Cookie", "session=cookie-secret-0123456789; HttpOnly")
			_, _ = fmt.Fprintf(w, `{"access_token":%q,"token_type":"bearer"}`, issued)
		}
	})
	a := r.get("https://api.test/issue")
	if strings.Contains(a.body, issued) || strings.Contains(fmt.Sprint(a.Header), "cookie-secret") || !strings.Contains(a.body, guard.HandlePrefix) {
		t.Fatalf("got %s %v", a.body, a.Header)
	}
	_, rest, _ := strings.Cut(a.body, guard.HandlePrefix)
	handle := guard.HandlePrefix + rest[:strings.IndexByte(rest, '"')]
	if rec := r.record(); rec.Result.Sealed < 2 {
		t.Errorf("record %+v", rec.Result)
	}
	cookie := strings.Split(a.Header.Get("Set-Cookie"), ";")[0]
	r.get("https://api.test/use", "Cookie", cookie)
	if got.Get("Cookie") != "session=cookie-secret-0123456789" {
		t.Errorf("the handle did not open: %v", got)
	}
	r.get("https://open.test/use", "Cookie", cookie, "X-Key", handle)
	if strings.Contains(fmt.Sprint(got), guard.HandlePrefix) || strings.Contains(fmt.Sprint(got), "secret") {
		t.Errorf("a handle travelled to another host: %v", got)
	}
	tk, err := r.tasks.Open(t.Context(), task.OpenRequest{Workload: r.workload, RunID: r.workload.RunID, Purpose: "x", OpenedBy: task.ByOrchestrator})
	if err != nil {
		t.Fatal(err)
	}
	r.get("https://api.test/use", "Cookie", cookie, "Attache-Task", tk.ID)
	if strings.Contains(fmt.Sprint(got), "cookie-secret") {
		t.Error("a handle opened in another task")
	}
}

// An answer in a coding that cannot be scanned is not passed on.
func TestUndecodableAnswerIsRefused(t *testing.T) {
	r := newRig(t, settings{})
	r.serve(func(w http.ResponseWriter, q *http.Request) {
		if ae := q.Header.Get("Accept-Encoding"); strings.Contains(ae, "br") {
			t.Errorf("asked for %s", ae)
		}
		w.Header().Set("Content-Encoding", "br")
		_, _ = io.WriteString(w, "whatever")
	})
	got := r.get("https://api.test/", "Accept-Encoding", "br, gzip")
	if got.StatusCode != 502 || got.Header.Get("Attache-Error") != pipeline.CodeProtocol {
		t.Errorf("got %d %s", got.StatusCode, got.body)
	}
	if rec := r.record(); rec.Result.Outcome != audit.OutcomeError {
		t.Errorf("record %+v", rec.Result)
	}
}

// Rule 7: Range is dropped where answers may repeat the request.
func TestEchoRiskDropsRange(t *testing.T) {
	r := newRig(t, settings{})
	r.serve(func(w http.ResponseWriter, q *http.Request) { _, _ = io.WriteString(w, q.Header.Get("Range")) })
	if got := r.get("https://api.test/echo-risk", "Range", "bytes=0-1"); got.body != "" {
		t.Errorf("got %s", got.body)
	}
	if got := r.get("https://api.test/other", "Range", "bytes=0-1"); got.body != "bytes=0-1" {
		t.Errorf("got %s", got.body)
	}
}

// Invariant 8: another task, run or destination, another credential.
func TestCredentialsAreNotShared(t *testing.T) {
	r := newRig(t, settings{})
	seen := map[string]int{}
	r.serve(func(_ http.ResponseWriter, q *http.Request) { seen[q.Header.Get("Authorization")]++ })
	r.get("https://api.test/")
	r.get("https://api.test/again")
	if len(seen) != 1 {
		t.Fatalf("one caller, %d credentials", len(seen))
	}
	r.get("https://h1.test/")
	tk, err := r.tasks.Open(t.Context(), task.OpenRequest{Workload: r.workload, RunID: r.workload.RunID, Purpose: "x", OpenedBy: task.ByOrchestrator})
	if err != nil {
		t.Fatal(err)
	}
	r.get("https://api.test/", "Attache-Task", tk.ID)
	other := *r.workload
	other.RunID = "ffffffffffffffffffffffffffffffff"
	r.caller.Store(&other)
	r.get("https://api.test/")
	if len(seen) != 4 {
		t.Errorf("four callers, %d credentials", len(seen))
	}
	recs := r.records(5)
	if !recs[1].Credential.Cached || recs[1].Credential.Handle != recs[0].Credential.Handle || recs[2].Credential.Cached {
		t.Errorf("records %+v %+v", recs[0].Credential, recs[1].Credential)
	}
}

// lateMinter ends the task, or the credential, while it is being minted.
type lateMinter struct {
	pipeline.Minter
	before func(context.Context)
	after  func(minting.Credential)
}

func (m *lateMinter) Mint(ctx context.Context, q minting.Request, e minting.Evidence) (minting.Credential, error) {
	if m.before != nil {
		m.before(ctx)
	}
	c, err := m.Minter.Mint(ctx, q, e)
	if m.after != nil && err == nil {
		m.after(c)
	}
	return c, err
}

// Invariant 6: what ends while a call is on its way to its credential stops it.
func TestEndsBeforeTheSend(t *testing.T) {
	m := &lateMinter{}
	r := newRig(t, settings{transport: func(c *pipeline.Config) { m.Minter = c.Minter; c.Minter = m }})
	m.after = func(c minting.Credential) { r.EndCredential(c.Handle) }
	r.refusal(r.get("https://api.test/"), 403, pipeline.CodeRevoked, audit.OutcomeRevoked)

	m = &lateMinter{}
	tasks := &endingTasks{}
	r = newRig(t, settings{transport: func(c *pipeline.Config) { m.Minter = c.Minter; c.Minter = m; tasks.Tasks = c.Tasks; c.Tasks = tasks }})
	tk, err := r.tasks.Open(t.Context(), task.OpenRequest{Workload: r.workload, RunID: r.workload.RunID, Purpose: "x", OpenedBy: task.ByOrchestrator})
	if err != nil {
		t.Fatal(err)
	}
	// It ends between the look-up and the list of running calls.
	tasks.then = func() { _ = r.tasks.Close(tk.ID, "done") }
	r.refusal(r.get("https://open.test/", "Attache-Task", tk.ID), 403, pipeline.CodeRevoked, audit.OutcomeDenied)
}

type endingTasks struct {
	pipeline.Tasks
	then func()
}

func (e *endingTasks) Lookup(id string, w *identity.Workload) (*identity.Task, error) {
	t, err := e.Tasks.Lookup(id, w)
	if e.then != nil {
		e.then()
		e.then = nil
	}
	return t, err
}

// Invariants 1 and 7: no secret in any answer, log line or record, found by a
// search that finds a planted one.
func TestSecretsStayHere(t *testing.T) {
	r := newRig(t, settings{})
	r.serve(func(w http.ResponseWriter, q *http.Request) {
		switch q.URL.Path {
		case "/broken":
			c, _, _ := http.NewResponseController(w).Hijack()
			_ = c.Close()
		default:
			http.Error(w, "bad "+fmt.Sprint(q.Header), http.StatusTeapot)
		}
	})
	var answers bytes.Buffer
	note := func(got result) { fmt.Fprint(&answers, got.Header, got.body, got.Trailer) }
	for _, h2 := range []bool{false, true} {
		c := r.client(h2)
		for _, u := range []string{"https://api.test/", "https://h1.test/broken", "https://h1.test/x", "https://api.test/denied/x"} {
			note(r.do(c, http.MethodGet, u, nil))
		}
		note(r.do(c, http.MethodGet, "https://key.test/", nil, "X-Api-Key", r.holders.Value("VENDOR_API_KEY"), "X-Canary", "canary-7b1e"))
	}
	r.mintFails(400, `{"error":"invalid_grant","error_description":"`+strings.Repeat("y", 10)+`"}`)
	r.revokeEverything()
	note(r.get("https://api.test/again"))
	if !strings.Contains(answers.String(), "canary-7b1e") || !strings.Contains(r.wrote(t), r.records(11)[0].ID) {
		t.Fatal("the search finds nothing")
	}
	if len(r.as.minted()) == 0 || len(r.source.Signed()) == 0 {
		t.Fatal("nothing was minted")
	}
	for _, s := range r.secrets() {
		if strings.Contains(answers.String(), s) {
			t.Errorf("the agent got the secret %.8s…", s)
		}
	}
	r.searchForSecrets(t)
}

func (r *rig) revokeEverything() {
	r.cache.RevokeWhere(context.Background(), func(minting.Request, minting.Credential) bool { return true })
}

// The record's id travels upstream.
func TestRecordIDTravels(t *testing.T) {
	r := newRig(t, settings{})
	var got http.Header
	r.serve(func(_ http.ResponseWriter, q *http.Request) { got = q.Header })
	id := r.get("https://api.test/", "User-Agent", "agent/1").Header.Get("Attache-Record")
	if got.Get("User-Agent") != "agent/1 attache/"+id || got.Get("X-Request-Id") != id {
		t.Errorf("got %v", got)
	}
	r.get("https://api.test/", "X-Request-Id", "mine")
	if got.Get("X-Request-Id") != "mine" {
		t.Errorf("got %v", got)
	}
}

// A closed upstream connection is an error, recorded and named.
func TestBrokenAnswers(t *testing.T) {
	r := newRig(t, settings{})
	r.serve(func(w http.ResponseWriter, q *http.Request) {
		c, b, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		switch q.URL.Path {
		case "/garbage":
			_, _ = b.WriteString("not http\r\n\r\n")
		case "/short":
			_, _ = b.WriteString("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
		case "/switch":
			_, _ = b.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		case "/switch-nothing":
			_, _ = b.WriteString("HTTP/1.1 101 Switching Protocols\r\n\r\n")
		}
		_ = b.Flush()
	})
	for _, h2 := range []bool{false, true} {
		for _, path := range []string{"/closed", "/garbage", "/switch", "/switch-nothing"} {
			got := r.do(r.client(h2), http.MethodPost, "https://h1.test"+path, nil)
			if got.StatusCode != 502 || got.Header.Get("Attache-Error") == "" {
				t.Errorf("%s h2=%v: got %d %s", path, h2, got.StatusCode, got.body)
			}
		}
		if got := r.do(r.client(h2), http.MethodGet, "https://h1.test/short", nil); got.err == nil {
			t.Errorf("h2=%v: a short answer was taken for whole", h2)
		}
	}
	for _, rec := range r.records(10) {
		if rec.Result.Outcome != audit.OutcomeError {
			t.Errorf("%s: %+v", rec.Request.Path, rec.Result)
		}
	}
}

// An origin may refuse before it has the body: the second attempt carries all
// of it, though the first was still being sent.
func TestRetryWhileTheBodyIsStillComing(t *testing.T) {
	combinations(t, func(t *testing.T, r *rig, c *http.Client, base string) {
		o := &strict{good: func(string) bool { return true }}
		r.serve(o.serve)
		r.do(c, http.MethodGet, base, nil)
		first := r.as.minted()[0]
		again := make(chan struct{})
		r.serve(func(w http.ResponseWriter, q *http.Request) {
			if q.Header.Get("Authorization") == "Bearer "+first {
				_ = http.NewResponseController(w).EnableFullDuplex() // or net/http reads the body first
				w.WriteHeader(http.StatusUnauthorized)
				_ = http.NewResponseController(w).Flush()
				return
			}
			close(again)
			b, err := io.ReadAll(q.Body)
			_, _ = fmt.Fprintf(w, "%s %v", b, err)
		})
		pr, pw := io.Pipe()
		go func() {
			_, _ = io.WriteString(pw, "first-")
			select {
			case <-again:
			case <-t.Context().Done():
			}
			_, _ = io.WriteString(pw, "second")
			_ = pw.Close()
		}()
		c.Timeout = 5 * time.Second
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPut, base, pr)
		req.ContentLength = 12
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, _ := io.ReadAll(resp.Body); string(b) != "first-second <nil>" {
			t.Errorf("got %q", b)
		}
		if rec := r.records(2)[1]; !rec.Result.Retried || rec.Result.BytesUp != 12 {
			t.Errorf("record %+v", rec.Result)
		}
	})
}

// An origin that has said all it wants does not wait for the rest of an upload.
func TestEarlyAnswerToASlowUpload(t *testing.T) {
	combinations(t, func(t *testing.T, r *rig, c *http.Client, base string) {
		r.serve(func(w http.ResponseWriter, _ *http.Request) {
			_ = http.NewResponseController(w).EnableFullDuplex()
			http.Error(w, "too large", http.StatusRequestEntityTooLarge)
		})
		pr, pw := io.Pipe()
		defer pw.Close()
		go func() { _, _ = io.WriteString(pw, "first-") }()
		c.Timeout = 5 * time.Second
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, base, pr)
		req.ContentLength = 12
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); string(b) != "too large\n" || err != nil {
			t.Errorf("got %q %v", b, err)
		}
		if rec := r.record(); rec.Result.Status != 413 || rec.Result.Outcome != audit.OutcomeOK {
			t.Errorf("record %+v", rec.Result)
		}
	})
}
