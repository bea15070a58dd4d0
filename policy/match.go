package policy

import (
	"slices"
	"strings"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/identity"
)

// mismatch is the first thing by which a rule does not match a request, in the
// order of checking: a greater one is nearer to a match.
type mismatch int

const (
	mismatchHost mismatch = iota
	mismatchWorkload
	mismatchPort
	mismatchPath
	mismatchMethod
	mismatchProtocol
	mismatchHeader
	mismatchQuery
	mismatchWhen
	mismatchWhenError
	matched
)

// valueMatch is a compiled v1alpha1.ValueMatch.
type valueMatch struct {
	v1alpha1.ValueMatch
	header bool
}

// matches applies the condition to every value of the name. For a rule that
// opens something each value must fit; for a deny rule one value suffices,
// whichever of several the origin would choose. A deny rule also looks at the
// elements of a header's comma-separated list, since a list in one line and
// the same list in several lines are equal (RFC 9110 section 5.2).
func (m *valueMatch) matches(values []string, deny bool) bool {
	if m.Absent || len(values) == 0 {
		return m.Absent == (len(values) == 0)
	}
	if m.Exact == "" && m.Prefix == "" {
		return true
	}
	for _, v := range values {
		if ok := m.fits(v) || deny && m.header && m.fitsElement(v); ok == deny {
			return deny
		}
	}
	return !deny
}

func (m *valueMatch) fits(v string) bool {
	if m.Exact != "" {
		return v == m.Exact
	}
	return strings.HasPrefix(v, m.Prefix)
}

func (m *valueMatch) fitsElement(list string) bool {
	for e := range strings.SplitSeq(list, ",") {
		if m.fits(strings.Trim(e, " \t")) {
			return true
		}
	}
	return false
}

// contradicts reports that no request fulfils both conditions: the one of an
// opening rule, the other of any rule. When in doubt it says no.
func (m *valueMatch) contradicts(o *valueMatch) bool {
	if m.Name != o.Name {
		return false
	}
	if m.Absent || o.Absent {
		return m.Absent != o.Absent
	}
	// A list in one header line fits several conditions at once.
	if m.header && (m.Prefix != "" || o.Prefix != "" || strings.Contains(m.Exact+o.Exact, ",")) {
		return false
	}
	switch {
	case m.Exact != "" && o.Exact != "":
		return m.Exact != o.Exact
	case m.Exact != "" && o.Prefix != "":
		return !strings.HasPrefix(m.Exact, o.Prefix)
	case m.Prefix != "" && o.Exact != "":
		return !strings.HasPrefix(o.Exact, m.Prefix)
	case m.Prefix != "" && o.Prefix != "":
		return !strings.HasPrefix(m.Prefix, o.Prefix) && !strings.HasPrefix(o.Prefix, m.Prefix)
	}
	return false
}

func contradict(a, b []valueMatch) bool {
	for i := range a {
		for j := range b {
			if a[i].contradicts(&b[j]) {
				return true
			}
		}
	}
	return false
}

// selector is a compiled v1alpha1.WorkloadSelector.
type selector struct {
	id              string // exact, unless prefix
	prefix          bool   // id ends in "/"
	namespaces      []string
	serviceAccounts []string
	labels          map[string]string
}

func (s *selector) matches(w *identity.Workload, id string) bool {
	switch {
	case s.prefix && !strings.HasPrefix(id, s.id): // an ID never ends in "/"
		return false
	case !s.prefix && s.id != "" && id != s.id:
		return false
	case len(s.namespaces) > 0 && !slices.Contains(s.namespaces, w.Namespace):
		return false
	case len(s.serviceAccounts) > 0 && !slices.Contains(s.serviceAccounts, w.ServiceAccount):
		return false
	}
	for k, v := range s.labels {
		if got, ok := w.Labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// overlaps reports whether some workload fits both selectors.
func (s *selector) overlaps(o *selector) bool {
	if s.id != "" && o.id != "" {
		switch {
		case s.prefix && !strings.HasPrefix(o.id, s.id) && !(o.prefix && strings.HasPrefix(s.id, o.id)):
			return false
		case !s.prefix && o.prefix && !strings.HasPrefix(s.id, o.id):
			return false
		case !s.prefix && !o.prefix && s.id != o.id:
			return false
		}
	}
	for k, v := range s.labels {
		if other, ok := o.labels[k]; ok && other != v {
			return false
		}
	}
	return intersect(s.namespaces, o.namespaces) && intersect(s.serviceAccounts, o.serviceAccounts)
}

// intersect reports whether two lists share a value; an empty list has all.
func intersect[T comparable](a, b []T) bool {
	if len(a) == 0 || len(b) == 0 {
		return true
	}
	return slices.ContainsFunc(a, func(v T) bool { return slices.Contains(b, v) })
}

// selects reports whether the policy speaks of a workload.
func (p *policy) selects(w *identity.Workload, id string) bool {
	if len(p.selectors) == 0 {
		return true
	}
	for i := range p.selectors {
		if p.selectors[i].matches(w, id) {
			return true
		}
	}
	return false
}

// ids lists the exact SPIFFE IDs of a policy that selects by nothing else.
func (p *policy) ids() []string {
	var ids []string
	for i := range p.selectors {
		if p.selectors[i].prefix || p.selectors[i].id == "" {
			return nil
		}
		if !slices.Contains(ids, p.selectors[i].id) {
			ids = append(ids, p.selectors[i].id)
		}
	}
	return ids
}

// coversPort applies the default of rules without ports.
func (r *rule) coversPort(port int) bool {
	if len(r.ports) == 0 {
		return port == 443 || port == 80
	}
	return slices.Contains(r.ports, port)
}

// static checks everything of a rule but host, path and when.
func (r *rule) static(q *search) mismatch {
	switch {
	case !r.policy.selects(q.r.Workload, q.id):
		return mismatchWorkload
	case !r.coversPort(q.r.Port):
		return mismatchPort
	case len(r.methods) > 0 && !slices.Contains(r.methods, q.r.Method):
		return mismatchMethod
	case len(r.protocols) > 0 && !slices.Contains(r.protocols, q.protocol()):
		return mismatchProtocol
	}
	deny := r.action == v1alpha1.ActionDeny
	for i := range r.headers {
		if !r.headers[i].matches(headerValues(q.r, r.headers[i].Name), deny) {
			return mismatchHeader
		}
	}
	for i := range r.query {
		if !r.query[i].matches(q.r.Query[r.query[i].Name], deny) {
			return mismatchQuery
		}
	}
	return matched
}

// headerValues returns all values of a canonical header name. Go's servers
// keep Host apart from the other fields. CGI, WSGI and their kin give programs
// X_Dry_Run and X-Dry-Run as one variable, so both count.
func headerValues(r *Request, name string) []string {
	if name == "Host" && len(r.Header["Host"]) == 0 && r.Host != "" {
		return []string{r.Host}
	}
	values := r.Header[name]
	for k, more := range r.Header {
		if k != name && len(k) == len(name) && strings.ContainsRune(k+name, '_') && sameField(k, name) {
			values = append(slices.Clip(values), more...)
		}
	}
	return values
}

// sameField compares names of fields without case, and '_' as '-'.
func sameField(a, b string) bool {
	return strings.EqualFold(strings.ReplaceAll(a, "_", "-"), strings.ReplaceAll(b, "_", "-"))
}
