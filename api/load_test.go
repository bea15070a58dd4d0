package api_test

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
)

var update = flag.Bool("update", false, "rewrite golden files")

// TestBadFiles checks the exact messages for each testdata/*.bad.yaml.
func TestBadFiles(t *testing.T) {
	t.Chdir("testdata") // positions begin with the file's name
	bad, _ := filepath.Glob("*.bad.yaml")
	errFiles, _ := filepath.Glob("*.err")
	if len(bad) < 10 {
		t.Fatalf("found %d bad files, want them all", len(bad))
	}
	for _, f := range errFiles {
		if name := strings.TrimSuffix(f, ".err") + ".bad.yaml"; !slices.Contains(bad, name) {
			t.Errorf("%s is stale: there is no %s", f, name)
		}
	}
	for _, file := range bad {
		t.Run(file, func(t *testing.T) {
			b, err := api.Load(file)
			if err == nil || b != nil {
				t.Fatal("got no error")
			}
			golden := strings.TrimSuffix(file, ".bad.yaml") + ".err"
			got := err.Error() + "\n"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("messages differ (-want +got):\n%s", diff)
			}
			for _, secret := range []string{"hunter2", "sk-do-not-show", "sk-not a name"} {
				if strings.Contains(got, secret) {
					t.Errorf("a message shows the secret %s", secret)
				}
			}
		})
	}
}

// docs joins documents, each without its apiVersion line.
func docs(parts ...string) []byte {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString("---\napiVersion: attache.dev/v1alpha1\n" + p + "\n")
	}
	return []byte(b.String())
}

func parse(t *testing.T, parts ...string) *api.Bundle {
	t.Helper()
	b, err := api.Parse("test.yaml", docs(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const openai = `kind: CredentialProvider
metadata: {name: openai}
spec: {preset: openai, oauth2: {extra: {identity_provider_id: i, service_account_id: s}}}`

func TestPresets(t *testing.T) {
	b := parse(t, openai, `kind: CredentialProvider
metadata: {name: anthropic}
spec: {preset: anthropic, oauth2: {extra: {federation_rule_id: f, organization_id: o, service_account_id: s, workspace_id: w}}}`)
	yes := true
	min5, s10 := v1alpha1.Duration(5*time.Minute), v1alpha1.Duration(10*time.Second)
	want := []v1alpha1.CredentialProviderSpec{{
		Preset:       "openai",
		Destinations: []v1alpha1.Destination{{Host: "api.openai.com", Port: 443, Scheme: "https"}},
		OAuth2: &v1alpha1.OAuth2{
			TokenEndpoint: "https://auth.openai.com/oauth/token", Grant: "tokenExchange", ClientAuth: "none", Body: "json",
			AssertionAudience: "https://api.openai.com/v1", Subject: "workload", Actor: "none", Timeout: s10,
			SubjectTokenType: "urn:ietf:params:oauth:token-type:jwt",
			Extra:            map[string]string{"identity_provider_id": "i", "service_account_id": "s"},
		},
		Inject:       v1alpha1.Injection{As: "bearer", RequirePlaceholder: &yes},
		Placeholders: []v1alpha1.Placeholder{{Env: "OPENAI_API_KEY", Prefix: "sk-"}},
		BaseURLs:     []v1alpha1.BaseURL{{Env: "OPENAI_BASE_URL", Host: "api.openai.com", Port: 443, Path: "/v1", Scheme: "http", Listen: "127.0.0.1:0"}},
		TTL:          min5, RetryStatus: []int{401},
	}, {
		Preset:       "anthropic",
		Destinations: []v1alpha1.Destination{{Host: "api.anthropic.com", Port: 443, Scheme: "https"}},
		OAuth2: &v1alpha1.OAuth2{
			TokenEndpoint: "https://api.anthropic.com/v1/oauth/token", Grant: "jwtBearer", ClientAuth: "none", Body: "json",
			AssertionAudience: "https://api.anthropic.com", Timeout: s10,
			Extra:   map[string]string{"federation_rule_id": "f", "organization_id": "o", "service_account_id": "s", "workspace_id": "w"},
			Headers: map[string]string{"anthropic-beta": "oauth-2025-04-20,oidc-federation-2026-04-01"},
		},
		Inject:       v1alpha1.Injection{As: "bearer", Headers: map[string]string{"anthropic-beta": "oauth-2025-04-20"}, RequirePlaceholder: &yes},
		Placeholders: []v1alpha1.Placeholder{{Env: "ANTHROPIC_API_KEY", Prefix: "sk-"}},
		BaseURLs:     []v1alpha1.BaseURL{{Env: "ANTHROPIC_BASE_URL", Host: "api.anthropic.com", Port: 443, Scheme: "http", Listen: "127.0.0.1:0"}},
		TTL:          min5, RetryStatus: []int{401},
	}}
	for i := range want {
		if diff := cmp.Diff(want[i], b.Providers[i].Spec); diff != "" {
			t.Errorf("%s differs (-want +got):\n%s", want[i].Preset, diff)
		}
	}
}

func TestPresetFieldsAreOverridden(t *testing.T) {
	s := parse(t, `kind: CredentialProvider
metadata: {name: openai}
spec:
  preset: openai
  destinations: [{host: openai.test.example, port: 8443, addresses: ["127.0.0.1:9"]}]
  unsafeCleartext: true
  oauth2:
    tokenEndpoint: http://auth.test.example/token
    addresses: ["127.0.0.1:8"]
    body: form
    extra: {identity_provider_id: i, service_account_id: s}
  inject: {headers: {x-test: "1"}}`).Providers[0].Spec
	if s.OAuth2.TokenEndpoint != "http://auth.test.example/token" || s.OAuth2.Body != "form" || s.OAuth2.Subject != "workload" {
		t.Errorf("got oauth2 %+v", s.OAuth2)
	}
	if len(s.Destinations) != 1 || s.Destinations[0].Host != "openai.test.example" || s.BaseURLs[0].Host != "openai.test.example" || s.BaseURLs[0].Port != 8443 {
		t.Errorf("got destinations %+v, base URLs %+v", s.Destinations, s.BaseURLs)
	}
	if s.Inject.Headers["x-test"] != "1" {
		t.Errorf("got headers %v", s.Inject.Headers)
	}
}

func TestDefaults(t *testing.T) {
	b := parse(t, `kind: AccessPolicy
metadata: {name: p}
spec: {destinations: [{host: a.example.com, scheme: http}], rules: [{name: r, hosts: ["*"], action: allow}]}`, `kind: CredentialProvider
metadata: {name: exchange}
spec: {destinations: [{host: b.example.com}], oauth2: {issuer: "https://auth.example.com", grant: tokenExchange, dpop: true}}`)
	r := b.Policies[0].Spec.Rules[0]
	if b.Policies[0].Spec.Destinations[0].Port != 80 || r.AgentCredential != "strip" || r.AnswerCredentials != "seal" || r.Durability != "process" || b.Policies[0].Spec.Mode != "enforce" {
		t.Errorf("got policy %+v", b.Policies[0].Spec)
	}
	p := b.Providers[0].Spec
	if p.OAuth2.Subject != "human" || p.OAuth2.Actor != "workload" || p.OAuth2.ClientAuth != "privateKeyJWT" || p.Inject.As != "dpop" || *p.Inject.RequirePlaceholder {
		t.Errorf("got provider %+v, %+v", p, p.OAuth2)
	}
	c := b.Config.Spec
	if c.TrustDomain != "attache.local" || c.Limits.MaxHeaderBytes != 65536 || c.Audit.SegmentBytes != 64<<20 || c.Audit.OnFull != "refuse" || c.Tasks.MaxTTL.D() != time.Hour || *c.Tracing.SampleRatio != 0.01 {
		t.Errorf("got config %+v", c)
	}
}

func TestConfigDurabilityIsTheRulesDefault(t *testing.T) {
	b := parse(t, `kind: AccessPolicy
metadata: {name: p}
spec: {rules: [{name: r, hosts: [a.example.com], action: deny}]}`, `kind: AttacheConfig
metadata: {name: c}
spec: {audit: {durability: power, maxBytes: 1048576}}`)
	if b.Policies[0].Spec.Rules[0].Durability != "power" || b.Config.Spec.Audit.SegmentBytes != 1<<19 {
		t.Errorf("got %+v, %+v", b.Policies[0].Spec.Rules[0], b.Config.Spec.Audit)
	}
}

func TestLocate(t *testing.T) {
	b := parse(t, `kind: AccessPolicy
metadata: {name: p, namespace: n}
spec:
  rules:
    - name: a
      hosts: [a.example.com]
      action: deny
    - name: b
      hosts: [a.example.com]
      action: deny
      when: |
        task.id ==
      query: [{name: q}]`)
	tests := map[string]string{
		"":                            "test.yaml:2:1",
		"spec.rules[0].hosts[0]":      "test.yaml:8:15",
		"spec.rules[1].when":          "test.yaml:13:13",
		"spec.rules[0].when":          "test.yaml:7:7", // absent: the rule
		"spec.rules[1].query[0].name": "test.yaml:15:22",
		"spec.rules[1].query[0].nope": "test.yaml:15:15",
		"spec.rules[7].when":          "test.yaml:6:3",
		"status":                      "test.yaml:2:1",
	}
	for field, want := range tests {
		if got := b.Locate(api.Ref{Kind: "AccessPolicy", Namespace: "n", Name: "p", Field: field}).String(); got != want {
			t.Errorf("%q: got %s, want %s", field, got, want)
		}
	}
	if got := b.Locate(api.Ref{Kind: "AccessPolicy", Name: "p"}); got != (api.Position{}) {
		t.Errorf("another namespace: got %s", got)
	}
	ref := api.Ref{Kind: "AccessPolicy", Namespace: "n", Name: "p", Field: "spec.rules[1].when"}
	err := b.Located(fmt.Errorf("compile: %w", api.Problems{{Ref: ref, Text: "spec.rules[1].when: ends early"}}))
	if err.Error() != "test.yaml:13:13: spec.rules[1].when: ends early" {
		t.Errorf("Located: got %v", err)
	}
	if other := errors.New("other"); !errors.Is(b.Located(other), other) {
		t.Error("Located changed an error without problems")
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func policy(name string) string {
	return string(docs("kind: AccessPolicy\nmetadata: {name: " + name + "}\nspec: {rules: []}"))
}

func TestLoadReadsAFolder(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "b.yaml"), policy("b")+policy("c"))
	writeFile(t, filepath.Join(dir, "a.yml"), policy("a"))
	writeFile(t, filepath.Join(dir, "comment.yaml"), "# nothing\n")
	writeFile(t, filepath.Join(dir, ".#b.yaml"), "an editor's lock")
	writeFile(t, filepath.Join(dir, "notes.txt"), "no YAML: [")
	writeFile(t, filepath.Join(dir, "below.yaml", "x.yaml"), "not read: [")
	b, err := api.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range b.Policies {
		names = append(names, p.Metadata.Name)
	}
	if !slices.Equal(names, []string{"a", "b", "c"}) {
		t.Errorf("got policies %q", names)
	}
}

func TestNothingToLoad(t *testing.T) {
	empty, comments := t.TempDir(), t.TempDir()
	writeFile(t, filepath.Join(comments, "a.yaml"), "# later\n---\n")
	for name, tt := range map[string]struct{ dir, want string }{
		"no folder":   {filepath.Join(empty, "none"), "does not exist; create it"},
		"empty":       {empty, "holds no *.yaml or *.yml file; write"},
		"no document": {comments, "holds no document; write"},
	} {
		_, err := api.Load(tt.dir)
		if !errors.Is(err, api.ErrNoDocuments) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := api.Load(filepath.Join(empty, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}

func TestBounds(t *testing.T) {
	var wide strings.Builder // a few hundred bytes that expand to ten million values
	wide.WriteString("kind: AccessPolicy\nmetadata: {name: x}\nspec:\n  rules:\n  - name: r\n    hosts: [a.example.com]\n    action: allow\n    credential:\n      provider: p\n      authorizationDetails:\n        a: &a [x,x,x,x,x,x,x,x,x,x]\n")
	for c := 'b'; c < 'h'; c++ {
		fmt.Fprintf(&wide, "        %c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat("*"+string(c-1)+",", 10), ","))
	}
	tests := map[string]struct {
		data []byte
		want string
	}{
		"large file":     {[]byte(strings.Repeat("#", api.MaxFileBytes+1)), "is 1048577 bytes long; a file may have 1048576"},
		"many documents": {[]byte(strings.Repeat("---\n{}\n", api.MaxDocuments+1)), "is document number 10001; at most 10000"},
		"alias bomb":     {docs(wide.String()), "is too large once aliases are expanded"},
		"deep":           {docs("kind: AccessPolicy\nmetadata: {name: x}\nspec: {rules: [{name: r, hosts: [a.b], action: allow, credential: {provider: p, authorizationDetails: " + strings.Repeat("[", 80) + strings.Repeat("]", 80) + "}}]}"), "is too large once aliases are expanded"},
	}
	for name, tt := range tests {
		start := time.Now()
		_, err := api.Parse("x.yaml", tt.data)
		if err == nil || strings.Count(err.Error(), tt.want) != 1 {
			t.Errorf("%s: got %.300v, want once %q", name, err, tt.want)
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("%s took %s", name, d)
		}
	}
}

func TestFilesThatAreNone(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "a.yaml"), policy("a"))
	if err := os.Symlink("/dev/zero", filepath.Join(dir, "zero.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("gone", filepath.Join(dir, "gone.yaml")); err != nil {
		t.Fatal(err)
	}
	_, err := api.Load(dir)
	want := fmt.Sprintf("%[1]s/gone.yaml:1:1: cannot be read: no such file or directory\n%[1]s/zero.yaml:1:1: is not a regular file", dir)
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestGenerations(t *testing.T) {
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	key := filepath.Join(dir, "key")
	provider := func(ttl string) string {
		return string(docs("kind: CredentialProvider\nmetadata: {name: p}\nspec: {destinations: [{host: a.example.com, caFile: ca.pem}], apiKey: {file: key}, ttl: " + ttl + "}"))
	}
	load := func() (string, string) {
		t.Helper()
		b, err := api.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		if b.Providers[0].Spec.APIKey.File != key || b.Providers[0].Spec.Destinations[0].CAFile != ca {
			t.Errorf("paths are not resolved: %+v", b.Providers[0].Spec)
		}
		return b.Generations["p"], b.Version
	}
	writeFile(t, filepath.Join(dir, "p.yaml"), provider("1m"))
	writeFile(t, ca, certA)
	writeFile(t, key, "one")
	g1, v1 := load()
	writeFile(t, key, "two")
	if g, v := load(); g != g1 || v != v1 {
		t.Error("a key's content is part of the generation")
	}
	writeFile(t, ca, certA+certA)
	g2, v2 := load()
	if g2 == g1 || v2 == v1 {
		t.Error("a CA file's content is not part of generation and version")
	}
	writeFile(t, filepath.Join(dir, "p.yaml"), provider("2m"))
	if g, v := load(); g == g2 || v == v2 {
		t.Error("the spec is not part of generation and version")
	}
}

func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.bad.yaml")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add(docs(openai))
	f.Add([]byte("a: &a [*a]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := api.Parse("f.yaml", data)
		if (b == nil) == (err == nil) {
			t.Fatalf("got bundle %v and error %v", b, err)
		}
		problems, ok := errors.AsType[api.Problems](err)
		if err != nil && !ok && !errors.Is(err, api.ErrNoDocuments) {
			t.Fatalf("got %v, want Problems", err)
		}
		for _, p := range problems {
			if p.Position.File != "f.yaml" || p.Position.Line < 1 || p.Position.Column < 1 || p.Text == "" {
				t.Errorf("problem without a place: %+v", p)
			}
		}
	})
}

func TestCAFilesHoldCertificatesOnly(t *testing.T) {
	key := "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
	for name, tt := range map[string]struct{ pem, want string }{
		"key beside":  {certA + key, "holds a PRIVATE KEY"},
		"nothing":     {"text", "holds no certificate"},
		"damaged":     {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be parsed"},
		"a good file": {certA, ""},
	} {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "ca.pem"), tt.pem)
		writeFile(t, filepath.Join(dir, "p.yaml"), string(docs("kind: CredentialProvider\nmetadata: {name: p}\nspec: {destinations: [{host: a.example.com, caFile: ca.pem, onlyCA: true}], jwt: {}}")))
		_, err := api.Load(dir)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}

func TestIdentityPathsStartAtTheDocument(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "c.yaml"), string(docs("kind: AttacheConfig\nmetadata: {name: c}\nspec: {identity: {listen: '127.0.0.1:0', tlsCertFile: c.pem, tlsKeyFile: ../k.pem, sshAgent: a.sock}}")))
	b, err := api.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	i := b.Config.Spec.Identity
	for got, want := range map[string]string{i.TLSCertFile: filepath.Join(dir, "c.pem"), i.TLSKeyFile: filepath.Join(filepath.Dir(dir), "k.pem"), i.SSHAgent: filepath.Join(dir, "a.sock")} {
		if got != want {
			t.Errorf("got path %s, want %s", got, want)
		}
	}
}
