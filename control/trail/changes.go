package trail

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/audit"
)

// Operations of a change.
const (
	OpCreate = "create"
	OpUpdate = "update"
	OpDelete = "delete"
	OpLoad   = "load" // was there when the control plane started
)

// User is who asked the API server, as it authenticated them.
type User struct {
	Username, UID string
	Groups        []string
}

func (u User) principal() *audit.Principal {
	return &audit.Principal{Username: u.Username, UID: u.UID, Groups: u.Groups}
}

// Request is a change of an object as admission saw it.
type Request struct {
	ID                    string // of the API server's review
	Kind, Namespace, Name string
	Operation             string
	By                    User
	Before, After         json.RawMessage // the objects; empty where there is none
}

// part is what of an object is looked at.
type part struct {
	Metadata struct {
		UID         string            `json:"uid"`
		Generation  int64             `json:"generation"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec json.RawMessage `json:"spec"`
}

// Requested records who asks for a change of an object, as change.requested: it
// may yet fail. What came into being is policy.changed, provider.changed or
// config.changed, of the same document and version. A change that cannot be
// recorded should be refused. What changes nothing of the spec is not recorded.
func (t *Trail) Requested(ctx context.Context, q Request) error {
	if t == nil {
		return nil
	}
	var before, after part
	for _, o := range []struct {
		raw json.RawMessage
		to  *part
	}{{q.Before, &before}, {q.After, &after}} {
		if len(o.raw) == 0 || string(o.raw) == "null" {
			continue
		}
		if err := json.Unmarshal(o.raw, o.to); err != nil {
			return err
		}
	}
	if q.Kind == "Namespace" {
		return t.namespace(ctx, q, before, after)
	}
	if q.Kind == v1alpha1.KindRevocation {
		return t.revocation(ctx, q, after, before)
	}
	c := &audit.Change{Kind: q.Kind, Namespace: q.Namespace, Name: q.Name, Operation: q.Operation, By: q.By.principal()}
	var old, fresh Document
	var err error
	if q.Operation != OpCreate {
		if old, err = NewDocument(q.Kind, q.Namespace, q.Name, before.Spec); err != nil {
			return err
		}
		c.VersionBefore = old.Digest
	}
	generation, uid := before.Metadata.Generation, before.Metadata.UID
	if q.Operation != OpDelete {
		if fresh, err = NewDocument(q.Kind, q.Namespace, q.Name, after.Spec); err != nil {
			return err
		}
		c.VersionAfter, c.Text = fresh.Digest, fresh.Text
		generation, uid = after.Metadata.Generation, after.Metadata.UID
	}
	if old.Digest == fresh.Digest {
		return nil // labels, finalizers: what decides is the same
	}
	c.Diff = t.diff(old.Text, fresh.Text)
	fields := map[string]string{
		"request": q.ID, "object_uid": uid, "kind": q.Kind, "namespace": q.Namespace, "name": q.Name, "operation": q.Operation, "by": q.By.Username,
	}
	if generation > 0 {
		fields["generation"] = strconv.FormatInt(generation, 10)
	}
	c.Beneficiary = beneficiary(q, before.Spec, after.Spec)
	if c.Beneficiary != "" {
		fields["beneficiary"] = c.Beneficiary
		t.own.Inc()
		t.log.WarnContext(ctx, "a policy is changed by its beneficiary", "kind", q.Kind, "namespace", q.Namespace, "name", q.Name, "by", q.By.Username)
	}
	r := event(audit.EventChangeRequested, fields)
	r.Change = c
	return t.Write(ctx, r)
}

// namespace records a change of what a namespace asks of us.
func (t *Trail) namespace(ctx context.Context, q Request, before, after part) error {
	was, is := ours(before), ours(after)
	if was == is {
		return nil
	}
	r := event(EventNamespaceChanged, map[string]string{"request": q.ID, "namespace": q.Name, "name": q.Name, "operation": q.Operation, "by": q.By.Username})
	r.Change = &audit.Change{Kind: "Namespace", Namespace: q.Name, Name: q.Name, Operation: q.Operation, By: q.By.principal(), Text: is, Diff: t.diff(was, is)}
	return t.Write(ctx, r)
}

// ours are the labels and annotations that concern us, a line each.
func ours(p part) string {
	var out []string
	for what, m := range map[string]map[string]string{"label": p.Metadata.Labels, "annotation": p.Metadata.Annotations} {
		for k, v := range m {
			if strings.HasPrefix(k, group+"/") {
				out = append(out, what+" "+k+"="+v)
			}
		}
	}
	slices.Sort(out)
	if len(out) == 0 {
		return ""
	}
	return strings.Join(out, "\n") + "\n"
}

// group is that of our API and of our labels.
const group = "attache.dev"

// revocation records who ends credentials.
func (t *Trail) revocation(ctx context.Context, q Request, after, before part) error {
	spec := after.Spec
	if q.Operation == OpDelete {
		spec = before.Spec
	} else if q.Operation == OpUpdate && string(after.Spec) == string(before.Spec) {
		return nil
	}
	var s v1alpha1.RevocationSpec
	if len(spec) > 0 {
		if err := json.Unmarshal(spec, &s); err != nil {
			return err
		}
	}
	r := event(audit.EventRevokeOrdered, map[string]string{
		"request": q.ID, "operation": q.Operation, "name": q.Name, "by": q.By.Username, "reason": s.Reason,
		"provider": s.Provider, "handle": s.Handle, "task": s.Task, "owner": s.Owner, "pod_uid": s.PodUID,
	})
	r.Change = &audit.Change{Kind: q.Kind, Name: q.Name, Operation: q.Operation, By: q.By.principal()}
	if s.Handle != "" {
		r.Credential = &audit.Use{Handle: s.Handle, Provider: s.Provider}
	}
	return t.Write(ctx, r)
}

// beneficiary is the workload that gains by a change and asked for it: a
// service account that the policy selects, before or after, or that may use
// the provider. Labels of pods are taken to match: a service account may make
// pods with any.
func beneficiary(q Request, specs ...json.RawMessage) string {
	rest, ok := strings.CutPrefix(q.By.Username, "system:serviceaccount:")
	namespace, name, ok2 := strings.Cut(rest, ":")
	if !ok || !ok2 {
		return ""
	}
	if q.Namespace != "" && q.Namespace != namespace {
		return ""
	}
	who := "system:serviceaccount:" + rest
	for _, spec := range specs {
		if len(spec) == 0 {
			continue
		}
		switch q.Kind {
		case v1alpha1.KindAccessPolicy, v1alpha1.KindClusterAccessPolicy:
			var s v1alpha1.AccessPolicySpec
			if json.Unmarshal(spec, &s) == nil && concerns(&s, namespace, name) {
				return who
			}
		case v1alpha1.KindCredentialProvider:
			return who
		case v1alpha1.KindClusterCredentialProvider:
			var s v1alpha1.ClusterCredentialProviderSpec
			if json.Unmarshal(spec, &s) == nil && s.AllowedNamespaces != nil &&
				(s.AllowedNamespaces.Selector != nil || slices.Contains(s.AllowedNamespaces.Names, "*") || slices.Contains(s.AllowedNamespaces.Names, namespace)) {
				return who
			}
		}
	}
	return ""
}

// concerns reports whether a policy can select pods of a service account.
func concerns(s *v1alpha1.AccessPolicySpec, namespace, account string) bool {
	targeted := len(s.TargetRefs) == 0
	for _, t := range s.TargetRefs {
		targeted = targeted || t.Kind == api.TargetNamespace && t.Name == namespace || t.Kind == api.TargetServiceAccount && t.Name == account
	}
	if !targeted || len(s.Workloads) == 0 {
		return targeted
	}
	return slices.ContainsFunc(s.Workloads, func(w v1alpha1.WorkloadSelector) bool {
		path := "/ns/" + namespace + "/sa/" + account
		id := w.SPIFFEID == "" || strings.HasSuffix(w.SPIFFEID, path)
		if prefix, ok := strings.CutSuffix(w.SPIFFEID, "/*"); ok {
			_, of, _ := strings.Cut(strings.TrimPrefix(prefix, "spiffe://"), "/")
			id = of == "" || strings.HasPrefix(path+"/", "/"+of+"/")
		}
		return id && (len(w.Namespaces) == 0 || slices.Contains(w.Namespaces, namespace)) &&
			(len(w.ServiceAccounts) == 0 || slices.Contains(w.ServiceAccounts, account))
	})
}
