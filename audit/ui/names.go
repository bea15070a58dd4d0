package ui

import (
	"net/http"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

// nameData is the page of a credential, a task or a person: what goes by a name.
type nameData struct {
	Kind, Name string
	Title      string
	Facts      []fact
	Story      []step
	Rows       []row
	Agents     []bar
	Things     []bar
	Period     period
	Periods    []period
	Total      store.Count
	Histogram  *histogram
	Far        []farSide
	SearchURL  string
	RevokeURL  string
	Ended      bool
	More       bool
	Self       string // address without the period
}

// credential is the life of one credential: minted, used, revoked.
func (s *Server) credential(w http.ResponseWriter, r *http.Request, v *visit) error {
	handle := r.PathValue("id")
	return s.named(w, r, v, nameData{Kind: "credential", Name: handle, Title: "Credential", SearchURL: searchURL(term("handle", handle))})
}

// task is the page of one piece of work.
func (s *Server) task(w http.ResponseWriter, r *http.Request, v *visit) error {
	id := r.PathValue("id")
	return s.named(w, r, v, nameData{Kind: "task", Name: id, Title: "Task", SearchURL: searchURL(term("task", id))})
}

func (s *Server) named(w http.ResponseWriter, r *http.Request, v *visit, d nameData) error {
	if err := s.looked(r, v, d.Name); err != nil {
		return err
	}
	page, err := s.related(r.Context(), v.view, d.Name)
	if err != nil {
		return err
	}
	if len(page.Rows) == 0 {
		return errNotFound
	}
	d.More = page.Next != ""
	ns := ""
	var newest *audit.Record
	agents, things := map[string]int64{}, map[string]int64{}
	for i := range page.Rows {
		x := &page.Rows[i].Record
		row := rowOf(x)
		d.Rows = append(d.Rows, row)
		if x.Workload != nil {
			ns = first(ns, x.Workload.Namespace)
			agents[x.Workload.ID]++
		}
		if x.Event != nil {
			d.Story = append(d.Story, step{Word: lastPart(x.Event.Name), Time: x.Time, Text: eventText(x.Event), URL: "/record/" + pathEscape(x.ID)})
			d.Ended = d.Ended || x.Event.Name == audit.EventCredentialRevoked && x.Event.Fields["handle"] == d.Name || x.Event.Name == audit.EventTaskClosed && d.Kind == "task"
			continue
		}
		newest = x
		if row.What != "" {
			things[row.What]++
		}
	}
	if newest != nil {
		d.Facts = namedFacts(newest, d.Kind)
		d.Story = append(d.Story, step{Word: "used", Time: newest.Time, Text: plural(requests(page.Rows), "request") + "; this is the last"})
		if d.Kind == "credential" {
			d.Far = farSides(newest)
		}
	}
	d.Agents, d.Things = topOf(agents, func(id string) string { return agentURL(id, "") }), topOf(things, nil)
	if s.c.Revoke != nil && v.revoke.Has(ns) && !d.Ended {
		d.RevokeURL = "/revoke?" + d.Kind + "=" + queryEscape(d.Name)
	}
	s.pages.render(w, r, v, http.StatusOK, "named", d)
	return nil
}

func requests(l []store.Row) int {
	n := 0
	for i := range l {
		if l[i].Event == nil {
			n++
		}
	}
	return n
}

func eventText(e *audit.Event) string {
	s := ""
	for _, k := range []string{"result", "reason", "purpose", "provider", "kind", "opened_by"} {
		if t := e.Fields[k]; t != "" {
			s = join(s, t)
		}
	}
	return first(s, e.Name)
}

// lastPart of credential.minted is minted.
func lastPart(name string) string {
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] == '.' {
			return name[i+1:]
		}
	}
	return name
}

func namedFacts(r *audit.Record, kind string) []fact {
	var l factList
	if w := r.Workload; w != nil {
		l.add("agent", w.ID, agentURL(w.ID, ""))
		l.add("namespace", w.Namespace, "")
	}
	l.add("owner", r.Owner, "")
	if h := r.Human; h != nil {
		l.add("for", humanName(h), humanURL(h))
	}
	if t := r.Task; t != nil {
		if kind == "credential" {
			l.add("task", t.ID, "/task/"+pathEscape(t.ID))
		}
		l.claim("purpose", t.Purpose)
	}
	if kind == "credential" {
		l = append(l, withWhat(r).Rows...)
		if d := r.Decision; d != nil {
			l.add("let by", ruleName(d), policyURL(d.Policy))
		}
	}
	return l
}

func topOf(m map[string]int64, link func(string) string) []bar {
	var l []bar
	var most int64 = 1
	for _, n := range m {
		most = max(most, n)
	}
	for _, k := range sortedKeys(m) {
		b := bar{Text: k, Full: k, Count: m[k], Share: int(100 * m[k] / most)}
		if link != nil {
			b.URL = link(k)
		}
		l = append(l, b)
	}
	sortBars(l)
	return l[:min(len(l), 12)]
}

// human is what was done for one person.
func (s *Server) human(w http.ResponseWriter, r *http.Request, v *visit) error {
	id := r.URL.Query().Get("id")
	if id == "" {
		return errNotFound
	}
	p, all := s.periodOf(r)
	text := query(term("human", id), "type:request", p.terms())
	d := nameData{Kind: "human", Name: id, Title: "Person", Period: p, Periods: all, SearchURL: searchURL(text), Self: "/human?id=" + queryEscape(id)}
	if err := s.looked(r, v, text); err != nil {
		return err
	}
	q, err := s.ask(v.view, text)
	if err != nil {
		return err
	}
	ctx := r.Context()
	f, err := s.c.Store.Facets(ctx, q, []string{"workload", "host"}, 12)
	if err != nil {
		return err
	}
	d.Total = f.Total
	for _, facet := range f.Facets {
		if facet.Key == "workload" {
			d.Agents = barsOf(facet, func(x string) string { return agentURL(x, p.Key) })
		} else {
			d.Things = barsOf(facet, func(x string) string { return searchURL(text, term("host", x)) })
		}
	}
	if d.Histogram, err = s.histogram(ctx, v.view, text, p.Since, p.Until); err != nil {
		return err
	}
	q.Limit = 50
	page, err := s.c.Store.Search(ctx, q)
	if err != nil {
		return err
	}
	d.Rows, d.More = rowsOf(page.Rows), page.Next != ""
	s.pages.render(w, r, v, http.StatusOK, "named", d)
	return nil
}
