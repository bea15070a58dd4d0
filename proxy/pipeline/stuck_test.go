package pipeline_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/attache-dev/attache/audit"
)

// stuckConn is a connection whose owner stops reading.
type stuckConn struct {
	net.Conn
	stop chan struct{} // closed: read no more
	free chan struct{} // closed: read on
}

func (c *stuckConn) Read(p []byte) (int, error) {
	select {
	case <-c.stop:
		<-c.free
	default:
	}
	return c.Conn.Read(p)
}

// TestStuckConnectionsAreCut: an agent that takes nothing more from its HTTP/2
// connection, not even the end of a stream, does not keep the call alive.
func TestStuckConnectionsAreCut(t *testing.T) {
	r := newRig(t, settings{})
	r.serve(func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	stop, free := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(free) })
	t.Cleanup(release)
	c := r.client(true)
	tr := c.Transport.(*http.Transport)
	tr.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 1 << 30, MaxReceiveBufferPerConnection: 1 << 30}
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		return &stuckConn{nc, stop, free}, err
	}
	resp, err := c.Get("https://api.test/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.CopyN(io.Discard, resp.Body, 1<<20); err != nil {
		t.Fatal(err)
	}
	close(stop)
	<-time.After(500 * time.Millisecond) // until the buffers are full
	r.revokeAll()
	if rec := r.record(); rec.Result.Outcome != audit.OutcomeRevoked {
		t.Errorf("record %+v", rec.Result)
	}
	release()
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("the agent took the cut answer for a whole one")
	}
}
