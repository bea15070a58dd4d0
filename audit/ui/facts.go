package ui

import (
	"strconv"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
)

// factsOf says who, for whom and why, in three columns.
func factsOf(r *audit.Record) []facts {
	return []facts{who(r), forWhom(r), why(r), withWhat(r)}
}

type factList []fact

func (l *factList) add(key, value, link string) {
	if value != "" {
		*l = append(*l, fact{Key: key, Value: value, URL: link})
	}
}

// claim adds what the agent or the upstream says of itself.
func (l *factList) claim(key, value string) {
	if value != "" {
		*l = append(*l, fact{Key: key, Value: value, Claimed: true})
	}
}

func who(r *audit.Record) facts {
	var l factList
	if w := r.Workload; w != nil {
		l.add("agent", w.ID, agentURL(w.ID, ""))
		l.add("namespace", w.Namespace, searchURL(term("namespace", w.Namespace)))
		l.add("account", w.ServiceAccount, "")
		l.add("node", w.Node, "")
		l.add("run", w.RunID, searchURL(term("run", w.RunID)))
		for _, k := range sortedKeys(w.Labels) {
			l.add("label", k+"="+w.Labels[k], "")
		}
		l.add("posture", w.PostureDigest, "")
	}
	if p := r.Process; p != nil {
		text := strings.TrimSpace(strconv.Itoa(p.PID) + " " + p.Exe)
		if p.Shared {
			text += " (the socket is shared)"
		}
		l.add("process", text, "")
		l.add("executable", p.Digest, "")
	}
	if r.Owner != "" {
		l.add("owner", r.Owner, searchURL(term("owner", r.Owner)))
		l.add("owner by", r.OwnerSource, "")
	}
	for i, a := range r.Actors {
		l.add("caller "+strconv.Itoa(i+1), first(a.Subject, a.Issuer), "")
	}
	if q := r.Request; q != nil {
		l.claim("says it is", q.UserAgent)
	}
	return facts{"Who", l}
}

func forWhom(r *audit.Record) facts {
	var l factList
	if h := r.Human; h != nil {
		l.add("person", first(h.Email, h.Subject), humanURL(h))
		l.add("subject", h.Subject, "")
		l.add("issuer", h.Issuer, "")
	}
	if t := r.Task; t != nil {
		l.add("task", t.ID, "/task/"+pathEscape(t.ID))
		l.claim("purpose", t.Purpose)
		l.add("opened by", t.OpenedBy, "")
	}
	if len(l) == 0 {
		l.add("person", "nobody: no task of a person was open", "")
	}
	return facts{"For whom", l}
}

func why(r *audit.Record) facts {
	var l factList
	if d := r.Decision; d != nil {
		l.add("verdict", verdictOf(d).Text, "")
		l.add("policy", first(d.Policy, "none: default deny"), policyURL(d.Policy))
		l.add("rule", d.Rule, "")
		l.add("reason", d.Reason, "")
		l.add("code", d.Code, searchURL(term("code", d.Code)))
		if d.Version != "" {
			l.add("version", d.Version, "/policy/"+pathEscape(d.Version))
		}
	}
	if len(r.Unsafe) > 0 {
		l.add("unsafe flags", strings.Join(r.Unsafe, ", "), "")
	}
	return facts{"Why", l}
}

func withWhat(r *audit.Record) facts {
	var l factList
	if u := r.Credential; u != nil {
		if u.Handle != "" {
			l.add("credential", u.Handle, "/credential/"+pathEscape(u.Handle))
		}
		l.add("provider", u.Provider, searchURL(term("provider", u.Provider)))
		l.add("kind", u.Kind, "")
		l.add("scope", strings.Join(u.ScopeGranted, " "), "")
		if a := u.AWS; a != nil {
			l.add("actions", strings.Join(a.Actions, ", "), "")
			l.add("resources", strings.Join(a.Resources, ", "), "")
			l.add("region", a.Region, "")
			l.add("account", a.Account, "")
			l.add("session for", a.Scope, "")
		}
		if !u.Expires.IsZero() {
			l.add("expires", u.Expires.UTC().Format(time.RFC3339), "")
		}
	} else {
		l.add("credential", "none", "")
	}
	if q := r.Request; q != nil {
		l.add("removed", strings.Join(q.Removed, ", "), "")
	}
	if q := r.SQL; q != nil {
		l.add("statement", q.Statement, "")
		l.add("database", q.Database, "")
		l.add("tables", strings.Join(q.Tables, ", "), "")
	}
	if x := r.SSH; x != nil {
		l.add("command", x.Command, "")
		l.add("key id", x.KeyID, "")
		l.add("serial", x.Serial, "")
	}
	return facts{"With what", l}
}
