package awsscope

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// A Pattern is the text of an IAM resource: `*` and `?` are wildcards, and the
// same characters taken from a request stand as `${*}` and `${?}`, `$` as `${$}`.
type Pattern string

// Literal returns the pattern that matches s alone.
func Literal(s string) Pattern {
	if !strings.ContainsAny(s, "*?$") {
		return Pattern(s)
	}
	return Pattern(strings.NewReplacer("*", "${*}", "?", "${?}", "$", "${$}").Replace(s))
}

// checkValue refuses what cannot be said in a policy, or could be read
// otherwise by the server than by us.
func checkValue(what, s string) error {
	switch {
	case s == "":
		return fail(ErrMalformed, "%s is empty", what)
	case len(s) > 2048:
		return fail(ErrMalformed, "%s is longer than 2048 bytes", what)
	case !utf8.ValidString(s) || strings.ContainsRune(s, utf8.RuneError):
		return fail(ErrMalformed, "%s is not valid UTF-8", what)
	}
	for _, r := range s {
		if r < 0x20 || r == 0x7f {
			return fail(ErrMalformed, "%s has a control character", what)
		}
	}
	return nil
}

// Runes that stand for wildcards in a parsed pattern; no value has them, since
// they are outside Unicode.
const (
	anyMany rune = utf8.MaxRune + 1 + iota
	anyOne
)

// tokens parses a pattern; false if it has a policy variable.
func (p Pattern) tokens() ([]rune, bool) {
	s := string(p)
	out := make([]rune, 0, len(s))
	for s != "" {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == '*':
			r = anyMany
		case r == '?':
			r = anyOne
		case strings.HasPrefix(s, "${"):
			if len(s) < 4 || s[3] != '}' || !strings.ContainsRune("*?$", rune(s[2])) {
				return nil, false
			}
			r, n = rune(s[2]), 4
		}
		out = append(out, r)
		s = s[n:]
	}
	return out, true
}

// covers reports whether wide matches all that narrow matches. It may say no
// where the answer is yes, never the reverse.
func covers(wide, narrow []rune) bool {
	// Greedy glob matching in which narrow's wildcards are symbols of their
	// own: a star is only covered by a star, a ? by either. A ? covers ASCII
	// alone: evaluators count other characters differently (bytes, UTF-16).
	w, n, star, mark := 0, 0, -1, 0
	for n < len(narrow) {
		switch {
		case w < len(wide) && wide[w] == anyMany:
			star, mark = w, n
			w++
		case w < len(wide) && (wide[w] == narrow[n] || wide[w] == anyOne && narrow[n] < utf8.RuneSelf):
			w++
			n++
		case star >= 0:
			mark++
			w, n = star+1, mark
		default:
			return false
		}
	}
	for w < len(wide) && wide[w] == anyMany {
		w++
	}
	return w == len(wide)
}

// overlaps reports whether some string matches both. It may say yes where the
// answer is no, never the reverse.
func overlaps(a, b []rune) bool {
	// Reachable positions of b while walking a; closures over stars.
	cur := make([]bool, len(b)+1)
	cur[0] = true
	spread := func(set []bool) {
		for j := range b {
			if set[j] && b[j] == anyMany {
				set[j+1] = true
			}
		}
	}
	spread(cur)
	for _, r := range a {
		next := make([]bool, len(b)+1)
		for j, on := range cur {
			if !on {
				continue
			}
			if r == anyMany {
				for k := j; k <= len(b); k++ {
					next[k] = true
				}
				break
			}
			if j == len(b) {
				continue
			}
			switch {
			case b[j] == anyMany:
				next[j] = true
			case b[j] == anyOne || r == anyOne || b[j] == r:
				next[j+1] = true
			}
		}
		spread(next)
		cur = next
	}
	return cur[len(b)]
}

// arnParts splits at the first five colons.
func arnParts(s string) ([]string, bool) {
	p := strings.SplitN(s, ":", 6)
	return p, len(p) == 6 && p[0] == "arn"
}

// resourceCovers is covers for resources: part by part of the ARN, so that a
// star in one part never reaches into the next.
func resourceCovers(wide, narrow Pattern) bool {
	if wide == "*" {
		return true
	}
	w, ok := arnParts(string(wide))
	n, ok2 := arnParts(string(narrow))
	if !ok || !ok2 {
		return false
	}
	for i := range w {
		wt, ok := Pattern(w[i]).tokens()
		nt, ok2 := Pattern(n[i]).tokens()
		if !ok || !ok2 || !covers(wt, nt) {
			return false
		}
	}
	return true
}

// resourceOverlaps errs on the side of yes.
func resourceOverlaps(a, b Pattern) bool {
	at, ok := a.tokens()
	bt, ok2 := b.tokens()
	if !ok || !ok2 || overlaps(at, bt) {
		return true
	}
	wide := func(r rune) bool { return r >= utf8.RuneSelf && r <= utf8.MaxRune }
	return slices.Contains(at, anyOne) && slices.ContainsFunc(bt, wide) || slices.Contains(bt, anyOne) && slices.ContainsFunc(at, wide)
}
