package destination

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// ErrPath is matched by every error of [CheckPath] and [CheckQuery].
var ErrPath = errors.New("ambiguous request target")

// maxEncodings is how many layers of percent-encoding are looked through. A
// deeper one is refused.
const maxEncodings = 4

// CheckPath refuses a raw path (as on the wire, without query) that servers
// read in different ways: what policy matches must be what the origin serves.
// It denies encoded slashes and backslashes, dot segments in any encoding,
// empty segments, backslashes, semicolons, control bytes, bare spaces and
// raw non-ASCII, broken escapes, text that is not UTF-8 when decoded, and
// doubly encoded forms of these. "*" (OPTIONS) passes. Errors match [ErrPath].
func CheckPath(rawPath string) error {
	if rawPath == "*" {
		return nil
	}
	if rawPath == "" || rawPath[0] != '/' {
		return odd("a path begins with a slash")
	}
	escaped := false
	for i := range len(rawPath) {
		switch c := rawPath[i]; {
		case c <= ' ' || c >= 0x7f:
			return odd("the path holds a space, control or non-ASCII byte; percent-encode it")
		case c == '\\' || c == ';' || c == '#' || c == '?':
			return odd("the path holds a bare %q; percent-encode it if it is data", string(c))
		case c == '%':
			escaped = true
		case c == '/' && i > 0 && rawPath[i-1] == '/':
			return odd("the path has an empty segment (//)")
		}
	}
	if err := checkDots(rawPath); err != nil {
		return err
	}
	if !escaped {
		return nil
	}
	return checkEscapes(rawPath)
}

// checkEscapes decodes layer by layer, as a chain of servers might.
func checkEscapes(path string) error {
	for layer := range maxEncodings {
		decoded, changed, err := decode(path, layer == 0)
		if err != nil {
			return err
		}
		if !changed {
			return nil
		}
		if layer == 0 && !utf8.ValidString(decoded) {
			return odd("the decoded path is not UTF-8")
		}
		if err := checkDots(decoded); err != nil {
			return err
		}
		path = decoded
	}
	return odd("the path is percent-encoded more than %d times", maxEncodings-1)
}

// decode undoes one layer of percent-encoding and refuses what changes a
// path's meaning. Only the first layer must be well formed: "100%25" is data.
func decode(s string, strict bool) (string, bool, error) {
	if strings.IndexByte(s, '%') < 0 {
		return s, false, nil
	}
	var b strings.Builder
	b.Grow(len(s))
	changed := false
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) || unhex(s[i+1]) > 15 || unhex(s[i+2]) > 15 {
			if strict {
				return "", false, odd("the path has a broken percent escape")
			}
			b.WriteByte('%')
			continue
		}
		c := unhex(s[i+1])<<4 | unhex(s[i+2])
		switch {
		case c == '/' || c == '\\':
			return "", false, odd("the path holds an encoded slash or backslash")
		case c == ';':
			return "", false, odd("the path holds an encoded semicolon")
		case c < ' ' || c == 0x7f:
			return "", false, odd("the path holds an encoded control byte")
		}
		b.WriteByte(c)
		changed = true
		i += 2
	}
	return b.String(), changed, nil
}

// checkDots finds segments "." and "..", also with spaces after them, which
// some file systems drop.
func checkDots(path string) error {
	if !strings.Contains(path, "/.") {
		return nil
	}
	for seg := range strings.SplitSeq(path, "/") {
		if seg = strings.TrimRight(seg, " "); seg == "." || seg == ".." {
			return odd("the path has a dot segment")
		}
	}
	return nil
}

// CheckQuery refuses a raw query (without the question mark) that is read in
// different ways: bare control bytes, spaces, non-ASCII and '#', a bare
// semicolon (a separator to some), broken escapes and an encoded NUL. Binary
// values are allowed when encoded. Errors match [ErrPath].
func CheckQuery(rawQuery string) error {
	for i := 0; i < len(rawQuery); i++ {
		switch c := rawQuery[i]; {
		case c <= ' ' || c >= 0x7f || c == '#':
			return odd("the query holds a space, '#', control or non-ASCII byte; percent-encode it")
		case c == ';':
			return odd("the query holds a bare semicolon; write it as %%3B")
		case c == '%':
			if i+2 >= len(rawQuery) || unhex(rawQuery[i+1]) > 15 || unhex(rawQuery[i+2]) > 15 {
				return odd("the query has a broken percent escape")
			}
			if rawQuery[i+1] == '0' && rawQuery[i+2] == '0' {
				return odd("the query holds an encoded NUL")
			}
			i += 2
		}
	}
	return nil
}

// unhex returns the value of a hexadecimal digit, or 255.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

func odd(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrPath, fmt.Sprintf(format, args...))
}
