package ui

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

type agentData struct {
	ID        string
	Name      string
	Period    period
	Periods   []period
	Total     store.Count
	Owner     string
	Namespace string
	Did       []deed
	DidMore   bool
	Reach     []reachRow
	ReachNote string
	Histogram *histogram
	Rows      []row
	SearchURL string
}

// deed is what an agent did with one thing, for one person, by one rule.
type deed struct {
	Thing, ThingURL string
	Actions         []action
	Human, HumanURL string
	Rule, RuleURL   string
	Author          string
	Verdict         word
	URL             string
	store.Count

	policy string
	kinds  map[string]int64
}

type action struct {
	Name  string
	Count int64
}

// reachRow is one rule: what an agent may do, and whether it did.
type reachRow struct {
	Reach
	Used int64
	Last time.Time
	URL  string
}

const maxDeeds = 1000

// agent is the page of one agent: what it may do, what it did, and what it
// never used.
func (s *Server) agent(w http.ResponseWriter, r *http.Request, v *visit) error {
	id := r.URL.Query().Get("id")
	if id == "" {
		return errNotFound
	}
	p, all := s.periodOf(r)
	text := query(term("workload", id), "type:request", p.terms())
	if err := s.looked(r, v, text); err != nil {
		return err
	}
	q, err := s.ask(v.view, text)
	if err != nil {
		return err
	}
	ctx := r.Context()
	d := agentData{ID: id, Name: shortID(id), Period: p, Periods: all, SearchURL: searchURL(text)}
	last, err := s.lastOf(ctx, v.view, id)
	if err != nil {
		return err
	}
	d.Owner, d.Namespace = last.Owner, last.Workload.Namespace
	groups, partial, err := s.c.Store.Groups(ctx, q, deedKeys(), maxDeeds)
	if err != nil {
		return err
	}
	d.Did, d.DidMore = deedsOf(groups, text, p.Key), partial || len(groups) == maxDeeds
	if err := s.authors(ctx, v.view, d.Did); err != nil {
		return err
	}
	for i := range d.Did {
		c := &d.Did[i].Count
		d.Total.Count += c.Count
		d.Total.Denied += c.Denied
		d.Total.Failed += c.Failed
		d.Total.Bytes += c.Bytes
	}
	if d.Histogram, err = s.histogram(ctx, v.view, text, p.Since, p.Until); err != nil {
		return err
	}
	if d.Reach, d.ReachNote, err = s.reach(ctx, last, text, groups); err != nil {
		return err
	}
	q.Limit = 15
	page, err := s.c.Store.Search(ctx, q)
	if err != nil {
		return err
	}
	d.Rows = rowsOf(page.Rows)
	s.pages.render(w, r, v, http.StatusOK, "agent", d)
	return nil
}

// lastOf returns the newest record of an agent: its owner, namespace and labels
// as they stood. An agent that the person may not see is not found.
func (s *Server) lastOf(ctx context.Context, scope Scope, id string) (*audit.Record, error) {
	q, err := s.ask(scope, term("workload", id), "type:request")
	if err != nil {
		return nil, err
	}
	q.Limit = 1
	page, err := s.c.Store.Search(ctx, q)
	if err != nil {
		return nil, err
	}
	if len(page.Rows) == 0 || page.Rows[0].Workload == nil {
		return nil, errNotFound
	}
	return &page.Rows[0].Record, nil
}

func deedKeys() []string {
	return []string{"host", "bucket", "operation", "method", "human", "policy", "rule", "verdict"}
}

// deedsOf joins groups that differ only in the method or the operation.
func deedsOf(groups []store.Group, text, period string) []deed {
	byKey := map[string]*deed{}
	var order []*deed
	for _, g := range groups {
		host, bucket, operation, method, human, policy, rule, verdict := g.Values[0], g.Values[1], g.Values[2], g.Values[3], g.Values[4], g.Values[5], g.Values[6], g.Values[7]
		thing, link := host, query(text, term("host", host))
		if bucket != "" {
			thing, link = bucket, query(text, term("bucket", bucket))
		}
		link = query(link, term("human", human), term("policy", policy), term("rule", rule), term("verdict", verdict))
		key := strings.Join([]string{thing, host, human, policy, rule, verdict}, "\x00")
		d := byKey[key]
		if d == nil {
			d = &deed{Thing: thing, ThingURL: searchURL(link), Human: human, Rule: ruleName(&audit.Decision{Policy: policy, Rule: rule}), RuleURL: policyURL(policy),
				Verdict: verdictOf(&audit.Decision{Verdict: verdict}), URL: searchURL(link), policy: policy, kinds: map[string]int64{}}
			if human != "" {
				d.HumanURL = withPeriod("/human?id="+queryEscape(human), period)
			}
			byKey[key] = d
			order = append(order, d)
		}
		d.kinds[first(operation, method)] += g.Count.Count
		d.add(g.Count)
	}
	out := make([]deed, 0, len(order))
	for _, d := range order {
		for _, k := range sortedKeys(d.kinds) {
			if k != "" {
				d.Actions = append(d.Actions, action{k, d.kinds[k]})
			}
		}
		slices.SortStableFunc(d.Actions, func(a, b action) int { return cmp.Compare(b.Count, a.Count) })
		out = append(out, *d)
	}
	slices.SortStableFunc(out, func(a, b deed) int { return cmp.Compare(b.Count.Count, a.Count.Count) })
	return out
}

func (d *deed) add(c store.Count) {
	d.Count.Count += c.Count
	d.Denied += c.Denied
	d.Failed += c.Failed
	d.Bytes += c.Bytes
	if d.First.IsZero() || !c.First.IsZero() && c.First.Before(d.First) {
		d.First = c.First
	}
	if c.Last.After(d.Last) {
		d.Last = c.Last
	}
}

// authors says who wrote the policies that let an agent do something: the
// newest version of each, as far as the person may read it.
func (s *Server) authors(ctx context.Context, scope Scope, deeds []deed) error {
	const most = 20
	known := map[string]string{}
	for i := range deeds {
		name := deeds[i].policy
		if name == "" {
			continue
		}
		if _, ok := known[name]; !ok && len(known) < most {
			l, err := s.documents(ctx, scope, documentQuery(name))
			if err != nil {
				return err
			}
			known[name] = ""
			// Who removed a policy has not let anything.
			if i := slices.IndexFunc(l, func(d docView) bool { return d.Digest != "" }); i >= 0 {
				known[name] = l[i].Author
			}
		}
		deeds[i].Author = known[name]
	}
	return nil
}

// reach lists what the agent may do by the policies in force beside what it
// did in the period.
func (s *Server) reach(ctx context.Context, last *audit.Record, text string, groups []store.Group) ([]reachRow, string, error) {
	if s.c.Policies.Reach == nil {
		return nil, "This page was started without policies, so it cannot say what the agent may do.", nil
	}
	l, err := s.c.Policies.Reach(ctx, last.Workload)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return nil, "", err
		}
		if u := Unsaid(""); errors.As(err, &u) {
			return nil, string(u), nil
		}
		s.log.WarnContext(ctx, "cannot read what an agent may do", "error", err)
		return nil, "The policies cannot be read now; the log of the service says why.", nil
	}
	used := map[string]store.Count{}
	for _, g := range groups {
		key := g.Values[5] + "\x00" + g.Values[6]
		c := used[key]
		c.Count += g.Count.Count
		if g.Last.After(c.Last) {
			c.Last = g.Last
		}
		used[key] = c
	}
	out := make([]reachRow, len(l))
	for i, x := range l {
		c := used[x.Policy+"\x00"+x.Rule]
		out[i] = reachRow{Reach: x, Used: c.Count, Last: c.Last, URL: searchURL(text, term("policy", x.Policy), term("rule", x.Rule))}
	}
	return out, "", nil
}
