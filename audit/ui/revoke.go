package ui

import (
	"cmp"
	"net/http"
	"slices"
	"strings"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

type revokeData struct {
	Kind, Name string
	Namespace  string
	Rows       []row
	Agent      string
	Result     string
}

const maxReason = 512 // bytes, as a Revocation has it

// revoking reads what is to be revoked, and refuses what the person may not.
func (s *Server) revoking(r *http.Request, v *visit, get func(string) string) (revokeData, error) {
	var d revokeData
	if s.c.Revoke == nil {
		return d, errNotFound
	}
	if v.revoke.Empty() {
		return d, errForbidden
	}
	switch handle, task := get("credential"), get("task"); {
	case handle != "" && task == "":
		d.Kind, d.Name = "credential", handle
	case task != "" && handle == "":
		d.Kind, d.Name = "task", task
	default:
		return d, errNotFound
	}
	if foreign, err := s.foreign(r, v.revoke, d); err != nil || foreign {
		return d, cmp.Or(err, errNotFound)
	}
	page, err := s.related(r.Context(), v.revoke, d.Name)
	if err != nil {
		return d, err
	}
	for i := range page.Rows {
		x := &page.Rows[i].Record
		if !d.is(x) {
			continue // it speaks of the name: what it says there may be anybody's word
		}
		if x.Workload != nil && d.Namespace == "" {
			d.Namespace, d.Agent = x.Workload.Namespace, x.Workload.ID
		}
		d.Rows = append(d.Rows, rowOf(x))
	}
	if len(d.Rows) == 0 {
		return d, errNotFound // nothing that this person may revoke
	}
	if len(d.Rows) > 5 {
		d.Rows = d.Rows[len(d.Rows)-5:]
	}
	return d, nil
}

// foreign reports whether the name is used outside of the scope too. A Revocation
// counts everywhere, so that it is then for those who may revoke there.
func (s *Server) foreign(r *http.Request, scope Scope, d revokeData) (bool, error) {
	if scope.All {
		return false, nil
	}
	key := map[string]string{"credential": "handle", "task": "task"}[d.Kind]
	terms := []string{term(key, d.Name), "type:request,event"}
	for _, n := range scope.Namespaces {
		terms = append(terms, "-"+term("namespace", n))
	}
	q, err := s.ask(Scope{All: true}, terms...)
	if err != nil {
		return false, err
	}
	q.Limit = maxRelated // those without a namespace, a sidecar's own, are few
	page, err := s.c.Store.Search(r.Context(), q)
	return slices.ContainsFunc(page.Rows, func(x store.Row) bool { return len(audit.Namespaces(&x.Record)) > 0 }), err
}

// is reports whether r is of the credential or task itself.
func (d *revokeData) is(r *audit.Record) bool {
	if r.Event != nil && r.Event.Fields[map[string]string{"credential": "handle", "task": "task"}[d.Kind]] == d.Name {
		return true
	}
	if d.Kind == "task" {
		return r.Task != nil && r.Task.ID == d.Name
	}
	return r.Credential != nil && r.Credential.Handle == d.Name
}

// revokeAsk shows what would be revoked, with a button.
func (s *Server) revokeAsk(w http.ResponseWriter, r *http.Request, v *visit) error {
	d, err := s.revoking(r, v, r.URL.Query().Get)
	if err != nil {
		return err
	}
	s.pages.render(w, r, v, http.StatusOK, "revoke", d)
	return nil
}

// revokeDo orders the revocation, once that is recorded.
func (s *Server) revokeDo(w http.ResponseWriter, r *http.Request, v *visit) error {
	d, err := s.revoking(r, v, r.PostFormValue)
	if err != nil {
		return err
	}
	reason := strings.TrimSpace(r.PostFormValue("reason"))
	if len(reason) > maxReason {
		reason = reason[:maxReason]
	}
	p := v.session.Person
	o := Order{Namespace: d.Namespace, Reason: strings.ToValidUTF8(reason, ""), By: p}
	fields := map[string]string{"reason": o.Reason, "namespace": d.Namespace}
	if d.Kind == "credential" {
		o.Handle, fields["handle"] = d.Name, d.Name
	} else {
		o.Task, fields["task"] = d.Name, d.Name
	}
	if err := s.event(r.Context(), audit.EventRevokeOrdered, &p, fields); err != nil {
		return err
	}
	result, err := s.c.Revoke(r.Context(), o)
	if err != nil {
		s.log.ErrorContext(r.Context(), "revocation failed", "error", err)
		s.pages.render(w, r, v, http.StatusBadGateway, "message", message{Title: "Not revoked", Text: "The order was recorded, and could not be carried out.", Detail: err.Error(), Bad: true, Link: "/" + d.Kind + "/" + pathEscape(d.Name), LinkText: "Back to the " + d.Kind})
		return nil
	}
	d.Result = result
	s.pages.render(w, r, v, http.StatusOK, "revoke", d)
	return nil
}
