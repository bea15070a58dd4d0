package pipeline_test

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/task"
	"github.com/attache-dev/attache/proxy/front"
	"github.com/attache-dev/attache/proxy/pipeline"
)

// Invariant 2, rule 1 and others: each refusal is answered in HTTP, recorded
// once, and nothing reaches the origin.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name, method, url string
		header            []string
		s                 settings
		before            func(*rig)
		status            int
		code, outcome     string
	}{
		{name: "by a rule", url: "https://api.test/denied/x", status: 403, code: pipeline.CodeDenied, outcome: audit.OutcomeDenied},
		{name: "by default", url: "https://other.example/", status: 403, code: pipeline.CodeDenied, outcome: audit.OutcomeDenied},
		{name: "without policy", url: "https://api.test/", before: func(r *rig) { r.SetState(&pipeline.State{}) }, status: 403, code: pipeline.CodeDenied, outcome: audit.OutcomeDenied},
		{name: "unattested", url: "https://api.test/", before: func(r *rig) { r.refused.Store(true) }, status: 403, code: pipeline.CodeUnattested, outcome: audit.OutcomeDenied},
		{name: "TRACE", method: "TRACE", url: "https://api.test/", status: 405, code: pipeline.CodeBadRequest, outcome: audit.OutcomeDenied},
		{name: "TRACK", method: "TRACK", url: "https://open.test/", status: 405, code: pipeline.CodeBadRequest, outcome: audit.OutcomeDenied},
		{name: "encoded slash", url: "https://api.test/a%2fb", status: 400, code: pipeline.CodeBadPath, outcome: audit.OutcomeDenied},
		{name: "dot segment", url: "https://api.test/a/../b", status: 400, code: pipeline.CodeBadPath, outcome: audit.OutcomeDenied},
		{name: "encoded dots", url: "https://api.test/a/%2e%2e/b", status: 400, code: pipeline.CodeBadPath, outcome: audit.OutcomeDenied},
		{name: "empty segment", url: "https://api.test/a//b", status: 400, code: pipeline.CodeBadPath, outcome: audit.OutcomeDenied},
		{name: "semicolon", url: "https://open.test/a;b", status: 400, code: pipeline.CodeBadPath, outcome: audit.OutcomeDenied},
		{name: "query", url: "https://open.test/a?b=%00", status: 400, code: pipeline.CodeBadPath, outcome: audit.OutcomeDenied},
		{name: "cross-site", url: "https://api.test/", header: []string{"Origin", "https://evil.example"}, status: 403, code: pipeline.CodeAmbientUse, outcome: audit.OutcomeDenied},
		{name: "no placeholder", url: "https://key.test/", status: 403, code: pipeline.CodeAmbientUse, outcome: audit.OutcomeDenied},
		{name: "unknown task", url: "https://api.test/", header: []string{"Attache-Task", "0123456789abcdef0123456789abcdef"}, status: 403, code: pipeline.CodeTaskUnknown, outcome: audit.OutcomeDenied},
		{name: "rate", url: "https://api.test/", s: settings{config: "  limits: {maxRequestsPerSec: 1}"}, before: func(r *rig) {
			r.refusedQuietly()
		}, status: 429, code: pipeline.CodeRateLimited, outcome: audit.OutcomeDenied},
		{name: "loopback name", url: "https://localhost/", status: 403, code: pipeline.CodeAddress, outcome: audit.OutcomeError},
		{name: "unresolvable", url: "https://nowhere.invalid/", status: 502, code: pipeline.CodeUnreachable, outcome: audit.OutcomeError},
		{name: "metadata address", url: "http://169.254.169.254/latest/meta-data/", status: 403, code: pipeline.CodeAddress, outcome: audit.OutcomeError},
		{name: "mint 500", url: "https://api.test/", before: func(r *rig) { r.mintFails(500, "") }, status: 503, code: pipeline.CodeMintUnavailable, outcome: audit.OutcomeError},
		{name: "mint denied", url: "https://api.test/", before: func(r *rig) { r.mintFails(400, `{"error":"invalid_scope"}`) }, status: 403, code: pipeline.CodeMintDenied, outcome: audit.OutcomeError},
		{name: "mint lies about its type", url: "https://api.test/", before: func(r *rig) {
			r.mintFails(200, `{"access_token":"tok-lie","token_type":"mac","expires_in":60}`)
		}, status: 503, code: pipeline.CodeMintUnavailable, outcome: audit.OutcomeError},
		{name: "mint answers 10 MB", url: "https://api.test/", before: func(r *rig) { r.mintFails(200, `{"access_token":"`+strings.Repeat("x", 10<<20)+`"}`) },
			status: 503, code: pipeline.CodeMintUnavailable, outcome: audit.OutcomeError},
		{name: "mint redirects", url: "https://api.test/", before: func(r *rig) { r.mintFails(307, "") }, status: 503, code: pipeline.CodeMintUnavailable, outcome: audit.OutcomeError},
		{name: "mint slow", url: "https://api.test/", before: func(r *rig) { r.mintHangs() }, status: 503, code: pipeline.CodeMintUnavailable, outcome: audit.OutcomeError},
		{name: "identity", url: "https://api.test/", before: func(r *rig) { r.source.FailWith(identity.ErrUnavailable) }, status: 503, code: pipeline.CodeNoIdentity, outcome: audit.OutcomeError},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, c.s)
			if c.before != nil {
				c.before(r)
			}
			method := c.method
			if method == "" {
				method = http.MethodGet
			}
			rec := r.refusal(r.do(r.client(false), method, c.url, nil, c.header...), c.status, c.code, c.outcome)
			if rec.Decision.Verdict == "" {
				t.Error("the record has no verdict")
			}
			if begun := rec.Steps.Begun > 0; begun != (c.outcome == audit.OutcomeError) {
				t.Errorf("begun: %v", begun)
			}
		})
	}
}

// refusedQuietly uses the rate up without leaving a record or a request.
func (r *rig) refusedQuietly() {
	r.t.Helper()
	r.do(r.client(false), "TRACE", "https://api.test/", nil)
	r.forgetRecords()
}

// forgetRecords makes records count from here.
func (r *rig) forgetRecords() {
	r.t.Helper()
	r.records(1)
	r.skip++
}

func (r *rig) mintFails(status int, body string) {
	r.as.mu.Lock()
	defer r.as.mu.Unlock()
	r.as.answer = func(w http.ResponseWriter, q *http.Request) bool {
		if q.URL.Path == "/elsewhere" {
			return false // where a redirect would lead, there is a token
		}
		w.Header().Set("Content-Type", "application/json")
		if status == http.StatusTemporaryRedirect {
			w.Header().Set("Location", "https://as.example/elsewhere")
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
		return true
	}
}

func (r *rig) mintHangs() {
	r.as.mu.Lock()
	defer r.as.mu.Unlock()
	r.as.answer = func(_ http.ResponseWriter, q *http.Request) bool {
		_, _ = io.Copy(io.Discard, q.Body) // the server sees the client leave only then
		<-q.Context().Done()
		return true
	}
}

// A refusal takes the form that the client shows.
func TestRefusalForms(t *testing.T) {
	r := newRig(t, settings{})
	got := r.get("https://api.test/denied/x")
	var p struct {
		Detail, Code, Record, Policy, Rule string
		Error                              struct{ Message string }
	}
	if err := json.Unmarshal([]byte(got.body), &p); err != nil || got.Header.Get("Content-Type") != "application/problem+json" {
		t.Fatalf("%v: %s", err, got.body)
	}
	if !strings.Contains(p.Detail, "ask #platform") || p.Code != "denied" || p.Record != r.record().ID || p.Policy != "p" || p.Rule != "denied" || !strings.Contains(p.Error.Message, "ask #platform") {
		t.Errorf("got %+v", p)
	}
	if got.Header.Get("X-Should-Retry") != "false" || got.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("got %v", got.Header)
	}
	got = r.get("https://api.test/denied/x", "User-Agent", "git/2.47.1")
	if !strings.HasPrefix(got.Header.Get("Content-Type"), "text/plain") || !strings.Contains(got.body, "ask #platform") {
		t.Errorf("git: got %v %s", got.Header, got.body)
	}
	got = r.do(r.client(true), http.MethodHead, "https://api.test/denied/x", nil)
	if got.StatusCode != 403 || got.body != "" {
		t.Errorf("HEAD: got %d %q", got.StatusCode, got.body)
	}
	r.records(3)
}

// Invariant 2: no room for the record, no call.
func TestAuditFullRefuses(t *testing.T) {
	r := newRig(t, settings{audit: func(o *audit.Options) { o.SegmentBytes, o.MaxBytes = 32<<10, 64<<10 }})
	r.serve(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	c := r.client(false)
	passed, refused := int64(0), 0
	for range 500 {
		got := r.do(c, http.MethodGet, "https://open.test/", nil, "User-Agent", strings.Repeat("x", 256))
		if got.StatusCode == http.StatusNoContent {
			passed++
			continue
		}
		if got.StatusCode != 503 || got.Header.Get("Attache-Error") != pipeline.CodeAuditFull || got.Header.Get("Retry-After") == "" {
			t.Fatalf("got %d %s", got.StatusCode, got.body)
		}
		// Ends that were still to be written give back what they did not need.
		if refused++; refused < 10 {
			continue
		}
		if n := r.requests.Load(); n != passed || passed == 0 {
			t.Errorf("%d requests reached the origin, %d passed", n, passed)
		}
		// An agent that opens tasks is a call too.
		got = r.do(c, http.MethodPost, "http://attache.internal/v1/tasks", strings.NewReader(`{"purpose":"x"}`))
		if got.StatusCode != 503 || len(r.tasks.List()) != 0 {
			t.Errorf("a task was opened without a record: %d %s", got.StatusCode, got.body)
		}
		return
	}
	t.Fatal("the spool never filled")
}

// Rule 3: what an agent writes to steer servers behind us does not pass.
func TestSteeringHeadersAreRemoved(t *testing.T) {
	r := newRig(t, settings{})
	seen := make(chan http.Header, 1)
	r.serve(func(_ http.ResponseWriter, q *http.Request) { seen <- q.Header })
	steer := []string{"X-Http-Method-Override", "X-Original-Url", "Forwarded", "X-Forwarded-Host", "X-Forwarded-For", "X-Real-Ip", "Via",
		"Keep-Alive", "Proxy-Authorization", "X-Rewrite-Url", "X_Forwarded_Proto"}
	header := []string{"Kept", "1", "Connection", "authorization, hop", "Hop", "1"}
	for _, k := range steer {
		header = append(header, k, "x")
	}
	r.get("https://h1.test/", header...)
	h := <-seen
	for _, k := range append(steer, "Hop", "Connection") {
		if _, ok := h[k]; ok {
			t.Errorf("%s reached the origin", k)
		}
	}
	if h.Get("Kept") != "1" {
		t.Errorf("Kept is gone: %v", h)
	}
	if h.Get("Authorization") != "Bearer "+r.as.minted()[0] { // "Connection: authorization" takes nothing off
		t.Errorf("the credential is gone: %v", h)
	}
}

// Rule 3: policy sees the fields that the origin gets.
func TestPolicySeesWhatTheOriginSees(t *testing.T) {
	r := newRig(t, settings{rules: `
  - {name: a, hosts: ["api.test"], action: allow, headers: [{name: X-Team, exact: blue}]}
`})
	got := r.get("https://api.test/", "X-Team", "blue", "Connection", "x-team")
	if got.StatusCode != 403 || r.requests.Load() != 0 {
		t.Errorf("a field that never reached the origin fulfilled a rule: %d", got.StatusCode)
	}
}

// Rule 4: the agent's own credentials never pass, with or without ours.
func TestAgentsOwnCredentialsAreRemoved(t *testing.T) {
	for _, host := range []string{"api.test", "open.test"} {
		t.Run(host, func(t *testing.T) {
			r := newRig(t, settings{})
			seen := make(chan *http.Request, 1)
			r.serve(func(_ http.ResponseWriter, q *http.Request) { seen <- q })
			r.get("https://"+host+"/?api_key=own-secret&q=1", "Authorization", "Bearer own-secret", "X-Api-Key", "own-secret", "Api-Key", "own-secret",
				"X-Goog-Api-Key", "own-secret", "Cookie", "session=own-secret; theme=dark")
			q := <-seen
			if text := fmt.Sprint(q.Header, q.RequestURI); strings.Contains(text, "own-secret") {
				t.Errorf("the agent's own credential passed: %s", text)
			}
			if q.RequestURI != "/?q=1" {
				t.Errorf("query: %s", q.RequestURI)
			}
			if removed := r.record().Request.Removed; !slices.Contains(removed, "Authorization") || !slices.Contains(removed, "query api_key") {
				t.Errorf("recorded: %v", removed)
			}
		})
	}
}

func TestAgentCredentialPass(t *testing.T) {
	r := newRig(t, settings{rules: `
  - {name: own, hosts: ["api.test"], action: allow, agentCredential: pass}
`})
	r.serve(func(w http.ResponseWriter, q *http.Request) { _, _ = io.WriteString(w, q.Header.Get("Authorization")) })
	if got := r.get("https://api.test/", "Authorization", "Bearer own"); got.body != "Bearer own" {
		t.Errorf("got %s", got.body)
	}
}

// Rule 5: a placeholder asks for the credential at its provider, and is worth
// nothing elsewhere.
func TestPlaceholders(t *testing.T) {
	r := newRig(t, settings{})
	ph := r.holders.Value("VENDOR_API_KEY")
	var seen http.Header
	var uri string
	r.serve(func(_ http.ResponseWriter, q *http.Request) { seen, uri = q.Header, q.RequestURI })
	if got := r.get("https://key.test/", "X-Api-Key", ph); got.StatusCode != 200 || seen.Get("X-Api-Key") != apiKey {
		t.Fatalf("got %d, the origin saw %q", got.StatusCode, seen.Get("X-Api-Key"))
	}
	r.get("https://open.test/?k="+ph+"&a=1", "X-Odd", ph, "Kept", "1")
	if strings.Contains(fmt.Sprint(seen, uri), ph) || seen.Get("Kept") != "1" || uri != "/?a=1" {
		t.Errorf("a placeholder went to another host: %v %s", seen, uri)
	}
	if removed := r.records(2)[1].Request.Removed; !slices.Contains(removed, "X-Odd") || !slices.Contains(removed, "query k") {
		t.Errorf("recorded: %v", removed)
	}
	if got := r.get("https://key.test/", "X-Api-Key", "sk-of-another-run"); got.StatusCode != 403 || got.Header.Get("Attache-Error") != pipeline.CodeAmbientUse {
		t.Errorf("another run's placeholder: got %d", got.StatusCode)
	}
}

// Invariant 5: no credential goes unencrypted, whatever a document says.
func TestCleartextIsRefused(t *testing.T) {
	open := func(unsafe bool) *rig {
		return newRig(t, settings{rules: `
  - {name: api, hosts: ["plain.test"], action: allow, credential: {provider: tok}}
`, change: func(b *api.Bundle) {
			s := &b.Providers[0].Spec
			s.UnsafeCleartext = unsafe
			s.Destinations = append(s.Destinations, v1alpha1.Destination{Host: "plain.test", Scheme: "http", Port: 80, Addresses: b.Policies[0].Spec.Destinations[1].Addresses})
		}})
	}
	r := open(false)
	r.refusal(r.get("http://plain.test/"), 403, pipeline.CodeCleartext, audit.OutcomeDenied)
	r = open(true)
	r.serve(func(w http.ResponseWriter, q *http.Request) {
		_, _ = fmt.Fprint(w, q.Header.Get("Authorization") == "Bearer "+r.as.minted()[0])
	})
	if got := r.get("http://plain.test/"); got.body != "true" {
		t.Errorf("unsafeCleartext: got %d %s", got.StatusCode, got.body)
	}
}

// A provider's credential goes to its destinations only: host, port and
// protocol. No byte leaves, whatever rule asks for it.
func TestConfusedDeputy(t *testing.T) {
	for name, change := range map[string]func(*v1alpha1.Destination){
		"host":     func(d *v1alpha1.Destination) { d.Host = "api.test" },
		"port":     func(d *v1alpha1.Destination) { d.Port = 8443 },
		"protocol": func(d *v1alpha1.Destination) { d.Scheme, d.Port = "http", 443 },
	} {
		for _, place := range []api.Place{api.PlaceRun, api.PlacePod} {
			t.Run(fmt.Sprint(name, " ", place), func(t *testing.T) {
				r := newRig(t, settings{change: func(b *api.Bundle) {
					b.Place = place
					for i := range b.Providers {
						change(&b.Providers[i].Spec.Destinations[0])
					}
				}})
				r.refusal(r.get("https://h1.test/"), 403, pipeline.CodeDenied, audit.OutcomeDenied)
				if r.as.asked() != 0 || r.requests.Load() != 0 || r.dials.Load() != 0 {
					t.Error("the issuer was asked, or the origin called")
				}
			})
		}
	}
}

// In a cluster a policy is somebody else's than the provider: one that says for
// a host of the provider's where it is, and whom to trust there, does not get
// the credential sent there.
func TestCredentialGoesTheProvidersWay(t *testing.T) {
	var stolen atomic.Int64
	thief := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { stolen.Add(1) }))
	t.Cleanup(thief.Close)
	r := newRig(t, settings{change: func(b *api.Bundle) {
		b.Place = api.PlacePod
		b.Policies[0].Spec.Destinations = append(b.Policies[0].Spec.Destinations, v1alpha1.Destination{
			Host: "h1.test", Scheme: "https", Port: 443, Addresses: []string{thief.Listener.Addr().String()}, OnlyCA: true, ServerName: "example.com",
			CABundle: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: thief.Certificate().Raw})),
		}, v1alpha1.Destination{
			Host: "open.test", Scheme: "https", Port: 443, Addresses: []string{thief.Listener.Addr().String()}, OnlyCA: true, ServerName: "example.com",
			CABundle: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: thief.Certificate().Raw})),
		})
	}})
	r.serve(func(w http.ResponseWriter, q *http.Request) { _, _ = fmt.Fprint(w, q.Header.Get("Authorization")) })
	if got := r.get("https://h1.test/"); got.StatusCode != 200 || stolen.Load() != 0 || r.requests.Load() != 1 || r.as.asked() != 1 {
		t.Errorf("got %d %s; the thief had %d requests, the origin %d", got.StatusCode, got.body, stolen.Load(), r.requests.Load())
	}
	if got := r.get("https://open.test/"); got.StatusCode != 200 || stolen.Load() != 1 {
		t.Errorf("without a credential the policy's own way counts: got %d, %d", got.StatusCode, stolen.Load())
	}
}

// Invariant 5: CONNECT, SNI and Host name one destination.
func TestOneDestination(t *testing.T) {
	r := newRig(t, settings{})
	c := r.connect("open.test:443")
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != http.StatusMisdirectedRequest || r.requests.Load() != 0 {
		t.Fatalf("got %v %v", resp, err)
	}
	if _, ok := r.kinds.Load(front.KindMisdirected); !ok {
		t.Error("not counted")
	}
	// The origin's certificate must be for that name.
	r.refusalOfTLS()
}

func (r *rig) refusalOfTLS() {
	r.t.Helper()
	c := tls.Client(r.tunnel("open.test:443"), &tls.Config{InsecureSkipVerify: true, ServerName: "api.test"}) //nolint:gosec // the leaf would not verify anyway
	if err := c.HandshakeContext(r.t.Context()); err == nil {
		r.t.Error("a TLS name other than CONNECT's was accepted")
	}
}

func TestUpstreamCertificateIsVerified(t *testing.T) {
	r := newRig(t, settings{change: func(b *api.Bundle) {
		for _, d := range [][]v1alpha1.Destination{b.Providers[0].Spec.Destinations, b.Providers[1].Spec.Destinations, b.Policies[0].Spec.Destinations} {
			d[0].CABundle = "" // the system's roots
			d[0].OnlyCA = false
		}
	}})
	r.refusal(r.get("https://api.test/"), 502, pipeline.CodeUpstreamTLS, audit.OutcomeError)
}

// Loops come back to our own port and are refused there.
func TestLoopIsRefused(t *testing.T) {
	r := newRig(t, settings{rules: `
  - {name: loop, hosts: ["plain.test"], action: allow}
`, change: func(b *api.Bundle) {}})
	_, routes, err := pipeline.NewState(&api.Bundle{Policies: []v1alpha1.AccessPolicy{{Spec: v1alpha1.AccessPolicySpec{
		Destinations: []v1alpha1.Destination{{Host: "plain.test", Scheme: "http", Port: 80, Addresses: []string{r.proxy}}}}}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.pool.SetRoutes(routes)
	r.refusal(r.get("http://plain.test/"), http.StatusLoopDetected, pipeline.CodeLoop, audit.OutcomeError)
}

// Rule 8: a task works for its workload and run, and its end cuts and revokes.
func TestTasks(t *testing.T) {
	r := newRig(t, settings{})
	open := func(w *identity.Workload, by string) *identity.Task {
		tk, err := r.tasks.Open(t.Context(), task.OpenRequest{Workload: w, RunID: w.RunID, Purpose: "reconcile", OpenedBy: by})
		if err != nil {
			t.Fatal(err)
		}
		return tk
	}
	other := *r.workload
	other.RunID = "ffffffffffffffffffffffffffffffff"
	foreign := open(&other, task.ByOrchestrator)
	if got := r.get("https://api.test/", "Attache-Task", foreign.ID); got.Header.Get("Attache-Error") != pipeline.CodeTaskUnknown || r.requests.Load() != 0 {
		t.Errorf("another run's task: got %d %s", got.StatusCode, got.body)
	}
	own := open(r.workload, task.ByOrchestrator)
	events := make(chan struct{})
	r.serve(func(w http.ResponseWriter, q *http.Request) {
		if _, ok := q.Header["Attache-Task"]; ok {
			t.Error("the task's id reached the origin")
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: 1\n\n")
		_ = http.NewResponseController(w).Flush()
		close(events)
		<-q.Context().Done()
	})
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://api.test/stream", nil)
	req.Header.Set("Attache-Task", own.ID)
	resp, err := r.client(true).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	<-events
	first := make([]byte, len("data: 1\n\n")) // a reset may overtake what was not read
	if _, err := io.ReadFull(resp.Body, first); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := r.tasks.Close(own.ID, "done"); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err == nil || time.Since(start) > time.Second {
		t.Errorf("the stream went on: %q %v after %v", b, err, time.Since(start))
	}
	recs := r.records(2)
	rec := recs[1]
	if rec.Result.Outcome != audit.OutcomeRevoked || rec.Task.ID != own.ID || rec.Task.Purpose != "reconcile" || rec.Task.OpenedBy != task.ByOrchestrator {
		t.Errorf("record %+v %+v", rec.Result, rec.Task)
	}
	r.eventually("the credential's end at the issuer", func() bool { return slices.Equal(r.as.ended(), r.as.minted()) })
	if got := r.get("https://api.test/", "Attache-Task", own.ID); got.Header.Get("Attache-Error") != pipeline.CodeTaskUnknown {
		t.Errorf("a closed task: got %d", got.StatusCode)
	}
}

// Rule 8: only a rule lets an agent open tasks, and the record says who did.
func TestAgentOpensATask(t *testing.T) {
	r := newRig(t, settings{})
	got := r.do(r.client(false), http.MethodPost, "http://attache.internal/v1/tasks", strings.NewReader(`{"purpose":"own","ttl":"1m"}`))
	var a struct{ ID string }
	if err := json.Unmarshal([]byte(got.body), &a); err != nil || got.StatusCode != http.StatusCreated {
		t.Fatalf("got %d %s", got.StatusCode, got.body)
	}
	if got := r.get("https://api.test/", "Attache-Task", a.ID); got.StatusCode != 200 {
		t.Errorf("got %d", got.StatusCode)
	}
	recs := r.records(2)
	if recs[1].Task.OpenedBy != task.ByAgent || recs[0].Request.Host != pipeline.LocalHost || recs[0].Result.Status != 201 {
		t.Errorf("records %+v %+v", recs[0].Result, recs[1].Task)
	}
	if got := r.do(r.client(false), http.MethodDelete, "http://attache.internal/v1/tasks/"+a.ID, nil); got.StatusCode != http.StatusNoContent || len(r.tasks.List()) != 0 {
		t.Errorf("close: got %d", got.StatusCode)
	}
	for _, bad := range []string{"", "{", `{"purpose":""}`, `{"purpose":"x","ttl":"-1s"}`, `{"purpose":"x","more":1}`} {
		if got := r.do(r.client(false), http.MethodPost, "http://attache.internal/v1/tasks", strings.NewReader(bad)); got.StatusCode != 400 {
			t.Errorf("%q: got %d", bad, got.StatusCode)
		}
	}
	r = newRig(t, settings{rules: `
  - {name: local, hosts: ["attache.internal"], action: allow}
`})
	r.refusal(r.do(r.client(false), http.MethodPost, "http://attache.internal/v1/tasks", strings.NewReader(`{"purpose":"own"}`)), 403, pipeline.CodeDenied, audit.OutcomeDenied)
}

// Invariant 6: maxStream, the end of a run and of a credential cut streams,
// also that of an agent which reads nothing.
func TestRunningStreamsAreCut(t *testing.T) {
	for _, c := range []struct {
		name, url string
		h2        bool
		end       func(*rig, audit.Record)
	}{
		{"maxStream", "https://short.test/", false, func(*rig, audit.Record) {}},
		{"run", "https://api.test/", true, func(r *rig, _ audit.Record) { r.EndRun(r.workload.RunID) }},
		{"credential", "https://api.test/", false, func(r *rig, _ audit.Record) { r.revokeAll() }},
		{"run, stuck reader", "https://api.test/flood", false, func(r *rig, _ audit.Record) { r.EndRun(r.workload.RunID) }},
		{"run, stuck h2 reader", "https://api.test/flood", true, func(r *rig, _ audit.Record) { r.EndRun(r.workload.RunID) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, settings{})
			gone := make(chan struct{})
			r.serve(func(w http.ResponseWriter, q *http.Request) {
				defer close(gone)
				_, _ = io.WriteString(w, "begin")
				_ = http.NewResponseController(w).Flush()
				for q.URL.Path == "/flood" {
					if _, err := w.Write(make([]byte, 64<<10)); err != nil {
						return
					}
				}
				<-q.Context().Done()
			})
			resp, err := r.client(c.h2).Get(c.url)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if strings.HasSuffix(c.url, "/flood") {
				<-time.After(300 * time.Millisecond) // until the buffers are full
			}
			c.end(r, audit.Record{})
			rec := r.record()
			if rec.Result.Outcome != audit.OutcomeRevoked || rec.Result.ErrorKind != pipeline.CodeRevoked {
				t.Errorf("record %+v", rec.Result)
			}
			select {
			case <-gone:
			case <-time.After(3 * time.Second):
				t.Error("the origin's side lives on")
			}
			if _, err := io.Copy(io.Discard, resp.Body); err == nil {
				t.Error("the agent took the cut answer for a whole one")
			}
		})
	}
}

func (r *rig) revokeAll() {
	r.eventually("a credential", func() bool { return len(r.cache.Live()) == 1 })
	r.revoke(r.cache.Live()[0].Handle)
}
