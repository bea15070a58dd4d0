package guard

import (
	"errors"
	"io"
)

// ErrLeak is matched by a body's read error when the injected credential was
// found where it cannot be masked. Nothing of the match was released. The
// caller cuts the stream, revokes the credential and records leak_blocked.
var ErrLeak = errors.New("the answer repeats the injected credential")

const (
	chunk = 32 << 10
	// maxHeld bounds what waits for a scanner to make up its mind, for
	// instance compressed bytes that decode to nothing.
	maxHeld = 1 << 20
)

// scanned is a body that passes through a scanner. It masks, or returns
// ErrLeak if the scanner cuts.
type scanned struct {
	src  io.Reader
	sc   scanner
	buf  []byte // released bytes first (ready of them), then held ones
	off  int    // start of what has not been delivered
	safe int    // end of the released bytes
	err  error  // given once everything released is delivered
	done func(found int, err error)
}

// Read implements [io.Reader].
func (b *scanned) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if b.off < b.safe {
			n := copy(p, b.buf[b.off:b.safe])
			b.off += n
			return n, nil
		}
		if b.err != nil {
			return 0, b.err
		}
		if b.off == len(b.buf) && len(p) >= 512 {
			if n, ok := b.direct(p); ok {
				return n, nil
			}
			continue
		}
		b.fill()
	}
}

// direct reads into p and scans there. It reports false if nothing can be
// delivered yet.
func (b *scanned) direct(p []byte) (int, bool) {
	n, err := b.src.Read(p)
	safe := b.feed(p[:n], 0)
	b.off, b.safe = 0, 0
	b.buf = append(b.buf[:0], p[safe:n]...)
	b.finish(err)
	return safe, safe > 0
}

// withRoom is buf, with room for a read behind what it holds.
func withRoom(buf []byte) []byte {
	if cap(buf)-len(buf) >= 4096 {
		return buf
	}
	return append(make([]byte, 0, len(buf)+chunk), buf...)
}

// fill reads behind the held bytes.
func (b *scanned) fill() {
	b.buf = b.buf[:copy(b.buf, b.buf[b.off:])]
	b.off, b.safe = 0, 0
	held := len(b.buf)
	b.buf = withRoom(b.buf)
	n, err := b.src.Read(b.buf[held:min(cap(b.buf), held+chunk)])
	b.buf = b.buf[:held+n]
	b.safe = b.feed(b.buf, held)
	b.finish(err)
}

func (b *scanned) feed(buf []byte, from int) int {
	safe := b.sc.feed(buf, from)
	if b.sc.cut && b.sc.found > 0 {
		b.err = ErrLeak
	}
	return safe
}

func (b *scanned) finish(err error) {
	if b.err != nil { // a leak: what is held must not follow
		b.buf = b.buf[:b.safe]
		b.report()
		return
	}
	if err == nil {
		return
	}
	b.err = err
	b.safe = len(b.buf) // the stream ends: no match can be completed
	b.report()
}

func (b *scanned) report() {
	if b.done != nil {
		b.done(b.sc.found, b.err)
		b.done = nil
	}
}

// tee passes encoded bytes on unaltered, but only those whose decoded form has
// been scanned.
type tee struct {
	tap     *tap
	dec     *decoder // reads from tap
	sc      scanner
	held    []byte // decoded bytes of a live match
	scratch []byte
	safe    int64 // encoded bytes that may pass
	prev    int64 // encoded bytes read when the decoder gave out something last
	sent    int64
	err     error
	done    func(found int, err error)
}

// Read implements [io.Reader].
func (t *tee) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for t.sent == t.safe {
		if t.err != nil {
			return 0, t.err
		}
		t.decode()
	}
	n := copy(p, t.tap.kept[:t.safe-t.sent])
	t.sent += int64(n)
	t.tap.drop(n)
	return n, nil
}

// decode scans the next piece. When the decoder returns bytes it returns all
// that it has decoded so far, and it never reads ahead of what it decodes
// (tap is an io.ByteReader): the input consumed until now is covered. Only
// where its window was full may a piece be missing; then the input of the
// piece before is.
func (t *tee) decode() {
	if t.scratch == nil {
		t.scratch = make([]byte, 64<<10) // more than the decoder's window
	}
	n, err := t.dec.Read(t.scratch)
	buf := t.scratch[:n]
	from := len(t.held)
	if from > 0 {
		t.held = append(t.held, buf...)
		buf = t.held
	}
	safe := t.sc.feed(buf, from)
	if t.sc.found > 0 {
		t.finish(ErrLeak)
		return
	}
	t.held = append(t.held[:0], buf[safe:]...)
	switch {
	case err == io.EOF: //nolint:errorlint // the reader's own bare EOF
		t.safe = t.tap.read
		t.finish(io.EOF)
	case err != nil:
		t.finish(err)
	case n > 0:
		read := t.tap.read
		if t.dec.partial() {
			read = t.prev
		}
		t.prev = t.tap.read
		if !t.sc.live() {
			t.safe = max(t.safe, read)
		}
	case len(t.tap.kept) > maxHeld:
		t.finish(ErrUndecodable)
	}
}

func (t *tee) finish(err error) {
	t.err = err
	if t.done != nil {
		t.done(t.sc.found, err)
		t.done = nil
	}
}

// tap feeds a decoder and keeps what it has consumed.
type tap struct {
	src  io.Reader
	kept []byte // consumed or read ahead, and not dropped yet
	next int    // in kept: the first byte that the decoder has not consumed
	read int64  // bytes that the decoder has consumed
	err  error
}

func (t *tap) fill() error {
	for t.next == len(t.kept) {
		if t.err != nil {
			return t.err
		}
		at := len(t.kept)
		if cap(t.kept)-at < 4096 {
			grown := make([]byte, at, at+chunk)
			copy(grown, t.kept)
			t.kept = grown
		}
		n, err := t.src.Read(t.kept[at:min(cap(t.kept), at+chunk)])
		t.kept, t.err = t.kept[:at+n], err
	}
	return nil
}

// ReadByte implements [io.ByteReader], so that decoders do not read ahead.
func (t *tap) ReadByte() (byte, error) {
	if t.next == len(t.kept) {
		if err := t.fill(); err != nil {
			return 0, err
		}
	}
	c := t.kept[t.next]
	t.next++
	t.read++
	return c, nil
}

// Read implements [io.Reader].
func (t *tap) Read(p []byte) (int, error) {
	if err := t.fill(); err != nil {
		return 0, err
	}
	n := copy(p, t.kept[t.next:])
	t.next += n
	t.read += int64(n)
	return n, nil
}

func (t *tap) drop(n int) {
	t.kept = t.kept[:copy(t.kept, t.kept[n:])]
	t.next -= n
}
