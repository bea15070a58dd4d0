package guard

import (
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// ErrUndecodable is matched when a body's content coding cannot be decoded and
// therefore not scanned: an unknown coding (we asked for others), a damaged
// stream, or a decompression bomb.
var ErrUndecodable = errors.New("the answer's content coding cannot be scanned")

// Decoded bytes beyond bombSlack may be at most bombRatio times the encoded
// ones. Deflate reaches 1032; text rarely exceeds 20.
const (
	bombSlack = 32 << 20
	bombRatio = 250
)

type coding string

const (
	identity coding = ""
	gzipped  coding = "gzip"
	deflated coding = "deflate"
)

// codingOf reads Content-Encoding (RFC 9110 section 8.4). More than one coding
// is refused: nobody sends it, and each adds a factor to a bomb.
func codingOf(h http.Header) (coding, error) {
	found := identity
	for _, v := range h.Values("Content-Encoding") {
		for name := range strings.SplitSeq(v, ",") {
			c := coding(strings.ToLower(strings.TrimSpace(name)))
			switch c {
			case identity, "identity":
				continue
			case "x-gzip":
				c = gzipped
			case gzipped, deflated:
			default:
				return "", fmt.Errorf("content coding %.20q: %w", string(c), ErrUndecodable)
			}
			if found != identity {
				return "", fmt.Errorf("several content codings: %w", ErrUndecodable)
			}
			found = c
		}
	}
	return found, nil
}

// decoder decodes lazily (so that nothing is read before the first Read) and
// stops bombs.
type decoder struct {
	c     coding
	in    *tap
	out   io.Reader
	total int64
	piece int64 // decoded bytes of this gzip member
	gz    *gzip.Reader
}

// decodeWindow is the decoder's output window: it gives out what it has when
// the window is full, at a flush, and at the end.
const decodeWindow = 32 << 10

// partial reports whether the decoder may hold bytes of a back reference that
// it has read but not given out: its window was full.
func (d *decoder) partial() bool { return d.piece%decodeWindow == 0 }

func (d *decoder) Read(p []byte) (int, error) {
	if d.out == nil {
		if err := d.open(); err != nil {
			return 0, err
		}
	}
	n, err := d.out.Read(p)
	d.total += int64(n)
	d.piece += int64(n)
	if err == io.EOF && d.gz != nil { //nolint:errorlint // io.Reader returns it bare
		err = d.nextMember()
	}
	if d.total > bombSlack && d.total/bombRatio > d.in.read {
		return 0, fmt.Errorf("decompression bomb: %w", ErrUndecodable)
	}
	if err != nil && err != io.EOF { //nolint:errorlint // io.Reader returns it bare
		if d.in.err != nil && d.in.err != io.EOF { //nolint:errorlint // as above
			return n, d.in.err // the connection failed, not the coding
		}
		return n, fmt.Errorf("%w: %w", ErrUndecodable, err)
	}
	return n, err
}

func (d *decoder) open() error {
	if err := d.in.fill(); err != nil { // an empty body, whatever it is said to be
		return err
	}
	switch {
	case d.c == gzipped:
		z, err := gzip.NewReader(d.in)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUndecodable, err)
		}
		z.Multistream(false)
		d.out, d.gz = z, z
	case zlibHead(d.in):
		z, err := zlib.NewReader(d.in)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUndecodable, err)
		}
		d.out = &exhausted{z, d.in}
	default:
		d.out = &exhausted{flate.NewReader(d.in), d.in}
	}
	return nil
}

// nextMember goes on with the next member of a gzip stream (RFC 1952 section
// 2.2), or returns io.EOF.
func (d *decoder) nextMember() error {
	if err := d.in.fill(); err != nil {
		return err
	}
	if err := d.gz.Reset(d.in); err != nil {
		return err
	}
	d.gz.Multistream(false)
	d.piece = 0
	return nil
}

// zlibHead tells "deflate" as RFC 9110 section 8.4.1.2 means it (zlib) from
// the raw deflate that some servers send: by the two bytes of RFC 1950
// section 2.2.
func zlibHead(t *tap) bool {
	for len(t.kept)-t.next < 2 && t.err == nil {
		var b [1]byte
		n, err := t.src.Read(b[:])
		t.kept, t.err = append(t.kept, b[:n]...), err
	}
	b := t.kept[t.next:]
	return len(b) >= 2 && b[0]&0x0f == 8 && (int(b[0])<<8|int(b[1]))%31 == 0
}

// exhausted refuses bytes behind the end of the coded stream: a client might
// show them.
type exhausted struct {
	io.Reader
	in *tap
}

func (e *exhausted) Read(p []byte) (int, error) {
	n, err := e.Reader.Read(p)
	if err == io.EOF { //nolint:errorlint // io.Reader returns it bare
		if ferr := e.in.fill(); ferr == nil {
			return n, errors.New("data behind the end of the stream")
		} else if ferr != io.EOF { //nolint:errorlint // as above
			return n, ferr
		}
	}
	return n, err
}
