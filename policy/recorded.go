package policy

import (
	"maps"
	"slices"

	"github.com/attache-dev/attache/api/v1alpha1"
)

// Recorded is a request as a record holds it: without the values of headers and
// of query parameters (Query has the names, with empty values), and without what
// else [Set.DecideRecorded] lists.
type Recorded struct {
	Request
	// QueryCut says that there were more parameters than the record names.
	QueryCut bool
}

// maxWorlds bounds the rules that are tried one by one.
const maxWorlds = 64

// world is one way in which what is not recorded may have been: rules that look
// at it hold if they are assumed to.
type world struct {
	r       *Recorded
	assumed map[*rule]bool
	all     bool               // every one is assumed to hold
	open    map[*rule][]string // rules that would decide by what is not known
	order   []*rule            // of open
}

// DecideRecorded decides a recorded request again. The second result is empty if
// that decision is certain. Else another one is possible, and it names what the
// record would have to hold: "header X-Mode", "query q", "human.groups" and
// the like.
//
// It decides with no condition of that kind fulfilled, and looks whether any
// other outcome is possible if one of them is, or all are.
func (s *Set) DecideRecorded(r *Recorded) (Decision, []string) {
	if s == nil {
		return s.refuse("no policy is loaded, so every call is denied"), nil
	}
	if r.Protocol == TLS {
		return s.DecideConn(&r.Request), s.unknownOfConn(r)
	}
	w := &world{r: r, open: map[*rule][]string{}}
	d := s.decideIn(&r.Request, w)
	if len(w.order) == 0 {
		return d, nil
	}
	lacks := map[string]bool{}
	try := func(w *world, because []*rule) {
		if o := s.decideIn(&r.Request, w); d.Differs(&o) {
			for _, v := range because {
				for _, fact := range w.open[v] {
					lacks[fact] = true
				}
			}
		}
	}
	for _, v := range w.order[:min(len(w.order), maxWorlds)] {
		try(&world{r: r, open: maps.Clone(w.open), assumed: map[*rule]bool{v: true}}, []*rule{v})
	}
	if len(lacks) == 0 && len(w.order) > 1 {
		try(&world{r: r, open: maps.Clone(w.open), all: true}, w.order)
	}
	return d, slices.Sorted(maps.Keys(lacks))
}

// Differs reports whether two decisions treat a request differently: another
// verdict, credential or scope. Which rule says so is no difference.
func (d *Decision) Differs(o *Decision) bool {
	return d.Verdict != o.Verdict || d.WouldDeny != o.WouldDeny || d.Grant.Provider != o.Grant.Provider || d.Grant.Role != o.Grant.Role ||
		d.Grant.Audience != o.Grant.Audience || !slices.Equal(d.Grant.Scope, o.Grant.Scope)
}

// match answers for rules that look at what is not known: false for others.
func (w *world) match(q *search, v *variant) (mismatch, bool) {
	if !v.known(q) {
		return mismatchPort, true
	}
	lacks, possible := v.unknowns(q, w.r)
	if !possible {
		return mismatchWhen, true
	}
	if len(lacks) == 0 {
		return 0, false
	}
	if _, seen := w.open[v.rule]; !seen {
		w.open[v.rule] = lacks
		w.order = append(w.order, v.rule)
	}
	if w.all || w.assumed[v.rule] {
		return matched, true
	}
	return mismatchWhen, true
}

// unknowns names what must be known to tell whether the rule's conditions hold. It
// answers false if they cannot, whatever that is.
func (v *variant) unknowns(q *search, r *Recorded) (facts []string, possible bool) {
	for i := range v.headers {
		if v.headers[i].Name != "Host" {
			facts = append(facts, "header "+v.headers[i].Name)
		}
	}
	deny := v.action == v1alpha1.ActionDeny
	for i := range v.query {
		m := &v.query[i]
		_, there := r.Query[m.Name]
		switch {
		case !there && r.QueryCut, there && !m.Absent && m.Exact+m.Prefix != "":
			facts = append(facts, "query "+m.Name)
		case !m.matches(r.Query[m.Name], deny):
			return nil, false
		}
	}
	if v.when == nil {
		return facts, true
	}
	if len(v.when.unrecorded) > 0 {
		return append(facts, v.when.unrecorded...), true
	}
	if len(facts) > 0 {
		if q.act == nil {
			q.act = q.set.pool.get(q.r, q.path)
		}
		if ok, err := v.when.holds(q.act); err == nil && !ok || err != nil && !deny {
			return nil, false
		}
	}
	return facts, true
}

// unknownOfConn names what passthrough rules for a connection look at that is
// not recorded.
func (s *Set) unknownOfConn(r *Recorded) []string {
	if r.Workload == nil {
		return nil
	}
	id := r.Workload.ID.String()
	lacks := map[string]bool{}
	var space [12]*bucket
	for _, b := range s.hosts.find(r.Host, space[:0]) {
		for _, v := range b.passing {
			if v.when != nil && v.coversPort(r.Port) && v.policy.selects(r.Workload, id) {
				for _, fact := range v.when.unrecorded {
					lacks[fact] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(lacks))
}
