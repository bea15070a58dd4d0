package inject

import (
	"fmt"
	"math/big"
)

// resources are requests and limits of one of our containers. Both are always
// set: a ResourceQuota refuses pods whose containers lack one.
type resources struct{ cpu, memory share }

type share struct{ request, limit quantity }

func (r resources) object() object {
	return object{
		"requests": object{"cpu": r.cpu.request.String(), "memory": r.memory.request.String()},
		"limits":   object{"cpu": r.cpu.limit.String(), "memory": r.memory.limit.String()},
	}
}

// redirect's own needs: it runs for milliseconds.
var helperResources = resources{cpu: share{10, 100}, memory: share{16 << 20 * 1000, 64 << 20 * 1000}}

// resources sets those of the sidecar and of the redirect.
func (j *injection) resources() {
	want := resources{share{j.cpu.request, j.cpu.limit}, share{j.memory.request, j.memory.limit}}
	helper := helperResources
	if j.guaranteed() {
		// One container with requests below its limits makes the pod Burstable.
		want = resources{share{j.guaranteedCPU, j.guaranteedCPU}, share{j.memory.limit, j.memory.limit}}
		helper.cpu.request, helper.memory.request = helper.cpu.limit, helper.memory.limit
		j.override(&want)
		want.cpu.request, want.memory.request = want.cpu.limit, want.memory.limit
	} else {
		j.override(&want)
	}
	j.proxy = resources{j.cpu.fit(want.cpu), j.memory.fit(want.memory)}
	j.helper = resources{j.cpu.fit(helper.cpu), j.memory.fit(helper.memory)}
	j.podLevel()
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
