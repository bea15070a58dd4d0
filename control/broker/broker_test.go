package broker_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/control/broker"
	"github.com/attache-dev/attache/control/xds"
	"github.com/attache-dev/attache/control/xds/xdstest"
	"github.com/attache-dev/attache/internal/secret"
	"github.com/attache-dev/attache/minting"
	client "github.com/attache-dev/attache/minting/broker"
)

const (
	root = "sk-the-vendors-own-key-0123456789"
	uid  = "0a1b2c3d-0000-4000-8000-000000000001"
)

// memory is Secrets in memory, by namespace/name/key.
type memory map[string]string

func (m memory) Read(_ context.Context, namespace, name, key string) (secret.Value, error) {
	v, ok := m[namespace+"/"+name+"/"+key]
	if !ok {
		return secret.Value{}, fmt.Errorf("%w: Secret %s/%s has no key %q", minting.ErrDenied, namespace, name, key)
	}
	return secret.New(v), nil
}

type rig struct {
	ca     *xdstest.Authority
	addr   string
	bundle *xds.Bundle
	server *broker.Server

	mu     sync.Mutex // guards events and refuse
	events []broker.Event
	refuse error
}

func (g *rig) record(_ context.Context, e broker.Event) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.events = append(g.events, e)
	return g.refuse
}

func (g *rig) last() broker.Event {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.events[len(g.events)-1]
}

const objects = `
- {kind: ClusterCredentialProvider, name: shared, spec: {allowedNamespaces: {names: [team]}, destinations: [{host: shared.example}], apiKey: {secretRef: {name: shared-key, key: key}}}}
- {kind: CredentialProvider, namespace: team, name: model, spec: {ttl: 3m, destinations: [{host: api.model.example}], apiKey: {secretRef: {name: model-key, key: key}}}}
- {kind: CredentialProvider, namespace: team, name: crm, spec: {destinations: [{host: crm.example}], oauth2: {tokenEndpoint: "AS/token", grant: clientCredentials, clientAuth: clientSecretBasic, clientID: "crm client", clientSecretRef: {name: crm, key: secret}, caBundle: "CA", scopes: [read, write]}}}
- {kind: CredentialProvider, namespace: team, name: post, spec: {destinations: [{host: post.example}], oauth2: {tokenEndpoint: "AS/token", grant: clientCredentials, clientAuth: clientSecretPost, clientID: poster, clientSecretRef: {name: crm, key: secret}, caBundle: "CA"}}}
- {kind: CredentialProvider, namespace: team, name: cert, spec: {destinations: [{host: cert.example}], oauth2: {tokenEndpoint: "AS/token", grant: clientCredentials, clientAuth: tlsClientAuth, clientID: certified, clientCertificateRef: {name: pair}, caBundle: "CA"}}}
- {kind: CredentialProvider, namespace: team, name: pinned, spec: {destinations: [{host: pinned.example}], oauth2: {tokenEndpoint: "AS/token", grant: clientCredentials, clientAuth: clientSecretPost, clientID: poster, clientSecretRef: {name: crm, key: secret}, addresses: [10.0.0.1]}}}
- {kind: CredentialProvider, namespace: team, name: relayed, spec: {destinations: [{host: relayed.example}], apiKey: {secretRef: {name: model-key, key: key}}, inject: {by: relay}}}
- {kind: CredentialProvider, namespace: team, name: federated, spec: {destinations: [{host: federated.example}], jwt: {}}}
- {kind: CredentialProvider, namespace: other, name: theirs, spec: {destinations: [{host: api.theirs.example}], apiKey: {secretRef: {name: model-key, key: key}}}}
- kind: AccessPolicy
  namespace: team
  name: agents
  spec:
    rules:
    - {name: chat, hosts: [api.model.example], methods: [POST], paths: ["/v1/**"], action: allow, credential: {provider: model}}
    - {name: shared, hosts: [shared.example], action: allow, credential: {provider: shared}}
    - {name: crm, hosts: [crm.example], action: allow, credential: {provider: crm, scope: [read]}}
    - {name: post, hosts: [post.example], action: allow, credential: {provider: post}}
    - {name: cert, hosts: [cert.example], action: allow, credential: {provider: cert}}
    - {name: pinned, hosts: [pinned.example], action: allow, credential: {provider: pinned}}
    - {name: relayed, hosts: [relayed.example], action: allow, credential: {provider: relayed}}
    - {name: federated, hosts: [federated.example], action: allow, credential: {provider: federated}}
`

// serve starts a broker for a pod of namespace team whose authorization server
// is at as.
func serve(t *testing.T, as *httptest.Server, secrets broker.Secrets, change func(*broker.Config)) *rig {
	t.Helper()
	g := &rig{ca: xdstest.NewAuthority(t)}
	text, caPEM := objects, ""
	if as != nil {
		caPEM = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: as.Certificate().Raw}))
		text = strings.ReplaceAll(text, "AS", as.URL)
	} else {
		text = strings.ReplaceAll(text, "AS", "https://as.example")
	}
	if caPEM == "" {
		text = strings.ReplaceAll(text, `, caBundle: "CA"`, "")
	}
	text = strings.ReplaceAll(text, `"CA"`, string(must(json.Marshal(caPEM))))
	sel, err := api.ForPod(api.Objects{List: parse(t, text), Namespaces: map[string]map[string]string{"team": {}, "other": {}}, TrustDomain: xdstest.TrustDomain},
		api.Pod{SPIFFEID: "spiffe://" + xdstest.TrustDomain + "/ns/team/sa/agent", Namespace: "team", ServiceAccount: "agent"})
	if err != nil {
		t.Fatal(err)
	}
	g.bundle = &xds.Bundle{Documents: sel.Documents, Workload: &controlpb.Workload{
		SpiffeId: "spiffe://" + xdstest.TrustDomain + "/ns/team/sa/agent", Namespace: "team", ServiceAccount: "agent", Pod: "agent-1", PodUid: uid, Owner: "team@example.com",
	}}
	c := broker.Config{
		Bundle:  func(of string) (*xds.Bundle, bool) { return g.bundle, of == uid || of == "impostor" },
		Secrets: secrets, Record: g.record, Namespace: "attache-system",
		Client: func(_ []string, caPEM []byte) *http.Client {
			pool := xdstest.Pool(caPEM)
			return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
		},
	}
	if change != nil {
		change(&c)
	}
	if g.server, err = broker.New(c); err != nil {
		t.Fatal(err)
	}
	g.addr, _ = g.ca.Serve("", g.server.Register)
	return g
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func parse(t *testing.T, text string) []api.Object {
	t.Helper()
	var list []struct {
		Kind, Namespace, Name string
		Spec                  map[string]any
	}
	decodeYAML(t, text, &list)
	out := make([]api.Object, len(list))
	for i, o := range list {
		out[i] = api.Object{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, Generation: 1, Spec: must(json.Marshal(o.Spec))}
	}
	return out
}

func (g *rig) connect(t *testing.T, svid ...tls.Certificate) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(g.addr, grpc.WithTransportCredentials(credentials.NewTLS(g.ca.Client(svid...))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (g *rig) svid() tls.Certificate {
	return g.ca.SVID("team", "agent", uid, time.Now().Add(time.Hour))
}

func ask(provider, host, method, path string) *controlpb.MintRequest {
	return &controlpb.MintRequest{Provider: provider, Scheme: "https", Host: host, Port: 443, Method: method, Path: path, Protocol: "http", Record: "rec_1"}
}

var secrets = memory{
	"team/model-key/key": root + "\n", "attache-system/shared-key/key": "shared-root-key", "team/crm/secret": "s3cret&with=form/characters",
}

// A vendor's key is leased for minutes, and the mint says who, for whom and
// why.
func TestLease(t *testing.T) {
	g := serve(t, nil, secrets, nil)
	conn := g.connect(t, g.svid())
	m, err := client.New(conn).Minter(v1alpha1.CredentialProvider{Metadata: v1alpha1.ObjectMeta{Namespace: "team", Name: "model"}, Spec: v1alpha1.CredentialProviderSpec{APIKey: &v1alpha1.APIKey{}}})
	if err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	c, err := m.Mint(t.Context(), minting.Request{Provider: "model"}, minting.Evidence{Call: minting.Call{Scheme: "https", Host: "api.model.example", Port: 443, Method: "POST", Path: "/v1/chat", Protocol: "http", Record: "rec_9"}})
	if err != nil {
		t.Fatal(err)
	}
	if c.Secret.Reveal() != root || c.Kind != minting.KindAPIKey || c.Derived || c.Provider != "model" {
		t.Errorf("credential is %+v", c)
	}
	if life := time.Until(c.Expires); c.Expires.Before(before.Add(3*time.Minute-time.Second)) || life > 3*time.Minute {
		t.Errorf("the lease is %v long", life)
	}
	e := g.last()
	if e.Result != "minted" || e.PodUID != uid || e.Pod != "agent-1" || e.Owner != "team@example.com" || e.Provider != "team/model" || e.Rule != "team/agents/chat" ||
		e.Destination != "https://api.model.example:443" || e.Record != "rec_9" || e.Root != "team/model-key" || e.Handle != c.Handle {
		t.Errorf("event is %+v", e)
	}
	// The root is nowhere but in the answer.
	for name, b := range map[string][]byte{"the bundle": must(proto.Marshal(&controlpb.Bundle{Documents: g.bundle.Documents, Workload: g.bundle.Workload})), "the event": must(json.Marshal(e)), "a formatted credential": fmt.Appendf(nil, "%+v %#v", c, c)} {
		if strings.Contains(string(b), root) {
			t.Errorf("%s holds the root", name)
		}
	}
	// The cluster's provider has its root in the control plane's namespace.
	a, err := controlpb.NewBrokerClient(conn).Mint(t.Context(), ask("shared", "shared.example", "GET", "/"))
	if err != nil || a.GetValue() != "shared-root-key" {
		t.Errorf("shared: %v", err)
	}
}

// What no rule gives this pod, it does not get, whatever it claims.
func TestDenied(t *testing.T) {
	g := serve(t, nil, secrets, nil)
	mine := g.svid()
	with := func(m *controlpb.MintRequest, f func(*controlpb.MintRequest)) *controlpb.MintRequest { f(m); return m }
	for name, c := range map[string]struct {
		svid []tls.Certificate
		ask  *controlpb.MintRequest
		want codes.Code
		text string
	}{
		"no certificate":              {nil, ask("team/model", "api.model.example", "POST", "/v1/chat"), codes.Unauthenticated, ""},
		"another host":                {[]tls.Certificate{mine}, ask("team/model", "evil.example", "POST", "/v1/chat"), codes.PermissionDenied, "no rule gives"},
		"another method":              {[]tls.Certificate{mine}, ask("team/model", "api.model.example", "DELETE", "/v1/chat"), codes.PermissionDenied, "no rule gives"},
		"another path":                {[]tls.Certificate{mine}, ask("team/model", "api.model.example", "POST", "/admin"), codes.PermissionDenied, "no rule gives"},
		"another port":                {[]tls.Certificate{mine}, with(ask("team/model", "api.model.example", "POST", "/v1/chat"), func(m *controlpb.MintRequest) { m.Port = 8443 }), codes.PermissionDenied, ""},
		"in clear text":               {[]tls.Certificate{mine}, with(ask("team/model", "api.model.example", "POST", "/v1/chat"), func(m *controlpb.MintRequest) { m.Scheme = "http" }), codes.PermissionDenied, ""},
		"another namespace's":         {[]tls.Certificate{mine}, ask("other/theirs", "api.theirs.example", "GET", "/"), codes.PermissionDenied, "no policy of this pod"},
		"by its bare name":            {[]tls.Certificate{mine}, ask("model", "api.model.example", "POST", "/v1/chat"), codes.PermissionDenied, "no policy of this pod"},
		"one that sidecars mint":      {[]tls.Certificate{mine}, ask("team/federated", "federated.example", "GET", "/"), codes.PermissionDenied, "the broker mints for"},
		"one that a relay puts on":    {[]tls.Certificate{mine}, ask("team/relayed", "relayed.example", "GET", "/"), codes.PermissionDenied, "put on by the relay"},
		"more scope":                  {[]tls.Certificate{mine}, with(ask("team/crm", "crm.example", "GET", "/"), func(m *controlpb.MintRequest) { m.Scopes = []string{"read", "write"} }), codes.PermissionDenied, `scope "write"`},
		"a resource":                  {[]tls.Certificate{mine}, with(ask("team/crm", "crm.example", "GET", "/"), func(m *controlpb.MintRequest) { m.Resources = []string{"https://x"} }), codes.PermissionDenied, "resource"},
		"an audience":                 {[]tls.Certificate{mine}, with(ask("team/crm", "crm.example", "GET", "/"), func(m *controlpb.MintRequest) { m.Audience = "x" }), codes.PermissionDenied, "audience"},
		"a pod that is not there":     {[]tls.Certificate{g.ca.SVID("team", "agent", "gone", time.Now().Add(time.Hour))}, ask("team/model", "api.model.example", "POST", "/v1/chat"), codes.Unavailable, "does not know"},
		"a certificate of another":    {[]tls.Certificate{g.ca.SVID("team", "other", uid, time.Now().Add(time.Hour))}, ask("team/model", "api.model.example", "POST", "/v1/chat"), codes.PermissionDenied, "disagree"},
		"another's uid":               {[]tls.Certificate{g.ca.SVID("team", "agent", "impostor", time.Now().Add(time.Hour))}, ask("team/model", "api.model.example", "POST", "/v1/chat"), codes.PermissionDenied, "disagree"},
		"no provider":                 {[]tls.Certificate{mine}, ask("", "api.model.example", "POST", "/v1/chat"), codes.InvalidArgument, "provider"},
		"a host that is no name":      {[]tls.Certificate{mine}, ask("team/model", "API.model.example", "POST", "/v1/chat"), codes.InvalidArgument, "host"},
		"a line break":                {[]tls.Certificate{mine}, ask("team/model", "api.model.example", "POST", "/v1/chat\nx"), codes.InvalidArgument, "path"},
		"a very long path":            {[]tls.Certificate{mine}, ask("team/model", "api.model.example", "POST", "/"+strings.Repeat("x", 20000)), codes.InvalidArgument, "path"},
		"an address that tenants pin": {[]tls.Certificate{mine}, ask("team/pinned", "pinned.example", "GET", "/"), codes.Unavailable, "ClusterCredentialProvider"},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := controlpb.NewBrokerClient(g.connect(t, c.svid...)).Mint(t.Context(), c.ask)
			if status.Code(err) != c.want || !strings.Contains(status.Convert(err).Message(), c.text) {
				t.Errorf("got %v, want %v %q", err, c.want, c.text)
			}
			if a.GetValue() != "" || strings.Contains(fmt.Sprint(err), root) {
				t.Error("something was handed out")
			}
			if c.want != codes.Unauthenticated {
				if e := g.last(); e.Result == "minted" || e.Reason == "" || e.Handle != "" {
					t.Errorf("recorded is %+v", e)
				}
			}
		})
	}
}

// Without a record there is no credential.
func TestNoRecordNoCredential(t *testing.T) {
	g := serve(t, nil, secrets, nil)
	g.refuse = errors.New("disk full")
	a, err := controlpb.NewBrokerClient(g.connect(t, g.svid())).Mint(t.Context(), ask("team/model", "api.model.example", "POST", "/v1/chat"))
	if status.Code(err) != codes.Unavailable || a.GetValue() != "" || strings.Contains(err.Error(), "disk") {
		t.Errorf("got %v, %v", a, err)
	}
}

// One pod cannot keep the broker busy, nor the others from it.
func TestRate(t *testing.T) {
	now := time.Now()
	g := serve(t, nil, secrets, func(c *broker.Config) { c.Rate, c.Burst, c.Now = 1, 3, func() time.Time { return now } })
	b := controlpb.NewBrokerClient(g.connect(t, g.svid()))
	for i := range 4 {
		_, err := b.Mint(t.Context(), ask("team/model", "api.model.example", "POST", "/v1/chat"))
		if want := map[bool]codes.Code{true: codes.OK, false: codes.ResourceExhausted}[i < 3]; status.Code(err) != want {
			t.Errorf("call %d: %v", i, err)
		}
	}
	// Another pod has its own (and is told that it is not the one it claims).
	other := controlpb.NewBrokerClient(g.connect(t, g.ca.SVID("team", "agent", "impostor", time.Now().Add(time.Hour))))
	if _, err := other.Mint(t.Context(), ask("team/model", "api.model.example", "POST", "/v1/chat")); status.Code(err) != codes.PermissionDenied {
		t.Errorf("another pod: %v", err)
	}
}

// Clients of authorization servers prove themselves by a secret in the header,
// in the body, or by a certificate; only the static scope is asked for.
func TestOAuth(t *testing.T) {
	authority := xdstest.NewAuthority(t)
	pair := authority.SVID("idp", "client", "client", time.Now().Add(time.Hour))
	crt, key := xdstest.PEM(pair)
	var mu sync.Mutex
	var seen []string
	as := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		id, pass, _ := r.BasicAuth()
		peer := ""
		if len(r.TLS.PeerCertificates) > 0 {
			peer = r.TLS.PeerCertificates[0].Subject.SerialNumber
		}
		mu.Lock()
		seen = append(seen, fmt.Sprintf("%s|%s|%s|%s", id, pass, peer, b))
		mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"access_token":"token-of-the-crm","token_type":"Bearer","expires_in":120}`)
	}))
	as.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	as.StartTLS()
	t.Cleanup(as.Close)
	with := memory{"team/pair/tls.crt": crt, "team/pair/tls.key": key}
	for k, v := range secrets {
		with[k] = v
	}
	g := serve(t, as, with, nil)
	b := controlpb.NewBrokerClient(g.connect(t, g.svid()))
	for _, c := range []struct{ provider, host, want string }{
		{"team/crm", "crm.example", "crm+client|s3cret%26with%3Dform%2Fcharacters||grant_type=client_credentials&scope=read"},
		{"team/post", "post.example", "|||client_id=poster&client_secret=s3cret%26with%3Dform%2Fcharacters&grant_type=client_credentials"},
		{"team/cert", "cert.example", "||client|client_id=certified&grant_type=client_credentials"},
	} {
		a, err := b.Mint(t.Context(), ask(c.provider, c.host, "GET", "/"))
		if err != nil {
			t.Fatalf("%s: %v", c.provider, err)
		}
		mu.Lock()
		got := seen[len(seen)-1]
		mu.Unlock()
		if got != c.want {
			t.Errorf("%s: the server saw %s", c.provider, got)
		}
		if life := time.Until(a.GetExpires().AsTime()); a.GetValue() != "token-of-the-crm" || life > 2*time.Minute || life < time.Minute {
			t.Errorf("%s: %v for %v", c.provider, a, life)
		}
	}
	if strings.Contains(fmt.Sprint(g.events), "s3cret") {
		t.Error("the secret was recorded")
	}
}

// The sidecar's end words refusals as package minting does.
func TestWords(t *testing.T) {
	g := serve(t, nil, secrets, nil)
	mint := func(conn grpc.ClientConnInterface, host string) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		m := must(client.New(conn).Minter(v1alpha1.CredentialProvider{Metadata: v1alpha1.ObjectMeta{Namespace: "team", Name: "model"}}))
		_, err := m.Mint(ctx, minting.Request{}, minting.Evidence{Call: minting.Call{Scheme: "https", Host: host, Port: 443, Method: "POST", Path: "/v1/x"}})
		return err
	}
	conn := g.connect(t, g.svid())
	if err := mint(conn, "evil.example"); !errors.Is(err, minting.ErrDenied) {
		t.Errorf("a refusal is %v", err)
	}
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	addr := ln.Addr().String()
	_ = ln.Close()
	dead := must(grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(g.ca.Client(g.svid())))))
	defer dead.Close()
	if err := mint(dead, "api.model.example"); !errors.Is(err, minting.ErrUnavailable) {
		t.Errorf("no broker is %v", err)
	}
}

// A rolling restart of the replicas fails no call: what is under way is
// finished, and the next goes to whoever is there.
func TestRollingRestart(t *testing.T) {
	g := serve(t, nil, secrets, func(c *broker.Config) { c.Rate, c.Burst = 1e6, 1e6 })
	var mu sync.Mutex
	addr, stop := g.ca.ServeGracefully("", g.server.Register)
	conn := must(grpc.NewClient("passthrough:///control.test", grpc.WithTransportCredentials(credentials.NewTLS(g.ca.Client(g.svid()))),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			mu.Lock()
			to := addr
			mu.Unlock()
			return (&net.Dialer{}).DialContext(ctx, "tcp", to)
		})))
	defer conn.Close()
	m := must(client.New(conn).Minter(v1alpha1.CredentialProvider{Metadata: v1alpha1.ObjectMeta{Namespace: "team", Name: "model"}}))
	done := make(chan struct{})
	var calls int
	var wg sync.WaitGroup
	progress := make(chan struct{}, 1)
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			calls++
			if _, err := m.Mint(t.Context(), minting.Request{}, minting.Evidence{Call: minting.Call{Scheme: "https", Host: "api.model.example", Port: 443, Method: "POST", Path: "/v1/x"}}); err != nil {
				t.Errorf("call %d: %v", calls, err)
			}
			select {
			case progress <- struct{}{}:
			default:
			}
		}
	})
	for range 4 {
		for range 5 { // some calls reach the replica of the moment
			<-progress
		}
		next, stopNext := g.ca.ServeGracefully("", g.server.Register)
		mu.Lock()
		addr = next // as the Service does
		mu.Unlock()
		stop()
		stop = stopNext
	}
	for range 5 {
		<-progress
	}
	close(done)
	wg.Wait()
	if calls < 20 {
		t.Errorf("%d calls were made only", calls)
	}
}
