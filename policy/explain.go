package policy

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/attache-dev/attache/api"
)

// maxExplained bounds the rules that the text of an [Explanation] lists.
const maxExplained = 20

// Explanation says how a decision came about.
type Explanation struct {
	Verdict      string           `json:"verdict"`
	Policy       string           `json:"policy,omitempty"`
	Rule         string           `json:"rule,omitempty"`
	Position     *api.Position    `json:"position,omitempty"` // of the rule
	Reason       string           `json:"reason"`
	PathTemplate string           `json:"pathTemplate,omitempty"`
	WouldDeny    bool             `json:"wouldDeny,omitempty"`
	Credential   *ExplainedGrant  `json:"credential,omitempty"` // for inject
	Version      string           `json:"version,omitempty"`
	Candidates   []ExplainedMatch `json:"candidates"` // most specific first
	Decision     Decision         `json:"-"`
}

// ExplainedGrant is the credential that would be minted.
type ExplainedGrant struct {
	Provider             string          `json:"provider"`
	Scope                []string        `json:"scope,omitempty"`
	ScopeSource          string          `json:"scopeSource"`
	Audience             string          `json:"audience,omitempty"`
	Resources            []string        `json:"resources,omitempty"`
	Role                 string          `json:"role,omitempty"`
	AuthorizationDetails json.RawMessage `json:"authorizationDetails,omitempty"`
	TTL                  string          `json:"ttl"`
	AWS                  *ExplainedAWS   `json:"aws,omitempty"` // for an aws provider
}

// ExplainedMatch is one rule whose host pattern fits the request.
type ExplainedMatch struct {
	Policy   string       `json:"policy"`
	Rule     string       `json:"rule"`
	Position api.Position `json:"position"`
	Audit    bool         `json:"audit,omitempty"` // the policy is in audit mode
	Action   string       `json:"action"`
	Host     string       `json:"host"`
	Path     string       `json:"path,omitempty"`
	Matched  bool         `json:"matched"`
	// Mismatch is the first reason why the rule does not match.
	Mismatch string `json:"mismatch,omitempty"`
	Winner   bool   `json:"winner,omitempty"`
}

// Explain decides r as [Set.Decide] does and says why, with every rule whose
// host fits. It is for people who write policies: unlike a refusal it also
// shows rules for other workloads.
func (s *Set) Explain(r *Request) Explanation {
	d := s.Decide(r)
	x := Explanation{
		Verdict: d.Verdict.String(), Policy: d.Policy, Rule: d.Rule, Reason: d.Reason, PathTemplate: d.PathTemplate,
		WouldDeny: d.WouldDeny, Version: d.Version, Candidates: []ExplainedMatch{}, Decision: d,
	}
	if d.Verdict == Inject {
		x.Credential = explainGrant(d.Grant)
	}
	q, refused := s.begin(r)
	if refused != "" {
		return x
	}
	defer s.end(&q)
	for _, v := range s.candidates(&q) {
		m := s.explain(&q, v)
		if m.Winner = m.Matched && x.Position == nil && v.policy.name == d.Policy && v.name == d.Rule; m.Winner {
			x.Position = &m.Position
		}
		x.Candidates = append(x.Candidates, m)
	}
	return x
}

// candidates lists the variants of every fitting host pattern, one for each
// rule: the most specific that fits the path, or the most specific.
func (s *Set) candidates(q *search) []*variant {
	var list []*variant
	for _, b := range s.hosts.find(q.r.Host, nil) {
		list = append(list, b.all...)
	}
	slices.SortStableFunc(list, func(a, b *variant) int {
		return cmp.Or(cmp.Compare(b.rank, a.rank), cmp.Compare(a.order, b.order))
	})
	chosen := map[*rule]*variant{}
	for _, v := range list {
		if old := chosen[v.rule]; old == nil || !old.path.matches(q.path) && v.path.matches(q.path) {
			chosen[v.rule] = v
		}
	}
	return slices.DeleteFunc(list, func(v *variant) bool { return chosen[v.rule] != v })
}

func (s *Set) explain(q *search, v *variant) ExplainedMatch {
	m := ExplainedMatch{
		Policy: v.policy.name, Rule: v.name, Position: v.rule.position, Audit: v.policy.audit,
		Action: v.action, Host: v.host.source, Path: v.template(),
	}
	how, err := q.match(v)
	if how > mismatchPath && q.r.Protocol != TLS && !v.path.matches(q.path) {
		how = mismatchPath
	}
	switch {
	case how == matched && err != nil:
		m.Matched, m.Mismatch = true, "its condition could not be evaluated, which counts as true for a deny rule: "+bounded(err.Error())
	case how == matched:
		m.Matched = true
	default:
		m.Mismatch = v.lacks(how, err)
	}
	return m
}

func explainGrant(g Grant) *ExplainedGrant {
	x := &ExplainedGrant{
		Provider: g.Provider, Scope: g.Scope, ScopeSource: g.ScopeSource, Audience: g.Audience,
		Resources: g.Resources, Role: g.Role, TTL: g.TTL.String(), AWS: explainAWS(g.AWS),
	}
	if g.AuthorizationDetails != "" {
		x.AuthorizationDetails = json.RawMessage(g.AuthorizationDetails)
	}
	return x
}

// String is the explanation for people, several lines long.
func (x Explanation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", strings.ToUpper(x.Verdict))
	if x.WouldDeny {
		b.WriteString(" (audit mode: would deny)")
	}
	if x.Rule != "" {
		fmt.Fprintf(&b, " by rule %q of policy %q", x.Rule, x.Policy)
	}
	if x.Position != nil && x.Position.File != "" {
		fmt.Fprintf(&b, " at %s", x.Position)
	}
	fmt.Fprintf(&b, "\n  why         %s\n", x.Reason)
	if x.PathTemplate != "" {
		fmt.Fprintf(&b, "  path        %s\n", x.PathTemplate)
	}
	if g := x.Credential; g != nil {
		g.write(&b)
	}
	if len(x.Candidates) == 0 {
		b.WriteString("  rules       none names this host\n")
		return b.String()
	}
	b.WriteString("  rules for this host, most specific first\n")
	for i, m := range x.Candidates {
		if i >= maxExplained && !m.Matched {
			continue
		}
		m.write(&b)
	}
	if n := len(x.Candidates) - maxExplained; n > 0 {
		fmt.Fprintf(&b, "    … of %d more, only those that match are shown\n", n)
	}
	return b.String()
}

func (g *ExplainedGrant) write(b *strings.Builder) {
	fmt.Fprintf(b, "  credential  provider %s, ttl %s\n", g.Provider, g.TTL)
	if len(g.Scope) > 0 {
		fmt.Fprintf(b, "  scope       %s (%s)\n", strings.Join(g.Scope, " "), g.ScopeSource)
	}
	for _, f := range []struct{ name, value string }{
		{"audience", g.Audience}, {"resources", strings.Join(g.Resources, " ")}, {"role", g.Role},
		{"details", string(g.AuthorizationDetails)},
	} {
		if f.value != "" {
			fmt.Fprintf(b, "  %-11s %s\n", f.name, f.value)
		}
	}
	if g.AWS != nil {
		g.AWS.write(b)
	}
}

func (m *ExplainedMatch) write(b *strings.Builder) {
	mark := "-"
	switch {
	case m.Winner:
		mark = "*"
	case m.Matched:
		mark = "+"
	}
	fmt.Fprintf(b, "    %s %s/%s: %s %s%s", mark, m.Policy, m.Rule, m.Action, m.Host, m.Path)
	if m.Audit {
		b.WriteString(" [audit]")
	}
	switch {
	case m.Winner:
		b.WriteString(": decides")
	case m.Matched && m.Mismatch == "":
		b.WriteString(": matches, but does not decide")
	}
	if m.Mismatch != "" {
		b.WriteString(": " + m.Mismatch)
	}
	b.WriteByte('\n')
}
