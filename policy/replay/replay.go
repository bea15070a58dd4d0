package replay

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/policy/awsscope"
)

// Bounds of a [Replay].
const (
	maxExamples = 3
	maxGroups   = 20_000
)

// Options of a [Replay].
type Options struct {
	// PathOK says why a path is refused unless its rule has rawPaths
	// (destination.CheckPath); nil: none is.
	PathOK func(path string) error
	// Keep keeps records that would still be decided as they were, too.
	Keep func(r *audit.Record, now Outcome)
}

// Replay decides records again. It is not safe for concurrent use.
type Replay struct {
	bundle *api.Bundle
	set    *policy.Set
	opts   Options
	report Report
	groups map[string]*Change
	unsure map[string]*Unsure
}

// Report says what would change.
type Report struct {
	Requests int `json:"requests"` // records of requests that were read
	Same     int `json:"same"`
	Changed  int `json:"changed"`
	// NotDecided could not be decided again, see Unsure.
	NotDecided int      `json:"not_decided"`
	Changes    []Change `json:"changes"`
	Unsure     []Unsure `json:"unsure"`
	// MoreGroups counts changes beyond the groups that are kept apart.
	MoreGroups int       `json:"more_groups,omitempty"`
	First      time.Time `json:"first,omitzero"`
	Last       time.Time `json:"last,omitzero"`
	Version    string    `json:"version"` // of the documents
}

// Kinds of a [Change].
const (
	NewlyDenied  = "newly denied"
	NewlyAllowed = "newly allowed"
	Otherwise    = "otherwise" // another credential, scope, or an audit mode
)

// Change is what equal changes of decisions have in common.
type Change struct {
	Kind     string    `json:"kind"`
	Workload string    `json:"workload"`
	Method   string    `json:"method,omitempty"`
	Host     string    `json:"host"`
	Port     int       `json:"port"`
	Path     string    `json:"path,omitempty"` // a template of a rule, or the path with ids left out
	Was      Outcome   `json:"was"`
	Now      Outcome   `json:"now"`
	Count    int       `json:"count"`
	First    time.Time `json:"first"`
	Last     time.Time `json:"last"`
	Examples []string  `json:"examples"` // ids of records
}

// Unsure is why records could not be decided again.
type Unsure struct {
	Why      string    `json:"why"`
	Count    int       `json:"count"`
	First    time.Time `json:"first"`
	Last     time.Time `json:"last"`
	Examples []string  `json:"examples"`
}

// New returns a Replay by a bundle, which must compile.
func New(b *api.Bundle, o Options) (*Replay, error) {
	set, err := policy.Compile(b)
	if err != nil {
		return nil, err
	}
	return &Replay{bundle: b, set: set, opts: o, report: Report{Version: b.Version}, groups: map[string]*Change{}, unsure: map[string]*Unsure{}}, nil
}

// Add decides one record again. Records that are no requests are passed over.
func (p *Replay) Add(r *audit.Record) {
	if r.Request == nil || r.Decision == nil && r.Event != nil {
		return
	}
	p.report.Requests++
	p.report.First, p.report.Last = span(p.report.First, p.report.Last, r.Time)
	was, why := Was(r)
	if why != "" {
		p.notDecided(r, why)
		return
	}
	now, template, why := p.Decide(r)
	if why != "" {
		p.notDecided(r, why)
		return
	}
	if !changed(was, now) {
		p.report.Same++
		if p.opts.Keep != nil {
			p.opts.Keep(r, now)
		}
		return
	}
	p.report.Changed++
	p.change(r, was, now, template)
}

// Decide is what the documents say of a record, by which template. The last
// result says why that cannot be told.
func (p *Replay) Decide(r *audit.Record) (now Outcome, template, why string) {
	q, why := Of(r)
	if why != "" {
		return Outcome{}, "", why
	}
	d, lacks := p.set.DecideRecorded(q)
	if len(lacks) > 0 {
		return Outcome{}, "", "a rule looks at what records do not hold: " + strings.Join(lacks, ", ")
	}
	if d.Verdict == policy.Deny && p.byLabels(r) {
		return Outcome{}, "", "the provider is for namespaces with certain labels, which records do not hold"
	}
	now = Outcome{Verdict: d.Verdict.String(), Policy: d.Policy, Rule: d.Rule, WouldDeny: d.WouldDeny, Reason: d.Reason}
	if d.Verdict == policy.Inject {
		now.Provider = d.Grant.Provider
		if d.Grant.ScopeSource == "static" && d.Grant.AWS == nil {
			now.Scope = d.Grant.Scope
		}
	}
	if d.Verdict != policy.Deny && !d.RawPaths && p.opts.PathOK != nil && q.Protocol != policy.TLS {
		if err := p.opts.PathOK(q.Path); err != nil {
			return Outcome{Verdict: policy.Deny.String(), Policy: d.Policy, Rule: d.Rule, Reason: err.Error() + "; the rule has no rawPaths"}, d.PathTemplate, ""
		}
	}
	if d.Verdict == policy.Inject && d.Grant.AWS != nil {
		if denied, why := withinAWS(r, &d); why != "" {
			return Outcome{}, "", why
		} else if denied != "" {
			return Outcome{Verdict: policy.Deny.String(), Policy: d.Policy, Rule: d.Rule, Reason: denied}, d.PathTemplate, ""
		}
	}
	return now, d.PathTemplate, ""
}

// byLabels reports whether the provider that the call had is granted by labels
// of namespaces.
func (p *Replay) byLabels(r *audit.Record) bool {
	if r.Credential == nil {
		return false
	}
	g := p.bundle.Grants[r.Credential.Provider]
	return g != nil && g.Selector != nil
}

// withinAWS says why a session's policy does not allow what a call asked of
// AWS, or why that cannot be told.
func withinAWS(r *audit.Record, d *policy.Decision) (denied, why string) {
	access, why := AccessOf(r)
	if why != "" {
		return "", why
	}
	u := r.Credential.AWS
	call := awsscope.Call{Service: u.Service, Region: u.Region, Account: u.Account, Operation: u.Operation, Access: access}
	_, err := awsscope.Derive(call, d.Grant.AWS.Static, awsscope.GranularityRequest, awsscope.Options{})
	switch {
	case err == nil:
		return "", ""
	case errors.Is(err, awsscope.ErrNotAllowed):
		return "the rule's policy for AWS does not allow it: " + err.Error(), ""
	}
	return "", "what the call asks of AWS cannot be compared: " + err.Error()
}

// AccessOf is what a call asked of AWS, action by action.
func AccessOf(r *audit.Record) ([]awsscope.Access, string) {
	if r.Credential == nil || r.Credential.AWS == nil || len(r.Credential.ScopeAsked) == 0 {
		return nil, "what the call asked of AWS is not recorded"
	}
	by := map[string]*awsscope.Access{}
	var order []string
	for _, pair := range r.Credential.ScopeAsked {
		action, resource, ok := strings.Cut(pair, " ")
		if !ok || strings.HasSuffix(pair, cut) {
			return nil, "the call asked more of AWS than a record holds"
		}
		if by[action] == nil {
			by[action] = &awsscope.Access{Action: action}
			order = append(order, action)
		}
		by[action].Resources = append(by[action].Resources, awsscope.Pattern(resource))
	}
	out := make([]awsscope.Access, len(order))
	for i, a := range order {
		out[i] = *by[a]
	}
	return out, ""
}

func (p *Replay) notDecided(r *audit.Record, why string) {
	p.report.NotDecided++
	u := p.unsure[why]
	if u == nil {
		u = &Unsure{Why: why}
		p.unsure[why] = u
	}
	u.Count++
	u.First, u.Last = span(u.First, u.Last, r.Time)
	u.Examples = example(u.Examples, r.ID)
}

func (p *Replay) change(r *audit.Record, was, now Outcome, template string) {
	c := Change{Kind: Otherwise, Workload: r.Workload.ID, Method: r.Request.Method, Host: r.Request.Host, Port: r.Request.Port, Was: was, Now: now}
	switch {
	case was.Opens() && !now.Opens():
		c.Kind = NewlyDenied
	case !was.Opens() && now.Opens():
		c.Kind = NewlyAllowed
	}
	c.Path = cmp.Or(template, r.Request.PathTemplate, Shape(r.Request.Path))
	key := fmt.Sprintf("%s\x00%s\x00%s\x00%s\x00%d\x00%s\x00%s\x00%s\x00%s\x00%s\x00%s\x00%s", c.Kind, c.Workload, c.Method, c.Host, c.Port, c.Path,
		was, was.Policy, was.Rule, now, now.Policy, now.Rule)
	g := p.groups[key]
	if g == nil {
		if len(p.groups) >= maxGroups {
			p.report.MoreGroups++
			return
		}
		g = &c
		p.groups[key] = g
	}
	g.Count++
	g.First, g.Last = span(g.First, g.Last, r.Time)
	g.Examples = example(g.Examples, r.ID)
}

// Report is what was found so far, what was denied most often first.
func (p *Replay) Report() Report {
	r := p.report
	r.Changes, r.Unsure = []Change{}, []Unsure{}
	for _, k := range slices.Sorted(maps.Keys(p.groups)) {
		r.Changes = append(r.Changes, *p.groups[k])
	}
	kinds := []string{NewlyDenied, NewlyAllowed, Otherwise}
	slices.SortStableFunc(r.Changes, func(a, b Change) int {
		return cmp.Or(cmp.Compare(slices.Index(kinds, a.Kind), slices.Index(kinds, b.Kind)), cmp.Compare(b.Count, a.Count))
	})
	for _, k := range slices.Sorted(maps.Keys(p.unsure)) {
		r.Unsure = append(r.Unsure, *p.unsure[k])
	}
	slices.SortStableFunc(r.Unsure, func(a, b Unsure) int { return cmp.Compare(b.Count, a.Count) })
	return r
}

func span(first, last, t time.Time) (time.Time, time.Time) {
	if first.IsZero() || t.Before(first) {
		first = t
	}
	if t.After(last) {
		last = t
	}
	return first, last
}

func example(list []string, id string) []string {
	if len(list) < maxExamples {
		list = append(list, id)
	}
	return list
}
