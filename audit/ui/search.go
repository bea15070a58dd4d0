package ui

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/export"
	"github.com/attache-dev/attache/audit/store"
)

type searchData struct {
	Query     string
	Mistake   *mistake
	Rows      []row
	Next      string // address of the next page
	First     string // address of the first page, on others
	Total     store.Count
	Partial   bool
	Until     time.Time // how far back was looked, if Partial
	Facets    []facetView
	Histogram *histogram
	Exports   []exportLink
	LiveURL   string
	Keys      []string
}

// mistake shows a query with a mark below the place of the error.
type mistake struct {
	Text, Line, Mark string
}

type facetView struct {
	Key, Title string
	Values     []facetValue
	More       int
}

type facetValue struct {
	Text, Full, URL, Not string
	Count                int64
}

type exportLink struct{ Name, URL string }

const pageRows = 100

// facetKeys are those of the search page, with their titles.
func facetKeys() (keys []string, titles map[string]string) {
	return []string{"workload", "human", "host", "verdict", "outcome", "policy", "provider", "namespace"},
		map[string]string{"workload": "Agent", "human": "For whom", "host": "Destination", "verdict": "Verdict", "outcome": "Outcome", "policy": "Policy", "provider": "Credential of", "namespace": "Namespace"}
}

func (s *Server) search(w http.ResponseWriter, r *http.Request, v *visit) error {
	text := strings.TrimSpace(r.URL.Query().Get("q"))
	d := searchData{Query: text, Keys: audit.FilterKeys(), LiveURL: "/live?q=" + url.QueryEscape(text)}
	if err := s.looked(r, v, text); err != nil {
		return err
	}
	q, err := s.ask(v.view, text)
	if bad := (*audit.QueryError)(nil); errors.As(err, &bad) {
		d.Mistake = mistakeOf(bad)
		s.pages.render(w, r, v, http.StatusBadRequest, "search", d)
		return nil
	}
	if err != nil {
		return err
	}
	ctx := r.Context()
	q.Limit, q.After = pageRows, store.Cursor(r.URL.Query().Get("after"))
	keys, titles := facetKeys()
	whole := q
	whole.After = ""
	var page store.Page
	var f store.Facets
	err = together(ctx,
		func(ctx context.Context) (err error) {
			page, err = s.c.Store.Search(ctx, q)
			return err
		},
		func(ctx context.Context) (err error) {
			f, err = s.c.Store.Facets(ctx, whole, keys, 8)
			return err
		})
	if err != nil {
		return err
	}
	d.Rows = rowsOf(page.Rows)
	if page.Next != "" {
		d.Next = "/search?q=" + url.QueryEscape(text) + "&after=" + url.QueryEscape(string(page.Next))
	}
	if q.After != "" {
		d.First = "/search?q=" + url.QueryEscape(text)
	}
	d.Partial, d.Until = page.Partial, page.Until
	d.Total, d.Partial = f.Total, d.Partial || f.Partial
	d.Facets = facetsOf(f.Facets, titles, text)
	if f.Total.Count > 0 {
		since, until := q.Filter.Since(), q.Filter.Until()
		if since.IsZero() {
			since = f.Total.First
		}
		if until.IsZero() && q.Filter.Since().IsZero() {
			until = f.Total.Last.Add(time.Second)
		}
		if d.Histogram, err = s.histogram(ctx, v.view, text, since, until); err != nil {
			return err
		}
	}
	if !v.audit.Empty() {
		for _, kind := range export.Formats() {
			d.Exports = append(d.Exports, exportLink{strings.ToUpper(kind), "/export?format=" + kind + "&q=" + url.QueryEscape(text)})
		}
	}
	s.pages.render(w, r, v, http.StatusOK, "search", d)
	return nil
}

// mistakeOf points at the column. What stands before the mark is as wide as the
// query's text: one column a character.
func mistakeOf(e *audit.QueryError) *mistake {
	before := e.Query[:min(max(e.Offset, 0), len(e.Query))]
	line := audit.Safe(e.Query)
	return &mistake{Text: e.Error(), Line: line, Mark: strings.Repeat(" ", len([]rune(audit.Safe(before)))) + "^"}
}

func facetsOf(l []store.Facet, titles map[string]string, text string) []facetView {
	var out []facetView
	for _, f := range l {
		view := facetView{Key: f.Key, Title: titles[f.Key], More: f.More}
		for _, x := range f.Values {
			if x.Value == "" {
				continue
			}
			short := x.Value
			if f.Key == "workload" {
				short = shortID(x.Value)
			}
			t := term(f.Key, x.Value)
			if hasTerm(text, t) {
				continue
			}
			view.Values = append(view.Values, facetValue{short, x.Value, searchURL(text, t), searchURL(text, "-"+t), x.Count.Count})
		}
		if len(view.Values) > 0 {
			out = append(out, view)
		}
	}
	return out
}

func hasTerm(text, t string) bool { return strings.Contains(" "+text+" ", " "+t+" ") }
