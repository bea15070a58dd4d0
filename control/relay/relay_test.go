package relay_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attache-dev/attache/control/relay"
)

// The relay puts the key on, the origin gets it, and records on both sides
// name the call.
func TestRelay(t *testing.T) {
	for _, h2 := range []bool{true, false} {
		t.Run(map[bool]string{true: "HTTP/2", false: "HTTP/1.1"}[h2], func(t *testing.T) {
			g := start(t, nil)
			g.agent = agent(g.proxy, g.plane.CA(), h2)
			var got http.Header
			g.handle(func(w http.ResponseWriter, r *http.Request) {
				got = r.Header.Clone()
				b, _ := io.ReadAll(r.Body)
				w.Header().Set("X-Request-Id", "vendor-1")
				w.WriteHeader(http.StatusCreated)
				_, _ = io.WriteString(w, r.Host+" "+r.RequestURI+" "+string(b))
			})
			r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://api.model.test/v1/a%20b?x=1", strings.NewReader("prompt"))
			r.Header.Set("Authorization", "Bearer the-agents-own")
			r.Header.Set("Attache-Relay-Handle", "cred_forged")
			a := g.do(r)
			if a.err != nil || a.status != http.StatusCreated || a.body != "api.model.test /v1/a%20b?x=1 prompt" {
				t.Fatalf("answered %d %v %q\n%s", a.status, a.err, a.body, g.logs)
			}
			if got.Get("Authorization") != "Bearer "+root {
				t.Errorf("the origin got %q", got.Get("Authorization"))
			}
			for k := range got {
				if strings.HasPrefix(k, "Attache") {
					t.Errorf("the origin got %s", k)
				}
			}
			rec := g.recordOf(a)
			if !strings.HasSuffix(got.Get("User-Agent"), "attache/"+rec.ID) || strings.Count(got.Get("User-Agent"), "attache/") != 1 {
				t.Errorf("User-Agent is %q, record %s", got.Get("User-Agent"), rec.ID)
			}
			if rec.Credential == nil || rec.Credential.Kind != "relay" || rec.Request.Address != g.origin.Listener.Addr().String() || rec.Result.UpstreamRequestID != "vendor-1" {
				t.Errorf("record is %+v %+v %+v", rec.Credential, rec.Request, rec.Result)
			}
			sent, ended := g.seen("sent"), g.seen("ended")
			if len(sent) != 1 || len(ended) != 1 {
				t.Fatalf("events: %+v", g.events)
			}
			e := ended[0]
			if e.Record != rec.ID || e.Handle != rec.Credential.Handle || e.Provider != "model" || e.Root != "attache-system/model-key" || e.Rule != "chat" ||
				e.Owner != "team@example.com" || e.Status != http.StatusCreated || e.Outcome != "ok" || e.PodUID != uid || e.BytesUp != 6 || e.Address == "" {
				t.Errorf("event is %+v", e)
			}
		})
	}
}

// The control plane decides again: whatever a sidecar holds to be allowed.
func TestDecidesAgain(t *testing.T) {
	reached := 0
	newRig := func(t *testing.T) *rig {
		g := start(t, nil)
		reached = 0
		g.handle(func(http.ResponseWriter, *http.Request) { reached++ })
		return g
	}
	t.Run("policy changed", func(t *testing.T) {
		g := newRig(t)
		g.bundle.Store(g.documents(strings.Replace(objects, "methods: [GET, POST]", "methods: [POST]", 1), "team"))
		a := g.get("https://api.model.test/v1/x")
		g.refused(a, http.StatusForbidden, "relay_denied")
		if d := g.seen("denied"); reached != 0 || len(d) != 1 || !strings.Contains(d[0].Reason, "no rule") {
			t.Errorf("reached %d, events %+v", reached, d)
		}
	})
	t.Run("destination not in the provider", func(t *testing.T) {
		g := newRig(t)
		g.bundle.Store(g.documents(strings.Replace(objects, "{host: api.model.test,", "{host: other.model.test,", 1), "team"))
		g.refused(g.get("https://api.model.test/v1/x"), http.StatusForbidden, "relay_denied")
		if reached != 0 {
			t.Error("the origin was reached")
		}
	})
	t.Run("namespace not allowed", func(t *testing.T) {
		g := newRig(t)
		g.bundle.Store(g.documents(strings.Replace(objects, "names: [team]", "names: [other]", 1), "team"))
		g.refused(g.get("https://api.model.test/v1/x"), http.StatusForbidden, "relay_denied")
		if reached != 0 {
			t.Error("the origin was reached")
		}
	})
	t.Run("provider by the sidecar now", func(t *testing.T) {
		g := newRig(t)
		g.bundle.Store(g.documents(strings.Replace(objects, ", inject: {by: relay}", "", 1), "team"))
		g.refused(g.get("https://api.model.test/v1/x"), http.StatusForbidden, "relay_denied")
		if reached != 0 {
			t.Error("the origin was reached")
		}
	})
	t.Run("pod unknown", func(t *testing.T) {
		g := newRig(t)
		g.bundle.Store(nil)
		g.refused(g.get("https://api.model.test/v1/x"), http.StatusServiceUnavailable, "relay_unavailable")
	})
	t.Run("Secret gone", func(t *testing.T) {
		g := newRig(t)
		g.secrets.mu.Lock()
		clear(g.secrets.kept)
		g.secrets.mu.Unlock()
		g.refused(g.get("https://api.model.test/v1/x"), http.StatusForbidden, "mint_denied")
	})
	t.Run("not recorded", func(t *testing.T) {
		g := newRig(t)
		g.full = errors.New("disk full")
		g.refused(g.get("https://api.model.test/v1/x"), http.StatusServiceUnavailable, "relay_unavailable")
		if reached != 0 {
			t.Error("a call that is in no record was made")
		}
	})
	t.Run("private address", func(t *testing.T) {
		g := newRig(t)
		g.refused(g.get("https://own.test/"), http.StatusForbidden, "address_refused")
	})
	t.Run("untrusted certificate", func(t *testing.T) {
		g := newRig(t)
		g.refused(g.get("https://untrusted.model.test/"), http.StatusBadGateway, "upstream_tls")
		if reached != 0 {
			t.Error("the origin was reached")
		}
	})
	t.Run("encoded slash", func(t *testing.T) {
		g := newRig(t)
		g.refused(g.get("https://api.model.test/a%2fforbidden/x"), http.StatusBadRequest, "bad_path")
	})
}

// Where the relay is down, calls that need it fail with a word, and others go
// on.
func TestRelayDown(t *testing.T) {
	g := start(t, nil)
	if a := g.get("https://api.model.test/"); a.status != http.StatusOK {
		t.Fatalf("before: %d %v %s", a.status, a.err, a.body)
	}
	_ = g.http.Close()
	a := g.get("https://api.model.test/")
	g.refused(a, http.StatusServiceUnavailable, "relay_unavailable")
	if a.header.Get("Retry-After") == "" || !strings.Contains(a.body, `relay`) {
		t.Errorf("refusal is %v %s", a.header, a.body)
	}
	r := g.get("https://api.model.test/", "Content-Type", "application/grpc")
	if r.trailer.Get("Grpc-Status") != "14" {
		t.Errorf("gRPC got %d %v %v", r.status, r.header, r.trailer)
	}
}

// An origin's echo of the key reaches nobody.
func TestEcho(t *testing.T) {
	g := start(t, nil)
	g.handle(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Echo", r.Header.Get("Authorization"))
		_, _ = io.WriteString(w, `{"you":"`+r.Header.Get("Authorization")+`"}`)
	})
	a := g.get("https://api.model.test/")
	if strings.Contains(a.body, root) || strings.Contains(a.header.Get("X-Echo"), root) {
		t.Errorf("the key came back: %v %q", a.header, a.body)
	}
	if a.status == http.StatusOK && a.err == nil && !strings.Contains(a.body, `"you":"Bearer `) {
		t.Errorf("answer is %q", a.body)
	}
}

// A changed Secret is used for the next call after a 401.
func TestRotation(t *testing.T) {
	g := start(t, nil)
	good := root
	g.handle(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+good {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	if a := g.get("https://api.model.test/"); a.status != http.StatusOK {
		t.Fatalf("answered %d %s", a.status, a.body)
	}
	good = "sk-the-next-one-0123456789"
	g.secrets.set("attache-system/model-key/key", good)
	if a := g.get("https://api.model.test/"); a.status != http.StatusOK {
		t.Errorf("after rotation: %d %s", a.status, a.body)
	}
	if n := g.secrets.reads; n != 2 {
		t.Errorf("the Secret was read %d times", n)
	}
}

// A pod may have so many calls under way, and then is told to wait.
func TestTooMany(t *testing.T) {
	g := start(t, nil)
	hold := make(chan struct{})
	g.handle(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			<-hold
		}
	})
	results := make(chan answer, 256)
	for range 256 {
		go func() { results <- g.get("https://api.model.test/hold") }()
	}
	deadline := time.Now().Add(20 * time.Second)
	for len(g.seen("sent")) < 256 && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
	}
	g.refused(g.get("https://api.model.test/"), http.StatusTooManyRequests, "rate_limited")
	close(hold)
	for range 256 {
		if a := <-results; a.status != http.StatusOK {
			t.Errorf("a held call ended with %d %v", a.status, a.err)
		}
	}
	if a := g.get("https://api.model.test/"); a.status != http.StatusOK {
		t.Errorf("afterwards: %d", a.status)
	}
}

// A pod that calls too often is put off before anything is done for it, and
// fills no spool: one record a minute says how often.
func TestTooOften(t *testing.T) {
	now := time.Now()
	var mu sync.Mutex
	g := start(t, func(c *relay.Config) {
		c.Rate = 1
		c.Now = func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return now
		}
	})
	for range 4 {
		if a := g.get("https://api.model.test/"); a.status != http.StatusOK {
			t.Fatalf("within the allowance: %d", a.status)
		}
	}
	for range 20 {
		g.refused(g.get("https://api.model.test/"), http.StatusTooManyRequests, "rate_limited")
	}
	if n := len(g.seen("denied")); n != 1 {
		t.Errorf("%d refusals are recorded", n)
	}
	mu.Lock()
	now = now.Add(2 * time.Second)
	mu.Unlock()
	if a := g.get("https://api.model.test/"); a.status != http.StatusOK {
		t.Errorf("after a while: %d", a.status)
	}
	if n := len(g.seen("sent")); n != 5 {
		t.Errorf("%d were sent", n)
	}
	mu.Lock()
	now = now.Add(time.Minute)
	mu.Unlock()
	for range 10 {
		g.get("https://api.model.test/")
	}
	if l := g.seen("denied"); len(l) != 2 || !l[0].Counted || !l[1].Counted || l[0].Unrecorded != 0 || l[1].Unrecorded != 19 {
		t.Errorf("refusals: %+v", l)
	}
}
