package chart

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"strings"
	"testing"

	certsv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// requestCertificate asks for a certificate of signer for some pod on node n1.
func requestCertificate(ctx context.Context, c kubernetes.Interface, namespace, signer string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	_, err = c.CertificatesV1().PodCertificateRequests(namespace).Create(ctx, &certsv1.PodCertificateRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "forged-"},
		Spec: certsv1.PodCertificateRequestSpec{
			SignerName: signer, PodName: "agent", PodUID: types.UID("1c2d3e4f-0000-4000-8000-000000000001"), ServiceAccountName: "default",
			ServiceAccountUID: "1c2d3e4f-0000-4000-8000-000000000002", NodeName: "n1", NodeUID: "1c2d3e4f-0000-4000-8000-000000000003", StubPKCS10Request: csr,
		},
	}, metav1.CreateOptions{})
	return err
}

// A request for a pod's certificate names the pod, and not who made it: the
// guard lets only nodes ask, whom the API server holds to their own pods.
func TestCertificateGuard(t *testing.T) {
	g := newGuarded(t)
	ctx := t.Context()
	const (
		signer = "attache.dev/pod-svid"
		want   = "only nodes may ask for it"
	)
	ns := g.namespace(t, map[string]string{"attache.dev/inject": "enabled"})
	g.apply(t, `
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: test-certificates}
rules: [{apiGroups: [certificates.k8s.io], resources: [podcertificaterequests], verbs: [create]}]
`+bind("test-certificates", "eve", ns)+bind("test-certificates", "system:node:impostor", ns))
	waitActive(t, "the guard of certificates", func() string { return refusal(requestCertificate(ctx, g.eve, ns, signer)) })
	if got := refusal(requestCertificate(ctx, g.eve, ns, signer)); !strings.Contains(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	as := func(user string, groups ...string) kubernetes.Interface {
		config, err := g.User(user, groups...)
		if err != nil {
			t.Fatal(err)
		}
		return kubernetes.NewForConfigOrDie(rest.CopyConfig(config))
	}
	impostor := as("system:node:impostor")
	await(t, "until the right is known", func() bool { return requestCertificate(ctx, impostor, ns, "example.com/a") == nil })
	if got := refusal(requestCertificate(ctx, impostor, ns, signer)); !strings.Contains(got, want) {
		t.Errorf("called like a node: got %q, want %q", got, want)
	}
	if err := requestCertificate(ctx, g.eve, ns, "example.com/a"); err != nil {
		t.Errorf("another signer: %v", err)
	}
	// A node gets past us, and is refused by the API server itself: there is no such pod.
	switch err := requestCertificate(ctx, as("system:node:n1", "system:nodes"), ns, signer); {
	case err == nil:
		t.Error("a node asks for a pod that is not there")
	case refusal(err) != "":
		t.Errorf("the node: %v", err)
	}
	t.Run("without the guard", func(t *testing.T) {
		policy := policies(t, render(t, ""))["attache-certificates"]
		g.apply(t, asYAML(t, without(t, policy, want)))
		await(t, "until the request passes", func() bool { return requestCertificate(ctx, g.eve, ns, signer) == nil })
	})
}
