package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/attache-dev/attache/identity/identitytest"
)

// jwtProvider presents a JWT-SVID to the origin.
func jwtProvider(o *origin) string {
	return `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: svid}
spec:
  destinations: [` + o.destination() + `]
  jwt: {}
  ttl: 1s
`
}

// The identity comes from a SPIFFE Workload API; when it is withdrawn, calls
// are refused.
func TestSPIFFE(t *testing.T) {
	t.Parallel()
	const id = "spiffe://example.org/agents/triage"
	api := identitytest.NewWorkloadAPI(t, spiffeid.RequireFromString(id))
	w, o := newWorld(t), newOrigin(t)
	w.write("attache.yaml", "apiVersion: attache.dev/v1alpha1\nkind: AttacheConfig\nmetadata: {name: a}\nspec: {identity: {source: spiffe, socket: '"+api.Addr()+"'}}\n")
	w.write("provider.yaml", jwtProvider(o))
	w.write("policy.yaml", strings.Replace(o.allow(", credential: {provider: svid}"), "spec:\n", "spec:\n  workloads: [{spiffeID: '"+id+"'}]\n", 1))
	a := w.waiting()
	call := "curl -sS -m 10 https://" + apiHost + "/v1/"
	if got := w.does(a, call+"a"); got != `{"path":"/v1/a"}` {
		t.Fatalf("call: %s", got)
	}
	token := strings.TrimPrefix(o.requests()[0].Header.Get("Authorization"), "Bearer ")
	svid, err := jwtsvid.ParseAndValidate(token, api.JWTBundle(), []string{"https://" + apiHost})
	if err != nil || svid.ID.String() != id {
		t.Errorf("the upstream's token: %v %v", svid, err)
	}
	if rec := w.one("path:/v1/a"); rec.Workload == nil || rec.Workload.ID != id {
		t.Errorf("record's workload %+v", rec.Workload)
	}
	socket := strings.TrimPrefix(api.Addr(), "unix://")
	if got := w.does(a, "ls -l "+socket+" 2>&1; curl -sS -m 2 --unix-socket "+socket+" http://x/ 2>&1; env | grep SPIFFE"); !strings.Contains(got, "No such file") && !strings.Contains(got, "Couldn't connect") && !strings.Contains(got, "Could not connect") {
		t.Errorf("the agent reaches the Workload API: %s", got)
	}
	api.Entitle(func(int, uint32) bool { return false })
	eventually(t, "refusal", func() bool {
		got := w.does(a, call+"b")
		return strings.Contains(got, "identity_unavailable")
	})
	if got := w.admin("/readyz"); !strings.Contains(got, "identity") {
		t.Errorf("/readyz without an identity: %s", got)
	}
	sent := len(o.requests())
	got := w.does(a, call+"c")
	if p := parseProblem(t, got); p.Code != "identity_unavailable" || p.Status != 503 {
		t.Errorf("without an identity: %s", got)
	}
	if rec := w.one("path:/v1/c"); rec.Decision.Code != "identity_unavailable" || len(o.requests()) != sent {
		t.Errorf("record %+v", rec.Decision)
	}
}

// Without a Workload API the run does not start, and says which socket.
func TestSPIFFEMissing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write("attache.yaml", "apiVersion: attache.dev/v1alpha1\nkind: AttacheConfig\nmetadata: {name: a}\nspec: {identity: {source: spiffe, socket: 'unix:///nonexistent/agent.sock'}}\n")
	w.write("policy.yaml", newOrigin(t).allow(""))
	w.run(started(w)...).want(t, 1, "SPIFFE", "/nonexistent/agent.sock")
	// Nobody has to wait that long.
	p := w.startRun(append([]string{"--log-level", "debug"}, started(w)...)...)
	time.Sleep(500 * time.Millisecond) // until it waits; too early only ends it another way
	_ = p.cmd.Process.Signal(os.Interrupt)
	before := time.Now()
	if r := p.wait(); r.code == 0 || time.Since(before) > 5*time.Second {
		t.Errorf("exit code %d, %v after the signal", r.code, time.Since(before))
	} else if r.code == 130 && !strings.Contains(r.stderr, "interrupted before the agent started") {
		t.Errorf("stderr %s", r.stderr)
	}
	w.neverStarted()
}

// Keys in a real ssh-agent outlive the run: what a later run signs verifies
// against what was exported before.
func TestIssuerExport(t *testing.T) {
	t.Parallel()
	w, o := newWorld(t), newOrigin(t)
	sock := filepath.Join(w.dir, "agent.sock")
	sshAgent := exec.Command("ssh-agent", "-D", "-a", sock)
	if err := sshAgent.Start(); err != nil {
		t.Fatalf("%v; test/deps.sh test installs openssh-client", err)
	}
	t.Cleanup(func() { _ = sshAgent.Process.Kill(); _ = sshAgent.Wait() })
	key := filepath.Join(w.dir, "key")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ecdsa", "-b", "256", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v %s", err, out)
	}
	eventually(t, "ssh-agent", func() bool { _, err := os.Stat(sock); return err == nil })
	add := exec.Command("ssh-add", "-q", key)
	add.Env = []string{"SSH_AUTH_SOCK=" + sock, "PATH=" + os.Getenv("PATH")}
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("ssh-add: %v %s", err, out)
	}
	_ = os.Remove(key)
	const url = "https://issuer.e2e.test"
	w.write("attache.yaml", "apiVersion: attache.dev/v1alpha1\nkind: AttacheConfig\nmetadata: {name: a}\nspec: {workload: {name: triage}, identity: {issuerURL: '"+url+"', sshAgent: '"+sock+"'}}\n")
	w.write("provider.yaml", jwtProvider(o))
	w.write("policy.yaml", o.allow(", credential: {provider: svid}"))
	public := filepath.Join(w.dir, "public")
	w.attache("issuer", "export", "--config", w.config, public).want(t, 0, url, public)
	w.attache("issuer", "export", public).want(t, 2, "--ssh-agent")
	r := w.run("--", "sh", "-c", "curl -sS https://"+apiHost+"/v1/x; SSH_AUTH_SOCK="+sock+" ssh-add -l 2>&1; true").must(t)
	if !strings.Contains(r.stdout, `{"path":"/v1/x"}`) || strings.Contains(r.stdout, "ECDSA") {
		t.Errorf("the call failed, or the agent reaches the keys: %s", r.stdout)
	}
	var doc struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	var keys jose.JSONWebKeySet
	for name, v := range map[string]any{".well-known/openid-configuration": &doc, "keys": &keys} {
		b, err := os.ReadFile(filepath.Join(public, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, v); err != nil {
			t.Fatal(err)
		}
	}
	if doc.Issuer != url || doc.JWKSURI != url+"/keys" {
		t.Errorf("discovery %+v", doc)
	}
	tok, err := jwt.ParseSigned(bearer(o.requests()[0]), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	var c jwt.Claims
	if err := tok.Claims(keys, &c); err != nil {
		t.Fatalf("the exported keys do not verify the token: %v", err)
	}
	if err := c.Validate(jwt.Expected{Issuer: url, AnyAudience: jwt.Audience{"https://" + apiHost}, Subject: triage, Time: time.Now()}); err != nil {
		t.Errorf("claims: %v %+v", err, c)
	}
}

func bearer(r *http.Request) string {
	return strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
}

// Doctor tries a client through a sandbox of its own.
func TestDoctor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	long := filepath.Join(w.dir, "work", strings.Repeat("long-", 12)) // longer than a socket's name allows
	if err := os.MkdirAll(long, 0o755); err != nil {
		t.Fatal(err)
	}
	w.env = append(w.env, "TMPDIR="+long)
	if out := w.attache("doctor", "curl").must(t).stdout; !strings.Contains(out, "curl") || !strings.Contains(out, "works") {
		t.Errorf("doctor: %s", out)
	}
	if out := w.attache("doctor", "isolation").must(t).stdout; !strings.Contains(out, "isolation") || !strings.Contains(out, "works") && !strings.Contains(out, "impossible") {
		t.Errorf("doctor of isolation: %s", out)
	}
	if out := w.attache("doctor", "-o", "json", "curl").must(t).stdout; !json.Valid([]byte(out)) {
		t.Errorf("doctor as JSON: %s", out)
	}
}
