package trail

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
)

// Observed is one generation of an object that came into being, or its end.
type Observed struct {
	Kind, Namespace, Name string
	UID                   string
	Operation             string
	Generation            int64
	Before, After         json.RawMessage // specs; empty where there is none
	Problem               string          // why it is not in force, if it is not
}

// Observed records what the reconciler saw come into being. Who asked for it
// stands in the change.requested of the same object, generation and version.
func (t *Trail) Observed(ctx context.Context, o Observed) error {
	if t == nil {
		return nil
	}
	c := &audit.Change{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, Operation: o.Operation}
	var before, after Document
	var err error
	if len(o.Before) > 0 {
		if before, err = NewDocument(o.Kind, o.Namespace, o.Name, o.Before); err != nil {
			return err
		}
		c.VersionBefore = before.Digest
	}
	if len(o.After) > 0 {
		if after, err = NewDocument(o.Kind, o.Namespace, o.Name, o.After); err != nil {
			return err
		}
		c.VersionAfter, c.Text = after.Digest, after.Text
	}
	if o.Operation != OpLoad {
		c.Diff = t.diff(before.Text, after.Text)
	}
	r := event(changed(o.Kind), map[string]string{
		"object_uid": o.UID, "generation": strconv.FormatInt(o.Generation, 10), "kind": o.Kind, "namespace": o.Namespace, "name": o.Name,
		"operation": o.Operation, "problem": o.Problem,
	})
	r.Change = c
	return t.Write(ctx, r)
}

// changed is the event of a kind's change.
func changed(kind string) string {
	switch kind {
	case v1alpha1.KindAttacheConfig:
		return audit.EventConfigChanged
	case v1alpha1.KindCredentialProvider, v1alpha1.KindClusterCredentialProvider:
		return audit.EventProviderChanged
	}
	return audit.EventPolicyChanged
}

// Member is a document of a bundle.
type Member struct {
	Kind, Namespace, Name string
	Generation            int64
	Spec                  json.RawMessage
}

// Bundle records what a policy version consists of: sidecars' records name it
// as decision.version.
func (t *Trail) Bundle(ctx context.Context, version, namespace string, members []Member) error {
	if t == nil {
		return nil
	}
	list := make([]string, len(members))
	for i, m := range members {
		d, err := NewDocument(m.Kind, m.Namespace, m.Name, m.Spec)
		if err != nil {
			return err
		}
		name := m.Name
		if m.Namespace != "" {
			name = m.Namespace + "/" + name
		}
		list[i] = fmt.Sprintf("%s %s %d %s", m.Kind, name, m.Generation, d.Digest)
	}
	fields := audit.BundleFields(version, list)
	fields["namespace"] = namespace
	return t.Write(ctx, event(audit.EventPolicyBundle, fields))
}

// Revocation is how far a Revocation has come.
type Revocation struct {
	ID, Reason          string
	Acknowledged, Total int
	Complete            bool
}

// Revoked records that a revocation came into force, or is complete.
func (t *Trail) Revoked(ctx context.Context, r Revocation) error {
	if t == nil {
		return nil
	}
	state := "in_force"
	if r.Complete {
		state = "complete"
	}
	return t.Write(ctx, event(audit.EventRevocation, map[string]string{
		"id": r.ID, "reason": r.Reason, "state": state, "acknowledged": strconv.Itoa(r.Acknowledged), "total": strconv.Itoa(r.Total),
	}))
}
