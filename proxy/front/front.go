// Package front holds the doors through which an agent's requests come in: the
// explicit proxy (CONNECT and absolute-form), base-URL listeners, and the
// listeners that connections are redirected to. It reads
// requests, makes sure that CONNECT authority, SNI and each request's Host
// name one destination, and hands them to one http.Handler. It decides
// nothing: refusals of the caller travel with the connection, so that the
// handler can answer them in the protocol's own form.
package front

//lint:file-ignore SA1019 x/net/http2 serves a connection that we accepted and attested ourselves; net/http only serves its own listeners.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/proxy"
	"github.com/attache-dev/attache/proxy/http1"
	"github.com/attache-dev/attache/proxy/intercept"
)

// Kinds of refusal beyond those of package http1, for [Front.Refused].
const (
	KindConnections = "connections"
	KindAuthority   = "authority"
	KindMisdirected = "misdirected"
	KindNotProxy    = "origin-form"
	KindCrossSite   = "cross-site"
	KindConnect     = "nested-connect"
	KindPath        = "path"
	KindProtocol    = "protocol"
	KindSNI         = "sni"
	KindTLS         = "client-tls"
	KindUnattested  = "unattested"
	KindDirect      = "direct"
)

// ErrClosed is returned by the Serve methods after [Front.Shutdown].
var ErrClosed = errors.New("front is shut down")

// Front serves agents' connections. Attestor, CA, Handler and Log are
// required. An Attestor that is an [identity.Holder] lets clients half-close
// plain TCP. The fields must not change once a Serve method was called.
type Front struct {
	Attestor identity.Attestor
	CA       *intercept.CA
	// Handler gets every request, canonical: r.URL is absolute and, like
	// r.Host, names the connection's one destination; the path's bytes are as
	// the client sent them (r.RequestURI). [proxy.ConnFrom] gives the
	// connection.
	Handler http.Handler
	// Passthrough says that TLS to conn.Dest is to be tunnelled unread; nil
	// means never. Tunnel then carries the connection to its end; it does not
	// close client. Both are needed or none.
	Passthrough func(ctx context.Context, conn *proxy.Conn) bool
	Tunnel      func(ctx context.Context, conn *proxy.Conn, client net.Conn) error
	Limits      v1alpha1.Limits
	Log         *slog.Logger
	// Refused, if not nil, is told of what never reaches Handler.
	Refused func(kind string)
	// TLSFailed, if not nil, is told when a client breaks off the handshake;
	// hint says what to do, or is empty.
	TLSFailed func(conn *proxy.Conn, err error, hint string)

	once   sync.Once
	bad    error
	h1     *http1.Server
	h2     *http2.Server
	h2base *http.Server
	active atomic.Int64
	ids    atomic.Uint64
	lot    lot // of idle connections

	mu        sync.Mutex // guards what follows
	closed    bool
	listeners map[net.Listener]struct{}
	conns     map[*clientConn]struct{}
	wg        sync.WaitGroup // one count for each of conns
}

// setup checks the required fields and builds the two codecs once.
func (f *Front) setup() error {
	f.once.Do(func() {
		switch {
		case f.Attestor == nil || f.CA == nil || f.Handler == nil || f.Log == nil:
			f.bad = errors.New("front: Attestor, CA, Handler and Log are required")
			return
		case (f.Passthrough == nil) != (f.Tunnel == nil):
			f.bad = errors.New("front: Passthrough and Tunnel go together")
			return
		}
		l := f.Limits
		handler := http.HandlerFunc(f.serve)
		f.h1 = &http1.Server{
			Handler: handler, MaxHeaderBytes: l.MaxHeaderBytes, MaxHeaders: l.MaxHeaders,
			HeaderTimeout: l.HeaderTimeout.D(), IdleTimeout: l.IdleTimeout.D(),
			Refused: f.refused, Log: f.Log,
		}
		if parks {
			f.h1.Park = f.park
		}
		if h, ok := f.Attestor.(identity.Holder); ok {
			f.h1.Held = h.Held
		}
		f.h2base = &http.Server{
			Handler:           handler,
			MaxHeaderBytes:    or(l.MaxHeaderBytes, http1.DefaultMaxHeaderBytes),
			ReadHeaderTimeout: or(l.HeaderTimeout.D(), http1.DefaultHeaderTimeout),
			ErrorLog:          slog.NewLogLogger(f.Log.Handler(), slog.LevelDebug),
		}
		f.h2 = &http2.Server{
			MaxConcurrentStreams: uint32(or(l.MaxStreams, 250)), //nolint:gosec // a small limit
			IdleTimeout:          or(l.IdleTimeout.D(), http1.DefaultIdleTimeout),
			// A client that reads nothing must not hold a stream for good, but
			// many agents think for minutes: only dead peers are cut.
			ReadIdleTimeout: 2 * time.Minute,
			PingTimeout:     30 * time.Second,
		}
		if err := http2.ConfigureServer(f.h2base, f.h2); err != nil {
			f.bad = fmt.Errorf("front: configure HTTP/2: %w", err)
			return
		}
		f.listeners = make(map[net.Listener]struct{})
		f.conns = make(map[*clientConn]struct{})
	})
	return f.bad
}

// ServeProxy accepts explicit-proxy clients on ln until ctx ends or
// [Front.Shutdown] is called. It closes ln.
func (f *Front) ServeProxy(ctx context.Context, ln net.Listener) error {
	return f.accept(ctx, ln, func(ctx context.Context, c *clientConn) {
		conn := f.attest(ctx, c)
		if conn == nil {
			return
		}
		f.h1.ServeConn(proxy.WithConn(ctx, conn), c)
	})
}

// accept runs the accept loop and serve on a goroutine for each connection.
func (f *Front) accept(ctx context.Context, ln net.Listener, serve func(context.Context, *clientConn)) error {
	if err := f.setup(); err != nil {
		return err
	}
	if !f.addListener(ln) {
		_ = ln.Close()
		return ErrClosed
	}
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	defer f.dropListener(ln)
	const maxPause = time.Second
	pause := 5 * time.Millisecond
	for {
		nc, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return ErrClosed
			}
			// Out of descriptors, most likely: try again, ever slower.
			f.Log.WarnContext(ctx, "accept", "error", err, "pause", pause)
			select {
			case <-ctx.Done():
				return ErrClosed
			case <-time.After(pause):
			}
			pause = min(2*pause, maxPause)
			continue
		}
		pause = 5 * time.Millisecond
		c := &clientConn{Conn: nc, f: f, accepted: true}
		if !f.addConn(c) {
			_ = nc.Close()
			continue
		}
		if f.active.Add(1) > int64(or(f.Limits.MaxConnections, 10000)) {
			go f.turnAway(c)
			continue
		}
		go f.live(ctx, c, func(ctx context.Context) { serve(ctx, c) })
	}
}

// turnAway tells a client above the limit to come again.
func (f *Front) turnAway(c *clientConn) {
	defer f.done(c)
	f.refused(KindConnections)
	const text = "attache: too many connections; close some or raise limits.maxConnections\n"
	_ = c.SetDeadline(time.Now().Add(time.Second))
	_, _ = fmt.Fprintf(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
	// Read the request away, or the client would see a reset instead.
	_ = c.CloseWrite()
	var sink [4096]byte
	for range 16 {
		if _, err := c.Read(sink[:]); err != nil {
			break
		}
	}
}

// attest identifies the caller once for the connection. A refusal is carried
// along; nil means that the client is gone.
func (f *Front) attest(ctx context.Context, c *clientConn) *proxy.Conn {
	conn := &proxy.Conn{ID: strconv.FormatUint(f.ids.Add(1), 36), Accepted: time.Now()}
	caller, err := f.Attestor.Attest(ctx, c.Conn)
	conn.Attested = time.Now()
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		f.refused(KindUnattested)
		f.Log.WarnContext(ctx, "caller is not attested", "conn", conn.ID, "error", err)
		conn.Refusal = err
	} else {
		conn.Caller = caller
	}
	return conn
}

// Shutdown stops accepting and lets requests finish: HTTP/1.1 connections
// close after their current response, HTTP/2 ones get GOAWAY, tunnels run on.
// When ctx ends, what is left is cut and ctx's error returned.
func (f *Front) Shutdown(ctx context.Context) error {
	if err := f.setup(); err != nil {
		return err
	}
	f.mu.Lock()
	f.closed = true
	for ln := range f.listeners {
		_ = ln.Close()
	}
	f.mu.Unlock()
	f.h1.Shutdown()
	f.lot.close()
	_ = f.h2base.Shutdown(ctx) // sends GOAWAY; it has no listeners of its own

	idle := make(chan struct{})
	go func() { // ends when the last connection does, which the cut below ensures
		f.wg.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
	}
	f.mu.Lock()
	for c := range f.conns {
		_ = c.Close()
	}
	f.mu.Unlock()
	<-idle
	return ctx.Err()
}

// Active returns how many connections are open.
func (f *Front) Active() int { return int(f.active.Load()) }

// Parked returns how many of them are idle and cost no goroutine.
func (f *Front) Parked() int { return f.lot.len() }

func (f *Front) refused(kind string) {
	if f.Refused != nil {
		f.Refused(kind)
	}
}

func (f *Front) addListener(ln net.Listener) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.listeners[ln] = struct{}{}
	}
	return !f.closed
}

func (f *Front) dropListener(ln net.Listener) {
	_ = ln.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.listeners, ln)
}

func (f *Front) addConn(c *clientConn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.conns[c] = struct{}{}
	f.wg.Add(1)
	return true
}

// done ends a connection's life; handlers that took it over have returned.
func (f *Front) done(c *clientConn) {
	_ = c.Close()
	f.active.Add(-1)
	f.mu.Lock()
	delete(f.conns, c)
	f.mu.Unlock()
	f.wg.Done()
}

func or[T int | time.Duration](v, dflt T) T {
	if v > 0 {
		return v
	}
	return dflt
}
