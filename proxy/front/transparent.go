package front

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/attache-dev/attache/proxy"
	"github.com/attache-dev/attache/proxy/destination"
	"github.com/attache-dev/attache/proxy/redirect"
	"github.com/attache-dev/attache/proxy/reject"
	"github.com/attache-dev/attache/proxy/sniff"
)

// Waits for the first bytes of a redirected connection. Clients that speak
// first do so within milliseconds; others wait for a greeting that only the
// origin can give.
const (
	sniffWait = 5 * time.Second
	// passWait is for addresses that policy passes through unread.
	passWait = 300 * time.Millisecond
)

// Transparent says how redirected connections are served. The zero value is
// what a pod's redirect wants, but for Answer.
type Transparent struct {
	// Original is the address that a connection was made to; its error matches
	// [redirect.ErrNotRedirected] for one made to the listener itself. Nil:
	// [redirect.OriginalDst].
	Original func(net.Conn) (netip.AddrPort, error)
	// Answer takes the connections by which the redirect is proved
	// ([redirect.Prover.Answer]); nil: none come.
	Answer func(c net.Conn, original netip.AddrPort) bool
	// Names is the name that a resolver of ours gave an address out for.
	// Reserved says that the address is nobody's but the resolver's: without a
	// name it is refused. Nil: addresses are real ones.
	Names func(netip.Addr) (name string, reserved bool)
	// Metadata serves the AWS door at the address of the instance metadata
	// service.
	Metadata bool
}

// metadataService is where EC2's instances find their credentials.
const metadataService = "169.254.169.254"

// ServeTransparent accepts, on a loopback listener, connections that were
// redirected to it. The destination is the name that the client's TLS or HTTP
// asks for, at the port that it connected to; the address that it connected to
// counts only where no host is named. It returns like [Front.ServeProxy] and
// closes ln.
func (f *Front) ServeTransparent(ctx context.Context, ln net.Listener, o Transparent) error {
	if o.Original == nil {
		o.Original = redirect.OriginalDst
	}
	return f.accept(ctx, ln, func(ctx context.Context, c *clientConn) {
		original, err := o.Original(c.Conn)
		if err != nil {
			// Made to the listener itself: who went on would meet itself.
			f.refused(KindDirect)
			f.Log.WarnContext(ctx, "connection to the redirect's own port closed", "peer", c.RemoteAddr().String(), "cause", err)
			return
		}
		if o.Answer != nil && o.Answer(c.Conn, original) {
			return
		}
		conn := f.attest(ctx, c)
		if conn == nil {
			return
		}
		conn.Door, conn.Original = proxy.DoorTransparent, original
		if o.Names != nil {
			name, reserved := o.Names(original.Addr())
			if conn.Name = name; reserved && name == "" && conn.Refusal == nil {
				conn.Refusal = proxy.Unclear("no name was looked up that has the address " + original.Addr().String())
			}
		}
		if o.Metadata && original.Port() == 80 && original.Addr().String() == metadataService {
			conn.Door, conn.Local = proxy.DoorAWS, metadataService
			conn.Dest = destination.Destination{Scheme: "http", Host: metadataService, Port: 80}
			f.h1.ServeConn(proxy.WithConn(ctx, conn), c)
			return
		}
		f.redirected(ctx, c, conn)
	})
}

// redirected finds out what a redirected client speaks, and serves that or
// leaves it to c.next.
func (f *Front) redirected(ctx context.Context, c *clientConn, conn *proxy.Conn) {
	if hint := sniff.ServerFirst(conn.Original.Port()); hint != "" {
		f.opaque(ctx, c, conn, hint)
		return
	}
	p, err := c.first(f.patience(ctx, conn))
	switch {
	case err != nil && len(c.ahead) == 0 && !errors.Is(err, os.ErrDeadlineExceeded):
		if !errors.Is(err, io.EOF) {
			f.Log.DebugContext(ctx, "client left", "conn", conn.ID, "error", err)
		}
	case p == sniff.TLS:
		f.redirectedTLS(ctx, c, conn)
	case p == sniff.HTTP1:
		f.h1.ServeConn(proxy.WithConn(ctx, conn), c)
	case p == sniff.HTTP2:
		f.serveH2(proxy.WithConn(ctx, conn), c)
	default:
		f.opaque(ctx, c, conn, "tcp")
	}
}

// patience is how long the client may take to say something.
func (f *Front) patience(ctx context.Context, conn *proxy.Conn) time.Duration {
	probe := *conn
	if dest, err := originalDest(conn); err == nil {
		if probe.Dest = dest; f.passes(ctx, &probe) {
			return passWait
		}
	}
	return sniffWait
}

// first recognises the protocol within timeout. An error may have come after
// bytes that can be told.
func (c *clientConn) first(timeout time.Duration) (p sniff.Protocol, err error) {
	_ = c.SetReadDeadline(time.Now().Add(timeout))
	err = c.peek(func(b []byte) bool {
		var more bool
		p, more = sniff.Recognise(b)
		return !more
	})
	_ = c.SetReadDeadline(time.Time{})
	return p, err
}

// originalDest is the destination of a connection that names none: the name
// that our resolver gave its address out for, else the address.
func originalDest(conn *proxy.Conn) (destination.Destination, error) {
	host := conn.Name
	if host == "" {
		host = conn.Original.Addr().Unmap().String()
	}
	return destination.Parse("https", net.JoinHostPort(host, strconv.Itoa(int(conn.Original.Port()))), destination.PortRequired)
}

// redirectedTLS tunnels or intercepts TLS under the name of its SNI.
func (f *Front) redirectedTLS(ctx context.Context, c *clientConn, conn *proxy.Conn) {
	hello, err := c.hello(or(f.Limits.TLSTimeout.D(), tlsTimeout))
	if err != nil {
		f.tlsFailed(ctx, conn, err)
		return
	}
	if conn.Dest, err = originalDest(conn); err != nil {
		f.protocolError(ctx, conn, err.Error())
		return
	}
	if hello.SNI != "" && conn.Name != "" && !strings.EqualFold(hello.SNI, conn.Name) {
		conn.Refusal = proxy.Unclear("the SNI is not the name that was looked up for this address")
	}
	if !f.nameFromSNI(ctx, conn, hello.SNI) {
		return
	}
	f.passOrIntercept(ctx, c, conn, f.passesHello(ctx, conn, hello))
}

// opaque tunnels a connection that names no host, or answers why not, with the
// id of its record, where its protocol has a form for that.
func (f *Front) opaque(ctx context.Context, c *clientConn, conn *proxy.Conn, protocol string) {
	var err error
	if conn.Dest, err = originalDest(conn); err != nil {
		f.protocolError(ctx, conn, err.Error())
		return
	}
	conn.Opaque = protocol
	if f.Tunnel == nil {
		f.protocolError(ctx, conn, "what was sent is neither TLS nor HTTP")
		return
	}
	if err := f.Tunnel(ctx, conn, c); err != nil {
		f.refused(KindProtocol)
		f.Log.InfoContext(ctx, "connection closed", "conn", conn.ID, "dest", conn.Dest.HostPort(), "protocol", protocol, "reason", err)
		if known := reject.Recognise(c.ahead); known != "" {
			protocol = known
		}
		if r := (*proxy.Refused)(nil); errors.As(err, &r) {
			if _, err := reject.Answer(c, protocol, "attache: "+r.Code+": "+r.Reason+" ["+r.Record+"]"); err != nil {
				f.Log.DebugContext(ctx, "client did not read why", "conn", conn.ID, "error", err)
			}
		}
	}
}

// serveOriginal serves plain HTTP on a redirected connection: Host is the
// destination, at the port that was connected to.
func (f *Front) serveOriginal(w http.ResponseWriter, r *http.Request, conn *proxy.Conn) {
	if r.Method == http.MethodConnect {
		f.refuse(w, http.StatusNotImplemented, KindConnect, "other proxies are not reached through Attaché; connect to the host itself")
		return
	}
	dest, why := originalHost(r, conn)
	if why != "" {
		f.refuse(w, http.StatusMisdirectedRequest, KindMisdirected, why)
		return
	}
	delete(r.Header, "Host")
	c := *conn
	c.Dest = dest
	f.handle(w, r.WithContext(proxy.WithConn(r.Context(), &c)), dest)
}

// originalHost is the one destination of a plain request, or why there is
// none.
func originalHost(r *http.Request, conn *proxy.Conn) (dest destination.Destination, why string) {
	host := r.Host
	if host == "" { // HTTP/1.0: the address is all there is
		host = conn.Original.Addr().Unmap().String()
		if conn.Name != "" {
			host = conn.Name
		} else if conn.Original.Addr().Unmap().Is6() {
			host = "[" + host + "]"
		}
	}
	dest, err := destination.Parse("http", host, int(conn.Original.Port()))
	switch {
	case err != nil:
		return dest, err.Error()
	case r.URL.Scheme != "" && r.URL.Scheme != "http" || r.URL.Host != "" && !dest.Is(r.URL.Host) && r.ProtoMajor == 1:
		return dest, "the request's URL and Host differ"
	case dest.Port != int(conn.Original.Port()):
		return dest, "Host names port " + strconv.Itoa(dest.Port) + ", and the connection was made to port " + strconv.Itoa(int(conn.Original.Port()))
	case dest.IsIP() && dest.Host != conn.Original.Addr().Unmap().String():
		return dest, "Host is another address than the connection was made to"
	case conn.Name != "" && dest.Host != conn.Name:
		return dest, "Host is not the name that was looked up for this address"
	}
	if h, ok := r.Header["Host"]; ok && (len(h) != 1 || !dest.Is(h[0])) {
		return dest, "Host and :authority differ"
	}
	return dest, ""
}
