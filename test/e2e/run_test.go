package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// An unchanged curl gets an answer by a credential that it never sees, which
// ends with the run.
func TestCall(t *testing.T) {
	t.Parallel()
	w, o, i := newWorld(t), newOrigin(t), newIssuer(t)
	w.write("provider.yaml", i.provider(o, ""))
	w.write("policy.yaml", o.allow(", credential: {provider: tokens}"))
	r := w.run(curl("https://" + apiHost + "/v1/me")...).must(t)
	if body, status := r.answer(t); body != `{"path":"/v1/me"}` || status != "200" {
		t.Errorf("answer %s %q", status, body)
	}
	_, issued, revoked := i.state()
	if len(issued) != 1 || len(revoked) != 1 || issued[0] != revoked[0] {
		t.Fatalf("issued %q, revoked %q; want one, revoked at the end", issued, revoked)
	}
	got := o.requests()
	if len(got) != 1 || got[0].Header.Get("Authorization") != "Bearer "+issued[0] {
		t.Errorf("the origin got %v", got)
	}
	rec := w.one("host:" + apiHost)
	if rec.Result.Outcome != "ok" || rec.Result.Status != 200 || rec.Credential == nil || rec.Credential.Provider != "tokens" || !strings.Contains(got[0].UserAgent(), rec.ID) {
		t.Errorf("record %+v %+v, upstream's User-Agent %q", rec.Result, rec.Credential, got[0].UserAgent())
	}
	if all := r.all() + w.attache("audit", "search", "-o", "json").must(t).stdout; strings.Contains(all, issued[0]) {
		t.Error("the token stands in output or records")
	}
}

func TestExitStatus(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write("policy.yaml", newOrigin(t).allow(""))
	for _, tt := range []struct {
		script string
		want   int
	}{
		{"exit 0", 0}, {"exit 3", 3}, {"exit 255", 255},
		{"kill -TERM $$", 128 + 15}, {"kill -KILL $$", 128 + 9}, {"exec /no-such-program", 127},
	} {
		if r := w.run("--", "sh", "-c", tt.script); r.code != tt.want {
			t.Errorf("%s: exit code %d, want %d\n%s", tt.script, r.code, tt.want, r.stderr)
		}
	}
}

// Standard input, output and error are the agent's own, of any size.
func TestStreams(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write("policy.yaml", newOrigin(t).allow(""))
	in := bytes.Repeat([]byte("0123456789abcde\n"), 1<<19) // 8 MiB
	r := w.start(in, "run", "-q", "--config", w.config, "--", "sh", "-c", "cat; echo to-stderr >&2").wait().must(t)
	if r.stdout != string(in) {
		t.Errorf("%d bytes of %d came through", len(r.stdout), len(in))
	}
	if r.stderr != "to-stderr\n" {
		t.Errorf("stderr %q; --quiet adds nothing", r.stderr)
	}
}

// SIGTERM reaches the agent; then credentials are revoked and the spool is
// closed in order.
func TestTerminate(t *testing.T) {
	t.Parallel()
	w, o, i := newWorld(t), newOrigin(t), newIssuer(t)
	w.write("provider.yaml", i.provider(o, ""))
	w.write("policy.yaml", o.allow(", credential: {provider: tokens}"))
	p := w.startRun("--", "sh", "-c", `trap 'echo asked; exit 7' TERM; curl -sS https://`+apiHost+`/v1/x; echo; echo ready; while :; do sleep 0.05; done`)
	p.says("ready")
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	p.wait().want(t, 7, "asked")
	if _, issued, revoked := i.state(); len(issued) != 1 || len(revoked) != 1 {
		t.Errorf("issued %d, revoked %d", len(issued), len(revoked))
	}
	w.orderly()
	if runs, _ := filepath.Glob(filepath.Join(w.state, "run", "*")); len(runs) != 0 {
		t.Errorf("left behind: %v", runs)
	}
}

// An agent that does not listen is ended by the second signal; a signal that
// comes before the agent runs, and one while records are closed, lose nothing.
func TestInterruptTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write("policy.yaml", newOrigin(t).allow(""))
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		p := w.startRun("--", "sh", "-c", `trap '' TERM INT; echo ready; while :; do sleep 0.05; done`)
		p.says("ready")
		_ = p.cmd.Process.Signal(sig)
		select {
		case <-p.done:
			t.Fatalf("%v ended an agent that ignores it", sig)
		case <-time.After(300 * time.Millisecond):
		}
		_ = p.cmd.Process.Signal(sig)
		p.wait().want(t, 128+9)
		w.orderly()
	}
}

// A slow issuer holds the end up; the first signal is explained, the second
// is obeyed, and the credential is known as not revoked.
func TestInterruptEnd(t *testing.T) {
	t.Parallel()
	w, o, i := newWorld(t), newOrigin(t), newIssuer(t)
	slow := make(chan struct{})
	t.Cleanup(func() { close(slow) })
	i.hold = slow
	w.write("provider.yaml", strings.Replace(i.provider(o, ""), "timeout: 10s", "timeout: 30s", 1))
	w.write("policy.yaml", o.allow(", credential: {provider: tokens}"))
	p := w.startRun("--", "sh", "-c", `curl -sS https://`+apiHost+`/v1/x; echo; echo ending`)
	p.says("ending")
	eventually(t, "revocation begins", func() bool { _, _, revoked := i.state(); return len(revoked) == 1 })
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	p.says("once more to leave at once")
	time.Sleep(100 * time.Millisecond) // sooner would be the same signal
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	p.wait().want(t, 128+15)
}

// orderly checks that every epoch was closed and no line is missing.
func (w *world) orderly() {
	w.t.Helper()
	w.attache("audit", "verify").must(w.t)
	opened, closed := 0, 0
	for _, r := range w.records("type:epoch") {
		switch r.Type {
		case "epoch.open":
			opened++
		case "epoch.close":
			closed++
		}
	}
	if opened == 0 || opened != closed {
		w.t.Errorf("%d epochs opened, %d closed", opened, closed)
	}
}

// Real credentials stay with the parent, by name on standard error; those that
// providers read are out of every process's reach; placeholders are there.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	w, o := newWorld(t), newOrigin(t)
	const vendorKey = "sk-real-vendor-key-0123456789"
	w.env = append(w.env, "OPENAI_API_KEY=sk-real-openai-0123456789", "AWS_SECRET_ACCESS_KEY=aws-real-0123456789", "AWS_SESSION_TOKEN=aws-token-0123456789",
		"GITHUB_TOKEN=ghp_real0123456789", "MY_OWN=kept-0123456789", "E2E_VENDOR_KEY="+vendorKey, "EDITOR=vi")
	w.write("provider.yaml", `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: vendor}
spec:
  destinations: [`+o.destination()+`]
  apiKey: {env: E2E_VENDOR_KEY}
  inject: {as: header, name: X-Api-Key}
  placeholders: [{env: E2E_PLACEHOLDER, prefix: "vk-"}]
`)
	w.write("policy.yaml", o.allow(", credential: {provider: vendor}"))
	script := `env; for p in /proc/[0-9]*; do tr '\0' '\n' <$p/environ; done 2>/dev/null
curl -sS -H "X-Api-Key: $E2E_PLACEHOLDER" https://` + apiHost + `/v1/x; echo`
	r := w.run("--keep-env", "GITHUB_TOKEN", "--", "sh", "-c", script).must(t)
	for _, secret := range []string{"sk-real-openai", "aws-real", "aws-token", vendorKey} {
		if strings.Contains(r.all(), secret) {
			t.Errorf("%s… reached the agent or the output", secret)
		}
	}
	for _, name := range []string{"OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "E2E_VENDOR_KEY"} {
		if !strings.Contains(r.stderr, name+" is kept from the agent") {
			t.Errorf("standard error does not name %s: %s", name, r.stderr)
		}
	}
	for _, line := range []string{"GITHUB_TOKEN=ghp_real0123456789\n", "MY_OWN=kept-0123456789\n", "EDITOR=vi\n", "E2E_PLACEHOLDER=vk-", `{"path":"/v1/x"}`} {
		if !strings.Contains(r.stdout, line) {
			t.Errorf("the agent misses %q", line)
		}
	}
	if got := o.requests(); len(got) != 1 || got[0].Header.Get("X-Api-Key") != vendorKey {
		t.Errorf("the origin got %+v", got)
	}
}

// A key in a file is read for the call, and hidden from the agent.
func TestKeyFile(t *testing.T) {
	t.Parallel()
	w, o := newWorld(t), newOrigin(t)
	key := w.file("vendor.key", "file-key-0123456789\n")
	w.write("provider.yaml", `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: vendor}
spec:
  destinations: [`+o.destination()+`]
  apiKey: {file: `+key+`}
`)
	w.write("policy.yaml", o.allow(", credential: {provider: vendor}"))
	r := w.run("--", "sh", "-c", "cat "+key+"; curl -sS https://"+apiHost+"/v1/x").must(t)
	if strings.Contains(r.all(), "file-key") {
		t.Errorf("the agent reads the key: %s", r.all())
	}
	if got := o.requests(); len(got) != 1 || got[0].Header.Get("Authorization") != "Bearer file-key-0123456789" {
		t.Errorf("the origin got %+v", got)
	}
	p := w.start(nil, append([]string{"run", "-q", "--config", w.config, "--", "sh", "-c", `until [ -e go ]; do sleep 0.05; done; exec "$@"`, "x"}, curl("https://" + apiHost + "/v1/x")[1:]...)...)
	eventually(t, "the run is up", func() bool { return strings.Contains(w.attache("status").must(t).stdout, "yes") })
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	w.file("work/go", "")
	w.refused(p.wait(), 503, "mint_unavailable")
	w.run("--", "true").want(t, 1, "vendor.key", "create it")
}

// A second attache that the agent starts, with documents that allow everything,
// gets at nothing that the first one keeps: neither the key nor the state folder.
func TestSecondAttache(t *testing.T) {
	t.Parallel()
	w, o := newWorld(t), newOrigin(t)
	key := w.file("vendor.key", "file-key-0123456789\n")
	provider := `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: vendor}
spec:
  destinations: [` + o.destination() + `]
  apiKey: {file: ` + key + `}
`
	w.write("provider.yaml", provider)
	w.write("policy.yaml", o.allow(", paths: [/v1/granted], credential: {provider: vendor}"))
	second := filepath.Join(w.dir, "work", "second")
	if err := os.Mkdir(second, 0o755); err != nil {
		t.Fatal(err)
	}
	w.file("work/second/provider.yaml", provider)
	w.file("work/second/policy.yaml", o.allow(", credential: {provider: vendor}"))
	const url = "https://" + apiHost + "/v1/"
	r := w.run("--", "sh", "-c", `curl -sS `+url+`granted
for unsafe in "" --unsafe-same-user; do
	for state in `+w.state+` $PWD/state; do
		`+attacheBinary+` run --config second --state $state $unsafe -- curl -sSf `+url+`more && echo "second run $unsafe ended well"
	done
done
echo the agent is done`).must(t)
	if !strings.Contains(r.stdout, "the agent is done") || strings.Contains(r.stdout, "ended well") || strings.Contains(r.all(), "file-key") {
		t.Errorf("a second attache:\n%s", r.all())
	}
	// It did run, in a folder of its own, and looked for the key.
	if !strings.Contains(r.stderr, "mint_unavailable") || !strings.Contains(r.stderr, "make the state folder") {
		t.Errorf("a second attache did not get as far as it should:\n%s", r.all())
	}
	if got := o.requests(); len(got) != 1 || got[0].URL.Path != "/v1/granted" {
		t.Errorf("the origin got %+v", got)
	}
}

// The agent reads its policy and cannot change it; and what is not enforced is
// in every record.
func TestConfinementIsRecorded(t *testing.T) {
	t.Parallel()
	w, o := newWorld(t), newOrigin(t)
	w.write("policy.yaml", o.allow(""))
	policy := filepath.Join(w.config, "policy.yaml")
	r := w.run("--", "sh", "-c", `curl -sS https://`+apiHost+`/confined; cat `+policy+`; echo "# more" >>`+policy+` && echo "policy written"`)
	if !strings.Contains(r.stdout, "kind: AccessPolicy") || strings.Contains(r.stdout, "policy written") {
		t.Errorf("the agent and its policy: %s", r.all())
	}
	w.run("--unsafe-same-user", "--", "curl", "-sS", "https://"+apiHost+"/unsafe").must(t)
	if rec := w.one("path:/confined"); len(rec.Unsafe) != 0 {
		t.Errorf("a confined run is recorded as unsafe: %v", rec.Unsafe)
	}
	if rec := w.one("path:/unsafe"); len(rec.Unsafe) != 1 || rec.Unsafe[0] != "unsafe-same-user" {
		t.Errorf("unsafe flags of the record: %v", rec.Unsafe)
	}
}

// kill -9 loses no record: what was under way reads as unknown.
func TestKilled(t *testing.T) {
	t.Parallel()
	w, o := newWorld(t), newOrigin(t)
	w.write("policy.yaml", o.allow(""))
	p := w.startRun("--", "curl", "-sSN", "https://"+apiHost+"/sse")
	p.says("event-1")
	if rec := w.one("host:" + apiHost + " outcome:open"); rec.Request.Path != "/sse" {
		t.Errorf("open call: %+v", rec.Request)
	}
	_ = p.cmd.Process.Kill()
	p.wait()
	w.run("--", "true").must(t) // the next producer settles what the dead one left
	if rec := w.one("host:" + apiHost); rec.Result == nil || rec.Result.Outcome != "unknown" {
		t.Errorf("record after kill -9: %+v", rec.Result)
	}
	if rs := w.attache("status").must(t); strings.Contains(rs.stdout, "curl") {
		t.Errorf("status lists a dead run: %s", rs.stdout)
	}
	eventually(t, "the agent ends with attache", func() bool { return o.streams.Load() == 0 })
}
