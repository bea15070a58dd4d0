// Package http1 is a strict HTTP/1.1 codec for both sides of a proxy. [Server]
// takes the place of net/http's connection loop: one goroutine a connection, on
// which the handler runs, and the same http.Handler on top. [Client] takes the
// place of its Transport towards one origin.
//
// Strict means that a message which two parsers could read in two ways is
// refused and the connection closed (RFC 9112 section 11.2): whatever is
// accepted here, net/http accepts with the same method, target, host, status,
// headers and body; differential fuzz tests hold that.
package http1

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of [Server].
const (
	DefaultMaxHeaderBytes = 64 << 10
	DefaultMaxHeaders     = 200
	DefaultHeaderTimeout  = 10 * time.Second
	DefaultIdleTimeout    = 3 * time.Minute
)

const (
	// maxDrain is how much of an unread request body is read away so that the
	// connection can be used again; lingerTime bounds the wait for it.
	maxDrain   = 256 << 10
	lingerTime = 500 * time.Millisecond
	// lingerTotal bounds how long a client that goes on sending after a last
	// answer is listened to, lingerTime its pauses. What it sends is not even
	// decrypted.
	lingerTotal = 5 * time.Second
	// watchAfter is how long a handler runs before the connection is watched
	// for the client's leaving. Shorter requests never pay for the watch: a
	// timer, a read, and two deadlines to end it.
	watchAfter = 10 * time.Millisecond
	// parkAfter is how long a connection is waited for on a goroutine.
	parkAfter = 2 * time.Second
	// heldPause is how often a half-closed client is asked after, at first and
	// in the end.
	heldPause, heldPauseMax = 20 * time.Millisecond, 500 * time.Millisecond
)

// Server serves HTTP/1.x on connections given to [Server.ServeConn]. Handler
// is required; zero limits mean the defaults. The fields must not change once
// a connection is served. It is safe for concurrent use.
//
// A request's context ends when the client goes away, some ten milliseconds after
// it does. A TLS client may half-close and still gets its answer; so does one
// without TLS where Held tells that from going away.
type Server struct {
	Handler http.Handler
	// MaxHeaderBytes bounds a request's head, MaxHeaders its field lines.
	MaxHeaderBytes, MaxHeaders int
	// HeaderTimeout bounds the time from a head's first byte to its last,
	// IdleTimeout the wait for the first.
	HeaderTimeout, IdleTimeout time.Duration
	// Refused, if not nil, is told of each refused request: one of the Kind
	// constants.
	Refused func(kind string)
	// Held, if not nil, reports whether somebody still holds the other end of a
	// connection whose client has sent a FIN: then it waits for its answer. It
	// is asked again until then. If nil, a FIN counts as leaving, as it does in
	// net/http.
	Held func(c net.Conn) bool
	// Park, if not nil, is offered connections on which nothing has come for a
	// while. If it takes one, ServeConn returns without closing it, and resume is
	// to be called, once and on a goroutine that may run as long as ServeConn
	// would, when there is something to read, when the connection was closed, or
	// after idle.
	Park func(c net.Conn, idle time.Duration, resume func()) bool
	// Log, if not nil, is told of panics.
	Log *slog.Logger

	draining atomic.Bool
	date     atomic.Pointer[dateText]
	mu       sync.Mutex // guards conns
	conns    map[*conn]struct{}
}

// dateText is the Date field of one second.
type dateText struct {
	unix int64
	text string
}

// State of a connection, for [Server.Shutdown].
const (
	stateActive int32 = iota
	stateIdle
	stateClosed
)

// conn is one connection.
type conn struct {
	s      *Server
	nc     net.Conn
	ctx    context.Context //nolint:containedctx // lives as long as the connection
	tls    *tls.ConnectionState
	remote string
	in     input
	state  atomic.Int32
	cur    atomic.Pointer[exchange]
	watch  watch
	stop   func() bool // ends the watch on ctx
	// headTimed says that the deadline for the head being read is set, parking
	// that nothing came for parkAfter, staying that Park did not want it.
	headTimed, parking, staying bool
}

// exchange is one request and its response, in one allocation.
type exchange struct {
	ctx  requestContext
	url  url.URL
	body body
	res  response

	// contMu guards needContinue and orders the interim response before the
	// final one: the body may be read on another goroutine than the handler's.
	contMu       sync.Mutex
	needContinue bool
}

// ServeConn serves c until it ends or ctx does, and closes it, unless a
// handler took it over (http.Hijacker). It returns when the last handler has,
// or when Park has taken the connection.
func (s *Server) ServeConn(ctx context.Context, c net.Conn) {
	k := &conn{s: s, nc: c, ctx: ctx, remote: c.RemoteAddr().String()}
	k.in.init(c)
	k.watch.init(k)
	k.describe()
	if !s.track(k) {
		_ = c.Close()
		return
	}
	k.stop = afterFunc(ctx, func() {
		k.cancelCurrent()
		k.abort()
	})
	k.run()
}

// describe notes what requests are told of the connection.
func (k *conn) describe() {
	if t, ok := k.nc.(interface{ ConnectionState() tls.ConnectionState }); ok {
		state := t.ConnectionState()
		k.tls = &state
	}
}

// run serves until the connection ends or is parked.
func (k *conn) run() {
	gone := true // also where a panic ends it
	defer func() {
		k.in.release()
		if gone {
			k.stop()
			k.s.untrack(k)
		}
	}()
	for {
		for k.serveOne() {
		}
		if !k.parking {
			return
		}
		k.parking = false
		k.in.release()
		k.in.clearDeadline()
		k.tls = nil
		k.watch.rest()
		if k.s.Park(k.nc, k.s.idleTimeout()-parkAfter, k.resume) {
			gone = false
			return
		}
		k.staying = true
		k.in.init(k.nc)
		k.describe()
	}
}

// resume goes on where Park was offered the connection.
func (k *conn) resume() {
	k.in.init(k.nc)
	k.describe()
	k.run()
}

// Shutdown lets each connection finish its current request and closes it;
// idle ones are closed at once. It does not wait.
func (s *Server) Shutdown() {
	s.draining.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.conns {
		if k.state.CompareAndSwap(stateIdle, stateClosed) {
			_ = k.nc.SetReadDeadline(time.Unix(1, 0))
		}
	}
}

func (s *Server) track(k *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Load() {
		return false
	}
	if s.conns == nil {
		s.conns = make(map[*conn]struct{})
	}
	s.conns[k] = struct{}{}
	return true
}

func (s *Server) untrack(k *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, k)
}

func (k *conn) cancelCurrent() {
	if x := k.cur.Load(); x != nil {
		x.ctx.cancel()
	}
}

// serveOne reads one request and runs the handler; it reports whether the
// connection goes on.
func (k *conn) serveOne() bool {
	head, err := k.readHead()
	if err != nil {
		if k.parking {
			return false
		}
		k.refuse(err)
		return false
	}
	x := &exchange{}
	req, err := k.parse(head, x)
	if err != nil {
		k.refuse(err)
		return false
	}
	x.ctx.parent = k.ctx
	x.res.init(k, x, req)
	k.cur.Store(x)
	if k.ctx.Err() != nil {
		x.ctx.cancel()
	}
	if x.body.kind == bodyNone {
		k.watch.arm()
	}
	ok := k.runHandler(x, req)
	if x.res.hijacked {
		x.ctx.cancel()
		k.cur.Store(nil)
		return false
	}
	again := ok && x.res.finish()
	again = x.body.finish(again) && again
	k.watch.stop() // after the body, whose end starts the watch
	x.ctx.cancel()
	k.cur.Store(nil)
	if again && (k.in.err == nil || len(k.in.buffered()) > 0) { // sent before it half-closed
		return true
	}
	switch {
	case !ok || x.res.broken():
		k.abort()
	case (x.body.kind == bodyNone || x.body.done.Load()) && len(k.in.buffered()) == 0:
		_ = k.nc.Close()
	default:
		k.linger()
	}
	return false
}

// runHandler reports whether the handler returned in good order.
func (k *conn) runHandler(x *exchange, req *http.Request) (ok bool) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		ok = false
		if err, is := v.(error); is && errors.Is(err, http.ErrAbortHandler) {
			return
		}
		if k.s.Log != nil {
			k.s.Log.ErrorContext(&x.ctx, "handler panicked", "panic", v, "stack", string(debug.Stack()))
		}
	}()
	k.s.Handler.ServeHTTP(&x.res, req)
	return true
}

// refuse answers what can be answered and closes the connection.
func (k *conn) refuse(err error) {
	var bad *refusal
	if !errors.As(err, &bad) {
		_ = k.nc.Close() // the client is gone or silent
		return
	}
	if k.s.Refused != nil {
		k.s.Refused(bad.kind)
	}
	_ = k.nc.SetWriteDeadline(time.Now().Add(lingerTime))
	_, _ = k.nc.Write(bad.answer())
	k.linger()
}

// linger closes in steps, so that a client which is still sending reads our
// answer before it sees a reset (RFC 9112 section 9.6).
func (k *conn) linger() {
	if k.in.err != nil && !isTimeout(k.in.err) {
		_ = k.nc.Close()
		return
	}
	raw := k.nc
	_ = raw.SetDeadline(time.Now().Add(lingerTime))
	closeWrite(raw)
	if t, ok := raw.(interface{ NetConn() net.Conn }); ok {
		raw = t.NetConn()
		closeWrite(raw)
	}
	// Many clients read nothing before they have sent all.
	var sink [4096]byte
	for end := time.Now().Add(lingerTotal); time.Now().Before(end); {
		if _, err := raw.Read(sink[:]); err != nil {
			break
		}
		_ = raw.SetReadDeadline(time.Now().Add(lingerTime))
	}
	_ = k.nc.Close()
}

// abort closes so that the client cannot take a cut answer for a whole one:
// under TLS no close_notify is sent (RFC 9112 section 9.8).
func (k *conn) abort() {
	if t, ok := k.nc.(interface{ NetConn() net.Conn }); ok {
		_ = t.NetConn().Close()
	}
	_ = k.nc.Close()
}

func closeWrite(c net.Conn) {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
}

// now returns the current second and its Date text.
func (s *Server) now() string {
	t := time.Now()
	if d := s.date.Load(); d != nil && d.unix == t.Unix() {
		return d.text
	}
	d := &dateText{unix: t.Unix(), text: t.UTC().Format(http.TimeFormat)}
	s.date.Store(d)
	return d.text
}

func (s *Server) maxHeaderBytes() int { return or(s.MaxHeaderBytes, DefaultMaxHeaderBytes) }
func (s *Server) maxHeaders() int     { return or(s.MaxHeaders, DefaultMaxHeaders) }
func (s *Server) headerTimeout() time.Duration {
	return or(s.HeaderTimeout, DefaultHeaderTimeout)
}
func (s *Server) idleTimeout() time.Duration { return or(s.IdleTimeout, DefaultIdleTimeout) }

func or[T int | time.Duration](v, dflt T) T {
	if v > 0 {
		return v
	}
	return dflt
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
