package audit

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Filter chooses records. The zero Filter matches every request and event, but
// not what only shows that the producer lives (epochs and heartbeats); those
// come when type: asks for them. Times count in microseconds, as records do.
type Filter struct {
	terms        []Term
	since, until time.Time
	types        bool // a term speaks of type
}

// Term is one condition; all of a filter's terms must hold.
type Term struct {
	Key    string   // as in [Keys], not an alias; empty: free text
	Values []string // one must match; lower case
	Not    bool     // the condition is that none matches

	values func(*Record) []string // nil: free text
}

// QueryError is a mistake in a query.
type QueryError struct {
	Query  string
	Offset int // in bytes
	Text   string
}

// Error implements error, and points at the place.
func (e *QueryError) Error() string {
	return fmt.Sprintf("audit query, column %d: %s", e.Offset+1, e.Text)
}

const (
	maxQuery = 4096 // bytes
	maxTerms = 64
)

// ParseFilter parses a query: terms between spaces, all of which must hold.
//
//	key:value        the field is value; * stands for any text, case is ignored
//	key:a,b          the field is a or b
//	key:"two words"  quotes keep spaces and commas
//	-key:value       the field is not value
//	status:4xx       any status from 400 to 499
//	since:24h        not older than that; also 7d, 2006-01-02, RFC 3339
//	until:…          older than that
//	word             some field contains word
//
// Keys and their aliases are those of [Keys].
//
// now is what durations count back from. Errors are *QueryError.
func ParseFilter(query string, now time.Time) (Filter, error) {
	var f Filter
	if len(query) > maxQuery {
		return f, &QueryError{query, maxQuery, fmt.Sprintf("is longer than %d bytes", maxQuery)}
	}
	known := keyTable()
	p := parser{q: query}
	for {
		p.spaces()
		if p.i == len(query) {
			return f, nil
		}
		start := p.i
		if len(f.terms) == maxTerms {
			return Filter{}, p.fail(start, "has more than %d terms", maxTerms)
		}
		t, err := p.term(known)
		if err != nil {
			return Filter{}, err
		}
		if t.Key == "since" || t.Key == "until" {
			if err := f.setTime(&p, start, t, now); err != nil {
				return Filter{}, err
			}
			continue
		}
		f.types = f.types || t.Key == "type"
		f.terms = append(f.terms, t)
	}
}

type parser struct {
	q string
	i int
}

func (p *parser) fail(at int, format string, args ...any) error {
	return &QueryError{p.q, at, fmt.Sprintf(format, args...)}
}

func (p *parser) spaces() {
	for p.i < len(p.q) && isSpace(p.q[p.i]) {
		p.i++
	}
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

// term parses one at p.i, which is not a space.
func (p *parser) term(known map[string]Key) (Term, error) {
	var t Term
	start := p.i
	if p.q[p.i] == '-' && p.i+1 < len(p.q) && !isSpace(p.q[p.i+1]) {
		t.Not = true
		p.i++
	}
	key := p.i
	for p.i < len(p.q) && (p.q[p.i] >= 'a' && p.q[p.i] <= 'z' || p.q[p.i] >= 'A' && p.q[p.i] <= 'Z' || p.q[p.i] == '_') {
		p.i++
	}
	if p.i > key && p.i < len(p.q) && p.q[p.i] == ':' {
		k, ok := known[strings.ToLower(p.q[key:p.i])]
		if !ok {
			return t, p.fail(key, "%q is no key; use one of %s, or quotes around the word", p.q[key:p.i], strings.Join(FilterKeys(), ", "))
		}
		t.Key, t.values = k.Name, k.Values
		p.i++
	} else {
		p.i = key
	}
	for {
		at := p.i
		v, err := p.value(t.Key != "")
		if err != nil {
			return t, err
		}
		if v == "" {
			return t, p.fail(at, "a value is missing after %q", p.q[start:at])
		}
		t.Values = append(t.Values, oneStar(strings.ToLower(v)))
		if t.Key == "" || p.i == len(p.q) || p.q[p.i] != ',' {
			return t, nil
		}
		p.i++
	}
}

// value parses a bare or quoted value; commas end a bare one in a list.
func (p *parser) value(list bool) (string, error) {
	if p.i < len(p.q) && p.q[p.i] == '"' {
		start := p.i
		end := strings.IndexByte(p.q[start+1:], '"')
		if end < 0 {
			return "", p.fail(start, "the quote is not closed")
		}
		p.i = start + 1 + end + 1
		if p.i < len(p.q) && !isSpace(p.q[p.i]) && p.q[p.i] != ',' {
			return "", p.fail(p.i, "a space is missing after the quote")
		}
		return p.q[start+1 : start+1+end], nil
	}
	start := p.i
	for p.i < len(p.q) && !isSpace(p.q[p.i]) && (!list || p.q[p.i] != ',') {
		p.i++
	}
	return p.q[start:p.i], nil
}

func (f *Filter) setTime(p *parser, at int, t Term, now time.Time) error {
	if t.Not || len(t.Values) != 1 {
		return p.fail(at, "%s: takes one time and no minus", t.Key)
	}
	when, ok := parseWhen(strings.ToUpper(t.Values[0]), now)
	if !ok {
		return p.fail(at, "%s: %q is no time; write 90m, 24h, 7d, 2006-01-02 or 2006-01-02T15:04:05Z", t.Key, t.Values[0])
	}
	when = when.Truncate(time.Microsecond)
	if t.Key == "since" {
		f.since = when
	} else {
		f.until = when
	}
	return nil
}

func parseWhen(s string, now time.Time) (time.Time, bool) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, true
	}
	if t, err := time.ParseInLocation(time.DateOnly, s, now.Location()); err == nil {
		return t, true
	}
	s = strings.ToLower(s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return now.AddDate(0, 0, -int(n)), true
		}
	}
	d, err := time.ParseDuration(s)
	return now.Add(-d), err == nil && d >= 0
}

// Match reports whether f matches r.
func (f *Filter) Match(r *Record) bool {
	if !f.types && (r.kind() == "epoch" || r.Type == TypeHeartbeat) {
		return false
	}
	t := r.Time.Truncate(time.Microsecond)
	if !f.since.IsZero() && t.Before(f.since) || !f.until.IsZero() && !t.Before(f.until) {
		return false
	}
	for i := range f.terms {
		if !f.terms[i].Match(r) {
			return false
		}
	}
	return true
}

// Terms returns the conditions of f but for times. The caller must not change
// them.
func (f *Filter) Terms() []Term { return f.terms }

// Since and Until bound the time, Until exclusively; zero where they do not.
func (f *Filter) Since() time.Time { return f.since }

// Until is the end of the time that f matches; see [Filter.Since].
func (f *Filter) Until() time.Time { return f.until }

// Range returns Since and Until.
func (f *Filter) Range() (since, until time.Time) { return f.since, f.until }

// WithoutSince returns f over all time before its until.
func (f *Filter) WithoutSince() Filter {
	g := *f
	g.since = time.Time{}
	return g
}

// With returns f with one more condition: key, a name of [Keys], has this value,
// in which a star stands for any text.
func (f Filter) With(key, value string) (Filter, error) {
	k, ok := keyTable()[key]
	if !ok || k.Values == nil || value == "" || len(value) > maxQuery || len(f.terms) == maxTerms {
		return f, fmt.Errorf("audit query: %q: %q is no condition", clamp(key, maxWord), clamp(value, maxWord))
	}
	f.terms = append(slices.Clone(f.terms), Term{Key: k.Name, Values: []string{oneStar(strings.ToLower(value))}, values: k.Values})
	f.types = f.types || k.Name == "type"
	return f, nil
}

// Types reports whether f speaks of type:. If not, epochs and heartbeats are
// left out.
func (f *Filter) Types() bool { return f.types }

// Match reports whether r meets the condition.
func (t *Term) Match(r *Record) bool {
	if t.values == nil {
		return t.Not != anyText(reflect.ValueOf(r).Elem(), func(s string) bool {
			return strings.Contains(strings.ToLower(s), t.Values[0])
		})
	}
	return t.MatchValues(t.values(r))
}

// MatchValues reports whether a record whose values of Key are these meets the
// condition. It is not for free text.
func (t *Term) MatchValues(values []string) bool {
	for _, text := range values {
		text = strings.ToLower(text)
		for _, v := range t.Values {
			if glob(v, text) || t.Key == "status" && statusClass(v, text) {
				return !t.Not
			}
		}
	}
	return t.Not
}

// Whole reports whether the condition asks for whole values: none has a star.
func (t *Term) Whole() bool {
	return t.Key != "" && !slices.ContainsFunc(t.Values, func(v string) bool { return strings.Contains(v, "*") })
}

// statusClass matches 4xx.
func statusClass(pattern, status string) bool {
	return len(pattern) == 3 && pattern[1:] == "xx" && len(status) == 3 && status[0] == pattern[0]
}

// oneStar makes one star of stars that stand together: they mean the same, and
// each costs.
func oneStar(pattern string) string {
	for strings.Contains(pattern, "**") {
		pattern = strings.ReplaceAll(pattern, "**", "*")
	}
	return pattern
}

// glob matches text against a pattern in which * stands for any text. It takes
// time in proportion to their product at most.
func glob(pattern, text string) bool {
	star, mark, p, i := -1, 0, 0, 0
	for i < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && pattern[p] == text[i]:
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// anyText reports whether f holds for some text in v.
func anyText(v reflect.Value, f func(string) bool) bool {
	switch v.Kind() {
	case reflect.String:
		return v.Len() > 0 && f(v.String())
	case reflect.Pointer:
		return !v.IsNil() && anyText(v.Elem(), f)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() && anyText(v.Field(i), f) {
				return true
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			if anyText(v.Index(i), f) {
				return true
			}
		}
	case reflect.Map:
		for k, x := range v.Seq2() {
			if anyText(k, f) || anyText(x, f) {
				return true
			}
		}
	default: // numbers and flags have keys of their own
	}
	return false
}
