package http1

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// inputSize is for each open connection, idle ones included: most heads fit,
	// larger ones make it grow for a while.
	inputSize = 2 << 10
	// directRead is the size from which a body is read into the reader's own
	// memory, past the buffer.
	directRead = 2 << 10
)

// input is the connection's read side. Only one goroutine at a time uses it:
// the connection's own, the one that reads the body, or the watch.
type input struct {
	c    net.Conn
	buf  []byte
	r, w int
	err  error // sticky
	// deadline is the read deadline that is set on c; zero: none.
	deadline time.Time
}

func (in *input) init(c net.Conn) {
	in.c = c
	in.buf = make([]byte, inputSize)
}

func (in *input) release() { in.buf = nil }

func (in *input) buffered() []byte { return in.buf[in.r:in.w] }

// fill reads once. It makes room, up to limit bytes of buffer.
func (in *input) fill(limit int) error {
	if in.err != nil {
		return in.err
	}
	if in.r == in.w {
		in.r, in.w = 0, 0
		if len(in.buf) > inputSize {
			in.buf = make([]byte, inputSize) // a large head is rare: give it back
		}
	}
	if in.w == len(in.buf) {
		switch {
		case in.r > 0:
			in.w = copy(in.buf, in.buf[in.r:in.w])
			in.r = 0
		case len(in.buf) < limit:
			in.buf = append(in.buf, make([]byte, min(len(in.buf), limit-len(in.buf)))...)
		default:
			return io.ErrShortBuffer
		}
	}
	n, err := in.c.Read(in.buf[in.w:])
	in.w += n
	if n > 0 {
		return nil // an error, if any, comes again
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	in.err = err
	return err
}

// setDeadline moves the read deadline to at least 7/8 of d from now. Moving it
// on each request would cost a timer operation each.
func (in *input) setDeadline(d time.Duration) {
	now := time.Now()
	if left := in.deadline.Sub(now); !in.deadline.IsZero() && left <= d && left >= d-d/8 {
		return
	}
	in.deadline = now.Add(d)
	_ = in.c.SetReadDeadline(in.deadline)
}

func (in *input) clearDeadline() {
	if !in.deadline.IsZero() {
		in.deadline = time.Time{}
		_ = in.c.SetReadDeadline(time.Time{})
	}
}

// watch notices that the client has gone while a handler runs. It costs a
// timer, and a read on the timer's goroutine only for handlers that take
// longer than watchAfter; what it reads is kept for the next request.
type watch struct {
	k     *conn
	timer *time.Timer

	mu      sync.Mutex // guards what follows, and k.in while reading
	cond    sync.Cond
	armed   bool
	reading bool
	aborted bool
	over    bool          // the connection was taken over
	quit    chan struct{} // ends the wait of a half-closed client; nil: there is none
}

func (w *watch) init(k *conn) {
	w.k = k
	w.cond.L = &w.mu
}

// arm starts the watch; the request's body must have been read.
func (w *watch) arm() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return
	}
	w.armed = true
	if w.timer == nil {
		w.timer = time.AfterFunc(watchAfter, w.fire)
		return
	}
	w.timer.Reset(watchAfter)
}

func (w *watch) fire() {
	w.mu.Lock()
	in := &w.k.in
	if !w.armed || w.reading {
		w.mu.Unlock()
		return
	}
	if in.r == in.w {
		in.r, in.w = 0, 0
	}
	if in.err == nil && in.w == len(in.buf) { // the next requests are here already
		w.mu.Unlock()
		return
	}
	w.reading = true
	in.clearDeadline() // before the lock goes: stop sets one to end the read
	dst, n, err := in.buf[in.w:], 0, in.err
	w.mu.Unlock()

	if err == nil {
		n, err = in.c.Read(dst)
	}
	ended := err
	if n == 0 && errors.Is(err, io.EOF) {
		err = w.halfClosed()
	}

	w.mu.Lock()
	in.w += n
	if n == 0 && errors.Is(ended, io.EOF) {
		in.err = ended // no further request, whatever becomes of this one
	}
	gone := err != nil && (!w.aborted || !isTimeout(err))
	if gone && n == 0 {
		in.err = err
	}
	w.reading = false
	w.cond.Broadcast()
	w.mu.Unlock()
	if gone {
		w.k.cancelCurrent()
	}
}

// halfClosed tells a client that has ended its sending side and waits for its
// answer from one that has gone: it returns when the connection ends, nil when
// the watch does. A TLS client half-closes by close_notify (RFC 8446 section
// 6.1), and its TCP connection goes on. A FIN may mean either; whether
// somebody still holds the client's socket is for [Server.Held] to tell.
func (w *watch) halfClosed() error {
	if t, ok := w.k.nc.(interface{ NetConn() net.Conn }); ok {
		var one [1]byte
		var err error
		for err == nil {
			_, err = t.NetConn().Read(one[:]) // what follows close_notify is ignored
		}
		if !errors.Is(err, io.EOF) {
			return err
		}
	}
	if w.k.s.Held == nil {
		return io.EOF
	}
	quit := make(chan struct{})
	w.mu.Lock()
	if w.aborted {
		close(quit)
	} else {
		w.quit = quit
	}
	w.mu.Unlock()
	for pause := heldPause; w.k.s.Held(w.k.nc); pause = min(2*pause, heldPauseMax) {
		select {
		case <-quit:
			return nil
		case <-time.After(pause):
		}
	}
	return io.EOF
}

// stop ends the watch and waits until it has let go of the connection.
func (w *watch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed = false
	if w.timer != nil {
		w.timer.Stop()
	}
	if !w.reading {
		return
	}
	w.aborted = true
	if w.quit != nil {
		close(w.quit)
		w.quit = nil
	}
	_ = w.k.nc.SetReadDeadline(time.Unix(1, 0))
	for w.reading {
		w.cond.Wait()
	}
	w.aborted = false
	_ = w.k.nc.SetReadDeadline(time.Time{})
}

// rest gives the timer of a watch that is not armed up.
func (w *watch) rest() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.armed && !w.reading {
		w.timer = nil
	}
}

// end stops the watch for good.
func (w *watch) end() {
	w.mu.Lock()
	w.over = true
	w.mu.Unlock()
	w.stop()
}
