package http1

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
)

const (
	// maxChunkLine bounds a chunk's size line with its extensions; overhead
	// bounds all of them together, in net/http's own way of counting.
	maxChunkLine = 256
	maxOverhead  = 16 << 10
)

// errLastChunk says that a body's trailer section comes next.
var errLastChunk = errors.New("last chunk")

// badFraming is what is wrong with a body's framing: the kind that a server
// counts and the text that a client tells.
type badFraming struct{ kind, text string }

// Error implements error.
func (f *badFraming) Error() string { return f.text }

// payload reads a body of known length or in chunks off an input, for requests
// and answers alike.
type payload struct {
	chunked  bool
	inChunk  bool  // the CRLF behind the current chunk is still to come
	left     int64 // of the body, or of the current chunk
	overhead int64
}

// read reads some of the body. Its end is io.EOF, or errLastChunk where a
// trailer section follows; the end of the connection is io.ErrUnexpectedEOF.
func (b *payload) read(in *input, p []byte) (int, error) {
	if !b.chunked {
		n, err := b.some(in, p)
		if err == nil && b.left == 0 {
			err = io.EOF
		}
		return n, err
	}
	if b.left == 0 {
		if err := b.nextChunk(in); err != nil {
			return 0, err
		}
	}
	n, err := b.some(in, p)
	if err == nil && b.left == 0 && bytes.HasPrefix(in.buffered(), []byte("\r\n0\r\n\r\n")) {
		err = b.nextChunk(in) // the reader sees the end without one more call
	}
	return n, err
}

// some reads up to left bytes.
func (b *payload) some(in *input, p []byte) (int, error) {
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := in.some(p)
	b.left -= int64(n)
	return n, unexpected(err)
}

// nextChunk reads up to the next chunk's data: RFC 9112 section 7.1.
func (b *payload) nextChunk(in *input) error {
	if b.inChunk {
		if _, err := in.line(0); err != nil { // nothing but CRLF
			return err
		}
		b.inChunk = false
	}
	line, err := in.line(maxChunkLine)
	if err != nil {
		return err
	}
	n, ok := parseChunkSize(line)
	b.overhead = max(0, b.overhead+int64(len(line))+2-16-2*n)
	if !ok || b.overhead > maxOverhead {
		return &badFraming{KindChunk, "a chunk's size line is malformed"}
	}
	if n == 0 {
		return errLastChunk
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

// addTrailer reads the trailer section into t, which may hold the announced
// names already. Fields that frame, route, authenticate or describe the
// content must not come late: RFC 9110 section 6.5.1.
func addTrailer(in *input, t *http.Header, maxBytes, maxFields int) error {
	var late http.Header
	for n := 0; ; n++ {
		line, err := in.line(maxBytes)
		if err != nil {
			return err
		}
		if len(line) == 0 {
			break
		}
		maxBytes -= len(line)
		name, value, ok := strings.Cut(string(line), ":")
		value = strings.Trim(value, " \t")
		key := http.CanonicalHeaderKey(name)
		if !ok || name == "" || !allToken(name) || !validValue(value) || n >= maxFields || maxBytes < 0 || forbiddenTrailer(key) {
			return &badFraming{KindTrailer, "a trailer is malformed, too much or cannot come late"}
		}
		if late == nil {
			late = make(http.Header)
		}
		late[key] = append(late[key], value)
	}
	if *t == nil {
		*t = late
		return nil
	}
	for key, v := range late {
		(*t)[key] = v
	}
	return nil
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

// some reads what there is, past the buffer where that saves a copy.
func (in *input) some(p []byte) (int, error) {
	if len(in.buffered()) == 0 {
		in.clearDeadline()
		if len(p) >= directRead && in.err == nil {
			n, err := in.c.Read(p)
			if n > 0 {
				return n, nil // an error, if any, comes again
			}
			if err == nil {
				err = io.ErrNoProgress
			}
			in.err = err
			return 0, err
		}
		if err := in.fill(inputSize); err != nil {
			return 0, err
		}
	}
	n := copy(p, in.buffered())
	in.r += n
	return n, nil
}

// line returns the next line of a body's framing without its CRLF; the slice
// is good until the next read.
func (in *input) line(limit int) ([]byte, error) {
	for {
		data := in.buffered()
		i := bytes.IndexByte(data, '\n')
		switch {
		case i == 0 || i > 0 && data[i-1] != '\r':
			return nil, &badFraming{KindBareLF, "a line of its body's framing ends in LF without CR"}
		case i > limit+1 || i < 0 && len(data) > limit+1:
			return nil, &badFraming{KindChunk, "a line of its body's framing is too long"}
		case i > 0:
			in.r += i + 1
			return data[:i-1], nil
		}
		in.clearDeadline()
		if err := in.fill(limit + inputSize); err != nil {
			return nil, unexpected(err)
		}
	}
}

// unexpected is what the end of a connection is in the middle of a body.
func unexpected(err error) error {
	if err == io.EOF { //nolint:errorlint // readers answer io.EOF itself
		return io.ErrUnexpectedEOF
	}
	return err
}
