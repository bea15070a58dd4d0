package sigv4

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
)

const (
	// maxLine bounds a chunk's line: 16 digits, the extension, a signature.
	maxLine = 16 + len(chunkExtension) + maxV4ASignature
	// maxTrailer bounds one trailer.
	maxTrailer = 1 << 10
	readBuffer = 32 << 10
)

type trailer struct{ name, value string }

// decoder reads the data out of an aws-chunked body. It is strict: each line has the one form, the data has the declared length,
// the announced trailers are there and nothing follows. io.EOF says that all of
// it was in order.
type decoder struct {
	r        *bufio.Reader
	c        chunking
	left     int64 // of the declared length
	chunk    int64 // of this chunk
	inChunk  bool
	trailers []trailer // sorted by name, after io.EOF
	err      error
}

func newDecoder(r io.Reader, c chunking) *decoder {
	return &decoder{r: bufio.NewReaderSize(r, readBuffer), c: c, left: c.decoded}
}

// Read implements [io.Reader].
func (d *decoder) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for d.err == nil && d.chunk == 0 {
		d.err = d.next()
	}
	if d.err != nil {
		return 0, d.err
	}
	n, err := d.r.Read(p[:min(int64(len(p)), d.chunk)])
	d.chunk -= int64(n)
	d.left -= int64(n)
	if err != nil {
		d.err = cut(err)
	}
	return n, nil
}

// next ends the chunk that was read and begins another, or ends the body.
func (d *decoder) next() error {
	if d.inChunk {
		if err := d.crlf(); err != nil {
			return err
		}
		d.inChunk = false
	}
	line, err := d.line(maxLine)
	if err != nil {
		return err
	}
	size, err := d.size(line)
	if err != nil {
		return err
	}
	if int64(size) > d.left {
		return malformed("the chunks hold more than X-Amz-Decoded-Content-Length says")
	}
	if size > 0 {
		d.chunk, d.inChunk = int64(size), true
		return nil
	}
	if d.left > 0 {
		return malformed("the chunks hold %d bytes less than X-Amz-Decoded-Content-Length says", d.left)
	}
	return d.end()
}

// size reads a chunk's line.
func (d *decoder) size(line []byte) (uint64, error) {
	digits, ok := bytes.CutSuffix(line, []byte("\r"))
	if d.c.sigLen > 0 {
		var sig []byte
		var ext bool
		digits, sig, ext = bytes.Cut(digits, []byte(chunkExtension))
		ok = ok && ext && d.isSignature(string(sig))
	}
	if !ok {
		return 0, malformed("a chunk does not begin with its size in hex and, where chunks are signed, %s", chunkExtension)
	}
	size, err := strconv.ParseUint(string(digits), 16, 63)
	if err != nil {
		return 0, malformed("a chunk's size is %q", clip(string(digits)))
	}
	return size, nil
}

// end reads what follows the empty chunk.
func (d *decoder) end() error {
	var err error
	if d.c.trailers == nil {
		err = d.crlf()
	} else {
		err = d.readTrailers()
	}
	if err != nil {
		return err
	}
	switch _, err := d.r.ReadByte(); {
	case err == nil:
		return malformed("bytes follow the last chunk")
	case errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return io.EOF
	default:
		return cut(err)
	}
}

// readTrailers reads the announced fields and, where chunks are signed, their
// signature. AWS documents "name:value\n\r\n" for lines that its own clients end
// in CRLF: an empty line is let pass before the signature and once more after
// it.
func (d *decoder) readTrailers() error {
	signed, blank, unsigned := false, false, d.c.sigLen == 0
	for {
		raw, err := d.line(maxTrailer)
		if err != nil {
			return err
		}
		line := strings.TrimSuffix(string(raw), "\r")
		switch {
		case line == "" && (signed || unsigned):
			if b, err := d.r.Peek(2); err == nil && string(b) == "\r\n" {
				_, _ = d.r.Discard(2)
			}
			return d.checkTrailers()
		case line == "" && (blank || len(d.trailers) == 0):
			return malformed("the trailers end without %s", trailerSignature)
		case line == "":
			blank = true
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		name, value = strings.ToLower(name), strings.Trim(value, " \t")
		switch {
		case !ok || signed || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }):
			return malformed("a trailer is not a name and a value")
		case name == trailerSignature && !unsigned:
			if signed = d.isSignature(value); !signed {
				return malformed("%s is not a signature", trailerSignature)
			}
		case blank || !slices.Contains(d.c.trailers, name) || len(d.trailers) == len(d.c.trailers):
			return malformed("trailer %q was not announced", clip(name))
		default:
			d.trailers = append(d.trailers, trailer{name, value})
		}
	}
}

// checkTrailers wants each announced field once, and checksums of their length.
func (d *decoder) checkTrailers() error {
	slices.SortFunc(d.trailers, func(a, b trailer) int { return strings.Compare(a.name, b.name) })
	if len(d.trailers) != len(d.c.trailers) {
		return malformed("%d trailers came, %d were announced", len(d.trailers), len(d.c.trailers))
	}
	for i, t := range d.trailers {
		if t.name != d.c.trailers[i] {
			return malformed("trailer %s is missing", clip(d.c.trailers[i]))
		}
		if want := checksumLength(t.name); want > 0 {
			if b, err := base64.StdEncoding.Strict().DecodeString(t.value); err != nil || len(b) != want {
				return malformed("%s is not %d bytes in base64", t.name, want)
			}
		}
	}
	return nil
}

// isSignature checks the form of a chunk's signature.
func (d *decoder) isSignature(s string) bool {
	if d.c.sigLen == maxV4ASignature {
		return checkSignature(V4A, strings.TrimRight(s, "*")) == nil && len(s) <= d.c.sigLen
	}
	return checkSignature(V4, s) == nil
}

// line reads up to a newline, which it takes off. It is valid until the next
// read.
func (d *decoder) line(most int) ([]byte, error) {
	line, err := d.r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) || len(line) > most+2 {
		return nil, malformed("a line of the chunked body is too long")
	}
	if err != nil {
		return nil, cut(err)
	}
	return line[:len(line)-1], nil
}

func (d *decoder) crlf() error {
	for _, want := range []byte("\r\n") {
		// Not io.ReadFull: its io.ErrUnexpectedEOF is also what a body gives
		// whose client went away.
		got, err := d.r.ReadByte()
		if err != nil {
			return cut(err)
		}
		if got != want {
			return malformed("a chunk does not end in CRLF")
		}
	}
	return nil
}

// cut names the end of the input where more had to come.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return malformed("the chunked body ends early")
	}
	return err
}
