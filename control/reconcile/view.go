package reconcile

import (
	"fmt"
	"time"

	"github.com/attache-dev/attache/api"
	"github.com/attache-dev/attache/api/crd"
	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/control/xds"
)

// view is what the status loop reads of a pass. It is immutable.
type view struct {
	objects   []object
	pods      map[string]viewPod
	conflicts map[api.Ref]api.Problems // that objects have in some pods only
	standIns  map[api.Ref]api.Object
	keys      map[string][]string // labels that policies select by, by namespace
	config    v1alpha1.ClusterConfig
}

// viewPod is a pod with a sidecar and what it should have.
type viewPod struct {
	namespace, name, owner string
	bundle                 *xds.Bundle
	selection              *api.Selection
}

// heard is what a sidecar said, to whichever replica.
type heard struct {
	Objects     map[xds.Object]int64
	Nack        string
	Revocations map[string]bool
	At          time.Time
	Ended       bool // its stream there
}

// snapshot is the newest view.
func (e *Engine) snapshot() *view {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.view
}

// count says how many sidecars an object concerns, have what is in force of
// it, and refused the documents with it; and why one did.
func (v *view) count(o *object, said map[string]heard) (n crd.Sidecars, why string) {
	key := xds.Object{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name}
	for uid, p := range v.pods {
		if _, concerned := p.bundle.Objects[key]; !concerned {
			continue
		}
		n.Total++
		h := said[uid]
		if g, ok := h.Objects[key]; ok && g == o.inForce {
			n.Programmed++
		}
		if h.Nack != "" {
			n.Rejected++
			if why == "" || h.Nack < why { // any, but always the same one
				why = h.Nack
			}
		}
	}
	n.Summary = fmt.Sprintf("%d/%d", n.Programmed, n.Total)
	return n, why
}
