package audit

import "strings"

// Secrets that are known by the name in front of them. What looks random is
// masked wherever it stands; text of hexadecimal digits, or a word, is a secret
// only where a name says so: digests, commits and trace ids look alike.

// maxSecretName bounds the names that are looked at; of longer ones the end.
const maxSecretName = 32

// named says how sure a name is.
type named int

const (
	notSecret named = iota
	maybe           // of a query's parameter; in a path before 32 hexadecimal digits or more
	surely
)

// nameOf judges the name of a parameter, an option or a segment of a path. Case,
// underscores, hyphens and dots do not count.
func nameOf(name string) named {
	var buf [maxSecretName]byte
	n := len(buf)
	for i := len(name) - 1; i >= 0 && n > 0; i-- {
		c := name[i]
		switch {
		case c == '_' || c == '-' || c == '.':
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
	switch string(s) {
	case "key", "sig", "code", "auth", "hook", "hooks", "webhook", "incomingwebhook":
		return maybe
	case "pwd", "pass", "jwt":
		return surely
	}
	for _, end := range secretEnds {
		if len(s) >= len(end) && string(s[len(s)-len(end):]) == end {
			return surely
		}
	}
	return notSecret
}

//nolint:gochecknoglobals // a constant table
var secretEnds = [...]string{
	"token", "secret", "password", "passwd", "passphrase", "passcode", "apikey", "accesskey", "secretkey", "privatekey", "signature", "authorization", "sessionid", "phpsessid",
}

func nameChar(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c == '-' || c == '.'
}

// maskValues masks what stands behind name= where the name is a secret's,
// whatever it looks like: ?api_key=17, --password=x, ;jsessionid=0a1b.
func maskValues(s string) string {
	var b strings.Builder
	done := 0
	for i := strings.IndexByte(s, '='); i >= 0 && i < len(s); {
		from := i
		for from > done && nameChar(s[from-1]) {
			from--
		}
		before := byte(0)
		if from > 0 {
			before = s[from-1]
		}
		sure := nameOf(s[from:i])
		end := i + 1
		if sure == surely || sure == maybe && (before == '?' || before == '&') {
			end = valueEnd(s, i+1, before == '/' || before == ';')
			if v := s[i+1 : end]; v != "" && v != Mask {
				b.WriteString(s[done : i+1])
				b.WriteString(Mask)
				done = end
			}
		}
		next := strings.IndexByte(s[end:], '=')
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

// valueEnd is where a value ends that begins at s[i]. In quotes it ends with
// them; in a path with its segment.
func valueEnd(s string, i int, path bool) int {
	if i < len(s) && (s[i] == '"' || s[i] == '\'') {
		if end := strings.IndexByte(s[i+1:], s[i]); end >= 0 {
			return i + 1 + end + 1
		}
		return len(s)
	}
	for ; i < len(s); i++ {
		switch c := s[i]; {
		case c <= ' ' || c == '&' || c == '"' || c == '\'' || c == '`' || c == ';' || c == '|' || c == '<' || c == '>' || c == ')' || c == '#':
			return i
		case c == '/' && path:
			return i
		}
	}
	return i
}

// maskUserinfo masks the password of URLs: https://user:password@host.
func maskUserinfo(s string) string {
	var b strings.Builder
	done := 0
	for i := strings.Index(s, "://"); i >= 0; {
		from := i + 3
		end, at, colon := from, -1, -1
		for ; end < len(s) && s[end] > ' ' && s[end] != '/' && s[end] != '?' && s[end] != '#' && s[end] != '"' && s[end] != '\''; end++ {
			switch {
			case s[end] == '@':
				at = end
			case s[end] == ':' && colon < 0:
				colon = end
			}
		}
		if colon >= 0 && colon+1 < at && s[colon+1:at] != Mask {
			b.WriteString(s[done : colon+1])
			b.WriteString(Mask)
			done = at
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
		return bearer(s, from) && hexOnly(s[from:to], minHex, true)
	}
	begin := from - 1
	for begin > 0 && nameChar(s[begin-1]) {
		begin--
	}
	if begin > 0 && s[begin-1] != '/' { // a part of an ARN, or of a word
		return false
	}
	switch nameOf(s[begin : from-1]) {
	case surely:
		return hexOnly(s[from:to], minHex, true)
	case maybe:
		return hexOnly(s[from:to], minMaybeHex, false)
	case notSecret:
	}
	return false
}

// bearer reports whether what begins at s[from] stands behind "Bearer ".
func bearer(s string, from int) bool {
	const word = "bearer "
	return from >= len(word) && strings.EqualFold(s[from-len(word):from], word)
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
