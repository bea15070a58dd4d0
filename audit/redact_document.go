package audit

import (
	"strings"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// Redactor is what takes secrets out of the records of s.
func (s *Spool) Redactor() *Redactor { return s.redactor }

// document masks secrets in the text of a document, or in the difference of two.
// The digests beside it are those of the text as it was, which is the one that
// decided.
func (x *Redactor) document(s string) string {
	if s == "" {
		return s
	}
	out := strings.Join(x.lines(s), "\n")
	if len(x.patterns) > 0 {
		out = strings.ReplaceAll(out, "\n"+joint, "")
	}
	return out
}

// DocumentLines are the lines of a document with what is secret masked, each in
// its place. A difference is made of them: its own lines do not tell below which
// keys they stand.
func (x *Redactor) DocumentLines(s string) []string {
	if s == "" {
		return nil
	}
	out := x.lines(s)[:strings.Count(s, "\n")+1]
	for i, l := range out {
		if rest, ok := strings.CutPrefix(l, joint); ok && len(x.patterns) > 0 {
			out[i] = Mask + rest
		}
	}
	return out
}

// joint begins a line whose beginning a pattern matched with the line before.
const joint = "\x00"

// lines masks each line by the keys of the text as it was, patterns apart.
func (x *Redactor) lines(s string) []string {
	if len(x.patterns) > 0 {
		s = strings.ReplaceAll(s, joint, "\uFFFD")
	}
	was := strings.Split(s, "\n")
	for _, re := range x.patterns {
		s = re.ReplaceAllStringFunc(s, func(m string) string { return Mask + strings.Repeat("\n"+joint, strings.Count(m, "\n")) })
	}
	out := strings.Split(s, "\n")
	if x.keepTokens {
		return out
	}
	plain := Redactor{} // the patterns have been
	o := outline{pairs: pairs(was), asked: -1}
	for i, l := range out {
		text := strings.TrimRight(was[i], "\r")
		at, open := o.next(i, text)
		switch {
		case at < 0 && open: // what identifies looks random, and is what a reviewer looks for
		case at < 0:
			text := strings.TrimRight(l, "\r")
			out[i] = plain.Text(text) + l[len(text):]
		case l == was[i]:
			out[i] = text[:at] + Mask + l[len(text):]
		case len(x.patterns) > 0 && strings.HasPrefix(l, joint):
			out[i] = joint
		default:
			out[i] = text[:margin(text)] + Mask
		}
	}
	return out
}

// outline is where in a document of YAML a line stands.
type outline struct {
	pairs  []bool    // lines with the value of a name that announces a secret
	inside []section // the innermost is the last
	asked  int       // the indentation of "? KEY", whose value is behind a colon below; -1 for none
	key    string    // the last line of that
}

// section is what is indented deeper than a key, or goes on with an element of a
// list.
type section struct {
	indent  int
	kind    int
	element bool
}

// ends reports whether the section is over before a line.
func (s section) ends(text string, indent int) bool {
	return indent < s.indent || indent == s.indent && (!s.element || dashed(text, indent))
}

// dashed reports whether what begins at l[indent] is an element of a list.
func dashed(l string, indent int) bool { return indent >= 2 && l[indent-2:indent] == "- " }

const (
	secretText = iota // all is masked
	secretTree        // and what says where the secret is stays
	sourceTree        // of that
	flowTree          // a flow collection goes on
)

// next judges the next line: from where on it is masked, or -1; then, whether it
// is left as it is.
func (o *outline) next(i int, text string) (at int, open bool) {
	key, at, indent := keyOf(text)
	if blank(text) {
		return -1, true
	}
	for len(o.inside) > 0 && o.inside[len(o.inside)-1].ends(text, indent) {
		o.inside = o.inside[:len(o.inside)-1]
	}
	in := -1
	if len(o.inside) > 0 {
		in = o.inside[len(o.inside)-1].kind
	}
	if in == secretText || in == secretTree {
		if in == secretTree && source(key, text[at:]) {
			o.push(indent, sourceTree)
			return -1, false
		}
		return margin(text), false
	}
	rest := text[indent:]
	switch {
	case o.asked >= 0 && indent > o.asked:
		o.key = rest
		return -1, false
	case o.asked == indent && strings.HasPrefix(rest, ":"):
		o.asked = -1
		at = len(text) - len(strings.TrimLeft(rest[1:], " "))
		return o.value(o.key, text, at, indent, false)
	case strings.HasPrefix(rest, "? "):
		o.asked, o.key = indent, rest
		return -1, false
	}
	o.asked = -1
	if at == 0 {
		at = indent
	}
	v := text[at:]
	switch {
	case in == flowTree:
		if announces(key, v) || flowSecret(rest) {
			o.inside[len(o.inside)-1].kind = secretText
			return at, false
		}
	case v != "" && (v[0] == '{' || v[0] == '['):
		secret := !announces(key, v) && flowSecret(v)
		kind := flowTree
		if secret {
			kind = secretText
		}
		o.inside = append(o.inside, section{indent, kind, at == indent})
		if secret {
			return at, false
		}
	}
	return o.value(key, text, at, indent, o.pairs[i])
}

// value judges text[at:], the value of a key.
func (o *outline) value(key, text string, at, indent int, named bool) (int, bool) {
	v := text[at:]
	if !named && !announces(key, v) {
		// A header as an element of a list, or as a value: "X-Api-Key: x".
		if v != "" && isQuote(v[0]) {
			if inner, from, _ := keyOf(v[1:]); strings.IndexByte(inner, ' ') < 0 && nameOf(inner) == surely && from < len(v)-1 {
				o.inside = append(o.inside, section{indent, secretText, at == indent})
				return at + 1 + from, false
			}
		}
		return -1, hasSuffixFold(key, "id") && strings.IndexByte(key, ' ') < 0
	}
	switch {
	case v == "":
		o.push(indent, secretTree)
		return -1, true
	case strings.IndexByte("|>", v[0]) >= 0 && strings.Trim(v[1:], "+-0123456789 ") == "":
		o.push(indent, secretText)
		return -1, true
	case v[0] == '{' && flowSource(v):
		return -1, false
	}
	o.push(indent, secretText)
	switch v {
	case "null", "true", "false", "~", `""`, "''", "{}", "[]", Mask:
		return -1, true
	}
	return at, false
}

func (o *outline) push(indent, kind int) { o.inside = append(o.inside, section{indent, kind, false}) }

// announces reports whether key says that v is a secret, or several: the plural
// does, too. "tokens: keep" is a setting of ours.
func announces(key, v string) bool {
	key = letters(key)
	if nameOf(key) == surely {
		return true
	}
	one, plural := strings.CutSuffix(strings.ToLower(strings.TrimRight(key, "0123456789_-.")), "s")
	if one == "token" {
		v, _, _ = strings.Cut(v, " #")
		v = strings.Trim(v, ` "'`)
	}
	return plural && nameOf(one) == surely && (one != "token" || v != v1alpha1.RedactKeep && v != v1alpha1.RedactMask)
}

// letters is a name without what may stand in a key of YAML beside it.
func letters(key string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x80 && (nameChar(byte(r)) || r == '%' || r == '[' || r == ']') {
			return r
		}
		return -1
	}, key)
}

// source reports whether v, or what stands below key, says where a secret is,
// and is none.
func source(key, v string) bool {
	switch key {
	case "file", "env", "audience":
		return v != ""
	case "vault":
		return v == ""
	}
	return strings.HasSuffix(key, "Ref") || strings.HasSuffix(key, "From") || strings.HasSuffix(key, "File")
}

// pairs are the lines of values whose name, beside them, announces a secret:
// name: X-Api-Key, value: x.
func pairs(lines []string) []bool {
	type mapping struct {
		indent int
		secret bool
		values []int
	}
	out := make([]bool, len(lines))
	var open []*mapping
	end := func(from int) {
		for _, m := range open[from:] {
			for _, i := range m.values {
				out[i] = m.secret
			}
		}
		open = open[:from]
	}
	for i, l := range lines {
		l = strings.TrimRight(l, "\r")
		if blank(l) {
			continue
		}
		key, at, indent := keyOf(l)
		n := len(open)
		first := dashed(l, indent)
		for n > 0 && (open[n-1].indent > indent || first && open[n-1].indent == indent) {
			n--
		}
		end(n)
		if at == 0 {
			continue
		}
		if n == 0 || open[n-1].indent < indent {
			open = append(open, &mapping{indent: indent})
			n++
		}
		m := open[n-1]
		switch {
		case nameKey(key):
			m.secret = m.secret || announces(l[at:], "")
		case valueKey(key):
			m.values = append(m.values, i)
		}
	}
	end(0)
	return out
}

func nameKey(key string) bool {
	switch strings.ToLower(key) {
	case "name", "key", "header", "env", "variable":
		return true
	}
	return false
}

func valueKey(key string) bool {
	switch strings.ToLower(key) {
	case "value", "exact":
		return true
	}
	return false
}

// flowMember is a member of a flow collection.
type flowMember struct {
	depth      int
	key, value string
}

// flow are the members of what is, or goes on with, a flow collection.
func flow(s string) (out []flowMember) {
	depth, from, colon := 0, 0, -1
	begun := false // the key or value has more than spaces before it
	end := func(i int) {
		if colon >= 0 {
			out = append(out, flowMember{depth, strings.Trim(s[from:colon], ` "'`), strings.Trim(s[colon+1:i], ` "'`)})
		}
		from, colon, begun = i+1, -1, false
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case isQuote(c) && !begun:
			begun = true
			for i++; i < len(s) && (s[i] != c || c == '\'' && i+1 < len(s) && s[i+1] == c); i++ {
				if s[i] == c || s[i] == '\\' && c == '"' {
					i++
				}
			}
		case c == '{' || c == '[':
			end(i)
			depth++
		case c == '}' || c == ']':
			end(i)
			depth--
		case c == ',':
			end(i)
		case c == ':' && colon < 0 && (i+1 == len(s) || s[i+1] == ' ' || i > 0 && isQuote(s[i-1])):
			colon, begun = i, false
		default:
			begun = begun || c != ' '
		}
	}
	end(len(s))
	return out
}

// flowSecret reports whether a flow collection has a secret that is announced.
func flowSecret(s string) bool {
	name, value := false, false
	for _, m := range flow(s) {
		if announces(m.key, "[") {
			return true
		}
		name = name || nameKey(m.key) && announces(m.value, "")
		value = value || valueKey(m.key)
	}
	return name && value
}

// flowSource reports whether all of a flow mapping says where a secret is.
func flowSource(s string) bool {
	some := false
	for _, m := range flow(s) {
		if m.depth == 1 && !source(m.key, m.value) && m.key != "vault" {
			return false
		}
		some = true
	}
	return some && strings.Count(s, "{") == strings.Count(s, "}")
}

// margin is what a masked line begins with: the sign of a difference, or that of
// an element, and spaces.
func margin(l string) int {
	n := 0
	for n < len(l) && (l[n] == ' ' || n == 0 && (l[n] == '+' || l[n] == '-')) {
		n++
	}
	return n
}

func blank(l string) bool { return strings.Trim(l[margin(l):], "\t") == "" }

// keyOf is the key that a line of YAML begins with, where its value begins, and
// where the key does. A difference's + and - count as spaces.
func keyOf(l string) (key string, at, indent int) {
	for indent < len(l) && strings.IndexByte(" +-", l[indent]) >= 0 {
		indent++
	}
	from, to := indent, indent
	switch {
	case from == len(l) || strings.IndexByte("{[?|>#,", l[from]) >= 0:
		return "", 0, indent
	case isQuote(l[from]):
		from, to = from+1, to+1
		for q := l[indent]; to < len(l) && l[to] != q || to+1 < len(l) && q == '\'' && l[to+1] == q; to++ {
			if l[to] == q || l[to] == '\\' && q == '"' {
				to++
			}
		}
		if at = to + 1; at >= len(l) || l[at] != ':' {
			return "", 0, indent
		}
	default:
		for to < len(l) && (l[to] != ':' || to+1 < len(l) && l[to+1] != ' ') {
			to++
		}
		if at = to; at == len(l) {
			return "", 0, indent
		}
	}
	if at++; at < len(l) && l[at] != ' ' {
		return "", 0, indent
	}
	for ; at < len(l) && l[at] == ' '; at++ {
	}
	return l[from:to], at, indent
}
