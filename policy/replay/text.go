package replay

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
)

// Text writes the report for people, times in loc.
func (r *Report) Text(w io.Writer, loc *time.Location) error {
	p := &printer{w: w, loc: loc}
	for i := range r.Changes {
		c := &r.Changes[i]
		p.line("%s: %s %s%s", c.Kind, audit.Safe(c.Method), c.place(), p.times(c.Count, c.First, c.Last))
		p.line("  agent  %s", audit.Safe(c.Workload))
		p.line("  was    %s%s", audit.Safe(c.Was.String()), by(c.Was))
		p.line("  now    %s%s", audit.Safe(c.Now.String()), by(c.Now))
		if c.Kind == NewlyDenied && c.Now.Reason != "" {
			p.line("         %s", audit.Safe(c.Now.Reason))
		}
		p.line("  such as %s", strings.Join(c.Examples, ", "))
	}
	if r.MoreGroups > 0 {
		p.line("and %d more changes of other kinds; narrow the query to see them", r.MoreGroups)
	}
	for _, u := range r.Unsure {
		p.line("cannot be decided again: %s%s, such as %s", audit.Safe(u.Why), p.times(u.Count, u.First, u.Last), strings.Join(u.Examples, ", "))
	}
	noun := "requests"
	if r.Requests == 1 {
		noun = "request"
	}
	p.line("%d %s: %d decided as before, %d otherwise, %d cannot be decided again (documents %s)", r.Requests, noun, r.Same, r.Changed, r.NotDecided, r.Version)
	return p.err
}

type printer struct {
	w   io.Writer
	loc *time.Location
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

func (p *printer) times(n int, first, last time.Time) string {
	at := func(t time.Time) string { return t.In(p.loc).Format(time.DateTime) }
	if n == 1 {
		return ", once at " + at(first)
	}
	return fmt.Sprintf(", %d times from %s to %s", n, at(first), at(last))
}

func (c *Change) place() string {
	host := c.Host
	if strings.Contains(host, ":") { // IPv6
		host = "[" + host + "]"
	}
	if c.Port != 443 && c.Port != 0 {
		host = fmt.Sprintf("%s:%d", host, c.Port)
	}
	return audit.Safe(host + c.Path)
}

// by names the rule that decided.
func by(o Outcome) string {
	if o.Rule == "" {
		return ", by default"
	}
	return audit.Safe(fmt.Sprintf(", by rule %s of policy %s", o.Rule, o.Policy))
}
