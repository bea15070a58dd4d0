package guard

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// Options say what is kept out of an answer.
type Options struct {
	// Patterns of the injected credential; nil looks for nothing.
	Patterns *Patterns
	// Vault keeps what is sealed for Who. Nil seals nothing.
	Vault *Vault
	Who   Who
	// Answers is the rule's choice; pass seals nothing. The echo guard runs
	// all the same: what was injected is not the upstream's to hand out.
	Answers v1alpha1.AnswerCredentials
	// Members are further members of JSON answers, and elements of XML ones,
	// that are credentials whatever they hold: the answer of a call that hands
	// one out. With them a body of another kind cannot pass sealing and is an
	// error.
	Members []string
}

// Guarded counts what was kept out of an answer. The counts are final when the
// body has been read to its end or failed. Safe for concurrent use.
type Guarded struct {
	sealed atomic.Int64
	masked atomic.Int64
	leaked atomic.Bool
}

// Sealed is how many credentials were replaced by handles.
func (g *Guarded) Sealed() int { return int(g.sealed.Load()) }

// Masked is how many echoes of the injected credential were masked.
func (g *Guarded) Masked() int { return int(g.masked.Load()) }

// Leaked reports whether the body was cut with [ErrLeak].
func (g *Guarded) Leaked() bool { return g.leaked.Load() }

// Response guards an answer in place: header, body and, when the body has been
// read to its end, trailers. The body is streamed, except for JSON and form
// bodies of known length up to 1 MiB, which are read here if answers are
// sealed, and the first bytes of others that may be JSON. Reading the body may fail with [ErrLeak] or [ErrUndecodable].
//
// An error matches [ErrUndecodable] or is the upstream's read error. The
// caller closes resp.Body and sends the agent nothing of the answer.
func Response(resp *http.Response, o Options) (*Guarded, error) {
	g := &Guarded{}
	var s *sealer
	if o.Vault != nil && o.Answers != v1alpha1.AnswersPass {
		s = &sealer{v: o.Vault, who: o.Who}
		for _, m := range o.Members {
			s.members = append(s.members, strings.ToLower(m))
		}
		s.header(resp.Header)
		g.sealed.Store(int64(s.n))
		s.n = 0
	}
	masked := o.Patterns.Header(resp.Header)
	status, n := o.Patterns.Mask(resp.Status)
	resp.Status = status
	g.masked.Store(int64(masked + n))

	if resp.StatusCode == http.StatusSwitchingProtocols {
		guardUpgrade(resp, o, g)
		return g, nil
	}
	if !hasBody(resp) {
		return g, nil
	}
	c, err := codingOf(resp.Header)
	if err != nil {
		if o.Patterns == nil && s == nil {
			return g, nil
		}
		return nil, err
	}
	b := &body{resp: resp, c: c, g: g, s: s, src: resp.Body, closer: resp.Body}
	if s != nil {
		if err := b.seal(); err != nil {
			return nil, err
		}
	}
	b.scan(o.Patterns)
	resp.Body = b
	return g, nil
}

// Header masks every header value in place and returns the number of echoes.
// It serves informational (1xx) answers as well.
func (p *Patterns) Header(h http.Header) int {
	total := 0
	if p == nil {
		return 0
	}
	for _, values := range h {
		for i, v := range values {
			masked, n := p.Mask(v)
			if n > 0 {
				values[i] = masked
				total += n
			}
		}
	}
	return total
}

func hasBody(r *http.Response) bool {
	if r.Body == nil || r.Body == http.NoBody {
		return false
	}
	if r.Request != nil && r.Request.Method == http.MethodHead {
		return false
	}
	return r.StatusCode >= 200 && r.StatusCode != http.StatusNoContent && r.StatusCode != http.StatusNotModified
}

// body is the guarded body: src is the innermost reader that the agent's side
// reads from.
type body struct {
	resp   *http.Response
	c      coding
	g      *Guarded
	s      *sealer
	src    io.Reader
	closer io.Closer
	p      *Patterns
	ended  bool
	stale  bool // digests in trailers are not of this body
}

// Read implements [io.Reader]. At the end it seals and masks the trailers,
// before the caller can see them.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.src.Read(p)
	if err != nil && !b.ended {
		b.ended = true
		if b.stale { // the transport has filled them in just now
			dropDigests(b.resp.Trailer)
		}
		if b.s != nil {
			// Not b.s itself: its count was, or is, reported with the body.
			late := &sealer{v: b.s.v, who: b.s.who}
			late.header(b.resp.Trailer)
			b.g.sealed.Add(int64(late.n))
		}
		b.g.masked.Add(int64(b.p.Header(b.resp.Trailer)))
	}
	return n, err
}

// Close implements [io.Closer].
func (b *body) Close() error { return b.closer.Close() }

// scan puts the echo guard around src.
func (b *body) scan(p *Patterns) {
	b.p = p
	if p == nil {
		return
	}
	if b.c != identity {
		t := &tap{src: b.src}
		b.src = &tee{
			tap: t, dec: &decoder{c: b.c, in: t},
			sc: scanner{m: p.m(), cut: true}, done: b.g.scanned,
		}
		return
	}
	sc := scanner{m: p.m(), cut: !maskable(b.resp)}
	if strings.HasPrefix(b.resp.Header.Get("Content-Type"), "application/grpc") {
		sc.eager = sc.m.eager // a bidirectional stream may wait for an answer to each message
	}
	b.src = &scanned{src: b.src, sc: sc, done: b.g.scanned}
}

func (g *Guarded) scanned(found int, err error) {
	if err == ErrLeak { //nolint:errorlint // set bare by the two readers
		g.leaked.Store(true)
		return
	}
	g.masked.Add(int64(found))
}

// maskable reports whether bytes of the body may be altered: a digest would no
// longer match, and a client that assembles ranges would keep a mixture.
func maskable(r *http.Response) bool {
	return r.StatusCode != http.StatusPartialContent && r.Header.Get("Content-Range") == "" && !hasDigest(r)
}

func hasDigest(r *http.Response) bool {
	for name := range r.Header {
		if isDigest(name) {
			return true
		}
	}
	for name := range r.Trailer { // announced
		if isDigest(name) {
			return true
		}
	}
	return false
}

// isDigest knows RFC 9530, RFC 3230, RFC 1864 and the checksums of the object
// stores.
func isDigest(name string) bool {
	if len(name) < len("digest") {
		return false
	}
	switch name[0] | 0x20 { // most names are none of these; lower case costs an allocation
	case 'd', 'c', 'r', 'x':
	default:
		return false
	}
	switch n := strings.ToLower(name); n {
	case "digest", "content-digest", "repr-digest", "content-md5", "x-goog-hash":
		return true
	default:
		return strings.HasPrefix(n, "x-amz-checksum-")
	}
}

// seal examines the body for issued credentials if it declares a type that
// carries them, or none that says anything else.
func (b *body) seal() error {
	kind := shape(b.resp.Header.Get("Content-Type"))
	n := b.resp.ContentLength
	if len(b.s.members) > 0 {
		return b.sealMembers(kind)
	}
	if kind == "" || kind == "xml" || b.resp.StatusCode == http.StatusPartialContent {
		return nil
	}
	if kind == "text" && b.c == identity && (n >= 0 || hasDigest(b.resp)) {
		// Not where the length is unknown: an origin may wait for the agent to
		// see the head before it sends the first byte.
		if is, err := b.peekJSON(); err != nil || !is {
			return err
		}
		kind = "json"
	}
	if n <= maxExamined && (n >= 0 || kind == "form" || hasDigest(b.resp)) {
		done, err := b.sealWhole(kind)
		if err != nil || done {
			return err
		}
	}
	if kind == "form" || n >= 0 && b.stored() {
		return nil
	}
	b.sealStream(kind == "text")
	return nil
}

// sealMembers is seal for an answer that is known to hand out a credential. It
// lets nothing pass that was not read.
func (b *body) sealMembers(kind string) error {
	if kind != "json" && kind != "xml" {
		return fmt.Errorf("%w: an answer that hands out a credential is neither JSON nor XML", ErrUndecodable)
	}
	done, err := b.sealWhole(kind)
	if err == nil && !done {
		err = fmt.Errorf("%w: an answer that hands out a credential is longer than %d bytes", ErrUndecodable, maxExamined)
	}
	return err
}

// sealStream examines the body as it passes. Its length is known at the end
// only.
func (b *body) sealStream(sniff bool) {
	src := b.src
	if b.c != identity {
		t := &tap{src: src}
		src = &decoder{c: b.c, in: t}
		b.resp.Header.Del("Content-Encoding")
		b.c = identity
	}
	s := b.s
	b.src = &jsonFilter{src: src, sniff: sniff, w: walker{s: s}, done: func() { b.g.sealed.Add(int64(s.n)) }}
	b.resp.ContentLength = -1
	b.resp.Header.Del("Content-Length")
	b.altered()
}

// stored reports whether the body has a coding that nobody asked for: an object
// that is kept in it, and that its reader wants as it is kept.
func (b *body) stored() bool {
	if b.c == identity || b.resp.Request == nil {
		return false
	}
	return !strings.Contains(strings.ToLower(strings.Join(b.resp.Request.Header.Values("Accept-Encoding"), ",")), string(b.c))
}

// peekJSON reads to the first byte that says what the body is.
func (b *body) peekJSON() (bool, error) {
	const patience = 512 // bytes of blanks
	head := make([]byte, 0, patience)
	for {
		n, err := b.src.Read(head[len(head):cap(head)])
		head = head[:len(head)+n]
		is, sure := looksJSON(head)
		if err != nil && err != io.EOF { //nolint:errorlint // readers answer io.EOF itself
			return false, fmt.Errorf("read answer to examine it: %w", err)
		}
		if sure || err != nil || len(head) == cap(head) {
			b.src = io.MultiReader(bytes.NewReader(head), b.src)
			return is, nil
		}
	}
}

// looksJSON reports whether text begins as JSON documents of credentials do,
// and whether more of it could not change the answer.
func looksJSON(text []byte) (is, sure bool) {
	for _, c := range text {
		switch c {
		case ' ', '\t', '\r', '\n', 0xef, 0xbb, 0xbf: // blanks and the byte order mark
		default:
			return c == '{' || c == '[', true
		}
	}
	return false, false
}

// shape returns json, form, xml, text (which may be anything) or nothing.
func shape(contentType string) string {
	if contentType == "application/json" { // the answer of most APIs
		return "json"
	}
	t, _, err := mime.ParseMediaType(contentType)
	if err != nil && t == "" {
		t, _, _ = strings.Cut(contentType, ";")
		t = strings.ToLower(strings.TrimSpace(t))
	}
	switch {
	case t == "application/json", t == "text/json", t == "application/x-ndjson",
		t == "application/javascript", t == "text/javascript",
		strings.HasPrefix(t, "application/x-amz-json"), strings.HasSuffix(t, "+json"):
		return "json"
	case t == "application/x-www-form-urlencoded":
		return "form"
	case t == "text/xml", t == "application/xml":
		return "xml"
	case t == "", t == "text/plain":
		return "text"
	}
	return ""
}

// sealWhole reads the body, and gives it back unaltered, coding and all, if it
// holds nothing to seal. It reports false if the body is too long for that.
func (b *body) sealWhole(kind string) (bool, error) {
	raw, err := readWhole(b.src, b.resp.ContentLength)
	if err != nil {
		return false, fmt.Errorf("read answer to examine it: %w", err)
	}
	rest := b.src
	b.src = io.MultiReader(bytes.NewReader(raw), rest)
	if len(raw) > maxExamined {
		return false, nil
	}
	plain := raw
	if b.c != identity {
		t := &tap{src: bytes.NewReader(raw)}
		plain, err = io.ReadAll(io.LimitReader(&decoder{c: b.c, in: t}, maxExamined+1))
		if err != nil {
			return false, err
		}
		if len(plain) > maxExamined {
			return false, nil
		}
	}
	if kind == "text" {
		if is, _ := looksJSON(plain); !is {
			return true, nil
		}
	}
	var out []byte
	switch kind {
	case "form":
		out = b.s.form(plain)
	case "xml":
		out = b.s.xml(plain)
	default:
		w := walker{s: b.s, whole: true}
		out, _ = w.walk(nil, plain, true)
	}
	if b.s.n == 0 {
		return true, nil
	}
	b.g.sealed.Add(int64(b.s.n))
	// Closing is all that remains for the upstream's body: it was read whole.
	b.src = &drained{bytes.NewReader(out), rest}
	b.c = identity
	b.resp.Header.Del("Content-Encoding")
	b.resp.ContentLength = int64(len(out))
	b.resp.TransferEncoding = nil
	b.resp.Header.Set("Content-Length", strconv.Itoa(len(out)))
	b.altered()
	return true, nil
}

// readWhole reads up to maxExamined+1 bytes, of which size are expected (-1:
// not known). It asks for one byte more than that, so that the end is seen and
// trailers arrive.
func readWhole(r io.Reader, size int64) ([]byte, error) {
	if size < 0 || size > maxExamined {
		return io.ReadAll(io.LimitReader(r, maxExamined+1))
	}
	buf := make([]byte, size+1)
	n := 0
	for n < len(buf) {
		m, err := r.Read(buf[n:])
		n += m
		if err == io.EOF { //nolint:errorlint // readers answer io.EOF itself
			return buf[:n], nil
		}
		if err != nil {
			return nil, err
		}
	}
	// More than was said: the transport never gives that, other readers may.
	rest, err := io.ReadAll(io.LimitReader(r, maxExamined+1-int64(n)))
	return append(buf, rest...), err
}

// drained reads the new body, then the old one's end, so that its trailers
// arrive.
type drained struct {
	io.Reader
	rest io.Reader
}

func (d *drained) Read(p []byte) (int, error) {
	n, err := d.Reader.Read(p)
	if err == io.EOF { //nolint:errorlint // bytes.Reader returns it bare
		if _, rerr := io.CopyN(io.Discard, d.rest, 1); rerr != nil {
			return n, rerr
		}
	}
	return n, err
}

// altered makes the header tell the truth about a body that is, or may be, no
// longer the upstream's (RFC 9110 sections 8.8.1 and 14.3, RFC 9530).
func (b *body) altered() {
	b.stale = true
	h := b.resp.Header
	dropDigests(h)
	dropDigests(b.resp.Trailer)
	if tag := h.Get("Etag"); strings.HasPrefix(tag, `"`) {
		h.Set("Etag", "W/"+tag)
	}
	h.Del("Accept-Ranges")
}

func dropDigests(h http.Header) {
	for name := range h {
		if isDigest(name) {
			delete(h, name)
		}
	}
}

// guardUpgrade masks what comes back on an upgraded connection. Masking keeps
// lengths, and so the framing of a WebSocket.
func guardUpgrade(resp *http.Response, o Options, g *Guarded) {
	rw, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || o.Patterns == nil {
		return
	}
	m := o.Patterns.m()
	resp.Body = &duplex{
		Reader: &scanned{src: rw, sc: scanner{m: m, eager: m.eager}, done: g.scanned},
		rw:     rw,
	}
}

type duplex struct {
	io.Reader
	rw io.ReadWriteCloser
}

func (d *duplex) Write(p []byte) (int, error) { return d.rw.Write(p) }
func (d *duplex) Close() error                { return d.rw.Close() }

// CloseWrite half-closes if the connection can.
func (d *duplex) CloseWrite() error {
	if c, ok := d.rw.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}
