// Package suggest writes the narrowest policy that still allows what an agent
// was seen to use.
//
// It starts from the rules that allowed the calls, with their conditions and
// obligations, and narrows hosts, ports, methods, protocols and paths to those
// that records name; paths that differ in ids become templates. What was denied
// is never opened. The result is compiled and asked about every call that went
// into it before it is given out.
package suggest

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/policy/replay"
)

// Bounds: the different calls that one suggestion is made of, and the rules that
// a document may have.
const (
	maxUses  = 100_000
	maxRules = 1024
)

// ErrNothing is matched where there is nothing to suggest a rule for.
var ErrNothing = errors.New("nothing to suggest")

// ErrTooMany is matched by more different calls than a suggestion is made of.
var ErrTooMany = errors.New("too many different calls; narrow the query")

// Options of a [Builder].
type Options struct {
	// Bundle is the present policy with its providers; nil: it is not known.
	Bundle *api.Bundle
	// PathOK is replay.Options.PathOK.
	PathOK func(string) error
}

// Builder gathers the calls of one agent. It is not safe for concurrent use.
type Builder struct {
	agent string
	opts  Options
	ids   map[string]bool
	uses  map[string]*use
	// denied are the calls that policy denied: no rule may open one.
	denied map[string]*use
	left   map[string]*Left
	seen   map[[2]string]int // requests by policy and rule
}

// use is one kind of call: all that are equal but for their time.
type use struct {
	key         string
	record      audit.Record // the newest
	was         replay.Outcome
	count       int
	first, last time.Time
}

// Left is what no rule was suggested for, and why.
type Left struct {
	Why      string   `json:"why"`
	Count    int      `json:"count"`
	Examples []string `json:"examples"` // ids of records
}

// New returns a Builder for an agent: a SPIFFE ID, or the last part of one.
func New(agent string, o Options) *Builder {
	return &Builder{agent: agent, opts: o, ids: map[string]bool{}, uses: map[string]*use{}, denied: map[string]*use{}, left: map[string]*Left{}, seen: map[[2]string]int{}}
}

// Add takes a record of the agent's; those of others, and what is no request,
// are passed over.
func (b *Builder) Add(r *audit.Record) error {
	if r.Request == nil || r.Workload == nil || r.Decision == nil || !isAgent(r.Workload.ID, b.agent) {
		return nil
	}
	b.ids[r.Workload.ID] = true
	was, why := replay.Was(r)
	_, unknown := replay.Of(r)
	switch {
	case was.Opens() && was.WouldDeny:
		b.leave(r, "a policy in audit mode would have denied it")
		return nil
	case why != "": // refused beside policy
		return nil
	case unknown != "":
		if was.Opens() {
			b.leave(r, unknown)
		}
		return nil
	case !was.Opens():
		return note(b.denied, r, was)
	case strings.HasSuffix(r.Request.Path, "*") && !strings.HasPrefix(r.Request.Path, "/"):
		b.leave(r, "no template names the path *")
		return nil
	}
	b.seen[[2]string{was.Policy, was.Rule}]++
	return note(b.uses, r, was)
}

// note counts one use among those of its kind.
func note(uses map[string]*use, r *audit.Record, was replay.Outcome) error {
	key := keyOf(r, was)
	u := uses[key]
	if u == nil {
		if len(uses) >= maxUses {
			return fmt.Errorf("%w: more than %d", ErrTooMany, maxUses)
		}
		u = &use{key: key, first: r.Time}
		uses[key] = u
	}
	u.count++
	if r.Time.Before(u.first) {
		u.first = r.Time
	}
	if !r.Time.Before(u.last) {
		u.record, u.was, u.last = *r, was, r.Time
	}
	return nil
}

// isAgent compares a SPIFFE ID with an agent's name.
func isAgent(id, agent string) bool {
	return agent != "" && (id == agent || strings.HasSuffix(id, "/"+strings.TrimPrefix(agent, "/")))
}

func (b *Builder) leave(r *audit.Record, why string) {
	l := b.left[why]
	if l == nil {
		l = &Left{Why: why}
		b.left[why] = l
	}
	l.Count++
	if len(l.Examples) < 3 {
		l.Examples = append(l.Examples, r.ID)
	}
}

// keyOf tells calls apart that different rules could be for.
func keyOf(r *audit.Record, was replay.Outcome) string {
	q := r.Request
	asked := ""
	if r.Credential != nil && r.Credential.AWS != nil {
		asked = strings.Join(r.Credential.ScopeAsked, "\x02")
	}
	return strings.Join([]string{q.Host, fmt.Sprint(q.Port), q.Scheme, q.Protocol, q.Method, q.Path, strings.Join(q.QueryKeys, "\x02"),
		was.Verdict, was.Provider, was.Policy, was.Rule, strings.Join(was.Scope, "\x02"), asked, fmt.Sprint(r.Human != nil)}, "\x01")
}

// Suggestion is a policy and what it is made of.
type Suggestion struct {
	Agent    string                `json:"agent"` // SPIFFE ID
	Policy   v1alpha1.AccessPolicy `json:"policy"`
	Requests int                   `json:"requests"` // that it allows, of the records
	First    time.Time             `json:"first"`
	Last     time.Time             `json:"last"`
	Rules    []RuleUse             `json:"rules"`
	Unused   []Unused              `json:"unused"`
	Left     []Left                `json:"left"`
}

// RuleUse says what a suggested rule is made of.
type RuleUse struct {
	Name  string    `json:"name"`
	From  string    `json:"from,omitempty"` // rule of the present policy, as policy/rule
	Count int       `json:"count"`
	Last  time.Time `json:"last"`
}

// Unused is a rule of the present policy that allowed nothing, or parts of one.
type Unused struct {
	Policy  string   `json:"policy"`
	Rule    string   `json:"rule"`
	Whole   bool     `json:"whole"` // nothing of the rule was used
	Hosts   []string `json:"hosts,omitempty"`
	Methods []string `json:"methods,omitempty"`
	Paths   []string `json:"paths,omitempty"`
}

// Suggest writes the policy. Errors match [ErrNothing], or name agents that
// answer to one name.
func (b *Builder) Suggest() (*Suggestion, error) {
	if len(b.ids) > 1 {
		ids := make([]string, 0, len(b.ids))
		for id := range b.ids {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		return nil, fmt.Errorf("%q is the name of several agents: %s; give one SPIFFE ID", b.agent, strings.Join(ids[:min(len(ids), 5)], ", "))
	}
	uses := make([]*use, 0, len(b.uses))
	for _, u := range b.uses {
		uses = append(uses, u)
	}
	if len(uses) == 0 {
		return nil, fmt.Errorf("%w: no call of agent %q was allowed in these records", ErrNothing, b.agent)
	}
	slices.SortFunc(uses, func(x, y *use) int { return cmp.Compare(x.key, y.key) })
	s := &Suggestion{Agent: uses[0].record.Workload.ID}
	uses = b.latest(uses)
	var err error
	// Templates of two rules can meet where one path was used in two ways; then
	// every path is written out.
	for _, literal := range []bool{false, true} {
		if err = b.settle(s, uses, literal); err == nil {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	for _, l := range b.left {
		s.Left = append(s.Left, *l)
	}
	slices.SortFunc(s.Left, func(x, y Left) int { return cmp.Compare(x.Why, y.Why) })
	s.Unused = b.unused(uses)
	return s, nil
}

// latest keeps, of equal requests that were allowed in different ways, the
// newest: what came before was by a policy that was changed.
func (b *Builder) latest(uses []*use) []*use {
	newest := map[string]*use{}
	for _, u := range uses {
		if o := newest[u.request()]; o == nil || u.last.After(o.last) {
			newest[u.request()] = u
		}
	}
	return slices.DeleteFunc(slices.Clone(uses), func(u *use) bool {
		n := newest[u.request()]
		alike := n.was.Verdict == u.was.Verdict && n.was.Provider == u.was.Provider && n.was.Policy == u.was.Policy && n.was.Rule == u.was.Rule && slices.Equal(n.was.Scope, u.was.Scope)
		if !alike {
			b.leaveAll(u, "the same call was decided otherwise later")
		}
		return !alike
	})
}

// request tells requests apart by what a rule sees of them.
func (u *use) request() string {
	q := u.record.Request
	return strings.Join([]string{q.Host, fmt.Sprint(q.Port), q.Protocol, q.Method, q.Path}, "\x01")
}

// leaveAll leaves out all requests of a kind.
func (b *Builder) leaveAll(u *use, why string) {
	r := u.record
	b.leave(&r, why)
	b.left[why].Count += u.count - 1
}

// maxAttempts bounds how often a suggestion is written anew without what would
// open something that was denied.
const maxAttempts = 12

// settle writes rules for uses, compiles them, and asks them about each use, and
// about each call that was denied.
func (b *Builder) settle(s *Suggestion, uses []*use, literal bool) error {
	exact := map[string]bool{} // hosts whose paths are written out
	for range maxAttempts {
		d := &draft{b: b, agent: s.Agent, exact: exact}
		d.group(uses, literal)
		if len(d.rules) == 0 {
			break
		}
		lost, err := d.check()
		if err != nil {
			return err
		}
		p, err := replay.New(d.bundle(), replay.Options{PathOK: b.opts.PathOK})
		if err != nil {
			return fmt.Errorf("the suggestion does not compile: %w", err)
		}
		more, again := d.opens(p, literal)
		maps.Copy(lost, more)
		if len(lost) == 0 && !again && len(d.rules) > maxRules {
			return fmt.Errorf("%w: they make %d rules, and a policy has at most %d", ErrTooMany, len(d.rules), maxRules)
		}
		if len(lost) == 0 && !again {
			s.describe(d)
			return nil
		}
		uses = slices.DeleteFunc(uses, func(u *use) bool {
			why, gone := lost[u]
			if gone {
				b.leaveAll(u, why)
			}
			return gone
		})
	}
	return fmt.Errorf("%w: no rule can be written for what agent %q used without opening what it was denied", ErrNothing, b.agent)
}

// describe takes a finished draft.
func (s *Suggestion) describe(d *draft) {
	s.Policy = d.policy()
	for _, r := range d.rules {
		ru := RuleUse{Name: r.Name, From: r.from}
		for _, u := range r.uses {
			ru.Count += u.count
			if u.last.After(ru.Last) {
				ru.Last = u.last
			}
			if s.First.IsZero() || u.first.Before(s.First) {
				s.First = u.first
			}
			if u.last.After(s.Last) {
				s.Last = u.last
			}
		}
		s.Requests += ru.Count
		s.Rules = append(s.Rules, ru)
	}
}

// unused lists what of the present policy the agent did not use.
func (b *Builder) unused(uses []*use) []Unused {
	if b.opts.Bundle == nil || len(uses) == 0 {
		return nil
	}
	set, err := policy.Compile(b.opts.Bundle)
	if err != nil {
		return nil
	}
	q, why := replay.Of(&uses[0].record)
	if why != "" {
		return nil
	}
	var out []Unused
	for _, r := range set.Reach(q.Workload) {
		if r.Action == v1alpha1.ActionDeny {
			continue
		}
		if n := (Unused{Policy: r.Policy, Rule: r.Rule}); b.seen[[2]string{r.Policy, r.Rule}] == 0 {
			n.Whole = true
			out = append(out, n)
			continue
		}
		n := Unused{Policy: r.Policy, Rule: r.Rule}
		n.Hosts, n.Methods, n.Paths = slices.Clone(r.Hosts), slices.Clone(r.Methods), slices.Clone(r.Paths)
		for _, u := range uses {
			if u.was.Policy != r.Policy || u.was.Rule != r.Rule {
				continue
			}
			q := u.record.Request
			n.Hosts = slices.DeleteFunc(n.Hosts, func(h string) bool { return policy.HostMatches(h, q.Host) })
			n.Methods = slices.DeleteFunc(n.Methods, func(m string) bool { return m == q.Method })
			n.Paths = slices.DeleteFunc(n.Paths, func(p string) bool { return p == q.PathTemplate })
		}
		if len(n.Hosts)+len(n.Methods)+len(n.Paths) > 0 {
			out = append(out, n)
		}
	}
	return out
}
