package issuer_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	certsv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/test/cluster"
)

// replica opens the keys in a namespace with a clock of its own.
func replica(t *testing.T, c client.Client, ns string, now func() time.Time) *issuer.Keys {
	t.Helper()
	k, err := issuer.OpenKeys(t.Context(), issuer.KeysConfig{
		Client: c, Namespace: ns, TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.test"), Now: now,
	})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func admin(t *testing.T) (*cluster.Env, client.Client) {
	t.Helper()
	env := cluster.API(t)
	c, err := client.New(env.Config, client.Options{Scheme: scheme.Scheme})
	if err != nil {
		t.Fatal(err)
	}
	return env, c
}

func kids(t *testing.T, k *issuer.Keys) []string {
	t.Helper()
	var out []string
	for _, j := range k.Issuer().Keys(t.Context()).Keys {
		out = append(out, j.KeyID)
	}
	slices.Sort(out)
	return out
}

func sign(t *testing.T, k *issuer.Keys) string {
	t.Helper()
	j, err := k.Issuer().JWT(t.Context(), identity.JWTRequest{Workload: &identity.Workload{ID: spiffeid.RequireFromString("spiffe://cluster.test/ns/a/sa/b")}, Audience: "x"})
	if err != nil {
		t.Fatal(err)
	}
	kid, _, _ := strings.Cut(headerOf(t, j.Token.Reveal()), " ")
	return kid
}

// TestReplicasShareKeys: replicas that start at once agree on the keys, and a
// Secret that the chart made empty is filled.
func TestReplicasShareKeys(t *testing.T) {
	env, c := admin(t)
	ns := env.Namespace(t, nil)
	sec := &corev1.Secret{}
	sec.Name, sec.Namespace = issuer.DefaultSecret, ns
	if err := c.Create(t.Context(), sec); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var all []*issuer.Keys
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			k, err := issuer.OpenKeys(t.Context(), issuer.KeysConfig{Client: c, Namespace: ns, TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.test")})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, k)
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for _, k := range all {
		if !slices.Equal(kids(t, k), kids(t, all[0])) || string(k.ControlRoots()) != string(all[0].ControlRoots()) {
			t.Error("replicas have different keys")
		}
	}
	cm := &corev1.ConfigMap{}
	if err := c.Get(t.Context(), types.NamespacedName{Namespace: ns, Name: issuer.DefaultSecret}, cm); err != nil {
		t.Fatal(err)
	}
	if cm.Data[issuer.RootsKey] != string(all[0].ControlRoots()) || strings.Contains(cm.Data[issuer.RootsKey], "PRIVATE") {
		t.Errorf("the ConfigMap has %q", cm.Data)
	}
}

// TestRotation goes through two years by a clock: a key is public a day before
// it signs, on all replicas; and pods that know only the first root verify the
// control plane after two rotations of it.
func TestRotation(t *testing.T) {
	t.Parallel()
	env, c := admin(t)
	ns := env.Namespace(t, nil)
	var now time.Time
	start := time.Now()
	clock := func() time.Time { return now }
	now = start
	a, b := replica(t, c, ns, clock), replica(t, c, ns, clock)
	first := a.ControlRoots()
	seen := map[string]time.Time{} // kid -> first published by both
	for _, k := range kids(t, a) {
		seen[k] = start.Add(-25 * time.Hour) // the first key cannot wait
	}
	rotations, overlap := map[string]bool{}, false
	for ; now.Before(start.Add(2*366*24*time.Hour + 48*time.Hour)); now = now.Add(60 * time.Hour) {
		for _, k := range []*issuer.Keys{a, b} {
			if err := k.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(kids(t, a), kids(t, b)) && !equalAfterSync(t, a, b) {
			t.Fatalf("at %v replicas publish different keys", now.Sub(start))
		}
		for _, k := range kids(t, b) {
			if _, ok := seen[k]; !ok {
				seen[k] = now
			}
		}
		kid := sign(t, a)
		rotations[kid] = true
		if since, ok := seen[kid]; !ok || now.Sub(since) < 24*time.Hour {
			t.Fatalf("key %s signs %v after it was published", kid, now.Sub(since))
		}
		overlap = overlap || strings.Count(string(a.ControlRoots()), "BEGIN") > 1
	}
	if len(rotations) < 20 || !overlap {
		t.Errorf("%d keys signed; both roots at a time: %v", len(rotations), overlap)
	}
	for name, roots := range map[string][]byte{"root of two years ago": first, "root of now": a.ControlRoots()} {
		if err := handshake(t, a, roots, now); err != nil {
			t.Errorf("a pod with the %s: %v", name, err)
		}
	}
	if strings.Contains(string(a.ControlRoots()), string(first)) {
		t.Error("new pods still get the first root")
	}
	other := replica(t, c, env.Namespace(t, nil), clock)
	if handshake(t, a, other.ControlRoots(), now) == nil {
		t.Error("verified by another cluster's root")
	}
}

func equalAfterSync(t *testing.T, a, b *issuer.Keys) bool {
	t.Helper()
	if err := a.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	return slices.Equal(kids(t, a), kids(t, b))
}

// handshake connects as a sidecar with these roots would at that time.
func handshake(t *testing.T, k *issuer.Keys, roots []byte, now time.Time) error {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots) {
		t.Fatal("no roots")
	}
	client, server := net.Pipe()
	defer func() { _ = client.Close(); _ = server.Close() }()
	done := make(chan error, 1)
	go func() {
		done <- tls.Server(server, k.ServerTLS("attache-control.attache-system.svc")).HandshakeContext(t.Context())
	}()
	c := tls.Client(client, &tls.Config{RootCAs: pool, ServerName: "attache-control.attache-system.svc", Time: func() time.Time { return now }, MinVersion: tls.VersionTLS13})
	err := c.HandshakeContext(t.Context())
	_ = client.Close()
	<-done
	return err
}

// TestSecretLost: somebody deletes the Secret, and the running control plane
// writes its keys again, instead of new ones that no pod trusts.
func TestSecretLost(t *testing.T) {
	env, c := admin(t)
	ns := env.Namespace(t, nil)
	k := replica(t, c, ns, time.Now)
	was := kids(t, k)
	sec := &corev1.Secret{}
	if err := c.Get(t.Context(), types.NamespacedName{Namespace: ns, Name: issuer.DefaultSecret}, sec); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), sec); err != nil {
		t.Fatal(err)
	}
	if err := k.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := kids(t, replica(t, c, ns, time.Now)); !slices.Equal(got, was) {
		t.Errorf("a new replica has keys %v, want %v", got, was)
	}
}

// TestDamagedSecret: what cannot be read is not replaced.
func TestDamagedSecret(t *testing.T) {
	env, c := admin(t)
	ns := env.Namespace(t, nil)
	k := replica(t, c, ns, time.Now)
	sec := &corev1.Secret{}
	if err := c.Get(t.Context(), types.NamespacedName{Namespace: ns, Name: issuer.DefaultSecret}, sec); err != nil {
		t.Fatal(err)
	}
	good := string(sec.Data["schedule.json"])
	for name, bad := range map[string]string{
		"no JSON": "{", "future version": strings.Replace(good, `"version": 1`, `"version": 2`, 1),
		"no keys": `{"version":1}`, "broken key": strings.Replace(good, "PRIVATE KEY-----\\nM", "PRIVATE KEY-----\\nN", 1),
	} {
		sec.Data["schedule.json"] = []byte(bad)
		if err := c.Update(t.Context(), sec); err != nil {
			t.Fatal(err)
		}
		err := k.Sync(t.Context())
		if err == nil {
			t.Errorf("%s: read", name)
			continue
		}
		if strings.Contains(err.Error(), "PRIVATE KEY") {
			t.Errorf("%s: the error holds a key", name)
		}
		if kids(t, k) == nil {
			t.Errorf("%s: the keys at hand are gone", name)
		}
	}
}

// TestClusterTrustBundle: the roots are one, if wished, and follow a rotation.
func TestClusterTrustBundle(t *testing.T) {
	env, c := admin(t)
	signer := "attache.test/" + env.Namespace(t, nil)
	var ahead time.Duration
	k, err := issuer.OpenKeys(t.Context(), issuer.KeysConfig{
		Client: c, Namespace: env.Namespace(t, nil), TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.test"), TrustBundle: signer,
		Now: func() time.Time { return time.Now().Add(ahead) },
	})
	if err != nil {
		t.Fatal(err)
	}
	bundle := func() string {
		b := &certsv1.ClusterTrustBundle{}
		if err := c.Get(t.Context(), types.NamespacedName{Name: strings.ReplaceAll(signer, "/", ":") + ":roots"}, b); err != nil {
			t.Fatal(err)
		}
		return b.Spec.TrustBundle
	}
	if got := bundle(); got != string(k.ControlRoots()) || strings.Count(got, "BEGIN") != 1 {
		t.Errorf("bundle: %s", got)
	}
	ahead = 365*24*time.Hour - time.Hour // a successor is published
	if err := k.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := bundle(); got != string(k.ControlRoots()) || strings.Count(got, "BEGIN") != 2 {
		t.Errorf("bundle while the root is replaced: %s", got)
	}
}
