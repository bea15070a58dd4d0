package relay_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attache-dev/attache/control/peer"
	"github.com/attache-dev/attache/control/relay"
	"github.com/attache-dev/attache/control/xds/xdstest"
)

// raw is a caller of the relay that is no sidecar of ours.
func (g *rig) raw(cfg *tls.Config, change func(*http.Request)) answer {
	g.t.Helper()
	cfg = cfg.Clone()
	cfg.NextProtos = []string{"h2", "http/1.1"}
	tr := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	r, _ := http.NewRequestWithContext(g.t.Context(), http.MethodGet, "https://"+g.addr+"/v1/x", nil)
	r.Host = "api.model.test"
	for k, v := range map[string]string{"To": "https://api.model.test:443", "Handle": "cred_" + strings.Repeat("a", 32), "Record": "rec_" + strings.Repeat("b", 32)} {
		r.Header.Set("Attache-Relay-"+k, v)
	}
	if change != nil {
		change(r)
	}
	resp, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Do(r)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{status: resp.StatusCode, header: resp.Header, body: string(b), err: err}
}

// Only the pod that a verified certificate names is served, and what it says of
// itself counts for nothing.
func TestIdentity(t *testing.T) {
	var reached atomic.Int64
	g := start(t, nil)
	g.handle(func(http.ResponseWriter, *http.Request) { reached.Add(1) })
	hour := time.Now().Add(time.Hour)
	foreign := xdstest.NewAuthority(t).SVID("team", "agent", uid, hour)
	deny := func(name string, a answer, status int, code string) {
		t.Helper()
		if a.err != nil || a.status != status || a.header.Get("Attache-Error") != code {
			t.Errorf("%s: %d %q %v %s; want %d %s", name, a.status, a.header.Get("Attache-Error"), a.err, a.body, status, code)
		}
	}
	if a := g.raw(g.ca.Client(), nil); a.err == nil {
		t.Errorf("no certificate: %d", a.status)
	}
	if a := g.raw(g.ca.Client(foreign), nil); a.err == nil {
		t.Errorf("another authority's certificate: %d", a.status)
	}
	if a := g.raw(g.ca.Client(g.ca.SVID("team", "agent", uid, time.Now().Add(-time.Minute))), nil); a.err == nil {
		t.Errorf("expired certificate: %d", a.status)
	}
	deny("a pod that is not there", g.raw(g.ca.Client(g.ca.SVID("team", "agent", "gone", hour)), nil), http.StatusServiceUnavailable, "relay_unavailable")
	deny("a service account that is not the pod's", g.raw(g.ca.Client(g.ca.SVID("team", "other", uid, hour)), nil), http.StatusForbidden, "unattested")
	deny("another namespace's provider", g.raw(g.ca.Client(g.svid()), func(r *http.Request) {
		r.Host = "api.foreign.test"
		r.Header.Set("Attache-Relay-To", "https://api.foreign.test:443")
	}), http.StatusForbidden, "denied")
	deny("a call without a credential", g.raw(g.ca.Client(g.svid()), func(r *http.Request) {
		r.Host = "open.test"
		r.Header.Set("Attache-Relay-To", "https://open.test:443")
	}), http.StatusForbidden, "denied")
	deny("a credential that is leased", g.raw(g.ca.Client(g.svid()), func(r *http.Request) {
		r.Host = "leased.test"
		r.Header.Set("Attache-Relay-To", "https://leased.test:443")
	}), http.StatusForbidden, "denied")
	for name, change := range map[string]func(*http.Request){
		"two places":       func(r *http.Request) { r.Host = "own.test" },
		"no call":          func(r *http.Request) { r.Header.Del("Attache-Relay-To") },
		"two destinations": func(r *http.Request) { r.Header.Add("Attache-Relay-To", "https://own.test:443") },
		"no handle":        func(r *http.Request) { r.Header.Set("Attache-Relay-Handle", "mine") },
		"no record":        func(r *http.Request) { r.Header.Set("Attache-Relay-Record", "rec_\u00e4") },
	} {
		deny(name, g.raw(g.ca.Client(g.svid()), change), http.StatusBadRequest, "bad_request")
	}
	deny("a task of its own", g.raw(g.ca.Client(g.svid()), func(r *http.Request) { r.Header.Set("Attache-Task", "task_1") }), http.StatusForbidden, "task_unknown")
	if reached.Load() != 0 {
		t.Errorf("the origin was reached %d times", reached.Load())
	}
	if a := g.raw(g.ca.Client(g.svid()), nil); a.status != http.StatusOK || reached.Load() != 1 {
		t.Errorf("the pod itself: %d %s", a.status, a.body)
	}
}

// The attestation behind a certificate is looked at again, not for each call.
func TestAttestedAgain(t *testing.T) {
	var asked atomic.Int64
	var refuse atomic.Bool
	g := start(t, func(c *relay.Config) {
		c.Peer = func(ctx context.Context) (peer.Pod, error) {
			asked.Add(1)
			if refuse.Load() {
				return peer.Pod{}, errors.New("a second key of this pod")
			}
			return peer.PeerPod(ctx)
		}
	})
	for range 3 {
		if a := g.get("https://api.model.test/"); a.status != http.StatusOK {
			t.Fatalf("answered %d %s", a.status, a.body)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("attested %d times", n)
	}
	refuse.Store(true)
	if a := g.raw(g.ca.Client(g.ca.SVID("other", "agent", "another", time.Now().Add(time.Hour))), nil); a.status != http.StatusUnauthorized {
		t.Errorf("answered %d", a.status)
	}
}

// What the control plane hands to a pod and what the pod keeps hold no key:
// documents, live credentials, records, logs and answers.
func TestKeyIsNowhere(t *testing.T) {
	g := start(t, nil)
	a := g.get("https://api.model.test/")
	if a.status != http.StatusOK {
		t.Fatalf("answered %d %s", a.status, a.body)
	}
	live, err := json.Marshal(g.plane.Live())
	if err != nil || !strings.Contains(string(live), `"relay"`) {
		t.Errorf("live credentials: %s, %v", live, err)
	}
	events, _ := json.Marshal(g.seen("ended"))
	for name, text := range map[string]string{
		"bundle": string(g.bundle.Load().Documents), "live": string(live), "record": toJSON(g.recordOf(a)), "log": g.logs.String(),
		"answer": a.body + toJSON(a.header), "events": string(events),
	} {
		if strings.Contains(text, root) || strings.Contains(text, "sk-vendor") {
			t.Errorf("%s holds the key: %s", name, text)
		}
	}
}

func toJSON(v any) string { return string(must(json.Marshal(v))) }
