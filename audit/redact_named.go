package audit

import "strings"

// Secrets that are known by the name in front of them. What looks random is
// masked wherever it stands; text of hexadecimal digits, or a word, is a secret
// only where a name says so: digests, commits and trace ids look alike.

// maxSecretName bounds the names that are looked at; of longer ones the end.
const maxSecretName = 32

// named says what a name tells of the value behind it.
type named int

const (
	notSecret named = iota
	inPath          // as a segment, before 32 hexadecimal digits or more
	inQuery         // as a query's parameter; elsewhere before 16 hexadecimal digits or more
	maybe           // as a query's parameter; in a path before 32 hexadecimal digits or more
	surely
)

// nameOf judges the name of a parameter, an option, a header or a segment of a
// path. Case, underscores, hyphens, dots, brackets and a number at its end do
// not count; %XX is what it stands for.
func nameOf(name string) named {
	var buf [maxSecretName]byte
	n, numbered := len(buf), false
	for i := len(name) - 1; i >= 0 && n > 0; i-- {
		c := name[i]
		if i >= 2 && name[i-2] == '%' {
			if d, ok := percent(name, i-2); ok {
				c, i = d, i-2
			}
		}
		switch {
		case c == '_' || c == '-' || c == '.' || c == '[' || c == ']':
			continue
		case c >= '0' && c <= '9' && n == len(buf):
			numbered = true
			continue
		case c >= 'A' && c <= 'Z':
			c += 'a' - 'A'
		}
		n--
		buf[n] = c
	}
	s := buf[n:]
	if len(s) < 3 {
		return notSecret
	}
	sure := notSecret
	switch string(s) {
	case "pwd", "pass", "jwt", "xauth", "xkey":
		return surely
	case "key", "sig", "code", "auth", "hook", "hooks", "webhook", "incomingwebhook":
		sure = maybe
	case "session", "credentials", "sid", "connectsid":
		sure = inQuery
	case "reset", "invite", "invitation", "magiclink", "confirm":
		sure = inPath
	}
	if sure != notSecret && !numbered {
		return sure
	}
	for _, end := range secretEnds {
		if s[len(s)-1] == end[len(end)-1] && len(s) >= len(end) && string(s[len(s)-len(end):]) == end {
			return surely
		}
	}
	return notSecret
}

//nolint:gochecknoglobals // a constant table
var secretEnds = [...]string{
	"token", "secret", "password", "passwd", "passphrase", "passcode", "apikey", "accesskey", "secretkey", "privatekey", "signature", "authorization", "sessionid", "phpsessid",
	"cookie", "assertion",
}

func nameChar(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c == '-' || c == '.'
}

// percent is the byte that %XX at s[i] stands for.
func percent(s string, i int) (byte, bool) {
	if i < 0 || i+2 >= len(s) || s[i] != '%' {
		return 0, false
	}
	hi, ok1 := unhex(s[i+1])
	lo, ok2 := unhex(s[i+2])
	return hi<<4 | lo, ok1 && ok2
}

func unhex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// nameBefore is the name that ends at s[i] and begins not before low, and the
// byte in front of it; 0 if there is none.
func nameBefore(s string, low, i int) (name string, before byte) {
	from := i
	for from > low {
		if from-3 >= low && s[from-3] == '%' {
			if d, ok := percent(s, from-3); ok {
				if !nameChar(d) && d != '[' && d != ']' {
					return s[from:i], d
				}
				from -= 3
				continue
			}
		}
		if c := s[from-1]; !nameChar(c) && c != '[' && c != ']' {
			break
		}
		from--
	}
	if from > 0 {
		before = s[from-1]
	}
	return s[from:i], before
}

// hasNames reports whether s may have what maskValues looks for.
func hasNames(s string) bool {
	if strings.IndexByte(s, '=') >= 0 || strings.IndexByte(s, ':') >= 0 || strings.IndexByte(s, '%') >= 0 {
		return true
	}
	for i := strings.IndexByte(s, ' '); i >= 0 && i+1 < len(s); {
		if s[0] == '-' || s[i+1] == '-' || isQuote(s[i+1]) || i > 0 && s[i-1]|0x20 == 'r' && bearer(s, i) {
			return true
		}
		next := strings.IndexByte(s[i+1:], ' ')
		if next < 0 {
			break
		}
		i += 1 + next
	}
	return false
}

//nolint:gochecknoglobals // a constant table
var isMark = [256]bool{'=': true, '%': true, ':': true, '-': true, ' ': true}

// maskValues masks what stands behind the name of a secret, whatever it looks
// like: ?api_key=17, --password x, "token":"y", ;jsessionid=0a1b.
func maskValues(s string) string {
	var b strings.Builder
	done := 0
	for i := 0; i < len(s); {
		if !isMark[s[i]] {
			i++
			continue
		}
		from, to := 0, 0
		switch s[i] {
		case '=':
			from, to = assigned(s, done, i, i+1)
		case '%':
			if d, ok := percent(s, i); ok && d == '=' {
				from, to = assigned(s, done, i, i+3)
			}
		case ':':
			from, to = header(s, done, i)
		case '-':
			if i == 0 || s[i-1] <= ' ' || isQuote(s[i-1]) {
				from, to = option(s, i)
			}
		case ' ':
			if bearer(s, i) {
				from, to = i+1, i+1+len(schemeSecret(s[i+1:]))
			}
		}
		if from < to && s[from:to] != Mask {
			b.WriteString(s[done:from])
			b.WriteString(Mask)
			done, i = to, to
			continue
		}
		i++
	}
	if done == 0 {
		return s
	}
	return b.String() + s[done:]
}

// assigned is the secret at s[at] behind NAME=, whose name ends at s[i].
func assigned(s string, low, i, at int) (from, to int) {
	name, before := nameBefore(s, low, i)
	switch nameOf(name) {
	case surely:
	case maybe:
		if before != '?' && before != '&' {
			return 0, 0
		}
	case inQuery:
		if before != '?' && before != '&' && (before == '/' || hexRun(s[at:]) < minHex) {
			return 0, 0
		}
	case notSecret, inPath:
		return 0, 0
	}
	return at, valueEnd(s, at, before == '/' || before == ';', at-i > 1)
}

// header is the secret behind the colon at s[i]: NAME: value, 'NAME: value' and
// "NAME":"value". Without quotes it may be prose, token: expired.
func header(s string, low, i int) (from, to int) {
	end, quoted := i, i > low && isQuote(s[i-1])
	// Colons of times and ids, and of URLs, end here.
	if i == low || i+1 == len(s) || !quoted && charClass[s[i-1]] != isLetter || s[i+1] == '/' {
		return 0, 0
	}
	if quoted {
		end--
		if end > low && s[end-1] == '\\' {
			end--
		}
	}
	name, before := nameBefore(s, low, end)
	if nameOf(name) != surely || end < i && !isQuote(before) {
		return 0, 0
	}
	at := i + 1
	for at < len(s) && s[at] == ' ' {
		at++
	}
	switch {
	case at == len(s):
		return 0, 0
	case end < i:
		return member(s, at)
	case isQuote(before):
		to = len(s)
		if n := strings.IndexByte(s[at:], before); n >= 0 {
			to = at + n
			if to > at && s[to-1] == '\\' {
				to--
			}
		}
		if n := strings.IndexByte(s[at:to], ' '); n > 0 && at+n+1 < to && hasSuffixFold(name, "authorization") {
			at += n + 1
		}
		return at, to
	case at == i+1: // NAME:value: of an ARN, too
		if n := hexRun(s[at:]); n >= minHex && before != ':' {
			return at, at + n
		}
		return 0, 0
	case hasSuffixFold(name, "authorization"):
		n := strings.IndexByte(s[at:], ' ')
		if n < 0 {
			break
		}
		switch strings.ToLower(s[at : at+min(n, 16)]) {
		case "basic", "bearer", "token", "apikey", "dpop", "negotiate":
			return at + n + 1, at + n + 1 + len(schemeSecret(s[at+n+1:]))
		}
	}
	to = valueEnd(s, at, false, false)
	if hasSuffixFold(name, "cookie") && strings.IndexByte(s[at:to], '=') > 0 {
		for to < len(s) && s[to] >= ' ' && !isQuote(s[to]) {
			to++
		}
		return at, to
	}
	to = at + len(strings.TrimRight(s[at:to], ",.;"))
	if v := strings.Trim(s[at:to], `"'`); !hexOnly(v, minHex, true) && !looksChosen(v) {
		return 0, 0
	}
	return at, to
}

// member is the value of a member of a JSON object; in a text that is quoted
// itself its quotes have a backslash.
func member(s string, at int) (from, to int) {
	switch {
	case isQuote(s[at]):
		q := s[at]
		for to = at + 1; to < len(s) && s[to] != q; to++ {
			if s[to] == '\\' {
				to++
			}
		}
		return at + 1, min(to, len(s))
	case s[at] == '\\' && at+1 < len(s) && isQuote(s[at+1]):
		if n := strings.Index(s[at+2:], s[at:at+2]); n >= 0 {
			return at + 2, at + 2 + n
		}
		return at + 2, len(s)
	case s[at] == '{' || s[at] == '[':
		return 0, 0
	}
	for to = at; to < len(s) && s[to] > ' ' && s[to] != ',' && s[to] != '}' && s[to] != ']'; to++ {
	}
	switch s[at:to] {
	case "null", "true", "false":
		return 0, 0
	}
	return at, to
}

// option is the secret behind the option at s[i]: --NAME value, and the
// password of -u user:password.
func option(s string, i int) (from, to int) {
	at := i + 1
	for at < len(s) && nameChar(s[at]) {
		at++
	}
	name := s[i+1 : at]
	if at == len(s) || s[at] != ' ' && s[at] != '=' {
		return 0, 0
	}
	equals := s[at] == '='
	for at++; at < len(s) && s[at] == ' '; at++ {
	}
	if at == len(s) || s[at] == '-' {
		return 0, 0
	}
	switch {
	case name == "u" || name == "U" || name == "-user" || name == "-proxy-user":
		to = valueEnd(s, at, false, false)
		if isQuote(s[at]) {
			at, to = at+1, max(at+1, to-1)
		}
		user, password, _ := strings.Cut(s[at:to], ":")
		// A number of a user and a group, a place, a format: docker, rsync, date.
		if password == "" || user == "" || user[0] == '+' || password[0] == '/' || digits(user) && digits(password) {
			return 0, 0
		}
		return at + len(user) + 1, to
	case !equals && name[:min(1, len(name))] == "-" && nameOf(name) == surely:
		return at, valueEnd(s, at, false, false)
	}
	return 0, 0
}

func digits(s string) bool { return strings.Trim(s, "0123456789") == "" }

func isQuote(c byte) bool { return c == '"' || c == '\'' }

func hasSuffixFold(s, end string) bool {
	return len(s) >= len(end) && strings.EqualFold(s[len(s)-len(end):], end)
}

// hexRun is how many hexadecimal digits s begins with.
func hexRun(s string) int {
	for i := range len(s) {
		if _, ok := unhex(s[i]); !ok {
			return i
		}
	}
	return len(s)
}

// bearer reports whether the space at s[i] stands behind "Bearer".
func bearer(s string, i int) bool {
	const word = "bearer"
	return i >= len(word) && s[i-1]|0x20 == 'r' && strings.EqualFold(s[i-len(word):i], word)
}

// schemeSecret is the credential that s begins with, behind the name of a
// scheme; "" for words: a bearer token is missing.
func schemeSecret(s string) string {
	n, odd := 0, false
	for n < len(s) && (charClass[s[n]] != 0 || s[n] == '/' || s[n] == '=') {
		odd = odd || charClass[s[n]] == isDigit || n > 0 && s[n] >= 'A' && s[n] <= 'Z'
		n++
	}
	if n >= minToken || odd && n >= minChosen {
		return s[:n]
	}
	return ""
}

// minChosen is the length from which a word with a digit is taken for a
// password where prose may stand.
const minChosen = 8

// looksChosen reports whether v is a word with digits, and no path, name of an
// object, address or time.
func looksChosen(v string) bool {
	if len(v) < minChosen || v[len(v)-1] == ':' || strings.ContainsAny(v, "/-") {
		return false
	}
	var seen byte
	for i := range len(v) {
		seen |= charClass[v[i]]
	}
	return seen&isDigit != 0 && seen&isLetter != 0
}

// valueEnd is where a value ends that begins at s[i]: with its quotes, with its
// segment in a path, or at what separates parameters or commands. What is
// escaped, and what is quoted inside of it, belongs to it.
func valueEnd(s string, i int, path, encoded bool) int {
	if i+1 < len(s) && s[i] == '\\' && isQuote(s[i+1]) { // in a text that is quoted itself
		if n := strings.Index(s[i+2:], s[i:i+2]); n >= 0 {
			return i + 2 + n + 2
		}
		return len(s)
	}
	for first := i; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s) && isQuote(s[i+1]) && i > first:
			return i
		case c == '\\':
			i++
		case isQuote(c):
			if i > first && closes(s, i) {
				return i
			}
			for i++; i < len(s) && s[i] != c; i++ {
				if s[i] == '\\' && c == '"' {
					i++
				}
			}
		case c == ';':
			if separates(s, i) {
				return i
			}
		case c == ')':
			end := i + 1
			for end < len(s) && strings.IndexByte(").,;:", s[end]) >= 0 {
				end++
			}
			if end == len(s) || s[end] <= ' ' || isQuote(s[end]) {
				return i
			}
			i = end - 1
		case c <= ' ' || c == '&' || c == '`' || c == '|' || c == '<' || c == '>' || c == '#', c == '/' && path:
			return i
		case c == '%' && encoded:
			if d, ok := percent(s, i); ok && (d == '&' || d == '#' || d == ' ' || isQuote(d)) {
				return i
			}
		}
	}
	return len(s)
}

// closes reports whether the quote at s[i] ends what began before the value.
func closes(s string, i int) bool {
	return i+1 == len(s) || s[i+1] <= ' ' || strings.IndexByte(`,.:;}])'"|&<>\\`, s[i+1]) >= 0
}

// separates reports whether the semicolon at s[i] ends a value: a space, the end
// or another parameter follows.
func separates(s string, i int) bool {
	j := i + 1
	for j < len(s) && nameChar(s[j]) {
		j++
	}
	return i+1 == len(s) || s[i+1] <= ' ' || isQuote(s[i+1]) || j > i+1 && j < len(s) && s[j] == '='
}

// maskUserinfo masks the password of URLs, https://user:password@host, and a
// user that is a token.
func maskUserinfo(s string) string {
	var b strings.Builder
	done := 0
	for i := strings.Index(s, "://"); i >= 0; {
		from, to, end := userinfo(s, i+3)
		if from < to && s[from:to] != Mask {
			b.WriteString(s[done:from])
			b.WriteString(Mask)
			done = to
		}
		next := strings.Index(s[end:], "://")
		if next < 0 {
			break
		}
		i = end + next
	}
	if done == 0 {
		return s
	}
	return b.String() + s[done:]
}

// userinfo is what is secret in the authority at s[from], and where that ends.
func userinfo(s string, begin int) (from, to, end int) {
	at, colon := -1, -1
	inside := true // of what is an authority by the book
	for end = begin; end < len(s) && s[end] > ' ' && !isQuote(s[end]); end++ {
		switch c := s[end]; {
		case c == '@':
			at = end
		case c == ':' && colon < 0 && s[begin] != '[':
			colon = end
		case inside && (c == '/' || c == '?' || c == '#'):
			// A password may hold these, where a host's port is a number.
			if at >= 0 || colon < 0 || digits(s[colon+1:end]) {
				goto found
			}
			inside = false
		case !inside && at >= 0 && (c == '/' || c == '?' || c == '#'):
			goto found
		}
	}
found:
	switch {
	case at < 0:
		return 0, 0, end
	case colon < 0 || colon > at:
		if at-begin >= minToken {
			return begin, at, end
		}
		return 0, 0, end
	case hexOnly(s[begin:colon], minHex, true):
		return begin, at, end
	}
	return colon + 1, at, end
}

// minHex are the lengths from which hexadecimal text behind a name is masked:
// one that is surely a secret's, and one that may be.
const (
	minHex      = 16
	minMaybeHex = 32
)

// namedHex reports whether the run at s[from:to] is hexadecimal, or a UUID, in
// the segment of a path behind one that is named like a credential, and not
// like a list of them: /token/0a1b…, not /keys/0a1b….
func namedHex(s string, from, to int) bool {
	if from == 0 || s[from-1] != '/' {
		return false
	}
	name, before := nameBefore(s, 0, from-1)
	if before != 0 && before != '/' { // a part of an ARN, or of a word
		return false
	}
	switch nameOf(name) {
	case surely:
		return hexOnly(s[from:to], minHex, true)
	case maybe, inPath:
		return hexOnly(s[from:to], minMaybeHex, false)
	case notSecret, inQuery:
	}
	return false
}

// hexOnly reports whether s is at least this many hexadecimal digits, with an
// ending such as of a file or without.
func hexOnly(s string, least int, hyphens bool) bool {
	if i := strings.IndexByte(s, '.'); i >= 0 {
		s = s[:i]
	}
	if len(s) < least {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'f', c >= 'A' && c <= 'F':
		case c == '-' && hyphens:
		default:
			return false
		}
	}
	return true
}

// botToken is how much of run is before the token of a bot, botNUMBER:TOKEN; 0
// if it is none.
func botToken(run string) int {
	i := strings.IndexByte(run, ':')
	if i < 4 || !strings.HasPrefix(run, "bot") || len(run)-i-1 < minHex {
		return 0
	}
	for _, c := range []byte(run[3:i]) {
		if c < '0' || c > '9' {
			return 0
		}
	}
	return i + 1
}
