package relay_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/control/peer"
	"github.com/attache-dev/attache/control/relay"
	"github.com/attache-dev/attache/control/xds"
	"github.com/attache-dev/attache/control/xds/xdstest"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/kubernetes"
	"github.com/attache-dev/attache/internal/dataplane"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
	client "github.com/attache-dev/attache/minting/broker"
	wire "github.com/attache-dev/attache/proxy/relay"
	"github.com/attache-dev/attache/proxy/upstream"
)

const (
	root = "sk-vendor-0f7b3c6d9e2a4815-never-in-a-pod"
	uid  = "0a1b2c3d-0000-4000-8000-000000000001"
)

// memory is Secrets in memory, by namespace/name/key.
type memory struct {
	mu    sync.Mutex
	kept  map[string]string
	reads int
}

func (m *memory) Read(_ context.Context, namespace, name, key string) (secret.Value, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	v, ok := m.kept[namespace+"/"+name+"/"+key]
	if !ok {
		return secret.Value{}, fmt.Errorf("%w: Secret %s/%s has no key %q", minting.ErrDenied, namespace, name, key)
	}
	return secret.New(v), nil
}

func (m *memory) set(at, v string) { m.mu.Lock(); defer m.mu.Unlock(); m.kept[at] = v }

// objects of the cluster. ORIGIN is the vendor's address, CA its root.
const objects = `
- {kind: ClusterCredentialProvider, name: model, spec: {ttl: 3m, allowedNamespaces: {names: [team]}, destinations: [{host: api.model.test, addresses: [ORIGIN], serverName: example.com, caBundle: "CA", onlyCA: true}, {host: untrusted.model.test, addresses: [ORIGIN], serverName: example.com}], apiKey: {secretRef: {name: model-key, key: key}}, inject: {by: relay}}}
- {kind: ClusterCredentialProvider, name: leased, spec: {allowedNamespaces: {names: [team]}, destinations: [{host: leased.test}], apiKey: {secretRef: {name: model-key, key: key}}}}
- {kind: ClusterCredentialProvider, name: foreign, spec: {allowedNamespaces: {names: [other]}, destinations: [{host: api.foreign.test, addresses: [ORIGIN], serverName: example.com, caBundle: "CA"}], apiKey: {secretRef: {name: model-key, key: key}}, inject: {by: relay}}}
- {kind: CredentialProvider, namespace: team, name: own, spec: {destinations: [{host: own.test}], apiKey: {secretRef: {name: own, key: key}}, inject: {by: relay}}}
- kind: AccessPolicy
  namespace: team
  name: agents
  spec:
    rules:
    - {name: chat, hosts: [api.model.test], methods: [GET, POST], action: allow, credential: {provider: model}}
    - {name: risky, hosts: [api.model.test], paths: ["/short"], action: allow, maxStream: 200ms, credential: {provider: model}}
    - {name: no, hosts: [api.model.test], paths: ["/forbidden/**"], action: deny}
    - {name: untrusted, hosts: [untrusted.model.test], action: allow, credential: {provider: model}}
    - {name: leased, hosts: [leased.test], action: allow, credential: {provider: leased}}
    - {name: own, hosts: [own.test], action: allow, credential: {provider: own}}
    - {name: open, hosts: [open.test], action: allow}
- kind: AccessPolicy
  namespace: other
  name: agents
  spec:
    rules:
    - {name: theirs, hosts: [api.foreign.test], action: allow, credential: {provider: foreign}}
`

// resolver answers every name with loopback, as a rebinding attacker would.
type resolver struct{}

func (resolver) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
}

// rig is a vendor, a relay and a sidecar, each with its own TLS.
type rig struct {
	t       *testing.T
	ca      *xdstest.Authority
	origin  *httptest.Server
	handler atomic.Pointer[http.HandlerFunc]
	secrets *memory
	bundle  atomic.Pointer[xds.Bundle] // the control plane's view of the pod
	server  *relay.Server
	http    *http.Server
	addr    string // of the relay
	logs    *bytes.Buffer
	logMu   sync.Mutex

	mu     sync.Mutex // guards events and full
	events []relay.Event
	full   error

	plane    *dataplane.Plane
	bundled  *api.Bundle // the sidecar's
	spoolDir string
	agent    *http.Client
	proxy    *url.URL
}

func (g *rig) Write(p []byte) (int, error) {
	g.logMu.Lock()
	defer g.logMu.Unlock()
	return g.logs.Write(p)
}

func (g *rig) record(_ context.Context, e relay.Event) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.events = append(g.events, e)
	return g.full
}

// seen returns the events with a result.
func (g *rig) seen(result string) []relay.Event {
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []relay.Event
	for _, e := range g.events {
		if e.Result == result {
			list = append(list, e)
		}
	}
	return list
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// documents are what a pod of a namespace is served.
func (g *rig) documents(text, namespace string) *xds.Bundle {
	g.t.Helper()
	caPEM := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: g.origin.Certificate().Raw}))
	text = strings.ReplaceAll(text, "ORIGIN", fmt.Sprintf("%q", g.origin.Listener.Addr()))
	text = strings.ReplaceAll(text, `"CA"`, string(must(json.Marshal(caPEM))))
	var raw []struct {
		Kind, Namespace, Name string
		Spec                  map[string]any
	}
	if err := yaml.Unmarshal([]byte(text), &raw); err != nil {
		g.t.Fatal(err)
	}
	list := make([]api.Object, len(raw))
	for i, o := range raw {
		list[i] = api.Object{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, Generation: 1, Spec: must(json.Marshal(o.Spec))}
	}
	id := "spiffe://" + xdstest.TrustDomain + "/ns/" + namespace + "/sa/agent"
	sel, err := api.ForPod(api.Objects{List: list, Namespaces: map[string]map[string]string{"team": {}, "other": {}}, TrustDomain: xdstest.TrustDomain},
		api.Pod{SPIFFEID: id, Namespace: namespace, ServiceAccount: "agent"})
	if err != nil {
		g.t.Fatal(err)
	}
	return &xds.Bundle{Documents: sel.Documents, Workload: &controlpb.Workload{
		SpiffeId: id, Namespace: namespace, ServiceAccount: "agent", Pod: "agent-1", PodUid: uid, Owner: "team@example.com",
	}}
}

// defaults are an AttacheConfig's limits.
func defaults(t testing.TB) *api.Bundle {
	t.Helper()
	return must(api.ParseFor(api.PlacePod, "defaults", []byte("{apiVersion: attache.dev/v1alpha1, kind: AttacheConfig, metadata: {name: default}, spec: {}}")))
}

// start starts a vendor, a relay and a sidecar that loaded the same documents.
func start(t *testing.T, change func(*relay.Config)) *rig {
	t.Helper()
	g := &rig{t: t, ca: xdstest.NewAuthority(t), logs: &bytes.Buffer{}, spoolDir: t.TempDir(),
		secrets: &memory{kept: map[string]string{"attache-system/model-key/key": root + "\n", "team/own/key": "sk-own-0123456789abcdef"}}}
	g.origin = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h := g.handler.Load(); h != nil {
			(*h)(w, r)
			return
		}
		_, _ = fmt.Fprintf(w, "%s %s %s", r.Proto, r.Method, r.URL.RequestURI())
	}))
	g.origin.EnableHTTP2 = true
	g.origin.StartTLS()
	t.Cleanup(g.origin.Close)
	g.bundle.Store(g.documents(objects, "team"))
	g.serve(change)
	g.sidecar()
	return g
}

// serve starts the relay.
func (g *rig) serve(change func(*relay.Config)) {
	g.t.Helper()
	limits := defaults(g.t).Config.Spec.Limits
	pool := must(upstream.New(upstream.Config{Limits: limits, Resolver: resolver{}}))
	c := relay.Config{
		Bundle:  func(of string) (*xds.Bundle, bool) { b := g.bundle.Load(); return b, b != nil && of == uid },
		Secrets: g.secrets, Client: pool.Client, Upstream: pool, Record: g.record, Namespace: "attache-system", Limits: limits,
		Log: slog.New(slog.NewTextHandler(g, nil)),
	}
	if change != nil {
		change(&c)
	}
	g.server = must(relay.New(c))
	serving := g.ca.Serving()
	cfg := relay.TLS(peer.ServerTLS(func() (*tls.Certificate, error) { return &serving, nil }, func() (*x509.CertPool, error) { return g.ca.Pool(), nil }))
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	g.http = g.server.HTTP()
	g.http.TLSConfig = cfg
	g.addr = ln.Addr().String()
	done := make(chan struct{})
	go func() { defer close(done); _ = g.http.ServeTLS(ln, "", "") }()
	g.t.Cleanup(func() { _ = g.http.Close(); <-done })
}

// pod attests every connection as the pod's.
type pod struct{ w *identity.Workload }

func (p pod) Attest(context.Context, net.Conn) (identity.Caller, error) {
	return identity.Caller{Workload: p.w}, nil
}

// sidecar starts the data path of a pod, which loaded the bundle as it is now.
func (g *rig) sidecar() {
	g.t.Helper()
	b := g.bundle.Load()
	g.plane, g.bundled = newPlane(g.t, b, g.addr, g.ca.Client(g.svid()), g.spoolDir, slog.New(slog.NewTextHandler(g, nil)))
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	w := must(kubernetes.FromProto(b.Workload))
	g.plane.Open(g.t.Context(), pod{w}, []net.Addr{ln.Addr()})
	g.plane.ServeProxy(ln)
	g.t.Cleanup(func() { _ = g.plane.Close() })
	g.proxy = &url.URL{Scheme: "http", Host: ln.Addr().String()}
	g.agent = agent(g.proxy, g.plane.CA(), true)
}

func newPlane(t testing.TB, b *xds.Bundle, addr string, cfg *tls.Config, dir string, log *slog.Logger) (*dataplane.Plane, *api.Bundle) {
	t.Helper()
	docs, err := api.ParseFor(api.PlacePod, "bundle", b.Documents)
	if err != nil {
		t.Fatal(err)
	}
	spool, err := audit.Open(audit.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	p, err := dataplane.New(dataplane.Config{
		Bundle: docs, Workload: must(kubernetes.FromProto(b.Workload)), Spool: spool, UsedTokens: dir + "/used", Log: log,
		Broker: client.New(nil).Minter, Relay: &wire.Target{Addr: addr, TLS: cfg}, Resolver: resolver{},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p, docs
}

// agent is an unchanged HTTP client behind the sidecar.
func agent(proxy *url.URL, ca []byte, h2 bool) *http.Client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	tr := &http.Transport{Proxy: http.ProxyURL(proxy), TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, Protocols: new(http.Protocols), DisableCompression: true}
	tr.Protocols.SetHTTP1(!h2)
	tr.Protocols.SetHTTP2(h2)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

func (g *rig) svid() tls.Certificate {
	return g.ca.SVID("team", "agent", uid, time.Now().Add(time.Hour))
}

// answer is what a call gave, read to its end.
type answer struct {
	status  int
	header  http.Header
	body    string
	err     error
	trailer http.Header
}

func (g *rig) get(url string, more ...string) answer {
	g.t.Helper()
	r, err := http.NewRequestWithContext(g.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	for i := 0; i+1 < len(more); i += 2 {
		r.Header.Set(more[i], more[i+1])
	}
	return g.do(r)
}

func (g *rig) do(r *http.Request) answer {
	g.t.Helper()
	resp, err := g.agent.Do(r)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b), err, resp.Trailer}
}

// refused checks that a call was answered and recorded with a code.
func (g *rig) refused(a answer, status int, code string) {
	g.t.Helper()
	if a.err != nil || a.status != status || a.header.Get("Attache-Error") != code {
		g.t.Errorf("answered %d %q (%v) %s; want %d %q", a.status, a.header.Get("Attache-Error"), a.err, a.body, status, code)
		return
	}
	r := g.recordOf(a)
	if r.Result == nil || r.Result.ErrorKind != code {
		g.t.Errorf("record says %+v; want %q", r.Result, code)
	}
}

// recordOf is the sidecar's record of a call.
func (g *rig) recordOf(a answer) audit.Record {
	g.t.Helper()
	var found audit.Record
	id := a.header.Get("Attache-Record")
	deadline := time.Now().Add(10 * time.Second)
	for {
		if err := audit.Read(g.spoolDir, audit.Filter{}, func(r audit.Record) bool {
			if r.ID == id {
				found = r
			}
			return true
		}); err != nil {
			g.t.Fatal(err)
		}
		if found.Result != nil || time.Now().After(deadline) {
			return found
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (g *rig) handle(h http.HandlerFunc) { g.handler.Store(&h) }
