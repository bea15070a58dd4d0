package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// started is what an agent would leave behind if it ran.
func started(w *world) []string {
	return []string{"--", "touch", filepath.Join(w.dir, "work", "started")}
}

func (w *world) neverStarted() {
	w.t.Helper()
	if _, err := os.Stat(filepath.Join(w.dir, "work", "started")); err == nil {
		w.t.Error("the agent was started")
	}
}

// Bad documents: the place and the cure on standard error, exit code 2, and no
// agent.
func TestBadDocuments(t *testing.T) {
	t.Parallel()
	good := newOrigin(t).allow("")
	tests := []struct {
		name  string
		files map[string]string
		says  []string
	}{
		{"empty folder", nil, []string{"no configuration documents", "write a CredentialProvider"}},
		{"unknown field", map[string]string{"good.yaml": good, "bad.yaml": "apiVersion: attache.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: x}\nspec:\n  rulez: []\n"},
			[]string{"bad.yaml:5:3: ", "rulez", "rules"}},
		{"no YAML", map[string]string{"good.yaml": good, "bad.yaml": "kind: [\n"}, []string{"bad.yaml:"}},
		{"dangling provider", map[string]string{"bad.yaml": strings.Replace(good, "action: allow", "action: allow, credential: {provider: nobody}", 1)},
			[]string{"bad.yaml:7:", "nobody"}},
		{"bad CEL", map[string]string{"bad.yaml": strings.Replace(good, "action: allow", `action: allow, when: "request.nope == 1"`, 1)},
			[]string{"bad.yaml:7:", "undefined field 'nope'"}},
		{"ambiguous rules", map[string]string{"bad.yaml": good + "  - {name: other, hosts: [" + apiHost + "], action: passthrough}\n"},
			[]string{"bad.yaml:8:", "bad.yaml:7:", "equal specificity"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			for name, text := range tt.files {
				w.write(name, text)
			}
			w.run(started(w)...).want(t, 2, tt.says...)
			w.neverStarted()
			w.attache("policy", "check", w.config).want(t, 1, tt.says...)
		})
	}
}

func TestNoConfiguration(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.attache(append([]string{"run"}, started(w)...)...).want(t, 2, "--config DIR", "ATTACHE_CONFIG")
	w.attache(append([]string{"run", "--config", "/nonexistent/folder"}, started(w)...)...).want(t, 2, "/nonexistent/folder", "examples/quickstart")
	w.attache("run", "--config", w.config).want(t, 2, "no command")
	w.neverStarted()
	w.write("policy.yaml", newOrigin(t).allow(""))
	w.env = append(w.env, "ATTACHE_CONFIG="+w.config)
	w.attache("run", "--", "true").must(t)
}

func TestPolicyCheckJSON(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var out struct {
		Valid    bool
		Problems []struct {
			Position struct {
				File         string
				Line, Column int
			}
			Text string
		}
	}
	w.write("policy.yaml", newOrigin(t).allow(""))
	if err := json.Unmarshal([]byte(w.attache("policy", "check", "-o", "json", w.config).must(t).stdout), &out); err != nil || !out.Valid {
		t.Errorf("good folder: %v %+v", err, out)
	}
	w.write("policy.yaml", newOrigin(t).allow(`, when: "request.nope == 1"`))
	r := w.attache("policy", "check", "-o", "json", w.config).want(t, 1)
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || out.Valid || len(out.Problems) != 1 {
		t.Fatalf("bad folder: %v %s", err, r.stdout)
	}
	if p := out.Problems[0]; filepath.Base(p.Position.File) != "policy.yaml" || p.Position.Line != 7 || p.Position.Column == 0 || p.Text == "" {
		t.Errorf("problem without its place: %s", r.stdout)
	}
}

func TestPolicyExplain(t *testing.T) {
	t.Parallel()
	w, o, i := newWorld(t), newOrigin(t), newIssuer(t)
	w.write("provider.yaml", i.provider(o, ""))
	w.write("policy.yaml", o.allow(", methods: [GET], credential: {provider: tokens, scope: ['read']}")+
		"  - {name: no-delete, hosts: ["+apiHost+"], methods: [DELETE], action: deny, reason: ask the platform team}\n")
	explain := func(args ...string) result {
		return w.attache(append([]string{"policy", "explain", w.config, "--as", "spiffe://attache.local/agent/x"}, args...)...)
	}
	explain("GET", "https://"+apiHost+"/v1/me").want(t, 0, "api", "tokens", "read")
	explain("DELETE", "https://"+apiHost+"/v1/me").want(t, 3, "no-delete", "ask the platform team")
	explain("GET", "https://other.e2e.test/").want(t, 3)
	explain("GET", "https://exa mple/").want(t, 2, "URL")
	w.attache("policy", "explain", w.config, "--as", "nobody", "GET", "https://"+apiHost+"/").want(t, 2, "--as")
	r := explain("-o", "json", "GET", "https://"+apiHost+"/v1/me").must(t)
	if !json.Valid([]byte(r.stdout)) {
		t.Errorf("not JSON: %s", r.stdout)
	}
	if asked, _, _ := i.state(); asked != 0 {
		t.Error("explain asked the issuer")
	}
}

// What a user writes for the vendors' presets, and no more.
func TestPresets(t *testing.T) {
	t.Parallel()
	w, o := newWorld(t), newOrigin(t)
	w.write("anthropic.yaml", `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: anthropic}
spec:
  preset: anthropic
  oauth2: {extra: {federation_rule_id: fdrl_1, organization_id: org_1, service_account_id: svac_1}}
---
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: openai}
spec:
  preset: openai
  oauth2: {extra: {identity_provider_id: idp_1, service_account_id: sa_1}}
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: models}
spec:
  rules:
  - {name: claude, hosts: [api.anthropic.com], action: allow, credential: {provider: anthropic}}
  - {name: gpt, hosts: [api.openai.com], action: allow, credential: {provider: openai}}
`)
	w.attache("policy", "check", w.config).must(t)
	r := w.run("-q", "--", "sh", "-c", `echo "$ANTHROPIC_API_KEY $OPENAI_API_KEY"; curl -sS -m 5 "$OPENAI_BASE_URL/models" -o /dev/null -w '%{http_code}\n'`).must(t)
	line, status, _ := strings.Cut(strings.TrimSpace(r.stdout), "\n")
	if keys := strings.Fields(line); len(keys) != 2 || !strings.HasPrefix(keys[0], "sk-") || !strings.HasPrefix(keys[1], "sk-") {
		t.Errorf("placeholders %q", line)
	}
	// Without the placeholder the call must not be given our identity.
	if status != "403" {
		t.Errorf("a call without the placeholder answered %s, want 403", status)
	}
	if rec := w.one(""); rec.Decision.Code != "ambient_use" || rec.Decision.Rule != "gpt" {
		t.Errorf("record %+v", rec.Decision)
	}
	_ = o
}

func TestBadStart(t *testing.T) {
	t.Parallel()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = busy.Close() })
	w := newWorld(t)
	w.write("policy.yaml", newOrigin(t).allow(""))
	w.run(append([]string{"--listen", busy.Addr().String()}, started(w)...)...).want(t, 1, busy.Addr().String(), "--listen")
	w.run(append([]string{"--listen", "0.0.0.0:0"}, started(w)...)...).want(t, 2, "loopback")
	settings := func(spec string) {
		w.write("attache.yaml", "apiVersion: attache.dev/v1alpha1\nkind: AttacheConfig\nmetadata: {name: a}\nspec: "+spec+"\n")
	}
	for field, spec := range map[string]string{
		"spec.admin.listen": "{admin: {listen: '" + busy.Addr().String() + "'}}", "spec.identity.listen": "{identity: {listen: '" + busy.Addr().String() + "'}}",
	} {
		settings(spec)
		w.run(started(w)...).want(t, 1, field, busy.Addr().String(), "in use", "choose")
	}
	settings("{}")
	w.run(append([]string{"--user", "no such user"}, started(w)...)...).want(t, 2, "--user")
	w.run(append([]string{"--human-token-file", "x"}, started(w)...)...).want(t, 2, "--task")
	w.file("state-is-a-file", "")
	w.attache(append([]string{"run", "--config", w.config, "--state", filepath.Join(w.dir, "state-is-a-file")}, started(w)...)...).want(t, 1, "state-is-a-file", "--state")
	w.run("--", "/nonexistent/agent").want(t, 127, "/nonexistent/agent")
	w.run("--", "no-such-agent-anywhere").want(t, 127, "no-such-agent-anywhere")
	w.file("work/noexec", "x")
	w.run("--", "./noexec").want(t, 126, "./noexec")
	w.write("provider.yaml", `apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: key}
spec:
  destinations: [{host: other.e2e.test}]
  apiKey: {env: E2E_NEVER_SET}
`)
	w.run(started(w)...).want(t, 2, "provider.yaml:", "E2E_NEVER_SET", "not set")
	w.neverStarted()
}

// The state folder on a file system that is read-only, or full from the start.
func TestBadStateFolder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write("policy.yaml", newOrigin(t).allow(""))
	mount(t, w.dir, "ro", "size=1m,ro")
	w.attache(append([]string{"run", "--config", w.config, "--state", filepath.Join(w.dir, "ro", "state")}, started(w)...)...).want(t, 1, "read-only", "--state")
	full := mount(t, w.dir, "full", "size=64k")
	_ = os.WriteFile(filepath.Join(full, "ballast"), make([]byte, 1<<20), 0o600) // fails when full: that is the point
	w.attache(append([]string{"run", "--config", w.config, "--state", full}, started(w)...)...).want(t, 1, "no space left", "free space on the disk of")
	w.neverStarted()
}

// Every command explains itself.
func TestHelp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var walk func(path []string)
	seen := 0
	walk = func(path []string) {
		r := w.attache(append(path, "--help")...).must(t)
		seen++
		if !strings.Contains(r.stdout, "Usage:") {
			t.Errorf("attache %v --help has no usage", path)
		}
		_, list, found := strings.Cut(r.stdout, "Available Commands:")
		if !found {
			if !strings.Contains(r.stdout, "Examples:") && path[0] != "completion" && path[0] != "help" {
				t.Errorf("attache %s has no example", strings.Join(path, " "))
			}
			return
		}
		list, _, _ = strings.Cut(strings.TrimSpace(list), "\n\n")
		for line := range strings.SplitSeq(list, "\n") {
			if f := strings.Fields(line); len(f) > 0 && f[0] != "completion" && f[0] != "help" {
				if len(f) < 3 {
					t.Errorf("attache %v %s has no description", path, f[0])
				}
				walk(append(append([]string{}, path...), f[0]))
			}
		}
	}
	walk(nil)
	if seen < 15 {
		t.Errorf("only %d commands", seen)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if r := w.attache("completion", shell).must(t); !strings.Contains(r.stdout, "attache") {
			t.Errorf("no completion for %s", shell)
		}
	}
	if r := w.attache("__complete", "pol").must(t); !strings.Contains(r.stdout, "policy") {
		t.Errorf("completion of pol: %s", r.stdout)
	}
	w.attache("polcy").want(t, 2, "policy")
	w.attache("run", "--no-such-flag").want(t, 2, "no-such-flag")
	w.attache("-o", "yaml", "version").want(t, 2, "text or json")
	w.attache("version").want(t, 0, "v0.0.0-e2e", "go1.")
	var v struct{ Version, Go, Platform string }
	if err := json.Unmarshal([]byte(w.attache("version", "-o", "json").must(t).stdout), &v); err != nil || v.Version != "v0.0.0-e2e" || v.Platform == "" {
		t.Errorf("version: %v %+v", err, v)
	}
}

var _ = fmt.Sprint

// A denial that loses is no mistake, but nobody should find out by its loss.
func TestPolicyWarnings(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write("policy.yaml", strings.Replace(newOrigin(t).allow(`, paths: ["/repos/**"]`), "  rules:\n", "  rules:\n  - {name: keep, hosts: ["+apiHost+"], methods: [DELETE], action: deny}\n", 1))
	r := w.attache("policy", "check", w.config).must(t)
	if !strings.Contains(r.stderr, "warning: ") || !strings.Contains(r.stderr, `rule "keep"`) || !strings.Contains(r.stdout, "is good") {
		t.Errorf("got %s", r.all())
	}
	var out struct {
		Valid    bool
		Warnings []struct{ Text string }
	}
	r = w.attache("policy", "check", "-o", "json", w.config).must(t)
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || !out.Valid || len(out.Warnings) != 1 || !strings.Contains(out.Warnings[0].Text, "/repos/**") {
		t.Errorf("got %s, %v", r.stdout, err)
	}
}
