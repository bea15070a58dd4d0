package server

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// Anybody in the cluster can reach the port. Who begins reviews and sends no
// more of them keeps nobody else waiting, and is let go.
func TestSlowSenders(t *testing.T) {
	s := newTestServer(t, Options{Parallel: 4, Deadline: time.Second})
	srv := httptest.NewServer(s.Handler())
	defer srv.Close()
	neighbour := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	var slow []net.Conn
	for range 12 {
		c, err := neighbour.DialContext(t.Context(), "tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Skipf("no second loopback address: %v", err)
		}
		defer func() { _ = c.Close() }()
		if _, err := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{", PathMutate); err != nil {
			t.Fatal(err)
		}
		slow = append(slow, c)
	}
	for len(s.readers.of("127.0.0.2")) < 4 {
		time.Sleep(time.Millisecond)
	}
	began := time.Now()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+PathMutate, bytes.NewReader(reviewOf(deploymentPod, nil)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if took := time.Since(began); res.StatusCode != http.StatusOK || took > 900*time.Millisecond {
		t.Errorf("another sender got %s after %s", res.Status, took)
	}
	for _, c := range slow {
		_ = c.SetReadDeadline(time.Now().Add(6 * time.Second))
		if _, err := io.ReadAll(c); err != nil {
			t.Fatalf("a slow sender is not let go: %v", err)
		}
	}
	s.readers.mu.Lock()
	defer s.readers.mu.Unlock()
	if n := len(s.readers.from); n != 0 {
		t.Errorf("%d addresses are remembered", n)
	}
}

// of are the slots of addr that are taken.
func (r *readers) of(addr string) chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x := r.from[addr]; x != nil {
		return x.slots
	}
	return nil
}
