package upstream_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/proxy/destination"
	"github.com/attache-dev/attache/proxy/upstream"
)

// plainOrigin answers each request with a head of some size. It never sends
// 100 Continue.
func plainOrigin(t *testing.T, headBytes int) (destination.Destination, v1alpha1.Destination) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for br := bufio.NewReader(c); ; {
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					b, _ := io.ReadAll(r.Body)
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nX-Long: "+strings.Repeat("x", headBytes)+"\r\nContent-Length: "+strconv.Itoa(len(b))+"\r\n\r\n"+string(b))
				}
			}()
		}
	}()
	return destination.Destination{Scheme: "http", Host: "plain.test", Port: 80},
		v1alpha1.Destination{Scheme: "http", Host: "plain.test", Addresses: []string{ln.Addr().String()}}
}

func TestMaxAnswerHeaderBytes(t *testing.T) {
	d, spec := plainOrigin(t, 8<<10)
	for limit, fits := range map[int]bool{4 << 10: false, 16 << 10: true} {
		l := limits()
		l.MaxAnswerHeaderBytes = limit
		r := newRig(t, upstream.Config{Limits: l}, spec)
		if _, err := r.get(t, d, upstream.Who{}); (err == nil) != fits {
			t.Errorf("a head of 8 KiB and a limit of %d: got %v", limit, err)
		}
	}
}

func TestOriginIdleTimeout(t *testing.T) {
	d, spec := plainOrigin(t, 1)
	for idle, dials := range map[time.Duration]int64{50 * time.Millisecond: 2, time.Minute: 1} {
		l := limits()
		l.OriginIdleTimeout = v1alpha1.Duration(idle)
		r := newRig(t, upstream.Config{Limits: l}, spec)
		for range 2 {
			if _, err := r.get(t, d, upstream.Who{}); err != nil {
				t.Fatal(err)
			}
			<-time.After(300 * time.Millisecond)
		}
		if n := r.dials.Load(); n != dials {
			t.Errorf("%v: %d dials for two requests, want %d", idle, n, dials)
		}
	}
}

func TestContinueTimeout(t *testing.T) {
	d, spec := plainOrigin(t, 1)
	for _, wait := range []time.Duration{20 * time.Millisecond, time.Second} { // not the default, 3 s
		l := limits()
		l.ContinueTimeout = v1alpha1.Duration(wait)
		r := newRig(t, upstream.Config{Limits: l}, spec)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://plain.test/", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Expect", "100-continue")
		start := time.Now()
		resp, err := r.pool.Send(req, d, upstream.Who{})
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if took := time.Since(start); string(b) != "body" || err != nil || took < wait || took > wait+1900*time.Millisecond {
			t.Errorf("%v: got %q, %v after %v", wait, b, err, took)
		}
	}
}
