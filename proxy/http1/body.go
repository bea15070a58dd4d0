package http1

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

type bodyKind uint8

const (
	bodyNone bodyKind = iota
	bodyLength
	bodyChunked
)

// ErrMalformed is matched by the errors that reading a malformed body gives.
var ErrMalformed = errors.New("malformed request body")

// body is a request's body. It may be read on another goroutine than the
// handler's.
type body struct {
	k    *conn
	x    *exchange
	req  *http.Request
	kind bodyKind
	done atomic.Bool // read to its end, trailers included
	shut atomic.Bool // closed by the handler or over with it

	mu  sync.Mutex // guards what follows, and k.in until done
	pay payload
	err error
}

func (b *body) init(k *conn, x *exchange, kind bodyKind, n int64) {
	b.k, b.x, b.kind = k, x, kind
	b.pay.chunked, b.pay.left = kind == bodyChunked, n
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return 0, b.err
	}
	if b.shut.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	if err := b.x.sendContinue(b.k); err != nil {
		return 0, b.fail(err)
	}
	if len(p) == 0 {
		return 0, nil
	}
	return b.read(p)
}

// Close implements io.Closer. What is left is dealt with when the handler has
// returned.
func (b *body) Close() error {
	b.shut.Store(true)
	return nil
}

func (b *body) read(p []byte) (int, error) {
	in := &b.k.in
	n, err := b.pay.read(in, p)
	if err == nil {
		return n, nil
	}
	if err == errLastChunk { //nolint:errorlint // our own
		err = io.EOF
		if terr := addTrailer(in, &b.req.Trailer, b.k.s.maxHeaderBytes(), b.k.s.maxHeaders()); terr != nil {
			err = terr
		}
	}
	if err == io.EOF { //nolint:errorlint // our own
		return n, b.end()
	}
	if f, ok := errors.AsType[*badFraming](err); ok {
		return n, b.malformed(f.kind)
	}
	return n, b.fail(err)
}

func (b *body) end() error {
	b.err = io.EOF
	if !b.shut.Load() {
		b.k.watch.arm() // before done: finish relies on that order
	}
	b.done.Store(true)
	return io.EOF
}

// malformed ends the connection: after it nothing can be framed.
func (b *body) malformed(kind string) error {
	if b.k.s.Refused != nil {
		b.k.s.Refused(kind)
	}
	b.err = ErrMalformed
	return b.err
}

// fail notes that the client has gone in the middle of its body.
func (b *body) fail(err error) error {
	b.err = err
	if !isTimeout(err) {
		b.x.ctx.cancel()
	}
	return err
}

// finish runs after the response. It reports whether the next request begins
// where the body ends; reuse says whether that is of interest.
func (b *body) finish(reuse bool) bool {
	b.shut.Store(true)
	if b.kind == bodyNone || b.done.Load() {
		return true
	}
	if !b.mu.TryLock() {
		// Someone still reads: an answer to an unread upload. End the read.
		_ = b.k.nc.SetReadDeadline(time.Unix(1, 0))
		b.mu.Lock()
		defer b.mu.Unlock()
		b.err = http.ErrBodyReadAfterClose
		return false
	}
	defer b.mu.Unlock()
	defer func() { b.err = http.ErrBodyReadAfterClose }()
	if b.err != nil || !reuse || b.x.needContinue || b.kind == bodyLength && b.pay.left > maxDrain {
		return b.done.Load()
	}
	b.k.in.deadline = time.Now().Add(lingerTime)
	return b.drain()
}

// drain reads a bounded rest away.
func (b *body) drain() bool {
	deadline := b.k.in.deadline
	defer func() {
		b.k.in.deadline = deadline
		b.k.in.clearDeadline()
	}()
	b.k.in.deadline = time.Time{} // keeps clearDeadline from undoing the next line
	_ = b.k.nc.SetReadDeadline(deadline)
	var sink [1024]byte
	for n := 0; n < maxDrain; {
		m, err := b.read(sink[:])
		n += m
		if err != nil {
			return errors.Is(err, io.EOF) && b.done.Load()
		}
	}
	return false
}

// sendContinue sends the interim response once, when the body is first wanted.
func (x *exchange) sendContinue(k *conn) error {
	x.contMu.Lock()
	defer x.contMu.Unlock()
	if !x.needContinue {
		return nil
	}
	x.needContinue = false
	_, err := k.nc.Write([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
	return err
}
