package http1

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync/atomic"
)

// answer is a response and its body, in one allocation.
type answer struct {
	resp http.Response
	body answerBody
}

func unsound(text string) error { return fmt.Errorf("%w: %s", ErrResponse, text) }

// readResponse reads heads up to the final one.
func (k *clientConn) readResponse(req *http.Request, trace *httptrace.ClientTrace) (*http.Response, error) {
	limit := k.t.maxHeaderBytes()
	for {
		head, err := k.readHead(limit)
		if err != nil {
			return nil, err
		}
		limit -= len(head)
		a := &answer{}
		a.resp.Request, a.resp.TLS = req, k.tls
		f, err := parseResponse(head, &a.resp)
		if err != nil {
			return nil, err
		}
		switch code := a.resp.StatusCode; {
		case code >= 200:
			return k.final(a, f)
		case f.lengths+f.codings > 0:
			return nil, unsound("an interim answer has no body")
		case code == http.StatusSwitchingProtocols:
			return k.switched(req, &a.resp)
		case code == http.StatusContinue && k.write != nil:
			k.write.goAhead()
		}
		if trace != nil && trace.Got1xxResponse != nil {
			if err := trace.Got1xxResponse(a.resp.StatusCode, textproto.MIMEHeader(a.resp.Header)); err != nil {
				return nil, err
			}
		}
	}
}

// readHead returns the next head without its last empty line.
func (k *clientConn) readHead(limit int) (string, error) {
	in := &k.in
	lineStart, scanned := 0, 0
	for {
		data := in.buffered()
		i := bytes.IndexByte(data[scanned:], '\n')
		if i < 0 {
			scanned = len(data)
			if len(data) >= limit {
				return "", unsound("its header is too large")
			}
			if err := in.fill(limit); err != nil {
				return "", k.noHead(err, len(data))
			}
			continue
		}
		end := scanned + i
		if end == 0 || data[end-1] != '\r' {
			return "", unsound("a line ends in LF without CR (RFC 9112 section 2.2)")
		}
		if end-1 == lineStart {
			if lineStart == 0 {
				return "", unsound("the status line is empty")
			}
			head := string(data[:lineStart])
			in.r += end + 1
			return head, nil
		}
		lineStart, scanned = end+1, end+1
	}
}

// noHead tells a connection that ended before it answered from one that broke
// in the middle.
func (k *clientConn) noHead(err error, have int) error {
	switch {
	case isTimeout(err):
		return err
	case have == 0:
		return fmt.Errorf("%w: %w", errStale, err)
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

// parseResponse reads a head: RFC 9112 section 4.
func parseResponse(head string, resp *http.Response) (fields, error) {
	f := fields{response: true}
	line, rest, _ := strings.Cut(head, "\r\n")
	const version = len("HTTP/1.1")
	if len(line) < version+4 || line[:version-1] != "HTTP/1." || line[version] != ' ' {
		return f, unsound("the status line is not HTTP/1")
	}
	switch line[version-1] {
	case '0', '1':
		resp.ProtoMinor = int(line[version-1] - '0')
	default:
		return f, unsound("the version is neither 1.0 nor 1.1")
	}
	status := line[version+1:]
	for i := range 3 {
		if status[i] < '0' || status[i] > '9' {
			return f, unsound("the status is not a number")
		}
	}
	resp.StatusCode = int(status[0]-'0')*100 + int(status[1]-'0')*10 + int(status[2]-'0')
	if resp.StatusCode < 100 || len(status) > 3 && status[3] != ' ' || !validValue(status) {
		return f, unsound("the status line is malformed")
	}
	resp.Status, resp.Proto, resp.ProtoMajor = status, line[:version], 1
	var err error
	if resp.Header, err = parseFields(rest, &f); err != nil {
		return f, fmt.Errorf("%w: %w", ErrResponse, err)
	}
	resp.Close = f.close || resp.ProtoMinor == 0 && !f.keepAlive
	return f, nil
}

// final frames the answer: RFC 9112 section 6.3, without its leniencies.
func (k *clientConn) final(a *answer, f fields) (*http.Response, error) {
	kind, err := frameAnswer(&a.resp, f)
	if err != nil {
		return nil, err
	}
	b := &a.body
	b.k, b.resp, b.kind = k, &a.resp, kind
	if kind == answerNone {
		a.resp.Body = http.NoBody
		k.done(!a.resp.Close)
		return &a.resp, nil
	}
	b.pay.chunked = kind == answerChunked
	if kind == answerLength {
		b.pay.left = a.resp.ContentLength
	}
	a.resp.Body = b
	return &a.resp, nil
}

type answerKind uint8

const (
	answerNone answerKind = iota
	answerLength
	answerChunked
	answerClose // ends with the connection
)

func frameAnswer(resp *http.Response, f fields) (answerKind, error) {
	resp.ContentLength = -1
	switch {
	case f.codings > 0 && f.lengths > 0:
		return 0, unsound("it has both Content-Length and Transfer-Encoding")
	case f.codings > 1 || f.codings == 1 && (!strings.EqualFold(f.coding, "chunked") || resp.ProtoMinor == 0):
		return 0, unsound("its Transfer-Encoding is not exactly chunked")
	case f.lengths > 1:
		return 0, unsound("it has more than one Content-Length")
	}
	if f.codings == 1 {
		resp.TransferEncoding = []string{"chunked"}
		if err := announceAnswer(resp, f); err != nil {
			return 0, err
		}
	}
	if f.lengths == 1 {
		n, ok := parseLength(f.length)
		if !ok {
			return 0, unsound("its Content-Length is not a number")
		}
		resp.ContentLength = n
	}
	switch {
	case resp.Request.Method == http.MethodHead:
		return answerNone, nil
	case resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified:
		if f.codings > 0 {
			return 0, unsound("an answer without body has a Transfer-Encoding")
		}
		resp.ContentLength = 0
		return answerNone, nil
	case f.codings == 1:
		return answerChunked, nil
	case resp.ContentLength == 0:
		return answerNone, nil
	case resp.ContentLength > 0:
		return answerLength, nil
	}
	resp.Close = true
	return answerClose, nil
}

// announceAnswer moves the names of announced trailers where net/http has them.
func announceAnswer(resp *http.Response, f fields) error {
	if !f.trailer {
		return nil
	}
	t, err := declaredTrailer(resp.Header)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrResponse, err)
	}
	delete(resp.Header, "Trailer")
	if len(t) > 0 {
		resp.Trailer = t
	}
	return nil
}

// switched hands the connection over after 101.
func (k *clientConn) switched(req *http.Request, resp *http.Response) (*http.Response, error) {
	if len(req.Header["Upgrade"]) == 0 {
		return nil, unsound("it switches protocols unasked")
	}
	if k.write != nil && !k.write.over() { // what is still to come would be read as the other protocol
		return nil, unsound("it switches protocols in the middle of the request")
	}
	k.in.clearDeadline()
	ahead := bytes.Clone(k.in.buffered())
	k.in.release()
	resp.ContentLength = 0
	resp.Body = &upgraded{k: k, r: io.MultiReader(bytes.NewReader(ahead), k.nc)}
	return resp, nil
}

// answerBody is the body of an answer. Close may be called while Read waits.
type answerBody struct {
	k    *clientConn
	resp *http.Response
	kind answerKind
	over atomic.Bool // the connection is not ours any more

	pay payload
	err error
}

// Close implements io.Closer. A body that was not read to its end ends the
// connection.
func (b *answerBody) Close() error {
	if b.over.CompareAndSwap(false, true) {
		b.k.cut()
	}
	return nil
}

// Read implements io.Reader.
func (b *answerBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.over.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := b.read(p)
	if err == nil {
		return n, nil
	}
	b.err = err
	if !b.over.CompareAndSwap(false, true) {
		b.err = http.ErrBodyReadAfterClose
		return n, b.err
	}
	if err == io.EOF { //nolint:errorlint // our own
		b.k.done(!b.resp.Close)
		return n, err
	}
	b.err = b.k.failed(b.resp.Request.Context(), err)
	return n, b.err
}

func (b *answerBody) read(p []byte) (int, error) {
	in := &b.k.in
	if b.kind == answerClose {
		return in.some(p)
	}
	n, err := b.pay.read(in, p)
	if err == nil {
		return n, nil
	}
	if err == errLastChunk { //nolint:errorlint // our own
		err = io.EOF
		if terr := addTrailer(in, &b.resp.Trailer, b.k.t.maxHeaderBytes(), math.MaxInt); terr != nil {
			err = terr
		}
	}
	if f, ok := errors.AsType[*badFraming](err); ok {
		err = unsound(f.text)
	}
	return n, err
}
