package audit

import "strings"

// document masks secrets in the text of a document, or in the difference of two:
// in block style, as records have it. The digests beside it are those of the text
// as it was, which is the one that decided.
func (x *Redactor) document(s string) string {
	for _, re := range x.patterns {
		s = re.ReplaceAllString(s, Mask)
	}
	if x.keepTokens || s == "" {
		return s
	}
	plain := Redactor{} // the patterns may span lines, and have been
	lines := strings.SplitAfter(s, "\n")
	under := -1 // the indentation of a secret's key, whose value are the lines below
	for i, l := range lines {
		text := strings.TrimRight(l, "\r\n")
		key, at, indent := keyOf(text)
		if under >= 0 && strings.TrimLeft(text, " +-") != "" {
			if indent > under {
				lines[i] = text[:indent] + Mask + l[len(text):]
				continue
			}
			under = -1
		}
		switch {
		case nameOf(key) != surely:
			// What identifies looks random, and is what a reviewer looks for.
			if !hasSuffixFold(key, "id") {
				text = plain.Text(text)
			}
		case strings.IndexByte("|>", firstOf(text[at:])) >= 0:
			under = indent
		case scalar(text[at:]):
			text = text[:at] + Mask
		default:
			text = plain.Text(text)
		}
		lines[i] = text + lines[i][len(strings.TrimRight(l, "\r\n")):]
	}
	return strings.Join(lines, "")
}

// keyOf is the key that a line of YAML begins with, where its value begins, and
// where the key does. A difference's + and - count as spaces.
func keyOf(l string) (key string, at, indent int) {
	for indent < len(l) && strings.IndexByte(" +-", l[indent]) >= 0 {
		indent++
	}
	from := indent
	if from < len(l) && isQuote(l[from]) {
		from++
	}
	to := from
	for to < len(l) && nameChar(l[to]) {
		to++
	}
	at = to
	if from > indent && at < len(l) && l[at] == l[indent] {
		at++
	}
	if at == len(l) || l[at] != ':' || at+1 < len(l) && l[at+1] != ' ' {
		return "", 0, indent
	}
	for at++; at < len(l) && l[at] == ' '; at++ {
	}
	return l[from:to], at, indent
}

// scalar reports whether v, which stands behind a key, is a value by itself.
func scalar(v string) bool {
	switch v {
	case "", "null", "true", "false", "~", `""`, "''", Mask:
		return false
	}
	return strings.IndexByte("{[&*#", v[0]) < 0
}

func firstOf(s string) byte {
	if s == "" {
		return 0
	}
	return s[0]
}
