package guard

import (
	"bytes"
	"html"
	"strings"
)

// xml seals the content of elements that are credentials, such as
// SecretAccessKey in the answers of AWS STS. Like the walker of JSON it is a
// lexer: it does not mind what surrounds them. An element's namespace prefix and
// attributes do not matter; all up to its end tag is its content.
func (s *sealer) xml(body []byte) []byte {
	var out []byte
	last := 0
	for i := 0; i < len(body); {
		at := bytes.IndexByte(body[i:], '<')
		if at < 0 {
			break
		}
		i += at + 1
		end := bytes.IndexByte(body[i:], '>')
		if end < 0 {
			break
		}
		tag := body[i : i+end]
		name := tagName(tag)
		if name == "" || bytes.HasSuffix(tag, []byte("/")) || !s.member(localName(name), likely) {
			continue
		}
		from := i + end + 1
		i = endTag(body, from, name)
		if text := elementText(body[from:i]); !isHandle(text) && s.member(localName(name), text) {
			out = append(append(out, body[last:from]...), s.seal(s.who, slotToken, text)...)
			last = i
		}
	}
	if last == 0 {
		return body
	}
	return append(out, body[last:]...)
}

// tagName is the name in a start tag; end tags, comments and the like have none.
func tagName(tag []byte) string {
	n := 0
	for n < len(tag) && !strings.ContainsRune(" \t\r\n/", rune(tag[n])) {
		n++
	}
	if n == 0 || tag[0] == '!' || tag[0] == '?' {
		return ""
	}
	return string(tag[:n])
}

func localName(name string) string { return name[strings.IndexByte(name, ':')+1:] }

// endTag is where the element's end tag begins, or the end of body.
func endTag(body []byte, from int, name string) int {
	for i := from; ; {
		at := bytes.Index(body[i:], []byte("</"+name))
		if at < 0 {
			return len(body)
		}
		i += at
		after := i + 2 + len(name)
		if after == len(body) || strings.IndexByte(" \t\r\n>", body[after]) >= 0 {
			return i
		}
		i = after
	}
}

// elementText is what a reader takes for the text of content without elements.
func elementText(b []byte) string {
	t := strings.TrimSpace(string(b))
	if inner, ok := strings.CutPrefix(t, "<![CDATA["); ok {
		if inner, ok = strings.CutSuffix(inner, "]]>"); ok {
			return inner
		}
	}
	return html.UnescapeString(t)
}
