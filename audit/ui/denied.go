package ui

import (
	"context"
	"net/http"
	"strings"

	"github.com/attache-dev/attache/audit"
)

type deniedData struct {
	Period  period
	Periods []period
	Groups  []deniedGroup
	More    bool
	// Of one denial, when one is chosen.
	One      *row
	Explain  string
	Patch    string
	NoPatch  string
	Mistaken string
}

// deniedGroup is the same refusal many times.
type deniedGroup struct {
	row
	Code  string
	Count int
	URL   string
}

const maxDenied = 500

// denied lists what was refused, and explains one of it with a patch to the
// policy that would allow just that.
func (s *Server) denied(w http.ResponseWriter, r *http.Request, v *visit) error {
	p, all := s.periodOf(r)
	id := r.URL.Query().Get("id")
	text := query("verdict:deny", "type:request", p.terms())
	if err := s.looked(r, v, first(id, text)); err != nil {
		return err
	}
	d := deniedData{Period: p, Periods: all}
	if id != "" {
		x, _, err := s.find(r.Context(), v.view, id)
		if err != nil {
			return err
		}
		one := rowOf(&x.Record)
		d.One = &one
		s.explain(r.Context(), &d, &x.Record)
		s.pages.render(w, r, v, http.StatusOK, "denied", d)
		return nil
	}
	q, err := s.ask(v.view, text)
	if err != nil {
		return err
	}
	q.Limit = maxDenied
	page, err := s.c.Store.Search(r.Context(), q)
	if err != nil {
		return err
	}
	d.More = page.Next != ""
	by := map[string]int{}
	for i := range page.Rows {
		x := &page.Rows[i].Record
		g := deniedGroup{row: rowOf(x), Count: 1, URL: "/denied?id=" + queryEscape(x.ID)}
		if x.Decision != nil {
			g.Code = x.Decision.Code
		}
		key := strings.Join([]string{g.AgentURL, g.Method, g.What, g.Rule, g.Code, g.Human}, "\x00")
		if at, ok := by[key]; ok {
			d.Groups[at].Count++
			continue
		}
		by[key] = len(d.Groups)
		d.Groups = append(d.Groups, g)
	}
	s.pages.render(w, r, v, http.StatusOK, "denied", d)
	return nil
}

func (s *Server) explain(ctx context.Context, d *deniedData, r *audit.Record) {
	if s.c.Policies.Explain == nil {
		d.NoPatch = "This page was started without policies. With a folder of documents it says which rule was nearest, and what to add."
		return
	}
	var err error
	if d.Explain, err = s.c.Policies.Explain(ctx, r); err != nil {
		d.Mistaken = err.Error()
		return
	}
	if s.c.Policies.Patch == nil {
		return
	}
	if d.Patch, err = s.c.Policies.Patch(ctx, r); err != nil {
		d.NoPatch = "No rule can be offered: " + err.Error()
	}
}
