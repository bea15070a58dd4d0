package task

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// maxPurpose bounds a purpose, in bytes once escaped.
const maxPurpose = 256

// clean escapes what could deceive a reader of a record (control characters,
// line separators, direction marks, invalid UTF-8) and cuts the text at n
// bytes between runes.
func clean(s string, n int) string {
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		piece := s[:size]
		switch {
		case r == utf8.RuneError && size == 1:
			piece = fmt.Sprintf(`\x%02x`, s[0])
		case unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp):
			piece = strings.Trim(strconv.QuoteRuneToASCII(r), "'")
		}
		if b.Len()+len(piece) > n {
			break
		}
		b.WriteString(piece)
		s = s[size:]
	}
	return b.String()
}

// quote shows a foreign text in an error.
func quote(s string) string { return `"` + clean(s, 128) + `"` }

// failure keeps the last error of a transport.
type failure struct {
	mu  sync.Mutex // guards err
	err error
}

func (f *failure) set(err error) { f.mu.Lock(); f.err = err; f.mu.Unlock() }

func (f *failure) get() error { f.mu.Lock(); defer f.mu.Unlock(); return f.err }
