package http1

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// appendRequest appends the head of req. Nothing that could be read as another
// field or another request passes.
func appendRequest(b []byte, req *http.Request) ([]byte, error) {
	method := req.Method
	if method == "" {
		method = http.MethodGet
	}
	host := req.Host
	if host == "" {
		host = req.URL.Host
	}
	target := req.URL.RequestURI()
	switch {
	case !allToken(method) || method == http.MethodConnect:
		return b, fmt.Errorf("method %q cannot be sent", method)
	case host == "" || strings.ContainsAny(host, " \t,/\\?#@\"<>^`{|}") || !plainTarget(host):
		return b, errors.New("the host cannot be sent")
	case target == "" || !plainTarget(target):
		return b, errors.New("the target cannot be sent")
	}
	b = append(append(b, method...), ' ')
	b = append(append(b, target...), " HTTP/1.1\r\nHost: "...)
	b = append(append(b, host...), "\r\n"...)
	for key, values := range req.Header {
		switch key {
		case "Host", "Content-Length", "Transfer-Encoding", "Trailer":
			continue // ours to say
		}
		if !allToken(key) || key == "" {
			return b, fmt.Errorf("header name %q cannot be sent", key)
		}
		for _, v := range values {
			if !validValue(v) {
				return b, fmt.Errorf("the value of header %s cannot be sent", key)
			}
			b = append(append(b, key...), ": "...)
			b = append(append(b, v...), "\r\n"...)
		}
	}
	if req.Close {
		b = append(b, "Connection: close\r\n"...)
	}
	return appendFraming(b, method, req)
}

// appendFraming says how the body is framed: RFC 9112 section 6.
func appendFraming(b []byte, method string, req *http.Request) ([]byte, error) {
	switch {
	case !hasBody(req):
		if method == http.MethodPost || method == http.MethodPut || method == http.MethodPatch {
			b = append(b, "Content-Length: 0\r\n"...) // RFC 9110 section 8.6
		}
	case req.ContentLength > 0:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, req.ContentLength, 10)
		b = append(b, "\r\n"...)
	default:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
		if len(req.Trailer) > 0 {
			names := make([]string, 0, len(req.Trailer))
			for k := range req.Trailer {
				if !allToken(k) || k == "" || forbiddenTrailer(http.CanonicalHeaderKey(k)) {
					return b, fmt.Errorf("trailer %q cannot be sent", k)
				}
				names = append(names, k)
			}
			slices.Sort(names)
			b = append(b, "Trailer: "...)
			b = append(b, strings.Join(names, ",")...)
			b = append(b, "\r\n"...)
		}
	}
	return append(b, "\r\n"...), nil
}

// plainTarget refuses bytes that would end a target or a Host.
func plainTarget(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

// bodyWriter sends a request's body on a goroutine of its own, so that an
// answer which comes early is seen.
type bodyWriter struct {
	k    *clientConn
	req  *http.Request
	done chan struct{}
	err  error // of the body or the connection; valid once done
	// proceed, if not nil, is closed by 100 Continue; quit by the final answer.
	proceed, quit chan struct{}
	once          sync.Once
	mu            sync.Mutex // guards headRead
	headRead      bool
	skipped       atomic.Bool
}

func startBody(k *clientConn, req *http.Request) *bodyWriter {
	w := &bodyWriter{k: k, req: req, done: make(chan struct{}), quit: make(chan struct{})}
	if v := req.Header["Expect"]; len(v) == 1 && strings.EqualFold(v[0], "100-continue") {
		w.proceed = make(chan struct{})
	}
	k.in.clearDeadline()
	go w.run()
	return w
}

// goAhead is called for 100 Continue.
func (w *bodyWriter) goAhead() {
	if w.proceed != nil {
		w.once.Do(func() { close(w.proceed) })
	}
}

// answered is called when the final head, or none, has arrived; only the first
// call counts, for after it the connection may be another request's.
func (w *bodyWriter) answered() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.headRead {
		return
	}
	w.headRead = true
	_ = w.k.nc.SetReadDeadline(time.Time{}) // run may have set one for the head
	close(w.quit)
}

// over reports whether the whole body has been sent, waiting a moment for the
// last write to return.
func (w *bodyWriter) over() bool {
	select {
	case <-w.done:
	default:
		t := time.NewTimer(lateWrite)
		defer t.Stop()
		select {
		case <-w.done:
		case <-t.C:
			return false
		}
	}
	return w.err == nil && !w.skipped.Load()
}

// wait returns when the body is not read any more, or soon will not be.
func (w *bodyWriter) wait() { w.over() }

func (w *bodyWriter) run() {
	defer close(w.done)
	defer func() { _ = w.req.Body.Close() }()
	if !w.mayBegin() {
		w.skipped.Store(true)
		return
	}
	if w.err = w.copy(); w.err != nil {
		// Nothing more can be framed. The origin sees a cut request, never a
		// short one that looks whole; an answer that is under way is lost.
		w.k.abort()
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if d := w.k.t.ResponseTimeout; d > 0 && !w.headRead {
		_ = w.k.nc.SetReadDeadline(time.Now().Add(d))
	}
}

// mayBegin waits for 100 Continue where it was asked for.
func (w *bodyWriter) mayBegin() bool {
	if w.proceed == nil {
		return true
	}
	t := time.NewTimer(or(w.k.t.ContinueTimeout, DefaultContinueTimeout))
	defer t.Stop()
	select {
	case <-w.proceed:
		return true
	case <-t.C:
		return true
	case <-w.quit:
		return false
	}
}

func (w *bodyWriter) copy() error {
	buf := outputs.Get().(*outputBuffer)
	defer outputs.Put(buf)
	if w.req.ContentLength > 0 {
		return w.copyLength(buf[:])
	}
	return w.copyChunked(buf[:])
}

// errBodyLength is a body that is not as long as was said.
var errBodyLength = errors.New("request body is not of its Content-Length")

func (w *bodyWriter) copyLength(buf []byte) error {
	for left := w.req.ContentLength; ; {
		n, err := w.req.Body.Read(buf)
		if int64(n) > left {
			return errBodyLength
		}
		if n > 0 {
			if _, werr := w.k.nc.Write(buf[:n]); werr != nil {
				return werr
			}
			left -= int64(n)
		}
		switch {
		case err == io.EOF && left == 0: //nolint:errorlint // readers answer io.EOF itself
			return nil
		case err == io.EOF: //nolint:errorlint // the same
			return errBodyLength
		case err != nil:
			return err
		}
	}
}

func (w *bodyWriter) copyChunked(buf []byte) error {
	const room = len("ffffffff\r\n")
	for {
		n, err := w.req.Body.Read(buf[room : len(buf)-2])
		if n > 0 {
			size := strconv.AppendInt(make([]byte, 0, room), int64(n), 16)
			size = append(size, '\r', '\n')
			start := room - len(size)
			copy(buf[start:], size)
			end := room + n
			buf[end], buf[end+1] = '\r', '\n'
			if _, werr := w.k.nc.Write(buf[start : end+2]); werr != nil {
				return werr
			}
		}
		switch {
		case err == io.EOF: //nolint:errorlint // readers answer io.EOF itself
			return w.last()
		case err != nil:
			return err
		}
	}
}

// last sends the last chunk and the trailers that were announced.
func (w *bodyWriter) last() error {
	b := []byte("0\r\n")
	for k, values := range w.req.Trailer {
		for _, v := range values {
			if !validValue(v) {
				return fmt.Errorf("the value of trailer %s cannot be sent", k)
			}
			b = append(append(append(b, k...), ": "...), v...)
			b = append(b, "\r\n"...)
		}
	}
	_, err := w.k.nc.Write(append(b, "\r\n"...))
	return err
}
