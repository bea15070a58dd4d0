package front

//lint:file-ignore SA1019 x/net/http2 serves a connection that we accepted and attested ourselves; net/http only serves its own listeners.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/net/http2"

	"github.com/attache-dev/attache/proxy"
	"github.com/attache-dev/attache/proxy/destination"
	"github.com/attache-dev/attache/proxy/http1"
	"github.com/attache-dev/attache/proxy/intercept"
	"github.com/attache-dev/attache/proxy/sniff"
)

const (
	tlsTimeout = 10 * time.Second
	// hintCA is what a client's alert most often means.
	hintCA = "the client does not trust Attaché's CA; start it with attache run, or point its CA variable at the bundle"
)

// connect answers a CONNECT. A well-formed one always gets 200: refusals are
// answered inside, where clients show them.
func (f *Front) connect(w http.ResponseWriter, r *http.Request, outer *proxy.Conn) {
	dest, err := destination.Parse("https", r.RequestURI, destination.PortRequired)
	if err != nil {
		f.refuse(w, http.StatusBadRequest, KindAuthority, err.Error())
		return
	}
	nc, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		f.Log.DebugContext(r.Context(), "take over CONNECT", "error", err)
		return
	}
	if _, err := io.WriteString(nc, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		_ = nc.Close()
		return
	}
	conn := *outer
	conn.Door = proxy.DoorConnect
	conn.Dest = dest
	if c, ok := nc.(*clientConn); ok { // closed by who accepted it
		c.next = func(ctx context.Context) { f.inside(proxy.WithConn(ctx, outer), c, &conn) }
		return
	}
	// Bytes were sent ahead of our 200.
	defer func() { _ = nc.Close() }()
	c := &clientConn{Conn: nc, f: f}
	f.inside(r.Context(), c, &conn)
	c.serveNext(r.Context())
}

// inside serves what a client speaks through a CONNECT, or leaves that to
// c.next.
func (f *Front) inside(ctx context.Context, c *clientConn, conn *proxy.Conn) {
	p, err := c.sniff(or(f.Limits.TLSTimeout.D(), tlsTimeout))
	if err != nil {
		if !errors.Is(err, io.EOF) {
			f.protocolError(ctx, conn, "nothing was sent after CONNECT that names a protocol")
		}
		return
	}
	switch p {
	case protoTLS:
		f.insideTLS(ctx, c, conn)
	case protoHTTP1, protoHTTP2:
		conn.Dest.Scheme = "http"
		ctx = proxy.WithConn(ctx, conn)
		if p == protoHTTP2 {
			f.serveH2(ctx, c)
			return
		}
		f.h1.ServeConn(ctx, c)
	default:
		f.protocolError(ctx, conn, "what was sent after CONNECT is neither TLS nor HTTP")
	}
}

// insideTLS tunnels or intercepts.
func (f *Front) insideTLS(ctx context.Context, c *clientConn, conn *proxy.Conn) {
	timeout := or(f.Limits.TLSTimeout.D(), tlsTimeout)
	pass := false
	if conn.Dest.IsIP() {
		// The name is the SNI; a rule may name the IP where there is none.
		hello, err := c.hello(timeout)
		if err != nil {
			f.tlsFailed(ctx, conn, err)
			return
		}
		if !f.nameFromSNI(ctx, conn, hello.SNI) {
			return
		}
		pass = f.passesHello(ctx, conn, hello)
	} else if pass = f.passes(ctx, conn); pass {
		hello, err := c.hello(timeout)
		if err != nil {
			f.tlsFailed(ctx, conn, err)
			return
		}
		if hello.SNI != "" && !strings.EqualFold(hello.SNI, conn.Dest.Host) {
			f.refused(KindSNI)
			f.Log.WarnContext(ctx, "SNI differs from the CONNECT name", "conn", conn.ID, "dest", conn.Dest.String())
			return
		}
		pass = f.passesHello(ctx, conn, hello)
	}
	f.passOrIntercept(ctx, c, conn, pass)
}

// passOrIntercept tunnels TLS unread, or ends it here.
func (f *Front) passOrIntercept(ctx context.Context, c *clientConn, conn *proxy.Conn, pass bool) {
	if pass {
		if err := f.Tunnel(ctx, conn, c); err != nil {
			f.Log.DebugContext(ctx, "tunnel ended", "conn", conn.ID, "error", err)
		}
		return
	}
	cfg, err := f.CA.Config(conn.Dest.Host)
	if err != nil {
		f.Log.ErrorContext(ctx, "make a leaf certificate", "conn", conn.ID, "error", err)
		return
	}
	if tc, ctx := f.handshake(ctx, c, conn, cfg); tc != nil {
		c.next = func(context.Context) { f.serveTLS(ctx, tc) }
	}
}

// passes asks for passthrough. A refused caller is never tunnelled: its
// refusal must be answered.
func (f *Front) passes(ctx context.Context, conn *proxy.Conn) bool {
	return f.Passthrough != nil && conn.Refusal == nil && f.Passthrough(ctx, conn)
}

// passesHello is passes for a ClientHello. One that may hold an encrypted name
// is not tunnelled, whether it does or not: the origin would read another name
// than policy. Here it is TLS without ECH, which is refused inside.
func (f *Front) passesHello(ctx context.Context, conn *proxy.Conn, h sniff.Hello) bool {
	if !f.passes(ctx, conn) {
		return false
	}
	if h.ECH {
		conn.Refusal = proxy.Unclear("the client hides the name that it asks for (Encrypted Client Hello), and this destination is passed through unread; switch ECH off in the client")
		return false
	}
	return true
}

// nameFromSNI gives a CONNECT to an address the name that the client asks for.
func (f *Front) nameFromSNI(ctx context.Context, conn *proxy.Conn, sni string) bool {
	if sni == "" {
		return true
	}
	dest, err := conn.Dest.WithHost(sni)
	if err != nil || dest.IsIP() && dest != conn.Dest {
		f.refused(KindSNI)
		f.Log.WarnContext(ctx, "SNI is not a host name", "conn", conn.ID, "dest", conn.Dest.String())
		return false
	}
	conn.Dest = dest
	return true
}

// handshake ends the client's TLS. The context knows conn; without a
// connection the handshake failed.
func (f *Front) handshake(ctx context.Context, c net.Conn, conn *proxy.Conn, cfg *tls.Config) (*tls.Conn, context.Context) {
	tc := tls.Server(c, cfg)
	hctx, cancel := context.WithTimeout(ctx, or(f.Limits.TLSTimeout.D(), tlsTimeout))
	err := tc.HandshakeContext(hctx)
	cancel()
	if err != nil {
		f.tlsFailed(ctx, conn, err)
		return nil, nil
	}
	return tc, proxy.WithConn(ctx, conn)
}

// serveTLS serves HTTP inside TLS.
func (f *Front) serveTLS(ctx context.Context, tc *tls.Conn) {
	if tc.ConnectionState().NegotiatedProtocol == http2.NextProtoTLS {
		f.serveH2(ctx, tc)
		return
	}
	f.h1.ServeConn(ctx, tc)
}

// serveH2 serves HTTP/2 until the connection or ctx ends.
func (f *Front) serveH2(ctx context.Context, c net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if conn := proxy.ConnFrom(ctx); conn != nil {
		own := *conn
		own.HangUp = func() { _ = c.Close() }
		ctx = proxy.WithConn(ctx, &own)
	}
	f.h2.ServeConn(c, &http2.ServeConnOpts{Context: ctx, BaseConfig: f.h2base, Handler: f.h2base.Handler})
}

// tlsFailed reports a broken handshake with a hint at its cause.
func (f *Front) tlsFailed(ctx context.Context, conn *proxy.Conn, err error) {
	kind, hint := KindTLS, ""
	var alert tls.AlertError
	switch {
	case errors.Is(err, intercept.ErrName):
		kind = KindSNI
	case errors.As(err, &alert) && untrusted(alert), errors.As(err, new(x509.UnknownAuthorityError)), remoteUntrusted(err):
		hint = hintCA
	}
	f.refused(kind)
	f.Log.WarnContext(ctx, "client broke off the TLS handshake", "conn", conn.ID, "dest", conn.Dest.String(), "error", err, "hint", hint)
	if f.TLSFailed != nil {
		f.TLSFailed(conn, err, hint)
	}
}

// untrusted are the alerts of RFC 8446 section 6.2 by which clients refuse a
// certificate: bad_certificate, certificate_unknown, unknown_ca.
func untrusted(a tls.AlertError) bool { return a == 42 || a == 46 || a == 48 }

// remoteUntrusted finds such an alert received from the peer: crypto/tls
// keeps its type private and wraps it in a net.OpError "remote error".
func remoteUntrusted(err error) bool {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" || op.Err == nil {
		return false
	}
	switch op.Err.Error() {
	case tls.AlertError(42).Error(), tls.AlertError(46).Error(), tls.AlertError(48).Error():
		return true
	}
	return false
}

func (f *Front) protocolError(ctx context.Context, conn *proxy.Conn, what string) {
	f.refused(KindProtocol)
	f.Log.WarnContext(ctx, "connection closed", "conn", conn.ID, "dest", conn.Dest.String(), "reason", what)
}

// refuse answers a request that does not reach the handler.
func (f *Front) refuse(w http.ResponseWriter, status int, kind, text string) {
	f.refused(kind)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, "attache: "+text+"\n")
}

// maxHeaders bounds the field lines of an HTTP/2 request, as the codec does
// for HTTP/1.1.
func (f *Front) maxHeaders() int { return or(f.Limits.MaxHeaders, http1.DefaultMaxHeaders) }
