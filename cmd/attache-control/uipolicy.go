package main

import (
	"context"
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/audit/ui"
	"github.com/attache-dev/attache/control/peer"
	"github.com/attache-dev/attache/control/reconcile"
	"github.com/attache-dev/attache/identity"
	"github.com/attache-dev/attache/policy"
	"github.com/attache-dev/attache/policy/replay"
	"github.com/attache-dev/attache/policy/suggest"
)

// What the review page says where it cannot say what is in force.
const (
	policiesAway = ui.Unsaid("The policies of the cluster cannot be read now; the log of the service says why.")
	noPodOfOurs  = ui.Unsaid("The record names no pod of this cluster, so no policy of it can be looked at.")
)

// policiesWait bounds what a page waits for the cluster.
const policiesWait = 5 * time.Second

// pagePolicies answers from the documents that the cluster's sidecars have now.
// It is asked about records that the person may see, and says nothing of another
// namespace than the record's own.
func (h *host) pagePolicies() (ui.Policies, error) {
	td, err := spiffeid.TrustDomainFromString(h.trustDomain)
	if err != nil {
		return ui.Policies{}, err
	}
	nameservers, err := resolvers("/etc/resolv.conf")
	if err != nil {
		return ui.Policies{}, err
	}
	r := reconcile.NewReader(reconcile.ReaderConfig{
		Cache: h.mgr.GetCache(), Check: func(b *api.Bundle) error { _, err := policy.Compile(b); return err }, TrustDomain: h.trustDomain, Nameservers: nameservers,
	})
	inForce := func(ctx context.Context, w *audit.Workload) (*api.Bundle, *policy.Set, *identity.Workload, error) {
		who, err := workloadOf(td, w)
		if err != nil {
			return nil, nil, nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, policiesWait)
		defer cancel()
		b, err := r.Bundle(ctx, api.Pod{SPIFFEID: who.ID.String(), Namespace: who.Namespace, ServiceAccount: who.ServiceAccount, Labels: who.Labels})
		if errors.Is(err, reconcile.ErrNoDocuments) {
			return nil, nil, nil, ui.Unsaid("Namespace " + who.Namespace + " is not opted in any more, or is gone: nothing is in force there.")
		}
		var set *policy.Set
		if err == nil {
			set, err = policy.Compile(b)
		}
		if err != nil {
			h.log.WarnContext(ctx, "cannot read the policies for the review page", "namespace", who.Namespace, "cause", err)
			return nil, nil, nil, policiesAway
		}
		return b, set, who, nil
	}
	return ui.Policies{
		Reach: func(ctx context.Context, w *audit.Workload) ([]ui.Reach, error) {
			_, set, who, err := inForce(ctx, w)
			if err != nil {
				return nil, err
			}
			var out []ui.Reach
			for _, r := range set.Reach(who) {
				out = append(out, ui.Reach{Policy: r.Policy, Rule: r.Rule, Action: r.Action, Hosts: r.Hosts, Methods: r.Methods, Paths: r.Paths, Provider: r.Provider})
			}
			return out, nil
		},
		Explain: func(ctx context.Context, x *audit.Record) (string, error) {
			_, set, _, err := inForce(ctx, x.Workload)
			if err != nil {
				return "", err
			}
			q, unknown := replay.Of(x)
			if unknown != "" {
				return "", ui.Unsaid(unknown)
			}
			return set.Explain(&q.Request).String(), nil
		},
		Patch: func(ctx context.Context, x *audit.Record) (string, error) {
			b, _, _, err := inForce(ctx, x.Workload)
			if err != nil {
				return "", err
			}
			text, err := suggest.ForDenied(b, x)
			return string(text), err
		},
	}, nil
}

// workloadOf is the workload of a record as policy sees it. Its name is that of
// its namespace and account, or it is nobody of this cluster: what a record says
// must not open the policies of another namespace.
func workloadOf(td spiffeid.TrustDomain, w *audit.Workload) (*identity.Workload, error) {
	if w == nil {
		return nil, noPodOfOurs
	}
	id, err := peer.ID(td, w.Namespace, w.ServiceAccount)
	if err != nil || id.String() != w.ID {
		return nil, noPodOfOurs
	}
	return &identity.Workload{ID: id, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount, Labels: w.Labels, Node: w.Node}, nil
}
