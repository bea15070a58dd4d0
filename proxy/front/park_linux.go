package front

import (
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lot keeps idle connections without a goroutine, whose stack costs more than
// all else of one: an epoll descriptor of its own tells when there is something
// to read. Agents keep many connections open and use few.
type lot struct {
	mu     sync.Mutex // guards what follows
	epoll  int        // 0: not open
	next   int32
	parked map[int32]*parked
	of     map[*clientConn]int32
	closed bool
}

// parked is a connection in the lot.
type parked struct {
	c      *clientConn
	until  time.Time
	resume func()
}

const parks = true

const (
	// sweepEvery is how often idle timeouts are looked at.
	sweepEvery = 5 * time.Second
	maxEvents  = 128
)

// add puts a connection into the lot. If it cannot, resume is called at once.
func (l *lot) add(p *parked) {
	l.mu.Lock()
	if !l.park(p) {
		l.mu.Unlock()
		go p.resume()
		return
	}
	l.mu.Unlock()
}

func (l *lot) park(p *parked) bool {
	if l.closed || !l.open() {
		return false
	}
	l.next++
	id := l.next
	if l.parked[id] != nil { // after two thousand million
		return false
	}
	l.parked[id], l.of[p.c] = p, id
	// What can be read already is told at once: nothing is missed in between.
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: id}
	if err := l.control(p.c, unix.EPOLL_CTL_ADD, &ev); err != nil {
		l.forget(id)
		return false
	}
	return true
}

func (l *lot) open() bool {
	if l.epoll != 0 {
		return true
	}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return false
	}
	l.epoll, l.parked, l.of = fd, map[int32]*parked{}, map[*clientConn]int32{}
	go l.wait(fd)
	return true
}

// control changes the watch on c's descriptor.
func (l *lot) control(c *clientConn, op int, ev *unix.EpollEvent) error {
	sc, ok := c.Conn.(syscall.Conn)
	if !ok {
		return net.ErrClosed
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var ctl error
	if err := raw.Control(func(fd uintptr) { ctl = unix.EpollCtl(l.epoll, op, int(fd), ev) }); err != nil {
		return err
	}
	return ctl
}

// forget drops a connection; the caller resumes it.
func (l *lot) forget(id int32) *parked {
	p := l.parked[id]
	if p != nil {
		delete(l.parked, id)
		delete(l.of, p.c)
	}
	return p
}

// wait resumes connections that have something to read, or that nothing came
// on for too long, until the lot is closed.
func (l *lot) wait(epoll int) {
	defer func() { _ = unix.Close(epoll) }()
	events := make([]unix.EpollEvent, maxEvents)
	sweep := time.Now().Add(sweepEvery)
	for {
		n, err := unix.EpollWait(epoll, events, int(time.Second/time.Millisecond))
		if err != nil && err != unix.EINTR { //nolint:errorlint // an errno
			return
		}
		l.mu.Lock()
		for _, ev := range events[:max(n, 0)] {
			if p := l.forget(ev.Fd); p != nil {
				_ = l.control(p.c, unix.EPOLL_CTL_DEL, nil)
				go p.resume()
			}
		}
		if now := time.Now(); now.After(sweep) {
			sweep = now.Add(sweepEvery)
			for id, p := range l.parked {
				if now.After(p.until) {
					l.forget(id)
					_ = l.control(p.c, unix.EPOLL_CTL_DEL, nil)
					p.c.expired = true // who serves it says good-bye
					go p.resume()
				}
			}
		}
		closed := l.closed && len(l.parked) == 0
		l.mu.Unlock()
		if closed {
			return
		}
	}
}

// wake resumes a connection that was closed.
func (l *lot) wake(c *clientConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if id, ok := l.of[c]; ok {
		p := l.forget(id)
		_ = l.control(c, unix.EPOLL_CTL_DEL, nil) // closed: it is gone already
		go p.resume()
	}
}

// close resumes all, and takes none any more.
func (l *lot) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for id := range l.parked {
		p := l.forget(id)
		_ = l.control(p.c, unix.EPOLL_CTL_DEL, nil)
		go p.resume()
	}
}

// len is how many are parked.
func (l *lot) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.parked)
}
