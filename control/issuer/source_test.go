package issuer_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/attache-dev/attache/api/controlpb"
	"github.com/attache-dev/attache/control/issuer"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/identity/kubernetes"
)

// sidecar is the client's side in a pod, on a real control plane.
type sidecar struct {
	*kubernetes.Source
	a    *agent
	stop func()
	log  *logBuffer
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}
func (l *logBuffer) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

func (a *agent) source(t *testing.T, changes ...func(*kubernetes.Config)) *sidecar {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(a.token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.read()
	out := &sidecar{a: a, log: &logBuffer{}}
	c := kubernetes.Config{
		Control: a.r.addr, ControlCA: a.r.keys.ControlRoots(), TokenFile: file, PodUID: string(a.pod.UID), Dial: dialFrom(a.address),
		Log: slog.New(slog.NewTextHandler(out.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, ch := range changes {
		ch(&c)
	}
	s, err := kubernetes.New(c)
	if err != nil {
		t.Fatal(err)
	}
	out.Source = s
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	out.stop = sync.OnceFunc(func() { cancel(); <-done; _ = s.Close() })
	t.Cleanup(out.stop)
	return out
}

const patience = time.Minute

// eventually waits for what another process does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (s *sidecar) mustWait(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.Wait(ctx); err != nil {
		t.Fatalf("%v\n%s", err, s.log)
	}
}

func (r *rig) count(kind, outcome string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, e := range r.events {
		if e.Kind == kind && e.Outcome == outcome {
			n++
		}
	}
	return n
}

func TestSource(t *testing.T) {
	r := start(t)
	a := r.admit("agent", labelled("app", "web"), nil)
	updates := make(chan *identity.Workload, 10)
	s := a.source(t, func(c *kubernetes.Config) { c.Updated = func(w *identity.Workload) { updates <- w } })
	s.mustWait(t)
	w := s.Workload()
	if w.ID.String() != "spiffe://cluster.test/ns/"+r.ns+"/sa/default" || w.Labels["app"] != "web" || w.Posture["pod"] != "agent" || len(w.RunID) != 32 {
		t.Errorf("workload: %+v", w)
	}
	if got := <-updates; got != w {
		t.Error("the update is of another workload")
	}
	svid, err := s.X509(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Bundle(t.Context())
	if err != nil || !b.HasX509Authority(r.keysAuthority(t)) {
		t.Errorf("bundle: %v, %v", b, err)
	}
	if svid.ID != w.ID || svid.PrivateKey == nil {
		t.Errorf("SVID of %s", svid.ID)
	}
	if left := time.Until(s.Until()); left > time.Hour || left < 59*time.Minute {
		t.Errorf("the identity ends in %v", left)
	}
	other := *w
	other.ID = spiffeid.RequireFromString("spiffe://cluster.test/ns/a/sa/other")
	if _, err := s.X509(t.Context(), &other); err == nil {
		t.Error("an SVID for another workload")
	}
	if _, err := s.JWT(t.Context(), identity.JWTRequest{Workload: &other, Audience: upstream}); err == nil {
		t.Error("a token for another workload")
	}

	t.Run("tokens are reused", func(t *testing.T) {
		before := r.count("jwt", "issued")
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, err := s.JWT(t.Context(), identity.JWTRequest{Workload: w, Audience: upstream}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := r.count("jwt", "issued") - before; n != 1 {
			t.Errorf("%d tokens were asked for, want 1", n)
		}
		for _, req := range []identity.JWTRequest{
			{Workload: w, Audience: upstream, Claims: map[string]any{"a": "b"}}, {Workload: w, Audience: upstream, TTL: time.Minute},
			{Workload: w, Audience: upstream, ClientID: w.ID.String()}, {Workload: w, Audience: upstream, ClientID: w.ID.String()},
		} {
			if _, err := s.JWT(t.Context(), req); err != nil {
				t.Error(err)
			}
		}
		if n := r.count("jwt", "issued") - before; n != 5 {
			t.Errorf("%d tokens after other requests, want 5: client assertions are used once", n)
		}
	})
	t.Run("refusals are no outage", func(t *testing.T) {
		_, err := s.JWT(t.Context(), identity.JWTRequest{Workload: w, Audience: "https://evil.example"})
		if err == nil || errors.Is(err, identity.ErrUnavailable) {
			t.Errorf("got %v, want a refusal that no retry helps", err)
		}
		if err := s.Ready(); err != nil {
			t.Errorf("the identity is lost: %v", err)
		}
	})
	t.Run("posture that becomes known", func(t *testing.T) {
		a.report("containerd://start-1", 0, appRuns)
		a.read()
		now, err := r.server.Workload(t.Context(), a.pod)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Update(now); err != nil {
			t.Fatal(err)
		}
		if got := <-updates; len(got.Images) != 1 || !strings.HasSuffix(got.Images[0], appDigest) || s.Workload() != got {
			t.Errorf("images: %v", got.Images)
		}
		before := r.count("jwt", "issued")
		if _, err := s.JWT(t.Context(), identity.JWTRequest{Workload: w, Audience: upstream}); err != nil {
			t.Fatal(err)
		}
		if n := r.count("jwt", "issued") - before; n != 1 {
			t.Error("a token with the old posture was reused")
		}
		foreign := &controlpb.Workload{SpiffeId: now.SpiffeId, Namespace: now.Namespace, PodUid: "6d15415a-092f-4aa1-a534-7d62a0cf196c"}
		if err := s.Update(foreign); err == nil {
			t.Error("took over what is said of another pod")
		}
	})
	for _, secret := range []string{a.token} {
		if strings.Contains(s.log.String(), secret) || strings.Contains(r.logged(), secret) {
			t.Error("a log holds the token")
		}
	}
}

// TestSourceVerifiesControl: a stranger at the control plane's address never
// sees the token.
func TestSourceVerifiesControl(t *testing.T) {
	r, foreign := start(t), start(t)
	a := r.admit("agent", nil, nil)
	for name, change := range map[string]func(*kubernetes.Config){
		"another cluster's control plane": func(c *kubernetes.Config) { c.Control = foreign.addr },
		"another name": func(c *kubernetes.Config) {
			c.Control = "localhost" + foreign.addr[strings.LastIndex(foreign.addr, ":"):]
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := a.source(t, change)
			eventually(t, "an attempt", func() bool { return strings.Contains(s.log.String(), "pod not attested") })
			if err := s.Ready(); err == nil || !strings.Contains(err.Error(), "certificate") {
				t.Errorf("got %v, want a failed verification", err)
			}
			if n := foreign.count("x509", "issued") + foreign.count("x509", "refused"); n != 0 {
				t.Error("the stranger was asked")
			}
		})
	}
}

// TestSourceRenews at half of the SVID's life, without a moment in which there
// is none.
func TestSourceRenews(t *testing.T) {
	t.Parallel()
	r := start(t, func(_ *issuer.Config, k *issuer.KeysConfig) { k.X509TTL = 20 * time.Second })
	a := r.admit("agent", nil, nil)
	s := a.source(t)
	s.mustWait(t)
	first, err := s.X509(t.Context(), s.Workload())
	if err != nil {
		t.Fatal(err)
	}
	serials := map[string]bool{}
	eventually(t, "a renewal", func() bool {
		v, err := s.X509(t.Context(), s.Workload())
		if err != nil {
			t.Fatalf("without an identity: %v", err)
		}
		serials[v.Certificates[0].SerialNumber.String()] = true
		return len(serials) >= 2
	})
	renewals := 0
	r.mu.Lock()
	for _, e := range r.events {
		if e.Kind == "x509" && e.Renewal {
			renewals++
		}
	}
	r.mu.Unlock()
	if renewals < 1 {
		t.Error("the renewal did not show the SVID that it renews")
	}
	if v, err := s.X509(t.Context(), s.Workload()); err != nil || v.PrivateKey != first.PrivateKey {
		t.Errorf("the key changed in the life of a sidecar: %v", err)
	}
	if _, err := s.JWT(t.Context(), identity.JWTRequest{Workload: s.Workload(), Audience: upstream}); err != nil {
		t.Errorf("a token with the renewed SVID: %v", err)
	}
}

// TestSourceOutlivesControl: an unreachable control plane does not end the
// identity before it expires, and it is there again by itself.
func TestSourceOutlivesControl(t *testing.T) {
	t.Parallel()
	r := start(t, func(_ *issuer.Config, k *issuer.KeysConfig) { k.X509TTL = 15 * time.Second })
	a := r.admit("agent", nil, nil)
	var at atomic.Value // where the control plane listens
	at.Store(r.addr)
	s := a.source(t, func(c *kubernetes.Config) {
		c.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
			return dialFrom(a.address)(ctx, at.Load().(string))
		}
	})
	s.mustWait(t)
	r.stop()
	if err := s.Ready(); err != nil {
		t.Errorf("right after the control plane went: %v", err)
	}
	eventually(t, "the end of the SVID", func() bool { return s.Ready() != nil })
	if _, err := s.JWT(t.Context(), identity.JWTRequest{Workload: s.Workload(), Audience: upstream}); !errors.Is(err, identity.ErrUnavailable) {
		t.Errorf("got %v, want unavailable", err)
	}
	if !s.Until().IsZero() {
		t.Error("an expired identity has an end in the future")
	}
	r.listen()
	at.Store(r.addr)
	eventually(t, "the identity to come back", func() bool { return s.Ready() == nil })
}

// TestSourceIsRefused: a refusal ends the identity at once.
func TestSourceIsRefused(t *testing.T) {
	t.Parallel()
	r := start(t, func(_ *issuer.Config, k *issuer.KeysConfig) { k.X509TTL = 30 * time.Second })
	a := r.admit("agent", nil, nil)
	s := a.source(t)
	s.mustWait(t)
	until := s.Until()
	ns := &corev1.Namespace{}
	if err := r.c.Get(t.Context(), types.NamespacedName{Name: r.ns}, ns); err != nil {
		t.Fatal(err)
	}
	delete(ns.Labels, "attache.dev/inject")
	if err := r.c.Update(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the refusal", func() bool { return s.Ready() != nil })
	if time.Now().After(until) {
		t.Fatal("the identity expired; the refusal did not end it")
	}
	if err := s.Ready(); !strings.Contains(err.Error(), "is not labelled attache.dev/inject=enabled") {
		t.Errorf("the reason is lost: %v", err)
	}
}

// TestSourceRestarts: a sidecar that was killed attests with a new key as soon
// as the kubelet reports its new start.
func TestSourceRestarts(t *testing.T) {
	t.Parallel()
	r := start(t)
	a := r.admit("agent", nil, nil)
	first := a.source(t)
	first.mustWait(t)
	first.stop()
	second := a.source(t)
	eventually(t, "a refusal while the kubelet says nothing", func() bool { return r.lastEvent().Reason == "second_key" })
	if second.Ready() == nil {
		t.Fatal("two keys are live")
	}
	a.report("containerd://start-2", 1)
	second.mustWait(t)
	if second.Workload().RunID != first.Workload().RunID {
		t.Error("the run changed; it is the pod's life")
	}
}

// TestSourceSkew: a wrong clock is said, and shortens nothing.
func TestSourceSkew(t *testing.T) {
	for name, ahead := range map[string]time.Duration{"behind": -2 * time.Minute, "ahead": 2 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			r := start(t)
			a := r.admit("agent", nil, nil)
			r.ahead.Store(int64(ahead))
			s := a.source(t)
			s.mustWait(t)
			if d := s.Skew() - ahead; d.Abs() > 20*time.Second {
				t.Errorf("skew: got %v, want %v", s.Skew(), ahead)
			}
			if !strings.Contains(s.log.String(), "clocks") {
				t.Errorf("the log says nothing:\n%s", s.log)
			}
			if left := time.Until(s.Until()); left > time.Hour || left < 58*time.Minute {
				t.Errorf("the identity ends in %v, want an hour", left)
			}
		})
	}
}

// TestSourceReadsTheTokenAnew: the kubelet replaces the file.
func TestSourceReadsTheTokenAnew(t *testing.T) {
	r := start(t)
	a := r.admit("agent", nil, nil)
	good := a.token
	a.token = "stale"
	file := ""
	s := a.source(t, func(c *kubernetes.Config) { file = c.TokenFile })
	eventually(t, "a refusal", func() bool { return r.lastEvent().Reason == "token" })
	if err := os.WriteFile(file, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	s.mustWait(t)
}
