package apikey_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/minting"
	"github.com/attache-dev/attache/minting/apikey"
	"github.com/attache-dev/attache/minting/mintingtest"
)

// fakeVault follows the HTTP API documentation of Vault 1.13 for the calls we
// make, and refuses everything else.
type fakeVault struct {
	t         *testing.T
	src       *mintingtest.Source
	namespace string
	secret    string // answer to the read

	mu      sync.Mutex // guards tokens
	tokens  map[string]bool
	revoked int
}

const vaultToken = "hvs.CAESIJ-login-token-login-token"

func (v *fakeVault) fail(w http.ResponseWriter, status int, text string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string][]string{"errors": {text}})
}

func (v *fakeVault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if r.Header.Get("X-Vault-Request") != "true" || r.Header.Get("X-Vault-Namespace") != v.namespace {
		v.fail(w, http.StatusBadRequest, "missing request header")
		return
	}
	switch r.Method + " " + r.URL.Path {
	case "POST /v1/auth/jwt/login":
		var in struct{ Role, JWT string }
		if json.NewDecoder(r.Body).Decode(&in) != nil || in.Role != "agents" {
			v.fail(w, http.StatusBadRequest, `role "`+in.Role+`" could not be found`)
			return
		}
		tok, err := jwt.ParseSigned(in.JWT, []jose.SignatureAlgorithm{jose.ES256})
		var c jwt.Claims
		if err != nil || tok.Claims(v.src.Key.Public(), &c) != nil ||
			c.Validate(jwt.Expected{Subject: "spiffe://example.org/agent/a", AnyAudience: jwt.Audience{"vault"}, Time: time.Now()}) != nil {
			v.fail(w, http.StatusBadRequest, "error validating token "+in.JWT)
			return
		}
		v.tokens[vaultToken] = true
		fmt.Fprintf(w, `{"auth":{"client_token":%q,"accessor":"a","lease_duration":60,"renewable":true,"policies":["default"]}}`, vaultToken)
	case "GET /v1/secret/data/openai":
		if !v.tokens[r.Header.Get("X-Vault-Token")] {
			v.fail(w, http.StatusForbidden, "permission denied for "+r.Header.Get("X-Vault-Token"))
			return
		}
		_, _ = io.WriteString(w, v.secret)
	case "POST /v1/auth/token/revoke-self":
		if !v.tokens[r.Header.Get("X-Vault-Token")] {
			v.fail(w, http.StatusForbidden, "permission denied")
			return
		}
		delete(v.tokens, r.Header.Get("X-Vault-Token"))
		v.revoked++
		w.WriteHeader(http.StatusNoContent)
	default:
		v.fail(w, http.StatusNotFound, "no handler for route")
	}
}

func kv2(value string) string {
	b, _ := json.Marshal(value)
	return `{"lease_duration":0,"data":{"data":{"value":` + string(b) + `},"metadata":{"deletion_time":"","destroyed":false,"version":1}}}`
}

func newVault(t *testing.T) *fakeVault {
	t.Helper()
	return &fakeVault{t: t, src: mintingtest.NewSource(t), secret: kv2(key), tokens: map[string]bool{}}
}

func vaultMinter(t *testing.T, h http.Handler, change func(*v1alpha1.VaultKV)) *apikey.Minter {
	t.Helper()
	srv, deps := mintingtest.Serve(t, h)
	s := v1alpha1.VaultKV{Address: srv.URL + "/", Role: "agents", Audience: "vault", Path: "secret/data/openai"}
	if change != nil {
		change(&s)
	}
	m, err := apikey.New("p", v1alpha1.APIKey{Vault: &s}, deps)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestVaultConformance(t *testing.T) {
	mintingtest.Run(t, mintingtest.Suite{New: func(t *testing.T, m mintingtest.Mode) mintingtest.Fixture {
		t.Helper()
		v := newVault(t)
		deny := newVault(t) // knows other keys: refuses and repeats the JWT
		if m == mintingtest.Header {
			v.secret = kv2(key + "\r\nX-Admin: yes")
		}
		e := minting.Evidence{Workload: mintingtest.Workload(), Source: v.src}
		return mintingtest.Fixture{
			Minter: vaultMinter(t, mintingtest.Issuer(t, m, v, deny), nil), Request: mintingtest.Request("p", e), Evidence: e, Want: key,
			Secrets: func() []string { return append(v.src.Signed(), key, vaultToken) },
		}
	}})
}

func TestVaultLogsOut(t *testing.T) {
	v := newVault(t)
	e := minting.Evidence{Workload: mintingtest.Workload(), Source: v.src}
	if _, err := vaultMinter(t, v, nil).Mint(t.Context(), minting.Request{}, e); err != nil {
		t.Fatal(err)
	}
	v.secret = "{}" // also after a failure
	if _, err := vaultMinter(t, v, nil).Mint(t.Context(), minting.Request{}, e); err == nil {
		t.Fatal("no secret was accepted")
	}
	if v.revoked != 2 || len(v.tokens) != 0 {
		t.Errorf("%d of 2 tokens revoked, %d left", v.revoked, len(v.tokens))
	}
}

func TestVaultAnswers(t *testing.T) {
	soon := time.Now().Add(time.Minute).UTC().Format(time.RFC3339Nano)
	past := time.Now().Add(-time.Minute).UTC().Format(time.RFC3339Nano)
	tests := []struct {
		name, secret string
		ok           bool
		life         time.Duration // 0: none said
	}{
		{"version 2", kv2(key), true, 0},
		{"version 1", `{"lease_duration":3600,"data":{"value":"` + key + `"}}`, true, time.Hour},
		{"huge lease", `{"lease_duration":9223372036854775807,"data":{"value":"` + key + `"}}`, true, 30 * 24 * time.Hour},
		{"ends soon", `{"data":{"data":{"value":"` + key + `"},"metadata":{"deletion_time":"` + soon + `"}}}`, true, time.Minute},
		{"deleted", `{"data":{"data":null,"metadata":{"deletion_time":"` + past + `"}}}`, false, 0},
		{"destroyed", `{"data":{"data":{"value":"` + key + `"},"metadata":{"destroyed":true}}}`, false, 0},
		{"other field", `{"data":{"data":{"key":"x"},"metadata":{}}}`, false, 0},
		{"a number", `{"data":{"data":{"value":5},"metadata":{}}}`, false, 0},
		{"version 1 with a field called data", `{"data":{"value":"` + key + `","data":"x"}}`, true, 0},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			v := newVault(t)
			v.secret = tc.secret
			e := minting.Evidence{Workload: mintingtest.Workload(), Source: v.src}
			c, err := vaultMinter(t, v, nil).Mint(t.Context(), minting.Request{}, e)
			if (err == nil) != tc.ok {
				t.Fatalf("error %v", err)
			}
			if !tc.ok {
				return
			}
			if c.Secret.Reveal() != key {
				t.Error("another key")
			}
			life := time.Duration(0)
			if !c.Expires.IsZero() {
				life = time.Until(c.Expires)
			}
			if d := tc.life - life; d < 0 || d > 10*time.Second {
				t.Errorf("life %v, want %v", life, tc.life)
			}
		})
	}
}

func TestVaultNamespace(t *testing.T) {
	v := newVault(t)
	v.namespace = "team-a"
	e := minting.Evidence{Workload: mintingtest.Workload(), Source: v.src}
	if _, err := vaultMinter(t, v, nil).Mint(t.Context(), minting.Request{}, e); !errors.Is(err, minting.ErrDenied) {
		t.Errorf("without the namespace: %v", err)
	}
	if _, err := vaultMinter(t, v, func(s *v1alpha1.VaultKV) { s.Namespace = "team-a" }).Mint(t.Context(), minting.Request{}, e); err != nil {
		t.Errorf("with the namespace: %v", err)
	}
}

func TestBadVaults(t *testing.T) {
	good := v1alpha1.VaultKV{Address: "https://v.example", Role: "r", Path: "secret/data/x"}
	for name, change := range map[string]func(*v1alpha1.VaultKV){
		"cleartext":       func(s *v1alpha1.VaultKV) { s.Address = "http://v.example" },
		"no role":         func(s *v1alpha1.VaultKV) { s.Role = "" },
		"no path":         func(s *v1alpha1.VaultKV) { s.Path = "" },
		"path goes up":    func(s *v1alpha1.VaultKV) { s.Path = "secret/../sys/seal" },
		"path has query":  func(s *v1alpha1.VaultKV) { s.Path = "secret/data/x?list=true" },
		"mount goes up":   func(s *v1alpha1.VaultKV) { s.AuthMount = "../token" },
		"missing CA file": func(s *v1alpha1.VaultKV) { s.CAFile = "/nowhere/ca.pem" },
	} {
		s := good
		change(&s)
		deps := minting.Deps{Client: func([]string, []byte) *http.Client { return http.DefaultClient }}
		if _, err := apikey.New("p", v1alpha1.APIKey{Vault: &s}, deps); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

// TestRealVault runs against the program named by ATTACHE_TEST_VAULT; see
// test/servers/vault/build.sh.
func TestRealVault(t *testing.T) {
	bin := os.Getenv("ATTACHE_TEST_VAULT")
	if bin == "" {
		if os.Getenv("ATTACHE_REQUIRE_SERVERS") == "1" {
			t.Fatal("ATTACHE_TEST_VAULT is not set; run test/servers/vault/build.sh and set it to what that prints")
		}
		t.Skip("ATTACHE_TEST_VAULT is not set; test/servers/vault/build.sh builds the server")
	}
	addr := startVault(t, bin)
	src := mintingtest.NewSource(t)
	admin := func(method, path string, body any) {
		t.Helper()
		b, _ := json.Marshal(body)
		req, err := http.NewRequestWithContext(t.Context(), method, addr+"/v1/"+path, bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Vault-Token", "root")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if text, _ := io.ReadAll(res.Body); res.StatusCode >= 300 {
			t.Fatalf("%s %s: %d %s", method, path, res.StatusCode, text)
		}
	}
	der, err := x509.MarshalPKIXPublicKey(src.Key.Public())
	if err != nil {
		t.Fatal(err)
	}
	pub := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	admin("POST", "sys/auth/jwt", map[string]string{"type": "jwt"})
	admin("POST", "auth/jwt/config", map[string]any{"jwt_validation_pubkeys": []string{pub}})
	admin("POST", "sys/policies/acl/agents", map[string]string{"policy": `path "secret/data/openai" { capabilities = ["read"] }
path "kv1/openai" { capabilities = ["read"] }`})
	admin("POST", "auth/jwt/role/agents", map[string]any{
		"role_type": "jwt", "user_claim": "sub", "bound_audiences": []string{addr}, "bound_subject": "spiffe://example.org/agent/a",
		"token_policies": []string{"agents"}, "token_ttl": "60s",
	})
	admin("POST", "secret/data/openai", map[string]any{"data": map[string]string{"value": key}})
	admin("POST", "secret/data/other", map[string]any{"data": map[string]string{"value": key}})
	admin("POST", "sys/mounts/kv1", map[string]any{"type": "kv", "options": map[string]string{"version": "1"}})
	admin("POST", "kv1/openai", map[string]string{"api_key": key})

	e := minting.Evidence{Workload: mintingtest.Workload(), Source: src}
	deps := minting.Deps{Client: func([]string, []byte) *http.Client { return &http.Client{} }}
	try := func(change func(*v1alpha1.VaultKV)) (minting.Credential, error) {
		s := v1alpha1.VaultKV{Address: addr, Addresses: []string{"127.0.0.1"}, Role: "agents", Path: "secret/data/openai"}
		change(&s)
		m, err := apikey.New("p", v1alpha1.APIKey{Vault: &s}, deps)
		if err != nil {
			t.Fatal(err)
		}
		return m.Mint(t.Context(), minting.Request{}, e)
	}
	if c, err := try(func(*v1alpha1.VaultKV) {}); err != nil || c.Secret.Reveal() != key {
		t.Errorf("KV version 2: %v", err)
	}
	c, err := try(func(s *v1alpha1.VaultKV) { s.Path, s.Field = "kv1/openai", "api_key" })
	if err != nil || c.Secret.Reveal() != key || c.Expires.IsZero() {
		t.Errorf("KV version 1: %v", err)
	}
	for name, change := range map[string]func(*v1alpha1.VaultKV){
		"not our path":   func(s *v1alpha1.VaultKV) { s.Path = "secret/data/other" },
		"not our role":   func(s *v1alpha1.VaultKV) { s.Role = "admins" },
		"wrong audience": func(s *v1alpha1.VaultKV) { s.Audience = "https://other.example" },
		"no such mount":  func(s *v1alpha1.VaultKV) { s.AuthMount = "none" },
	} {
		_, err := try(change)
		if !errors.Is(err, minting.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
		t.Logf("%s: %v", name, err)
	}
	// Every login logged out again: only the root token is left.
	req, _ := http.NewRequestWithContext(t.Context(), "LIST", addr+"/v1/auth/token/accessors", nil)
	req.Header.Set("X-Vault-Token", "root")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var left struct{ Data struct{ Keys []string } }
	if err := json.NewDecoder(res.Body).Decode(&left); err != nil || len(left.Data.Keys) != 1 {
		t.Errorf("%d tokens left, %v; want the root token alone", len(left.Data.Keys), err)
	}
}

// startVault starts a development server that keeps everything in memory.
func startVault(t *testing.T, bin string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, bin, "server", "-dev", "-dev-root-token-id=root", "-dev-listen-address="+host, "-dev-no-store-token")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	for deadline := time.Now().Add(20 * time.Second); ; {
		res, err := http.Get("http://" + host + "/v1/sys/health") //nolint:noctx // a test
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return "http://" + host
			}
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			t.Fatalf("vault does not answer: %s", strings.TrimSpace(log.String()))
		}
		time.Sleep(50 * time.Millisecond)
	}
}
