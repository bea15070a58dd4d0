package audit

import (
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"strings"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// Mask stands in a record for what was taken out.
const Mask = "***"

// Redactor takes secrets out of a record before it is written: secrets that an
// agent, or an API, puts into a path, a parameter's name, a statement or a
// command. Credentials of ours never come there. The zero Redactor masks what
// looks like a token, and literals of SQL. It is safe for concurrent use.
type Redactor struct {
	patterns     []*regexp.Regexp
	keepTokens   bool
	keepLiterals bool
}

// NewRedactor compiles the rules of the configuration. The error names the
// field.
func NewRedactor(c v1alpha1.AuditRedact) (*Redactor, error) {
	r := &Redactor{keepTokens: c.Tokens == v1alpha1.RedactKeep, keepLiterals: c.SQLLiterals == v1alpha1.RedactKeep}
	for i, p := range c.Patterns {
		re, err := regexp.Compile(p)
		if err != nil {
			return nil, fmt.Errorf("spec.audit.redact.patterns[%d]: %w", i, err)
		}
		if re.MatchString("") {
			return nil, fmt.Errorf("spec.audit.redact.patterns[%d]: matches the empty text; name what it must find", i)
		}
		r.patterns = append(r.patterns, re)
	}
	return r, nil
}

// redact changes what r says. Sections that change are copied: the caller goes
// on with its own.
func (x *Redactor) redact(r *Record) {
	if q := r.Request; q != nil {
		path := x.Text(q.Path)
		keys := x.list(q.QueryKeys)
		if path != q.Path || keys != nil {
			c := *q
			c.Path = path
			if keys != nil {
				c.QueryKeys = keys
			}
			r.Request = &c
		}
	}
	if d := r.Decision; d != nil {
		if s := x.Text(d.Reason); s != d.Reason {
			c := *d
			c.Reason = s
			r.Decision = &c
		}
	}
	if u := r.Credential; u != nil && u.AWS != nil {
		if l := x.list(u.AWS.Resources); l != nil {
			c, a := *u, *u.AWS
			a.Resources, c.AWS = l, &a
			r.Credential = &c
		}
	}
	if q := r.SQL; q != nil && q.Statement != "" {
		s := q.Statement
		if !x.keepLiterals {
			s = MaskSQL(q.Engine, s)
		}
		if s = x.text(s, false); s != q.Statement {
			c := *q
			c.Statement = s
			r.SQL = &c
		}
	}
	if e := r.Event; e != nil {
		r.Event = x.event(e)
	}
	if c := r.Change; c != nil {
		if text, diff := x.document(c.Text), x.document(c.Diff); text != c.Text || diff != c.Diff {
			n := *c
			n.Text, n.Diff = text, diff
			r.Change = &n
		}
	}
	if h := r.SSH; h != nil {
		if s := x.Text(h.Command); s != h.Command {
			c := *h
			c.Command = s
			r.SSH = &c
		}
	}
}

// event masks the fields of an event that hold what somebody else wrote. Others
// are ours: hashes, signatures and ids, which look random and must stay.
func (x *Redactor) event(e *Event) *Event {
	out := e
	for _, k := range []string{"path", "reason", "error", "query", "page"} {
		v, ok := e.Fields[k]
		if !ok {
			continue
		}
		if s := x.Text(v); s != v {
			if out == e {
				out = &Event{Name: e.Name, Fields: maps.Clone(e.Fields)}
			}
			out.Fields[k] = s
		}
	}
	return out
}

// list masks each element; nil where none changes.
func (x *Redactor) list(l []string) []string {
	for i, s := range l {
		if x.Text(s) == s {
			continue
		}
		out := append([]string(nil), l...)
		for j := i; j < len(out); j++ {
			out[j] = x.Text(out[j])
		}
		return out
	}
	return nil
}

// Text masks what the patterns match, what looks like a token, and what a name
// says to be one.
func (x *Redactor) Text(s string) string { return x.text(s, true) }

// text is Text, or without what names say: in a statement they are columns.
func (x *Redactor) text(s string, names bool) string {
	for _, re := range x.patterns {
		s = re.ReplaceAllString(s, Mask)
	}
	if x.keepTokens {
		return s
	}
	if names && hasNames(s) {
		if strings.Contains(s, "://") {
			s = maskUserinfo(s)
		}
		s = maskValues(s)
	}
	var b strings.Builder
	done := 0
	for i := 0; i < len(s); {
		if charClass[s[i]] == 0 {
			i++
			continue
		}
		from, seen := i, byte(0)
		for i < len(s) && charClass[s[i]] != 0 {
			seen |= charClass[s[i]]
			i++
		}
		// Nearly all runs end here: they are short, or words.
		if i-from < minToken || seen&isDigit == 0 && !firstByte[s[from]] {
			continue
		}
		keep, secret := tokenIn(s[from:i])
		if secret || names && namedHex(s, from, i) {
			b.WriteString(s[done : from+keep])
			b.WriteString(Mask)
			done = i
		}
	}
	if done == 0 {
		return s
	}
	return b.String() + s[done:]
}

// minToken is the length below which nothing is taken for a token.
const minToken = 16

// Classes of the bytes of a token; in a path it is percent-encoded, too.
const (
	isOther = 1 << iota
	isDigit
	isLetter
)

//nolint:gochecknoglobals // constant tables
var (
	charClass = func() (t [256]byte) {
		for c := range 256 {
			switch {
			case c >= '0' && c <= '9':
				t[c] = isDigit
			case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z':
				t[c] = isLetter
			case strings.IndexByte("-_.:~+%", byte(c)) >= 0:
				t[c] = isOther
			}
		}
		return t
	}()
	// firstByte has the first bytes of known tokens.
	firstByte = func() (t [256]bool) {
		for _, k := range known {
			t[k.prefix[0]] = true
		}
		return t
	}()
)

// known are beginnings of tokens that issuers document, with the least length
// of the whole.
//
//nolint:gochecknoglobals // a constant table
var known = []struct {
	prefix string
	least  int
}{
	{"ghp_", 20}, {"gho_", 20}, {"ghu_", 20}, {"ghs_", 20}, {"ghr_", 20}, {"github_pat_", 24}, {"glpat-", 20}, {"gloas-", 20},
	{"xoxb-", 16}, {"xoxp-", 16}, {"xoxa-", 16}, {"xoxe-", 16}, {"xoxs-", 16}, {"xapp-", 16},
	{"sk-", 24}, {"sk_live_", 20}, {"sk_test_", 20}, {"rk_live_", 20}, {"rk_test_", 20}, {"whsec_", 20},
	{"ya29.", 20}, {"AIza", 35}, {"GOCSPX-", 24}, {"SG.", 40}, {"hf_", 24}, {"npm_", 24}, {"pypi-", 24}, {"dop_v1_", 32},
	{"shpat_", 24}, {"shpss_", 24}, {"hvs.", 24}, {"hvb.", 24}, {"tskey-", 20}, {"lin_api_", 20}, {"ntn_", 24}, {"secret_", 24},
	{"figd_", 24}, {"dckr_pat_", 24}, {"PMAK-", 24}, {"sbp_", 24}, {"AGE-SECRET-KEY-", 24},
}

// tokenIn reports whether run is, or ends in, a token, and how much of it does
// not belong to that.
func tokenIn(run string) (keep int, secret bool) {
	text := run
	if strings.IndexByte(run, '%') >= 0 {
		if u, err := url.PathUnescape(run); err == nil {
			text = u
		}
	}
	if firstByte[text[0]] {
		for _, k := range known {
			if len(text) >= k.least && strings.HasPrefix(text, k.prefix) {
				return len(k.prefix), true
			}
		}
	}
	// A JWS or JWE: its head is JSON.
	if strings.HasPrefix(text, "eyJ") && strings.Count(text, ".") >= 2 {
		return 0, true
	}
	if keep := botToken(text); keep > 0 {
		if len(text) != len(run) {
			keep = 0
		}
		return keep, true
	}
	// Telegram's botNUMBER:TOKEN, and every other NAME:TOKEN.
	if i := strings.LastIndexByte(text, ':'); i > 0 && random(text[i+1:]) {
		if len(text) == len(run) {
			return i + 1, true
		}
		return 0, true
	}
	// A file's name has an ending, which is not of the token.
	stem, _, _ := strings.Cut(text, ".")
	if random(text) || len(stem) < len(text) && random(stem) {
		return 0, true
	}
	return 0, false
}

// random reports whether s looks like random letters and digits. Digests and
// UUIDs, which are hexadecimal, are no secrets as a rule, and stay.
func random(s string) bool {
	const least, leastLower = 20, 24
	if len(s) < least {
		return false
	}
	var upper, lower, digit, hex, turns, others, words int
	last, distinct := 0, 0
	var seen [2]uint64 // bytes of s; those of a token are ASCII
	for i := range len(s) {
		c := s[i]
		class := 0
		switch {
		case c >= '0' && c <= '9':
			digit++
			class = 1
		case c >= 'a' && c <= 'z':
			lower++
			class = 2
		case c >= 'A' && c <= 'Z':
			upper++
			class = 3
		default:
			others++
		}
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c == '-' {
			hex++
		}
		if class != 0 && class != last {
			turns++
			last = class
			if class == 2 {
				words++
			}
		}
		if bit := uint64(1) << (c & 63); seen[c>>6&1]&bit == 0 {
			seen[c>>6&1] |= bit
			distinct++
		}
	}
	n := len(s) - others
	switch {
	case hex == len(s), others*6 > len(s), distinct < 10:
		return false
	case upper > 0 && lower > 0 && digit > 0:
		// Words turn at most twice each, and are longer than three letters of the
		// 62 by chance.
		return turns*10 >= n*3 && lower*10 <= words*31
	case digit > 0 && others == 0 && len(s) >= leastLower:
		return turns*10 >= n*3 && digit*6 >= n
	default:
		return false
	}
}
