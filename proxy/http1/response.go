package http1

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// outputSize is one TLS record's plaintext: a full buffer is one record
	// and one write.
	outputSize = 16 << 10
	// gap is kept free between a response's head and its body until it is
	// known how the body is framed; then the head is moved up to the body, so
	// that both leave in one write.
	gap = len("Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nffffffff\r\n")
)

type outputBuffer [outputSize]byte

// smallOutput is enough for most answers of an API. Many connections answer at
// once, and each holds its buffer until its write returns.
const smallOutput = 4 << 10

type smallBuffer [smallOutput]byte

//nolint:gochecknoglobals // a pool holds no state that anyone can observe
var smallOutputs = sync.Pool{New: func() any { return new(smallBuffer) }}

func getOutput(small bool) []byte {
	if small {
		return smallOutputs.Get().(*smallBuffer)[:]
	}
	return outputs.Get().(*outputBuffer)[:]
}

func putOutput(b []byte) {
	switch len(b) {
	case outputSize:
		outputs.Put((*outputBuffer)(b))
	case smallOutput:
		smallOutputs.Put((*smallBuffer)(b))
	}
}

//nolint:gochecknoglobals // a pool holds no state that anyone can observe
var outputs = sync.Pool{New: func() any { return new(outputBuffer) }}

type framingMode uint8

const (
	frameUndecided framingMode = iota // body is buffered; its length decides
	frameNone                         // no body: HEAD, 204, 304, 1xx
	frameLength
	frameChunked
	frameClose // HTTP/1.0: the body ends with the connection
)

// response implements http.ResponseWriter, http.Flusher, http.Hijacker and
// the methods of http.ResponseController. Like net/http's it is for one
// goroutine at a time.
type response struct {
	k      *conn
	x      *exchange
	req    *http.Request
	header http.Header

	status   int
	wrote    bool // WriteHeader was called
	mode     framingMode
	closing  bool // the connection ends with this response
	hijacked bool
	deadline bool // the handler has set one
	err      error

	out       []byte // its length is its capacity
	start     int    // of what is to be sent in out
	end       int
	head      int // length of the head while undecided
	declared  int64
	written   int64
	announced []string // trailers named before the head
}

func (w *response) init(k *conn, x *exchange, req *http.Request) {
	w.k, w.x, w.req = k, x, req
	w.header = make(http.Header)
	w.closing = req.Close
}

// Header implements http.ResponseWriter.
func (w *response) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter. A 1xx status other than 101 is
// sent at once and may be followed by others.
func (w *response) WriteHeader(status int) {
	if w.wrote || w.hijacked {
		return
	}
	if status < 100 || status > 999 {
		panic(fmt.Sprintf("http1: invalid status %d", status))
	}
	w.x.contMu.Lock()
	defer w.x.contMu.Unlock()
	if status < 200 && status != http.StatusSwitchingProtocols {
		w.interim(status)
		return
	}
	if w.x.needContinue {
		// The client was not asked for the body and may or may not send it.
		w.closing = true
		w.x.needContinue = false
	}
	w.wrote, w.status = true, status
	if w.k.s.draining.Load() {
		w.closing = true
	}
	w.writeHead()
}

// interim sends a 1xx response with the fields that are set now.
func (w *response) interim(status int) {
	if w.req.ProtoMinor == 0 {
		return // RFC 9110 section 15.2: a 1.0 client knows none
	}
	if status == http.StatusContinue {
		w.x.needContinue = false
	}
	b := appendStatus(make([]byte, 0, 256), status)
	for key, values := range w.header {
		if !connectionField(key) && key != "Content-Length" {
			b = appendField(b, key, values)
		}
	}
	w.send(append(b, "\r\n"...))
}

// writeHead puts the head in the buffer and decides on the framing if the
// handler has declared it.
func (w *response) writeHead() {
	w.mode = w.frame()
	w.out = getOutput(w.mode == frameNone || w.mode == frameLength && w.declared <= smallOutput/2)
	b := appendStatus(w.out[:0], w.status)
	if _, ok := w.header["Date"]; !ok && w.status != http.StatusSwitchingProtocols {
		b = append(b, "Date: "...)
		b = append(b, w.k.s.now()...)
		b = append(b, "\r\n"...)
	}
	for key, values := range w.header {
		if w.sent(key, values) {
			b = appendField(b, key, values)
		}
	}
	switch {
	case w.status == http.StatusSwitchingProtocols:
		b = append(b, "Connection: Upgrade\r\n"...)
	case w.closing:
		b = append(b, "Connection: close\r\n"...)
	case w.req.ProtoMinor == 0 && (w.mode == frameLength || w.mode == frameNone):
		b = append(b, "Connection: keep-alive\r\n"...)
	}
	if w.mode == frameLength || w.mode == frameNone {
		if w.declared >= 0 {
			b = append(b, "Content-Length: "...)
			b = strconv.AppendInt(b, w.declared, 10)
			b = append(b, "\r\n"...)
		}
		b = append(b, "\r\n"...)
	}
	w.place(b)
}

// place makes b, which may have outgrown the buffer, the buffer's content.
func (w *response) place(b []byte) {
	room := len(w.out)
	if w.mode == frameUndecided {
		room = len(w.out) / 2 // leave some for the body
	}
	if len(b) > room {
		if w.mode == frameUndecided {
			b = w.commit(b)
		}
		w.send(b)
		w.start, w.end = 0, 0
		return
	}
	w.end = len(b)
	if w.mode == frameUndecided {
		w.head = len(b)
		w.start = w.head + gap // where the body is gathered
		w.end = w.start
	}
}

// frame reads Content-Length and Connection as the handler has set them.
func (w *response) frame() framingMode {
	w.declared = -1
	if hasToken(strings.Join(w.header["Connection"], ","), "close") {
		w.closing = true
	}
	if v := w.header["Content-Length"]; len(v) == 1 {
		if n, ok := parseLength(v[0]); ok {
			w.declared = n
		}
	}
	switch {
	case w.status == http.StatusSwitchingProtocols || w.status == http.StatusNoContent:
		w.declared = -1 // RFC 9110 section 8.6
		return frameNone
	case w.status == http.StatusNotModified || w.req.Method == http.MethodHead:
		return frameNone
	case w.declared >= 0:
		return frameLength
	}
	for _, v := range w.header["Trailer"] {
		for name := range strings.SplitSeq(v, ",") {
			if name = http.CanonicalHeaderKey(strings.Trim(name, " \t")); name != "" && !forbiddenTrailer(name) {
				w.announced = append(w.announced, name)
			}
		}
	}
	return frameUndecided
}

// sent tells which of the handler's fields go out. Those of the connection
// are this codec's own.
func (w *response) sent(key string, values []string) bool {
	switch {
	case key == "Content-Length", strings.HasPrefix(key, http.TrailerPrefix):
		return false
	case key == "Trailer":
		return len(w.announced) > 0
	case key == "Upgrade":
		return w.status == http.StatusSwitchingProtocols || w.status == http.StatusUpgradeRequired
	}
	for _, name := range w.announced {
		if key == name {
			return false // its value comes at the end
		}
	}
	return len(values) > 0 && !connectionField(key)
}

// connectionField names what concerns one hop and is never the handler's.
func connectionField(key string) bool {
	switch key {
	case "Connection", "Transfer-Encoding", "Keep-Alive", "Proxy-Connection":
		return true
	}
	return false
}

// Write implements http.ResponseWriter.
func (w *response) Write(p []byte) (int, error) { return write(w, p) }

// WriteString implements io.StringWriter.
func (w *response) WriteString(s string) (int, error) { return write(w, s) }

func write[T []byte | string](w *response, p T) (int, error) {
	if w.hijacked {
		return 0, http.ErrHijacked
	}
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	if w.err != nil {
		return 0, w.err
	}
	if w.mode == frameNone {
		if w.req.Method == http.MethodHead {
			return len(p), nil
		}
		if len(p) == 0 {
			return 0, nil
		}
		return 0, http.ErrBodyNotAllowed
	}
	if w.mode == frameLength && int64(len(p)) > w.declared-w.written {
		return 0, http.ErrContentLength
	}
	w.written += int64(len(p))
	if w.mode == frameUndecided {
		if len(p) <= len(w.out)-w.end {
			w.end += copy(w.out[w.end:], p)
			return len(p), nil
		}
		w.decide()
	}
	if w.mode == frameChunked {
		writeChunks(w, p)
	} else {
		writePlain(w, p)
	}
	if w.err != nil {
		return 0, w.err
	}
	return len(p), nil
}

// writePlain gathers small writes and lets large ones pass.
func writePlain[T []byte | string](w *response, p T) {
	for len(p) > 0 && w.err == nil {
		if w.end == w.start && len(p) >= len(w.out) {
			w.send([]byte(p))
			return
		}
		n := copy(w.out[w.end:], p)
		w.end += n
		p = p[n:]
		if w.end == len(w.out) {
			w.flush()
		}
	}
}

// writeChunks cuts p so that each chunk ends within one buffer.
func writeChunks[T []byte | string](w *response, p T) {
	const overhead, little = len("ffff\r\n\r\n"), 256
	for len(p) > 0 && w.err == nil {
		room := len(w.out) - w.end - overhead
		if room < len(p) && room < little {
			w.flush()
			continue
		}
		n := min(room, len(p))
		b := strconv.AppendUint(w.out[:w.end], uint64(n), 16)
		b = append(b, "\r\n"...)
		b = append(b, p[:n]...)
		b = append(b, "\r\n"...)
		w.end = len(b)
		p = p[n:]
	}
}

// decide ends the undecided state: the body goes on beyond the buffer.
func (w *response) decide() {
	body := w.end - w.start
	framing := w.commit(make([]byte, 0, gap))
	if body > 0 && w.mode == frameChunked {
		framing = strconv.AppendInt(framing, int64(body), 16)
		framing = append(framing, "\r\n"...)
	}
	w.join(framing)
	if body > 0 && w.mode == frameChunked {
		if len(w.out)-w.end < 2 {
			w.flush()
		}
		w.end += copy(w.out[w.end:], "\r\n")
	}
}

// commit appends the framing of a body of unknown length.
func (w *response) commit(b []byte) []byte {
	if w.req.ProtoMinor == 1 {
		w.mode = frameChunked
		return append(b, "Transfer-Encoding: chunked\r\n\r\n"...)
	}
	w.mode = frameClose
	if !w.closing {
		b = append(b, "Connection: close\r\n"...)
	}
	w.closing = true
	return append(b, "\r\n"...)
}

// join moves the head up to the body, with framing between them.
func (w *response) join(framing []byte) {
	at := w.start - len(framing) - w.head
	copy(w.out[at:], w.out[:w.head])
	copy(w.out[at+w.head:], framing)
	w.start = at
}

// Flush implements http.Flusher.
func (w *response) Flush() { _ = w.FlushError() }

// FlushError implements http.ResponseController's Flush.
func (w *response) FlushError() error {
	if w.hijacked {
		return http.ErrHijacked
	}
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	if w.mode == frameUndecided {
		w.decide()
	}
	w.flush()
	return w.err
}

// flush sends what is in the buffer.
func (w *response) flush() {
	if w.end > w.start {
		w.send(w.out[w.start:w.end])
	}
	w.start, w.end = 0, 0
}

func (w *response) send(b []byte) {
	if w.err != nil {
		return
	}
	if _, err := w.k.nc.Write(b); err != nil {
		w.err = err
		w.x.ctx.cancel() // the client has gone
	}
}

// broken reports whether the client got less than a whole response.
func (w *response) broken() bool {
	return w.err != nil || w.mode == frameLength && w.written < w.declared
}

// finish completes the response and reports whether the connection may serve
// another request.
func (w *response) finish() bool {
	if !w.wrote {
		w.WriteHeader(http.StatusOK)
	}
	switch w.mode {
	case frameUndecided:
		if len(w.trailer()) > 0 {
			w.decide()
			w.endChunks()
			break
		}
		w.mode = frameLength
		w.declared = w.written
		b := make([]byte, 0, gap)
		if w.req.ProtoMinor == 0 && !w.closing {
			b = append(b, "Connection: keep-alive\r\n"...)
		}
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, w.declared, 10)
		w.join(append(b, "\r\n\r\n"...))
	case frameChunked:
		w.endChunks()
	}
	w.flush()
	putOutput(w.out)
	w.out = nil
	if w.deadline {
		_ = w.k.nc.SetWriteDeadline(time.Time{})
		w.k.in.deadline = time.Unix(1, 0) // unknown: make clearDeadline act
		w.k.in.clearDeadline()
	}
	return !w.closing && !w.broken() && w.status != http.StatusSwitchingProtocols
}

// endChunks sends the last chunk and the trailers.
func (w *response) endChunks() {
	if w.mode != frameChunked {
		return
	}
	b := append(make([]byte, 0, 64), "0\r\n"...)
	for key, values := range w.trailer() {
		b = appendField(b, key, values)
	}
	b = append(b, "\r\n"...)
	if len(b) > len(w.out)-w.end {
		w.flush()
	}
	if len(b) > len(w.out) {
		w.send(b)
		return
	}
	w.end += copy(w.out[w.end:], b)
}

// trailer gathers announced fields and those with http.TrailerPrefix.
func (w *response) trailer() http.Header {
	var t http.Header
	add := func(key string, values []string) {
		if len(values) == 0 || forbiddenTrailer(key) {
			return
		}
		if t == nil {
			t = make(http.Header)
		}
		t[key] = values
	}
	for _, name := range w.announced {
		add(name, w.header[name])
	}
	for key, values := range w.header {
		if name, ok := strings.CutPrefix(key, http.TrailerPrefix); ok {
			add(http.CanonicalHeaderKey(name), values)
		}
	}
	return t
}

// SetReadDeadline implements http.ResponseController.
func (w *response) SetReadDeadline(t time.Time) error {
	w.deadline = true
	return w.k.nc.SetReadDeadline(t)
}

// SetWriteDeadline implements http.ResponseController.
func (w *response) SetWriteDeadline(t time.Time) error {
	w.deadline = true
	return w.k.nc.SetWriteDeadline(t)
}

// EnableFullDuplex implements http.ResponseController: a request's body can
// always be read while the response is written.
func (w *response) EnableFullDuplex() error { return nil }

// Hijack implements http.Hijacker. What was written is sent first; bytes that
// the client has sent ahead are read from the returned connection (and so from
// the returned reader). The caller closes the connection.
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if w.hijacked {
		return nil, nil, http.ErrHijacked
	}
	if w.x.body.kind != bodyNone && !w.x.body.done.Load() {
		return nil, nil, errors.New("take over connection: the request's body has not been read")
	}
	if w.wrote {
		if err := w.FlushError(); err != nil {
			return nil, nil, err
		}
		putOutput(w.out)
		w.out = nil
	}
	w.hijacked = true
	w.k.watch.end()
	in := &w.k.in
	if in.err != nil {
		_ = w.k.nc.Close()
		return nil, nil, fmt.Errorf("take over connection: %w", in.err)
	}
	in.clearDeadline()
	var c net.Conn = w.k.nc
	if rest := in.buffered(); len(rest) > 0 {
		c = &surplusConn{Conn: c, surplus: append([]byte(nil), rest...)}
	}
	in.r, in.w = 0, 0
	in.release()
	return c, bufio.NewReadWriter(bufio.NewReader(c), bufio.NewWriter(c)), nil
}

// surplusConn gives back what was read ahead, then reads on.
type surplusConn struct {
	net.Conn
	surplus []byte
}

// Read implements net.Conn.
func (c *surplusConn) Read(p []byte) (int, error) {
	if len(c.surplus) > 0 {
		n := copy(p, c.surplus)
		c.surplus = c.surplus[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// CloseWrite half-closes the connection.
func (c *surplusConn) CloseWrite() error {
	closeWrite(c.Conn)
	return nil
}

// NetConn returns the connection below.
func (c *surplusConn) NetConn() net.Conn { return c.Conn }

func appendStatus(b []byte, status int) []byte {
	if status == http.StatusOK {
		return append(b, "HTTP/1.1 200 OK\r\n"...)
	}
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(status)...)
	return append(b, "\r\n"...)
}

// appendField writes one field line for each value. A name that is no token
// is left out and a control byte in a value becomes a space: a handler must
// not be able to split a response.
func appendField(b []byte, key string, values []string) []byte {
	if key == "" || !allToken(key) {
		return b
	}
	for _, v := range values {
		b = append(b, key...)
		b = append(b, ": "...)
		at := len(b)
		b = append(b, v...)
		if !validValue(v) {
			for i, c := range b[at:] {
				if c < ' ' && c != '\t' || c == 0x7f {
					b[at+i] = ' '
				}
			}
		}
		b = append(b, "\r\n"...)
	}
	return b
}
