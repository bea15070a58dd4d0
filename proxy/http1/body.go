package http1

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
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

const (
	// maxChunkLine bounds a chunk's size line with its extensions; overhead
	// bounds all of them together, in net/http's own way of counting.
	maxChunkLine = 256
	maxOverhead  = 16 << 10
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

	mu       sync.Mutex // guards what follows, and k.in until done
	left     int64      // of the body, or of the current chunk
	inChunk  bool
	overhead int64
	err      error
}

func (b *body) init(k *conn, x *exchange, kind bodyKind, n int64) {
	b.k, b.x, b.kind, b.left = k, x, kind, n
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
	if b.kind == bodyChunked {
		return b.readChunked(p)
	}
	n, err := b.readLeft(p)
	if err != nil {
		return n, err
	}
	if b.left == 0 {
		return n, b.end()
	}
	return n, nil
}

// readLeft reads up to left bytes.
func (b *body) readLeft(p []byte) (int, error) {
	in := &b.k.in
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	if len(in.buffered()) == 0 {
		in.clearDeadline()
		if len(p) >= directRead && in.err == nil {
			n, err := in.c.Read(p)
			b.left -= int64(n)
			if n == 0 && err != nil {
				in.err = err
				return 0, b.fail(err)
			}
			return n, nil
		}
		if err := in.fill(inputSize); err != nil {
			return 0, b.fail(err)
		}
	}
	n := copy(p, in.buffered())
	in.r += n
	b.left -= int64(n)
	return n, nil
}

func (b *body) readChunked(p []byte) (int, error) {
	if b.left == 0 {
		if err := b.nextChunk(); err != nil {
			return 0, err
		}
	}
	n, err := b.readLeft(p)
	if err == nil && b.left == 0 {
		// Take the CRLF along, and the last chunk if it is here already: the
		// reader then sees the end without one more call.
		if bytes.HasPrefix(b.k.in.buffered(), []byte("\r\n0\r\n\r\n")) {
			err = b.nextChunk()
		}
	}
	return n, err
}

// nextChunk reads up to the next chunk's data: RFC 9112 section 7.1.
func (b *body) nextChunk() error {
	if b.inChunk {
		if _, err := b.line(0); err != nil { // nothing but CRLF
			return err
		}
		b.inChunk = false
	}
	line, err := b.line(maxChunkLine)
	if err != nil {
		return err
	}
	n, ok := parseChunkSize(line)
	b.overhead = max(0, b.overhead+int64(len(line))+2-16-2*n)
	if !ok || b.overhead > maxOverhead {
		return b.malformed(KindChunk)
	}
	if n == 0 {
		return b.trailers()
	}
	b.left, b.inChunk = n, true
	return nil
}

// parseChunkSize takes hexadecimal digits, directly followed by the line's end
// or an extension.
func parseChunkSize(line []byte) (n int64, ok bool) {
	size, ext, _ := bytes.Cut(line, []byte(";"))
	if len(size) == 0 || len(size) > 15 {
		return 0, false
	}
	for _, c := range size {
		switch {
		case '0' <= c && c <= '9':
			n = n<<4 | int64(c-'0')
		case 'a' <= c && c <= 'f':
			n = n<<4 | int64(c-'a'+10)
		case 'A' <= c && c <= 'F':
			n = n<<4 | int64(c-'A'+10)
		default:
			return 0, false
		}
	}
	for _, c := range ext {
		if c < ' ' && c != '\t' || c >= 0x7f {
			return 0, false
		}
	}
	return n, true
}

// line returns the next line without its CRLF; the slice is good until the
// next read.
func (b *body) line(limit int) ([]byte, error) {
	in := &b.k.in
	for {
		data := in.buffered()
		i := bytes.IndexByte(data, '\n')
		switch {
		case i == 0 || i > 0 && data[i-1] != '\r':
			return nil, b.malformed(KindBareLF)
		case i > limit+1 || i < 0 && len(data) > limit+1:
			return nil, b.malformed(KindChunk)
		case i > 0:
			in.r += i + 1
			return data[:i-1], nil
		}
		in.clearDeadline()
		if err := in.fill(limit + inputSize); err != nil {
			return nil, b.fail(err)
		}
	}
}

// trailers reads the trailer section. Fields that frame, route, authenticate
// or describe the content must not come late: RFC 9110 section 6.5.1.
func (b *body) trailers() error {
	limit := b.k.s.maxHeaderBytes()
	var t http.Header
	for n := 0; ; n++ {
		line, err := b.line(limit)
		if err != nil {
			return err
		}
		if len(line) == 0 {
			break
		}
		limit -= len(line)
		name, value, ok := strings.Cut(string(line), ":")
		value = strings.Trim(value, " \t")
		key := http.CanonicalHeaderKey(name)
		if !ok || name == "" || !allToken(name) || !validValue(value) || n >= b.k.s.maxHeaders() || limit < 0 || forbiddenTrailer(key) {
			return b.malformed(KindTrailer)
		}
		if t == nil {
			t = make(http.Header)
		}
		t[key] = append(t[key], value)
	}
	if b.req.Trailer == nil {
		b.req.Trailer = t
	} else {
		for key, v := range t {
			b.req.Trailer[key] = v
		}
	}
	return b.end()
}

func forbiddenTrailer(key string) bool {
	switch key {
	case "Transfer-Encoding", "Content-Length", "Host", "Trailer", "Te", "Connection", "Keep-Alive", "Upgrade",
		"Content-Encoding", "Content-Type", "Content-Range", "Authorization", "Cookie", "Set-Cookie", "Expect",
		"Max-Forwards", "Cache-Control", "Range", "X-Api-Key", "Api-Key", "X-Goog-Api-Key", "Forwarded":
		return true
	}
	return strings.HasPrefix(key, "Proxy-") || strings.HasPrefix(key, "If-") || strings.HasPrefix(key, "X-Forwarded-")
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
	if err == io.EOF { //nolint:errorlint // readers answer io.EOF itself
		err = io.ErrUnexpectedEOF
	}
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
	if b.err != nil || !reuse || b.x.needContinue || b.kind == bodyLength && b.left > maxDrain {
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
