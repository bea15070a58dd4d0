package audit

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Filter chooses records. The zero Filter matches every request and event, but
// not what only shows that the producer lives (epochs and heartbeats); those
// come when type: asks for them.
type Filter struct {
	terms        []clause
	since, until time.Time
	types        bool // a term speaks of type
}

// clause is one condition; all of a filter's terms must hold.
type clause struct {
	key    string                 // empty: free text
	field  func(*Record) []string // nil: free text
	values []string               // one must match; lower case
	not    bool
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

// fieldOf maps the keys of the query language to the texts they look at.
func fieldOf() map[string]func(*Record) []string {
	return map[string]func(*Record) []string{
		"id":        func(r *Record) []string { return []string{r.ID} },
		"epoch":     func(r *Record) []string { return []string{r.Epoch, r.BeginEpoch} },
		"owner":     func(r *Record) []string { return []string{r.Owner} },
		"workload":  onWorkload(func(w *Workload) []string { return []string{w.ID} }),
		"namespace": onWorkload(func(w *Workload) []string { return []string{w.Namespace} }),
		"run":       onWorkload(func(w *Workload) []string { return []string{w.RunID} }),
		"label":     onWorkload(labels),
		"exe": func(r *Record) []string {
			return fromPtr(r.Process, func(p *Process) []string { return []string{p.Exe} })
		},
		"human": func(r *Record) []string {
			return fromPtr(r.Human, func(h *Human) []string { return []string{h.Subject, h.Email} })
		},
		"task": func(r *Record) []string { return fromPtr(r.Task, func(t *Task) []string { return []string{t.ID} }) },
		"purpose": func(r *Record) []string {
			return fromPtr(r.Task, func(t *Task) []string { return []string{t.Purpose} })
		},
		"host":      onRequest(func(q *Request) []string { return []string{q.Host} }),
		"method":    onRequest(func(q *Request) []string { return []string{q.Method} }),
		"path":      onRequest(func(q *Request) []string { return []string{q.Path, q.PathTemplate} }),
		"protocol":  onRequest(func(q *Request) []string { return []string{q.Protocol} }),
		"door":      onRequest(func(q *Request) []string { return []string{q.Door} }),
		"trace":     onRequest(func(q *Request) []string { return []string{q.TraceID} }),
		"verdict":   onDecision(func(d *Decision) []string { return []string{d.Verdict} }),
		"policy":    onDecision(func(d *Decision) []string { return []string{d.Policy} }),
		"rule":      onDecision(func(d *Decision) []string { return []string{d.Rule} }),
		"code":      onDecision(func(d *Decision) []string { return []string{d.Code} }),
		"provider":  onUse(func(u *Use) []string { return []string{u.Provider} }),
		"kind":      onUse(func(u *Use) []string { return []string{u.Kind} }),
		"handle":    handles,
		"service":   onAWS(func(a *AWSUse) []string { return []string{a.Service} }),
		"operation": onAWS(func(a *AWSUse) []string { return []string{a.Operation} }),
		"resource":  onAWS(func(a *AWSUse) []string { return a.Resources }),
		"scope":     onUse(func(u *Use) []string { return append(slices.Clone(u.ScopeGranted), u.ScopeAsked...) }),
		"outcome":   onResult(func(s *Result) []string { return []string{s.Outcome} }),
		"status":    onResult(func(s *Result) []string { return []string{strconv.Itoa(s.Status)} }),
		"error":     onResult(func(s *Result) []string { return []string{s.ErrorKind} }),
		"event":     func(r *Record) []string { return fromPtr(r.Event, func(e *Event) []string { return []string{e.Name} }) },
		"type":      func(r *Record) []string { return []string{r.kind(), "all"} },
	}
}

func fromPtr[T any](p *T, f func(*T) []string) []string {
	if p == nil {
		return nil
	}
	return f(p)
}

func onWorkload(f func(*Workload) []string) func(*Record) []string {
	return func(r *Record) []string { return fromPtr(r.Workload, f) }
}

func onRequest(f func(*Request) []string) func(*Record) []string {
	return func(r *Record) []string { return fromPtr(r.Request, f) }
}

func onDecision(f func(*Decision) []string) func(*Record) []string {
	return func(r *Record) []string { return fromPtr(r.Decision, f) }
}

func onUse(f func(*Use) []string) func(*Record) []string {
	return func(r *Record) []string { return fromPtr(r.Credential, f) }
}

func onAWS(f func(*AWSUse) []string) func(*Record) []string {
	return onUse(func(u *Use) []string { return fromPtr(u.AWS, f) })
}

func onResult(f func(*Result) []string) func(*Record) []string {
	return func(r *Record) []string { return fromPtr(r.Result, f) }
}

func labels(w *Workload) []string {
	var l []string
	for k, v := range w.Labels {
		l = append(l, k+"="+v)
	}
	return l
}

// handles finds the issuance, the use and the revocation of a credential.
func handles(r *Record) []string {
	var l []string
	if r.Credential != nil && r.Credential.Handle != "" {
		l = append(l, r.Credential.Handle)
	}
	if r.Event != nil {
		l = append(l, r.Event.Fields["handle"])
	}
	return l
}

// kind is the word for a record's type in queries.
func (r *Record) kind() string {
	switch r.Type {
	case TypeBegin, TypeEnd:
		return "request"
	case TypeEpochOpen, TypeEpochEnd:
		return "epoch"
	default:
		return r.Type
	}
}

// FilterKeys returns the keys of the query language, sorted.
func FilterKeys() []string {
	return slices.Sorted(maps.Keys(withTimes(fieldOf())))
}

func withTimes(m map[string]func(*Record) []string) map[string]func(*Record) []string {
	m["since"], m["until"] = nil, nil
	return m
}

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
// now is what durations count back from. Errors are *QueryError.
func ParseFilter(query string, now time.Time) (Filter, error) {
	var f Filter
	if len(query) > maxQuery {
		return f, &QueryError{query, maxQuery, fmt.Sprintf("is longer than %d bytes", maxQuery)}
	}
	known := fieldOf()
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
		t, err := p.clause(known)
		if err != nil {
			return Filter{}, err
		}
		if t.key == "since" || t.key == "until" {
			if err := f.setTime(&p, start, t, now); err != nil {
				return Filter{}, err
			}
			continue
		}
		f.types = f.types || t.key == "type"
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

// clause parses one term at p.i, which is not a space.
func (p *parser) clause(known map[string]func(*Record) []string) (clause, error) {
	var t clause
	start := p.i
	if p.q[p.i] == '-' && p.i+1 < len(p.q) && !isSpace(p.q[p.i+1]) {
		t.not = true
		p.i++
	}
	key := p.i
	for p.i < len(p.q) && (p.q[p.i] >= 'a' && p.q[p.i] <= 'z' || p.q[p.i] >= 'A' && p.q[p.i] <= 'Z' || p.q[p.i] == '_') {
		p.i++
	}
	if p.i > key && p.i < len(p.q) && p.q[p.i] == ':' {
		t.key = strings.ToLower(p.q[key:p.i])
		t.field = known[t.key]
		if t.field == nil && t.key != "since" && t.key != "until" {
			return t, p.fail(key, "%q is no key; use one of %s, or quotes around the word", t.key, strings.Join(FilterKeys(), ", "))
		}
		p.i++
	} else {
		p.i = key
	}
	for {
		at := p.i
		v, err := p.value(t.key != "")
		if err != nil {
			return t, err
		}
		if v == "" {
			return t, p.fail(at, "a value is missing after %q", p.q[start:at])
		}
		t.values = append(t.values, strings.ToLower(v))
		if t.key == "" || p.i == len(p.q) || p.q[p.i] != ',' {
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

func (f *Filter) setTime(p *parser, at int, t clause, now time.Time) error {
	if t.not || len(t.values) != 1 {
		return p.fail(at, "%s: takes one time and no minus", t.key)
	}
	when, ok := parseWhen(strings.ToUpper(t.values[0]), now)
	if !ok {
		return p.fail(at, "%s: %q is no time; write 90m, 24h, 7d, 2006-01-02 or 2006-01-02T15:04:05Z", t.key, t.values[0])
	}
	if t.key == "since" {
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
	if !f.since.IsZero() && r.Time.Before(f.since) || !f.until.IsZero() && !r.Time.Before(f.until) {
		return false
	}
	if len(f.terms) == 0 {
		return true
	}
	for i := range f.terms {
		t := &f.terms[i]
		if t.match(r) == t.not {
			return false
		}
	}
	return true
}

func (t *clause) match(r *Record) bool {
	if t.field == nil {
		return anyText(reflect.ValueOf(r).Elem(), func(s string) bool {
			return strings.Contains(strings.ToLower(s), t.values[0])
		})
	}
	for _, text := range t.field(r) {
		text = strings.ToLower(text)
		for _, v := range t.values {
			if glob(v, text) || t.key == "status" && statusClass(v, text) {
				return true
			}
		}
	}
	return false
}

// statusClass matches 4xx.
func statusClass(pattern, status string) bool {
	return len(pattern) == 3 && pattern[1:] == "xx" && len(status) == 3 && status[0] == pattern[0]
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
