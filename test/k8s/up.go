package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/attache-dev/attache/test/cluster/node"
)

// Namespaces of the run.
const (
	nsControl     = "attache-system"
	nsAgents      = "agents"      // explicit mode, the default
	nsTransparent = "transparent" // redirected by nftables
	nsRestricted  = "restricted"  // Pod Security Standard "restricted"
	nsUpgrade     = "upgrade"     // pods that live through an upgrade
	nsAttacks     = "attacks"
	nsAWS         = "aws"     // agents that use MinIO as STS and S3
	nsOutside     = "outside" // not opted in
)

const (
	labelInject = "attache.dev/inject"
	labelMode   = "attache.dev/mode"
	psaEnforce  = "pod-security.kubernetes.io/enforce"
)

// prepare runs outside of the sandbox, where there is a network.
func (o runOptions) prepare(ctx context.Context) error {
	begin := time.Now()
	dir := filepath.Join(o.dir, "images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := o.pack(ctx, dir); err != nil {
		return err
	}
	fmt.Printf("images packed in %.1f s\n", time.Since(begin).Seconds())
	return nil
}

// after tidies the folder of the run: nothing stays of one that passed, and
// of one that failed what explains it.
func (o runOptions) after(status int) {
	if o.keep {
		return
	}
	if status == 0 {
		_ = os.RemoveAll(o.dir)
		return
	}
	for _, big := range []string{"images", "containerd", "kubelet", "etcd", "opt", "home"} {
		_ = os.RemoveAll(filepath.Join(o.dir, big))
	}
}

// bringUp starts the node and the servers, and installs Attaché as an
// operator does.
func (r *run) bringUp(ctx context.Context) error {
	images, err := filepath.Glob(filepath.Join(r.dir, "images", "*.tar"))
	if err != nil {
		return err
	}
	if r.node, err = node.Start(ctx, node.Options{Dir: r.dir, Bin: r.bin, Images: images, Hosts: hosts(), Say: r.say}); err != nil {
		return err
	}
	if r.kube, err = kubernetes.NewForConfig(r.node.Config); err != nil {
		return err
	}
	if r.world, err = startWorld(ctx, filepath.Join(r.dir, "world")); err != nil {
		return fmt.Errorf("servers outside of the cluster: %w", err)
	}
	r.say("servers outside of the cluster are ready")
	if err := errors.Join(r.recordsVolume(ctx), r.reviewSecrets(ctx)); err != nil {
		return err
	}
	if err := r.install(ctx, "helm", firstRelease()); err != nil {
		return err
	}
	if _, err := r.auditReady(ctx); err != nil {
		return err
	}
	r.say("chart installed, control plane ready")
	return errors.Join(r.publishKeys(ctx), r.makeNamespaces(ctx), r.configure(ctx))
}

// settings are what an operator changes from one version to the next.
type settings struct {
	sidecar string // image of the sidecar
	memory  string // that its sidecars request
}

func firstRelease() settings { return settings{imageSidecar, "64Mi"} }

// nextRelease has another image, and other resources in the template.
func nextRelease() settings { return settings{imageSidecarNext, "72Mi"} }

// values of the chart, as an operator of this cluster writes them.
func (r *run) values(v settings) string {
	return `
registry: attache.test
trustDomain: ` + trustDomain + `
issuerURL: https://` + issuerHost + `
control:
  image: {tag: e2e, pullPolicy: Never}
  replicas: 2
  drainSeconds: 1
  resources: {requests: {cpu: 10m, memory: 64Mi}, limits: {memory: 512Mi}}
sidecar:
  image: {digest: "` + r.node.Digest(v.sidecar) + `", pullPolicy: Never}
config:
  trustDomain: ` + trustDomain + `
  upstream: {allowPrivate: true}
  cluster:
    injection:
      mode: explicit
      modes: [explicit, transparent]
      resources: {cpuRequest: 10m, memoryRequest: ` + v.memory + `}
    nameservers: ["` + node.DNS + `"]
    issuer: {url: "https://` + issuerHost + `"}
    owners: {"*": [team-e2e]}
audit:
  persistence: {size: 1Gi}
  resources: {requests: {cpu: 10m, memory: 64Mi}, limits: {memory: 512Mi}}` + reviewValues() + `
test:
  timeoutSeconds: 120
`
}

// install installs or upgrades the release and waits for the control plane.
func (r *run) install(ctx context.Context, helm string, v settings) error {
	ctx, cancel := within(ctx, 4*time.Minute)
	defer cancel()
	_, err := r.node.Run(ctx, r.values(v), helm, "upgrade", "--install", "attache", filepath.Join(r.root, "charts/attache"),
		"--namespace", nsControl, "--create-namespace", "--values", "-")
	if err != nil {
		return err
	}
	if _, err := r.node.Kubectl(ctx, "", "-n", nsControl, "rollout", "status", "deployment/attache-control", "--timeout=120s"); err != nil {
		return fmt.Errorf("%w; %s", err, r.controlState(ctx))
	}
	if _, err := r.condition(ctx, "", "attacheconfig/default", "Accepted", "True"); err != nil {
		return fmt.Errorf("the operator's settings: %w; %s", err, r.controlState(ctx))
	}
	r.installed = v
	return nil
}

// controlState says why the control plane is not there.
func (r *run) controlState(ctx context.Context) string {
	ctx, cancel := within(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	pods, err := r.pods(ctx, nsControl, "")
	if err != nil {
		return err.Error()
	}
	if len(pods) == 0 {
		return r.lastEvent(ctx, nsControl)
	}
	var out []string
	for i := range pods {
		out = append(out, pods[i].Name+" "+state(&pods[i]))
		log, err := r.logs(ctx, nsControl, pods[i].Name, "control")
		if err == nil {
			lines := strings.Split(strings.TrimSpace(log), "\n")
			out = append(out, lines[max(0, len(lines)-5):]...)
		}
	}
	return strings.Join(out, "\n  ")
}

// publishKeys puts the issuer's public documents where others read them, as
// an operator does: the control plane serves them inside of the cluster only.
func (r *run) publishKeys(ctx context.Context) error {
	public := filepath.Join(r.dir, "public")
	if _, err := r.control(ctx, "issuer", "export", public, "--issuer-url", "https://"+issuerHost, "--trust-domain", trustDomain, "--namespace", nsControl); err != nil {
		return err
	}
	return filepath.WalkDir(public, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		r.world.publish(strings.TrimPrefix(p, public), b)
		return err
	})
}

func (r *run) makeNamespaces(ctx context.Context) error {
	on := func(more ...string) map[string]string {
		m := map[string]string{labelInject: "enabled"}
		for i := 0; i < len(more); i += 2 {
			m[more[i]] = more[i+1]
		}
		return m
	}
	return errors.Join(
		r.namespace(ctx, nsAgents, on()),
		r.namespace(ctx, nsTransparent, on(labelMode, "transparent")),
		r.namespace(ctx, nsRestricted, on(psaEnforce, "restricted")),
		r.namespace(ctx, nsUpgrade, on()),
		r.namespace(ctx, nsAttacks, on()),
		r.namespace(ctx, nsAWS, on()),
		r.namespace(ctx, nsOutside, nil),
	)
}

// configure applies providers and policies: for all agents one provider of
// tokens, whose credentials the agents' own identity buys, and one of a static
// key, which the broker holds.
func (r *run) configure(ctx context.Context) error {
	ca := indent(string(r.world.ca.PEM()), 6)
	return r.apply(ctx, fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: notes-key, namespace: %[1]s}
data: {key: %[2]s}
---
apiVersion: attache.dev/v1alpha1
kind: ClusterCredentialProvider
metadata: {name: reports}
spec:
  allowedNamespaces: {selector: {matchLabels: {attache.dev/inject: enabled}}}
  destinations:
  - host: %[3]s
    addresses: ["%[7]s"]
    caBundle: |
%[6]s
  oauth2:
    issuer: https://%[4]s
    addresses: ["%[7]s"]
    caBundle: |
%[6]s
    grant: clientCredentials
    clientAuth: privateKeyJWT
    resources: ["https://%[3]s"]
    scopes: ["reports:read"]
  ttl: 1m
---
apiVersion: attache.dev/v1alpha1
kind: ClusterCredentialProvider
metadata: {name: notes}
spec:
  allowedNamespaces: {selector: {matchLabels: {attache.dev/inject: enabled}}}
  destinations:
  - host: %[5]s
    addresses: ["%[7]s"]
    caBundle: |
%[6]s
  apiKey: {secretRef: {name: notes-key, key: key}}
  inject: {as: header, name: X-Api-Key}
---
apiVersion: attache.dev/v1alpha1
kind: ClusterAccessPolicy
metadata: {name: agents}
spec:
  destinations:
  - host: %[8]s
    addresses: ["%[7]s"]
    caBundle: |
%[6]s
  - host: %[9]s
    addresses: ["%[7]s"]
    caBundle: |
%[6]s
  rules:
  - {name: reports, hosts: [%[3]s], methods: [GET], paths: ["/v1/**"], action: allow, credential: {provider: reports}}
  - {name: notes, hosts: [%[5]s], methods: [GET], paths: ["/v1/**"], action: allow, credential: {provider: notes}}
  - {name: open, hosts: [%[8]s], action: allow}
`, nsControl, base64.StdEncoding.EncodeToString([]byte(r.world.apiKey)), reportsHost, loginHost, notesHost, ca, node.Address, openHost, evilHost))
}

func indent(text string, n int) string {
	pad := strings.Repeat(" ", n)
	return pad + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n"+pad)
}
