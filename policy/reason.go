package policy

import (
	"fmt"
	"strconv"
	"strings"
)

// maxNearest bounds how many rules a refusal is explained with, so that a
// refusal costs no more with ten thousand rules.
const maxNearest = 64

// nearest says why no rule matched: which rule comes nearest, by what it does
// not match, and how to ask for access. Rules of policies that do not select
// the workload are none of its business.
func (s *Set) nearest(q *search) string {
	var space [12]*bucket
	var best *variant
	var how mismatch
	var cause error
	left := maxNearest
	look := func(v *variant, onPath bool) {
		left--
		if v.denies() || !v.policy.selects(q.r.Workload, q.id) {
			return
		}
		m, err := mismatchPath, error(nil)
		if onPath {
			m, err = q.match(v)
		} else if !v.coversPort(q.r.Port) {
			m = mismatchPort
		}
		if best == nil || m > how {
			best, how, cause = v, m, err
		}
	}
	buckets := s.hosts.find(q.r.Host, space[:0])
	for _, b := range buckets {
		for _, l := range b.find(q.path, nil) {
			for _, v := range l.all[:min(left, len(l.all))] {
				look(v, true)
			}
		}
	}
	if best == nil {
		for _, b := range buckets {
			for _, v := range b.all[:min(left, len(b.all))] {
				look(v, false)
			}
		}
	}
	place := fmt.Sprintf("%s port %d", q.r.Host, q.r.Port)
	if best == nil {
		return fmt.Sprintf("no rule for host %s allows %s to call it; to get access, ask for an AccessPolicy rule with this host", place, q.id)
	}
	return fmt.Sprintf("no rule allows %s on %s; nearest is rule %q of policy %q, which %s; to get access, ask the owner of that policy for a rule that allows it",
		describeMethod(q.r.Method), place, best.name, best.policy.name, best.lacks(how, cause))
}

// describeMethod keeps odd methods out of texts.
func describeMethod(m string) string {
	if m == "" || len(m) > 20 || !isToken(m) {
		return "this call"
	}
	return m
}

// lacks words the first reason why a rule does not match.
func (v *variant) lacks(m mismatch, cause error) string {
	switch m {
	case mismatchHost:
		return "is for host " + v.host.source
	case mismatchWorkload:
		return "is for other workloads"
	case mismatchPort:
		return "covers port " + v.portList() + " only"
	case mismatchPath:
		return "covers path " + v.template() + " only"
	case mismatchMethod:
		return "allows " + strings.Join(v.methods, ", ") + " only"
	case mismatchProtocol:
		return "covers protocol " + strings.Join(v.protocols, ", ") + " only"
	case mismatchHeader:
		return "asks for other headers (" + describeValues(v.headers) + ")"
	case mismatchQuery:
		return "asks for another query (" + describeValues(v.query) + ")"
	case mismatchWhen:
		return "has a condition that does not hold"
	case mismatchWhenError:
		return "has a condition that could not be evaluated: " + bounded(cause.Error())
	default:
		return "matches"
	}
}

func (r *rule) portList() string {
	if len(r.ports) == 0 {
		return "443, 80"
	}
	texts := make([]string, len(r.ports))
	for i, p := range r.ports {
		texts[i] = strconv.Itoa(p)
	}
	return strings.Join(texts, ", ")
}

func describeValues(list []valueMatch) string {
	texts := make([]string, len(list))
	for i, m := range list {
		switch {
		case m.Absent:
			texts[i] = "no " + m.Name
		case m.Exact != "":
			texts[i] = m.Name + ": " + m.Exact
		case m.Prefix != "":
			texts[i] = m.Name + ": " + m.Prefix + "…"
		default:
			texts[i] = m.Name
		}
	}
	return strings.Join(texts, "; ")
}
