package front_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"testing"
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/proxy/front"
)

// idler keeps a connection over which it calls now and then.
type idler struct {
	c  *tls.Conn
	in *bufio.Reader
}

func (d *door) idler(t *testing.T) *idler {
	t.Helper()
	nc := d.dial(t)
	_ = nc.SetDeadline(time.Time{})
	c := tls.Client(nc, &tls.Config{RootCAs: d.roots, ServerName: "api.example.com"})
	return &idler{c, bufio.NewReader(c)}
}

func (i *idler) call(t *testing.T, path string) {
	t.Helper()
	_ = i.c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(i.c, "GET %s HTTP/1.1\r\nHost: api.example.com\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(i.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v", res.Status, err)
	}
}

// parked waits until n connections have no goroutine.
func (d *door) parked(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); d.Parked() != n; <-time.After(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections are parked, want %d", d.Parked(), n)
		}
	}
}

// An idle connection has no goroutine, and is there for the next call all the
// same, however often.
func TestParked(t *testing.T) {
	r := openRedirected(t, front.Transparent{})
	const n = 50
	var all []*idler
	for range n {
		i := r.idler(t)
		i.call(t, "/first")
		all = append(all, i)
	}
	r.parked(t, n)
	if g := runtime.NumGoroutine(); g > n {
		t.Errorf("%d goroutines for %d idle connections", g, n)
	}
	for range 2 {
		for _, i := range all {
			i.call(t, "/again")
		}
		r.parked(t, n)
	}
	for _, i := range all[:n/2] {
		_ = i.c.Close()
	}
	r.parked(t, n/2)
	eventually(t, "the closed ones gone", func() bool { return r.Active() == n/2 })
	// Half a request wakes one, too, and the rest of it is waited for.
	if _, err := io.WriteString(all[n-1].c, "GET /part HTTP/1.1\r\n"); err != nil {
		t.Fatal(err)
	}
	r.parked(t, n/2-1)
	if _, err := io.WriteString(all[n-1].c, "Host: api.example.com\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if res, err := http.ReadResponse(all[n-1].in, nil); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("a request in two parts: %v", err)
	}
}

// A parked connection ends after the idle timeout, with TLS's own good-bye.
func TestParkedTooLong(t *testing.T) {
	r := openRedirected(t, front.Transparent{}, func(f *front.Front) {
		f.Limits = v1alpha1.Limits{IdleTimeout: v1alpha1.Duration(5 * time.Second)}
	})
	i := r.idler(t)
	i.call(t, "/")
	r.parked(t, 1)
	_ = i.c.SetDeadline(time.Now().Add(30 * time.Second))
	if b, err := io.ReadAll(i.in); err != nil || len(b) > 0 { // without close_notify it is an unexpected EOF
		t.Errorf("got %q, %v", b, err)
	}
	eventually(t, "it is gone", func() bool { return r.Active() == 0 && r.Parked() == 0 })
}

// Shutdown does not wait for parked connections.
func TestShutdownOfParked(t *testing.T) {
	r := openRedirected(t, front.Transparent{})
	i := r.idler(t)
	i.call(t, "/")
	r.parked(t, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := r.Shutdown(ctx); err != nil || r.Active() != 0 {
		t.Errorf("%v, %d connections left", err, r.Active())
	}
	_ = i.c.SetDeadline(time.Now().Add(10 * time.Second))
	if b, _ := io.ReadAll(i.in); len(b) > 0 {
		t.Errorf("got %q", b)
	}
}
