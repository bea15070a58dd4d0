package server

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"

	"github.com/attache-dev/attache/api/crd"
	"github.com/attache-dev/attache/api/v1alpha1"
)

// Change is a change of one of our objects, or of a namespace, that admission
// lets pass. It may yet fail: other webhooks and the API server itself come
// after.
type Change struct {
	ID                    string // of the review
	Kind, Namespace, Name string
	Operation             string // CREATE, UPDATE or DELETE
	By                    User
	Before, After         json.RawMessage
}

// Admission is what became of a pod.
type Admission struct {
	ID              string // of the review
	Result          string // injected, skipped, opted_out, denied or error
	Namespace, Name string // Name may be that which generates names
	Account, Owner  string // service account; KIND/NAME of the controller
	Mode, Reason    string
	By              User
}

// Results of an [Admission].
const (
	Injected = resultInjected
	Skipped  = resultSkipped
	OptedOut = "opted_out"
	Denied   = resultDenied
	Failed   = resultError
)

func (s *Server) admitted(ctx context.Context, q *request, pod map[string]any, facts Pod, result, mode, reason string) {
	if q.DryRun {
		return
	}
	a := Admission{ID: q.UID, Result: result, Namespace: q.Namespace, Name: q.Name, Account: facts.ServiceAccount, Mode: mode, Reason: reason, By: q.UserInfo}
	meta, _ := pod["metadata"].(map[string]any)
	if a.Name == "" {
		a.Name, _ = meta["name"].(string)
	}
	if a.Name == "" {
		a.Name, _ = meta["generateName"].(string)
	}
	if o := owner(pod); o != nil {
		a.Owner = o.Kind + "/" + o.Name
	}
	s.Admitted(ctx, a)
}

// recorded reports kinds of which changes are told.
func recorded(k groupKind) bool {
	if k.Group == "" {
		return k.Kind == "Namespace"
	}
	return k.Group == crd.GroupVersion().Group && (k.Kind == v1alpha1.KindRevocation || slices.Contains(crd.PolicyKinds(), k.Kind))
}

// changed tells of a change that passes. A dry run is none.
func (s *Server) changed(ctx context.Context, q *request) error {
	if q.DryRun || q.SubResource != "" || !recorded(q.Kind) {
		return nil
	}
	name := q.Name
	if name == "" { // of one whose name is generated
		var o struct {
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
		}
		if json.Unmarshal(q.Object, &o) == nil {
			name = o.Metadata.Name
		}
	}
	return s.Changed(ctx, Change{q.UID, q.Kind.Kind, q.Namespace, name, q.Operation, q.UserInfo, q.OldObject, q.Object})
}

// record tells of changes that nothing is validated of: that objects are
// deleted, and revocations. It is apart from validation, which fails closed:
// nobody could delete a namespace while this program is down.
func (s *Server) record(ctx context.Context, q *request) (*response, string, *Event) {
	return s.pass(ctx, q, allow(q.UID))
}

// pass lets a change pass once it is recorded. A revocation passes in any
// case: that credentials end counts more.
func (s *Server) pass(ctx context.Context, q *request, res *response) (*response, string, *Event) {
	err := s.changed(ctx, q)
	if err == nil {
		return res, resultAllowed, nil
	}
	refused := q.Kind.Kind != v1alpha1.KindRevocation
	s.Log.ErrorContext(ctx, "change not recorded", "refused", refused, "kind", q.Kind.Kind, "namespace", q.Namespace, "name", q.Name, "err", err)
	if !refused {
		res.Warnings = append(res.Warnings, "Attaché: the revocation is carried out, and could not be recorded")
		return res, resultAllowed, nil
	}
	return deny(q.UID, http.StatusInternalServerError, "InternalError",
		"Attaché: the change cannot be recorded, so it is refused; the operator finds the reason in the log of attache-control"), resultError, nil
}
