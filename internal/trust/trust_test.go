package trust_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/attache-dev/attache/internal/trust"
)

func newCA(t *testing.T, name string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func certs(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return names
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, c.Subject.CommonName)
	}
}

func TestBundleAppendsOurRoot(t *testing.T) {
	system := filepath.Join(t.TempDir(), "system.pem")
	a, b := newCA(t, "system a"), newCA(t, "system b")
	key := []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
	if err := os.WriteFile(system, slices.Concat(a, []byte("# text\n"), key, b, a), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSL_CERT_FILE", system)
	t.Setenv("SSL_CERT_DIR", t.TempDir())
	dir := filepath.Join(t.TempDir(), "new", "trust")
	got, err := trust.WriteBundle(dir, newCA(t, "ours"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"system a", "system b", "ours"}
	if names := certs(t, got.PEM); !slices.Equal(names, want) {
		t.Errorf("got roots %q, want %q", names, want)
	}
	if names := certs(t, got.CA); !slices.Equal(names, want[2:]) {
		t.Errorf("got CA file %q, want ours alone", names)
	}
	if got.Roots != 2 || !slices.Equal(got.Sources, []string{system}) {
		t.Errorf("got %d roots from %q", got.Roots, got.Sources)
	}
	if data, _ := os.ReadFile(got.PEM); bytes.Contains(data, []byte("PRIVATE KEY")) {
		t.Error("a private key of the system's file came into the bundle")
	}
	p12, err := os.ReadFile(got.TrustStore)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := pkcs12.DecodeTrustStore(p12, trust.Password)
	if err != nil || len(stored) != 3 {
		t.Errorf("truststore: got %d certificates, %v, want 3", len(stored), err)
	}
	for _, path := range []string{got.PEM, got.CA, got.TrustStore, got.Preload, got.Wgetrc} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
			t.Errorf("%s: got mode %v, %v, want 0644", path, info.Mode(), err)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 5 {
		t.Errorf("got %d files, want no leftovers beside 5", len(entries))
	}
}

func TestRootsOfACertificateFolder(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "one.crt"), newCA(t, "from folder"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSL_CERT_DIR", dir)
	got, err := trust.WriteBundle(t.TempDir(), newCA(t, "ours"))
	if err != nil {
		t.Fatal(err)
	}
	names := certs(t, got.PEM)
	if !slices.Contains(names, "from folder") || names[len(names)-1] != "ours" {
		t.Errorf("got %q, want the folder's root and ours last", names)
	}
}

func TestBundleNeedsACertificate(t *testing.T) {
	for _, bad := range []string{"", "text", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if _, err := trust.WriteBundle(t.TempDir(), []byte(bad)); err == nil {
			t.Errorf("%q: got no error", bad)
		}
	}
}

func options(parent ...string) trust.Options {
	return trust.Options{
		Parent: parent,
		Proxy:  "http://127.0.0.1:3128",
		Bundle: trust.Bundle{PEM: "/t/bundle.pem", CA: "/t/ca.pem", TrustStore: "/t/ts.p12", Preload: "/t/preload.cjs", Wgetrc: "/t/wgetrc"},
	}
}

func environment(t *testing.T, o trust.Options) (map[string]string, trust.Report) {
	t.Helper()
	env, rep, err := trust.Env(o)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		if _, twice := m[name]; twice {
			t.Errorf("%s is set twice", name)
		}
		m[name] = value
	}
	return m, rep
}

func TestEnvSetsEveryVariable(t *testing.T) {
	env, _ := environment(t, options("PATH=/bin", "SSL_CERT_FILE=/old", "https_proxy=http://u:secret@old:1", "ALL_PROXY=socks5://old", "NPM_CONFIG_CAFILE=/old"))
	want := map[string]string{"PATH": "/bin", "NODE_USE_ENV_PROXY": "1", "GIT_HTTP_PROXY_AUTHMETHOD": "basic", "AWS_EC2_METADATA_DISABLED": "true", "NODE_EXTRA_CA_CERTS": "/t/ca.pem", "WGETRC": "/t/wgetrc"}
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"} {
		want[name] = "http://127.0.0.1:3128"
	}
	for _, name := range []string{"NO_PROXY", "no_proxy"} {
		want[name] = "localhost,127.0.0.1,::1"
	}
	for _, name := range []string{
		"SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT", "npm_config_cafile",
		"CARGO_HTTP_CAINFO", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "DENO_CERT", "BUNDLE_SSL_CA_CERT", "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
		"HTTPLIB2_CA_CERTS", "NIX_SSL_CERT_FILE",
	} {
		want[name] = "/t/bundle.pem"
	}
	for name, value := range want {
		if env[name] != value {
			t.Errorf("%s: got %q, want %q", name, env[name], value)
		}
	}
	for _, name := range []string{"ALL_PROXY", "NPM_CONFIG_CAFILE", "NODE_OPTIONS"} {
		if v, ok := env[name]; ok {
			t.Errorf("%s: got %q, want it gone", name, v)
		}
	}
	for _, part := range []string{"-Dhttps.proxyHost=127.0.0.1", "-Dhttps.proxyPort=3128", "-Djavax.net.ssl.trustStore=/t/ts.p12", "-Dhttp.nonProxyHosts=localhost|127.0.0.1|[::1]"} {
		if !strings.Contains(env["JAVA_TOOL_OPTIONS"], part) {
			t.Errorf("JAVA_TOOL_OPTIONS lacks %s: %s", part, env["JAVA_TOOL_OPTIONS"])
		}
	}
}

func TestEnvAppendsToOptions(t *testing.T) {
	o := options("JAVA_TOOL_OPTIONS=-Xmx1g", "NODE_OPTIONS=--max-old-space-size=99")
	o.Node = trust.NodeVersion{Major: 22, Minor: 21}
	o.Bundle.Preload = `/a b/pre"load.cjs`
	env, _ := environment(t, o)
	if !strings.HasPrefix(env["JAVA_TOOL_OPTIONS"], "-Xmx1g -Dhttp.proxyHost=") {
		t.Errorf("got %q", env["JAVA_TOOL_OPTIONS"])
	}
	if want := `--max-old-space-size=99 --require="/a b/pre\"load.cjs"`; env["NODE_OPTIONS"] != want {
		t.Errorf("got %q, want %q", env["NODE_OPTIONS"], want)
	}
	o.Node = trust.NodeVersion{Major: 20, Minor: 19}
	env, rep := environment(t, o)
	if strings.Contains(env["NODE_OPTIONS"], "require") || len(rep.Notes) != 1 {
		t.Errorf("node 20: got %q and notes %q, want no preload and a note", env["NODE_OPTIONS"], rep.Notes)
	}
}

// No metadata service is reached around the proxy, however it is written.
func TestNoProxyNeverHoldsMetadata(t *testing.T) {
	o := options("NO_PROXY=169.254.169.254,internal")
	o.NoProxy = []string{
		"169.254.169.254", "169.254.170.23", "169.254.0.0/16", "0.0.0.0/0", "::/0", "fd00:ec2::254", "[fd00:ec2::23]", "::ffff:169.254.169.254",
		"metadata.google.internal", "Metadata.Google.Internal.", ".google.internal", ".internal", "internal", "169.254.169.254:80", "*", "*.", "168.63.129.16", "100.100.100.200",
		"db.example.com", "10.0.0.0/8",
	}
	env, _ := environment(t, o)
	if want := "localhost,127.0.0.1,::1,db.example.com,10.0.0.0/8"; env["NO_PROXY"] != want || env["no_proxy"] != want {
		t.Errorf("got %q and %q, want %q", env["NO_PROXY"], env["no_proxy"], want)
	}
}

// AWS SDKs may ask for an instance's role only where a stand-in answers, also
// if the parent says otherwise.
func TestAWSMetadata(t *testing.T) {
	for standIn, want := range map[bool]string{false: "true", true: "false"} {
		o := options("AWS_EC2_METADATA_DISABLED="+strconv.FormatBool(standIn), "AWS_EC2_METADATA_SERVICE_ENDPOINT=http://169.254.169.254/")
		o.AWSMetadata = standIn
		if standIn {
			o.BaseURLs = []string{"AWS_EC2_METADATA_SERVICE_ENDPOINT=http://127.0.0.1:1/"}
		}
		env, _ := environment(t, o)
		if got := env["AWS_EC2_METADATA_DISABLED"]; got != want {
			t.Errorf("stand-in %v: got %s", standIn, got)
		}
		if got := env["AWS_EC2_METADATA_SERVICE_ENDPOINT"]; strings.Contains(got, "169.254") {
			t.Errorf("the instance's own endpoint is passed on: %s", got)
		}
	}
}

func TestCredentialsAreStripped(t *testing.T) {
	const canary = "canary0123456789canary"
	stripped := []string{
		"OPENAI_API_KEY=" + canary, "ANTHROPIC_API_KEY=" + canary, "AWS_ACCESS_KEY_ID=" + canary, "AWS_PROFILE=" + canary, "aws_secret_access_key=" + canary,
		"GH_TOKEN=" + canary, "GITHUB_TOKEN=" + canary, "GOOGLE_APPLICATION_CREDENTIALS=" + canary, "AZURE_CLIENT_SECRET=" + canary, "VAULT_TOKEN=" + canary,
		"NPM_TOKEN=" + canary, "SSH_AUTH_SOCK=" + canary, "DATABASE_URL=" + canary, "PGPASSWORD=" + canary, "SPIFFE_ENDPOINT_SOCKET=" + canary,
		"KUBECONFIG=" + canary, "DOCKER_CONFIG=" + canary, "DOCKER_HOST=" + canary, "GIT_ASKPASS=" + canary, "DBUS_SESSION_BUS_ADDRESS=" + canary,
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_VALUE_0=" + canary, "ATTACHE_HOME=" + canary, "MY_KEY_SOURCE=" + canary,
		"ACME_TOKEN=" + canary, "acme_secret=" + canary, "X_PASSWORD=" + canary, "X_API_KEY=" + canary, "X_CREDENTIALS=" + canary, "PASSWORD=" + canary,
		"S1=sk-" + canary, "S2=see sk-ant-api03-" + canary, "S3=ghp_" + canary, "S4=ghs_123_eyJ.x" + canary, "S5=github_pat_" + canary,
		"S6=AKIAIOSFODNN7EXAMPLE", "S7=xoxb-1234567890-" + canary, "S8=eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiIxMjM0NSJ9." + canary,
		"S9=-----BEGIN RSA PRIVATE KEY-----\n" + canary, "S10=postgres://user:" + canary + "@db/x", "S11=https://:" + canary + "@host/",
		"S12=Authorization: Bearer " + canary, "S13=glpat-" + canary, "S14=hvs." + canary, "S15=AIzaSyA0123456789" + canary + "0123456789",
		"AWS_REGION=sk-" + canary, "AWS_ENDPOINT_URL=https://u:" + canary + "@s3.example", "AWS_CONTAINER_CREDENTIALS_FULL_URI=http://169.254.170.23/" + canary, "AWS_ROLE_ARN=" + canary,
	}
	harmless := []string{
		"PATH=/usr/bin:/home/u/sk-learn-environments-for-all/bin", "HOME=/home/u", "LANG=sk_SK.UTF-8", "AWS_REGION=eu-west-1", "AWS_ENDPOINT_URL=https://minio.example:9000", "AWS_ENDPOINT_URL_S3=https://minio.example:9000", "AWS_STS_REGIONAL_ENDPOINTS=regional", "EDITOR=vi", "TOKENIZERS_PARALLELISM=false",
		"PGHOST=db.example.com", "URL=https://user@example.com/a:b@c", "ACME_TOKEN=", "KEYBOARD=us", "MONKEY=business", "GOPROXY=https://proxy.example.com",
	}
	o := options(slices.Concat(harmless, stripped)...)
	o.Parent = slices.DeleteFunc(o.Parent, func(kv string) bool { return kv == "AWS_REGION=eu-west-1" || kv == "ACME_TOKEN=" })
	o.Strip = []string{"MY_KEY_SOURCE"}
	o.Keep = []string{"MY_KEY_SOURCE"} // never wins over Strip
	o.Placeholders = []string{"OPENAI_API_KEY=sk-placeholder"}
	env, rep := environment(t, o)
	for name, value := range env {
		if strings.Contains(value, canary) {
			t.Errorf("%s still holds a credential", name)
		}
	}
	removed := map[string]trust.Removed{}
	for _, r := range rep.Removed {
		removed[r.Name] = r
		if strings.Contains(r.Why, canary) {
			t.Errorf("%s: the reason holds the value", r.Name)
		}
	}
	for _, kv := range stripped {
		name, _, _ := strings.Cut(kv, "=")
		if _, ok := removed[name]; !ok {
			t.Errorf("%s is not reported", name)
		}
	}
	if !removed["OPENAI_API_KEY"].Replaced || env["OPENAI_API_KEY"] != "sk-placeholder" || removed["GH_TOKEN"].Replaced {
		t.Errorf("got %+v, want only OPENAI_API_KEY replaced", removed["OPENAI_API_KEY"])
	}
	env, rep = environment(t, options(harmless...))
	for _, kv := range harmless {
		if name, value, _ := strings.Cut(kv, "="); env[name] != value {
			t.Errorf("%s was taken away", name)
		}
	}
	if len(rep.Removed) != 0 {
		t.Errorf("got %+v removed from harmless variables", rep.Removed)
	}
}

func TestKeep(t *testing.T) {
	o := options("ACME_TOKEN=x", "OTHER_TOKEN=y")
	o.Keep = []string{"ACME_TOKEN"}
	env, rep := environment(t, o)
	if env["ACME_TOKEN"] != "x" || !slices.Equal(rep.Kept, o.Keep) || len(rep.Removed) != 1 {
		t.Errorf("got %q, %+v", env["ACME_TOKEN"], rep)
	}
}

func TestBadOptions(t *testing.T) {
	tests := map[string]func(*trust.Options){
		"no port":          func(o *trust.Options) { o.Proxy = "http://127.0.0.1" },
		"other scheme":     func(o *trust.Options) { o.Proxy = "socks5://user:hunter2@127.0.0.1:1" },
		"no bundle":        func(o *trust.Options) { o.Bundle = trust.Bundle{} },
		"placeholder":      func(o *trust.Options) { o.Placeholders = []string{"HTTPS_PROXY=x"} },
		"base URL":         func(o *trust.Options) { o.BaseURLs = []string{"NODE_EXTRA_CA_CERTS=x"} },
		"nameless setting": func(o *trust.Options) { o.BaseURLs = []string{"=x"} },
	}
	for name, change := range tests {
		o := options()
		change(&o)
		if _, _, err := trust.Env(o); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got error %v", name, err)
		}
	}
}

func TestNodeVersions(t *testing.T) {
	for text, want := range map[string]bool{
		"v20.20.2\n": false, "v22.20.0": false, "v22.21.0": true, "v23.11.1": false, "v24.4.1": false, "v24.5.0": true, "v25.0.0": true,
	} {
		v, err := trust.ParseNodeVersion(text)
		if err != nil || v.UsesEnvProxy() != want {
			t.Errorf("%q: got %v, %v, want %v", text, v.UsesEnvProxy(), err, want)
		}
	}
	if _, err := trust.ParseNodeVersion("node"); err == nil {
		t.Error("got no error for nonsense")
	}
}

// The preload must do no harm in any Node.
func TestPreloadLoads(t *testing.T) {
	if _, err := exec.LookPath("node"); err != nil {
		t.Skip("no node on PATH")
	}
	b, err := trust.WriteBundle(t.TempDir(), newCA(t, "ours"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "-e", "new (require('https').Agent)({keepAlive: true}); new (require('http').Agent)(); console.log('ok')")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "NODE_OPTIONS=--require=" + b.Preload}
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "ok\n" {
		t.Errorf("got %q, %v", out, err)
	}
}

// What a container gets elsewhere is what Env sets here.
func TestVariables(t *testing.T) {
	b := trust.Files("/trust")
	env, _, err := trust.Env(trust.Options{Proxy: "http://127.0.0.1:1", Bundle: b, NoProxy: []string{".svc"}, Node: trust.NodeVersion{Major: 24, Minor: 5}})
	if err != nil {
		t.Fatal(err)
	}
	vars, err := trust.Variables(b, "http://127.0.0.1:1", []string{".svc"})
	if err != nil {
		t.Fatal(err)
	}
	got := []string{"AWS_EC2_METADATA_DISABLED=true"} // not every environment's
	for _, v := range vars {
		got = append(got, v.Name+"="+v.Value)
	}
	slices.Sort(got)
	slices.Sort(env)
	if !slices.Equal(got, env) {
		t.Errorf("got %q, want %q", got, env)
	}
	alone, err := trust.Variables(b, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range alone {
		if strings.Contains(strings.ToUpper(v.Name+v.Value), "PROXY") {
			t.Errorf("%s=%s speaks of a proxy", v.Name, v.Value)
		}
	}
	if _, err := trust.Variables(b, "socks5://x:1", nil); err == nil {
		t.Error("a proxy that is not http is taken")
	}
}
