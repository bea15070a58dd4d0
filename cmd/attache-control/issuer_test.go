package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/identity"
	podidentity "github.com/attache-dev/attache/identity/kubernetes"
	"github.com/attache-dev/attache/test/cluster"
	"github.com/attache-dev/attache/webhook/inject"
)

// issuing is a control plane with the role issuer alone.
type issuing struct {
	*cluster.Env
	c                            client.Client
	namespace, kubeconfig        string
	api, discovery, probes, node string
	inject                       inject.Config
	log                          *syncBuffer
}

func startIssuer(t *testing.T, flags ...string) *issuing {
	t.Helper()
	e := cluster.API(t)
	if err := e.InstallCRDs(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(e.Config, client.Options{Scheme: scheme.Scheme})
	if err != nil {
		t.Fatal(err)
	}
	local := func() string { return "127.0.0.1:" + freePort(t) }
	p := &issuing{Env: e, c: c, namespace: e.Namespace(t, nil), api: local(), discovery: local(), probes: local(), log: &syncBuffer{}}
	p.node = "node-" + p.namespace
	if err := c.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: p.node}}); err != nil {
		t.Fatal(err)
	}
	if p.kubeconfig, err = e.WriteKubeconfig("issuer.kubeconfig", e.Config); err != nil {
		t.Fatal(err)
	}
	cmd, _ := root()
	cmd.SetArgs(append([]string{
		"serve", "--roles=issuer", "--namespace=" + p.namespace, "--trust-domain=cluster.test", "--leader-elect=false", "--kubeconfig=" + p.kubeconfig,
		"--metrics-listen=" + p.probes, "--api-listen=" + p.api, "--discovery-listen=" + p.discovery, "--webhook-names=127.0.0.1", "--drain=100ms", "--log-level=debug",
	}, flags...))
	cmd.SetErr(p.log)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- cmd.ExecuteContext(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if t.Failed() {
			text := p.log.String()
			t.Log(text[max(0, len(text)-6000):])
		}
	})
	eventually(t, "ready", func() error {
		res, err := http.Get("http://" + p.probes + "/readyz") //nolint:noctx // ends with the server
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if b, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusOK {
			return fmt.Errorf("%s", b)
		}
		return nil
	})
	p.inject = inject.Config{Image: "registry.example/attache-sidecar:v1", Control: p.api, ControlCA: p.roots(t), Nonce: "0123456789abcdef"}
	return p
}

// roots are read where admission reads them.
func (p *issuing) roots(t *testing.T) string {
	t.Helper()
	cm := &corev1.ConfigMap{}
	if err := p.c.Get(t.Context(), types.NamespacedName{Namespace: p.namespace, Name: "attache-ca"}, cm); err != nil {
		t.Fatal(err)
	}
	return cm.Data["roots.pem"]
}

// run runs another command of the program.
func (p *issuing) run(t *testing.T, args ...string) string {
	t.Helper()
	cmd, _ := root()
	var out syncBuffer
	cmd.SetOut(&out)
	cmd.SetArgs(append(args, "--kubeconfig="+p.kubeconfig, "--namespace="+p.namespace))
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return out.String()
}

// agent makes an injected pod that runs, and returns its token and address.
func (p *issuing) agent(t *testing.T, ns, address string) string {
	t.Helper()
	pod := object{
		"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": "agent", "namespace": ns},
		"spec": object{"nodeName": p.node, "containers": []any{object{"name": "agent", "image": "agent"}}},
	}
	r, err := inject.Pod(pod, object{"labels": object{"attache.dev/inject": "enabled"}}, p.inject)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(r.Pod)
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(b); err != nil {
		t.Fatal(err)
	}
	if err := p.c.Create(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	typed := &corev1.Pod{}
	if err := p.c.Get(t.Context(), client.ObjectKeyFromObject(u), typed); err != nil {
		t.Fatal(err)
	}
	typed.Status.PodIP, typed.Status.PodIPs = address, []corev1.PodIP{{IP: address}}
	typed.Status.InitContainerStatuses = []corev1.ContainerStatus{{
		Name: inject.SidecarName, ContainerID: "containerd://1", ImageID: "sha256:" + strings.Repeat("a", 64),
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
	}}
	if err := p.c.Status().Update(t.Context(), typed); err != nil {
		t.Fatal(err)
	}
	tr := &authv1.TokenRequest{Spec: authv1.TokenRequestSpec{
		Audiences: []string{"attache.dev"}, BoundObjectRef: &authv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: typed.Name, UID: typed.UID},
	}}
	if err := p.c.SubResource("token").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: ns}}, tr); err != nil {
		t.Fatal(err)
	}
	return tr.Status.Token
}

const grant = `
apiVersion: attache.dev/v1alpha1
kind: CredentialProvider
metadata: {name: svid}
spec:
  destinations: [{host: api.example.com}]
  jwt: {audience: "https://api.example.com"}
---
apiVersion: attache.dev/v1alpha1
kind: AccessPolicy
metadata: {name: all}
spec:
  rules: [{name: get, hosts: [api.example.com], action: allow, credential: {provider: svid}}]
`

// TestIssuerInCluster: a pod is attested, gets tokens for the audiences of its
// policy and no others, and the keys and templates are there for operators.
func TestIssuerInCluster(t *testing.T) {
	p := startIssuer(t)
	ns := p.Namespace(t, map[string]string{"attache.dev/inject": "enabled"})
	const address = "127.3.0.1"
	token := p.agent(t, ns, address)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := podidentity.New(podidentity.Config{
		Control: p.api, ControlCA: []byte(p.inject.ControlCA), TokenFile: file,
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}).DialContext(ctx, "tcp", addr)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait(); _ = s.Close() })

	eventually(t, "a refusal of a template that nobody accepted", func() error {
		if err := s.Ready(); err == nil || !strings.Contains(err.Error(), "is not accepted") {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
	set, err := issuer.NewSet(p.c, p.namespace, func(map[string]any) (string, error) { return "", nil }, nil)
	if err != nil {
		t.Fatal(err)
	}
	list, err := p.inject.Templates()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range list {
		if err := set.Accept(t.Context(), x.Hash, x.Image); err != nil {
			t.Fatal(err)
		}
	}
	wait, stop := context.WithTimeout(t.Context(), 90*time.Second)
	defer stop()
	if err := s.Wait(wait); err != nil {
		t.Fatal(err)
	}
	ask := func() error {
		_, err := s.JWT(t.Context(), identity.JWTRequest{Workload: s.Workload(), Audience: "https://api.example.com"})
		return err
	}
	if err := ask(); err == nil || !strings.Contains(err.Error(), "no provider in the pod's policy") {
		t.Errorf("before there is a policy: %v", err)
	}
	if _, err := p.Kubectl(t.Context(), grant, "create", "-n", ns, "-f", "-"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a token for the policy's audience", ask)
	if _, err := s.JWT(t.Context(), identity.JWTRequest{Workload: s.Workload(), Audience: "https://evil.example.com"}); err == nil {
		t.Error("a token for an audience of no provider")
	}

	t.Run("discovery", func(t *testing.T) {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(p.roots(t)))
		web := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
		res, err := web.Get("https://" + p.discovery + "/.well-known/openid-configuration") //nolint:noctx // ends with the server
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var doc struct {
			Issuer string `json:"issuer"`
		}
		if err := json.NewDecoder(res.Body).Decode(&doc); err != nil {
			t.Fatal(err)
		}
		if want := "https://attache-control." + p.namespace + ".svc:8444"; doc.Issuer != want {
			t.Errorf("issuer: got %s, want %s", doc.Issuer, want)
		}
	})
	t.Run("export", func(t *testing.T) {
		dir := t.TempDir()
		out := p.run(t, "issuer", "export", dir, "--issuer-url=https://oidc.example.com/c1")
		b, err := os.ReadFile(filepath.Join(dir, "keys"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), `"ES256"`) || strings.Contains(string(b), `"d"`) || !strings.Contains(out, "1 keys for https://oidc.example.com/c1") {
			t.Errorf("%s\n%s", out, b)
		}
	})
	t.Run("templates", func(t *testing.T) {
		var lines []templateLine
		if err := json.Unmarshal([]byte(p.run(t, "templates", "list", "-o", "json")), &lines); err != nil {
			t.Fatal(err)
		}
		if len(lines) != 1 || lines[0].Pods != 1 || lines[0].Retired {
			t.Fatalf("templates: %+v", lines)
		}
		p.run(t, "templates", "retire", lines[0].Name)
		if out := p.run(t, "templates", "list"); !strings.Contains(out, "retired") {
			t.Error(out)
		}
	})
}
