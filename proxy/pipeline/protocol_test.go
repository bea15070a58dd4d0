package pipeline_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/attache-dev/attache/audit"
)

// Both sides choose their protocol by themselves.
func TestAllFourProtocolCombinations(t *testing.T) {
	for _, c := range []struct {
		name, url  string
		h2         bool
		want, from string
	}{
		{"h1 to h1", "https://h1.test/a?b=c", false, "HTTP/1.1", "HTTP/1.1"},
		{"h1 to h2", "https://api.test/a?b=c", false, "HTTP/2.0", "HTTP/1.1"},
		{"h2 to h1", "https://h1.test/a?b=c", true, "HTTP/1.1", "HTTP/2.0"},
		{"h2 to h2", "https://api.test/a?b=c", true, "HTTP/2.0", "HTTP/2.0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, settings{})
			r.serve(func(w http.ResponseWriter, q *http.Request) {
				b, _ := io.ReadAll(q.Body)
				w.Header().Set("X-Request-Id", "origin-7")
				_, _ = fmt.Fprintf(w, "%s|%s|%s|%s|%s|%t", q.Proto, q.Host, q.Method, q.RequestURI, b, q.Header.Get("Authorization") == "Bearer "+r.as.minted()[0])
			})
			got := r.do(r.client(c.h2), http.MethodPost, c.url, strings.NewReader("hello"), "User-Agent", "agent/1")
			host := strings.Split(c.url, "/")[2]
			if want := c.want + "|" + host + "|POST|/a?b=c|hello|true"; got.body != want || got.Proto != c.from {
				t.Errorf("got %q over %s, want %q over %s", got.body, got.Proto, want, c.from)
			}
			rec := r.record()
			if rec.ID != got.Header.Get("Attache-Record") || rec.Result.Outcome != audit.OutcomeOK || rec.Result.Status != 200 ||
				rec.Result.BytesUp != 5 || rec.Result.BytesDown != int64(len(got.body)) || rec.Result.UpstreamRequestID != "origin-7" {
				t.Errorf("record %+v", rec.Result)
			}
			q := rec.Request
			if q.Host != host || q.Path != "/a" || q.Door != "connect" || q.Address != r.secure || q.HTTPVersion != c.from || q.UserAgent != "agent/1" || len(q.QueryKeys) != 1 {
				t.Errorf("request %+v", q)
			}
			if u := rec.Credential; u == nil || u.Provider != "tok" || u.Cached || u.TTLSeconds < 60 || u.Handle == "" {
				t.Errorf("credential %+v", u)
			}
			if rec.Decision.Rule != "api" || rec.Decision.Verdict != "inject" || rec.Workload.ID != r.workload.ID.String() || rec.Process.PID != 42 {
				t.Errorf("decision %+v", rec.Decision)
			}
		})
	}
}
