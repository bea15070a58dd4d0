package issuer_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	certsv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/kubernetes"
	"github.com/attache-dev/attache/webhook/inject"
)

// certified makes pods with a certificate as their identity from now on.
func (r *rig) certified() *rig {
	r.t.Helper()
	r.inject.Identity = inject.PodCertificate
	r.accept(r.inject)
	return r
}

type requestChange func(*certsv1.PodCertificateRequest)

// kubelet is a client with the rights of a pod's kubelet.
func (r *rig) kubelet(node string) client.Client {
	r.t.Helper()
	config, err := r.env.User("system:node:"+node, "system:nodes")
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme.Scheme})
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// pcr is the request that the pod's kubelet makes for key.
func (a *agent) pcr(key crypto.Signer, changes ...requestChange) *certsv1.PodCertificateRequest {
	a.r.t.Helper()
	a.read()
	ctx := a.r.t.Context()
	sa, node := &corev1.ServiceAccount{}, &corev1.Node{}
	if err := a.r.c.Get(ctx, types.NamespacedName{Namespace: a.r.ns, Name: a.pod.Spec.ServiceAccountName}, sa); err != nil {
		a.r.t.Fatal(err)
	}
	if err := a.r.c.Get(ctx, types.NamespacedName{Name: a.pod.Spec.NodeName}, node); err != nil {
		a.r.t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		a.r.t.Fatal(err)
	}
	most := int32(7200)
	q := &certsv1.PodCertificateRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "req-", Namespace: a.r.ns},
		Spec: certsv1.PodCertificateRequestSpec{
			SignerName: issuer.PodSigner, PodName: a.name, PodUID: a.pod.UID, ServiceAccountName: sa.Name, ServiceAccountUID: sa.UID,
			NodeName: types.NodeName(node.Name), NodeUID: node.UID, MaxExpirationSeconds: &most, StubPKCS10Request: csr,
		},
	}
	for _, ch := range changes {
		ch(q)
	}
	return q
}

// sign has a request answered, and returns it.
func (r *rig) sign(q *certsv1.PodCertificateRequest) *certsv1.PodCertificateRequest {
	r.t.Helper()
	at := types.NamespacedName{Namespace: q.Namespace, Name: q.Name}
	if _, err := r.server.Signer().Reconcile(r.t.Context(), reconcile.Request{NamespacedName: at}); err != nil {
		r.t.Fatalf("reconcile: %v", err)
	}
	out := &certsv1.PodCertificateRequest{}
	if err := r.c.Get(r.t.Context(), at, out); err != nil {
		r.t.Fatal(err)
	}
	return out
}

// certify plays the kubelet: it asks for a certificate of a new key.
func (a *agent) certify() (tls.Certificate, []byte) {
	a.r.t.Helper()
	key := newKey(a.r.t)
	q := a.pcr(key)
	if err := a.r.kubelet(a.r.node).Create(a.r.t.Context(), q); err != nil {
		a.r.t.Fatalf("the kubelet's request: %v", err)
	}
	q = a.r.sign(q)
	if len(q.Status.Conditions) != 1 || q.Status.Conditions[0].Type != "Issued" {
		a.r.t.Fatalf("not issued: %+v", q.Status.Conditions)
	}
	return bundle(a.r.t, key, q.Status.CertificateChain)
}

// bundle is what the kubelet writes into credentialBundlePath.
func bundle(t testing.TB, key *ecdsa.PrivateKey, chain string) (tls.Certificate, []byte) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	b := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), chain...)
	c, err := tls.X509KeyPair([]byte(chain), b)
	if err != nil {
		t.Fatal(err)
	}
	return c, b
}

func (a *agent) attestWith(c tls.Certificate) (*controlpb.AttestResponse, error) {
	resp, err := a.dial(c).Attest(a.r.t.Context(), &controlpb.AttestRequest{Instance: a.instance})
	if err == nil {
		a.svid = &c
	}
	return resp, err
}

func TestPodCertificate(t *testing.T) {
	r := start(t).certified()
	a := r.admit("a", nil, nil)
	first, _ := a.certify()
	if _, err := a.dial(first).JWT(t.Context(), &controlpb.JWTRequest{Audience: upstream}); err == nil {
		t.Error("a token before the pod is attested: the sidecar's address and start are not looked at yet")
	}
	resp, err := a.attestWith(first)
	if err != nil {
		t.Fatal(err)
	}
	if w := resp.GetWorkload(); w.GetPodUid() != string(a.pod.UID) || w.GetSpiffeId() != "spiffe://cluster.test/ns/"+r.ns+"/sa/default" || len(resp.GetCertificates()) != 0 {
		t.Errorf("got %v", w)
	}
	if _, err := a.jwt(&controlpb.JWTRequest{Audience: upstream}); err != nil {
		t.Errorf("token: %v", err)
	}

	// The kubelet renews; connections with the certificate before go on.
	second, _ := a.certify()
	if _, err := a.jwt(&controlpb.JWTRequest{Audience: upstream}); err != nil {
		t.Errorf("token by the first certificate, before the second is used: %v", err)
	}
	if _, err := a.attestWith(second); err != nil {
		t.Fatalf("attest with the second: %v", err)
	}
	for name, c := range map[string]tls.Certificate{"first": first, "second": second} {
		if _, err := a.dial(c).JWT(t.Context(), &controlpb.JWTRequest{Audience: upstream}); err != nil {
			t.Errorf("token by the %s certificate after the renewal: %v", name, err)
		}
	}
	_, err = a.attestWith(first)
	r.refusedFor(err, "second_key")
	third, _ := a.certify()
	if _, err := a.attestWith(third); err != nil {
		t.Fatal(err)
	}
	_, err = a.dial(first).JWT(t.Context(), &controlpb.JWTRequest{Audience: upstream})
	r.refusedFor(err, "second_key")

	// A sidecar that restarts has the same certificate.
	a.report("containerd://start-2", 1)
	if _, err := a.attestWith(third); err != nil {
		t.Errorf("after a restart of the sidecar: %v", err)
	}
}

// What the API server lets pass must still be what attestation asks for.
func TestPodCertificateDenied(t *testing.T) {
	r := start(t).certified()
	other := r.admit("other", nil, nil)
	for name, tt := range map[string]struct {
		before, after podChange
		change        requestChange
		key           crypto.Signer
		setup         func(*agent)
		reason        string
	}{
		"for another pod": {change: func(q *certsv1.PodCertificateRequest) { q.Spec.PodName = "other" }, reason: "pod_gone"},
		"for a pod of the same name": {change: func(q *certsv1.PodCertificateRequest) {
			q.Spec.PodUID = other.pod.UID
		}, reason: "pod_gone"},
		"for a pod that is gone":      {change: func(q *certsv1.PodCertificateRequest) { q.Spec.PodName = "nobody" }, reason: "pod_gone"},
		"for another service account": {change: func(q *certsv1.PodCertificateRequest) { q.Spec.ServiceAccountName = "admin" }, reason: "service_account"},
		"of another node":             {change: func(q *certsv1.PodCertificateRequest) { q.Spec.NodeName = "elsewhere" }, reason: "node"},
		"with annotations": {change: func(q *certsv1.PodCertificateRequest) {
			q.Spec.UnverifiedUserAnnotations = map[string]string{"example.com/a": "b"}
		}, reason: "bad_request"},
		"uninjected pod": {after: func(p map[string]any) {
			s := spec(p)
			delete(s, "initContainers")
			delete(container(p, "containers", "app"), "volumeMounts")
			s["volumes"] = []any{certificateVolume("attache-token")}
		}, reason: "sidecar"},
		"certificate in another volume": {after: func(p map[string]any) {
			s := spec(p)
			s["volumes"] = append(s["volumes"].([]any), certificateVolume("mine"))
		}, reason: "audience_elsewhere"},
		"mounted by the agent": {after: func(p map[string]any) {
			c := container(p, "containers", "app")
			c["volumeMounts"] = append(c["volumeMounts"].([]any), map[string]any{"name": "attache-token", "mountPath": "/stolen"})
		}, reason: "token_mounted_elsewhere"},
		"another sidecar": {after: func(p map[string]any) {
			container(p, "initContainers", inject.SidecarName)["args"] = []any{"proxy", "--mode=explicit", "--listen=127.0.0.1:15002", "--evil"}
		}, reason: "template"},
		"another image": {after: func(p map[string]any) {
			container(p, "initContainers", inject.SidecarName)["image"] = evilImage
		}, reason: "sidecar_digest"},
		"agent with the sidecar's user": {after: func(p map[string]any) {
			container(p, "containers", "app")["securityContext"] = map[string]any{"runAsUser": 64200}
		}, reason: "sidecar_user"},
		"pod that has a token": {setup: func(*agent) {}, reason: "identity_source"},
		"labels changed": {setup: func(a *agent) {
			a.certify()
			a.update(func(p *corev1.Pod) { p.Labels = map[string]string{"team": "other"} })
		}, reason: "labels_changed"},
		"key of another type": {key: ed25519.NewKeyFromSeed(make([]byte, 32)), reason: "UnsupportedKeyType"},
	} {
		t.Run(name, func(t *testing.T) {
			r.t = t
			r.inject.Identity = inject.PodCertificate
			if name == "pod that has a token" {
				r.inject.Identity = inject.Token
				r.accept(r.inject)
			}
			a := r.admit(strings.ReplaceAll(strings.ReplaceAll(name, "'", ""), " ", "-"), tt.before, tt.after)
			if tt.setup != nil {
				tt.setup(a)
			}
			key := tt.key
			if key == nil {
				key = newKey(t)
			}
			q := a.pcr(key)
			if tt.change != nil {
				tt.change(q)
			}
			r.create(q) // as an administrator, whom the API server does not hold to a node
			got := r.sign(q)
			if len(got.Status.Conditions) != 1 || got.Status.Conditions[0].Type != "Denied" || got.Status.Conditions[0].Reason != tt.reason {
				t.Errorf("got %+v, want Denied for %s", got.Status.Conditions, tt.reason)
			}
			if got.Status.CertificateChain != "" {
				t.Error("has a certificate")
			}
		})
	}
	r.t = t
	// The API server itself holds a node to its own pods.
	q := other.pcr(newKey(t))
	r.create(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "foreign-" + r.ns}})
	if err := r.kubelet("foreign-"+r.ns).Create(t.Context(), q); err == nil {
		t.Error("a node asks for a pod of another node")
	}
}

func certificateVolume(name string) map[string]any {
	return map[string]any{"name": name, "projected": map[string]any{"sources": []any{map[string]any{"podCertificate": map[string]any{
		"signerName": issuer.PodSigner, "keyType": "ECDSAP256", "credentialBundlePath": "credentials.pem",
	}}}}}
}

// The other way in is closed, for each kind of pod; so is that of a retired template.
func TestPodCertificateAndToken(t *testing.T) {
	r := start(t)
	old := r.admit("old", nil, nil)
	old.mustAttest()
	r.certified()
	a := r.admit("a", nil, nil)
	_, err := a.attest()
	r.refusedFor(err, "identity_source")
	cert, _ := a.certify()
	_, err = a.attest()
	r.refusedFor(err, "identity_source")
	if _, err := a.attestWith(cert); err != nil {
		t.Fatal(err)
	}
	// The SVID of a pod with a token does not attest without one.
	_, err = old.attestWith(*old.svid)
	r.refusedFor(err, "identity_source")
	_, err = a.dial().Attest(t.Context(), &controlpb.AttestRequest{Instance: a.instance})
	r.refusedFor(err, "token")

	moved := *a
	moved.address = nextAddress()
	_, err = moved.attestWith(cert)
	r.refusedFor(err, "address")

	set, err := r.set.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range set {
		if _, err := r.set.Retire(t.Context(), m.Name()); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "a refusal of the retired template", func() bool {
		_, err := a.attestWith(cert)
		return err != nil && r.lastEvent().Reason == "template"
	})
	q := a.pcr(newKey(t))
	r.create(q)
	if got := r.sign(q); got.Status.Conditions[0].Type != "Denied" || got.Status.Conditions[0].Reason != "template" {
		t.Errorf("a retired template: %+v", got.Status.Conditions)
	}
}

// What is not there yet, and another signer's, is left alone.
func TestPodCertificateLater(t *testing.T) {
	up := newAuthority(t)
	r := start(t, below(up)).certified()
	a := r.admit("a", nil, nil)
	up.mu.Lock()
	was := up.now
	up.now = nil
	up.mu.Unlock()
	q := a.pcr(newKey(t))
	r.create(q)
	if got := r.sign(q); len(got.Status.Conditions) != 0 {
		t.Errorf("answered without an authority: %+v", got.Status.Conditions)
	}
	up.mu.Lock()
	up.now = was
	up.mu.Unlock()
	got := r.sign(q)
	if len(got.Status.Conditions) != 1 || got.Status.Conditions[0].Type != "Issued" || strings.Count(got.Status.CertificateChain, "BEGIN") != 2 {
		t.Errorf("once there is one: %+v", got.Status)
	}
	// What has its answer is not signed again.
	n := r.count("pod_certificate", "issued")
	if again := r.sign(q); again.Status.CertificateChain != got.Status.CertificateChain || r.count("pod_certificate", "issued") != n {
		t.Error("signed twice")
	}
	foreign := a.pcr(newKey(t), func(q *certsv1.PodCertificateRequest) { q.Spec.SignerName = "example.com/other" })
	r.create(foreign)
	if got := r.sign(foreign); len(got.Status.Conditions) != 0 {
		t.Error("answered another signer's request")
	}
}

// The sidecar's own side: it takes over what the kubelet writes.
func TestPodCertificateSource(t *testing.T) {
	r := start(t).certified()
	a := r.admit("a", nil, nil)
	file := filepath.Join(t.TempDir(), "credentials.pem")
	write := func(b []byte) {
		if err := os.WriteFile(file+".new", b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	_, b := a.certify()
	write(b)
	s := a.source(t, func(c *kubernetes.Config) { c.TokenFile, c.CertificateFile = "", file })
	s.mustWait(t)
	w := s.Workload()
	first, err := s.X509(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	if life := time.Until(s.Until()); life > time.Hour || life < 50*time.Minute {
		t.Errorf("the identity lasts %v", life)
	}
	if _, err := s.JWT(t.Context(), identity.JWTRequest{Workload: w, Audience: upstream}); err != nil {
		t.Fatal(err)
	}
	_, b = a.certify()
	write(b)
	eventually(t, "the kubelet's new certificate is used", func() bool {
		now, err := s.X509(t.Context(), w)
		return err == nil && now.Certificates[0].SerialNumber.Cmp(first.Certificates[0].SerialNumber) != 0
	})
	if _, err := s.JWT(t.Context(), identity.JWTRequest{Workload: w, Audience: upstream}); err != nil {
		t.Errorf("a token after the renewal: %v", err)
	}
}
