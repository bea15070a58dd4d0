package audit

import "strings"

// MaskSQL replaces each literal of a statement by ?, and takes comments out. In
// MySQL and MariaDB double quotes are of literals, elsewhere of names. What
// cannot be told apart, such as a text without its end, is masked.
func MaskSQL(engine, s string) string {
	if engine == "redis" {
		return maskRedis(s)
	}
	mysql := strings.HasPrefix(engine, "my") || strings.HasPrefix(engine, "maria")
	var b strings.Builder
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '\'' || c == '"' && mysql:
			i = quoted(s, i, mysql || escapes(s, i))
			b.WriteByte('?')
		case c == '"' || c == '`':
			end := quoted(s, i, false)
			b.WriteString(s[i:end])
			i = end
		case c == '$' && !mysql:
			end := dollar(s, i)
			if end == i { // $1 is a parameter
				end++
				for end < len(s) && s[end] >= '0' && s[end] <= '9' {
					end++
				}
				b.WriteString(s[i:end])
				i = end
				break
			}
			b.WriteByte('?')
			i = end
		case c == '-' && strings.HasPrefix(s[i:], "--"), c == '#' && mysql:
			end := strings.IndexByte(s[i:], '\n')
			if end < 0 {
				end = len(s) - i
			}
			i += end
		case c == '/' && strings.HasPrefix(s[i:], "/*"):
			i = comment(s, i)
			b.WriteByte(' ')
		case c >= '0' && c <= '9':
			for i < len(s) && (wordChar(s[i]) || s[i] == '.' || (s[i] == '+' || s[i] == '-') && (s[i-1] == 'e' || s[i-1] == 'E')) {
				i++
			}
			b.WriteByte('?')
		case wordChar(c):
			from := i
			for i < len(s) && (wordChar(s[i]) || s[i] == '$') {
				i++
			}
			if i < len(s) && s[i] == '\'' && prefix(s[from:i]) { // E'…', X'…': the letter belongs to the literal
				break
			}
			b.WriteString(s[from:i])
		default:
			b.WriteByte(c)
			i++
		}
	}
	return strings.TrimSpace(b.String())
}

// quoted is the end of what begins with the quote at s[i].
func quoted(s string, i int, backslash bool) int {
	q := s[i]
	for i++; i < len(s); i++ {
		switch {
		case s[i] == '\\' && backslash:
			i++
		case s[i] == q && i+1 < len(s) && s[i+1] == q:
			i++
		case s[i] == q:
			return i + 1
		}
	}
	return len(s)
}

// escapes reports whether the literal whose quote is s[i] knows backslashes:
// E'…' of PostgreSQL.
func escapes(s string, i int) bool {
	return i > 0 && (s[i-1] == 'e' || s[i-1] == 'E') && (i == 1 || !wordChar(s[i-2]))
}

// prefix reports whether w in front of a quote belongs to the literal.
func prefix(w string) bool {
	switch strings.ToLower(w) {
	case "e", "b", "x", "n", "u":
		return true
	}
	return false
}

// dollar is the end of $tag$…$tag$ at s[i], or i. A parameter ($1) is no literal.
func dollar(s string, i int) int {
	end := i + 1
	for end < len(s) && wordChar(s[end]) {
		end++
	}
	if end >= len(s) || s[end] != '$' || end > i+1 && s[i+1] >= '0' && s[i+1] <= '9' {
		return i
	}
	tag := s[i : end+1]
	if j := strings.Index(s[end+1:], tag); j >= 0 {
		return end + 1 + j + len(tag)
	}
	return len(s)
}

// comment is the end of the comment at s[i]; PostgreSQL's nest.
func comment(s string, i int) int {
	depth := 0
	for i < len(s) {
		switch {
		case strings.HasPrefix(s[i:], "/*"):
			depth++
			i += 2
		case strings.HasPrefix(s[i:], "*/"):
			depth--
			i += 2
			if depth == 0 {
				return i
			}
		default:
			i++
		}
	}
	return len(s)
}

func wordChar(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

// maskRedis keeps a command and its key, and masks its other arguments.
func maskRedis(s string) string {
	f := strings.Fields(s)
	if len(f) == 0 {
		return ""
	}
	kept := 2
	switch strings.ToLower(f[0]) {
	case "auth", "hello", "eval", "evalsha", "config", "acl", "migrate":
		kept = 1
	}
	for i := kept; i < len(f); i++ {
		f[i] = "?"
	}
	return strings.Join(f, " ")
}
