package http1

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"sync"
	"time"
)

// Defaults of [Client].
const (
	DefaultMaxResponseHeader = 1 << 20
	DefaultClientIdle        = 90 * time.Second
	DefaultContinueTimeout   = 3 * time.Second
)

const (
	// lateWrite is how long the end of a body may come after the end of its
	// answer before the connection counts as one with an unread body.
	lateWrite = 50 * time.Millisecond
)

// ErrResponse is matched by the refusal of an answer that two parsers could
// read in two ways.
var ErrResponse = errors.New("malformed response")

// ErrOtherProtocol is what Dial returns when the origin chose to speak
// something else. RoundTrip then returns it and leaves the request as it was,
// so that it can be sent in another way.
var ErrOtherProtocol = errors.New("the origin does not speak HTTP/1.1")

// errStale is matched when a kept connection ended before it answered.
var errStale = errors.New("the origin closed the idle connection")

// errHeaderTimeout is a timeout in the sense of net.Error.
var errHeaderTimeout error = timeoutError{}

type timeoutError struct{}

func (timeoutError) Error() string   { return "timeout awaiting response headers" }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }

// Client sends requests to one origin over HTTP/1.1 and keeps its connections.
// It takes the place of net/http.Transport, which needs two goroutines a
// connection and hands each exchange over between them: here the caller's
// goroutine writes the request and reads the answer.
//
// It is as strict as [Server]: an answer with Content-Length and
// Transfer-Encoding, with a bare LF or a folded line is refused, and a
// connection with a doubt about where the next answer begins is closed, never
// kept. Dial is required. The fields must not change after the first use. It
// is safe for concurrent use.
type Client struct {
	// Dial opens a connection, ready for HTTP/1.1. A connection made with
	// [Probed] below TLS is checked for surplus bytes before each use.
	Dial func(ctx context.Context) (net.Conn, error)
	// MaxIdle bounds the connections that are kept, IdleTimeout how long.
	MaxIdle     int
	IdleTimeout time.Duration
	// ResponseTimeout bounds the wait between the end of the request and the
	// end of the answer's head; zero: no bound.
	ResponseTimeout time.Duration
	// ContinueTimeout is how long a body waits for 100 Continue: RFC 9110
	// section 10.1.1 wants no origin to make us wait for ever.
	ContinueTimeout time.Duration
	// MaxHeaderBytes bounds the heads of an answer, interim ones included.
	MaxHeaderBytes int

	mu     sync.Mutex // guards what follows
	idle   []*clientConn
	sweep  *time.Timer
	closed bool
}

// RoundTrip implements [http.RoundTripper]. A request that met a connection
// which the origin had closed meanwhile is sent again when it has no body and
// its method or an Idempotency-Key makes that harmless.
func (t *Client) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	if err := ctx.Err(); err != nil {
		closeBody(req)
		return nil, context.Cause(ctx)
	}
	if k := t.take(); k != nil {
		resp, err := k.roundTrip(req, true)
		if err == nil || !errors.Is(err, errStale) || !replayable(req) {
			return resp, err
		}
	}
	nc, err := t.Dial(ctx)
	if err != nil {
		if !errors.Is(err, ErrOtherProtocol) {
			closeBody(req)
		}
		return nil, err
	}
	return newClientConn(t, nc).roundTrip(req, false)
}

// replayable requests may be sent twice: RFC 9110 section 9.2.2.
func replayable(req *http.Request) bool {
	if hasBody(req) {
		return false
	}
	switch req.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return len(req.Header["Idempotency-Key"]) > 0 || len(req.Header["X-Idempotency-Key"]) > 0
}

func hasBody(req *http.Request) bool { return req.Body != nil && req.Body != http.NoBody }

func closeBody(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
}

// take returns the connection that was used last and is still good, or nil.
func (t *Client) take() *clientConn {
	for {
		t.mu.Lock()
		n := len(t.idle)
		if n == 0 {
			t.mu.Unlock()
			return nil
		}
		k := t.idle[n-1]
		t.idle[n-1] = nil
		t.idle = t.idle[:n-1]
		t.mu.Unlock()
		if k.quiet() {
			return k
		}
		k.abort()
	}
}

// put keeps a connection whose exchange is over.
func (t *Client) put(k *clientConn) {
	k.since = time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || len(t.idle) >= t.MaxIdle {
		go k.close()
		return
	}
	t.idle = append(t.idle, k)
	if t.sweep == nil {
		t.sweep = time.AfterFunc(t.idleTimeout(), t.expire)
	}
}

func (t *Client) idleTimeout() time.Duration { return or(t.IdleTimeout, DefaultClientIdle) }
func (t *Client) maxHeaderBytes() int        { return or(t.MaxHeaderBytes, DefaultMaxResponseHeader) }

// expire closes what has been idle for too long; the oldest stand first.
func (t *Client) expire() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep = nil
	limit := time.Now().Add(-t.idleTimeout())
	// Used last is used next, so those in front may be long idle; those behind
	// them need not be older than they are.
	t.idle = slices.DeleteFunc(t.idle, func(k *clientConn) bool {
		old := !k.since.After(limit)
		if old {
			go k.close()
		}
		return old
	})
	if len(t.idle) > 0 && !t.closed {
		next := t.idle[0].since
		for _, k := range t.idle {
			if k.since.Before(next) {
				next = k.since
			}
		}
		t.sweep = time.AfterFunc(max(time.Millisecond, next.Sub(limit)), t.expire)
	}
}

// CloseIdle closes the connections that are kept. Those in use are not.
func (t *Client) CloseIdle() { t.drop(false) }

// Close does the same, and keeps none any more.
func (t *Client) Close() { t.drop(true) }

func (t *Client) drop(closed bool) {
	t.mu.Lock()
	idle := t.idle
	t.idle, t.closed = nil, t.closed || closed
	if t.sweep != nil {
		t.sweep.Stop()
		t.sweep = nil
	}
	t.mu.Unlock()
	for _, k := range idle {
		k.close()
	}
}

// clientConn is one connection to the origin. One exchange at a time owns it.
type clientConn struct {
	t     *Client
	nc    net.Conn
	tls   *tls.ConnectionState
	probe *probed // nil: cannot be probed
	in    input
	since time.Time // idle since

	// of the exchange under way
	stop  func() bool // ends the watch on its context
	write *bodyWriter // nil: no body
}

func newClientConn(t *Client, nc net.Conn) *clientConn {
	k := &clientConn{t: t, nc: nc}
	k.in.init(nc)
	if c, ok := nc.(*tls.Conn); ok {
		s := c.ConnectionState()
		k.tls = &s
		k.probe, _ = c.NetConn().(*probed)
	} else {
		k.probe, _ = nc.(*probed)
	}
	return k
}

func (k *clientConn) close() { _ = k.nc.Close() }

// abort closes without a farewell, also while another goroutine writes.
func (k *clientConn) abort() {
	if t, ok := k.nc.(*tls.Conn); ok {
		_ = t.NetConn().Close()
	}
	_ = k.nc.Close()
}

// quiet reports whether the origin has neither closed the connection nor sent
// anything unasked: such bytes would be read as the next answer.
func (k *clientConn) quiet() bool {
	if k.in.err != nil || len(k.in.buffered()) > 0 {
		return false
	}
	if k.probe == nil {
		return true
	}
	k.probe.active = true
	var one [1]byte
	n, err := k.nc.Read(one[:])
	k.probe.active = false
	return n == 0 && isTimeout(err)
}

// roundTrip makes one exchange. The connection is kept when the answer's body
// has been read to its end, and closed in all other cases.
func (k *clientConn) roundTrip(req *http.Request, reused bool) (*http.Response, error) {
	ctx := req.Context()
	trace := httptrace.ContextClientTrace(ctx)
	if trace != nil && trace.GotConn != nil {
		trace.GotConn(httptrace.GotConnInfo{Conn: k.nc, Reused: reused})
	}
	head, err := appendRequest(getOutput(true)[:0], req)
	if err != nil {
		closeBody(req)
		k.close()
		return nil, err
	}
	k.stop = context.AfterFunc(ctx, k.abort)
	_, err = k.nc.Write(head)
	recycle(head)
	if err != nil {
		closeBody(req)
		return nil, k.failed(ctx, fmt.Errorf("%w: %w", errStale, err))
	}
	k.write = nil
	if hasBody(req) {
		k.write = startBody(k, req)
	} else if k.t.ResponseTimeout > 0 {
		k.in.setDeadline(k.t.ResponseTimeout)
	}
	write := k.write
	resp, err := k.readResponse(req, trace)
	// After an answer without a body k may already serve another request: only
	// the error path may touch it.
	if write != nil {
		write.answered()
	}
	if err != nil {
		err = k.failed(ctx, err)
		if write != nil {
			write.wait()
		}
		return nil, err
	}
	return resp, nil
}

// recycle gives a buffer back that appendRequest may have outgrown.
func recycle(b []byte) {
	if cap(b) == smallOutput {
		putOutput(b[:smallOutput])
	}
}

// failed ends the connection and says why the exchange failed.
func (k *clientConn) failed(ctx context.Context, err error) error {
	k.stop()
	k.abort()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if isTimeout(err) {
		return errHeaderTimeout
	}
	return err
}

// done ends a good exchange; clean tells that the next answer begins where
// this one ended.
func (k *clientConn) done(clean bool) {
	free := k.stop() // false: the context has ended, and abort with it
	if k.write != nil {
		k.write.answered()
	}
	written := k.write == nil || k.write.over()
	k.write = nil
	if clean && free && written && k.in.err == nil && len(k.in.buffered()) == 0 {
		k.t.put(k)
		return
	}
	if free && written {
		k.close()
		return
	}
	k.abort()
}

// cut ends an exchange whose answer is not wanted any more.
func (k *clientConn) cut() {
	k.stop()
	k.abort()
}

// upgraded is the connection after 101.
type upgraded struct {
	k *clientConn
	r io.Reader
}

// Read implements io.Reader.
func (u *upgraded) Read(p []byte) (int, error) { return u.r.Read(p) }

// Write implements io.Writer.
func (u *upgraded) Write(p []byte) (int, error) { return u.k.nc.Write(p) }

// Close implements io.Closer.
func (u *upgraded) Close() error {
	u.k.stop()
	return u.k.nc.Close()
}

// CloseWrite half-closes.
func (u *upgraded) CloseWrite() error {
	if c, ok := u.k.nc.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return u.k.nc.Close()
}
