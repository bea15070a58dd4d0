package isolate

import (
	"net"
	"sync"
)

// Late is a listener whose address is known before it exists: the agent's
// environment names it, and the namespace that it is in is made with the
// agent's process.
type Late struct {
	addr   net.Addr
	once   sync.Once
	closed chan struct{}
	given  chan struct{} // closed when ln is set
	mu     sync.Mutex    // guards ln
	ln     net.Listener
}

// NewLate returns a listener that will be at addr.
func NewLate(addr net.Addr) *Late {
	return &Late{addr: addr, closed: make(chan struct{}), given: make(chan struct{})}
}

// Give says which listener it is; it is called once. After Close the listener
// is closed, too.
func (l *Late) Give(ln net.Listener) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ln = ln
	close(l.given)
	select {
	case <-l.closed:
		_ = ln.Close()
	default:
	}
}

// Accept implements net.Listener: it waits for the listener, too.
func (l *Late) Accept() (net.Conn, error) {
	select {
	case <-l.given:
		return l.ln.Accept()
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *Late) Close() error {
	var err error
	l.once.Do(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		close(l.closed)
		if l.ln != nil {
			err = l.ln.Close()
		}
	})
	return err
}

// Addr implements net.Listener.
func (l *Late) Addr() net.Addr { return l.addr }
