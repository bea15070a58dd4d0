package issuer_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/identity/kubernetes"
	"github.com/attache-dev/attache/test/cluster"
	"github.com/attache-dev/attache/webhook/inject"
)

const (
	audience  = "attache.dev"
	upstream  = "https://api.example"
	goodImage = "registry.example/attache-sidecar@sha256:1111111111111111111111111111111111111111111111111111111111111111"
	evilImage = "registry.example/attache-sidecar@sha256:2222222222222222222222222222222222222222222222222222222222222222"
	appDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
)

// templateOf is the hash that admission and issuer agree on.
func templateOf(pod map[string]any) (string, error) {
	t, err := inject.TemplateOf(pod)
	return t.Hash, err
}

// rig is a control plane on a real API server.
type rig struct {
	t       testing.TB
	env     *cluster.Env
	c       client.Client
	control string // namespace
	ns      string // of agents, opted in
	node    string
	keys    *issuer.Keys
	server  *issuer.Server
	set     *issuer.Set
	metrics *prometheus.Registry
	addr    string
	stop    func() // ends the gRPC server
	inject  inject.Config

	mu        sync.Mutex // guards what follows
	events    []issuer.Event
	audiences []string
	clients   []string
	ahead     atomic.Int64 // of the server's clock, in nanoseconds
	log       bytes.Buffer
}

// addresses gives each pod of this process one of its own.
var addresses atomic.Uint32

func nextAddress() string {
	n := addresses.Add(1)
	return fmt.Sprintf("127.2.%d.%d", n/250, n%250+1)
}

type change func(*issuer.Config, *issuer.KeysConfig)

func start(t *testing.T, changes ...change) *rig {
	t.Helper()
	env := cluster.API(t)
	c, err := client.New(env.Config, client.Options{Scheme: scheme.Scheme})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, env: env, c: c, metrics: prometheus.NewRegistry(), audiences: []string{upstream}}
	r.control = env.Namespace(t, nil)
	r.ns = env.Namespace(t, map[string]string{"attache.dev/inject": "enabled"})
	r.node = "node-" + r.ns
	r.create(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: r.node}})
	r.serve(changes...)
	r.inject = inject.Config{Image: goodImage, Control: r.addr, ControlCA: string(r.keys.ControlRoots()), Nonce: "0123456789abcdef", Mode: inject.Explicit, Modes: []inject.Mode{inject.Explicit, inject.Transparent}}
	r.accept(r.inject)
	return r
}

func (r *rig) now() time.Time { return time.Now().Add(time.Duration(r.ahead.Load())) }

// accept puts the templates of c into the accepted set, as admission does.
func (r *rig) accept(c inject.Config) {
	r.t.Helper()
	list, err := c.Templates()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, t := range list {
		if err := r.set.Accept(r.t.Context(), t.Hash, t.Image); err != nil {
			r.t.Fatal(err)
		}
	}
}

// serve starts a replica of the control plane.
func (r *rig) serve(changes ...change) {
	r.t.Helper()
	log := slog.New(slog.NewTextHandler(&lockedWriter{r: r}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	kc := issuer.KeysConfig{Client: r.c, Namespace: r.control, TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.test"), Log: log, Now: r.now}
	sc := issuer.Config{
		Client: r.c, Namespace: r.control, Log: log, Metrics: r.metrics, Now: r.now,
		Sidecar:   issuer.Names{Container: inject.SidecarName, Redirect: inject.RedirectName, UID: 64200, Token: "attache-token", Private: []string{"attache-token", "attache-state", "attache-spool", "attache-none"}},
		Audiences: func(string) []string { r.mu.Lock(); defer r.mu.Unlock(); return r.audiences },
		ClientIDs: func(string) []string { r.mu.Lock(); defer r.mu.Unlock(); return r.clients },
		Record: func(_ context.Context, e issuer.Event) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, e)
			return nil
		},
		JWTBurst: 1000, AttestBurst: 1000,
	}
	for _, ch := range changes {
		ch(&sc, &kc)
	}
	var err error
	if r.keys, err = issuer.OpenKeys(r.t.Context(), kc); err != nil {
		r.t.Fatal(err)
	}
	if r.set, err = issuer.NewSet(r.c, r.control, templateOf, log); err != nil {
		r.t.Fatal(err)
	}
	sc.Issuer, sc.Templates = r.keys.Issuer(), r.set
	if r.server, err = issuer.New(sc); err != nil {
		r.t.Fatal(err)
	}
	r.listen()
}

func (r *rig) listen() {
	r.t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(r.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(r.keys.ServerTLS("127.0.0.1"))), grpc.UnaryInterceptor(r.asPeer))
	r.server.Register(g)
	r.addr = ln.Addr().String()
	go func() { _ = g.Serve(ln) }() // until Stop
	r.stop = g.Stop
	if t, ok := r.t.(*testing.T); ok {
		t.Cleanup(g.Stop)
	}
}

type lockedWriter struct{ r *rig }

func (w *lockedWriter) Write(b []byte) (int, error) {
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	return w.r.log.Write(b)
}

// keysAuthority is the X.509 authority of now.
func (r *rig) keysAuthority(t testing.TB) *x509.Certificate {
	t.Helper()
	b, err := r.keys.Issuer().Bundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return b.X509Authorities()[0]
}

func (r *rig) logged() string { r.mu.Lock(); defer r.mu.Unlock(); return r.log.String() }

// asPeer lets a test ask, by a JWT request with this audience, what another
// service would be told of its caller.
func (r *rig) asPeer(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if q, ok := req.(*controlpb.JWTRequest); !ok || q.Audience != peerAudience {
		return next(ctx, req)
	}
	p, err := r.server.Peer(ctx)
	return &controlpb.JWTResponse{Id: p.UID, Token: p.ID.String()}, err
}

const peerAudience = "who am I"

// lastEvent is the last issuance or refusal.
func (r *rig) lastEvent() issuer.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.events) == 0 {
		return issuer.Event{}
	}
	return r.events[len(r.events)-1]
}

func (r *rig) create(o client.Object) {
	r.t.Helper()
	if err := r.c.Create(r.t.Context(), o); err != nil {
		r.t.Fatal(err)
	}
}

// agent is a pod with its sidecar, as the kubelet would report it, and what
// the sidecar has.
type agent struct {
	r        *rig
	name     string
	pod      *corev1.Pod
	address  string
	key      *ecdsa.PrivateKey
	instance string
	token    string
	svid     *tls.Certificate
}

type podChange func(pod map[string]any)

// spec walks into a pod.
func spec(pod map[string]any) map[string]any { return pod["spec"].(map[string]any) }

func labelled(k, v string) podChange {
	return func(p map[string]any) { p["metadata"].(map[string]any)["labels"] = map[string]any{k: v} }
}

// admit makes a pod: before and after change it as an author and as somebody
// past admission could.
func (r *rig) admit(name string, before, after podChange) *agent {
	r.t.Helper()
	pod := map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": name, "namespace": r.ns},
		"spec": map[string]any{
			"nodeName":   r.node,
			"containers": []any{map[string]any{"name": "app", "image": "registry.example/agent:1"}},
		},
	}
	if before != nil {
		before(pod)
	}
	pod = decode(r.t, pod)
	res, err := inject.Pod(pod, map[string]any{"labels": map[string]any{"attache.dev/inject": "enabled"}}, r.inject)
	if err != nil {
		r.t.Fatal(err)
	}
	if after != nil {
		after(res.Pod)
	}
	b, err := json.Marshal(res.Pod)
	if err != nil {
		r.t.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(b); err != nil {
		r.t.Fatal(err)
	}
	r.create(u)
	a := &agent{r: r, name: name, address: nextAddress(), key: newKey(r.t), instance: newInstance()}
	a.report("containerd://start-1", 0)
	a.token = a.newToken(audience)
	return a
}

func decode(t testing.TB, o map[string]any) map[string]any {
	t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var out map[string]any
	if err := d.Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newInstance() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// read refreshes the pod.
func (a *agent) read() {
	a.r.t.Helper()
	a.pod = &corev1.Pod{}
	if err := a.r.c.Get(a.r.t.Context(), types.NamespacedName{Namespace: a.r.ns, Name: a.name}, a.pod); err != nil {
		a.r.t.Fatal(err)
	}
}

// report writes the pod's status as the kubelet does while the sidecar runs
// and the agent has not started.
func (a *agent) report(containerID string, restarts int32, changes ...func(*corev1.PodStatus)) {
	a.r.t.Helper()
	a.read()
	image := ""
	for _, c := range a.pod.Spec.InitContainers {
		if c.Name == inject.SidecarName {
			image = c.Image
		}
	}
	st := &a.pod.Status
	st.Phase = corev1.PodPending
	st.PodIP, st.PodIPs = a.address, []corev1.PodIP{{IP: a.address}}
	st.InitContainerStatuses = []corev1.ContainerStatus{{
		Name: inject.SidecarName, Image: image, ImageID: image, ContainerID: containerID, RestartCount: restarts, Started: new(bool),
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}},
	}}
	for _, ch := range changes {
		ch(st)
	}
	if err := a.r.c.Status().Update(a.r.t.Context(), a.pod); err != nil {
		a.r.t.Fatal(err)
	}
}

// appRuns reports the agent's container with its digest.
func appRuns(st *corev1.PodStatus) {
	st.Phase = corev1.PodRunning
	st.ContainerStatuses = []corev1.ContainerStatus{{
		Name: "app", Image: "registry.example/agent:1", ImageID: "registry.example/agent@" + appDigest, ContainerID: "containerd://app",
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}},
	}}
}

// newToken is a token bound to the pod, as the kubelet gets it.
func (a *agent) newToken(audiences ...string) string {
	a.r.t.Helper()
	a.read()
	return a.r.tokenFor(a.pod.Spec.ServiceAccountName, &authv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: a.name, UID: a.pod.UID}, audiences...)
}

func (r *rig) tokenFor(account string, bound *authv1.BoundObjectReference, audiences ...string) string {
	r.t.Helper()
	tr := &authv1.TokenRequest{Spec: authv1.TokenRequestSpec{Audiences: audiences, BoundObjectRef: bound}}
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account, Namespace: r.ns}}
	if err := r.c.SubResource("token").Create(r.t.Context(), sa, tr); err != nil {
		r.t.Fatal(err)
	}
	return tr.Status.Token
}

// dial connects from the pod's address.
func (a *agent) dial(certs ...tls.Certificate) controlpb.IdentityClient {
	a.r.t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.r.keys.ControlRoots())
	conn, err := grpc.NewClient("passthrough:///"+a.r.addr,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "127.0.0.1", Certificates: certs})),
		grpc.WithContextDialer(dialFrom(a.address)))
	if err != nil {
		a.r.t.Fatal(err)
	}
	if t, ok := a.r.t.(*testing.T); ok {
		t.Cleanup(func() { _ = conn.Close() })
	}
	return controlpb.NewIdentityClient(conn)
}

func dialFrom(address string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}, Timeout: 10 * time.Second}
		return d.DialContext(ctx, "tcp", addr)
	}
}

func csrFor(t testing.TB, key *ecdsa.PrivateKey, token, instance string) []byte {
	t.Helper()
	b, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: kubernetes.Binding(token, instance)}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (a *agent) request() *controlpb.AttestRequest {
	return &controlpb.AttestRequest{Token: a.token, Instance: a.instance, Csr: csrFor(a.r.t, a.key, a.token, a.instance)}
}

// attest sends a request from the pod's address, without an SVID.
func (a *agent) attest() (*controlpb.AttestResponse, error) { return a.send(a.request()) }

func (a *agent) send(req *controlpb.AttestRequest, certs ...tls.Certificate) (*controlpb.AttestResponse, error) {
	resp, err := a.dial(certs...).Attest(a.r.t.Context(), req)
	if err == nil {
		a.svid = &tls.Certificate{Certificate: resp.Certificates, PrivateKey: a.key}
	}
	return resp, err
}

// mustAttest attests and fails the test if that is refused.
func (a *agent) mustAttest() *controlpb.AttestResponse {
	a.r.t.Helper()
	resp, err := a.attest()
	if err != nil {
		a.r.t.Fatalf("attest: %v", err)
	}
	return resp
}

// jwt asks for a token with the SVID at hand.
func (a *agent) jwt(req *controlpb.JWTRequest) (*controlpb.JWTResponse, error) {
	return a.dial(*a.svid).JWT(a.r.t.Context(), req)
}

// refusedFor checks that err is a refusal, and for that reason.
func (r *rig) refusedFor(err error, reason string) {
	r.t.Helper()
	if err == nil {
		r.t.Fatalf("was allowed; want a refusal for %s", reason)
	}
	if got := r.lastEvent().Reason; got != reason {
		r.t.Fatalf("refused for %q (%v); want %q", got, err, reason)
	}
}

// update changes the stored pod.
func (a *agent) update(ch func(*corev1.Pod)) {
	a.r.t.Helper()
	a.read()
	ch(a.pod)
	if err := a.r.c.Update(a.r.t.Context(), a.pod); err != nil {
		a.r.t.Fatal(err)
	}
}

// container finds a container in a pod by its name.
func container(pod map[string]any, list, name string) map[string]any {
	for _, c := range spec(pod)[list].([]any) {
		if c := c.(map[string]any); c["name"] == name {
			return c
		}
	}
	return nil
}

func contains(list []string, sub string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, sub) })
}
