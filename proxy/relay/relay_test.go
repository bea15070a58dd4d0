package relay_test

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/proxy/relay"
)

// FuzzTake: whatever stands in the fields, a call that is taken is for the one
// place that the request itself is for, and nothing of the fields stays.
func FuzzTake(f *testing.F) {
	a := strings.Repeat("a", 32)
	f.Add("api.test", "https://api.test:443", "cred_"+a, "rec_"+a)
	f.Add("api.test:8443", "https://api.test:8443", "cred_"+a, "rec_"+a)
	f.Add("[::1]", "http://[::1]:80", "cred_"+a, "rec_"+a)
	f.Add("API.test", "https://API.test:443", "cred_"+a, "rec_"+a)
	f.Add("api.test", "https://evil.test:443", "cred_"+a, "rec_"+a)
	f.Add("api.test", "https://u@api.test:443/x?y#z", "cred_", "rec_"+a)
	f.Fuzz(func(t *testing.T, host, to, handle, record string) {
		r := &http.Request{Host: host, Header: http.Header{"Attache-Relay-To": {to}, "Attache-Relay-Handle": {handle}, "Attache-Relay-Record": {record}}}
		c, err := relay.Take(r)
		if err != nil {
			return
		}
		if !c.To.Is(host) || c.To.Scheme+"://"+c.To.HostPort() != to {
			t.Errorf("Host %q and %q gave %v", host, to, c.To)
		}
		if len(c.Handle) != 37 || len(c.Record) != 36 || len(r.Header) != 0 {
			t.Errorf("took %+v, left %v", c, r.Header)
		}
	})
}

// FuzzReadRefusal: no answer of a relay makes more of itself than a refusal.
func FuzzReadRefusal(f *testing.F) {
	f.Add("HTTP/1.1 403 F\r\nAttache-Error: denied\r\nContent-Length: 24\r\n\r\n{\"detail\":\"x\",\"code\":\"y\"}")
	f.Add("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
	f.Add("HTTP/1.1 503 F\r\nAttache-Error: x\r\nRetry-After: 99999999999999\r\n\r\n{")
	f.Fuzz(func(t *testing.T, text string) {
		resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(text)), nil)
		if err != nil {
			return
		}
		defer resp.Body.Close()
		got := relay.ReadRefusal(resp)
		if (got == nil) != (resp.Header.Get("Attache-Error") == "") {
			t.Errorf("%q gave %+v", text, got)
		}
		if got != nil && (got.Reason == "" || got.RetryAfter < 0) {
			t.Errorf("%q gave %+v", text, got)
		}
	})
}

// A refusal arrives as it was written.
func TestRefusal(t *testing.T) {
	w := httptest.NewRecorder()
	w.Header().Set("X-Origin", "left over")
	want := relay.Refusal{Status: http.StatusTooManyRequests, Code: "rate_limited", Reason: "wait", RetryAfter: 1500 * time.Millisecond}
	want.Write(w)
	resp := w.Result()
	got := relay.ReadRefusal(resp)
	want.RetryAfter = 2 * time.Second
	if got == nil || *got != want || resp.Header.Get("X-Origin") != "" {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if relay.ReadRefusal(&http.Response{StatusCode: 403, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("{}"))}) != nil {
		t.Error("an origin's own 403 counts as the relay's")
	}
}

func TestBeside(t *testing.T) {
	for in, want := range map[string]string{
		"attache-control.attache-system.svc:8443": "attache-control.attache-system.svc:8447", "10.0.0.1:1": "10.0.0.1:8447", "[fd00::1]:8443": "[fd00::1]:8447", "host": "host:8447",
	} {
		if got := relay.Beside(in); got != want {
			t.Errorf("Beside(%q) = %q, want %q", in, got, want)
		}
	}
}
