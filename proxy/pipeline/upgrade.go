package pipeline

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/attache-dev/attache/injector/guard"
	"github.com/attache-dev/attache/proxy/relay"
)

// switched is the connection that an origin's 101 gives, if it switched to
// what this request asked for.
func (x *exchange) switched(resp *http.Response) (io.ReadWriteCloser, error) {
	origin, ok := resp.Body.(io.ReadWriteCloser)
	if !ok {
		return nil, errors.New("origin switched protocols without a writable connection")
	}
	asked, got := x.req.Header.Get("Upgrade"), resp.Header.Get("Upgrade")
	if asked == "" || !strings.EqualFold(asked, got) {
		return nil, fmt.Errorf("origin switched to %q, asked was %q", got, asked)
	}
	return origin, nil
}

// upgrade switches both sides to the origin's matching 101 and copies bytes
// until one side ends (RFC 9110 section 15.2.2). Each direction is closed by
// itself, so a half-closed peer still gets its answer. A connection that
// carries nothing for limits.tunnelIdleTimeout is cut.
func (x *exchange) upgrade(ctx context.Context, w http.ResponseWriter, resp *http.Response, g *guard.Guarded) {
	defer resp.Body.Close()
	origin, err := x.switched(resp)
	if err == nil {
		var agent net.Conn
		var buffered *bufio.ReadWriter
		if agent, buffered, err = http.NewResponseController(w).Hijack(); err == nil {
			err = x.carry(ctx, agent, buffered, origin, resp)
			if errors.Is(err, errIdle) {
				if g != nil {
					x.result.Sealed, x.result.Masked = g.Sealed(), g.Masked()
				}
				x.endTunnel(CodeTunnelIdle)
				return
			}
			x.conclude(ctx, g, err)
			return
		}
	}
	x.abort(w, &Refusal{Status: http.StatusBadGateway, Code: CodeProtocol, Err: err,
		Reason: "the origin switched to a protocol that this request did not ask for"})
}

// carry passes the 101 on and copies.
func (x *exchange) carry(ctx context.Context, agent net.Conn, buffered *bufio.ReadWriter, origin io.ReadWriteCloser, resp *http.Response) error {
	defer agent.Close()
	_ = agent.SetDeadline(time.Time{})
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { _ = agent.Close(); _ = origin.Close() })
	defer stop()

	h := resp.Header.Clone()
	h.Set("Connection", "Upgrade")
	h.Del("Alt-Svc")
	h.Del(relay.HeaderError)
	h.Del(relay.HeaderAddress)
	h.Set("Attache-Record", x.rec.ID)
	x.sayAddress(h)
	if _, err := fmt.Fprintf(buffered, "HTTP/1.1 101 %s\r\n", http.StatusText(http.StatusSwitchingProtocols)); err != nil {
		return errors.Join(errClient, err)
	}
	if err := h.Write(buffered); err != nil {
		return errors.Join(errClient, err)
	}
	if _, err := buffered.WriteString("\r\n"); err != nil {
		return errors.Join(errClient, err)
	}
	if err := buffered.Flush(); err != nil {
		return errors.Join(errClient, err)
	}
	var rerr error
	x.result.BytesUp, x.result.BytesDown, rerr = x.splice(agent, buffered.Reader, origin, cancel)
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	if errors.Is(rerr, guard.ErrLeak) {
		return rerr
	}
	return nil // how a tunnel ends is the business of its two ends
}

// lastWords is how long a peer that still talks gets to finish once the other
// side is done: there is nobody left to hear it.
const lastWords = 5 * time.Second

// splice copies in both directions and returns the bytes each way, and why
// reading from the origin ended. It calls cancel, which must close both sides,
// when nothing passes for too long.
func (x *exchange) splice(agent net.Conn, agentReader io.Reader, origin io.ReadWriteCloser, cancel context.CancelCauseFunc) (up, down int64, err error) {
	var i idle
	i.watch(x.p.cfg.Limits.TunnelIdleTimeout.D(), func() { cancel(errIdle) })
	defer i.stop()
	var upBytes atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		n, _ := i.copy(origin, agentReader, agent)
		upBytes.Store(n)
		closeWrite(origin)
	}()
	down, err = i.copy(agent, origin, origin)
	closeWrite(agent)
	t := time.AfterFunc(lastWords, func() { _ = agent.Close() })
	defer t.Stop()
	<-done
	return upBytes.Load(), down, err
}

// closeWrite half-closes c where it can, else closes it.
func closeWrite(c io.Closer) {
	if hc, ok := c.(interface{ CloseWrite() error }); ok {
		_ = hc.CloseWrite()
		return
	}
	_ = c.Close()
}
