package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ui"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/policy"
)

// reviewPolicies reads the documents of --config, $ATTACHE_CONFIG or the newest
// live run, anew for each page: they may change meanwhile. Without any the pages
// say that there are none.
func (g *global) reviewPolicies(pl *places) ui.Policies {
	load := func() (*policy.Set, error) {
		dir := g.policyDir(pl)
		if dir == "" {
			return nil, errors.New("no folder of documents is known; start attache audit ui with --config")
		}
		_, set, err := loadPolicies(dir, api.PlaceRun)
		return set, err
	}
	return ui.Policies{
		Reach: func(_ context.Context, w *audit.Workload) ([]ui.Reach, error) {
			set, err := load()
			if err != nil {
				return nil, err
			}
			who, err := workloadOf(w)
			if err != nil {
				return nil, err
			}
			var out []ui.Reach
			for _, r := range set.Reach(who) {
				out = append(out, ui.Reach{Policy: r.Policy, Rule: r.Rule, Action: r.Action, Hosts: r.Hosts, Methods: r.Methods, Paths: r.Paths, Provider: r.Provider})
			}
			return out, nil
		},
		Explain: func(_ context.Context, r *audit.Record) (string, error) {
			set, err := load()
			if err != nil {
				return "", err
			}
			q, err := requestOf(r)
			if err != nil {
				return "", err
			}
			return set.Explain(q).String(), nil
		},
		Patch: func(_ context.Context, r *audit.Record) (string, error) { return patchFor(r) },
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

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// patchFor writes a policy that allows what a record was denied, and no more:
// that agent, host, port, method and path.
func patchFor(r *audit.Record) (string, error) {
	q := r.Request
	if q == nil || q.Host == "" || r.Workload == nil || r.Workload.ID == "" {
		return "", errors.New("the record names no workload or no destination")
	}
	if q.Method == "" {
		return "", errors.New("the connection was refused before a request was seen; a rule for it would have to allow all of the host")
	}
	if strings.ContainsAny(q.Path, "*{}…") {
		return "", errors.New("the path has characters that mean something else in a rule")
	}
	name := strings.Trim(notInNames.ReplaceAllString(strings.ToLower(q.Method+"-"+q.Host), "-"), "-")
	rule := v1alpha1.Rule{Name: name, Hosts: []string{q.Host}, Methods: []string{q.Method}, Paths: []string{q.Path}, Action: v1alpha1.ActionAllow}
	if q.Port != 0 && q.Port != 443 && q.Port != 80 {
		rule.Ports = []int{q.Port}
	}
	if r.Human != nil {
		rule.When = "human.present"
	}
	note := "# No credential: the call passes as the agent makes it. Name a provider to put one on it:\n#   credential: {provider: NAME}\n"
	if u := r.Credential; u != nil && u.Provider != "" {
		rule.Credential, note = &v1alpha1.CredentialRef{Provider: u.Provider}, ""
	}
	doc := v1alpha1.AccessPolicy{
		TypeMeta: v1alpha1.TypeMeta{APIVersion: v1alpha1.APIVersion, Kind: v1alpha1.KindAccessPolicy}, Metadata: v1alpha1.ObjectMeta{Name: "allow-" + name},
		Spec: v1alpha1.AccessPolicySpec{Workloads: []v1alpha1.WorkloadSelector{{SPIFFEID: r.Workload.ID}}, Rules: []v1alpha1.Rule{rule}},
	}
	text, err := asYAML(doc)
	if err != nil {
		return "", fmt.Errorf("write the patch: %w", err)
	}
	return note + text, nil
}

// asYAML writes v by its JSON tags, in the order of its fields.
func asYAML(v any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	var n yaml.Node // JSON is YAML
	if err := yaml.Unmarshal(b, &n); err != nil {
		return "", err
	}
	plainStyle(&n)
	out, err := yaml.Marshal(&n)
	return string(out), err
}

func plainStyle(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		plainStyle(c)
	}
}
