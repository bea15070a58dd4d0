package reconcile

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/v1alpha1"
)

// Observer is told by the leader of what came into being, for the records. A
// func that fails is called again with the same; one that is nil is not
// called.
type Observer struct {
	// Changed is told of each generation of an object that the leader saw, and
	// of its end. Generations that came and went between two looks are not seen.
	Changed func(context.Context, Change) error
	// Bundle is told of each set of documents that some pod has: version is what
	// its sidecar's records have as decision.version.
	Bundle func(ctx context.Context, version, namespace string, objects []api.Object) error
	// Revoked is told when a Revocation came, and when it is complete.
	Revoked func(ctx context.Context, id, reason string, acknowledged, total int, complete bool) error
}

// Change is one generation of an object, or its end.
type Change struct {
	Object        api.Object // the newest; of an end, the last
	UID           string
	Before, After json.RawMessage // specs; nil where there is none
	// Loaded says that the object was there when this replica became the leader:
	// what happened to it before is not known here.
	Loaded  bool
	Problem string // why the generation is not in force
}

// observed is what the leader has told of.
type observed struct {
	begun   bool
	objects map[api.Ref]seen
	bundles map[string]bool // by version
}

type seen struct {
	uid    string
	object api.Object
}

// leads reports whether this replica is the leader.
func (e *Engine) leads() bool {
	if e.Elected == nil {
		return true
	}
	select {
	case <-e.Elected:
		return true
	default:
		return false
	}
}

// observe tells of what a pass brought.
func (e *Engine) observe(ctx context.Context) {
	if !e.leads() {
		return
	}
	o := &e.observed
	if o.objects == nil {
		o.objects, o.bundles = map[api.Ref]seen{}, map[string]bool{}
	}
	ok := e.observeObjects(ctx, o)
	o.begun = true
	if !e.observeBundles(ctx, o) || !ok {
		time.AfterFunc(retryAfter, func() { poke(e.wake) })
	}
}

// told calls f and reports whether it could.
func (e *Engine) told(ctx context.Context, err error) bool {
	if err != nil {
		e.Log.ErrorContext(ctx, "a change is not recorded, it is tried again", "cause", err)
	}
	return err == nil
}

func (e *Engine) observeObjects(ctx context.Context, o *observed) bool {
	if e.Observer.Changed == nil {
		return true
	}
	ok := true
	for ref, x := range e.objects {
		old, had := o.objects[ref]
		if had && old.uid == x.uid && old.object.Generation == x.Generation {
			continue
		}
		c := Change{Object: x.Object, UID: x.uid, After: x.Spec, Loaded: !had && !o.begun}
		if had && old.uid == x.uid {
			c.Before = old.object.Spec
		}
		if left(x.problems) {
			c.Problem = problemText(x.problems)
		}
		if e.told(ctx, e.Observer.Changed(ctx, c)) {
			o.objects[ref] = seen{x.uid, x.Object}
		} else {
			ok = false
		}
	}
	for ref, old := range o.objects {
		if e.objects[ref] != nil {
			continue
		}
		if e.told(ctx, e.Observer.Changed(ctx, Change{Object: old.object, UID: old.uid, Before: old.object.Spec})) {
			delete(o.objects, ref)
		} else {
			ok = false
		}
	}
	return ok
}

func problemText(ps api.Problems) string {
	for _, p := range ps {
		if !p.Reason.Unresolved() {
			return p.Text
		}
	}
	return ""
}

// observeBundles tells of the sets of documents that pods have now.
func (e *Engine) observeBundles(ctx context.Context, o *observed) bool {
	if e.Observer.Bundle == nil || e.cluster == nil {
		return true
	}
	used := map[string]bool{}
	ok := true
	for _, p := range e.pods {
		if p.group == nil || p.group.selection.Bundle == nil {
			continue
		}
		version := p.group.selection.Bundle.Version
		if used[version] {
			continue
		}
		used[version] = true
		if o.bundles[version] {
			continue
		}
		if e.told(ctx, e.Observer.Bundle(ctx, version, p.namespace, e.members(p))) {
			o.bundles[version] = true
		} else {
			ok = false
		}
	}
	for v := range o.bundles {
		if !used[v] {
			delete(o.bundles, v)
		}
	}
	return ok
}

// members are the objects, as they are in force, that a pod's documents were
// made of, with the configuration.
func (e *Engine) members(p *pod) (out []api.Object) {
	refs := slices.Clone(p.group.selection.Objects)
	config := api.Ref{Kind: v1alpha1.KindAttacheConfig, Name: "default"}
	if !slices.Contains(refs, config) {
		refs = append(refs, config)
	}
	for _, r := range refs {
		x, ok := e.cluster.effective[r]
		if s := e.spaces[p.namespace]; !ok && s != nil {
			x, ok = s.effective[r]
		}
		if ok {
			out = append(out, x)
		}
	}
	return out
}

// observeRevocation tells that a Revocation came, and that it is complete.
func (e *Engine) observeRevocation(ctx context.Context, id, reason string, acknowledged, total int) {
	if e.Observer.Revoked == nil {
		return
	}
	if e.revoked == nil {
		e.revoked = map[string]bool{}
	}
	complete := acknowledged >= total
	if was, had := e.revoked[id]; had && (was || !complete) {
		return
	}
	if e.told(ctx, e.Observer.Revoked(ctx, id, reason, acknowledged, total, complete)) {
		e.revoked[id] = complete
	}
}
