package ui

import (
	"context"
	"net/http"
	"slices"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

// ask makes a store query that sees no more than the person may.
func (s *Server) ask(scope Scope, terms ...string) (store.Query, error) {
	f, err := audit.ParseFilter(query(terms...), s.now())
	if err != nil {
		return store.Query{}, err
	}
	return store.Query{Filter: f, Namespaces: scope.names()}, nil
}

// names is the scope as the store wants it: nil for all.
func (s Scope) names() []string {
	if s.All {
		return nil
	}
	return append([]string{}, s.Namespaces...) // never nil: that would be all
}

// looked records that a person looks at records. Without it there is no page.
func (s *Server) looked(r *http.Request, v *visit, text string) error {
	return s.event(r.Context(), audit.EventAuditQuery, &v.session.Person, map[string]string{"page": r.URL.Path, "query": text, "namespaces": v.view.String()})
}

// find returns one record by id and its lines, if it is in the scope. Nothing is
// asked for outside of it: whoever writes records gives them ids, and another's.
func (s *Server) find(ctx context.Context, scope Scope, id string) (store.Row, []store.Ref, error) {
	q, err := s.ask(scope, "type:all")
	if err != nil {
		return store.Row{}, nil, err
	}
	q.Limit = store.MaxLimit
	p, err := s.c.Store.Related(ctx, id, q)
	if err != nil {
		return store.Row{}, nil, err
	}
	i := slices.IndexFunc(p.Rows, func(r store.Row) bool { return r.ID == id })
	if i < 0 {
		return store.Row{}, nil, errNotFound
	}
	row := p.Rows[i]
	refs := []store.Ref{{Epoch: row.Epoch, Sequence: row.Sequence}}
	if row.BeginSequence != 0 {
		refs = append([]store.Ref{{Epoch: row.BeginEpoch, Sequence: row.BeginSequence}}, refs...)
	}
	return row, refs, nil
}

// related returns what goes by a name, within the scope, oldest first.
func (s *Server) related(ctx context.Context, scope Scope, name string) (store.Page, error) {
	q, err := s.ask(scope, "type:request,event")
	if err != nil {
		return store.Page{}, err
	}
	q.Limit = maxRelated
	return s.c.Store.Related(ctx, name, q)
}

// maxRelated bounds the records of one credential or task on its page.
const maxRelated = 500
