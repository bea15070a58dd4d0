package e2e

import (
	"bufio"
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Upstreams whose certificate does not verify get no call.
func TestUpstreamCertificate(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	tests := []struct {
		name   string
		serve  func(h http.Handler) string
		reason string
	}{
		{"expired", func(h http.Handler) string { return ca.serve(ca.leaf(time.Now().Add(-time.Hour), apiHost), h) }, "expired"},
		{"wrong name", func(h http.Handler) string { return ca.serve(ca.leaf(time.Now().Add(time.Hour), "other.e2e.test"), h) }, "another name"},
		{"unknown authority", func(h http.Handler) string {
			other := newAuthority(t)
			return other.serve(other.leaf(time.Now().Add(time.Hour), apiHost), h)
		}, "authority is unknown"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w, i := newWorld(t), newIssuer(t)
			o := &origin{ca: ca, stop: make(chan struct{})}
			o.addr = tt.serve(o)
			w.write("provider.yaml", i.provider(o, ""))
			w.write("policy.yaml", o.allow(", credential: {provider: tokens}"))
			r := w.run(curl("https://" + apiHost + "/v1/x")...)
			rec := w.refused(r, 502, "upstream_tls")
			if body, _ := r.answer(t); !strings.Contains(body, tt.reason) {
				t.Errorf("the answer does not say %q: %s", tt.reason, body)
			}
			if len(o.requests()) != 0 || rec.Result.Outcome != "error" {
				t.Errorf("%d requests went out, outcome %s", len(o.requests()), rec.Result.Outcome)
			}
		})
	}
}

// Clients that speak no honest protocol: the process survives, counts them,
// and serves the next one.
func TestHostileClients(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w, o := newWorld(t), newOrigin(t)
	w.write("policy.yaml", o.allow(""))
	a := w.waiting("--log-level", "info")
	for _, tt := range []struct{ name, host, says string }{
		{"garbage", apiHost, "garbage done"}, {"headers", apiHost, "431"}, {"silence", apiHost, "silence done"},
		{"no-sni", apiHost, "200 OK"},  // the tunnel's own name is the destination
		{"no-sni", "127.0.0.1", "403"}, // an address that no rule names
		{"reset-flood", apiHost, "reset-flood done"},
	} {
		got := w.does(a, self+" agent "+tt.name+" "+tt.host)
		if !strings.Contains(got, tt.says) || !strings.Contains(got, tt.name+" done") {
			t.Errorf("%s: %s", tt.name, got)
		}
		t.Logf("%s: %s", tt.name, got)
	}
	if got := w.does(a, "curl -sS -m 10 https://"+apiHost+"/v1/after"); got != `{"path":"/v1/after"}` {
		t.Errorf("afterwards: %s", got)
	}
	counted := 0.0
	kinds := map[string]bool{}
	text := bufio.NewScanner(strings.NewReader(w.admin("/metrics")))
	for text.Scan() {
		if l, ok := strings.CutPrefix(text.Text(), `attache_connection_events_total{kind="`); ok {
			kind, v, _ := strings.Cut(l, `"} `)
			n, _ := strconv.ParseFloat(v, 64)
			counted += n
			kinds[kind] = true
		}
	}
	// Of those who left before they were looked at there may be any number.
	for _, kind := range []string{"client-tls", "header-count", "method", "target-length"} {
		if !kinds[kind] {
			t.Errorf("%v connection events of kinds %v, none of them %s", counted, kinds, kind)
		}
	}
	t.Log(counted, kinds)
	for _, r := range o.requests() {
		if strings.Contains(r.URL.Path, "headers") || r.Host != apiHost {
			t.Errorf("went upstream: %s", r.URL)
		}
	}
	// Each stream of the flood that was begun was also ended.
	eventually(t, "no call stays open", func() bool { return len(w.requests("outcome:open")) == 0 })
	var why []string
	for line := range strings.SplitSeq(a.err.String(), "\n") {
		if !strings.HasPrefix(line, "{") {
			continue
		}
		var l struct{ Time, Level, Msg string }
		if err := json.Unmarshal([]byte(line), &l); err != nil || l.Time == "" || l.Level == "" || l.Msg == "" {
			t.Errorf("not a log line: %s", line)
		}
		why = append(why, l.Msg)
	}
	if !slices.Contains(why, "a client broke off TLS") {
		t.Errorf("no log line tells of the garbage: %q", why)
	}
	if len(why) > 200 {
		t.Errorf("the flood makes %d log lines", len(why))
	}
	_ = a.cmd.Process.Signal(os.Interrupt)
	<-a.done
	w.orderly()
}
