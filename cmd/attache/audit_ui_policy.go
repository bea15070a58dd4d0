package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ui"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/policy/suggest"
)

// reviewPolicies reads the documents of --config, $ATTACHE_CONFIG or the newest
// live run, anew for each page: they may change meanwhile. Without any the pages
// say that there are none.
func (g *global) reviewPolicies(pl *places) ui.Policies {
	load := func() (*api.Bundle, *policy.Set, error) {
		dir := g.policyDir(pl)
		if dir == "" {
			return nil, nil, errors.New("no folder of documents is known; start attache audit ui with --config")
		}
		return loadPolicies(dir, api.PlaceRun)
	}
	return ui.Policies{
		Reach: func(_ context.Context, w *audit.Workload) ([]ui.Reach, error) {
			_, set, err := load()
			var who *identity.Workload
			if err == nil {
				who, err = workloadOf(w)
			}
			if err != nil { // who looks is whose machine it is
				return nil, ui.Unsaid("What it may do is not known: " + err.Error() + ".")
			}
			var out []ui.Reach
			for _, r := range set.Reach(who) {
				out = append(out, ui.Reach{Policy: r.Policy, Rule: r.Rule, Action: r.Action, Hosts: r.Hosts, Methods: r.Methods, Paths: r.Paths, Provider: r.Provider})
			}
			return out, nil
		},
		Explain: func(_ context.Context, r *audit.Record) (string, error) {
			_, set, err := load()
			if err != nil {
				return "", err
			}
			q, err := requestOf(r)
			if err != nil {
				return "", err
			}
			return set.Explain(q).String(), nil
		},
		Patch: func(_ context.Context, r *audit.Record) (string, error) {
			b, _, err := load()
			if err != nil {
				return "", err
			}
			text, err := suggest.ForDenied(b, r)
			return string(text), err
		},
	}
}

func (g *global) policyDir(pl *places) string {
	if pl.config != "" {
		return pl.config
	}
	if dir := os.Getenv("ATTACHE_CONFIG"); dir != "" {
		return dir
	}
	runs, err := g.runs("")
	if err != nil || len(runs) == 0 {
		return ""
	}
	newest := runs[0]
	for _, r := range runs {
		if r.Started.After(newest.Started) {
			newest = r
		}
	}
	return newest.Config
}

// workloadOf is the workload of a record as policy sees it.
func workloadOf(w *audit.Workload) (*identity.Workload, error) {
	if w == nil {
		return nil, errors.New("the record names no workload")
	}
	id, err := spiffeid.FromString(w.ID)
	if err != nil {
		return nil, fmt.Errorf("the record's workload: %w", err)
	}
	return &identity.Workload{ID: id, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount, Labels: w.Labels, RunID: w.RunID}, nil
}

// requestOf is the request of a record as policy sees it; values of parameters
// and headers are not in records.
func requestOf(r *audit.Record) (*policy.Request, error) {
	q := r.Request
	if q == nil || q.Host == "" {
		return nil, errors.New("the record has no request")
	}
	w, err := workloadOf(r.Workload)
	if err != nil {
		return nil, err
	}
	out := &policy.Request{Host: q.Host, Port: q.Port, Scheme: q.Scheme, Method: q.Method, Path: q.Path, Query: map[string][]string{}, Header: http.Header{},
		Protocol: q.Protocol, Workload: w, Time: r.Time}
	for _, k := range q.QueryKeys {
		out.Query[k] = []string{""}
	}
	if out.Protocol == "" {
		out.Protocol = policy.HTTP
	}
	if t := r.Task; t != nil {
		out.Task = &identity.Task{ID: t.ID, Purpose: t.Purpose, OpenedBy: t.OpenedBy, Opened: r.Time, Expires: r.Time.AddDate(1, 0, 0), WorkloadID: w.ID}
		if h := r.Human; h != nil {
			out.Task.Human = &identity.Human{Subject: h.Subject, Issuer: h.Issuer, Email: h.Email}
		}
	}
	return out, nil
}
