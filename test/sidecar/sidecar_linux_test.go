package sidecar

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// documents let the agent read with a key, and pass to the database unread.
const documents = `apiVersion: attache.dev/v1alpha1
kind: AttacheConfig
metadata: {name: default}
spec:
  cluster: {nameservers: [%[1]s]}
  limits: {maxConnections: 20000, idleTimeout: 30m}
---
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: api}
spec:
  destinations:
  - {host: api.attache.example, cidrs: [10.5.0.0/24, "fd00:5::/64"], caFile: %[2]s, onlyCA: true}
  - {host: git.attache.example, cidrs: [10.5.0.0/24, "fd00:5::/64"], caFile: %[2]s, onlyCA: true}
  - {host: plain.attache.example, scheme: http, cidrs: [10.5.0.0/24, "fd00:5::/64"]}
  unsafeCleartext: true
  apiKey: {file: %[3]s}
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: agent}
spec:
  destinations: [{host: 10.5.0.1, port: 3306, addresses: [10.5.0.1]}]
  rules:
  - {name: api, hosts: [api.attache.example, git.attache.example], action: allow, credential: {provider: api}}
  - {name: plain, hosts: [plain.attache.example], ports: [80], action: allow, credential: {provider: api}}
  - {name: database, hosts: [10.5.0.1], ports: [3306], action: passthrough}
`

// pod is a pod whose sidecar is running.
type pod struct {
	*world
	mode string
	cmd  *exec.Cmd
	done chan error
	log  string
}

// startPod makes a pod: rules, then the sidecar, as the kubelet does.
func startPod(t *testing.T, w *world, mode string) *pod {
	t.Helper()
	p := &pod{world: w, mode: mode, log: filepath.Join(w.dir, "sidecar.log")}
	for _, d := range []string{"config", "spool", "trust", "state"} {
		if err := os.Mkdir(p.path(d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	key := p.path("config/key")
	docs := fmt.Sprintf(documents, world4, w.pem, key)
	for name, text := range map[string]string{"config/a.yaml": docs, "config/key": w.key} {
		if err := os.WriteFile(p.path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The state is a memory volume of the sidecar's alone.
	w.sh("mount -t tmpfs -o mode=0777,size=8m tmpfs " + p.path("state"))
	t.Cleanup(func() { _ = exec.Command("umount", p.path("state")).Run() }) //nolint:gosec // ours
	w.sh(fmt.Sprintf("chown -R %d %s %s %s && chmod 755 %s", sidecarUID, p.path("config"), p.path("spool"), p.path("trust"), p.path("trust")))
	if mode == "transparent" {
		p.redirect()
	}
	p.start(t)
	t.Cleanup(func() { p.kill(syscall.SIGKILL) })
	return p
}

func (p *pod) path(name string) string { return filepath.Join(p.dir, name) }

func (p *pod) redirect() {
	p.t.Helper()
	p.must(p.podCommand(0, sidecarBinary, "redirect", "--to-port=15001", "--exempt-uid="+strconv.Itoa(sidecarUID), "--nameservers="+world4))
}

// start starts the sidecar and waits until it says that it has started.
func (p *pod) start(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	p.cmd = p.podCommand(sidecarUID, sidecarBinary, "proxy", "--mode="+p.mode, "--listen=127.0.0.1:15002", "--redirect-port=15001",
		"--health=:"+strconv.Itoa(healthPort), "--config", p.path("config"), "--trust-dir", p.path("trust/bundle"), "--state-dir", p.path("state"), "--spool-dir", p.path("spool"))
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.Env = append(p.cmd.Env, "ATTACHE_LOG_LEVEL=info", "GOMEMLIMIT=241591910")
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- p.cmd.Wait() }()
	p.done = done
	eventually(t, "the sidecar starts", func() error {
		select {
		case err := <-done:
			done <- err
			b, _ := os.ReadFile(p.log)
			t.Fatalf("the sidecar ended: %v\n%s", err, b)
		default:
		}
		return p.probe("/started")
	})
}

// probe asks as the kubelet does: from outside, at the pod's address.
func (p *pod) probe(path string) error {
	c := &http.Client{Timeout: patience}
	res, err := c.Get("http://" + pod4 + ":" + strconv.Itoa(healthPort) + path) //nolint:noctx // it has a timeout
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	b, _ := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", res.Status, b)
	}
	return nil
}

// kill ends the sidecar and returns how it ended.
func (p *pod) kill(sig syscall.Signal) error {
	_ = p.cmd.Process.Signal(sig) // nsenter has become the sidecar
	select {
	case err := <-p.done:
		p.done <- err
		return err
	case <-time.After(patience):
		_ = p.cmd.Process.Kill()
		return fmt.Errorf("the sidecar did not end within %v of %v", patience, sig)
	}
}

// agentEnv is what injection gives to an agent's container.
func (p *pod) agentEnv() []string {
	dir := p.path("trust/bundle")
	env := []string{
		"SSL_CERT_FILE=" + dir + "/bundle.pem", "REQUESTS_CA_BUNDLE=" + dir + "/bundle.pem", "CURL_CA_BUNDLE=" + dir + "/bundle.pem",
		"GIT_SSL_CAINFO=" + dir + "/bundle.pem", "NODE_EXTRA_CA_CERTS=" + dir + "/ca.pem",
		"JAVA_TOOL_OPTIONS=-Djavax.net.ssl.trustStore=" + dir + "/truststore.p12 -Djavax.net.ssl.trustStorePassword=changeit -Djavax.net.ssl.trustStoreType=PKCS12",
	}
	if p.mode == "explicit" {
		for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
			env = append(env, name+"=http://127.0.0.1:15002")
		}
	}
	return env
}

// run runs a program of the agent's.
func (p *pod) run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	c := p.podCommand(agentUID, args...)
	c.Env = append(c.Env, p.agentEnv()...)
	out, err := c.CombinedOutput()
	return string(out), err
}

// records are all of the pod's, as they stand.
func (p *pod) records(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob(p.path("spool/records/*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(text)
	}
	return b.String()
}
