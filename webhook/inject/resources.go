package inject

import (
	"fmt"
	"math/big"
	"strconv"

	"github.com/attache-dev/attache/internal/podspool"
)

// resources are requests and limits of one of our containers. Those of cpu and
// memory are always set: a ResourceQuota refuses pods whose containers lack one.
// Of storage what is 0 is left out.
type resources struct{ cpu, memory, storage share }

type share struct{ request, limit quantity }

func (r resources) object() object {
	requests := object{"cpu": r.cpu.request.String(), "memory": r.memory.request.String()}
	limits := object{"cpu": r.cpu.limit.String(), "memory": r.memory.limit.String()}
	if r.storage.request > 0 {
		requests[ephemeralStorage] = r.storage.request.String()
	}
	if r.storage.limit > 0 {
		limits[ephemeralStorage] = r.storage.limit.String()
	}
	return object{"requests": requests, "limits": limits}
}

const ephemeralStorage = "ephemeral-storage"

// redirect's own needs: it runs for milliseconds.
var helperResources = resources{cpu: share{10, 100}, memory: share{16 << 20 * 1000, 64 << 20 * 1000}, storage: share{16 << 20 * 1000, 64 << 20 * 1000}}

// resources sets those of the sidecar and of the redirect.
func (j *injection) resources() {
	want := resources{cpu: share{j.cpu.request, j.cpu.limit}, memory: share{j.memory.request, j.memory.limit}}
	helper := helperResources
	if j.guaranteed() {
		// One container with requests below its limits makes the pod Burstable.
		want = resources{cpu: share{j.guaranteedCPU, j.guaranteedCPU}, memory: share{j.memory.limit, j.memory.limit}}
		helper.cpu.request, helper.memory.request = helper.cpu.limit, helper.memory.limit
		j.override(&want)
		want.cpu.request, want.memory.request = want.cpu.limit, want.memory.limit
	} else {
		j.override(&want)
	}
	j.proxy = resources{cpu: j.cpu.fit(want.cpu), memory: j.memory.fit(want.memory)}
	j.helper = resources{cpu: j.cpu.fit(helper.cpu), memory: j.memory.fit(helper.memory)}
	j.storage()
	j.podLevel()
}

// storage sets the spool's sizes and what our containers say of them.
//
// The request is always there, so that the pod comes to a node that has the
// room, and is not the first to go when the node has no more: the kubelet
// begins with those that use more than they asked for.
//
// A limit is there only if another container has one. For as soon as any of them
// has, the kubelet takes the sum of all for the bound of the whole pod, with its
// volumes (podEphemeralStorageLimitEviction in pkg/kubelet/eviction): ours alone
// would bound an agent that had no bound, and without ours the spool would use
// up what the agent was given.
func (j *injection) storage() {
	j.sizes = j.spoolSizes()
	if j.sizes.Ephemeral == 0 {
		return
	}
	b := j.disk
	bound := b.max > 0 || b.ratio > 0 // then the LimitRange asks for a limit
	for _, c := range j.containers {
		_, ok := j.quantity(j.object(c.object, "resources", c.path+".resources"), "limits", ephemeralStorage, c.path+".resources")
		bound = bound || ok
	}
	if b.max > 0 && ofBytes(j.sizes.Ephemeral) > b.max {
		s, ok := podspool.Within(int64(b.max) / 1000)
		if !ok {
			j.deny("spec", "the namespace's LimitRange leaves a container "+b.max.String()+" of ephemeral-storage, which is too little for the records of calls",
				"ask the operator to raise its maximum, to "+ofBytes(j.sizes.Ephemeral).String()+" for a whole spool")
			return
		}
		j.warnings.add("spec: the namespace's LimitRange makes the spool of records smaller: " + ofBytes(s.Spool).String() + " instead of " + ofBytes(j.sizes.Spool).String())
		j.sizes = s
	}
	j.proxy.storage, j.helper.storage = share{request: ofBytes(j.sizes.Ephemeral)}, share{request: helperResources.storage.request}
	if bound {
		j.proxy.storage.limit, j.helper.storage.limit = j.proxy.storage.request, helperResources.storage.limit
	}
	j.proxy.storage, j.helper.storage = b.fitStorage(j.proxy.storage), b.fitStorage(j.helper.storage)
}

func ofBytes(n int64) quantity { return quantity(n * 1000) }

// fitStorage is fit where there may be no limit.
func (b bounds) fitStorage(s share) share {
	if s.limit > 0 {
		return b.fit(s)
	}
	s.request = max(s.request, b.min)
	return s
}

// spoolSizes are the operator's, or grow with what the pod asks for.
func (j *injection) spoolSizes() podspool.Sizes {
	s := j.spool
	asked, ok := j.asked[annotationSpool]
	if !ok {
		return s
	}
	own := podspool.Of((int64(asked) + 999) / 1000)
	own.Volume = max(own.Volume, own.Spool+s.Volume-s.Spool)
	own.Ephemeral = own.Volume + s.Ephemeral - s.Volume
	if s.Ephemeral == 0 {
		own.Ephemeral = 0
	}
	return own
}

// spoolEnv tells the sidecar of a size that is not its default.
func (j *injection) spoolEnv() (string, bool) {
	return strconv.FormatInt(j.sizes.Spool, 10), j.sizes.Spool != podspool.DefaultSpool
}

// override applies the pod's annotations. A request above the limit raises it.
func (j *injection) override(r *resources) {
	for i, field := range []*quantity{&r.cpu.request, &r.cpu.limit, &r.memory.request, &r.memory.limit} {
		if q, ok := j.asked[resourceAnnotations[i]]; ok {
			*field = q
		}
	}
	r.cpu.limit = max(r.cpu.limit, r.cpu.request)
	r.memory.limit = max(r.memory.limit, r.memory.request)
}

// fit moves a share into the LimitRange.
func (b bounds) fit(s share) share {
	if b.max > 0 {
		s.limit, s.request = min(s.limit, b.max), min(s.request, b.max)
	}
	s.limit, s.request = max(s.limit, b.min), max(s.request, b.min)
	if b.ratio > 0 {
		// request ≥ limit / ratio, rounded up to what the API keeps.
		n := new(big.Int).Mul(big.NewInt(int64(s.limit)), big.NewInt(1000))
		n.Add(n, big.NewInt(int64(b.ratio)-1)).Div(n, big.NewInt(int64(b.ratio)))
		least := (quantity(n.Int64()) + b.unit - 1) / b.unit * b.unit
		s.request = min(max(s.request, least), s.limit)
	}
	return s
}

// guaranteed reports whether every container of the author's has a limit of
// both resources and no request below it: k8s.io/kubernetes/pkg/apis/core/v1/helper/qos.
// A pod whose class its own resources decide keeps it whatever we add.
func (j *injection) guaranteed() bool {
	all := true
	for _, c := range j.containers {
		r := j.object(c.object, "resources", c.path+".resources")
		for _, name := range []string{"cpu", "memory"} {
			limit, ok := j.quantity(r, "limits", name, c.path+".resources")
			request, asked := j.quantity(r, "requests", name, c.path+".resources")
			if !ok || limit == 0 || asked && request != limit {
				all = false
			}
		}
	}
	return all
}

// quantity reads one amount of a container's or a pod's resources.
func (j *injection) quantity(r object, kind, name, path string) (quantity, bool) {
	o := j.object(r, kind, path+"."+kind)
	if o[name] == nil {
		return 0, false
	}
	q, err := anyQuantity(o[name])
	if err != nil {
		j.deny(path+"."+kind+"."+name, err.Error(), "correct it")
		return 0, false
	}
	return q, true
}

// podLevel checks a pod that has resources of its own (spec.resources), which
// its containers share: the API refuses containers that ask for more.
func (j *injection) podLevel() {
	pod := j.object(j.spec, "resources", "spec.resources")
	if pod == nil {
		return
	}
	for _, r := range []struct {
		name string
		own  *share
		help *share
	}{{"cpu", &j.proxy.cpu, &j.helper.cpu}, {"memory", &j.proxy.memory, &j.helper.memory}} {
		if limit, ok := j.quantity(pod, "limits", r.name, "spec.resources"); ok {
			for _, s := range []*share{r.own, r.help} {
				s.limit, s.request = min(s.limit, limit), min(s.request, limit)
			}
		}
		total, ok := j.quantity(pod, "requests", r.name, "spec.resources")
		if !ok {
			continue
		}
		sum := new(big.Int).SetInt64(int64(r.own.request))
		for _, c := range j.containers {
			if c.init && c.object["restartPolicy"] != "Always" {
				continue // ends before the others start
			}
			res := j.object(c.object, "resources", c.path+".resources")
			q, ok := j.quantity(res, "requests", r.name, c.path+".resources")
			if !ok { // then the API takes the limit
				q, _ = j.quantity(res, "limits", r.name, c.path+".resources")
			}
			sum.Add(sum, big.NewInt(int64(q)))
		}
		if sum.Cmp(big.NewInt(int64(total))) > 0 {
			j.deny("spec.resources.requests."+r.name, "leaves no room for the sidecar",
				fmt.Sprintf("raise it by %s, which the sidecar requests", r.own.request))
		}
	}
}
