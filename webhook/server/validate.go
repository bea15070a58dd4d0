package server

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
)

// Object is what a [Validator] is asked about.
type Object struct {
	Group, Kind     string
	Namespace, Name string
	// Raw is the object; Old the one before, of an update.
	Raw, Old json.RawMessage
}

// Finding is one thing that is wrong with an object, or could be.
type Finding struct {
	Text    string // names field and fix
	Warning bool   // the object is taken all the same
}

// Validator finds what is wrong with an object. It is called concurrently.
type Validator func(ctx context.Context, o Object) ([]Finding, error)

// validate gives the loader's messages for our own objects while their author
// waits. The API server's schema has been checked before; what this finds and
// nobody heard is found again by the control plane, and in status.
func (s *Server) validate(ctx context.Context, q *request) (*response, string, *Event) {
	if q.Operation != "CREATE" && q.Operation != "UPDATE" || q.SubResource != "" {
		return allow(q.UID), resultAllowed, nil
	}
	if s.Validate == nil {
		return s.pass(ctx, q, allow(q.UID))
	}
	found, err := s.Validate(ctx, Object{q.Kind.Group, q.Kind.Kind, q.Namespace, q.Name, q.Object, q.OldObject})
	if err != nil {
		s.Log.ErrorContext(ctx, "validation failed", "kind", q.Kind.Kind, "namespace", q.Namespace, "name", q.Name, "err", err)
		return deny(q.UID, http.StatusInternalServerError, "InternalError", "Attaché: the object cannot be checked; try again"), resultError, nil
	}
	res := allow(q.UID)
	var bad []string
	for _, f := range found {
		if f.Warning {
			res.Warnings = append(res.Warnings, f.Text)
		} else {
			bad = append(bad, f.Text)
		}
	}
	if len(bad) > 0 {
		res = deny(q.UID, http.StatusUnprocessableEntity, "Invalid", "Attaché: "+strings.Join(bad, "\n"))
		return res, resultDenied, nil
	}
	return s.pass(ctx, q, res)
}
