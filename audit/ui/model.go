package ui

import (
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

// row is a record in a table.
type row struct {
	ID       string
	Time     time.Time
	Outcome  word
	Verdict  word
	Agent    string // last part of the SPIFFE ID
	AgentURL string
	Human    string
	HumanURL string
	Method   string
	What     string // what it was done with
	Detail   string // in full
	Rule     string
	RuleURL  string
	Reason   string
	Status   string
	Took     string
	Handle   string
	Task     string
	TaskURL  string
	Event    string // name, if it is one
	Fields   []field
}

// word is a text with a colour that means the same.
type word struct {
	Text  string
	Class string // good, bad, warn or empty
}

type field struct{ Key, Value string }

func rowOf(r *audit.Record) row {
	out := row{ID: r.ID, Time: r.Time, Outcome: outcomeOf(r), AgentURL: "", Human: humanName(r.Human)}
	if w := r.Workload; w != nil && w.ID != "" {
		out.Agent, out.AgentURL = shortID(w.ID), agentURL(w.ID, "")
	}
	if r.Human != nil {
		out.HumanURL = humanURL(r.Human)
	}
	if r.Event != nil {
		out.Event, out.Fields = r.Event.Name, fieldsOf(r.Event.Fields)
		out.Handle = r.Event.Fields["handle"]
	}
	if q := r.Request; q != nil {
		out.Method, out.What, out.Detail = q.Method, targetOf(q), targetOf(q)
	}
	if d := r.Decision; d != nil {
		out.Verdict, out.Rule, out.Reason = verdictOf(d), ruleName(d), d.Reason
		out.RuleURL = policyURL(d.Policy)
	}
	if u := r.Credential; u != nil {
		out.Handle = u.Handle
		if u.AWS != nil && u.AWS.Operation != "" {
			out.Method = u.AWS.Operation
			if len(u.AWS.Resources) > 0 {
				out.What, out.Detail = shortResource(u.AWS.Resources[0]), strings.Join(u.AWS.Resources, " ")
				if n := len(u.AWS.Resources) - 1; n > 0 {
					out.What += " +" + strconv.Itoa(n)
				}
			}
		}
	}
	if q := r.SQL; q != nil {
		out.Method, out.What, out.Detail = q.Operation, strings.Join(q.Tables, " "), q.Statement
	}
	if s := r.SSH; s != nil {
		out.Method = s.Operation
		out.Detail = first(s.Command, s.Subsystem, s.Forward)
		if out.Detail != "" {
			out.What += " " + out.Detail
		}
	}
	if t := r.Task; t != nil {
		out.Task, out.TaskURL = first(t.Purpose, t.ID), "/task/"+url.PathEscape(t.ID)
	}
	if r.Result != nil && r.Result.Status != 0 {
		out.Status = strconv.Itoa(r.Result.Status)
	}
	if r.Steps != nil && r.Steps.Ended > 0 {
		out.Took = micros(r.Steps.Ended)
	}
	return out
}

func rowsOf(l []store.Row) []row {
	out := make([]row, len(l))
	for i := range l {
		out[i] = rowOf(&l[i].Record)
	}
	return out
}

func fieldsOf(m map[string]string) []field {
	var l []field
	for _, k := range sortedKeys(m) {
		if m[k] != "" {
			l = append(l, field{k, m[k]})
		}
	}
	return l
}

func outcomeOf(r *audit.Record) word {
	if r.Event != nil {
		return word{"event", ""}
	}
	text := audit.OutcomeOpen
	if r.Result != nil {
		text = r.Result.Outcome
	}
	return outcomeWord(text)
}

func outcomeWord(text string) word {
	switch text {
	case audit.OutcomeOK:
		return word{text, "good"}
	case audit.OutcomeDenied, audit.OutcomeLeak:
		return word{text, "bad"}
	case audit.OutcomeError, audit.OutcomeRevoked, audit.OutcomeUnknown:
		return word{text, "warn"}
	default:
		return word{text, ""}
	}
}

func verdictOf(d *audit.Decision) word {
	w := word{d.Verdict, ""}
	switch d.Verdict {
	case "deny":
		w.Class = "bad"
	case "inject", "allow":
		w.Class = "good"
	case "passthrough":
		w.Class = "warn"
	default: // of a newer producer
	}
	if d.WouldDeny {
		w.Text, w.Class = w.Text+" (would deny)", "warn"
	}
	return w
}

// shortID is what people call a workload: namespace/account of an ID of the
// cluster's form, else its last part.
func shortID(id string) string {
	if _, path, ok := strings.Cut(id, "/ns/"); ok {
		if ns, account, ok := strings.Cut(path, "/sa/"); ok && ns != "" && account != "" && !strings.ContainsRune(ns, '/') && !strings.ContainsRune(account, '/') {
			return ns + "/" + account
		}
	}
	if i := strings.LastIndexByte(id, '/'); i >= 0 && i < len(id)-1 {
		return id[i+1:]
	}
	return id
}

func humanName(h *audit.Human) string {
	if h == nil {
		return ""
	}
	return first(h.Email, h.Subject)
}

func ruleName(d *audit.Decision) string {
	switch {
	case d.Policy == "":
		return d.Rule
	case d.Rule == "":
		return d.Policy
	default:
		return d.Policy + "/" + d.Rule
	}
}

// targetOf is: api.example.com/v1/x?keys.
func targetOf(q *audit.Request) string {
	host := q.Host
	if q.Port != 0 && q.Port != 443 && q.Port != 80 {
		host += ":" + strconv.Itoa(q.Port)
	}
	s := host + q.Path
	if len(q.QueryKeys) > 0 {
		s += "?" + strings.Join(q.QueryKeys, "&")
	}
	return s
}

// shortResource drops what all ARNs of S3 have in front: bucket/key is left.
func shortResource(arn string) string {
	if s, ok := strings.CutPrefix(arn, "arn:aws:s3:::"); ok {
		return s
	}
	return arn
}

func micros(us int64) string {
	d := time.Duration(us) * time.Microsecond
	switch {
	case d < time.Millisecond:
		return strconv.FormatInt(us, 10) + " µs"
	case d < time.Second:
		return strconv.FormatFloat(float64(us)/1000, 'f', 1, 64) + " ms"
	default:
		return d.Round(10 * time.Millisecond).String()
	}
}

func first(l ...string) string {
	for _, s := range l {
		if s != "" {
			return s
		}
	}
	return ""
}
