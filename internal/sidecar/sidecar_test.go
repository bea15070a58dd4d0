package sidecar

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/audit/ship"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/minting/mintingtest"
)

const patience = 20 * time.Second

// fake is a control plane that the test drives.
type fake struct {
	t        *testing.T
	attested chan struct{}
	bundles  chan *api.Bundle
	results  chan error
	revoke   chan Revocation
	source   identity.Source
	records  ship.Sink // nil: no collector

	mu    sync.Mutex
	stale error
}

func newFake(t *testing.T) *fake {
	return &fake{t: t, attested: make(chan struct{}), bundles: make(chan *api.Bundle), results: make(chan error, 1), revoke: make(chan Revocation), source: mintingtest.NewSource(t)}
}

func (f *fake) Attest(ctx context.Context) (identity.Source, error) {
	select {
	case <-f.attested:
		return f.source, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Records implements [Recorder].
func (f *fake) Records() (ship.Sink, error) { return f.records, nil }

func (f *fake) Workload() *identity.Workload {
	return &identity.Workload{ID: spiffeid.RequireFromString("spiffe://attache.local/ns/a/sa/b"), Namespace: "a", ServiceAccount: "b", RunID: "0123456789abcdef0123456789abcdef", Owner: "ana"}
}

func (f *fake) Stale() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stale
}

func (f *fake) setStale(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stale = err
}

func (f *fake) Follow(ctx context.Context, to Follower) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case b := <-f.bundles:
			err := to.Apply(b)
			if err != nil {
				to.Rejected(err)
			}
			f.results <- err
		case r := <-f.revoke:
			to.Revoke(r)
			f.results <- nil
		}
	}
}

func (f *fake) give(text string) error {
	f.t.Helper()
	b, err := api.ParseFor(api.PlacePod, "bundle", []byte(text))
	if err != nil {
		f.t.Fatal(err)
	}
	f.bundles <- b
	return <-f.results
}

// running is a sidecar under test.
type running struct {
	*fake
	t     *testing.T
	dir   string
	addrs chan net.Addr // health, then proxy
	done  chan error
	stop  context.CancelFunc
	url   string // of health
}

func start(t *testing.T, change func(*Options)) *running {
	t.Helper()
	dir := t.TempDir()
	r := &running{fake: newFake(t), t: t, dir: dir, addrs: make(chan net.Addr, 4), done: make(chan error, 1)}
	for _, d := range []string{"trust", "state", "spool"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	o := Options{
		Mode: Explicit, Listen: "127.0.0.1:0", Health: "127.0.0.1:0", TrustDir: filepath.Join(dir, "trust", "bundle"), StateDir: filepath.Join(dir, "state"),
		SpoolDir: filepath.Join(dir, "spool"), Config: "none", opened: func(_ string, a net.Addr) { r.addrs <- a },
	}
	if change != nil {
		change(&o)
	}
	var ctx context.Context
	ctx, r.stop = context.WithCancel(context.Background())
	go func() { r.done <- Run(ctx, o, r.fake) }()
	t.Cleanup(func() { r.stop(); r.done <- <-r.done })
	select {
	case a := <-r.addrs:
		r.url = "http://" + a.String()
	case err := <-r.done:
		r.done <- err
		t.Fatal(err)
	}
	return r
}

func (r *running) get(path string) (int, string) {
	r.t.Helper()
	c := &http.Client{Timeout: patience}
	res, err := c.Get(r.url + path) //nolint:noctx // it has a timeout
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(b)
}

func (r *running) until(path string, status int, text string) {
	r.t.Helper()
	var got int
	var body string
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(5 * time.Millisecond) {
		if got, body = r.get(path); got == status && strings.Contains(body, text) {
			return
		}
	}
	r.t.Fatalf("%s: got %d %s, want %d %s", path, got, body, status, text)
}

func (r *running) client(proxy net.Addr) *http.Client {
	r.t.Helper()
	pem, err := os.ReadFile(filepath.Join(r.dir, "trust/bundle/ca.pem"))
	if err != nil {
		r.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &http.Client{Timeout: patience, Transport: &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: proxy.String()}), TLSClientConfig: &tls.Config{RootCAs: roots}}} //nolint:gosec // test
}

const (
	denyAll = "apiVersion: attache.dev/v1alpha1\nkind: AttacheConfig\nmetadata: {name: default}\nspec: {}\n"
	someone = "apiVersion: attache.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: p, namespace: a}\nspec:\n  rules:\n  - {name: one, hosts: [api.example.com], action: deny, reason: \"not %s\"}\n"
)

// The health port is the whole network's: who keeps its connections open does
// not keep the kubelet out.
func TestCrowdedHealthPort(t *testing.T) {
	r := start(t, nil)
	for range 2 * maxProbes {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(r.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
	}
	c := &http.Client{Timeout: 2 * time.Second}
	res, err := c.Get(r.url + "/started") //nolint:noctx // it has a timeout
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
}

// The start waits for each step, and says which; nothing is served before.
func TestStart(t *testing.T) {
	r := start(t, nil)
	r.until("/started", 503, "waiting for: attestation")
	r.until("/ready", 503, "waiting for: attestation")
	if status, body := r.get("/metrics"); status != 503 {
		t.Errorf("metrics: %d %s", status, body)
	}
	// The trust bundle is there before anything else can use it.
	if _, err := os.Stat(filepath.Join(r.dir, "trust/bundle/bundle.pem")); err != nil {
		t.Error(err)
	}
	close(r.attested)
	r.until("/started", 503, "waiting for: first policy")
	select {
	case a := <-r.addrs:
		t.Fatalf("a door is open before there is policy: %v", a)
	default:
	}
	if err := r.give(denyAll); err != nil {
		t.Fatal(err)
	}
	proxy := <-r.addrs
	r.until("/started", 200, "ok")
	r.until("/ready", 200, "ok")
	if _, body := r.get("/metrics"); !strings.Contains(body, "attache_") || !strings.Contains(body, "go_goroutines") {
		t.Errorf("metrics: %s", body)
	}
	for _, path := range []string{"/", "/healthz", "/v1/inventory", "/v1/revoke", "/debug/pprof/", "/debug/pprof/heap"} {
		if status, body := r.get(path); status != http.StatusNotFound {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	res, err := r.client(proxy).Get("https://api.example.com/")
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusForbidden {
		t.Errorf("without rules: %s", res.Status)
	}
	// Policy changes while it serves; a bad one does not replace it.
	if err := r.give(fmt.Sprintf(someone, "today")); err != nil {
		t.Fatal(err)
	}
	if err := r.give("apiVersion: attache.dev/v1alpha1\nkind: CredentialProvider\nmetadata: {name: x, namespace: a}\nspec:\n  destinations: [{host: api.example.com}]\n  apiKey: {secretRef: {name: s, key: k}}\n"); err == nil {
		t.Error("a provider whose root is out of reach was accepted without a broker")
	}
	res, err = r.client(proxy).Get("https://api.example.com/")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if !strings.Contains(string(b), "not today") {
		t.Errorf("got %s", b)
	}
	r.stop()
	if err := <-r.done; err != nil {
		t.Errorf("stopped: %v", err)
	}
	r.done <- nil
}

// What may not be used any more denies every call and is not ready; it serves
// again once it is confirmed.
func TestStale(t *testing.T) {
	r := start(t, nil)
	close(r.attested)
	if err := r.give(fmt.Sprintf(someone, "today")); err != nil {
		t.Fatal(err)
	}
	proxy := <-r.addrs
	r.until("/ready", 200, "ok")
	for _, stale := range []error{errors.New("last confirmed 16m0s ago"), nil} {
		r.setStale(stale)
		want := "not today"
		if stale == nil {
			r.until("/ready", 200, "ok")
		} else {
			want = "policy_stale"
			r.until("/ready", 503, "16m0s")
			r.until("/started", 200, "ok") // the container is not restarted for it
		}
		res, err := r.client(proxy).Get("https://api.example.com/")
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if !strings.Contains(string(b), want) {
			t.Errorf("stale %v: got %s", stale, b)
		}
	}
}

// TestSameTrust: a sidecar that is started again is trusted by those who read
// the bundle before, and does not touch it.
func TestSameTrust(t *testing.T) {
	dir := ""
	var before string
	for i := range 2 {
		r := start(t, func(o *Options) {
			if i == 0 {
				dir = filepath.Dir(o.StateDir)
			} else {
				o.StateDir, o.TrustDir = filepath.Join(dir, "state"), filepath.Join(dir, "trust", "bundle")
			}
		})
		r.until("/started", 503, "attestation")
		var b strings.Builder
		for _, f := range []string{"bundle.pem", "ca.pem", "truststore.p12", "preload.cjs", "wgetrc"} {
			st, err := os.Stat(filepath.Join(dir, "trust/bundle", f))
			if err != nil {
				t.Fatal(err)
			}
			text, _ := os.ReadFile(filepath.Join(dir, "trust/bundle", f))
			fmt.Fprintf(&b, "%s %v %x\n", f, st.ModTime(), text)
		}
		if i == 1 && b.String() != before {
			t.Error("the trust bundle was written again")
		}
		before = b.String()
		r.stop()
		<-r.done
		r.done <- nil
	}
}

func TestRefusedStart(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		change     func(*Options)
	}{
		{"no mode", `--mode is ""`, func(o *Options) { o.Mode = "" }},
		{"no control plane", "$ATTACHE_CONTROL is not set", func(o *Options) { o.Config = "" }},
		{"both", "exclude each other", func(o *Options) { o.Control = "a:1" }},
		{"no trust folder", "ATTACHE_TRUST_DIR", func(o *Options) { o.TrustDir = "" }},
	} {
		o := Options{Mode: Explicit, Listen: "127.0.0.1:0", Health: "127.0.0.1:0", TrustDir: "t", StateDir: "s", SpoolDir: "r", Config: "none"}
		tt.change(&o)
		if err := Run(t.Context(), o, newFake(t)); !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v", tt.name, err)
		}
	}
	// The doors are for this pod only.
	r := start(t, func(o *Options) { o.Listen = "0.0.0.0:0" })
	close(r.attested)
	if err := r.give(denyAll); err != nil {
		t.Fatal(err)
	}
	if err := <-r.done; err == nil || !strings.Contains(err.Error(), "no loopback address") {
		t.Errorf("got %v", err)
	}
	r.done <- nil
}

// A revocation is in force when it returns, also before there is policy.
func TestRevocation(t *testing.T) {
	r := start(t, nil)
	close(r.attested)
	r.revoke <- Revocation{ID: "early", All: true}
	<-r.results
	if err := r.give(denyAll); err != nil {
		t.Fatal(err)
	}
	<-r.addrs
	for _, v := range []Revocation{{ID: "rev-1", Owner: "ana", All: true, Reason: "left"}, {ID: "rev-2", Owner: "bob", All: true}, {ID: "rev-3", Provider: "a/x"}} {
		r.revoke <- v
		<-r.results
	}
	r.stop()
	<-r.done
	r.done <- nil
	files, _ := filepath.Glob(filepath.Join(r.dir, "spool/records/*.jsonl"))
	var text strings.Builder
	for _, f := range files {
		b, _ := os.ReadFile(f)
		text.Write(b)
	}
	for id, want := range map[string]bool{"rev-1": true, "rev-2": false, "rev-3": true} {
		if strings.Contains(text.String(), `"`+id+`"`) != want {
			t.Errorf("%s recorded: want %v", id, want)
		}
	}
}
