package e2e

import (
	"compress/gzip"
	"context"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// An edit takes effect without dropping a stream; a bad one changes nothing
// and says where it is wrong.
func TestReload(t *testing.T) {
	t.Parallel()
	w, o := newWorld(t), newOrigin(t)
	w.write("policy.yaml", o.allow(""))
	a := w.waiting()
	call := "curl -sS -m 10 -o /dev/null -w '%{http_code}' https://" + apiHost + "/v1/"
	if got := w.does(a, call+"first"); got != "200" {
		t.Fatalf("before: %s", got)
	}
	w.does(a, "curl -sSN https://"+apiHost+"/sse >stream 2>stream.err &")
	stream := func() string { b, _ := os.ReadFile(filepath.Join(w.dir, "work", "stream")); return string(b) }
	eventually(t, "the stream runs", func() bool { return strings.Contains(stream(), "event-2") })

	w.write("policy.yaml", o.allow(", methds: [GET]"))
	a.says("policy.yaml:7:")
	a.says("the last good one stays")
	if got := w.does(a, call+"second"); got != "200" {
		t.Errorf("after the bad edit: %s", got)
	}
	eventually(t, "policy.rejected", func() bool { return len(w.events("policy.rejected")) == 1 })
	if e := w.events("policy.rejected")[0].Event; !strings.Contains(e.Fields["error"], "policy.yaml:7:") {
		t.Errorf("event %+v", e)
	}
	if m := w.metric("attache_config_in_force"); m != "0" {
		t.Errorf("attache_config_in_force is %s", m)
	}

	w.write("policy.yaml", o.allow(", methods: [POST]"))
	a.says("the configuration is good again")
	if got := w.does(a, call+"third"); got != "403" {
		t.Errorf("after the good edit: %s", got)
	}
	if m := w.metric("attache_config_in_force"); m != "1" {
		t.Errorf("attache_config_in_force is %s", m)
	}
	first, second, third := w.one("path:/v1/first"), w.one("path:/v1/second"), w.one("path:/v1/third")
	if first.Decision.Version == "" || first.Decision.Version != second.Decision.Version || third.Decision.Version == first.Decision.Version {
		t.Errorf("policy versions %q %q %q", first.Decision.Version, second.Decision.Version, third.Decision.Version)
	}
	seen := len(stream())
	eventually(t, "the stream goes on", func() bool { return len(stream()) > seen+100 })
	if o.streams.Load() != 1 {
		t.Error("the stream was opened again")
	}

	// What is made at the start says that it waits for the next one.
	w.write("provider.yaml", `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: late}
spec:
  destinations: [{host: late.e2e.test}]
  jwt: {}
  placeholders: [{env: LATE_KEY}]
---
apiVersion: attache.dev/v1alpha1
kind: AttacheConfig
metadata: {name: attache}
spec: {limits: {maxHeaders: 50}}
`)
	a.says("placeholder LATE_KEY is made at the start")
	a.says("AttacheConfig is read at the start")
	w.write("provider.yaml", `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: late}
spec:
  destinations: [{host: late.e2e.test}]
  apiKey: {env: HOME}
`)
	a.says("provider.yaml:6:17: HOME is taken from the environment at the start only")
	if got := w.does(a, `echo "home=$HOME"`); got == "home=" {
		t.Error("the rejected provider took the variable")
	}
}

// Revocation by handle, provider, task or all: the issuer is told, the running
// stream is cut within a second, and its record says revoked.
func TestRevoke(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"handle", "--provider", "--task", "--all"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			w, o, i := newWorld(t), newOrigin(t), newIssuer(t)
			w.write("provider.yaml", i.provider(o, ""))
			w.write("policy.yaml", o.allow(", credential: {provider: tokens}"))
			p := w.startRun("--task", "watch", "--", "curl", "-sSN", "https://"+apiHost+"/sse")
			p.says("event-1")
			var live []struct {
				Handle, Provider string
				TaskID           string `json:"task_id"`
			}
			r := w.attache("inventory", "-o", "json").must(t)
			if err := json.Unmarshal([]byte(r.stdout), &live); err != nil || len(live) != 1 || live[0].Provider != "tokens" || live[0].TaskID == "" {
				t.Fatalf("inventory: %v %s", err, r.stdout)
			}
			if text := w.attache("inventory").must(t).stdout; !strings.Contains(text, live[0].Handle) {
				t.Errorf("inventory as text: %s", text)
			}
			w.attache("revoke", "cred_of_nobody").want(t, 1, "no live credential")
			w.attache("revoke").want(t, 2, "--provider")
			w.attache("revoke", "x", "--all").want(t, 2, "combined")
			args := map[string][]string{"handle": {live[0].Handle}, "--provider": {"--provider", "tokens"}, "--task": {"--task", live[0].TaskID}, "--all": {"--all"}}[how]
			before := time.Now()
			w.attache(append([]string{"revoke"}, args...)...).want(t, 0, live[0].Handle+" (tokens): revoked")
			<-p.done
			if d := time.Since(before); d > 2*time.Second {
				t.Errorf("the stream was cut after %v", d)
			}
			if _, issued, revoked := i.state(); len(revoked) != 1 || revoked[0] != issued[0] {
				t.Errorf("issued %q, revoked %q", issued, revoked)
			}
			if rec := w.one("path:/sse"); rec.Result.Outcome != "revoked" || rec.Credential.Handle != live[0].Handle {
				t.Errorf("record %+v", rec.Result)
			}
			if len(w.events("credential.revoked")) != 1 {
				t.Error("no event credential.revoked")
			}
			w.attache("revoke", "--all").want(t, 1, "no run is alive")
		})
	}
}

// metric asks the run's admin socket for one sample.
func (w *world) metric(name string) string {
	w.t.Helper()
	for line := range strings.SplitSeq(w.admin("/metrics"), "\n") {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			return v
		}
	}
	return ""
}

// admin gets a page of the only run's admin socket.
func (w *world) admin(path string) string {
	w.t.Helper()
	socks, err := filepath.Glob(filepath.Join(w.state, "run", "*", "admin.sock"))
	if err != nil || len(socks) != 1 {
		w.t.Fatalf("admin sockets: %v %v", err, socks)
	}
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socks[0])
	}}}
	defer c.CloseIdleConnections()
	res, err := c.Get("http://attache" + path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

// Health, readiness and metrics, on the socket and on a TCP port that can
// change nothing.
func TestAdmin(t *testing.T) {
	t.Parallel()
	w, o, i := newWorld(t), newOrigin(t), newIssuer(t)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	_ = free.Close()
	w.write("attache.yaml", "apiVersion: attache.dev/v1alpha1\nkind: AttacheConfig\nmetadata: {name: a}\nspec: {admin: {listen: '"+addr+"'}}\n")
	w.write("provider.yaml", i.provider(o, ""))
	w.write("policy.yaml", o.allow(", credential: {provider: tokens}"))
	a := w.waiting()
	for _, path := range []string{"/v1/x", "/v1/y", "/v1/" + strings.Repeat("z", 100)} {
		w.does(a, "curl -sS -A agent-label -X GET https://"+apiHost+path)
	}
	w.does(a, "curl -sS https://denied-"+"label.e2e.test/")
	if got := w.admin("/healthz"); got != "ok\n" {
		t.Errorf("/healthz: %s", got)
	}
	if got := w.admin("/readyz"); got != "ready\n" {
		t.Errorf("/readyz: %s", got)
	}
	text := w.admin("/metrics")
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "attache_") {
			t.Errorf("metric %s: %s", p.Metric, p.Text)
		}
	}
	for _, want := range []string{`attache_requests_total{outcome="ok",verdict="inject"} 3`, `attache_refusals_total{code="denied"} 1`, `attache_credentials_total{provider="tokens",source="minted"} 1`, `source="cached"} 2`, "go_goroutines", "process_open_fds"} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	for _, bad := range []string{"/v1/", "label", "curl", "rec_", "cred_", "spiffe:"} {
		if strings.Contains(strings.ReplaceAll(text, "label sets", ""), bad) {
			t.Errorf("metrics hold what an agent wrote or an id: %s", bad)
		}
	}
	get := func(method, path string) int {
		req, _ := http.NewRequest(method, "http://"+addr+path, strings.NewReader(`{"all":true}`))
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode
	}
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/metrics": 200, "/v1/inventory": 403, "/debug/pprof/": 403} {
		if got := get("GET", path); got != want {
			t.Errorf("TCP GET %s: %d, want %d", path, got, want)
		}
	}
	if got := get("POST", "/v1/revoke"); got != 403 {
		t.Errorf("TCP POST /v1/revoke: %d", got)
	}
	if _, _, revoked := i.state(); len(revoked) != 0 {
		t.Error("revoked over TCP")
	}
	sock := filepath.Join(w.state, "run", "*", "admin.sock")
	if got := w.does(a, "ls "+sock+" 2>&1; for s in "+sock+"; do curl -sS -m 2 --unix-socket $s http://attache/v1/inventory; done"); strings.Contains(got, "cred_") || !strings.Contains(got, "No such file") {
		t.Errorf("the agent reaches the admin socket: %s", got)
	}
}

// A further admin socket is as far from the agent as the first.
func TestAdminSocket(t *testing.T) {
	t.Parallel()
	w, o := newWorld(t), newOrigin(t)
	sock := filepath.Join(w.dir, "extra.sock")
	w.write("attache.yaml", "apiVersion: attache.dev/v1alpha1\nkind: AttacheConfig\nmetadata: {name: a}\nspec: {admin: {listen: 'unix:"+sock+"'}}\n")
	w.write("policy.yaml", o.allow(""))
	a := w.waiting()
	get := []string{"curl", "-sS", "-m", "5", "--unix-socket", sock, "http://attache/v1/inventory"}
	if out, err := exec.Command(get[0], get[1:]...).CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "[]" {
		t.Errorf("from outside: %v %s", err, out)
	}
	if got := w.does(a, strings.Join(get, " ")); strings.Contains(got, "[]") {
		t.Errorf("from inside: %s", got)
	}
}

// The spool is full: calls are refused and nothing is sent, readiness fails;
// when there is room again, calls go on.
func TestSpoolFull(t *testing.T) {
	t.Parallel()
	w, o := newWorld(t), newOrigin(t)
	w.state = mount(t, w.dir, "state", "size=24m")
	w.write("attache.yaml", "apiVersion: attache.dev/v1alpha1\nkind: AttacheConfig\nmetadata: {name: a}\nspec: {audit: {segmentBytes: 1048576, maxBytes: 16777216}}\n")
	w.write("policy.yaml", o.allow(""))
	a := w.waiting()
	call := "curl -sS -m 10 https://" + apiHost + "/v1/" + strings.Repeat("x", 1900)
	if got := w.does(a, call); !strings.Contains(got, "path") {
		t.Fatalf("before: %s", got)
	}
	ballast := filepath.Join(w.state, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 32<<20), 0o600); err == nil {
		t.Fatal("the file system is larger than meant")
	}
	many := "i=0; while [ $i -lt 300 ]; do echo 'url = https://" + apiHost + "/v1/" + strings.Repeat("x", 1900) + "'; echo 'output = /dev/null'; i=$((i+1)); done | curl -sS -K - -m 20 -w '%{http_code}\\n' | sort | uniq -c"
	refused := false
	for range 6 {
		if got := w.does(a, many); strings.Contains(got, " 503") {
			refused = true
			break
		}
	}
	if !refused {
		t.Fatal("no call was refused although the disk is full")
	}
	sent := len(o.requests())
	if p := parseProblem(t, w.does(a, call)); p.Code != "audit_unavailable" {
		t.Errorf("full: %+v", p)
	}
	if got := len(o.requests()); got != sent {
		t.Error("a call went out without a record")
	}
	if got := w.admin("/readyz"); !strings.Contains(got, "audit") {
		t.Errorf("/readyz of a full spool: %s", got)
	}
	if got := w.attache("status").must(t).stdout; !strings.Contains(got, "no: audit") {
		t.Errorf("status of a full spool: %s", got)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "calls go on", func() bool { return strings.Contains(w.does(a, call), `{"path"`) })
	if got := w.admin("/readyz"); got != "ready\n" {
		t.Errorf("/readyz after: %s", got)
	}
	w.attache("audit", "verify").must(t)
}

// The spool's own bound is reached: the same, and without being root.
func TestSpoolBound(t *testing.T) {
	t.Parallel()
	w, o := newWorld(t), newOrigin(t)
	w.write("attache.yaml", "apiVersion: attache.dev/v1alpha1\nkind: AttacheConfig\nmetadata: {name: a}\nspec: {audit: {segmentBytes: 131072, maxBytes: 262144}}\n")
	w.write("policy.yaml", o.allow(""))
	long := "https://" + apiHost + "/v1/" + strings.Repeat("x", 1900)
	script := "i=0; while [ $i -lt 300 ]; do echo 'url = " + long + "'; echo 'output = /dev/null'; i=$((i+1)); done | curl -sS -K - -m 20 -w '%{http_code}\\n' | sort | uniq -c; curl -sS " + long
	r := w.run("--", "sh", "-c", script).must(t)
	codes, body, _ := strings.Cut(r.stdout, "{")
	if !strings.Contains(codes, " 200") || !strings.Contains(codes, " 503") {
		t.Errorf("statuses: %s", codes)
	}
	var p problem
	if err := json.Unmarshal([]byte("{"+body), &p); err != nil || p.Code != "audit_unavailable" {
		t.Errorf("%v: %s", err, body)
	}
	// Each call that went out has its record, whole; the refused have none, for
	// want of room.
	if sent, recorded := len(o.requests()), len(w.requests("outcome:ok")); sent != recorded || sent == 0 {
		t.Errorf("%d calls went out, %d are recorded", sent, recorded)
	}
	w.attache("audit", "verify").must(t)
}

// A spool has one writer: the second run that is given the same one says so.
func TestSpoolInUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write("attache.yaml", "apiVersion: attache.dev/v1alpha1\nkind: AttacheConfig\nmetadata: {name: a}\nspec: {audit: {dir: "+filepath.Join(w.dir, "spool")+"}}\n")
	w.write("policy.yaml", newOrigin(t).allow(""))
	w.waiting()
	w.run(started(w)...).want(t, 1, "in use", filepath.Join(w.dir, "spool"), "audit.dir")
	w.neverStarted()
}

// A span joins the agent's trace, and the upstream continues ours.
func TestTracing(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var spans []*trace.Span
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			body, _ = gzip.NewReader(r.Body)
		}
		b, _ := io.ReadAll(body)
		var req coltrace.ExportTraceServiceRequest
		if r.URL.Path != "/v1/traces" || proto.Unmarshal(b, &req) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for _, rs := range req.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				spans = append(spans, ss.Spans...)
			}
		}
	}))
	t.Cleanup(collector.Close)
	w, o := newWorld(t), newOrigin(t)
	w.write("attache.yaml", "apiVersion: attache.dev/v1alpha1\nkind: AttacheConfig\nmetadata: {name: a}\nspec: {tracing: {otlpEndpoint: '"+collector.URL+"/v1/traces', sampleRatio: 0}}\n")
	w.write("policy.yaml", o.allow(""))
	const traceID, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	w.run("--", "curl", "-sS", "-H", "Traceparent: 00-"+traceID+"-"+parent+"-01", "-H", "Authorization: Bearer agents-own-0123456789", "https://"+apiHost+"/v1/x?secret=q").must(t)
	mu.Lock()
	defer mu.Unlock()
	if len(spans) != 1 {
		t.Fatalf("%d spans, want 1", len(spans))
	}
	s := spans[0]
	if hex.EncodeToString(s.TraceId) != traceID || hex.EncodeToString(s.ParentSpanId) != parent {
		t.Errorf("span of trace %x, parent %x", s.TraceId, s.ParentSpanId)
	}
	got := o.requests()
	if want := "00-" + traceID + "-" + hex.EncodeToString(s.SpanId) + "-01"; len(got) != 1 || got[0].Header.Get("Traceparent") != want {
		t.Errorf("upstream's traceparent %q, want %q", got[0].Header.Get("Traceparent"), want)
	}
	if text := s.String(); strings.Contains(text, "agents-own") || strings.Contains(text, "secret") || !strings.Contains(text, apiHost) {
		t.Errorf("span %s", text)
	}
	if rec := w.one(""); rec.Request.TraceID != traceID {
		t.Errorf("record's trace id %q", rec.Request.TraceID)
	}
}

// The audit commands, as text and as JSON.
func TestAudit(t *testing.T) {
	t.Parallel()
	w, o := newWorld(t), newOrigin(t)
	w.attache("audit", "search").want(t, 1, "no records below", "--state")
	w.write("policy.yaml", o.allow(""))
	w.run("--owner", "ana", "--", "sh", "-c", "curl -sS https://"+apiHost+"/v1/a https://"+apiHost+"/v1/b; curl -sS https://other.e2e.test/; true").must(t)
	text := w.attache("audit", "search", "owner:ana").must(t).stdout
	if n := strings.Count(text, "\n"); n != 3 || strings.Count(text, apiHost) != 2 || strings.Contains(text, "\x1b[") {
		t.Errorf("search as text, %d lines: %s", n, text)
	}
	rec := w.one("verdict:deny")
	if rec.Request.Host != "other.e2e.test" || rec.Decision.Code != "denied" {
		t.Errorf("denied record %+v", rec)
	}
	show := w.attache("audit", "show", rec.ID).must(t).stdout
	for _, s := range []string{rec.ID, "other.e2e.test", "verified", "claimed", "denied"} {
		if !strings.Contains(show, s) {
			t.Errorf("show misses %q: %s", s, show)
		}
	}
	if one := w.attache("audit", "show", "-o", "json", rec.ID).must(t).stdout; !json.Valid([]byte(one)) {
		t.Errorf("show as JSON: %s", one)
	}
	w.attache("audit", "show", "rec_nobody").want(t, 1, "attache audit search")
	w.attache("audit", "search", "nokey:x").want(t, 2, "nokey")
	w.attache("audit", "verify").want(t, 0, "0 problems")
	var rep []struct{ Requests, Finished int }
	if err := json.Unmarshal([]byte(w.attache("audit", "verify", "-o", "json").must(t).stdout), &rep); err != nil || len(rep) != 1 || rep[0].Requests != 3 || rep[0].Finished != 3 {
		t.Errorf("verify as JSON: %v %+v", err, rep)
	}
	if schema := w.attache("audit", "schema").must(t).stdout; !json.Valid([]byte(schema)) {
		t.Error("the schema is no JSON")
	}
	tail := w.start(nil, "audit", "tail", "-o", "json", "path:/v1/*")
	tail.says(`"path":"/v1/b"`)
	w.run("--", "curl", "-sS", "https://"+apiHost+"/v1/later").must(t)
	tail.says(`"path":"/v1/later"`)

	// One byte changed in the middle is found.
	segs, _ := filepath.Glob(filepath.Join(w.state, "audit", "0", "*"))
	damaged := false
	for _, f := range segs {
		b, err := os.ReadFile(f)
		if i := strings.Index(string(b), "/v1/a"); err == nil && i > 0 {
			b[i+4] = 'c'
			damaged = os.WriteFile(f, b, 0o600) == nil
		}
	}
	if !damaged {
		t.Fatalf("no segment to damage in %v", segs)
	}
	if r := w.attache("audit", "verify"); r.code != 1 || !strings.Contains(r.stdout, "problem") {
		t.Errorf("verify of a damaged spool: %d %s", r.code, r.stdout)
	}
}
