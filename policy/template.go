package policy

import (
	"errors"
	"fmt"
	"strings"
)

// segmentKind orders the parts of a template by how much they match: a
// greater kind matches less. The values are the bytes of a specificity key.
type segmentKind byte

const (
	segmentTail segmentKind = iota + 1 // the rest, none or more segments
	segmentEnd                         // the path ends here
	segmentOne                         // one segment that is not empty
	segmentLiteral
)

// segment is one part of a template between slashes.
type segment struct {
	kind segmentKind
	text string // canonical, of a literal
}

// template is a compiled path pattern. The nil template matches every path.
type template struct {
	source   string
	segments []segment // ends in segmentTail or segmentEnd
}

// parseTemplate compiles "/repos/{owner}/{repo}/**" and the like.
func parseTemplate(s string) (*template, error) {
	if !strings.HasPrefix(s, "/") {
		return nil, fmt.Errorf("is %q; a path starts with \"/\"", s)
	}
	if strings.ContainsAny(s, "?#") {
		return nil, fmt.Errorf("is %q; a path has no query or fragment, match those with query: [{name: …}]", s)
	}
	t := &template{source: s}
	names := map[string]bool{}
	parts := strings.Split(s[1:], "/")
	for i, part := range parts {
		seg, err := parseSegment(part, i == len(parts)-1, names)
		if err != nil {
			return nil, fmt.Errorf("is %q: %w", s, err)
		}
		t.segments = append(t.segments, seg)
	}
	if t.segments[len(t.segments)-1].kind != segmentTail {
		t.segments = append(t.segments, segment{kind: segmentEnd})
	}
	return t, nil
}

func parseSegment(part string, last bool, names map[string]bool) (segment, error) {
	switch {
	case part == "**":
		if !last {
			return segment{}, errors.New("\"**\" stands only at the end")
		}
		return segment{kind: segmentTail}, nil
	case part == "" && !last:
		return segment{}, errors.New("it has an empty segment")
	case strings.HasPrefix(part, "{") && strings.HasSuffix(part, "}"):
		return parseVariable(part[1:len(part)-1], last, names)
	case strings.ContainsAny(part, "{}*"):
		return segment{}, fmt.Errorf("segment %q mixes text and wildcard; a whole segment is text, \"{name}\" or, at the end, \"{name...}\" or \"**\"", part)
	}
	text, ok := canonicalPath(part)
	if !ok {
		return segment{}, fmt.Errorf("segment %q has a \"%%\" without two hexadecimal digits", part)
	}
	if text == "." || text == ".." {
		return segment{}, errors.New("requests with dot segments are refused, so it would never match")
	}
	return segment{kind: segmentLiteral, text: text}, nil
}

func parseVariable(name string, last bool, names map[string]bool) (segment, error) {
	kind := segmentOne
	if base, tail := strings.CutSuffix(name, "..."); tail {
		if !last {
			return segment{}, fmt.Errorf("\"{%s}\" stands only at the end", name)
		}
		name, kind = base, segmentTail
	}
	if !isIdentifier(name) {
		return segment{}, fmt.Errorf("{%s} is no name; use letters, digits and \"_\"", name)
	}
	if names[name] {
		return segment{}, fmt.Errorf("it has {%s} twice", name)
	}
	names[name] = true
	return segment{kind: kind}, nil
}

func isIdentifier(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !isAlpha(c) && c != '_' && (i == 0 || !isDigit(c)) {
			return false
		}
	}
	return s != ""
}

// matches reports whether the template matches a canonical path. The index
// decides requests; this is for explanations.
func (t *template) matches(path string) bool {
	if t == nil {
		return true
	}
	if !strings.HasPrefix(path, "/") {
		return false
	}
	rest, more := path[1:], true
	for _, s := range t.segments {
		if s.kind == segmentTail {
			return true
		}
		if s.kind == segmentEnd || !more {
			return s.kind == segmentEnd && !more
		}
		var part string
		part, rest, more = strings.Cut(rest, "/")
		if s.kind == segmentOne && part == "" || s.kind == segmentLiteral && part != s.text {
			return false
		}
	}
	return false
}

// key is the template's specificity: longer literal beginnings sort higher.
func (t *template) key() string {
	if t == nil {
		return ""
	}
	b := make([]byte, len(t.segments))
	for i, s := range t.segments {
		b[i] = byte(s.kind)
	}
	return string(b)
}

// literals identifies the paths a template matches among templates with the
// same key: two of them overlap if and only if their literals are equal.
func (t *template) literals() string {
	if t == nil {
		return ""
	}
	var b strings.Builder
	for _, s := range t.segments {
		b.WriteByte('/')
		b.WriteString(s.text)
	}
	return b.String()
}

// canonicalPath brings equivalent spellings of a path to one: octets that may
// stand for themselves in a segment (RFC 3986 section 3.3, pchar) are decoded,
// all others are percent-encoded in upper case. Two octets stay encoded:
// "%2F", so that it never becomes a separator, and "%3B", since origins split
// parameters off at a bare ";". It answers false for a "%" without two
// hexadecimal digits. A canonical path is returned as it is, without copying.
//
// RFC 3986 section 6.2.2.2 demands this for unreserved octets only. Sub-delims,
// ":" and "@" are treated alike because origins do, and a deny rule for
// "/v1/a:b" must not be evaded by writing "/v1/a%3Ab".
func canonicalPath(s string) (string, bool) {
	i := 0
	for i < len(s) && (isPathChar(s[i]) || s[i] == '/') {
		i++
	}
	if i == len(s) {
		return s, true
	}
	const hex = "0123456789ABCDEF"
	b := append(make([]byte, 0, len(s)+16), s[:i]...)
	for ; i < len(s); i++ {
		c := s[i]
		if c == '%' {
			if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
				return "", false
			}
			c = unhex(s[i+1])<<4 | unhex(s[i+2])
			i += 2
			if isPathChar(c) && c != ';' {
				b = append(b, c)
				continue
			}
		} else if isPathChar(c) || c == '/' {
			b = append(b, c)
			continue
		}
		b = append(b, '%', hex[c>>4], hex[c&15])
	}
	return string(b), true
}

// isPathChar reports pchar of RFC 3986 section 3.3 without pct-encoded.
func isPathChar(c byte) bool {
	if isAlpha(c) || isDigit(c) {
		return true
	}
	switch c {
	case '-', '.', '_', '~', '!', '$', '&', '\'', '(', ')', '*', '+', ',', ';', '=', ':', '@':
		return true
	}
	return false
}

func isAlpha(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }
func isDigit(c byte) bool { return '0' <= c && c <= '9' }
func isHex(c byte) bool   { return isDigit(c) || 'a' <= c|0x20 && c|0x20 <= 'f' }

func unhex(c byte) byte {
	if isDigit(c) {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}
