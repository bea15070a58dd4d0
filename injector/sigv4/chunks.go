package sigv4

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

const (
	// chunkSize is how much of a body is under one signature. A chunk's
	// signature precedes its data, so that this is also what is held in memory.
	// S3 takes no chunk under 8 KiB but the last.
	chunkSize = 64 << 10
	// maxDecoded bounds X-Amz-Decoded-Content-Length: no service takes more in
	// one request, and the arithmetic on it cannot overflow.
	maxDecoded = 5 << 40

	chunkExtension   = ";chunk-signature="
	trailerSignature = "x-amz-trailer-signature"
	// checksumPrefix begins all trailers that S3 takes. Another field there could
	// ask for what the header was not read for.
	checksumPrefix = "x-amz-checksum-"
	// maxFrame is the longest line before a chunk that we write.
	maxFrame = len("10000") + len(chunkExtension) + maxV4ASignature + 2
)

// chunking is how a body in chunks is read and written.
type chunking struct {
	decoded  int64
	sigLen   int      // of a chunk's signature in hex, with padding; 0: none is signed
	trailers []string // lower-case names, sorted; nil without trailers
}

// checksumLength is the length, in bytes, of a checksum that travels as a
// trailer, or 0: its base64 has a known length, and so has the encoded body.
func checksumLength(name string) int {
	switch name {
	case "x-amz-checksum-crc32", "x-amz-checksum-crc32c":
		return 4
	case "x-amz-checksum-crc64nvme", "x-amz-checksum-xxhash64", "x-amz-checksum-xxhash3":
		return 8
	case "x-amz-checksum-md5", "x-amz-checksum-xxhash128":
		return 16
	case "x-amz-checksum-sha1":
		return 20
	case "x-amz-checksum-sha256":
		return 32
	case "x-amz-checksum-sha512":
		return 64
	}
	return 0
}

// prepareChunks reads how r's body is framed and sets the length that it will
// have when it is framed by us, or -1 where a trailer's length is not known.
func prepareChunks(r *http.Request, p Payload) (chunking, error) {
	c := chunking{sigLen: 64}
	switch p {
	case PayloadV4A, PayloadV4ATrailer:
		c.sigLen = maxV4ASignature
	case PayloadUnsignedTrailer:
		c.sigLen = 0
	}
	decoded, err := one(r.Header, "x-amz-decoded-content-length")
	if err != nil {
		return c, err
	}
	n, err := strconv.ParseUint(decoded, 10, 63)
	if err != nil {
		return c, malformed("X-Amz-Decoded-Content-Length is %q; a body in chunks needs it", clip(decoded))
	}
	if c.decoded = int64(n); c.decoded > maxDecoded {
		return c, fmt.Errorf("%w: %d bytes in one request", ErrTooLarge, n)
	}
	if c.trailers, err = trailerNames(r.Header, p.trailer()); err != nil {
		return c, err
	}
	setLength(r, c.encodedLength())
	return c, nil
}

// trailerNames reads X-Amz-Trailer.
func trailerNames(h http.Header, want bool) ([]string, error) {
	const most = 16
	v, err := one(h, "x-amz-trailer")
	if err != nil {
		return nil, err
	}
	if (v != "") != want {
		return nil, malformed("X-Amz-Trailer and the payload mode do not agree")
	}
	if !want {
		return nil, nil
	}
	list := strings.Split(strings.ToLower(v), ",")
	for i := range list {
		if list[i] = strings.TrimSpace(list[i]); !isToken(list[i]) || !strings.HasPrefix(list[i], checksumPrefix) {
			return nil, malformed("X-Amz-Trailer is %q; must name checksums", clip(v))
		}
	}
	slices.Sort(list)
	if len(list) > most || len(slices.Compact(slices.Clone(list))) != len(list) {
		return nil, malformed("X-Amz-Trailer names a field twice or more than %d", most)
	}
	return list, nil
}

// encodedLength is the exact length of the body as [rechunker] writes it, or -1.
func (c chunking) encodedLength() int64 {
	extension := 0
	if c.sigLen > 0 {
		extension = len(chunkExtension) + c.sigLen
	}
	frame := func(n int64) int64 { return int64(len(strconv.FormatInt(n, 16))+extension+2) + n }
	total := c.decoded / chunkSize * (frame(chunkSize) + 2)
	if rest := c.decoded % chunkSize; rest > 0 {
		total += frame(rest) + 2
	}
	total += frame(0)
	for _, name := range c.trailers {
		n := checksumLength(name)
		if n == 0 {
			return -1
		}
		total += int64(len(name) + 1 + base64.StdEncoding.EncodedLen(n) + 2)
	}
	if c.trailers != nil && c.sigLen > 0 {
		total += int64(len(trailerSignature) + 1 + c.sigLen + 2)
	}
	return total + 2
}

// chain makes the signatures of chunks: each covers the one before it.
type chain struct {
	key           key
	chunk, footer string // what the strings to sign begin with
	prev          []byte
	buf           []byte
}

func newChain(p Params, seed string, k key) *chain {
	rest := "\n" + p.Time.UTC().Format(timeFormat) + "\n" + credentialScope(p) + "\n"
	return &chain{key: k, chunk: string(p.Algorithm) + "-PAYLOAD" + rest, footer: string(p.Algorithm) + "-TRAILER" + rest, prev: []byte(seed)}
}

// next returns the signature of data; it is valid until the next call.
func (c *chain) next(prefix string, data []byte) ([]byte, error) {
	sum := sha256.Sum256(data)
	c.buf = append(append(append(c.buf[:0], prefix...), c.prev...), '\n')
	if prefix == c.chunk {
		c.buf = append(append(c.buf, PayloadEmpty...), '\n')
	}
	c.buf = hex.AppendEncode(c.buf, sum[:])
	var err error
	c.prev, err = c.key.sign(c.prev[:0], c.buf)
	return c.prev, err
}

// rechunker reads a chunked body, checks its frames and frames its data anew
// under our own signatures, or under none. It holds one chunk. A body that
// turns out malformed is never sent whole: its last chunk goes out only when
// all of it was in order.
type rechunker struct {
	src    *decoder
	closer io.Closer
	c      chunking
	chain  *chain // nil: chunks without signatures
	buf    []byte // room for a frame, a chunk and its CRLF
	out    []byte // what is left to deliver
	err    error
}

func newRechunker(body io.ReadCloser, c chunking, ch *chain) *rechunker {
	if body == nil {
		body = http.NoBody
	}
	return &rechunker{src: newDecoder(body, c), closer: body, c: c, chain: ch}
}

// Read implements [io.Reader].
func (r *rechunker) Read(p []byte) (int, error) {
	for len(r.out) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		r.out, r.err = r.fill()
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}

// Close closes the body that is read from.
func (r *rechunker) Close() error {
	if r.err == nil {
		r.err = errors.New("read after close")
	}
	return r.closer.Close()
}

// fill reads one chunk's worth of data and frames it. What was read before an
// error is dropped: half a chunk is never sent as a whole one.
func (r *rechunker) fill() ([]byte, error) {
	if r.buf == nil {
		r.buf = make([]byte, maxFrame+chunkSize+2)
	}
	n := 0
	for n < chunkSize {
		m, err := r.src.Read(r.buf[maxFrame+n : maxFrame+chunkSize])
		n += m
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	if n == 0 {
		return r.finish()
	}
	return r.frame(n)
}

// frame puts the chunk's line right before its n bytes of data.
func (r *rechunker) frame(n int) ([]byte, error) {
	sig, err := r.sign(r.buf[maxFrame : maxFrame+n])
	if err != nil {
		return nil, fmt.Errorf("sign a chunk: %w", err)
	}
	var line [maxFrame]byte
	head := r.line(line[:0], n, sig)
	start := maxFrame - len(head)
	copy(r.buf[start:], head)
	end := maxFrame + n
	r.buf[end], r.buf[end+1] = '\r', '\n'
	return r.buf[start : end+2], nil
}

func (r *rechunker) sign(data []byte) ([]byte, error) {
	if r.chain == nil {
		return nil, nil
	}
	return r.chain.next(r.chain.chunk, data)
}

func (r *rechunker) line(dst []byte, n int, sig []byte) []byte {
	dst = strconv.AppendInt(dst, int64(n), 16)
	if r.chain == nil {
		return append(dst, '\r', '\n')
	}
	dst = append(dst, chunkExtension...)
	return append(r.pad(dst, sig), '\r', '\n')
}

// pad appends a signature at its full length: those of SigV4a vary, and are
// padded with '*' so that the length of the body does not.
func (r *rechunker) pad(dst, sig []byte) []byte {
	dst = append(dst, sig...)
	for i := len(sig); i < r.c.sigLen; i++ {
		dst = append(dst, '*')
	}
	return dst
}

// finish writes the empty chunk, the trailers and their signature.
func (r *rechunker) finish() ([]byte, error) {
	sig, err := r.sign(nil)
	if err != nil {
		return nil, fmt.Errorf("sign the last chunk: %w", err)
	}
	out := r.line(nil, 0, sig)
	var canonical []byte
	for _, t := range r.src.trailers {
		canonical = append(canonical, t.name+":"+t.value+"\n"...)
		out = append(out, t.name+":"+t.value+"\r\n"...)
	}
	if r.c.trailers != nil && r.chain != nil {
		if sig, err = r.chain.next(r.chain.footer, canonical); err != nil {
			return nil, fmt.Errorf("sign the trailers: %w", err)
		}
		out = append(r.pad(append(out, trailerSignature+":"...), sig), '\r', '\n')
	}
	return append(out, '\r', '\n'), io.EOF
}
