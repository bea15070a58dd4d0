package ui

import (
	"cmp"
	"net/http"
	"slices"

	"github.com/attache-dev/attache/audit/store"
)

type frontData struct {
	Period    period
	Periods   []period
	Total     store.Count
	Partial   bool
	Agents    []agentRow
	Humans    []bar
	Hosts     []bar
	Rules     []bar
	Histogram *histogram
	Denied    []row
	Health    health
	AllURL    string
	DeniedURL string
}

type agentRow struct {
	Name, ID, URL string
	store.Count
}

// bar is a value and how much of the whole it is.
type bar struct {
	Text, Full, URL string
	Count           int64
	Share           int // per cent of the largest
}

// front is what happened lately, by agent.
func (s *Server) front(w http.ResponseWriter, r *http.Request, v *visit) error {
	p, all := s.periodOf(r)
	requests := query("type:request", p.terms())
	if err := s.looked(r, v, requests); err != nil {
		return err
	}
	q, err := s.ask(v.view, requests)
	if err != nil {
		return err
	}
	ctx := r.Context()
	f, err := s.c.Store.Facets(ctx, q, []string{"workload", "human", "host", "policy"}, 10)
	if err != nil {
		return err
	}
	d := frontData{Period: p, Periods: all, Total: f.Total, Partial: f.Partial, AllURL: searchURL(requests), DeniedURL: withPeriod("/denied?", p.Key)}
	for _, facet := range f.Facets {
		switch facet.Key {
		case "workload":
			for _, x := range facet.Values {
				d.Agents = append(d.Agents, agentRow{shortID(x.Value), x.Value, agentURL(x.Value, p.Key), x.Count})
			}
		case "human":
			d.Humans = barsOf(facet, func(v string) string { return withPeriod("/human?id="+queryEscape(v), p.Key) })
		case "host":
			d.Hosts = barsOf(facet, func(v string) string { return searchURL(requests, term("host", v)) })
		case "policy":
			d.Rules = barsOf(facet, policyURL)
		}
	}
	if d.Histogram, err = s.histogram(ctx, v.view, requests, p.Since, p.Until); err != nil {
		return err
	}
	denied, err := s.ask(v.view, requests, "verdict:deny")
	if err != nil {
		return err
	}
	denied.Limit = 8
	page, err := s.c.Store.Search(ctx, denied)
	if err != nil {
		return err
	}
	d.Denied = rowsOf(page.Rows)
	if d.Health, err = s.health(ctx, v.view); err != nil {
		return err
	}
	s.pages.render(w, r, v, http.StatusOK, "front", d)
	return nil
}

func barsOf(f store.Facet, link func(string) string) []bar {
	var largest int64 = 1
	for _, x := range f.Values {
		largest = max(largest, x.Count.Count)
	}
	var l []bar
	for _, x := range f.Values {
		if x.Value == "" {
			continue
		}
		l = append(l, bar{Text: x.Value, Full: x.Value, URL: link(x.Value), Count: x.Count.Count, Share: int(100 * x.Count.Count / largest)})
	}
	return l
}

func sortBars(l []bar) {
	slices.SortStableFunc(l, func(a, b bar) int { return cmp.Compare(b.Count, a.Count) })
}
