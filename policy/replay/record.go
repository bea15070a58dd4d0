// Package replay decides recorded requests again by other documents, and says
// which decisions would change.
//
// A record has no header values, no parameter values, no groups of a human and
// no posture: see docs/policy.md. Where the outcome could depend on such a
// thing, the record counts as one that cannot be decided again, with what it
// lacks, instead of as one that stays the same.
package replay

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/policy"
)

// codeDenied is the refusal that policy makes; others are made beside it.
const codeDenied = "denied"

// cut ends a text that a record could not hold.
const cut = "…"

// maxQueryKeys is how many names of parameters a record has at most.
const maxQueryKeys = 32

// Outcome is what policy said of a request: deny, allow, inject or passthrough,
// and with which credential.
type Outcome struct {
	Verdict  string   `json:"verdict"`
	Provider string   `json:"provider,omitempty"`
	Scope    []string `json:"scope,omitempty"`
	Policy   string   `json:"policy,omitempty"`
	Rule     string   `json:"rule,omitempty"`
	// WouldDeny says that a policy in audit mode let it pass.
	WouldDeny bool `json:"would_deny,omitempty"`
	// Reason is the decision's own.
	Reason string `json:"reason,omitempty"`
}

// String is for people.
func (o Outcome) String() string {
	s := o.Verdict
	if o.Provider != "" {
		s += " " + o.Provider
	}
	if len(o.Scope) > 0 {
		s += " [" + strings.Join(o.Scope, " ") + "]"
	}
	if o.WouldDeny {
		s += " (audit mode)"
	}
	return s
}

// Opens reports whether the call went on.
func (o Outcome) Opens() bool { return o.Verdict != policy.Deny.String() && o.Verdict != "" }

// Was is what a record says that policy decided. The second result says why
// that is not known: the call was refused for another reason before, or beside,
// policy.
func Was(r *audit.Record) (Outcome, string) {
	d := r.Decision
	if d == nil || d.Verdict == "" {
		return Outcome{}, "no decision is recorded"
	}
	o := Outcome{Verdict: d.Verdict, Policy: d.Policy, Rule: d.Rule, WouldDeny: d.WouldDeny, Reason: d.Reason}
	if d.Verdict == policy.Deny.String() && d.Code != "" && d.Code != codeDenied {
		return o, "refused beside policy: " + d.Code
	}
	if u := r.Credential; u != nil && d.Verdict == policy.Inject.String() {
		o.Provider = u.Provider
		if u.ScopeSource == "static" && u.AWS == nil {
			o.Scope = u.ScopeAsked
		}
	}
	return o, ""
}

// Of is the request of a record, as policy is asked. The second result says why
// there is none to ask about.
func Of(r *audit.Record) (*policy.Recorded, string) {
	q := r.Request
	switch {
	case q == nil || q.Host == "":
		return nil, "no request is recorded"
	case r.Workload == nil:
		return nil, "no workload is recorded"
	case strings.HasSuffix(q.Path, cut) || strings.HasSuffix(q.Host, cut) || strings.HasSuffix(q.Method, cut):
		return nil, "the path is longer than a record holds"
	}
	w, err := workload(r)
	if err != nil {
		return nil, "its workload has no SPIFFE ID"
	}
	out := &policy.Recorded{Request: policy.Request{
		Host: q.Host, Port: q.Port, Scheme: q.Scheme, Method: q.Method, Path: q.Path, Header: http.Header{}, Protocol: q.Protocol, Workload: w, Time: r.Time,
	}, QueryCut: len(q.QueryKeys) >= maxQueryKeys}
	if len(q.QueryKeys) > 0 {
		out.Query = url.Values{}
		for _, k := range q.QueryKeys {
			out.Query[k] = []string{""}
		}
	}
	if p := r.Process; p != nil {
		out.Process = identity.Process{PID: p.PID, UID: p.UID, Exe: p.Exe, Digest: p.Digest, Shared: p.Shared}
	}
	if t := r.Task; t != nil {
		out.Task = &identity.Task{ID: t.ID, Purpose: t.Purpose, OpenedBy: t.OpenedBy, Opened: r.Time, Expires: r.Time, WorkloadID: w.ID, RunID: w.RunID}
		if h := r.Human; h != nil {
			out.Task.Human = &identity.Human{Subject: h.Subject, Issuer: h.Issuer, Email: h.Email}
		}
	}
	return out, ""
}

func workload(r *audit.Record) (*identity.Workload, error) {
	w := r.Workload
	id, err := spiffeid.FromString(w.ID)
	if err != nil {
		return nil, fmt.Errorf("workload of record %s: %w", r.ID, err)
	}
	return &identity.Workload{ID: id, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount, Labels: w.Labels, Node: w.Node, RunID: w.RunID, Owner: r.Owner, OwnerSource: r.OwnerSource}, nil
}

// changed compares what was with what would be.
func changed(was, now Outcome) bool {
	if was.Verdict != now.Verdict || was.WouldDeny != now.WouldDeny {
		return true
	}
	if was.Verdict != policy.Inject.String() || was.Provider == "" {
		return false
	}
	return was.Provider != now.Provider || len(was.Scope) > 0 && !sameSet(was.Scope, now.Scope)
}

func sameSet(a, b []string) bool {
	return slices.Equal(slices.Compact(slices.Sorted(slices.Values(a))), slices.Compact(slices.Sorted(slices.Values(b))))
}
