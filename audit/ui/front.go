package ui

import (
	"cmp"
	"context"
	"net/http"
	"slices"

	"golang.org/x/sync/errgroup"

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
	Query     string // that the search field begins with
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
	denied, err := s.ask(v.view, requests, "verdict:deny")
	if err != nil {
		return err
	}
	denied.Limit = 8
	var f store.Facets
	var h *histogram
	var newest store.Page
	var state health
	err = together(r.Context(),
		func(ctx context.Context) (err error) {
			f, err = s.c.Store.Facets(ctx, q, []string{"workload", "human", "host", "policy"}, 10)
			return err
		},
		func(ctx context.Context) (err error) {
			h, err = s.histogram(ctx, v.view, requests, p.Since, p.Until)
			return err
		},
		func(ctx context.Context) (err error) {
			newest, err = s.c.Store.Search(ctx, denied)
			return err
		},
		func(ctx context.Context) error {
			rows, err := s.heads(ctx, v.view)
			if err != nil {
				return err
			}
			state, err = s.health(ctx, rows)
			return err
		})
	if err != nil {
		return err
	}
	d := frontData{Period: p, Periods: all, Total: f.Total, Partial: f.Partial, Query: query("type:request", p.short()), AllURL: searchURL(requests), DeniedURL: "/denied?p=" + p.Key, Histogram: h, Denied: rowsOf(newest.Rows), Health: state}
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
	s.pages.render(w, r, v, http.StatusOK, "front", d)
	return nil
}

// together asks several things of the store at the same time.
func together(ctx context.Context, fns ...func(context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, fn := range fns {
		g.Go(func() error { return fn(ctx) })
	}
	return g.Wait()
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
