package trail

import (
	"context"

	"github.com/attache-dev/attache/audit"
)

// Admission is what became of a pod at admission.
type Admission struct {
	ID              string // of the API server's review
	Event           string // audit.EventInjectionDone, …
	Namespace, Name string // Name may be that which generates names
	Account, Owner  string // service account; KIND/NAME of the controller
	Mode, Reason    string
	By              User
}

// Admitted records what became of a pod at admission. The pods of a controller
// that come again and again are recorded each: each is another pod.
func (t *Trail) Admitted(ctx context.Context, a Admission) error {
	if t == nil {
		return nil
	}
	r := event(a.Event, map[string]string{
		"request": a.ID, "namespace": a.Namespace, "name": a.Name, "service_account": a.Account, "controller": a.Owner,
		"mode": a.Mode, "reason": a.Reason, "by": a.By.Username,
	})
	r.Workload = &audit.Workload{Namespace: a.Namespace, ServiceAccount: a.Account}
	if a.Event == audit.EventInjectionDone {
		return t.Write(ctx, r)
	}
	// A controller tries a refused pod again without end.
	return t.once(ctx, r, a.Event, a.Namespace, a.Owner, a.Reason)
}

// Guard is a request that one of the guards refused, as the API server's own
// audit log has it.
type Guard struct {
	ID, Policy                  string
	Verb, Resource, SubResource string
	Namespace, Name             string
	Reason                      string
	By                          User
	Impersonated                string
}

// Denied records a guard's denial.
func (t *Trail) Denied(ctx context.Context, g Guard) error {
	if t == nil {
		return nil
	}
	r := event(audit.EventGuardDenied, map[string]string{
		"request": g.ID, "policy": g.Policy, "verb": g.Verb, "resource": g.Resource, "subresource": g.SubResource,
		"namespace": g.Namespace, "name": g.Name, "reason": g.Reason, "by": g.By.Username, "impersonated": g.Impersonated,
	})
	r.Change = &audit.Change{Kind: g.Resource, Namespace: g.Namespace, Name: g.Name, Operation: g.Verb, By: g.By.principal()}
	return t.once(ctx, r, audit.EventGuardDenied, g.Policy, g.By.Username, g.Verb, g.Resource, g.SubResource, g.Namespace, g.Name)
}
