package store

import (
	"context"
	"math"
	"slices"
	"strings"

	"github.com/attache-dev/attache/audit"
)

// plan is a query, sorted by what answers it: shapes, texts, names, or the
// records themselves.
type plan struct {
	q      *Query
	few    []audit.Term
	texts  []audit.Term
	names  []audit.Term
	rest   []audit.Term // only the record tells
	low    int64        // first microsecond
	high   int64        // first one beyond
	spaces []string     // lower case
	about  string       // if not empty: only records that go by this name; lower case
	open   bool         // a request without an end may match
}

func (d *DB) plan(q *Query) *plan {
	p := &plan{q: q, low: math.MinInt64, high: math.MaxInt64}
	if t := q.Filter.Since(); !t.IsZero() {
		p.low = t.UnixMicro()
	}
	if t := q.Filter.Until(); !t.IsZero() {
		p.high = t.UnixMicro()
	}
	for _, s := range q.Namespaces {
		p.spaces = append(p.spaces, strings.ToLower(s))
	}
	has := func(l []audit.Key, name string) bool {
		return slices.ContainsFunc(l, func(k audit.Key) bool { return k.Name == name })
	}
	for _, t := range q.Filter.Terms() {
		switch {
		case has(d.layout.few, t.Key):
			p.few = append(p.few, t)
		case has(d.layout.texts, t.Key):
			p.texts = append(p.texts, t)
		case has(d.layout.names, t.Key) && t.Whole() && !t.Not && !slices.ContainsFunc(t.Values, func(v string) bool { return len(v) > maxName }):
			p.names = append(p.names, t)
		default:
			p.rest = append(p.rest, t)
		}
	}
	p.open = d.layout.mayBeHalf(p.few)
	return p
}

// mayBeHalf reports whether a line whose other half is missing may match: it is of
// two types, and no event.
func (l *layout) mayBeHalf(terms []audit.Term) bool {
	for _, half := range []string{audit.TypeBegin, audit.TypeEnd} {
		r := &audit.Record{Type: half}
		if !slices.ContainsFunc(terms, func(t audit.Term) bool {
			i := slices.IndexFunc(l.few, func(k audit.Key) bool { return k.Name == t.Key })
			return (t.Key == "type" || t.Key == "event") && !t.MatchValues(l.few[i].Values(r))
		}) {
			return true
		}
	}
	return false
}

// matcher says which rows of one segment a plan matches.
type matcher struct {
	v      *view
	bases  []bool // by base: what is left
	shapes []bool // by shape: what is left
	forms  []formTerm
	rows   []uint32 // if not nil, only these, ascending
	named  bool     // rows is in force
	every  bool     // what is in rows is of a shape that is left
	doubt  bool     // a row that matches must be read to be sure
	people bool     // shapes of a base may differ in whether they are left
	about  []bool   // shapes that go by plan.about
	known  []uint32 // rows that go by plan.about, ascending
}

// formTerm is a term on texts, and what the forms say of it.
type formTerm struct {
	t     *audit.Term
	bases []formMatch // by base; nil: nothing
}

// match looks at the parts of a segment that the plan needs. It returns nil if
// no row can match.
func (p *plan) match(ctx context.Context, f fetcher, v *view) (*matcher, error) {
	m := &matcher{v: v, doubt: len(p.rest) > 0 || len(p.names) > 0}
	for i := range p.names {
		if err := p.matchNames(ctx, f, m, &p.names[i]); err != nil {
			return nil, err
		}
		if len(m.rows) == 0 {
			return nil, nil
		}
	}
	if err := p.matchBases(ctx, f, m); err != nil || !slices.Contains(m.bases, true) {
		return nil, err
	}
	if err := p.matchShapes(ctx, f, m); err != nil || !slices.Contains(m.shapes, true) {
		return nil, err
	}
	if p.about != "" {
		if err := p.matchAbout(ctx, f, m); err != nil {
			return nil, err
		}
		if m.named && len(m.rows) == 0 {
			return nil, nil
		}
	}
	m.every = len(m.forms) > 0 && p.about == "" && !m.people && m.byFormsAlone()
	for i := range m.forms {
		if m.forms[i].decides(m.bases) {
			m.every = false // whether a row matches this term, its shape says
			continue
		}
		ok, err := p.matchTexts(ctx, f, m, &m.forms[i])
		if err != nil || !ok {
			return nil, err
		}
	}
	return m, nil
}

// byFormsAlone reports whether only forms leave out bases: a row whose text
// matches is then of a base that is left, for forms leave out no text that
// matches.
func (m *matcher) byFormsAlone() bool {
	for b, left := range m.bases {
		if left {
			continue
		}
		if !slices.ContainsFunc(m.forms, func(t formTerm) bool { return t.bases != nil && t.bases[b] == formNo }) {
			return false
		}
	}
	return true
}

// decides reports whether the forms say of all that is left that it matches.
func (t *formTerm) decides(bases []bool) bool {
	if t.bases == nil {
		return false
	}
	for i, left := range bases {
		if left && t.bases[i] != formYes {
			return false
		}
	}
	return true
}

// matchBases applies the terms on few values that are not wide, and on the forms
// of texts.
func (p *plan) matchBases(ctx context.Context, f fetcher, m *matcher) error {
	x, err := m.v.base(ctx, f)
	if err != nil {
		return err
	}
	m.bases = make([]bool, x.n)
	for i := range m.bases {
		m.bases[i] = true
	}
	for i := range p.few {
		t := &p.few[i]
		if wide(t.Key) {
			continue
		}
		c, err := m.v.few(ctx, f, t.Key)
		if err != nil {
			return err
		}
		if c == nil {
			m.doubt = true
			continue
		}
		if err := c.keep(ctx, m.bases, t.MatchValues); err != nil {
			return err
		}
	}
	if !p.q.Filter.Types() {
		if err := m.must(ctx, f, "type", func(l []string) bool { return len(l) == 0 || l[0] != "epoch" && l[0] != audit.TypeHeartbeat }); err != nil {
			return err
		}
	}
	if p.q.Namespaces != nil {
		if err := m.must(ctx, f, "namespace", p.visible); err != nil {
			return err
		}
	}
	for i := range p.texts {
		if err := p.matchForms(ctx, f, m, &p.texts[i]); err != nil {
			return err
		}
	}
	return nil
}

// must applies what a segment cannot be without.
func (m *matcher) must(ctx context.Context, f fetcher, key string, ok func([]string) bool) error {
	c, err := m.v.few(ctx, f, key)
	if err != nil {
		return err
	}
	if c == nil {
		return damaged("segment %d has no column %s", m.v.id, key)
	}
	return c.keep(ctx, m.bases, ok)
}

// matchForms leaves out what a term on texts cannot match by the forms.
func (p *plan) matchForms(ctx context.Context, f fetcher, m *matcher, t *audit.Term) error {
	x := formTerm{t: t}
	c, err := m.v.few(ctx, f, formPrefix+t.Key)
	if err != nil {
		return err
	}
	if c != nil {
		verdicts, err := formVerdicts(ctx, t, c.values)
		if err != nil {
			return err
		}
		x.bases = make([]formMatch, len(c.codes))
		for i, code := range c.codes {
			x.bases[i] = verdicts[code]
			m.bases[i] = m.bases[i] && verdicts[code] != formNo
		}
	}
	m.forms = append(m.forms, x)
	return nil
}

// matchShapes applies the terms on wide keys to what the bases leave.
func (p *plan) matchShapes(ctx context.Context, f fetcher, m *matcher) error {
	x, err := m.v.base(ctx, f)
	if err != nil {
		return err
	}
	m.shapes = make([]bool, len(x.of))
	for i, b := range x.of {
		m.shapes[i] = m.bases[b]
	}
	for i := range p.few {
		t := &p.few[i]
		if !wide(t.Key) {
			continue
		}
		c, err := m.v.few(ctx, f, t.Key)
		if err != nil {
			return err
		}
		if c == nil {
			m.doubt = true
			continue
		}
		m.people = true
		if err := c.keep(ctx, m.shapes, t.MatchValues); err != nil {
			return err
		}
	}
	return nil
}

// visible reports whether a record of these namespaces may be seen.
func (p *plan) visible(namespaces []string) bool {
	return slices.ContainsFunc(namespaces, func(s string) bool { return s != "" && slices.Contains(p.spaces, strings.ToLower(s)) })
}

// keep leaves of what has codes those whose values are ok.
func (c *fewColumn) keep(ctx context.Context, left []bool, ok func([]string) bool) error {
	good := make([]bool, len(c.values))
	for i, v := range c.values {
		if err := ctx.Err(); err != nil {
			return err
		}
		good[i] = ok(parseList(v))
	}
	for i, code := range c.codes {
		left[i] = left[i] && good[code]
	}
	return nil
}

func (p *plan) matchNames(ctx context.Context, f fetcher, m *matcher, t *audit.Term) error {
	var l []uint32
	for _, v := range t.Values {
		rows, err := m.v.named(ctx, f, nameHash(v))
		if err != nil {
			return err
		}
		l = append(l, rows...)
	}
	slices.Sort(l)
	m.only(slices.Compact(l))
	return nil
}

// matchAbout finds what goes by a name: by the index of names, or as a person or
// a run, which shapes have.
func (p *plan) matchAbout(ctx context.Context, f fetcher, m *matcher) error {
	rows, err := m.v.named(ctx, f, nameHash(p.about))
	if err != nil {
		return err
	}
	m.doubt = true
	x, err := m.v.base(ctx, f)
	if err != nil {
		return err
	}
	m.about = make([]bool, len(m.shapes))
	some := false
	for _, key := range []string{"human", "run"} {
		c, err := m.v.few(ctx, f, key)
		if err != nil || c == nil {
			return err
		}
		good := make([]bool, len(c.values))
		for i, v := range c.values {
			good[i] = slices.ContainsFunc(parseList(v), func(s string) bool { return strings.ToLower(s) == p.about })
		}
		if !slices.Contains(good, true) {
			continue
		}
		for i := range m.about {
			is := good[c.of(x.of, i)]
			m.about[i] = m.about[i] || is
			some = some || is && m.shapes[i]
		}
	}
	if !some {
		m.about = nil
		m.only(rows)
		return nil
	}
	m.known = rows
	return nil
}

// only leaves these rows, which ascend.
func (m *matcher) only(l []uint32) {
	if m.named {
		l = slices.DeleteFunc(l, func(n uint32) bool { _, ok := slices.BinarySearch(m.rows, n); return !ok })
	}
	m.rows, m.named = l, true
}

// has reports whether the index matches row n, but for its time.
func (m *matcher) has(n int, shape uint32) bool {
	if m.named {
		if _, ok := slices.BinarySearch(m.rows, uint32(n)); !ok { //nolint:gosec // a row
			return false
		}
	}
	return m.row(n, shape)
}

// row is has of those rows that m names, if it does.
func (m *matcher) row(n int, shape uint32) bool {
	if m.every {
		return true
	}
	if !m.shapes[shape] {
		return false
	}
	if m.about != nil && !m.about[shape] {
		if _, ok := slices.BinarySearch(m.known, uint32(n)); !ok { //nolint:gosec // a row
			return false
		}
	}
	return true
}

// whole reports whether every row of the shapes that match does, so that
// tallies are the answer.
func (p *plan) whole(m *matcher) bool {
	return !m.doubt && !m.named && p.low <= m.v.low && m.v.high < p.high
}
