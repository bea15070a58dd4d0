package http1

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

// Probed wraps a TCP connection so that a [Client] can look, without waiting,
// whether the origin has closed it or sent something unasked. It stands below
// TLS: records that TLS has read ahead are seen too, and those that are no
// data (session tickets, key updates) are dealt with.
func Probed(c net.Conn) net.Conn {
	s, ok := c.(syscall.Conn)
	if !ok {
		return c
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return c
	}
	p := &probed{Conn: c, raw: raw, remote: named{c.RemoteAddr(), c.RemoteAddr().String()}}
	p.control = p.read
	return p
}

type probed struct {
	net.Conn
	raw     syscall.RawConn
	control func(fd uintptr)
	remote  named

	// active makes Read look instead of wait. Only the goroutine that owns the
	// read side sets it.
	active bool
	buf    []byte
	n      int
	err    error
}

// named is an address whose text, which each exchange asks for, was made once.
type named struct {
	net.Addr
	text string
}

// String implements net.Addr.
func (n *named) String() string { return n.text }

// RemoteAddr implements net.Conn.
func (p *probed) RemoteAddr() net.Addr { return &p.remote }

// Read implements net.Conn. While active it answers os.ErrDeadlineExceeded
// when there is nothing to read now, which TLS takes as a passing condition.
func (p *probed) Read(b []byte) (int, error) {
	if !p.active {
		return p.Conn.Read(b)
	}
	p.buf = b
	err := p.raw.Control(p.control)
	p.buf = nil
	if err != nil {
		return 0, err
	}
	return p.n, p.err
}

// read runs with the descriptor, which Go keeps non-blocking.
func (p *probed) read(fd uintptr) {
	n, err := syscall.Read(int(fd), p.buf)
	p.n, p.err = max(n, 0), err
	switch {
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EINTR):
		p.err = os.ErrDeadlineExceeded
	case n == 0 && err == nil:
		p.err = io.EOF
	}
}

// CloseWrite half-closes where the connection can.
func (p *probed) CloseWrite() error {
	if c, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return p.Conn.Close()
}
