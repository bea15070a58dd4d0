package main

import (
	"context"
	"net/http"
	"strings"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/audit"
	"github.com/attache-dev/attache/control/reconcile"
	"github.com/attache-dev/attache/control/trail"
	"github.com/attache-dev/attache/webhook/server"
)

// changed records who asks for a change of what decides.
func (h *host) changed(ctx context.Context, c server.Change) error {
	return h.trail.Requested(ctx, trail.Request{
		ID: c.ID, Kind: c.Kind, Namespace: c.Namespace, Name: c.Name, Operation: strings.ToLower(c.Operation), By: trail.User(c.By),
		Before: c.Before, After: c.After,
	})
}

// admitted records what became of a pod. What cannot be recorded is counted:
// the pod gets no identity, which cannot be recorded either.
func (h *host) admitted(ctx context.Context, a server.Admission) {
	name := map[string]string{
		server.Injected: audit.EventInjectionDone, server.Skipped: audit.EventInjectionSkipped, server.OptedOut: audit.EventInjectionOptedOut,
		server.Denied: audit.EventInjectionDenied, server.Failed: audit.EventInjectionDenied,
	}[a.Result]
	_ = h.trail.Admitted(ctx, trail.Admission{
		ID: a.ID, Event: name, Namespace: a.Namespace, Name: a.Name, Account: a.Account, Owner: a.Owner, Mode: a.Mode, Reason: a.Reason, By: trail.User(a.By),
	})
}

// observer records what the reconciler sees come into being.
func (h *host) observer() reconcile.Observer {
	if h.trail == nil {
		return reconcile.Observer{}
	}
	return reconcile.Observer{
		Changed: func(ctx context.Context, c reconcile.Change) error {
			o := c.Object
			return h.trail.Observed(ctx, trail.Observed{
				Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, UID: c.UID, Operation: operation(c), Generation: o.Generation,
				Before: c.Before, After: c.After, Problem: c.Problem,
			})
		},
		Bundle: func(ctx context.Context, version, namespace string, objects []api.Object) error {
			members := make([]trail.Member, len(objects))
			for i, o := range objects {
				members[i] = trail.Member{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, Generation: o.Generation, Spec: o.Spec}
			}
			return h.trail.Bundle(ctx, version, namespace, members)
		},
		Revoked: func(ctx context.Context, id, reason string, acknowledged, total int, complete bool) error {
			return h.trail.Revoked(ctx, trail.Revocation{ID: id, Reason: reason, Acknowledged: acknowledged, Total: total, Complete: complete})
		},
	}
}

func operation(c reconcile.Change) string {
	switch {
	case c.Loaded:
		return trail.OpLoad
	case c.After == nil:
		return trail.OpDelete
	case c.Before == nil:
		return trail.OpCreate
	}
	return trail.OpUpdate
}

// withAPIServer takes the API server's audit events beside its reviews, where
// the operator of the cluster has set that up.
func (h *host) withAPIServer(reviews http.Handler) http.Handler {
	if h.trail == nil || h.auditEvents == "" {
		return reviews
	}
	mux := http.NewServeMux()
	mux.Handle("/", reviews)
	mux.Handle("POST "+trail.PathAPIServer, &trail.APIServer{Trail: h.trail, TokenFile: h.auditEvents, Log: h.log})
	return mux
}
