package pipeline_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/proxy/pipeline"
)

// What passes through a tunnel, in either direction, keeps it open beyond
// limits.tunnelIdleTimeout; where nothing does, it is cut and recorded so, also
// when the agent has half-closed its side.
func TestIdleTunnels(t *testing.T) {
	const limit, tick, busy = time.Second, 100 * time.Millisecond, 2 * time.Second // busy is longer than an idle tunnel may live
	stream := func(w io.Writer, flush func(), path string) {
		if path != "/busy" {
			return
		}
		for range busy / tick {
			_, _ = io.WriteString(w, "x")
			flush()
			<-time.After(tick)
		}
	}
	origin := func(hold <-chan struct{}) http.HandlerFunc {
		return func(w http.ResponseWriter, q *http.Request) {
			if q.Header.Get("Upgrade") == "" { // passthrough: a body that does not end
				rc := http.NewResponseController(w)
				_ = rc.Flush()
				stream(w, func() { _ = rc.Flush() }, q.URL.Path)
				<-hold
				return
			}
			w.Header().Set("Upgrade", "websocket")
			w.Header().Set("Connection", "Upgrade")
			w.WriteHeader(http.StatusSwitchingProtocols)
			c, b, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			stream(b, func() { _ = b.Flush() }, q.URL.Path)
			<-hold
		}
	}
	for _, host := range []string{"pass.test", "h1.test"} {
		for _, path := range []string{"/idle", "/busy", "/half-closed", "/sends"} {
			t.Run(host+path, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, settings{config: "  limits: {tunnelIdleTimeout: " + limit.String() + "}"})
				hold := make(chan struct{})
				defer close(hold)
				r.serve(origin(hold))
				roots, upgrade := r.roots, "Connection: Upgrade\r\nUpgrade: websocket\r\n"
				if host == "pass.test" {
					roots, upgrade = x509.NewCertPool(), ""
					roots.AppendCertsFromPEM([]byte(r.caPEM)) // the origin's own certificate
				}
				c := tls.Client(r.tunnel(host+":443"), &tls.Config{RootCAs: roots, ServerName: host, NextProtos: []string{"http/1.1"}})
				_, _ = io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: "+host+"\r\n"+upgrade+"\r\n")
				br := bufio.NewReader(c)
				if _, err := http.ReadResponse(br, nil); err != nil {
					t.Fatal(err)
				}
				start, least := time.Now(), limit
				switch path {
				case "/half-closed":
					_ = c.CloseWrite()
				case "/busy":
					least += busy - tick
				case "/sends":
					least += busy - tick
					for range busy / tick {
						_, _ = io.WriteString(c, "y")
						<-time.After(tick)
					}
				}
				_, err := io.ReadAll(br)
				if took := time.Since(start); took < least || took > least+4*time.Second {
					t.Errorf("ended after %v (%v), want %v or a little more", took, err, least)
				}
				rec := r.record()
				if rec.Result.Outcome != audit.OutcomeError || rec.Result.ErrorKind != pipeline.CodeTunnelIdle {
					t.Errorf("record %+v", rec.Result)
				}
			})
		}
	}
}
