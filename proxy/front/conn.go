package front

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/attache-dev/attache/proxy/sniff"
)

// clientConn is an accepted connection that can be read ahead.
type clientConn struct {
	net.Conn
	f     *Front
	ahead []byte // read, not yet consumed
	// next serves the connection once what serves it now has returned, so that
	// a client inside TLS inside CONNECT does not stand on the frames of both.
	next func(ctx context.Context)
	// accepted says that it is one of f's own, which may be parked; idle is set
	// when it wants to be, by whoever serves it.
	accepted bool
	idle     *parked
	expired  bool // parked for too long: there is nothing to read any more
}

// live serves c to its end, or until it is parked.
func (f *Front) live(ctx context.Context, c *clientConn, serve func(context.Context)) {
	c.next = serve
	c.serveNext(ctx)
	if p := c.idle; p != nil {
		c.idle = nil
		f.lot.add(p)
		return
	}
	f.done(c)
}

// park lets go of a connection that is idle, until it says something.
func (f *Front) park(nc net.Conn, idle time.Duration, resume func()) bool {
	if t, ok := nc.(interface{ NetConn() net.Conn }); ok {
		nc = t.NetConn()
	}
	c, ok := nc.(*clientConn)
	if !ok || !c.accepted || len(c.ahead) > 0 {
		return false
	}
	c.idle = &parked{c: c, until: time.Now().Add(idle), resume: func() {
		f.live(context.Background(), c, func(context.Context) { resume() }) // resume has a context of its own
	}}
	return true
}

// Close implements net.Conn. A connection that is parked ends, too.
func (c *clientConn) Close() error {
	err := c.Conn.Close()
	c.f.lot.wake(c)
	return err
}

// serveNext runs next until none is left. A panic ends the connection only, as
// it does in a handler.
func (c *clientConn) serveNext(ctx context.Context) {
	defer func() {
		if v := recover(); v != nil {
			c.f.Log.ErrorContext(ctx, "connection handler panicked", "panic", v, "stack", string(debug.Stack()))
		}
	}()
	for c.next != nil {
		next := c.next
		c.next = nil
		next(ctx)
	}
}

// Read implements net.Conn.
func (c *clientConn) Read(p []byte) (int, error) {
	if c.expired {
		return 0, net.ErrClosed
	}
	if len(c.ahead) > 0 {
		n := copy(p, c.ahead)
		if c.ahead = c.ahead[n:]; len(c.ahead) == 0 {
			c.ahead = nil // the connection lives long, its first bytes need not
		}
		return n, nil
	}
	return c.Conn.Read(p)
}

// WriteTo lets io.Copy splice a tunnel in the kernel once what was read ahead
// is gone.
func (c *clientConn) WriteTo(w io.Writer) (int64, error) {
	ahead := c.ahead
	c.ahead = nil
	n := int64(0)
	if len(ahead) > 0 {
		m, err := w.Write(ahead)
		n = int64(m)
		if err != nil {
			return n, err
		}
	}
	m, err := io.Copy(w, c.Conn)
	return n + m, err
}

// ReadFrom is the other direction of WriteTo.
func (c *clientConn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.Conn, r) }

// SyscallConn lets an attestor ask the kernel about the connection.
func (c *clientConn) SyscallConn() (syscall.RawConn, error) {
	if s, ok := c.Conn.(syscall.Conn); ok {
		return s.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// CloseWrite half-closes the connection.
func (c *clientConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// peek reads until enough says that it has seen enough, and keeps the bytes.
func (c *clientConn) peek(enough func([]byte) bool) error {
	for !enough(c.ahead) {
		if len(c.ahead) >= maxPeek {
			return errors.New("client sent too much before it could be recognised")
		}
		buf := make([]byte, 2048)
		n, err := c.Conn.Read(buf)
		c.ahead = append(c.ahead, buf[:n]...)
		if err != nil && n == 0 {
			return err
		}
	}
	return nil
}

// maxPeek bounds a ClientHello and its records: post-quantum key shares and
// grease included, real ones stay under 4 KiB.
const maxPeek = 80 << 10

// protocol is what a client speaks inside a connection.
type protocol int

const (
	protoUnknown protocol = iota
	protoTLS
	protoHTTP1
	protoHTTP2 // with prior knowledge (RFC 9113 section 3.3)
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// recognise tells the protocol by its first bytes; more means that more bytes
// are needed to tell.
func recognise(b []byte) (p protocol, more bool) {
	switch {
	case len(b) == 0:
		return protoUnknown, true
	case b[0] == 0x16: // TLS handshake record
		return protoTLS, false
	case bytes.HasPrefix(b, []byte(preface[:14])):
		return protoHTTP2, false
	case len(b) < 14 && bytes.HasPrefix([]byte(preface), b):
		return protoUnknown, true
	case 'A' <= b[0] && b[0] <= 'Z' || 'a' <= b[0] && b[0] <= 'z':
		return protoHTTP1, false
	}
	return protoUnknown, false
}

// sniff recognises the protocol within timeout.
func (c *clientConn) sniff(timeout time.Duration) (protocol, error) {
	_ = c.SetReadDeadline(time.Now().Add(timeout))
	var p protocol
	err := c.peek(func(b []byte) bool {
		var more bool
		p, more = recognise(b)
		return !more
	})
	_ = c.SetReadDeadline(time.Time{})
	return p, err
}

// hello reads the ClientHello ahead.
func (c *clientConn) hello(timeout time.Duration) (h sniff.Hello, err error) {
	_ = c.SetReadDeadline(time.Now().Add(timeout))
	defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	var bad error
	err = c.peek(func(b []byte) bool {
		var more bool
		h, more, bad = sniff.ReadHello(b)
		return !more
	})
	return h, errors.Join(err, bad)
}
