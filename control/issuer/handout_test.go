package issuer_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/control/peer"
	idissuer "github.com/attache-dev/attache/identity/issuer"
)

// A workload that has only the Secret serves to replicas of the control plane,
// whose certificates it verifies; and knows which replica it is.
func TestHandout(t *testing.T) {
	env, c := admin(t)
	ns := env.Namespace(t, nil)
	var mu sync.Mutex
	now := time.Now()
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	k := replica(t, c, ns, clock)
	h := &issuer.Handout{Keys: k, Secret: "attache-audit-cert", Hosts: []string{"attache-audit." + ns + ".svc", "attache-audit"}}
	read := func() *corev1.Secret {
		t.Helper()
		if err := h.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		sec := &corev1.Secret{}
		if err := c.Get(t.Context(), types.NamespacedName{Namespace: ns, Name: h.Secret}, sec); err != nil {
			t.Fatal(err)
		}
		return sec
	}
	sec := read()
	self := &issuer.Self{Keys: k, ServiceAccount: "attache-control", ID: "control/attache-control-1"}
	pod, err := shake(t, sec, self.TLS("attache-audit"))
	if err != nil || pod.UID != "control/attache-control-1" || pod.Namespace != ns || pod.ServiceAccount != "attache-control" {
		t.Fatalf("%+v, %v", pod, err)
	}
	if _, err := shake(t, sec, self.TLS("another.host")); err == nil {
		t.Error("a certificate for another host was taken")
	}
	other := replica(t, c, env.Namespace(t, nil), clock)
	if _, err := shake(t, sec, (&issuer.Self{Keys: other, ServiceAccount: "a", ID: "control/x"}).TLS("attache-audit")); err == nil {
		t.Error("the certificate of another authority was taken")
	}
	// It is left alone until half of its life, and whoever damages it mends it.
	if again := read(); again.ResourceVersion != sec.ResourceVersion {
		t.Error("written without need")
	}
	mu.Lock()
	now = now.Add(40 * time.Minute)
	mu.Unlock()
	if again := read(); again.ResourceVersion == sec.ResourceVersion {
		t.Error("not renewed at half of its life")
	}
	sec = read()
	sec.Data = nil
	if err := c.Update(t.Context(), sec); err != nil {
		t.Fatal(err)
	}
	if len(read().Data[corev1.TLSPrivateKeyKey]) == 0 {
		t.Error("an empty Secret was not filled")
	}

	sig, err := self.Sign([]byte("text"))
	if err != nil || sig.Certificates == "" {
		t.Fatalf("%+v, %v", sig, err)
	}
	var _ func([]byte) (audit.Signature, error) = self.Sign
}

// shake connects with a client's configuration to a server that has only the
// Secret, and returns whom it saw.
func shake(t *testing.T, sec *corev1.Secret, client *tls.Config) (peer.Pod, error) {
	t.Helper()
	cert, err := tls.X509KeyPair(sec.Data[corev1.TLSCertKey], sec.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(sec.Data[issuer.ClientsKey]) {
		t.Fatal("no roots of clients")
	}
	a, b := net.Pipe()
	server := tls.Server(a, &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13})
	done := make(chan error, 1)
	go func() {
		err := server.HandshakeContext(t.Context())
		if err != nil {
			_ = a.Close()
		}
		done <- err
	}()
	conn := tls.Client(b, client)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err = conn.HandshakeContext(ctx)
	if err != nil {
		_ = b.Close()
		<-done
		return peer.Pod{}, err
	}
	if err := <-done; err != nil {
		return peer.Pod{}, err
	}
	chains := server.ConnectionState().VerifiedChains
	if len(chains) == 0 {
		return peer.Pod{}, errors.New("no verified chain")
	}
	return peer.FromCertificate(chains[0][0], time.Now())
}

// What a replica writes into the keys is told, and what it only reads is not.
func TestChangedKeysAreTold(t *testing.T) {
	env, c := admin(t)
	ns := env.Namespace(t, nil)
	now := time.Now()
	var told [][2]int
	config := issuer.KeysConfig{
		Client: c, Namespace: ns, TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.test"), Now: func() time.Time { return now },
		Changed: func(_ context.Context, before, after []idissuer.KeyInfo) {
			told = append(told, [2]int{len(before), len(after)})
		},
	}
	k, err := issuer.OpenKeys(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if len(told) != 1 || told[0] != [2]int{0, 3} {
		t.Fatalf("told %v: a first key for each use", told)
	}
	if _, err := issuer.OpenKeys(t.Context(), config); err != nil || len(told) != 1 {
		t.Errorf("told %v, %v: of keys that were there", told, err)
	}
	now = now.Add(29*24*time.Hour + time.Hour)
	if err := k.Sync(t.Context()); err != nil || len(told) != 2 || told[1][1] <= told[1][0] {
		t.Errorf("told %v, %v: a successor is published", told, err)
	}
}
