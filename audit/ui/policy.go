package ui

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/store"
)

// docView is one version of a document.
type docView struct {
	store.DocumentVersion
	URL   string
	Lines []diffLine
}

type diffLine struct{ Class, Text string }

type policyData struct {
	Version string
	Docs    []docView
	Used    store.Count
	UsedURL string
}

type documentData struct {
	Kind, Namespace, Name string
	Versions              []docView
	UsedURL               string
}

const (
	maxVersions     = 50
	documentsAtOnce = 6 // the newest version and its removal, by whoever speaks of them
	oneRemoval      = 5 * time.Minute
)

// documentQuery finds the policy that a decision names.
func documentQuery(name string) store.DocumentQuery {
	if n, ok := strings.CutPrefix(name, "cluster:"); ok {
		return store.DocumentQuery{Kind: "ClusterAccessPolicy", Name: n, Limit: documentsAtOnce}
	}
	ns, n, _ := strings.Cut(name, "/")
	return store.DocumentQuery{Kind: "AccessPolicy", Namespace: ns, Name: n, Limit: documentsAtOnce}
}

// documents returns versions of documents in the scope, newest first. What is
// of the cluster is for those who see all of it.
func (s *Server) documents(ctx context.Context, scope Scope, q store.DocumentQuery) ([]docView, error) {
	l, err := s.c.Store.Documents(ctx, q)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	var out []docView
	for _, d := range joined(l) {
		if scope.Has(d.Namespace) {
			out = append(out, docView{DocumentVersion: d, URL: "/document?kind=" + queryEscape(d.Kind) + "&namespace=" + queryEscape(d.Namespace) + "&name=" + queryEscape(d.Name), Lines: diffLines(d.Diff)})
		}
	}
	return out, nil
}

// joined makes one of what admission and the control plane say of the same
// version, or of the same removal: the first knows the author, the other that it
// came into force.
func joined(l []store.DocumentVersion) []store.DocumentVersion {
	at := map[[5]string]int{}
	var out []store.DocumentVersion
	for _, d := range l {
		gone := d.Digest == ""
		key := [5]string{d.Digest, d.Kind, d.Namespace, d.Name}
		if gone {
			key[4] = d.Previous
		}
		i, ok := at[key]
		if !ok || gone && (d.Previous == "" || out[i].Time.Sub(d.Time).Abs() > oneRemoval) {
			at[key] = len(out)
			out = append(out, d)
			continue
		}
		o := &out[i]
		if o.Author == "" && d.Author != "" {
			o.Author, o.Groups, o.Record = d.Author, d.Groups, d.Record
		}
		o.Text, o.Diff, o.Previous = first(o.Text, d.Text), first(o.Diff, d.Diff), first(o.Previous, d.Previous)
	}
	return out
}

// versionOf returns the documents of the policy set that decided.
func (s *Server) versionOf(ctx context.Context, scope Scope, d *audit.Decision) ([]docView, error) {
	if d.Version == "" {
		return nil, nil
	}
	return s.documents(ctx, scope, store.DocumentQuery{Version: d.Version, Limit: maxVersions})
}

// policy shows the texts of one version of a policy set, and who wrote each.
func (s *Server) policy(w http.ResponseWriter, r *http.Request, v *visit) error {
	d := policyData{Version: r.PathValue("version")}
	if err := s.looked(r, v, d.Version); err != nil {
		return err
	}
	var err error
	if d.Docs, err = s.documents(r.Context(), v.view, store.DocumentQuery{Version: d.Version, Limit: maxVersions}); err != nil {
		return err
	}
	s.pages.render(w, r, v, http.StatusOK, "policy", d)
	return nil
}

// document shows the history of one document.
func (s *Server) document(w http.ResponseWriter, r *http.Request, v *visit) error {
	q := r.URL.Query()
	d := documentData{Kind: q.Get("kind"), Namespace: q.Get("namespace"), Name: q.Get("name")}
	if d.Kind == "" || d.Name == "" {
		return errNotFound
	}
	if err := s.looked(r, v, d.Kind+" "+d.Namespace+"/"+d.Name); err != nil {
		return err
	}
	var err error
	d.Versions, err = s.documents(r.Context(), v.view, store.DocumentQuery{Kind: d.Kind, Namespace: d.Namespace, Name: d.Name, Limit: maxVersions})
	if err != nil {
		return err
	}
	switch d.Kind {
	case "AccessPolicy":
		d.UsedURL = searchURL(term("policy", strings.TrimPrefix(d.Namespace+"/"+d.Name, "/")))
	case "ClusterAccessPolicy":
		d.UsedURL = searchURL(term("policy", "cluster:"+d.Name))
	}
	s.pages.render(w, r, v, http.StatusOK, "document", d)
	return nil
}

func diffLines(diff string) []diffLine {
	var out []diffLine
	for line := range strings.Lines(diff) {
		line = strings.TrimSuffix(line, "\n")
		class := "same"
		switch {
		case strings.HasPrefix(line, "@@"), strings.HasPrefix(line, "---"), strings.HasPrefix(line, "+++"):
			class = "at"
		case strings.HasPrefix(line, "+"):
			class = "add"
		case strings.HasPrefix(line, "-"):
			class = "del"
		}
		out = append(out, diffLine{class, line})
	}
	return out
}
