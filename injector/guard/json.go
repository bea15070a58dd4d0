package guard

import (
	"bytes"
	"encoding/json"
	"io"

	"github.com/attache-dev/attache/injector/internal/names"
)

const (
	// maxExamined is how long a body may be to be read before it is delivered.
	maxExamined = 1 << 20
	// maxValue is how long a member's text may be to be waited for.
	maxValue = 64 << 10
	// maxKey is how long a member's name may be to be waited for.
	maxKey = 256
	// maxDepth is how deep issued credentials are looked for. AWS nests them
	// four deep.
	maxDepth = 6
)

// A walker seals credentials in JSON. It is a lexer, not a parser: it does not
// mind what follows or precedes a document, so that broken or concatenated
// JSON, which lenient clients read, hides nothing.
type walker struct {
	s        *sealer
	depth    int
	inString bool // within a string that is no candidate
	escaped  bool // its last byte was a backslash that escapes
	whole    bool // buf is the whole body: nothing is appended if nothing is sealed
}

// walk appends what may be delivered of buf to out, with credentials sealed.
// It returns how much of buf it has dealt with; the rest must be given again
// together with what follows.
func (w *walker) walk(out, buf []byte, final bool) ([]byte, int) {
	i, last := 0, 0
	for i < len(buf) {
		if w.inString {
			i = w.skipString(buf, i)
			continue
		}
		switch buf[i] {
		case '{', '[':
			w.depth++
		case '}', ']':
			w.depth--
		case '"':
			m := w.member(buf, i)
			switch {
			case m.wait && !final && len(buf)-i <= maxValue:
				return append(out, buf[last:i]...), i
			case m.long || m.wait && (!final || m.end < 0 && m.value == 0):
				w.inString = true
			case m.value > 0:
				end := m.end
				if end < 0 { // the body was cut off in the value
					end = len(buf)
				}
				if handle, ok := w.replace(buf[i+1:m.nameEnd], buf[m.value:end]); ok {
					out = append(append(out, buf[last:m.value]...), handle...)
					last = end
				}
				i = min(end, len(buf)-1)
			default:
				i = m.nameEnd
			}
		}
		i++
	}
	if w.whole && last == 0 {
		return out, len(buf)
	}
	return append(out, buf[last:]...), len(buf)
}

// member is a string token and, if it names a credential, its value.
type member struct {
	nameEnd int // closing quote of the string
	value   int // first byte of the value's text, 0 if there is none
	end     int // closing quote of the value, -1 if not there yet
	wait    bool
	long    bool // too long for a name
}

func (w *walker) member(buf []byte, i int) member {
	m := member{nameEnd: closing(buf, i+1), end: -1}
	if m.nameEnd < 0 {
		m.long = len(buf)-i > maxKey
		m.wait = !m.long
		return m
	}
	j := space(buf, m.nameEnd+1)
	if j < len(buf) && buf[j] == ':' {
		j = space(buf, j+1)
	} else if j < len(buf) { // no name: most strings are none, so this comes first
		return m
	}
	if j < len(buf) && buf[j] != '"' {
		return m
	}
	if w.depth > maxDepth || m.nameEnd-i > maxKey || !w.credential(buf[i+1:m.nameEnd]) {
		return m
	}
	if j == len(buf) {
		m.wait, m.end = true, m.nameEnd
		return m
	}
	m.value = j + 1
	m.end = closing(buf, m.value)
	m.wait = m.end < 0
	return m
}

// credential reports whether a member of this name may be a credential. Most
// names are told by their end, without a copy of them.
func (w *walker) credential(raw []byte) bool {
	return names.MayBeMember(raw) && names.Member(unquote(raw), likely) || len(w.s.members) > 0 && w.s.named(unquote(raw))
}

// likely is a value that looks like a credential, to ask only for the name.
const likely = "0123456789abcdef"

func (w *walker) replace(name, raw []byte) (string, bool) {
	value := unquote(raw)
	if isHandle(value) || !w.s.member(unquote(name), value) {
		return "", false
	}
	return w.s.seal(w.s.who, slotToken, value), true
}

func (w *walker) skipString(buf []byte, i int) int {
	if w.escaped && i < len(buf) {
		w.escaped = false
		i++
	}
	if end := closing(buf, i); end >= 0 {
		w.inString = false
		return end + 1
	}
	for k := len(buf); k > i && buf[k-1] == '\\'; k-- {
		w.escaped = !w.escaped
	}
	return len(buf)
}

// closing returns the index of the quote that ends the string whose text
// begins at i, or -1.
func closing(buf []byte, i int) int {
	for i < len(buf) {
		j := bytes.IndexByte(buf[i:], '"')
		if j < 0 {
			return -1
		}
		j += i
		k := j
		for k > i && buf[k-1] == '\\' {
			k--
		}
		if (j-k)%2 == 0 {
			return j
		}
		i = j + 1
	}
	return -1
}

func space(buf []byte, i int) int {
	for i < len(buf) && (buf[i] == ' ' || buf[i] == '\t' || buf[i] == '\n' || buf[i] == '\r') {
		i++
	}
	return i
}

func unquote(raw []byte) string {
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw)
	}
	var s string
	if json.Unmarshal(append(append([]byte{'"'}, raw...), '"'), &s) != nil {
		return string(raw)
	}
	return s
}

// jsonFilter runs a walker over a stream of any length. Only the text of a
// member that may be a credential waits; everything else passes at once, so
// that watches and incremental answers stay live.
type jsonFilter struct {
	src   io.Reader
	w     walker
	in    []byte
	out   []byte
	off   int
	sniff bool // examine it only if it begins as JSON
	err   error
	done  func()
}

// Read implements [io.Reader].
func (f *jsonFilter) Read(p []byte) (int, error) {
	for {
		if f.off < len(f.out) {
			n := copy(p, f.out[f.off:])
			f.off += n
			return n, nil
		}
		if f.err != nil {
			return 0, f.err
		}
		if f.w.s == nil { // no JSON
			return f.src.Read(p)
		}
		f.fill()
	}
}

func (f *jsonFilter) fill() {
	held := len(f.in)
	f.in = withRoom(f.in)
	n, err := f.src.Read(f.in[held:min(cap(f.in), held+chunk)])
	f.in = f.in[:held+n]
	if f.sniff {
		is, sure := looksJSON(f.in)
		f.sniff = !sure // blanks alone hold nothing and pass below
		if sure && !is {
			f.out, f.off, f.err = f.in, 0, err
			f.w.s, f.in = nil, nil
			return
		}
	}
	last := err != nil
	var used int
	f.out, used = f.w.walk(f.out[:0], f.in, last)
	f.off = 0
	f.in = f.in[:copy(f.in, f.in[used:])]
	f.err = err
	if last {
		f.done()
		f.w.s = nil
		f.in = nil
	}
}
