package issuer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/identity/kubernetes"
)

// answers of a review that the API server never gives, or only another
// authenticator would.
func TestReadReview(t *testing.T) {
	good := func() authv1.TokenReviewStatus {
		return authv1.TokenReviewStatus{
			Authenticated: true, Audiences: []string{"attache.dev"},
			User: authv1.UserInfo{Username: "system:serviceaccount:ns:sa", Extra: map[string]authv1.ExtraValue{
				extraPodName: {"pod"}, extraPodUID: {"uid"}, extraNodeName: {"node"},
			}},
		}
	}
	if b, err := readReview(good(), "attache.dev"); err != nil || b != (bound{"ns", "sa", "pod", "uid", "node"}) {
		t.Fatalf("got %+v, %v", b, err)
	}
	for name, tt := range map[string]struct {
		change func(*authv1.TokenReviewStatus)
		reason string
	}{
		"not authenticated":   {func(s *authv1.TokenReviewStatus) { s.Authenticated = false }, reasonToken},
		"no audiences known":  {func(s *authv1.TokenReviewStatus) { s.Audiences = nil }, reasonToken},
		"other audiences":     {func(s *authv1.TokenReviewStatus) { s.Audiences = []string{"attache.dev.evil"} }, reasonToken},
		"a user":              {func(s *authv1.TokenReviewStatus) { s.User.Username = "alice" }, reasonToken},
		"a user with a colon": {func(s *authv1.TokenReviewStatus) { s.User.Username = "alice:bob" }, reasonToken},
		"a node":              {func(s *authv1.TokenReviewStatus) { s.User.Username = "system:node:a" }, reasonToken},
		"no name":             {func(s *authv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:ns:" }, reasonToken},
		"no pod":              {func(s *authv1.TokenReviewStatus) { delete(s.User.Extra, extraPodName) }, reasonUnbound},
		"no uid":              {func(s *authv1.TokenReviewStatus) { delete(s.User.Extra, extraPodUID) }, reasonUnbound},
		"two uids":            {func(s *authv1.TokenReviewStatus) { s.User.Extra[extraPodUID] = []string{"a", "b"} }, reasonUnbound},
	} {
		t.Run(name, func(t *testing.T) {
			st := good()
			tt.change(&st)
			if _, err := readReview(st, "attache.dev"); err == nil || reasonOf(err).reason != tt.reason {
				t.Errorf("got %v, want %s", err, tt.reason)
			}
		})
	}
}

func redirectAs(uid int64) corev1.Container {
	return corev1.Container{Name: "redirect", SecurityContext: &corev1.SecurityContext{RunAsUser: &uid}}
}

// TestFacts: what a token says of its pod must be what the pod is, also where
// the API server would have refused before.
func TestFacts(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	good := func() *facts {
		p := &corev1.Pod{}
		p.Name, p.Namespace, p.UID = "pod", "ns", types.UID("uid")
		p.Spec.ServiceAccountName, p.Spec.NodeName = "sa", "node"
		p.Spec.InitContainers = []corev1.Container{{Name: "sidecar", RestartPolicy: &always}}
		p.Status.PodIP = "10.0.0.1"
		p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "sidecar", ContainerID: "c", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
		n := &corev1.Namespace{}
		n.Name, n.Labels = "ns", map[string]string{api.InjectLabel: "enabled"}
		return &facts{
			token: &bound{"ns", "sa", "pod", "uid", "node"}, pod: p, ns: n, address: netip.MustParseAddr("10.0.0.1"), audience: "attache.dev",
			own: Names{Container: "sidecar", Redirect: "redirect", Token: "token", UID: 64200},
		}
	}
	if err := runChecks(good()); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*facts)
		reason string
	}{
		"another pod of the name":   {func(f *facts) { f.token.uid = "other" }, reasonPod},
		"another service account":   {func(f *facts) { f.token.account = "other" }, reasonAccount},
		"another namespace":         {func(f *facts) { f.token.namespace = "other" }, reasonAccount},
		"another node":              {func(f *facts) { f.token.node = "other" }, reasonNode},
		"no node in the token":      {func(f *facts) { f.token.node = "" }, reasonNode},
		"namespace object of other": {func(f *facts) { f.ns.Name = "other" }, reasonNamespace},
		"disabled":                  {func(f *facts) { f.ns.Labels[api.InjectLabel] = "disabled" }, reasonNamespace},
		"address that is a prefix":  {func(f *facts) { f.address = netip.MustParseAddr("10.0.0.11") }, reasonAddress},
		"two sidecars": {func(f *facts) {
			f.pod.Spec.InitContainers = append(f.pod.Spec.InitContainers, f.pod.Spec.InitContainers[0])
		}, reasonSidecar},
		"image of the sidecar's user": {func(f *facts) {
			f.pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "app", User: &corev1.ContainerUser{Linux: &corev1.LinuxContainerUser{UID: 64200}}}}
		}, reasonUser},
		"ephemeral image of the sidecar's user": {func(f *facts) {
			f.pod.Status.EphemeralContainerStatuses = []corev1.ContainerStatus{{Name: "debug", User: &corev1.ContainerUser{Linux: &corev1.LinuxContainerUser{UID: 64200}}}}
		}, reasonUser},
		"redirect of the sidecar's user that stays": {func(f *facts) {
			c := redirectAs(64200)
			c.RestartPolicy = &always
			f.pod.Spec.InitContainers = append(f.pod.Spec.InitContainers, c)
		}, reasonUser},
		"redirect of the sidecar's user among the containers": {func(f *facts) {
			f.pod.Spec.Containers = append(f.pod.Spec.Containers, redirectAs(64200))
		}, reasonUser},
		"sidecar among the containers": {func(f *facts) {
			f.pod.Spec.Containers, f.pod.Spec.InitContainers = f.pod.Spec.InitContainers, nil
		}, reasonSidecar},
	} {
		t.Run(name, func(t *testing.T) {
			f := good()
			tt.change(f)
			if err := runChecks(f); err == nil || reasonOf(err).reason != tt.reason {
				t.Errorf("got %v, want %s", err, tt.reason)
			}
		})
	}
	f := good()
	f.pod.Spec.InitContainers = append(f.pod.Spec.InitContainers, redirectAs(64200))
	f.pod.Status.InitContainerStatuses = append(f.pod.Status.InitContainerStatuses, corev1.ContainerStatus{Name: "redirect", User: &corev1.ContainerUser{Linux: &corev1.LinuxContainerUser{UID: 64200}}})
	if err := runChecks(f); err != nil {
		t.Errorf("a redirect that is not root: %v", err)
	}
	f = good()
	f.pod.Status.PodIPs = []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "2001:db8::1"}}
	f.address = netip.MustParseAddr("2001:db8::1")
	if err := runChecks(f); err != nil {
		t.Errorf("the second address of a dual-stack pod: %v", err)
	}
}

func TestImageDigest(t *testing.T) {
	d := "sha256:" + strings.Repeat("a", 64)
	for ref, want := range map[string]string{
		"r.example/a@" + d: d, "r.example/a:1@" + d: d, d: d, "docker-pullable://r.example/a@" + d: d, "docker://" + d: d,
		"r.example/a:1": "", "": "", "r.example/a@sha256:abc": "", "r.example/a@" + d + "0": "", "r.example/a@sha512:" + strings.Repeat("a", 128): "",
		"r.example/x" + d: "", "r.example/a@sha256:" + strings.Repeat("A", 64): "",
	} {
		if got := imageDigest(ref); got != want {
			t.Errorf("%s: got %q, want %q", ref, got, want)
		}
	}
	for ref, want := range map[string]string{"a": "a", "a:1": "a", "r:5000/a": "r:5000/a", "r:5000/a:1@" + d: "r:5000/a", "a@" + d: "a"} {
		if got := repository(ref); got != want {
			t.Errorf("repository of %s: got %q, want %q", ref, got, want)
		}
	}
}

func TestCSRKeys(t *testing.T) {
	request := func(key any) []byte {
		b, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: kubernetes.Binding("t", "i")}}, key)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readCSR(request(p256), "t", "i"); err != nil {
		t.Errorf("P-256: %v", err)
	}
	for name, b := range map[string][]byte{"P-384": request(p384), "RSA": request(weak), "empty": nil, "long": make([]byte, maxCSR+1), "trailing": append(request(p256), 0)} {
		if _, err := readCSR(b, "t", "i"); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// FuzzReadCSR: nothing but a request of the key that signed it, for this token
// and instance, is accepted, and nothing panics.
func FuzzReadCSR(f *testing.F) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	good, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: kubernetes.Binding("token", "instance")}}, k)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, "token", "instance")
	f.Add(good, "token", "other")
	f.Add(good[:40], "token", "instance")
	f.Add([]byte("0\x00"), "", "")
	f.Fuzz(func(t *testing.T, der []byte, token, instance string) {
		r, err := readCSR(der, token, instance)
		if err != nil {
			if c := status.Code(err); c != codes.InvalidArgument && c != codes.PermissionDenied {
				t.Errorf("answered %v", c)
			}
			return
		}
		again, err := x509.ParseCertificateRequest(der)
		if err != nil || again.CheckSignature() != nil || again.Subject.CommonName != kubernetes.Binding(token, instance) || !r.pub.Equal(again.PublicKey) {
			t.Errorf("accepted %x", der)
		}
	})
}

// FuzzReadClaims: no claim of the issuer's passes.
func FuzzReadClaims(f *testing.F) {
	for _, s := range []string{`{"a":1}`, `{"sub":"x"}`, `{"SUB":"x"}`, `[]`, `null`, `{"attache":{}}`, `{"a":{"sub":1}}`, `{`, ``} {
		f.Add([]byte(s), "https://a", int32(60))
	}
	f.Fuzz(func(t *testing.T, claims []byte, audience string, ttl int32) {
		out, err := readClaims(&controlpb.JWTRequest{Audience: audience, Claims: claims, TtlSeconds: ttl})
		if err != nil {
			return
		}
		for k := range out {
			switch strings.ToLower(k) {
			case "iss", "sub", "aud", "exp", "nbf", "iat", "jti", postureClaim:
				t.Errorf("claim %q passed", k)
			}
		}
		if audience == "" || ttl < 0 || out == nil {
			t.Errorf("accepted audience %q, lifetime %d, claims %v", audience, ttl, out)
		}
	})
}

// FuzzImageDigest: what is taken for a digest is one, and ends the reference.
func FuzzImageDigest(f *testing.F) {
	f.Add("a@sha256:" + strings.Repeat("a", 64))
	f.Add("sha256:")
	f.Fuzz(func(t *testing.T, ref string) {
		if d := imageDigest(ref); d != "" && (len(d) != 71 || !strings.HasSuffix(ref, d)) {
			t.Errorf("%q gave %q", ref, d)
		}
	})
}
